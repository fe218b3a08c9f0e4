"""The storage backend that keeps a node's store in a Redis server, which several nodes may share.

It needs the extra ``redis``, and one server, not a cluster, of Redis 7 or later or Valkey.

- **Atomic.** Each operation is one script (:mod:`prime_dht.storage.redis_scripts`) and so one round trip. A call that
  gets no answer is made again when the server is back (:mod:`prime_dht.storage.redis_connection`), and is carried out
  at most once all the same (:mod:`prime_dht.storage.redis_store`).
- **Durable** is what the server makes so. With ``appendonly yes`` and ``appendfsync always``, what was acknowledged
  survives a loss of power. With ``appendfsync everysec``, Redis's default, it survives the death of this process, and
  nearly always that of the server, but a loss of power may undo the last second or two. If the server is set up to lose
  more than that, or does not tell, :meth:`RedisBackend.open` issues a :class:`NotDurableWarning` and goes on. When a
  server that was started again, or a replica that took over, lacks what was acknowledged, the changes of entries that
  are under way fail, or else the next one, so that the node reads what there is.
- **A prefix is a store.** Those of different prefixes have nothing in common. One process at a time holds a store.
- **Nothing expires by itself**, because an entry has to be reported when it retires. A store as a whole does: when its
  node has not run for 30 days, and then only 30 days after its last entry has retired, or a day before either.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

from prime_dht.entries.entry import Entry, Slot, Version
from prime_dht.entries.lifetime import as_of
from prime_dht.ids import Key, OpId, PeerId
from prime_dht.storage import redis_entry_scripts as entry_scripts
from prime_dht.storage import redis_record_scripts as record_scripts
from prime_dht.storage import redis_rows as rows
from prime_dht.storage import redis_scripts as scripts
from prime_dht.storage.base import (
    MAX_STEP_BACK_US,
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
from prime_dht.storage.capacity import LOCATION_BITS, Capacity
from prime_dht.storage.paging import decode_cursor, encode_cursor
from prime_dht.storage.redis_migration import bring_up_to_date
from prime_dht.storage.redis_store import ABANDONED_AFTER_S, RedisStore, open_store

PATIENCE_S = 10.0

_US_PER_MS = 1000
_SECTOR_SHIFT_BITS = LOCATION_BITS - rows.SECTOR_BITS
_AT_A_TIME = 1000
_ALL = -1
"""A limit that is none, to Redis."""


class NotDurableWarning(UserWarning):
    """The Redis server may lose what it has acknowledged; the text says why."""


class RedisBackend(StorageBackend):
    """See the module. :meth:`open` makes one: ``async with RedisBackend.open(url, prefix="node-1") as store``."""

    def __init__(self, store: RedisStore, capacity: Capacity) -> None:
        self.capacity = capacity
        self._store = store

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, prefix: str, capacity: Capacity | None = None, patience_s: float = PATIENCE_S
    ) -> AsyncIterator[RedisBackend]:
        """Open the store under ``prefix`` in the server at ``url``, or make one there.

        Args:
            url: as :func:`~prime_dht.storage.redis_connection.parse_address` reads it.
            prefix: names the store; it begins the names of its three Redis keys.
            capacity: what it may hold.
            patience_s: how long a call waits for a server that has gone away.

        Raises:
            StorageError: the URL is none, the server cannot be used, another process has the store open, or what is
                there is not a store, or of a newer version. It is left as it is.
        """
        async with open_store(url, prefix=prefix, patience_s=patience_s) as store:
            if risk := await store.risk_of_loss():
                warnings.warn(f"{store}: the server may lose what it holds: {risk}", NotDurableWarning, stacklevel=1)
            await bring_up_to_date(store)
            yield cls(store, capacity or Capacity())

    async def put_entries(self, entries: Sequence[Entry], *, now_us: int) -> list[PutResult]:
        limits, spared = self.capacity.limits, self.capacity.spared_locations
        retained_us = max((entry.header.retain_until_us - now_us for entry in entries), default=0)
        numbers = (
            limits.max_slots_per_key,
            limits.max_store_entries,
            limits.max_store_bytes,
            limits.max_publisher_entries,
            limits.max_publisher_bytes,
            self.capacity.local_location,
            spared.start,
            spared.stop,
        )
        arguments = [
            b"%d" % (ABANDONED_AFTER_S * 1000 + max(0, retained_us) // _US_PER_MS),
            rows.time(now_us),
            rows.time(now_us + 1),
            rows.time(now_us + MAX_STEP_BACK_US),
            *(b"%d" % number for number in numbers),
        ]
        entries = [as_of(entry, now_us) for entry in entries]
        for entry in entries:
            place, row = rows.place_and_row(entry)
            arguments += (place, row, b"0" if entry.value is None else b"1", entry.value or b"")
        said = await self._store.write(entry_scripts.PUT_ENTRIES, *arguments, of_entries=True)
        return rows.read_outcomes(said, entries, limits)

    async def get_entries(self, query: EntryQuery, *, now_us: int) -> EntryPage:
        behind = decode_cursor(query.cursor)
        more, *found = await self._store.read(
            entry_scripts.GET_ENTRIES,
            b"s" + rows.terminated(query.key),
            b"" if behind is None else b"".join(map(rows.terminated, behind)),
            rows.time(now_us),
            b"%d" % query.include_expired,
            b"%d" % query.newest,
            b"%d" % query.max_bytes,
            b"%d" % len(query.publishers),
            *map(rows.terminated, query.publishers),
            *map(rows.terminated, query.subkeys),
        )
        entries = tuple(rows.read_entries(found))
        if more == b"0":
            return EntryPage(entries)
        return EntryPage(entries, encode_cursor(entries[-1].publisher, entries[-1].header.subkey))

    async def get_ops(self, op_ids: Sequence[OpId], *, now_us: int) -> list[Entry]:
        found = await self._store.read(entry_scripts.GET_OPS, rows.time(now_us), *dict.fromkeys(op_ids))
        return list(rows.read_entries(found))

    async def ops(
        self, *, locations: range, created_us: range, after: Version | None = None, limit: int = 1000
    ) -> list[Op]:
        if not locations or not created_us:
            return []
        start = b"[" + rows.time(created_us.start)
        if after is not None:
            start = max(start, b"(" + rows.last_of_version(after), key=lambda bound: bound[1:])
        first, last = (location >> _SECTOR_SHIFT_BITS for location in (locations.start, locations.stop - 1))
        # Each sector in the order of versions is as much as the server has. A fair share of the page from each is
        # mostly enough, and the whole page from each always is.
        share = 2 * limit // (last - first + 1) + 8
        while True:
            sectors = await self._store.read(
                entry_scripts.OPS,
                b"%d" % first,
                b"%d" % last,
                start,
                b"(" + rows.time(created_us.stop),
                b"%d" % share,
            )
            found = [rows.read_ops(members) for members in sectors if members]
            page = sorted((op for ops in found for op in ops if op.location in locations), key=lambda op: op.version)
            # Behind the last op of a sector that has more, others may be missing.
            complete = min((ops[-1].version for ops in found if len(ops) == share), default=None)
            if complete is not None:
                page = [op for op in page if op.version <= complete]
            if complete is None or len(page) >= limit:
                return page[:limit]
            share *= 4

    async def scan_ops(self, *, after: bytes = b"", limit: int = 65_536) -> OpArrays:
        (members,) = await self._store.read(entry_scripts.SCAN_OPS, b"(" + after if after else b"[t", b"%d" % limit)
        assert members is not None
        is_full = len(members) == limit * rows.OP_BYTES
        return rows.read_op_arrays(members, members[-rows.OP_BYTES :] if is_full else b"")

    async def find_ops(self, prefixes: Sequence[bytes]) -> list[OpId]:
        found = await self._store.read(entry_scripts.FIND_OPS, *dict.fromkeys(prefixes))
        return list(dict.fromkeys(OpId(op_id) for op_id in found if op_id is not None))

    async def keys(self, *, after: Key | None = None, limit: int = 1000) -> list[Key]:
        behind = b"" if after is None else rows.terminated(after)
        found = await self._store.read(entry_scripts.KEYS, behind, b"%d" % limit)
        return [Key(rows.unterminated(key)) for key in found if key is not None]

    async def remove_ops(self, op_ids: Sequence[OpId]) -> list[Gone]:
        return rows.read_gone(await self._store.write(entry_scripts.REMOVE_OPS, *op_ids, of_entries=True))

    async def delete_expired(self, *, now_us: int, retire_before_us: int, limit: int = 1000) -> Expired:
        said = await self._store.write(
            entry_scripts.DELETE_EXPIRED,
            rows.time(retire_before_us),
            rows.time(now_us + MAX_STEP_BACK_US),
            rows.time(now_us + 1),
            b"%d" % limit,
            rows.time(retire_before_us - MAX_STEP_BACK_US),
            of_entries=True,
        )
        return rows.read_expired(said)

    async def put_record(self, record: PlainRecord, *, now_us: int) -> None:
        limits = self.capacity.limits
        said = await self._store.write(
            record_scripts.PUT_RECORD,
            rows.record_name(record.key),
            rows.record_row(record),
            rows.location(record.key),
            *self._room(limits.max_records, limits.max_records_bytes, now_us),
        )
        if said:
            limits.check_records(*rows.read_numbers(said))

    async def get_record(self, key: Key, *, now_us: int) -> PlainRecord | None:
        row = await self._row(b"k" + key)
        record = None if row is None else rows.read_record(key, row)
        return record if record is not None and now_us < record.expires_at_us else None

    async def records(self, *, after: Key | None = None, limit: int = 1000) -> list[PlainRecord]:
        found = await self._walk(b"k", after, limit)
        return [rows.read_record(key, row) for key, row in found]

    async def add_provider(self, record: ProviderRecord, *, now_us: int) -> None:
        limits = self.capacity.limits
        said = await self._store.write(
            record_scripts.ADD_PROVIDER,
            rows.provider_name(record.multihash, record.provider),
            rows.provider_row(record),
            rows.location(record.multihash),
            *self._room(limits.max_providers, limits.max_providers_bytes, now_us),
            b"%d" % limits.max_providers_per_key,
            b"%d" % limits.max_providers_per_peer,
        )
        if said:
            of_key, count, size_bytes = rows.read_numbers(said)
            limits.check_providers_of_key(of_key)
            limits.check_providers(count, size_bytes)

    async def get_providers(self, multihash: bytes, *, now_us: int, limit: int = 100) -> list[ProviderRecord]:
        found = await self._store.read(
            record_scripts.GET_PROVIDERS, rows.terminated(multihash), rows.time(now_us + 1), b"%d" % limit
        )
        return [rows.read_provider(multihash, provider, row) for provider, row in rows.pairs(found)]

    async def providers(self, *, after: tuple[bytes, PeerId] | None = None, limit: int = 1000) -> list[ProviderRecord]:
        found = await self._walk(b"m", None if after is None else rows.provider_name(*after), limit)
        return [rows.read_provider(*rows.split_first(name), row) for name, row in found]

    async def put_peers(self, peers: Sequence[KnownPeer]) -> None:
        arguments = (part for peer in peers for part in (peer.peer, rows.peer_row(peer)))
        await self._store.write(scripts.PUT_PEERS, *arguments)

    async def peers(self, *, limit: int = 1000) -> list[KnownPeer]:
        found = await self._store.read(scripts.PEERS, b"%d" % limit)
        return [rows.read_peer(peer, row) for peer, row in rows.pairs(found)]

    async def remove_peers(self, peers: Sequence[PeerId]) -> None:
        await self._store.write(scripts.REMOVE_PEERS, *peers)

    async def own_slot(self, slot: Slot) -> OwnSlot | None:
        (own,) = await self.own_slots_of([slot])
        return own

    async def own_slots_of(self, slots: Sequence[Slot]) -> list[OwnSlot | None]:
        found: list[bytes | None] = []
        for start in range(0, len(slots), _AT_A_TIME):
            fields = (b"o" + rows.slot_name(slot) for slot in slots[start : start + _AT_A_TIME])
            found += await self._store.read(scripts.GET_ROWS, *fields)
        return [None if row is None else rows.read_own_slot(slot, row) for slot, row in zip(slots, found, strict=True)]

    async def put_own_slots(self, slots: Sequence[OwnSlot]) -> None:
        arguments = (part for own in slots for part in (rows.slot_name(own.slot), rows.own_slot_row(own)))
        await self._store.write(scripts.PUT_OWN_SLOTS, *arguments)

    async def own_slots(self, *, after: Slot | None = None, limit: int = 1000) -> list[OwnSlot]:
        found = await self._walk(b"o", None if after is None else rows.slot_name(after), limit)
        return [rows.read_own_slot(rows.read_slot(name), row) for name, row in found]

    async def get_meta(self, name: str) -> bytes | None:
        return await self._row(b"n" + name.encode())

    async def put_meta(self, name: str, value: bytes) -> None:
        await self._store.write(scripts.PUT_META, name.encode(), value)

    async def meta_names(self) -> list[str]:
        return [name.decode() for name, _ in await self._walk(b"n", None, _ALL)]

    async def stats(self) -> StoreStats:
        found = await self._store.read(scripts.STATS)
        keys, entries, size_bytes, records, providers, peers, ops = (int(number or 0) for number in found)
        return StoreStats(
            keys=keys, entries=entries, bytes=size_bytes, records=records, providers=providers, peers=peers, ops=ops
        )

    async def aclose(self) -> None:
        await self._store.aclose()

    def _room(self, most: int, most_bytes: int, now_us: int) -> list[bytes]:
        """What a script goes by when it makes room."""
        spared = self.capacity.spared_locations
        numbers = (most, most_bytes, self.capacity.local_location, spared.start, spared.stop)
        return [rows.time(now_us + 1), *(b"%d" % number for number in numbers)]

    async def _row(self, field: bytes) -> bytes | None:
        (row,) = await self._store.read(scripts.GET_ROWS, field)
        return row

    async def _walk(self, kind: bytes, after: bytes | None, limit: int) -> Iterator[tuple[bytes, bytes]]:
        """The next names and rows of a kind, in the order of the names."""
        start = b"[" + kind if after is None else b"(" + kind + after
        return rows.pairs(await self._store.read(scripts.WALK, start, b"(" + bytes([kind[0] + 1]), b"%d" % limit))
