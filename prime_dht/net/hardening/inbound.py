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

A few addresses could still take all places and keep them. So when there is none left, a connection from where there are
few takes the place of one from where there are most.

It can go when the accepting task ends with its connection and pending inbound connections are limited.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from enum import IntEnum
from functools import lru_cache, partial

import trio
from libp2p.abc import IMuxedConn, INetConn
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.trio import TrioTCPStream
from libp2p.metrics.swarm import SwarmEvent
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.swarm import Swarm
from multiaddr import Multiaddr

from prime_dht.net.hardening.containment import contained
from prime_dht.net.hardening.limits import HostLimits

_HALF_OPEN, _ESTABLISHED = "half-open", "established"

DISPLACING = 32
"""Connections that may be waiting, beyond the limits, for those to end whose places they take."""

END_TIMEOUT_S = 2.0
"""For ending one of those, after which it is not waited for any longer."""

_GROUP_BITS = 48
"""Of an IPv6 address: what one customer of a provider may have to share out among sources."""

logger = logging.getLogger(__name__)


class Admission:
    """How many inbound connections there are, by state and by source.

    A source is what one party can be assumed to control: an IPv4 address, or a /64 of IPv6. ``None`` is a source that
    is not counted: loopback, and transports that cannot tell.

    Args:
        limits: of the host.
        connections: how many it has, in and out.
    """

    def __init__(self, limits: HostLimits, connections: Callable[[], int] = lambda: 0) -> None:
        self._limits = limits
        self._connections = connections
        self._counts: Counter[str] = Counter()  # of states and of sources
        self._places: dict[_Counted, None] = {}  # in the order of their coming

    def refusal(self, source: str | None) -> str | None:
        """Why a new connection cannot be taken now; ``None`` if it can."""
        if self._counts[_HALF_OPEN] >= self._limits.max_half_open:
            return "too many connections are half-open"
        if self._counts[_ESTABLISHED] >= self._max_established:
            return "too many connections are open"
        if source is not None and self._counts[source] >= self._limits.max_inbound_per_address:
            return f"too many connections from {source}"
        return None

    def make_room(self, source: str | None) -> list[_Counted]:
        """Where there is no place for a connection, those that make way for it, which count no longer; the caller ends
        them. None, if there are not many more from elsewhere than from where it comes.

        Of the half-open it is the oldest, for shaking hands takes a moment; of the established the newest that nobody
        uses, or else the newest. Those whose source is not counted stay, and those that the owner protects.
        """
        if source is not None and self._counts[source] >= self._limits.max_inbound_per_address:
            return []
        from_there = sum(place.group == group_of(source) for place in self._places) if source is not None else 0
        limits = ((_HALF_OPEN, self._limits.max_half_open), (_ESTABLISHED, self._max_established))
        displaced: list[_Counted] = []
        for state, limit in limits:
            if self._counts[state] < limit:
                continue
            places = [place for place in self._places if place.state == state and place.may_go]
            groups = Counter(place.group for place in places)
            most = max(groups, key=groups.__getitem__, default=None)
            if most is None or groups[most] <= from_there + 1:
                return []
            theirs = [place for place in places if place.group == most]
            displaced.append(theirs[0] if state == _HALF_OPEN else min(reversed(theirs), key=lambda place: place.use()))
        for place in displaced:
            place.leave()
        return displaced

    @property
    def _max_established(self) -> int:
        """There are fewer places where this host itself has made more connections than are kept for it."""
        outbound = self._connections() - self._counts[_ESTABLISHED]
        return min(self._limits.max_inbound_connections, self._limits.max_connections - outbound)

    def half_open(self, source: str | None, end: End | None = None) -> _Counted:
        """Count a connection as half-open while the block lasts; ``end`` ends it."""
        return _Counted(self._counts, self._places, _HALF_OPEN, source, end)

    def established(
        self, source: str | None, end: End | None = None, use: Callable[[], Use] = lambda: Use.NONE
    ) -> _Counted:
        """Count a connection as established while the block lasts; ``end`` ends it, ``use`` says its use."""
        return _Counted(self._counts, self._places, _ESTABLISHED, source, end, use)


End = Callable[[], Awaitable[None]]


class Use(IntEnum):
    """What an established connection is good for."""

    NONE = 0
    STREAMS = 1
    PROTECTED = 2
    """The host's owner wants it kept."""


