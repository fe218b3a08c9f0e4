"""The storage backends by themselves: durable writes and reads of entries with 1 KiB values, and what SQLite needs.

Beside each rate of SQLite stands the aim for it. Writes wait for the disk: their rates are those of the machine's disk,
too, and of whatever else writes to it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import trio

from prime_dht.entries.entry import Entry
from prime_dht.storage.base import EntryQuery, PutOutcome, StorageBackend
from prime_dht.storage.memory import MemoryBackend
from prime_dht.storage.sqlite import SQLiteBackend

from .measuring import Case, Operation, measure
from .storage_entries import NOW_US, VALUE_BYTES, new_entry, unlimited
from .storage_scan import measure_scan
from .tables import Row, Table

BATCH = 512
WRITERS = 64

SQLITE = "SQLite, FULL"
AIMS_PER_S = {(f"{SQLITE}: put", WRITERS): 2_000, (f"{SQLITE}: put {BATCH}", 1): 20_000}
AIM_BYTES_PER_ENTRY = 1_600


async def measure_storage(*, quick: bool) -> list[Table]:
    """The tables of this suite."""
    rounds = 1 if quick else 3
    scale = 1 if quick else 8
    async with MemoryBackend(unlimited()) as memory, open_sqlite() as sqlite:
        cases = [*_Load("memory", memory, scale).cases(), *_Load(SQLITE, sqlite, scale).cases()]
        rows = [_with_aim(row) for row in await measure(cases, rounds=rounds)]
    rates = f"Storage backends, {VALUE_BYTES} byte values, {rounds} rounds; rate and CPU are per entry"
    size = f"Disk that SQLite takes for entries of {VALUE_BYTES} random bytes, their indexes included, in one file"
    return [
        Table(name="storage", title=rates, rows=rows),
        Table(name="storage_size", title=size, rows=[await _measure_size(BATCH * scale)]),
        await measure_scan(quick=quick),
    ]


@asynccontextmanager
async def open_sqlite() -> AsyncIterator[SQLiteBackend]:
    """An empty store in a directory of its own, which goes with it."""
    with TemporaryDirectory(prefix="prime-dht-bench-") as directory:
        async with await SQLiteBackend.open(Path(directory) / "store.sqlite", capacity=unlimited()) as backend:
            yield backend


class _Load:
    def __init__(self, name: str, backend: StorageBackend, scale: int) -> None:
        self._name = name
        self._backend = backend
        self._scale = scale
        self._rng = Random(16)
        self._entries: list[Entry] = []

    def cases(self) -> list[Case]:
        """Puts one by one, many at once, and in batches; gets of what was put."""
        return [
            Case(name=f"{self._name}: put", in_flight=1, round=partial(self._puts, 32, batch=1)),
            Case(name=f"{self._name}: put", in_flight=WRITERS, round=partial(self._puts, 256, batch=1)),
            Case(name=f"{self._name}: put {BATCH}", in_flight=1, round=partial(self._puts, BATCH, BATCH), items=BATCH),
            Case(name=f"{self._name}: get", in_flight=1, round=self._gets),
        ]

    def _puts(self, count: int, batch: int) -> list[Operation]:
        self._entries = [new_entry(self._rng) for _ in range(count * self._scale)]
        starts = range(0, len(self._entries), batch)
        return [partial(self._put, self._entries[start : start + batch]) for start in starts]

    def _gets(self) -> list[Operation]:
        return [partial(self._get, entry) for entry in self._entries]

    async def _put(self, entries: Sequence[Entry]) -> None:
        results = await self._backend.put_entries(entries, now_us=NOW_US)
        assert all(result.outcome is PutOutcome.INSERTED for result in results)

    async def _get(self, entry: Entry) -> None:
        page = await self._backend.get_entries(EntryQuery(key=entry.header.key), now_us=NOW_US)
        assert page.entries == (entry,)


def _with_aim(row: Row) -> Row:
    """A row of this suite, in which nothing is requested of anybody."""
    columns = {name: cell for name, cell in row.items() if name != "rpcs"}
    return {**columns, "aim_per_s": AIMS_PER_S.get((str(row["operation"]), int(row["in_flight"] or 0)))}


async def _measure_size(count: int) -> Row:
    rng = Random(16)
    with TemporaryDirectory(prefix="prime-dht-bench-") as directory:
        path = trio.Path(directory) / "store.sqlite"
        async with await SQLiteBackend.open(path, synchronous="NORMAL", capacity=unlimited()) as store:
            empty_bytes = (await path.stat()).st_size
            for _ in range(0, count, BATCH):
                await store.put_entries([new_entry(rng) for _ in range(BATCH)], now_us=NOW_US)
        taken_bytes = (await path.stat()).st_size - empty_bytes
    return {"entries": count, "bytes_per_entry": taken_bytes / count, "aim_bytes": AIM_BYTES_PER_ENTRY}
