"""P6, A8: identify in numbers the machine can serve, and of a size it can keep.

Defects (py-libp2p 0.8.1):

- P6: every new connection, at both ends, starts an identify at once, with 10 s for it from that moment. When some
  hundreds start together they all run out of time together, and none is tried again: those peers never become known.
- A8: an identify, asked for or pushed, may have 1 MiB; its protocols, however many, and up to 1,000 addresses go into
  the peerstore.
- An identify is answered up to 0.5 s late by a host that does not listen anywhere: it waits for addresses to appear.

Why this works: the host calls ``_identify_peer`` for each identify and looks up the handlers of the others for each
stream. The replacement takes turns, counted for the whole process (hosts in one process share its CPU), and separately
for the two directions of connections, so silent strangers hold up only strangers; the time runs from its turn; who
fails is tried once more, behind the others. All three ends read and write bounded messages.

It can go when identifies take turns and are bounded upstream.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import trio
from libp2p.abc import INetConn, INetStream
from libp2p.host.basic_host import BasicHost, _is_relayed_connection
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.identify import _mk_identify_protobuf, _remote_address_to_multiaddr
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.identity.identify_push.identify_push import ID_PUSH as IDENTIFY_PUSH
from libp2p.identity.update import update_peerstore_from_identify
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.rcmgr import Direction
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from prime_dht.net.hardening.containment import contained
from prime_dht.wire.kad import MAX_ADDRESS_BYTES

MAX_IDENTIFY_BYTES = 64 << 10
MAX_ADDRESSES = 32
MAX_PROTOCOLS = 128
MAX_PROTOCOL_BYTES = 128
MAX_RECORD_BYTES = 8 << 10
"""Of the signed peer record, whose addresses are kept as well; go-libp2p's limit."""

IDENTIFY_TIMEOUT_S = 10.0
"""For one exchange, once it is its turn."""

AT_ONCE = 16
"""Exchanges under way in the process, for each direction of connections."""

ATTEMPTS = 2

_turns: trio.lowlevel.RunVar[dict[bool, trio.CapacityLimiter]] = trio.lowlevel.RunVar("prime_dht identify turns")

logger = logging.getLogger(__name__)


class _Identify:
    def __init__(self, host: BasicHost) -> None:
        self._host = host

    async def ask(self, peer_id: ID, *, reason: str) -> None:
        """Identify a peer, in turn. ``reason`` is what the host logs; the name is the host's."""
        for _ in range(ATTEMPTS):
            connection = self._host._get_first_connection(peer_id)
            if not isinstance(connection, SwarmConn) or connection.is_closed:
                return
            async with _turn(connection):
                # This runs in a system task of trio: what gets out of here ends the program.
                with contained(lambda faults: logger.debug("identify (%s) failed", reason, exc_info=faults)):
                    await self._exchange(peer_id, connection)
                    return

    async def _exchange(self, peer_id: ID, connection: SwarmConn) -> None:
        with trio.fail_after(IDENTIFY_TIMEOUT_S):
            stream = await self._host.new_stream(peer_id, [IDENTIFY])
            try:
                message = await _receive(stream)
            finally:
                with trio.move_on_after(1) as scope:
                    scope.shield = True
                    await stream.reset()
        if not await self._learn(connection, message):
            return
        self._host._identified_peers[peer_id] = datetime.now(UTC).isoformat(timespec="milliseconds")
        observations = self._host._observed_addr_manager
        if observations is not None and message.observed_addr and not _is_relayed_connection(connection):
            observed = Multiaddr(message.observed_addr)
            observations.record_observation(connection, observed, self._host.get_transport_addrs())

    async def accept_push(self, stream: INetStream) -> None:
        """Take a peer's news about itself."""
        with trio.fail_after(IDENTIFY_TIMEOUT_S):
            message = await _receive(stream)
        if isinstance(stream, NetStream) and stream.swarm_conn is not None:
            await self._learn(stream.swarm_conn, message)
        await stream.close()

    async def _learn(self, connection: SwarmConn, message: Identify) -> bool:
        """Keep what a peer says of itself; ``False`` if it has gone, since nobody would make the host forget it."""
        if connection.is_closed:
            return False
        await update_peerstore_from_identify(self._host.peerstore, connection.muxed_conn.peer_id, message)
        return True


class _Answer:
    def __init__(self, host: BasicHost, agent: str) -> None:
        self._host = host
        self._agent = agent

    async def __call__(self, stream: INetStream) -> None:
        observed = _remote_address_to_multiaddr(stream.get_remote_address())
        message = _mk_identify_protobuf(self._host, observed)
        message.agent_version = self._agent
        with trio.fail_after(IDENTIFY_TIMEOUT_S):
            await stream.write(encode_varint_prefixed(message.SerializeToString()))
            await stream.close()


def _turn(connection: SwarmConn) -> trio.CapacityLimiter:
    try:
        turns = _turns.get()
    except LookupError:
        turns = {inbound: trio.CapacityLimiter(AT_ONCE) for inbound in (False, True)}
        _turns.set(turns)
    return turns[connection.direction == Direction.INBOUND]


async def _receive(stream: INetStream) -> Identify:
    message = Identify.FromString(await read_varint_prefixed_bytes_limited(stream, MAX_IDENTIFY_BYTES))
    message.listen_addrs[:] = [raw for raw in message.listen_addrs if len(raw) <= MAX_ADDRESS_BYTES][:MAX_ADDRESSES]
    message.protocols[:] = [name for name in message.protocols if len(name) <= MAX_PROTOCOL_BYTES][:MAX_PROTOCOLS]
    if len(message.signedPeerRecord) > MAX_RECORD_BYTES:
        message.ClearField("signedPeerRecord")
    return message


def guard_identify(host: BasicHost) -> None:
    """Have a host ask, and be told, within bounds."""
    identify = _Identify(host)
    host._identify_peer = identify.ask  # type: ignore[method-assign]
    host.set_stream_handler(IDENTIFY_PUSH, identify.accept_push)


def identify_on_demand(host: BasicHost) -> None:
    """Have a host ask nobody merely because there is a new connection: only whom ``host.connect`` reached.

    The others are still answered. What they would be asked for, their protocols and addresses, a stream's negotiation
    and a probe of :mod:`prime_dht.node.neighbourhood` find out as well. So there is no storm of identifies to survive.
    """
    host._on_notifee_connected = _ask_nobody  # type: ignore[method-assign,assignment]


async def _ask_nobody(_connection: INetConn) -> None:
    return


def answer_identify(host: BasicHost, agent: str) -> None:
    """Have a host answer at once, under a name of its own."""
    host.set_stream_handler(IDENTIFY, _Answer(host, agent))
