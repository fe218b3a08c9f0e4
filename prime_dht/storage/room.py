"""Whether there is room for a plain record or a provider record, and what goes to make it.

Neither is signed by somebody who could be held to a share, and who made one puts it again within a day. So what is held
can be refreshed in a full store too, and a flood of new names must not push it out. A provider that has become larger,
for which there is no room, is believed longer with the addresses that are held; a record that has would say what it no
longer says, and is refused, as is any where the limits were lowered below what is held. These are the rules:

1. a content that has enough unexpired providers takes no other: whoever provides it already stays;
2. a peer that provides more than its share replaces what it announced longest ago, its own;
3. a full store lets go of what has expired, and then, for a newcomer, of what is further from this node than that and
   outside its arc, the furthest first, at one location the first to expire
   (:func:`~prime_dht.storage.capacity.further_away`). A newcomer for which that is not enough is refused.

A *name* is what a record is held under: its key, or the multihash and the provider.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from prime_dht.ids import Key, PeerId
from prime_dht.storage.base import PlainRecord, ProviderRecord
from prime_dht.storage.capacity import Capacity, further_away, location_of

N = TypeVar("N")

ProviderName = tuple[bytes, PeerId]
"""What a provider record is held under: (multihash, provider)."""


@dataclass(frozen=True, slots=True)
class Load:
    """How many records there are, and how many bytes."""

    count: int
    bytes: int

    def fits(self, most: Load) -> bool:
        return self.count <= most.count and self.bytes <= most.bytes


class Shelf(Protocol[N]):
    """What a store tells of its plain records, or of its provider records, and does to them."""

    def load(self) -> Load:
        """What the store holds of them."""

    def size_of(self, name: N) -> int | None:
        """The bytes of what is held under a name, expired or not; ``None`` if nothing is."""

    def held_in(self, block: range) -> tuple[int, int] | None:
        """The least and the greatest location in [start, stop) at which there is one."""

    def held_at(self, location: int) -> Iterable[tuple[N, int]]:
        """The names at a location and their sizes in bytes, by (expires_at_us, name)."""

    def evict(self, name: N) -> None:
        """Remove what is held under a name."""

    def evict_expired(self, now_us: int) -> bool:
        """Remove, of those expired at ``now_us``, the first by (expires_at_us, name); whether there was one."""


class ProviderShelf(Shelf[ProviderName], Protocol):
    """The same of provider records, and what there is of one content and of one peer."""

    def others_of(self, name: ProviderName, now_us: int) -> int:
        """How many other providers of the content there are that have not expired at ``now_us``."""

    def count_of(self, provider: PeerId) -> int:
        """How many contents a peer provides, expired or not."""

    def addresses_of(self, name: ProviderName) -> tuple[bytes, ...] | None:
        """Those of what is held under a name; ``None`` if nothing is."""

    def oldest_of(self, provider: PeerId) -> ProviderName:
        """Of what a peer provides, the first by (expires_at_us, name)."""


def make_room_for_record(record: PlainRecord, shelf: Shelf[Key], capacity: Capacity, *, now_us: int) -> None:
    """Evict what has to go for a plain record.

    Raises:
        ValidationError: there cannot be room; then only what had expired went.
    """
    limits = capacity.limits
    most = Load(limits.max_records, limits.max_records_bytes)
    load = _make_room(record.key, record.size_bytes, location_of(record.key), shelf, most, capacity, now_us)
    limits.check_records(load.count, load.bytes)


def make_room_for_provider(
    record: ProviderRecord, shelf: ProviderShelf, capacity: Capacity, *, now_us: int
) -> ProviderRecord:
    """Evict what has to go for a provider record; returns what is to be held, with its own addresses or the old ones.

    Raises:
        ValidationError: there cannot be room; then only what had expired went, and of its provider's what was over its
            share.
    """
    limits = capacity.limits
    name = (record.multihash, record.provider)
    limits.check_providers_of_key(shelf.others_of(name, now_us) + 1)
    while shelf.count_of(record.provider) + (shelf.size_of(name) is None) > limits.max_providers_per_peer:
        shelf.evict(shelf.oldest_of(record.provider))
    most = Load(limits.max_providers, limits.max_providers_bytes)
    load = _make_room(name, record.size_bytes, location_of(record.multihash), shelf, most, capacity, now_us)
    if not load.fits(most) and (addresses := shelf.addresses_of(name)) is not None:
        held = replace(record, addresses=addresses)
        return held if held.size_bytes < record.size_bytes else record
    limits.check_providers(load.count, load.bytes)
    return record


def _make_room(
    name: N, size_bytes: int, here: int, shelf: Shelf[N], most: Load, capacity: Capacity, now_us: int
) -> Load:
    """Evict what has to go for what is to be held under a name; returns what there will be with it.

    If that is more than ``most``, there cannot be room.
    """

    def load_with_it() -> Load:
        # Asked anew each time, because what is held under the name may be what goes.
        load, standing_bytes = shelf.load(), shelf.size_of(name)
        return Load(load.count + (standing_bytes is None), load.bytes - (standing_bytes or 0) + size_bytes)

    while not (load := load_with_it()).fits(most) and shelf.evict_expired(now_us):
        pass
    victims: list[N] = []
    candidates = further_away(here, shelf.held_in, shelf.held_at, capacity)
    while not load.fits(most) and (candidate := next(candidates, None)) is not None:
        victim, victim_bytes = candidate
        victims.append(victim)
        load = Load(load.count - 1, load.bytes - victim_bytes)
    if load.fits(most):
        for victim in victims:
            shelf.evict(victim)
    return load