class _Counted:
    """Counts a connection by its state and its source while the block lasts, or until it makes way for another.

    (A class: each inbound connection lives in such a block, and a generator's takes half a kilobyte.)
    """

    __slots__ = ("_counts", "_end", "_places", "_source", "state", "use")

    def __init__(
        self,
        counts: Counter[str],
        places: dict[_Counted, None],
        state: str,
        source: str | None,
        end: End | None,
        use: Callable[[], Use] = lambda: Use.NONE,
    ) -> None:
        self._counts = counts
        self._places = places
        self._source = source
        self._end = end
        self.state = state
        self.use = use

    @property
    def may_go(self) -> bool:
        return self._source is not None and self.use() is not Use.PROTECTED

    @property
    def group(self) -> str | None:
        return None if self._source is None else group_of(self._source)

    def __enter__(self) -> None:
        self._places[self] = None
        self._counts.update(self._keys)

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Count no longer."""
        if self not in self._places:
            return
        del self._places[self]
        self._counts.subtract(self._keys)
        for key in self._keys:
            if not self._counts[key]:
                del self._counts[key]

    async def end(self) -> None:
        """End the connection. Never takes long."""
        if self._end is not None:
            with trio.move_on_after(END_TIMEOUT_S):
                await self._end()

    @property
    def _keys(self) -> tuple[str, ...]:
        return (self.state,) if self._source is None else (self.state, self._source)


class _InboundGuard:
    def __init__(self, swarm: Swarm, limits: HostLimits) -> None:
        self._swarm = swarm
        self._admission = Admission(limits, lambda: len(swarm.get_connections()))

    async def __call__(self, stream: ReadWriteCloser, maddr: Multiaddr, _failure: SwarmEvent) -> None:
        source = source_of(remote_ip(stream))
        connection: INetConn | None = None
        try:
            if await self._gate_allows(stream):
                refusal = self._admission.refusal(source)
                displaced = self._admission.make_room(source) if refusal else []
                if refusal and not displaced:
                    logger.debug("refused an inbound connection: %s", refusal)
                else:
                    connection = await self._take(stream, maddr, source, displaced)
        finally:
            if connection is None:
                # TCP's listener closes what its handler leaves open; other transports' need not.
                await stream.close()
        if isinstance(connection, SwarmConn):
            close, use = partial(self._close, connection), partial(self._use, connection)
            with self._admission.established(source, close, use):
                await connection.event_closed.wait()

    async def _take(
        self, stream: ReadWriteCloser, maddr: Multiaddr, source: str | None, displaced: list[_Counted]
    ) -> INetConn | None:
        """Let a connection in, when those have ended whose places it takes; ``None`` if it ends before that."""
        connection: INetConn | None = None
        with trio.CancelScope() as scope:

            async def end() -> None:
                scope.cancel()
                await trio.lowlevel.checkpoint()

            with self._admission.half_open(source, end):
                for place in displaced:
                    logger.debug("a %s inbound connection makes way for one from elsewhere", place.state)
                    await place.end()
                connection = await self._upgrade(stream, maddr)
        return connection

    def _use(self, connection: SwarmConn) -> Use:
        if self._swarm.tag_store.is_protected(connection.muxed_conn.peer_id):
            return Use.PROTECTED
        return Use.STREAMS if connection.streams else Use.NONE

    async def _close(self, connection: SwarmConn) -> None:
        """Close a connection, in a task of its own: were its closing cancelled half way, with whoever waits for it, it
        would stay in the swarm's table."""
        closed = trio.Event()

        async def close() -> None:
            with contained(lambda faults: logger.debug("a connection that made way", exc_info=faults)):
                await connection.close()
            closed.set()

        if self._swarm.background_nursery is not None:  # else the swarm has stopped
            self._swarm.background_nursery.start_soon(close)
            await closed.wait()

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


@lru_cache(maxsize=1024)
def group_of(source: str) -> str:
    """The sources that are one when places are scarce.

    >>> group_of("192.0.2.7"), group_of("2001:db8:0:1::/64")
    ('192.0.2.7', '2001:db8::/48')
    """
    return str(ipaddress.IPv6Network(source).supernet(new_prefix=_GROUP_BITS)) if "/" in source else source


def guard_inbound(swarm: Swarm, limits: HostLimits) -> None:
    """Let inbound connections in within the limits, for as long as they last."""
    # The slots of the outer step are for both kinds, so they must suffice for both at their limits.
    swarm._inbound_limiter.total_tokens = limits.max_half_open + limits.max_inbound_connections + DISPLACING
    swarm._do_handle_inbound_connection = _InboundGuard(swarm, limits)  # type: ignore[method-assign,assignment]
