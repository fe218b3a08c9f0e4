"""How a py-libp2p host comes to use :class:`~prime_dht.net.yamux.connection.FastYamux`.

The class in a host's ``muxer_opt`` has no effect in py-libp2p 0.8.1: ``MuxerMultistream.new_conn`` builds its own
``Yamux`` for ``/yamux/1.0.0``, whatever the option says. So the object that negotiates the muxer is replaced.
"""

from __future__ import annotations

from libp2p.abc import IHost, IMuxedConn, ISecureConn
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID

from prime_dht.errors import ConfigError
from prime_dht.net.noise import FastNoiseSession
from prime_dht.net.yamux.connection import FastYamux, Unread
from prime_dht.net.yamux.pace import Crowd


class FastMuxers(MuxerMultistream):
    """Negotiates like ``stock``, and builds a :class:`FastYamux` on what a FastNoiseSession secures.

    Args:
        stock: what it takes the place of; the negotiator is shared, with whatever guards it has been given.
    """

    def __init__(self, stock: MuxerMultistream) -> None:
        super().__init__({}, stock.negotiate_timeout)
        self._selector = stock._selector
        self._unread = Unread()
        self._crowd = Crowd()

    async def new_conn(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        if not isinstance(conn, FastNoiseSession):
            return await super().new_conn(conn, peer_id)
        protocol, muxer = await self._selector.select(conn, conn.is_initiator, self.negotiate_timeout)
        if protocol == PROTOCOL_ID:
            yamux = FastYamux(conn, peer_id, unread=self._unread, crowd=self._crowd)
            return self._annotate_connection(yamux, conn, protocol)
        return self._annotate_connection(muxer(conn, peer_id), conn, protocol)


def use_fast_yamux(host: IHost) -> None:
    """Make ``host`` use :class:`FastYamux` on the connections it makes from now on.

    Raises:
        ConfigError: the host's network is not py-libp2p's ``Swarm``.
    """
    network = host.get_network()
    if not isinstance(network, Swarm):
        raise ConfigError(f"the host's network is a {type(network).__name__}, not py-libp2p's Swarm")
    network.upgrader.muxer_multistream = FastMuxers(network.upgrader.muxer_multistream)
