"""How much a store may hold, and what goes first when it is full.

*Limits* (:class:`~prime_dht.entries.limits.Limits`) bound the store, each publisher and each key. An entry that its key
or its publisher has no room for is refused: nobody loses a slot to a flood. Only a full *store* makes room, in this
order, and no more than it needs:

1. entries retained until before now: nobody needs them any more;
2. values that have expired, while their headers stay: those supersede older entries until they retire;
3. entries outside the arc this node is *responsible* for, the furthest first. The distance is that of Kademlia, to the
   node's kad key, in locations: the top 32 bits. At one location the one that came first goes first.

An entry outside the arc makes room only at the cost of what is further away than itself, or it would be the next to go;
one inside at the cost of all outside. What the node is responsible for never goes: if nothing else is left, the
newcomer is refused. What is evicted is not lost: it lies outside the arc, and the nodes closer to it hold it.

Plain records and provider records, which have limits of their own, go by the same distance and the same arc
(:mod:`prime_dht.storage.room`).

>>> def held_in(block):
...     within = [location for location in (1, 2, 5, 7) if location in block]
...     return (within[0], within[-1]) if within else None
>>> list(furthest_first(held_in, near=6, spared=range(4, 6)))
[1, 2, 7]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from prime_dht.entries.limits import DEFAULT_LIMITS, Limits
from prime_dht.ids import KAD_KEY_BITS, KadKey, kad_key
from prime_dht.kad.keyspace import Prefix

T = TypeVar("T")

LOCATION_BITS = 32
ALL_LOCATIONS = range(1 << LOCATION_BITS)
_ORIGIN = KadKey(0)


@dataclass(slots=True, kw_only=True)
class Capacity:
    """What a store goes by when it is full. Its owner may change it at any time; the next put goes by it.

    Attributes:
        limits: upper bounds. After they were lowered, the next put brings the store down to them.
        local: this node's kad key, from which distances are measured.
        responsible: the kad keys of which this node must keep all there is. ``None`` until it knows: then that is
            everything, and nothing is evicted but what has expired.
    """

    limits: Limits = DEFAULT_LIMITS
    local: KadKey = _ORIGIN
    responsible: Prefix | None = None

    @property
    def local_location(self) -> int:
        """This node's own place on the circle."""
        return self.local >> (KAD_KEY_BITS - LOCATION_BITS)

    @property
    def spared_locations(self) -> range:
        """The locations [start, stop) at which nothing is evicted: those of the arc."""
        return ALL_LOCATIONS if self.responsible is None else locations_of(self.responsible)


def location_of(key: bytes) -> int:
    """Where a key, or content by its multihash, lies on the circle: the top 32 bits of its kad key."""
    return kad_key(key) >> (KAD_KEY_BITS - LOCATION_BITS)


def locations_of(arc: Prefix) -> range:
    """The locations [start, stop) of an arc; of one narrower than a location, that location.

    >>> locations_of(Prefix(value=0b101, length=3)) == range(0b101 << 29, 0b110 << 29)
    True
    """
    keys = arc.keys
    below_bits = arc.bits - LOCATION_BITS
    return range(keys.start >> below_bits, ((keys.stop - 1) >> below_bits) + 1)


def further_away(
    here: int,
    held_in: Callable[[range], tuple[int, int] | None],
    held_at: Callable[[int], Iterable[T]],
    capacity: Capacity,
) -> Iterator[T]:
    """What may go for a newcomer at the location ``here``: what is outside the arc, and further away; furthest first.

    Args:
        held_in: as for :func:`furthest_first`.
        held_at: what there is at a location, first to go first.
    """
    near, spared = capacity.local_location, capacity.spared_locations
    for location in furthest_first(held_in, near=near, spared=spared):
        if here not in spared and location ^ near <= here ^ near:
            return
        yield from held_at(location)


def furthest_first(held_in: Callable[[range], tuple[int, int] | None], *, near: int, spared: range) -> Iterator[int]:
    """The locations that hold an entry, but for those in ``spared``, by their distance from ``near``, greatest first.

    A block of 2**i locations whose first is a multiple of 2**i is as far as its leading bits say, whatever follows. So
    of its two halves the one without ``near``'s next bit comes first, and most blocks are never looked into. What is
    removed meanwhile may still come.

    Args:
        held_in: the least and the greatest location in a block [start, stop) that hold an entry, or ``None``.
    """
    blocks = [ALL_LOCATIONS]
    while blocks:
        block = blocks.pop()
        if block.start in spared and block[-1] in spared:
            continue
        held = held_in(block)
        if held is None:
            continue
        least, greatest = held
        if least == greatest:
            if least not in spared:
                yield least
            continue
        half = 1 << ((least ^ greatest).bit_length() - 1)
        middle = greatest & -half
        lower, upper = range(middle - half, middle), range(middle, middle + half)
        blocks += (upper, lower) if near & half else (lower, upper)
