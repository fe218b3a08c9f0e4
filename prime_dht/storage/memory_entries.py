"""The entries of the memory backend: dictionaries, and an index for each way in which entries are looked for.

An entry stands at its *place* among those of its key, under its op id, under its location, and, if it is an op, under
its version. What falls due at a time lies in a heap (:mod:`prime_dht.storage.deadlines`), so expiry costs what expires
and not what is stored.

The garbage collector looks again and again at whatever is held and may refer to something, so there is little of that:
of an entry that is alone under its key, itself and a list.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace

from prime_dht.entries.entry import Entry, Slot
from prime_dht.entries.lifetime import is_op
from prime_dht.ids import Key, OpId, PeerId
from prime_dht.storage.base import OP_ID_HEAD_BYTES, Gone
from prime_dht.storage.capacity import location_of
from prime_dht.storage.deadlines import Deadlines
from prime_dht.storage.joining import Held, Holdings, Standing
from prime_dht.storage.ordered import Ordered
from prime_dht.storage.paging import Place

_NOTHING = Held(0, 0)


class MemoryEntries(Holdings):
    """See the module.

    Attributes:
        by_key: of each key, its entries in the order of their places.
        by_op_id: all entries.
        ops: the locations of entries that are ops, by (created_at_us, op id).
        ops_by_head: the ids of those, by their first bytes.
    """

    def __init__(self) -> None:
        self.by_key: Ordered[Key, list[Entry]] = Ordered()
        self.by_op_id: dict[OpId, Entry] = {}
        self.ops: Ordered[tuple[int, OpId], int] = Ordered()
        self.ops_by_head: dict[bytes, tuple[OpId, ...]] = {}
        self._by_location: Ordered[int, dict[OpId, None]] = Ordered()
        self._held = _NOTHING
        self._held_of: dict[PeerId, Held] = {}
        self._retention = Deadlines[OpId](self._retained_until, self.by_op_id.__len__)
        self._value_expiry = Deadlines[OpId](self._value_expires_at, self.by_op_id.__len__)

    def behind(self, place: Place | None, key: Key) -> list[Entry]:
        """The entries of a key whose places are greater than ``place``, or all of them, in order."""
        entries = self.by_key.values.get(key, [])
        return entries if place is None else entries[bisect_right(entries, place, key=_place_of) :]

    def get(self, slot: Slot) -> Entry | None:
        """What stands in a slot, expired or not."""
        return _find(self.by_key.values.get(slot.key, ()), (slot.publisher, slot.subkey))[1]

    def standing(self, slot: Slot) -> Standing | None:
        entry = self.get(slot)
        return None if entry is None else Standing(entry.version, entry.size_bytes, entry.value is not None)

    def slots_of(self, key: Key, publisher: PeerId | None = None) -> int:
        entries = self.by_key.values.get(key, [])
        if publisher is None:
            return len(entries)
        behind = PeerId(publisher + b"\0")  # the next in the order of bytes
        start, stop = (bisect_left(entries, (peer, b""), key=_place_of) for peer in (publisher, behind))
        return stop - start

    def held(self) -> Held:
        return self._held

    def held_of(self, publisher: PeerId) -> Held:
        return self._held_of.get(publisher, _NOTHING)

    def hold(self, entry: Entry) -> Gone | None:
        entries = self.by_key.values.get(entry.header.key)
        if entries is None:
            entries = []
            self.by_key.put(entry.header.key, entries)
        index, standing = _find(entries, _place_of(entry))
        displaced = None
        if standing is None or standing.op_id != entry.op_id:
            if standing is not None:
                self._forget(standing)
                displaced = Gone.of(standing)
            self._index(entry)
        else:
            self._count(standing, -1)
        if standing is None:
            entries.insert(index, entry)
        else:
            entries[index] = entry
        self.by_op_id[entry.op_id] = entry
        self._count(entry, +1)
        if entry.value is not None:
            self._value_expiry.add(entry.header.expires_at_us, entry.op_id)
        return displaced

    def evict(self, op_id: OpId) -> Gone:
        entry = self.by_op_id[op_id]
        self._forget(entry)
        entries = self.by_key.values[entry.header.key]
        index, _ = _find(entries, _place_of(entry))
        del entries[index]
        if not entries:
            self.by_key.remove(entry.header.key)
        return Gone.of(entry)

    def evict_unretained(self, now_us: int) -> Gone | None:
        return next(self.retire(now_us, limit=1), None)

    def drop_expired_value(self, now_us: int) -> bool:
        return next(self.drop_values(now_us, limit=1), None) is not None

    def held_in(self, block: range) -> tuple[int, int] | None:
        return self._by_location.ends(block)

    def held_at(self, location: int) -> Iterator[tuple[OpId, int]]:
        for op_id in self._by_location.values[location]:
            yield op_id, self.by_op_id[op_id].size_bytes

    def retire(self, before_us: int, limit: int) -> Iterator[Gone]:
        """Remove at most ``limit`` entries that were retained until before ``before_us``."""
        for op_id in self._retention.due(before_us, limit):
            yield self.evict(op_id)

    def drop_values(self, now_us: int, limit: int) -> Iterator[OpId]:
        """Drop at most ``limit`` values that have expired."""
        for op_id in self._value_expiry.due(now_us + 1, limit):
            self.hold(replace(self.by_op_id[op_id], value=None))
            yield op_id

    def _index(self, entry: Entry) -> None:
        """Enter an entry wherever it is looked for, but for its slot."""
        location = location_of(entry.header.key)
        here = self._by_location.values.get(location)
        if here is None:
            here = {}
            self._by_location.put(location, here)
        here[entry.op_id] = None
        if is_op(entry):
            self.ops.put((entry.header.created_at_us, entry.op_id), location)
            head = entry.op_id[:OP_ID_HEAD_BYTES]
            self.ops_by_head[head] = (*self.ops_by_head.get(head, ()), entry.op_id)
        self._retention.add(entry.header.retain_until_us, entry.op_id)

    def _forget(self, entry: Entry) -> None:
        """The opposite of :meth:`_index`; also what it was counted as."""
        del self.by_op_id[entry.op_id]
        location = location_of(entry.header.key)
        here = self._by_location.values[location]
        del here[entry.op_id]
        if not here:
            self._by_location.remove(location)
        if is_op(entry):
            self.ops.remove((entry.header.created_at_us, entry.op_id))
            head = entry.op_id[:OP_ID_HEAD_BYTES]
            alike = tuple(op_id for op_id in self.ops_by_head.pop(head) if op_id != entry.op_id)
            if alike:
                self.ops_by_head[head] = alike
        self._count(entry, -1)

    def _count(self, entry: Entry, sign: int) -> None:
        size_bytes = sign * entry.size_bytes
        entries, held_bytes = self._held
        self._held = Held(entries + sign, held_bytes + size_bytes)
        entries, held_bytes = self.held_of(entry.publisher)
        left = Held(entries + sign, held_bytes + size_bytes)
        if left.entries:
            self._held_of[entry.publisher] = left
        else:
            del self._held_of[entry.publisher]

    def _retained_until(self, op_id: OpId) -> int | None:
        entry = self.by_op_id.get(op_id)
        return None if entry is None else entry.header.retain_until_us

    def _value_expires_at(self, op_id: OpId) -> int | None:
        entry = self.by_op_id.get(op_id)
        return None if entry is None or entry.value is None else entry.header.expires_at_us


def _find(entries: Sequence[Entry], place: Place) -> tuple[int, Entry | None]:
    """Where a place lies among the entries of a key, and the entry that stands there."""
    index = bisect_left(entries, place, key=_place_of)
    here = index < len(entries) and _place_of(entries[index]) == place
    return index, entries[index] if here else None


def _place_of(entry: Entry) -> Place:
    return entry.publisher, entry.header.subkey
