"""The default storage backend: one SQLite file in the data directory.

- **Durable.** A write returns when its transaction is committed to the write-ahead journal; concurrent writes share a
  commit (:mod:`prime_dht.storage.group_commit`). What that survives is the caller's choice of
  :data:`~prime_dht.storage.sqlite_file.Synchronous`.
- **Never in the event loop.** Everything runs on worker threads: writes on a connection of their own, reads on one of a
  few that is idle. A read sees all that was committed before it began; it waits for no writer, and for other reads only
  while all readers are busy.
- **Files**, the lock between processes, and versions of the schema: :mod:`prime_dht.storage.sqlite_file`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from prime_dht.entries.entry import Entry, Slot, Version
from prime_dht.errors import StorageError, ValidationError
from prime_dht.ids import Key, OpId, PeerId
from prime_dht.storage import sqlite_entries as changes
from prime_dht.storage import sqlite_reads as reads
from prime_dht.storage import sqlite_records as records
from prime_dht.storage import sqlite_rows as rows
from prime_dht.storage.base import (
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
from prime_dht.storage.group_commit import GroupCommit
from prime_dht.storage.read_threads import ReadThreads
from prime_dht.storage.sqlite_file import OpenDatabase, Synchronous, open_database, snapshot, translation

T = TypeVar("T")


class SQLiteBackend(StorageBackend):
    """See the module. :meth:`open` makes one: ``async with await SQLiteBackend.open(path) as store``."""

    def __init__(self, database: OpenDatabase, capacity: Capacity | None = None) -> None:
        self.capacity = capacity or Capacity()
        self._database = database
        self._commits = GroupCommit(database.writer, database.path)
        self._reads = ReadThreads(database.readers, database.path)
        self._open = True

    @classmethod
    async def open(
        cls, path: str | os.PathLike[str], *, synchronous: Synchronous = "FULL", capacity: Capacity | None = None
    ) -> SQLiteBackend:
        """Open the store in the file ``path``, or make one there; its directory has to exist.

        Raises:
            StorageError: another process has it open, it or its directory cannot be written, it is damaged and was
                moved aside, it is not a store, or of a newer version.
        """
        database = await trio.to_thread.run_sync(partial(open_database, Path(path), synchronous=synchronous))
        return cls(database, capacity)

    async def put_entries(self, entries: Sequence[Entry], *, now_us: int) -> list[PutResult]:
        return await self._write(lambda connection: changes.put_entries(connection, entries, self.capacity, now_us))

    async def get_entries(self, query: EntryQuery, *, now_us: int) -> EntryPage:
        return await self._read(lambda connection: reads.get_entries(connection, query, now_us))

    async def get_ops(self, op_ids: Sequence[OpId], *, now_us: int) -> list[Entry]:
        return await self._read(lambda connection: reads.get_ops(connection, op_ids, now_us))

    async def ops(
        self, *, locations: range, created_us: range, after: Version | None = None, limit: int = 1000
    ) -> list[Op]:
        return await self._read(lambda connection: reads.ops(connection, locations, created_us, after, limit))

    async def scan_ops(self, *, after: bytes = b"", limit: int = 65_536) -> OpArrays:
        return await self._read(lambda connection: reads.scan_ops(connection, after, limit))

    async def find_ops(self, prefixes: Sequence[bytes]) -> list[OpId]:
        return await self._read(lambda connection: reads.find_ops(connection, prefixes))

    async def keys(self, *, after: Key | None = None, limit: int = 1000) -> list[Key]:
        return await self._read(lambda connection: reads.keys(connection, after, limit))

    async def remove_ops(self, op_ids: Sequence[OpId]) -> list[Gone]:
        return await self._write(lambda connection: changes.remove_ops(connection, op_ids))

    async def delete_expired(self, *, now_us: int, retire_before_us: int, limit: int = 1000) -> Expired:
        return await self._write(lambda connection: changes.delete_expired(connection, now_us, retire_before_us, limit))

    async def put_record(self, record: PlainRecord, *, now_us: int) -> None:
        refusal = await self._write(lambda connection: records.put_record(connection, record, self.capacity, now_us))
        if refusal:
            raise ValidationError(refusal)

    async def get_record(self, key: Key, *, now_us: int) -> PlainRecord | None:
        return await self._read(lambda connection: records.get_record(connection, key, now_us))

    async def records(self, *, after: Key | None = None, limit: int = 1000) -> list[PlainRecord]:
        return await self._read(lambda connection: records.records(connection, after, limit))

    async def add_provider(self, record: ProviderRecord, *, now_us: int) -> None:
        refusal = await self._write(lambda connection: records.add_provider(connection, record, self.capacity, now_us))
        if refusal:
            raise ValidationError(refusal)

    async def get_providers(self, multihash: bytes, *, now_us: int, limit: int = 100) -> list[ProviderRecord]:
        return await self._read(lambda connection: records.get_providers(connection, multihash, now_us, limit))

    async def providers(self, *, after: tuple[bytes, PeerId] | None = None, limit: int = 1000) -> list[ProviderRecord]:
        return await self._read(lambda connection: records.providers(connection, after, limit))

    async def put_peers(self, peers: Sequence[KnownPeer]) -> None:
        await self._write(lambda connection: rows.put_peers(connection, peers))

    async def peers(self, *, limit: int = 1000) -> list[KnownPeer]:
        return await self._read(lambda connection: rows.peers(connection, limit))

    async def remove_peers(self, peers: Sequence[PeerId]) -> None:
        await self._write(lambda connection: rows.remove_peers(connection, peers))

    async def own_slot(self, slot: Slot) -> OwnSlot | None:
        return await self._read(lambda connection: rows.own_slot(connection, slot))

    async def own_slots_of(self, slots: Sequence[Slot]) -> list[OwnSlot | None]:
        return await self._read(lambda connection: [rows.own_slot(connection, slot) for slot in slots])

    async def put_own_slots(self, slots: Sequence[OwnSlot]) -> None:
        await self._write(lambda connection: rows.put_own_slots(connection, slots))

    async def own_slots(self, *, after: Slot | None = None, limit: int = 1000) -> list[OwnSlot]:
        return await self._read(lambda connection: rows.own_slots(connection, after, limit))

    async def get_meta(self, name: str) -> bytes | None:
        return await self._read(lambda connection: rows.get_meta(connection, name))

    async def put_meta(self, name: str, value: bytes) -> None:
        await self._write(lambda connection: rows.put_meta(connection, name, value))

    async def meta_names(self) -> list[str]:
        return await self._read(rows.meta_names)

    async def stats(self) -> StoreStats:
        return await self._read(reads.stats)

    async def aclose(self) -> None:
        if not self._open:
            await trio.lowlevel.checkpoint()
            return
        self._open = False
        with trio.CancelScope(shield=True):
            await self._commits.finish()
            await self._reads.finish()
            await trio.to_thread.run_sync(self._database.close)

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._check_open()
        return await self._commits.run(work)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._check_open()

        def translated(connection: sqlite3.Connection) -> T:
            with translation(self._database.path), snapshot(connection):
                return work(connection)

        return await self._reads.run(translated)

    def _check_open(self) -> None:
        if not self._open:
            raise StorageError(f"{self._database.path}: the store is closed")
