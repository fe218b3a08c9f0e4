"""A1, A2: strangers cannot use up the places for inbound connections by coming and going, nor by saying nothing.

Defects (py-libp2p 0.8.1):

- A1: the task that accepted a connection waits for the end of the whole swarm, and holds one of the inbound slots
  (250 by default) until then, also when the connection has long closed. After that many connections in the life of a
  host, one after the other, it accepts no more.
- A2: a connection takes such a slot before it has said anything and may be silent for 10 s: a few silent connections
  per second keep everybody else out. One address may open as many as it likes.

Why this works: the swarm's inner step for an inbound connection is replaced by one that ends with the connection,
counts the half-open apart from the established, and counts both by address. The outer step, which takes and returns the
slot, stays. (The swarm's metrics of failed inbound connections are not sent.)

A few addresses could still take all places and keep them. So when there is none left, a connection from where there are
few takes the place of one from where there are most: of a half-open one when it comes, and of an established one not
before it has shaken hands, so that who only knocks displaces nobody who is in. Many addresses could take all the places
of the half-open, with one silent connection each: one that has had its time for a handshake makes way for anybody.

A handshake is a millisecond or two of CPU, for which a stranger only has to send 32 random bytes. Those who come from
outside get their turns at a pace that leaves this node most of its time (:class:`HandshakePace`).

It can go when the accepting task ends with its connection and pending inbound connections are limited.
"""

from __future__ import annotations

import ipaddress
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from enum import IntEnum
from functools import lru_cache, partial

import trio
from libp2p.abc import IMuxedConn, INetConn
from libp2p.io.abc import ReadWriteCloser
from libp2p.metrics.swarm import SwarmEvent
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from multiaddr import Multiaddr

from prime_dht.net.hardening.containment import contained
from prime_dht.net.hardening.limits import HostLimits
from prime_dht.net.hardening.remote_address import remote_ip

_HALF_OPEN, _ESTABLISHED = "half-open", "established"

DISPLACING = 32
"""Connections that may be waiting, beyond the limits, for those to end whose places they take."""

END_TIMEOUT_S = 2.0
"""For ending one of those, after which it is not waited for any longer."""

FAIR_HANDSHAKE_S = 2.5
"""Who has had so long to shake hands makes way for anybody: it takes four round trips, also where one is half a second.
"""

HANDSHAKES_PER_S = 100
"""A fifth of the CPU of one core."""

