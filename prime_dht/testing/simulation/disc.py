"""A memory backend that outlives its node as a disc does, and that keeps watch over itself.

It fails like a disc under a process that was killed: what it had said was stored is stored, and whatever the dying node
still tries fails. And it knows the law that holds for each replica alone (:mod:`prime_dht.entries.join`): once an entry
was taken, the slot never goes back to an older one that a reader could see, and the entry stays until it retires, or
the node drops it on purpose: hands it on to the replicas, being none itself.

It may be in *trouble* (:class:`~prime_dht.testing.simulation.plan.Trouble`): too full to write to, or slow, in which
case calls overlap and end in any order, or failing, in which case nobody knows whether what failed was done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import trio

from prime_dht.entries.entry import BlobRef, Entry, Slot
from prime_dht.entries.lifetime import UNIT_US, is_op, retire_before_us
from prime_dht.errors import NotWrittenError, StorageError
from prime_dht.ids import OpId
from prime_dht.storage.base import (
    EntryPage,
    EntryQuery,
    Expired,
    Gone,
    KnownPeer,
    OwnSlot,
    PlainRecord,
    ProviderRecord,
    PutOutcome,
    PutResult,
)
from prime_dht.storage.memory import MemoryBackend
from prime_dht.testing.simulation.plan import Trouble

SLOW_S = 0.5
"""What a slow disc takes for a call, on average, before it does it and after."""

FAILING_SHARE = 0.3
"""Of the calls of a failing disc, those that fail."""


@dataclass(frozen=True, slots=True)
class Backup:
    """A copy of what is on a disc."""

    entries: tuple[Entry, ...]
    own_slots: tuple[OwnSlot, ...]
    retired_before_us: int


class Disc(MemoryBackend):
    """See the module.

    Args:
        complain: called with a sentence when the law is broken.
        seed: of what its troubles do.

    Attributes:
        is_off: its machine is down.
        trouble: what is wrong with it, if anything.
        furthest_us: the latest time that it was ever told it is.
        dropped: what the node dropped on purpose, and with it what that had superseded.
        complain: as given.
    """

    def __init__(self, complain: Callable[[str], None], *, seed: int | str = 0) -> None:
        super().__init__()
        self.is_off = False
        self.trouble: Trouble | None = None
        self._is_told_the_time = True
        self.furthest_us = 0
        self.dropped: set[OpId] = set()
        self.complain = complain
        self._newest: dict[Slot, Entry] = {}
        self._slots: dict[OpId, Slot] = {}  # of all that it ever took
        self._rng = Random(f"{seed}/disc")  # noqa: S311 - a simulation, nothing secret

    def backup(self) -> Backup:
        """What is on it now."""
        entries = tuple(self._entries.by_op_id.values())
        return Backup(entries, tuple(self._own_slots.values()), self._retired_before_us)

    def told_the_time(self, *, is_right: bool) -> None:
        """Whether its clock is right from here on. What it took before may go, once that was wrong."""
        self._is_told_the_time = is_right
        self._newest.clear()

    async def restore(self, backup: Backup) -> None:
        """Fill an empty disc."""
        for entry in backup.entries:
            self._entries.hold(entry)
            self._newest[entry.slot] = entry
            self._slots[entry.op_id] = entry.slot
        self._retired_before_us = backup.retired_before_us
        await super().put_own_slots(backup.own_slots)

    def miscounted(self) -> list[str]:
        """Which of its counters do not say what is there."""
        entries = self._entries
        there = entries.by_op_id.values()
        truth = {
            "entries": (len(there), entries.held().entries),
            "bytes": (sum(entry.size_bytes for entry in there), entries.held().bytes),
            "ops": (sum(map(is_op, there)), len(entries.ops.values)),
            "keys": (len({entry.header.key for entry in there}), len(entries.by_key.values)),
        }
        for publisher in {entry.publisher for entry in there}:
            own = sum(entry.publisher == publisher for entry in there)
            truth[f"entries of {publisher.hex()[-8:]}"] = (own, entries.held_of(publisher).entries)
        return [f"{what}: {there}, and not {counted}" for what, (there, counted) in truth.items() if there != counted]

    def standing(self, slot: Slot) -> Entry | None:
        """What stands in a slot, expired or not."""
        return self._entries.get(slot)

    def slots(self) -> Iterator[Slot]:
        """The slots in which something stands."""
        return (entry.slot for entry in self._entries.by_op_id.values())

    def has_retired(self, entry: Entry) -> bool:
        """Whether the entry's time was over by any clock that this disc was told the time by."""
        return entry.header.retain_until_us < retire_before_us(self.furthest_us, UNIT_US)

    def forgotten(self) -> list[Entry]:
        """What it took, ought to have still, and has not, nor anything newer in its slot; or has without the value."""
        return [entry for slot, entry in self._newest.items() if not self._keeps(entry, self.standing(slot))]

    async def put_entries(self, entries: Sequence[Entry], *, now_us: int) -> list[PutResult]:
        self._check_room()
        results = await super().put_entries(entries, now_us=now_us)
        self._note_time(now_us)
        for entry, result in zip(entries, results, strict=True):
            if result.outcome is not PutOutcome.INSERTED:
                continue
            self._slots[entry.op_id] = entry.slot
            if self._is_told_the_time:
                newest = self._newest.get(entry.slot, entry)
                if entry.version < newest.version and entry.is_live(now_us):
                    self.complain(f"a store took {entry.op_id.hex()[:8]}, which is older than what it held before")
                self._newest[entry.slot] = max(entry, newest, key=lambda one: one.version)
        await self._done()
        return results

    async def get_entries(self, query: EntryQuery, *, now_us: int) -> EntryPage:
        self._note_time(now_us)
        return await super().get_entries(query, now_us=now_us)

    async def delete_expired(self, *, now_us: int, retire_before_us: int, limit: int = 1000) -> Expired:
        self._check_room()
        self._note_time(now_us)
        expired = await super().delete_expired(now_us=now_us, retire_before_us=retire_before_us, limit=limit)
        await self._done()
        return expired

    async def put_own_slots(self, slots: Sequence[OwnSlot]) -> None:
        self._check_room()
        await super().put_own_slots(slots)
        await self._done()

    async def put_record(self, record: PlainRecord, *, now_us: int) -> None:
        self._check_room()
        await super().put_record(record, now_us=now_us)

    async def add_provider(self, record: ProviderRecord, *, now_us: int) -> None:
        self._check_room()
        await super().add_provider(record, now_us=now_us)

    async def put_peers(self, peers: Sequence[KnownPeer]) -> None:
        self._check_room()
        await super().put_peers(peers)

    async def put_meta(self, name: str, value: bytes) -> None:
        self._check_room()
        await super().put_meta(name, value)

    async def remove_ops(self, op_ids: Sequence[OpId]) -> list[Gone]:
        self._check_room()
        gone = await super().remove_ops(op_ids)
        slots = {self._slots[one.op_id] for one in gone}
        self.dropped.update(op_ids, (op_id for op_id, slot in self._slots.items() if slot in slots))
        for slot in slots:
            self._newest.pop(slot, None)
        await self._done()
        return gone

    async def _turn(self) -> None:
        await super()._turn()
        await self._done()

    async def _done(self) -> None:
        """Let its trouble show, before it does what it is told to, and again when it has done that."""
        if self.trouble is Trouble.SLOW:
            await trio.sleep(self._rng.expovariate(1 / SLOW_S))
        if self.is_off:
            raise StorageError("the machine is down")
        if self.trouble is Trouble.FAILING and self._rng.random() < FAILING_SHARE:
            raise StorageError("input/output error")

    def _note_time(self, now_us: int) -> None:
        if self._is_told_the_time:
            self.furthest_us = max(self.furthest_us, now_us)

    def _check_room(self) -> None:
        if self.trouble is Trouble.FULL:
            raise NotWrittenError("no space left on device")

    def _keeps(self, entry: Entry, standing: Entry | None) -> bool:
        if self.has_retired(entry):
            return True
        if standing is None or standing.version < entry.version:
            return False
        has_expired = self.furthest_us >= standing.header.expires_at_us
        has_value = standing.value is not None or isinstance(standing.header.content, BlobRef)
        return has_value or standing.is_tombstone or has_expired
