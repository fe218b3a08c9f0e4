"""The scan of all ops that a node makes at start, by itself and while the node serves.

The ops are rows without values: the scan reads an index, in which there are none. They are made once, with SQL, because
signing a million entries takes minutes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import trio

from prime_dht.entries.entry import Entry
from prime_dht.ids import Key
from prime_dht.storage.base import EntryQuery
from prime_dht.storage.sqlite import SQLiteBackend
from prime_dht.storage.sqlite_file import OpenDatabase, open_database
from prime_dht.storage.sqlite_schema import sector_of

from .measuring import percentile
from .storage_entries import DAY_US, NOW_US, new_entry, unlimited
from .tables import Row, Table

AIM_S = 3.0
SERVED = 500

_INSERT = """
    INSERT INTO entries (
        sector, location, created_at_us, expires_at_us, retain_until_us, is_tombstone, publisher, op_id, key, subkey,
        statement
    ) VALUES (?, ?, ?, ?, ?, 0, 1, ?, ?, x'', zeroblob(150))
"""


async def measure_scan(*, quick: bool) -> Table:
    """The table of the scan."""
    ops = 50_000 if quick else 1_000_000
    with TemporaryDirectory(prefix="prime-dht-bench-") as directory:
        database = await trio.to_thread.run_sync(_make, Path(directory) / "store.sqlite", ops)
        async with SQLiteBackend(database, unlimited()) as store:
            rows = [await _scan_alone(store, ops), await _scan_while_serving(store, ops)]
    title = "Reading the metadata of all ops into numpy arrays, as at start; gets and puts one at a time meanwhile"
    return Table(name="storage_scan", title=title, rows=rows)


def _make(path: Path, ops: int) -> OpenDatabase:
    rng = Random(16)
    database = open_database(path, synchronous="FULL")
    with _transaction(database):
        database.writer.executemany(_INSERT, (_row(rng, number) for number in range(ops)))
    return database


@contextmanager
def _transaction(database: OpenDatabase) -> Iterator[None]:
    database.writer.execute("BEGIN")
    yield
    database.writer.execute("COMMIT")


def _row(rng: Random, number: int) -> tuple[int | bytes, ...]:
    location, created_at_us = rng.getrandbits(32), NOW_US + number
    expires_at_us = created_at_us + DAY_US
    op_id, key = rng.randbytes(32), b"/prime/scan:%d" % number
    return sector_of(location), location, created_at_us, expires_at_us, expires_at_us, op_id, key


async def _scan(store: SQLiteBackend, ops: int) -> float:
    """Read everything; returns how many seconds it took."""
    began_s = time.perf_counter()
    pages = [await store.scan_ops()]
    while pages[-1].next_cursor:
        pages.append(await store.scan_ops(after=pages[-1].next_cursor))
    op_ids = np.concatenate([page.op_ids for page in pages])
    locations = np.concatenate([page.locations for page in pages])
    created_at_us = np.concatenate([page.created_at_us for page in pages])
    elapsed_s = time.perf_counter() - began_s
    assert len(op_ids) == len(locations) == len(created_at_us) >= ops
    return elapsed_s


async def _scan_alone(store: SQLiteBackend, ops: int) -> Row:
    return _row_of("nothing else", ops, await _scan(store, ops), _Served())


async def _scan_while_serving(store: SQLiteBackend, ops: int) -> Row:
    rng = Random(17)
    served = _Served()
    entries = [new_entry(rng) for _ in range(SERVED)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.put_and_get, store, entries)
        elapsed_s = await _scan(store, ops)
        nursery.cancel_scope.cancel()
    return _row_of("puts and gets", ops, elapsed_s, served)


class _Served:
    """What was done for others meanwhile."""

    def __init__(self) -> None:
        self.put_s: list[float] = []
        self.get_s: list[float] = []

    async def put_and_get(self, store: SQLiteBackend, entries: list[Entry]) -> None:
        while True:
            for entry in entries:
                began_s = time.perf_counter()
                await store.put_entries([entry], now_us=NOW_US)
                put_s = time.perf_counter()
                await store.get_entries(EntryQuery(key=Key(entry.header.key)), now_us=NOW_US)
                self.put_s.append(put_s - began_s)
                self.get_s.append(time.perf_counter() - put_s)


def _row_of(meanwhile: str, ops: int, elapsed_s: float, served: _Served) -> Row:
    return {
        "meanwhile": meanwhile,
        "ops": ops,
        "scan_s": elapsed_s,
        "aim_s": AIM_S,
        "put_p50_ms": 1e3 * percentile(served.put_s, 50) if served.put_s else None,
        "get_p50_ms": 1e3 * percentile(served.get_s, 50) if served.get_s else None,
        "get_p99_ms": 1e3 * percentile(served.get_s, 99) if served.get_s else None,
    }