HANDSHAKES_AT_ONCE = 256
"""So many may come at once before they come at that pace: as when a node comes back whom everybody dials."""

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
        clock: in seconds.
    """

    def __init__(
        self,
        limits: HostLimits,
        connections: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._limits = limits
        self._connections = connections
        self._clock = clock
        self._counts: Counter[str] = Counter()  # of states and of sources
        self._places: dict[Place, None] = {}  # in the order of their coming

    def place(self, source: str | None) -> Place:
        """Counts a connection, at first as half-open, while its block lasts."""
        return Place(self._counts, self._places, source)

    def refusal(self, place: Place) -> str | None:
        """Why a connection that comes cannot be taken, not even where another makes way; ``None`` if it can."""
        if place.source is not None and self._counts[place.source] >= self._limits.max_inbound_per_address:
            return f"too many connections from {place.source}"
        if self._way(place, _HALF_OPEN) is None:
            return "too many connections are half-open"
        if self._way(place, _ESTABLISHED) is None:
            return "too many connections are open"
        return None

    def half_open(self, place: Place) -> list[Place] | None:
        """Those that make way for a connection that begins, as for :meth:`establish`; at most one.

        That is the oldest from where most are, if it is not where the newcomer is from, for shaking hands takes a
        moment; or else whoever has had time enough for it, wherever it is from.
        """
        return self._make_way(place, _HALF_OPEN)

    def began(self, place: Place) -> None:
        """A connection has its turn to shake hands."""
        place.began_s = self._clock()

    def establish(self, place: Place) -> list[Place] | None:
        """Count a connection as established. Those that make way for it count no longer, and the caller ends them; it
        is at most one. ``None``, with nothing changed, if there is no place.

        It is one from where there are most, if there are many more than from where the newcomer is: the newest that
        nobody uses, or else the newest. Those whose source is not counted stay, and those that the owner protects.
        """
        displaced = self._make_way(place, _ESTABLISHED)
        if displaced is not None:
            place.establish()
        return displaced

    def make_way(self, place: Place) -> list[Place] | None:
        """Those that will have to make way when a connection is to be established, already now."""
        return self._make_way(place, _ESTABLISHED)

    def _make_way(self, place: Place, state: str) -> list[Place] | None:
        displaced = self._way(place, state)
        for each in displaced or ():
            each.leave()
        return displaced

    def _way(self, place: Place, state: str) -> list[Place] | None:
        """Who has to make way for one more in a state: nobody, if there is a place; ``None`` if nobody does."""
        if self._counts[state] < (self._limits.max_half_open if state == _HALF_OPEN else self._max_established):
            return []
        in_state = [other for other in self._places if other.state == state and other is not place]
        groups = Counter([other.group for other in in_state if other.may_go])
        most = max(groups, key=groups.__getitem__, default=None)
        from_there = [other for other in self._places if other.group == place.group and other is not place]
        if most is not None and groups[most] > (len(from_there) if place.group is not None else 0) + 1:
            theirs = [other for other in in_state if other.group == most and other.may_go]
            return [theirs[0] if state == _HALF_OPEN else min(reversed(theirs), key=lambda other: other.use())]
        late_s = self._clock() - FAIR_HANDSHAKE_S
        late = [other for other in in_state if state == _HALF_OPEN and other.began_s <= late_s]
        return [min(late, key=lambda other: other.began_s)] if late else None

    @property
    def _max_established(self) -> int:
        """There are fewer places where this host itself has made more connections than are kept for it."""
        outbound = self._connections() - self._counts[_ESTABLISHED]
        return min(self._limits.max_inbound_connections, self._limits.max_connections - outbound)


End = Callable[[], Awaitable[None]]


class Use(IntEnum):
    """What an established connection is good for."""

    NONE = 0
    STREAMS = 1
    PROTECTED = 2
    """The host's owner wants it kept."""


class Place:
    """Counts a connection by its state and its source while the block lasts, or until it makes way for another.

    (A class: each inbound connection lives in such a block, and a generator's takes half a kilobyte.)

    Attributes:
        source: where it is from.
        group: of sources that are one when places are scarce.
        state: half-open or established.
        began_s: when it could begin to shake hands.
        on_end: ends it.
        use: says its use.
    """

    __slots__ = ("_counts", "_places", "began_s", "group", "on_end", "source", "state", "use")

    def __init__(self, counts: Counter[str], places: dict[Place, None], source: str | None) -> None:
        self._counts = counts
        self._places = places
        self.source = source
        self.group = None if source is None else group_of(source)
        self.state = _HALF_OPEN
        self.began_s = math.inf
        self.on_end: End | None = None
        self.use: Callable[[], Use] = _unused

    @property
    def may_go(self) -> bool:
        return self.source is not None and self.use() is not Use.PROTECTED

    def __enter__(self) -> Place:
        self._places[self] = None
        self._counts.update(self._keys)
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def establish(self) -> None:
        """Count as established, unless it makes way already."""
        is_counted = self in self._places
        self.leave()
        self.state = _ESTABLISHED
        if is_counted:
            self.__enter__()

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
        if self.on_end is not None:
            with trio.move_on_after(END_TIMEOUT_S):
                await self.on_end()

    @property
    def _keys(self) -> tuple[str, ...]:
        return (self.state,) if self.source is None else (self.state, self.source)


def _unused() -> Use:
    return Use.NONE


