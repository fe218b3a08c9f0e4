"""Connections that nobody uses are closed, so that a node does not stay connected to all whom it ever met.

A connection is *in use* while a stream is open on it, and *idle* since the last one ended, or since it was made. The
streams that the DHT keeps for its requests end when nothing was asked for a while (``UNUSED_S`` of
:mod:`prime_dht.net.rpc_client` where there are many, ``ServerLimits.idle_timeout_s`` of
:mod:`prime_dht.net.rpc_server` otherwise), so they keep a connection no longer than it is needed.

While a host has more connections than its *low-water mark*, those that have been idle for the *grace period* are
closed, the one idle for longest first. So a node stays connected to those it deals with most, its neighbours. A peer
whose connection is closed stays in the routing table, and is dialled again by whoever has something to ask it.

What go-libp2p calls the high-water mark is ``max_connections`` here. Idle connections are not kept until it is reached:
each costs memory at both ends, and in one process there may be thousands. Peers that the host's owner has protected
with the swarm's ``tag_store`` stay connected.

A request that is under way is never cut: it has a stream. One that the other end begins at the very moment is lost with
the connection before anything is done about it, and whoever opens streams dials again (:mod:`prime_dht.net.overlay`).
"""

from __future__ import annotations

import logging
from typing import NoReturn
from weakref import WeakKeyDictionary

import trio
from libp2p.abc import INetConn, INetStream, INetwork
from libp2p.network.stream.net_stream import NetStream
from libp2p.network.swarm import Swarm

from prime_dht.ids import PeerId, short
from prime_dht.net.hardening.parts import Notifee

LOOKS_PER_GRACE = 4
"""How often it is looked, in one grace period, which connections have outlived it."""

logger = logging.getLogger(__name__)


class IdleConnections(Notifee):
    """Closes a swarm's idle connections, while :meth:`run` does. It has to hear of the connections from the first on.

    Args:
        low_water: connections, in and out, of which none is closed.
        grace_s: seconds for which a connection may be idle.
    """

    def __init__(self, swarm: Swarm, *, low_water: int, grace_s: float) -> None:
        self._swarm = swarm
        self._low_water = low_water
        self._grace_s = grace_s
        self._used_at_s: WeakKeyDictionary[INetConn, float] = WeakKeyDictionary()
        swarm.register_notifee(self)

    async def run(self) -> NoReturn:
        """Close what is idle, until cancelled."""
        async with trio.open_nursery() as nursery:  # closing one whose path is dead takes long
            while True:
                await trio.sleep(self._grace_s / LOOKS_PER_GRACE)
                self._close_outlived(nursery)

    def _close_outlived(self, nursery: trio.Nursery) -> None:
        for connection in self._outlived():
            peer = PeerId(connection.muxed_conn.peer_id.to_bytes())
            logger.debug("closing the connection to %s, which is idle", short(peer))
            nursery.start_soon(connection.close)

    def _outlived(self) -> list[INetConn]:
        """The connections that are to go."""
        # One that is being closed stays in the swarm's table until its muxer has said good-bye.
        connections = [connection for connection in self._swarm.get_connections() if not connection.is_closed]
        too_many = len(connections) - self._low_water
        if too_many <= 0:
            return []
        now_s = trio.current_time()
        since_s = {
            connection: self._used_at_s.setdefault(connection, now_s)  # one that nobody has told us of yet is new
            for connection in connections
            if not connection.get_streams() and not self._is_protected(connection)
        }
        outlived = [connection for connection, idle_s in since_s.items() if now_s >= idle_s + self._grace_s]
        return sorted(outlived, key=since_s.__getitem__)[:too_many]

    def _is_protected(self, connection: INetConn) -> bool:
        """Whether the host's owner wants the connection kept, by py-libp2p's own means."""
        return self._swarm.tag_store.is_protected(connection.muxed_conn.peer_id)

    async def connected(self, _network: INetwork, conn: INetConn) -> None:
        self._used_at_s[conn] = trio.current_time()

    async def closed_stream(self, _network: INetwork, stream: INetStream) -> None:
        if isinstance(stream, NetStream) and stream.swarm_conn is not None:
            self._used_at_s[stream.swarm_conn] = trio.current_time()
