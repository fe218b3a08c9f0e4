"""The join of one entry into a store, which has limits: one decision, the same for every backend built on it.

The store is anything with :class:`Holdings`: a few questions about what it holds, and a few steps that change it. They
are called one after the other, with nothing in between, so a backend gets the decision and the atomicity by calling
:func:`join_entry` where nobody interferes: between two checkpoints, or inside a transaction.

What goes when the store is full, and in which order, is said in :mod:`prime_dht.storage.capacity`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from prime_dht.entries.access import shares_slots
from prime_dht.entries.entry import Entry, Slot, Version
from prime_dht.entries.lifetime import as_of
from prime_dht.entries.limits import Limits, Occupancy
from prime_dht.errors import ValidationError
from prime_dht.ids import Key, OpId, PeerId
from prime_dht.storage.base import MAX_STEP_BACK_US, Gone, PutOutcome, PutResult
from prime_dht.storage.capacity import Capacity, further_away, location_of


class Standing(NamedTuple):
    """What stands in a slot."""

    version: Version
    size_bytes: int
    has_value: bool


class Held(NamedTuple):
    """How many entries there are, and how many bytes of envelopes and values."""

    entries: int
    bytes: int


class Holdings(Protocol):
    """What a store tells of itself, and does to itself, for :func:`join_entry`."""

    def standing(self, slot: Slot) -> Standing | None:
        """What stands in a slot."""

    def slots_of(self, key: Key, publisher: PeerId | None = None) -> int:
        """How many slots of a key hold an entry, one publisher's or all."""

    def held(self) -> Held:
        """What the store holds."""

    def held_of(self, publisher: PeerId) -> Held:
        """What it holds of one publisher."""

    def hold(self, entry: Entry) -> Gone | None:
        """Let an entry stand in its slot; returns what goes for it, unless that is the same entry."""

    def evict(self, op_id: OpId) -> Gone:
        """Remove an entry."""

    def evict_unretained(self, now_us: int) -> Gone | None:
        """Remove, of the entries retained until before ``now_us``, the first by (retain_until_us, op_id)."""

    def drop_expired_value(self, now_us: int) -> bool:
        """Drop, of the values expired at ``now_us``, the first by (expires_at_us, op_id); whether there was one."""

    def held_in(self, block: range) -> tuple[int, int] | None:
        """The least and the greatest location in [start, stop) that hold an entry."""

    def held_at(self, location: int) -> Iterable[tuple[OpId, int]]:
        """The entries at a location and their sizes in bytes, those that came first first."""


def retired_before_us(kept_us: int, now_us: int) -> int:
    """Until before when entries have retired for good, given the latest such time that a store kept.

    >>> retired_before_us(900, now_us=300), retired_before_us(301 + MAX_STEP_BACK_US, now_us=300)
    (900, 0)
    """
    return kept_us if kept_us <= now_us + MAX_STEP_BACK_US else 0


def join_entry(
    entry: Entry, holdings: Holdings, capacity: Capacity, *, now_us: int, retired_before_us: int
) -> PutResult:
    """Put one entry into a store, if it has not retired, stands against what is in its slot, and there is room."""
    entry = as_of(entry, now_us)
    if entry.header.retain_until_us < retired_before_us:
        return PutResult(
            PutOutcome.REFUSED, reason="retired: entries retained until then have left this store for good"
        )
    standing = holdings.standing(entry.slot)
    if standing is not None:
        if standing.version > entry.version:
            return PutResult(PutOutcome.SUPERSEDED)
        if standing.version == entry.version and (standing.has_value or entry.value is None):
            return PutResult(PutOutcome.DUPLICATE)
    evicted: list[Gone] = []
    try:
        _check_shares(entry, standing, holdings, capacity.limits)
        if not _has_room(entry, _besides(standing, holdings.held()), capacity.limits):
            _make_room(entry, holdings, capacity, now_us, evicted)
    except ValidationError as error:
        return PutResult(PutOutcome.REFUSED, reason=str(error), evicted=tuple(evicted))
    displaced = holdings.hold(entry)
    was_evicted = any(gone.op_id == entry.op_id for gone in evicted)
    is_duplicate = standing is not None and standing.version == entry.version and not was_evicted
    outcome = PutOutcome.DUPLICATE if is_duplicate else PutOutcome.INSERTED
    return PutResult(outcome, displaced, evicted=tuple(evicted))


def _check_shares(entry: Entry, standing: Standing | None, holdings: Holdings, limits: Limits) -> None:
    """Raise ValidationError if the entry's key or its publisher has no room for it, whatever the store has."""
    key = entry.header.key
    # A slot that is filled already takes no other.
    slots = 0 if standing else holdings.slots_of(key, None if shares_slots(key) else entry.publisher)
    entries, size_bytes = _besides(standing, holdings.held_of(entry.publisher))
    limits.check_room(entry, Occupancy(slots_of_key=slots, publisher_entries=entries, publisher_bytes=size_bytes))


def _make_room(entry: Entry, holdings: Holdings, capacity: Capacity, now_us: int, evicted: list[Gone]) -> None:
    """Evict what has to go for an entry, and note it in ``evicted``.

    Raises:
        ValidationError: there cannot be room; then only what had expired went.
    """
    limits = capacity.limits

    def others() -> Held:
        # Asked anew each time, because what stands in the slot may be what goes.
        return _besides(holdings.standing(entry.slot), holdings.held())

    while not _has_room(entry, others(), limits) and (gone := holdings.evict_unretained(now_us)) is not None:
        evicted.append(gone)
    while others().bytes + entry.size_bytes > limits.max_store_bytes and holdings.drop_expired_value(now_us):
        pass
    left = others()
    victims: list[OpId] = []
    here = location_of(entry.header.key)
    for op_id, size_bytes in further_away(here, holdings.held_in, holdings.held_at, capacity):
        if _has_room(entry, left, limits):
            break
        victims.append(op_id)
        left = Held(left.entries - 1, left.bytes - size_bytes)
    limits.check_room(entry, Occupancy(store_entries=left.entries, store_bytes=left.bytes))
    evicted += [holdings.evict(op_id) for op_id in victims]


def _has_room(entry: Entry, others: Held, limits: Limits) -> bool:
    """Whether a store that holds so much besides has room for an entry."""
    return others.entries < limits.max_store_entries and others.bytes + entry.size_bytes <= limits.max_store_bytes


def _besides(standing: Standing | None, held: Held) -> Held:
    """What is held but for what stands in a slot."""
    return held if standing is None else Held(held.entries - 1, held.bytes - standing.size_bytes)