class HandshakePace:
    """At most so many handshakes begin in a second, once a burst of them has; the others wait, first come first served.

    Who waits is half-open, so it is not longer than those can all have their turns.
    """

    def __init__(self) -> None:
        self._first = trio.Lock()
        self._next_s = -math.inf

    async def turn(self) -> None:
        """Wait for a turn."""
        async with self._first:
            self._next_s = max(self._next_s, trio.current_time() - (HANDSHAKES_AT_ONCE - 1) / HANDSHAKES_PER_S)
            await trio.sleep_until(self._next_s)
            self._next_s += 1 / HANDSHAKES_PER_S  # after that, for who was displaced while it waited had no turn


class _InboundGuard:
    def __init__(self, swarm: Swarm, limits: HostLimits) -> None:
        self._swarm = swarm
        self._add_conn = swarm.add_conn
        self._admission = Admission(limits, lambda: len(swarm.get_connections()), trio.current_time)
        self._pace = HandshakePace()
        self._shaking_hands: dict[trio.lowlevel.Task, Place] = {}

    async def __call__(self, stream: ReadWriteCloser, maddr: Multiaddr, _failure: SwarmEvent) -> None:
        place = self._admission.place(source_of(remote_ip(stream)))
        connection: INetConn | None = None
        refusal: str | None = "the gate does not let it in"
        try:
            if await self._gate_allows(stream):
                refusal = self._admission.refusal(place)
            if refusal is None:
                connection = await self._take(stream, maddr, place)
            else:
                logger.debug("refused an inbound connection: %s", refusal)
            if isinstance(connection, SwarmConn):
                await connection.event_closed.wait()
        finally:
            place.leave()
            if connection is None:
                # TCP's listener closes what its handler leaves open; other transports' need not.
                await stream.close()

    async def _take(self, stream: ReadWriteCloser, maddr: Multiaddr, place: Place) -> INetConn | None:
        """Let a connection in, which then counts; ``None`` if it ends before that."""
        connection: INetConn | None = None
        displaced = self._admission.half_open(place) or []
        if len(self._swarm.get_connections()) >= self._swarm.connection_config.max_connections:
            # This host has dialled so many that the swarm would not even shake hands.
            displaced += self._admission.make_way(place) or []
        with trio.CancelScope() as scope:

            async def end() -> None:
                scope.cancel()
                await trio.lowlevel.checkpoint()

            place.on_end = end
            place.__enter__()
            await self._end(displaced)
            if place.source is not None:
                await self._pace.turn()
            self._admission.began(place)
            task = trio.lowlevel.current_task()
            self._shaking_hands[task] = place
            try:
                connection = await self._upgrade(stream, maddr)
            finally:
                del self._shaking_hands[task]
        if isinstance(connection, SwarmConn):
            place.on_end, place.use = partial(self._close, connection), partial(self._use, connection)
            if scope.cancel_called:  # too late to be noticed
                await place.end()
        return connection

    async def add_conn(self, muxed_conn: IMuxedConn, direction: str = "unknown") -> SwarmConn:
        """As the swarm's own; for a connection that has shaken hands, when it has a place among the established."""
        place = self._shaking_hands.get(trio.lowlevel.current_task())
        if place is not None:
            displaced = self._admission.establish(place)
            try:
                if displaced is None:
                    await muxed_conn.close()
                    raise SwarmException("too many connections are open")
                await self._end(displaced)
            except BaseException:  # also a cancellation: what the swarm has set aside for it is free again
                scope = getattr(muxed_conn, "_resource_scope", None)
                if scope is not None:
                    scope.close()
                raise
        return await self._add_conn(muxed_conn, direction=direction)

    async def _end(self, displaced: list[Place]) -> None:
        for place in displaced:
            logger.debug("a %s inbound connection makes way for one from elsewhere", place.state)
            await place.end()

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
    guard = _InboundGuard(swarm, limits)
    swarm._do_handle_inbound_connection = guard  # type: ignore[method-assign,assignment]
    swarm.add_conn = guard.add_conn  # type: ignore[method-assign]
