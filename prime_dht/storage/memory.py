"""The storage backend that forgets everything with its process: for tests and for nodes without a data directory.

Everything lies in dictionaries, with orders and heaps beside them (:mod:`prime_dht.storage.memory_entries`). It has the
same limits as the others and keeps the same promises, but that of durability.

Each method is one uninterrupted step: it is atomic, and a cancelled call has done nothing. Others get a turn before
every sixteenth, so that a loop over the store starves nobody; before each it would cost as much as reading a key.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, takewhile

import trio

from prime_dht.entries.entry import Entry, Slot, Version
from prime_dht.entries.lifetime import as_of
from prime_dht.errors import StorageError
from prime_dht.ids import Key, OpId, PeerId, TimestampUs
from prime_dht.storage.base import (
    MAX_STEP_BACK_US,
    OP_ID_HEAD_BYTES,
    EntryPage,
    EntryQuery,
    Expired,
    Gone,
    KnownPeer,
    Op,
    OpArrays,
    OwnSlot,
    PlainRecord,
    ProviderRecord,
    PutResult,
    StorageBackend,
    StoreStats,
)
from prime_dht.storage.capacity import Capacity
from prime_dht.storage.deadlines import Deadlines
from prime_dht.storage.joining import join_entry, retired_before_us
from prime_dht.storage.memory_entries import MemoryEntries
from prime_dht.storage.memory_records import MemoryProviders, MemoryRecords
from prime_dht.storage.paging import decode_cursor, decode_version, encode_version, take_page
from prime_dht.storage.room import make_room_for_provider, make_room_for_record

CALLS_IN_TURN = 16
"""Calls after which others get a turn."""

_OLDEST = Version(TimestampUs(-1), OpId(b""))
"""Older than any entry."""


class MemoryBackend(StorageBackend):
    """See the module."""

    def __init__(self, capacity: Capacity | None = None) -> None:
        self.capacity = capacity or Capacity()
        self._open = True
        self._calls = 0
        self._entries = MemoryEntries()
        self._retired_before_us = 0
        self._records = MemoryRecords()
        self._providers = MemoryProviders()
        self._peers: dict[PeerId, KnownPeer] = {}
        self._own_slots: dict[Slot, OwnSlot] = {}
        self._own_retention = Deadlines[Slot](self._own_retained_until, self._own_slots.__len__)
        self._meta: dict[str, bytes] = {}

    @property
    def is_immediate(self) -> bool:
        # Who changes what these do in a subclass expects to be asked.
        own = (type(self).put_entries, type(self).get_entries)
        return own == (MemoryBackend.put_entries, MemoryBackend.get_entries)

    async def put_entries(self, entries: Sequence[Entry], *, now_us: int) -> list[PutResult]:
        await self._turn()
        return self.put_entries_now(entries, now_us=now_us)

    def put_entries_now(self, entries: Sequence[Entry], *, now_us: int) -> list[PutResult]:
        self._check_open()
        retired = retired_before_us(self._retired_before_us, now_us)
        return [
            join_entry(entry, self._entries, self.capacity, now_us=now_us, retired_before_us=retired)
            for entry in entries
        ]

    async def get_entries(self, query: EntryQuery, *, now_us: int) -> EntryPage:
        await self._turn()
        return self.get_entries_now(query, now_us=now_us)

    def get_entries_now(self, query: EntryQuery, *, now_us: int) -> EntryPage:
        self._check_open()
        behind = decode_cursor(query.cursor)
        entries = self._entries.by_key.values.get(query.key)
        if entries is None:
            return EntryPage(())
        selected = _select(self._entries.behind(behind, query.key), query, now_us)
        if query.newest and len(entries) > 1:
            live = (entry for entry in _select(entries, query, now_us) if entry.is_live(now_us))
            newest = max((entry.version for entry in live), default=_OLDEST)
            selected = (entry for entry in selected if entry.version >= newest)
        return take_page(selected, query.max_bytes)

    async def get_ops(self, op_ids: Sequence[OpId], *, now_us: int) -> list[Entry]:
        await self._turn()
        held = self._entries.by_op_id
        return [as_of(held[op_id], now_us) for op_id in dict.fromkeys(op_ids) if op_id in held]

    async def ops(
        self, *, locations: range, created_us: range, after: Version | None = None, limit: int = 1000
    ) -> list[Op]:
        await self._turn()
        behind = (created_us.start, OpId(b""))
        if after is not None:
            behind = max(behind, (after.created_at_us, after.op_id))
        in_time = takewhile(lambda op: op.created_at_us < created_us.stop, self._ops_behind(behind))
        return list(islice((op for op in in_time if op.location in locations), limit))

    async def scan_ops(self, *, after: bytes = b"", limit: int = 65_536) -> OpArrays:
        await self._turn()
        ops = list(islice(self._ops_behind(decode_version(after)), limit))
        return OpArrays.of(ops, encode_version(ops[-1].created_at_us, ops[-1].op_id) if len(ops) == limit else b"")

    async def find_ops(self, prefixes: Sequence[bytes]) -> list[OpId]:
        await self._turn()
        by_head = self._entries.ops_by_head
        alike = ((prefix, by_head.get(prefix[:OP_ID_HEAD_BYTES], ())) for prefix in prefixes)
        return list(dict.fromkeys(op_id for prefix, op_ids in alike for op_id in op_ids if op_id.startswith(prefix)))

    async def keys(self, *, after: Key | None = None, limit: int = 1000) -> list[Key]:
        await self._turn()
        return list(islice(self._entries.by_key.behind(after), limit))

    async def remove_ops(self, op_ids: Sequence[OpId]) -> list[Gone]:
        await self._turn()
        held = self._entries.by_op_id
        return [self._entries.evict(op_id) for op_id in dict.fromkeys(op_ids) if op_id in held]

    async def delete_expired(self, *, now_us: int, retire_before_us: int, limit: int = 1000) -> Expired:
        await self._turn()
        self._retired_before_us = max(retire_before_us, retired_before_us(self._retired_before_us, now_us))
        retired = tuple(self._entries.retire(self._retired_before_us, limit))
        left = limit - len(retired)
        values_dropped = sum(1 for _ in self._entries.drop_values(now_us, left))
        left -= values_dropped
        records = self._records.delete_expired(now_us, left)
        providers = self._providers.delete_expired(now_us, left - records)
        left -= records + providers
        forgotten = [
            self._own_slots.pop(slot) for slot in self._own_retention.due(retire_before_us - MAX_STEP_BACK_US, left)
        ]
        return Expired(
            retired=retired,
            values_dropped=values_dropped,
            records=records,
            providers=providers,
            own_slots=len(forgotten),
        )

    async def put_record(self, record: PlainRecord, *, now_us: int) -> None:
        await self._turn()
        make_room_for_record(record, self._records, self.capacity, now_us=now_us)
        self._records.hold(record.key, record)

    async def get_record(self, key: Key, *, now_us: int) -> PlainRecord | None:
        await self._turn()
        record = self._records.by_name.values.get(key)
        return record if record is not None and now_us < record.expires_at_us else None

    async def records(self, *, after: Key | None = None, limit: int = 1000) -> list[PlainRecord]:
        await self._turn()
        by_key = self._records.by_name
        return [by_key.values[key] for key in islice(by_key.behind(after), limit)]

    async def add_provider(self, record: ProviderRecord, *, now_us: int) -> None:
        await self._turn()
        record = make_room_for_provider(record, self._providers, self.capacity, now_us=now_us)
        self._providers.hold((record.multihash, record.provider), record)

    async def get_providers(self, multihash: bytes, *, now_us: int, limit: int = 100) -> list[ProviderRecord]:
        await self._turn()
        live = self._providers.unexpired_of(multihash, now_us)
        return heapq.nlargest(limit, live, key=lambda record: record.expires_at_us)

    async def providers(self, *, after: tuple[bytes, PeerId] | None = None, limit: int = 1000) -> list[ProviderRecord]:
        await self._turn()
        by_name = self._providers.by_name
        return [by_name.values[name] for name in islice(by_name.behind(after), limit)]

    async def put_peers(self, peers: Sequence[KnownPeer]) -> None:
        await self._turn()
        for peer in peers:
            known = self._peers.get(peer.peer, peer)
            self._peers[peer.peer] = replace(peer, first_seen_us=known.first_seen_us)

    async def peers(self, *, limit: int = 1000) -> list[KnownPeer]:
        await self._turn()
        return heapq.nlargest(limit, self._peers.values(), key=lambda peer: peer.last_seen_us)

    async def remove_peers(self, peers: Sequence[PeerId]) -> None:
        await self._turn()
        for peer in peers:
            self._peers.pop(peer, None)

    async def own_slot(self, slot: Slot) -> OwnSlot | None:
        await self._turn()
        return self._own_slots.get(slot)

    async def put_own_slots(self, slots: Sequence[OwnSlot]) -> None:
        await self._turn()
        for own in slots:
            last = self._own_slots.get(own.slot, own)
            retain_until_us = max(last.retain_until_us, own.retain_until_us)
            self._own_slots[own.slot] = OwnSlot(own.slot, max(last.created_at_us, own.created_at_us), retain_until_us)
            self._own_retention.add(retain_until_us, own.slot)

    async def own_slots(self, *, after: Slot | None = None, limit: int = 1000) -> list[OwnSlot]:
        await self._turn()
        behind = None if after is None else _in_order(after)
        wanted = (own for own in self._own_slots.values() if behind is None or _in_order(own.slot) > behind)
        return heapq.nsmallest(limit, wanted, key=lambda own: _in_order(own.slot))

    async def get_meta(self, name: str) -> bytes | None:
        await self._turn()
        return self._meta.get(name)

    async def put_meta(self, name: str, value: bytes) -> None:
        await self._turn()
        self._meta[name] = value

    async def meta_names(self) -> list[str]:
        await self._turn()
        return sorted(self._meta)

    async def stats(self) -> StoreStats:
        await self._turn()
        return StoreStats(
            keys=len(self._entries.by_key.values),
            entries=self._entries.held().entries,
            bytes=self._entries.held().bytes,
            records=self._records.load().count,
            providers=self._providers.load().count,
            peers=len(self._peers),
            ops=len(self._entries.ops.values),
        )

    async def aclose(self) -> None:
        self._open = False
        await trio.lowlevel.checkpoint()

    async def _turn(self) -> None:
        self._calls += 1
        if self._calls % CALLS_IN_TURN:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
        self._check_open()

    def _own_retained_until(self, slot: Slot) -> int | None:
        own = self._own_slots.get(slot)
        return None if own is None else own.retain_until_us

    def _check_open(self) -> None:
        if not self._open:
            raise StorageError("the store is closed")

    def _ops_behind(self, behind: tuple[int, OpId] | None) -> Iterator[Op]:
        ops = self._entries.ops
        return (Op(op_id, ops.values[at_us, op_id], TimestampUs(at_us)) for at_us, op_id in ops.behind(behind))


def _in_order(slot: Slot) -> tuple[Key, PeerId, bytes]:
    return slot.key, slot.publisher, slot.subkey


def _select(entries: Iterable[Entry], query: EntryQuery, now_us: int) -> Iterator[Entry]:
    """What a query reads of the entries under its key."""
    # Sets, because a peer's query may name as many as fit a message.
    subkeys = frozenset(query.subkeys)
    publishers = frozenset(query.publishers)
    for entry in entries:
        header = entry.header
        if (
            (not subkeys or header.subkey in subkeys)
            and (not publishers or entry.publisher in publishers)
            and (query.include_expired or now_us < header.expires_at_us or entry.is_tombstone)
        ):
            yield as_of(entry, now_us)
