"""A memory backend that outlives its node as a disc does, and that keeps watch over itself.

It fails like a disc under a process that was killed: what it had said was stored is stored, and whatever the dying node
still tries fails. And it knows the law that holds for each replica alone (:mod:`prime_dht.entries.join`): once an entry
was taken, the slot never goes back to an older one that a reader could see, and the entry stays until it retires, or
the node drops it on purpose: hands it on to the replicas, being none itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prime_dht.entries.entry import Entry, Slot
from prime_dht.entries.lifetime import UNIT_US, retire_before_us
from prime_dht.errors import StorageError
from prime_dht.ids import OpId
from prime_dht.storage.base import EntryPage, EntryQuery, Expired, Gone, PutOutcome, PutResult
from prime_dht.storage.memory import MemoryBackend


class Disc(MemoryBackend):
    """See the module.

    Args:
        complain: called with a sentence when the law is broken.

    Attributes:
        is_off: its machine is down.
        furthest_us: the latest time that it was ever told it is.
        dropped: what the node dropped on purpose.
        complain: as given.
    """

    def __init__(self, complain: Callable[[str], None]) -> None:
        super().__init__()
        self.is_off = False
        self.furthest_us = 0
        self.dropped: set[OpId] = set()
        self.complain = complain
        self._newest: dict[Slot, Entry] = {}

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
        results = await super().put_entries(entries, now_us=now_us)
        self.furthest_us = max(self.furthest_us, now_us)
        for entry, result in zip(entries, results, strict=True):
            if result.outcome is PutOutcome.INSERTED:
                newest = self._newest.get(entry.slot, entry)
                if entry.version < newest.version and entry.is_live(now_us):
                    self.complain(f"a store took {entry.op_id.hex()[:8]}, which is older than what it held before")
                self._newest[entry.slot] = max(entry, newest, key=lambda one: one.version)
        return results

    async def get_entries(self, query: EntryQuery, *, now_us: int) -> EntryPage:
        self.furthest_us = max(self.furthest_us, now_us)
        return await super().get_entries(query, now_us=now_us)

    async def delete_expired(self, *, now_us: int, retire_before_us: int, limit: int = 1000) -> Expired:
        self.furthest_us = max(self.furthest_us, now_us)
        return await super().delete_expired(now_us=now_us, retire_before_us=retire_before_us, limit=limit)

    async def remove_ops(self, op_ids: Sequence[OpId]) -> list[Gone]:
        dropped = [entry.slot for op_id in op_ids if (entry := self._entries.by_op_id.get(op_id)) is not None]
        gone = await super().remove_ops(op_ids)
        self.dropped.update(op_ids)
        for slot in dropped:
            self._newest.pop(slot, None)
        return gone

    async def _turn(self) -> None:
        await super()._turn()
        if self.is_off:
            raise StorageError("the machine is down")

    def _keeps(self, entry: Entry, standing: Entry | None) -> bool:
        if self.has_retired(entry):
            return True
        if standing is None or standing.version < entry.version:
            return False
        has_expired = self.furthest_us >= standing.header.expires_at_us
        return standing.value is not None or standing.is_tombstone or has_expired
