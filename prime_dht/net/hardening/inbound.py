"""A1, A2, A12: strangers cannot use up the places for inbound connections by coming and going, nor by saying nothing.

Defects (py-libp2p 0.8.1):

- A1: the task that accepted a connection waits for the end of the whole swarm, and holds one of the inbound slots
  (250 by default) until then, also when the connection has long closed. After that many connections in the life of a
  host, one after the other, it accepts no more.
- A2: a connection takes such a slot before it has said anything and may be silent for 10 s: a few silent connections
  per second keep everybody else out. One address may open as many as it likes.
- A12: a remote IPv6 address is not recognised, so IPv6 connections pass the connection gate unseen.

Why this works: the swarm's inner step for an inbound connection is replaced by one that ends with the connection,
counts the half-open apart from the established, and counts both by address. The outer step, which takes and returns the
slot, stays. (The swarm's metrics of failed inbound connections are not sent.)

It can go when the accepting task ends with its connection and pending inbound connections are limited.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import Counter

from libp2p.abc import IMuxedConn, INetConn
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.trio import TrioTCPStream
from libp2p.metrics.swarm import SwarmEvent
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.swarm import Swarm
from multiaddr import Multiaddr

from prime_dht.net.hardening.limits import HostLimits

_HALF_OPEN, _ESTABLISHED = "half-open", "established"

logger = logging.getLogger(__name__)


class Admission:
    """How many inbound connections there are, by state and by source.

    A source is what one party can be assumed to control: an IPv4 address, or a /64 of IPv6. ``None`` is a source that
    is not counted: loopback, and transports that cannot tell.
    """

    def __init__(self, limits: HostLimits) -> None:
        self._limits = limits
        self._counts: Counter[str] = Counter()  # of states and of sources

    def refusal(self, source: str | None) -> str | None:
        """Why a new connection cannot be taken now; ``None`` if it can."""
        if self._counts[_HALF_OPEN] >= self._limits.max_half_open:
            return "too many connections are half-open"
        if self._counts[_ESTABLISHED] >= self._limits.max_inbound_connections:
            return "too many connections are open"
        if source is not None and self._counts[source] >= self._limits.max_inbound_per_address:
            return f"too many connections from {source}"
        return None

    def half_open(self, source: str | None) -> _Counted:
        """Count a connection as half-open while the block lasts."""
        return _Counted(self._counts, _HALF_OPEN, source)

    def established(self, source: str | None) -> _Counted:
        """Count a connection as established while the block lasts."""
        return _Counted(self._counts, _ESTABLISHED, source)


class _Counted:
    """Counts a connection by its state and its source while the block lasts.

    (A class: each inbound connection lives in such a block, and a generator's takes half a kilobyte.)
    """

    __slots__ = ("_as", "_counts")

    def __init__(self, counts: Counter[str], state: str, source: str | None) -> None:
        self._counts = counts
        self._as = (state,) if source is None else (state, source)

    def __enter__(self) -> None:
        self._counts.update(self._as)

    def __exit__(self, *_: object) -> None:
        self._counts.subtract(self._as)
        for key in self._as:
            if not self._counts[key]:
                del self._counts[key]


class _InboundGuard:
    def __init__(self, swarm: Swarm, limits: HostLimits) -> None:
        self._swarm = swarm
        self._admission = Admission(limits)

    async def __call__(self, stream: ReadWriteCloser, maddr: Multiaddr, _failure: SwarmEvent) -> None:
        source = source_of(remote_ip(stream))
        connection: INetConn | None = None
        try:
            if await self._gate_allows(stream):
                if refusal := self._admission.refusal(source):
                    logger.debug("refused an inbound connection: %s", refusal)
                else:
                    with self._admission.half_open(source):
                        connection = await self._upgrade(stream, maddr)
        finally:
            if connection is None:
                # TCP's listener closes what its handler leaves open; other transports' need not.
                await stream.close()
        if isinstance(connection, SwarmConn):
            with self._admission.established(source):
                await connection.event_closed.wait()

    async def _gate_allows(self, stream: ReadWriteCloser) -> bool:
        remote = self._swarm._build_remote_multiaddr(stream)
        return remote is None or await self._swarm.connection_gate.is_allowed(remote)

    async def _upgrade(self, stream: ReadWriteCloser, maddr: Multiaddr) -> INetConn | None:
        """Agree on security and muxer, register; ``None`` if the connection has closed again by then."""
        if isinstance(stream, IMuxedConn):
            return await self._swarm.add_conn(stream, direction="inbound")
        muxed = await self._swarm.upgrade_inbound_raw_conn(RawConnection(stream, False), maddr)
        open_connections = self._swarm.get_connections(muxed.peer_id)
        return next((connection for connection in open_connections if connection.muxed_conn is muxed), None)


def remote_ip(stream: ReadWriteCloser) -> str | None:
    """The IP address at the other end of an inbound connection, if its transport has one."""
    if isinstance(stream, TrioTCPStream) and stream.get_remote_address() is None:
        try:
            ip, port = stream.stream.socket.getpeername()[:2]
        except OSError:
            return None
        # An IPv6 peer name has four parts, which TrioTCPStream does not expect. This is where it looks first, and a
        # multiaddr has no place for a scope.
        stream._cached_remote_address = (ip.partition("%")[0], port)
    remote = stream.get_remote_address()
    return None if remote is None else remote[0]


def source_of(ip: str | None) -> str | None:
    """The source to which a connection is counted; see :class:`Admission`.

    >>> source_of("192.0.2.7"), source_of("2001:db8:0:1::7"), source_of("127.0.0.1")
    ('192.0.2.7', '2001:db8:0:1::/64', None)
    """
    if ip is None:
        return None
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return source_of(str(address.ipv4_mapped))
        return None if address.is_loopback else str(ipaddress.ip_network((address, 64), strict=False))
    return None if address.is_loopback else str(address)


def guard_inbound(swarm: Swarm, limits: HostLimits) -> None:
    """Let inbound connections in within the limits, for as long as they last."""
    # The slots of the outer step are for both kinds, so they must suffice for both at their limits.
    swarm._inbound_limiter.total_tokens = limits.max_half_open + limits.max_inbound_connections
    swarm._do_handle_inbound_connection = _InboundGuard(swarm, limits)  # type: ignore[method-assign,assignment]
