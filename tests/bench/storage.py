"""The storage backends by themselves: durable writes and reads of entries with 1 KiB values."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from prime_dht.entries.entry import Entry
from prime_dht.ids import Key
from prime_dht.storage.base import EntryQuery, PutOutcome, StorageBackend
from prime_dht.storage.memory import MemoryBackend
from prime_dht.storage.sqlite import SQLiteBackend
from prime_dht.testing.storage_samples import NOW_US, make_entry

from .measuring import Case, Operation, measure
from .tables import Table

VALUE_BYTES = 1024
BATCH = 64


async def measure_storage(*, quick: bool) -> list[Table]:
    """The table of this suite."""
    batches, rounds = (1, 1) if quick else (4, 3)
    cases: list[Case] = []
    async with MemoryBackend() as memory, _open_sqlite() as sqlite:
        for name, backend in (("memory", memory), ("SQLite, FULL", sqlite)):
            cases += _Load(name, backend, batches).cases()
        rows = await measure(cases, rounds=rounds)
    title = f"Storage backends, {VALUE_BYTES} byte values, {rounds} rounds; rate and CPU are per entry"
    return [Table(name="storage", title=title, rows=rows)]


@asynccontextmanager
async def _open_sqlite() -> AsyncIterator[StorageBackend]:
    with TemporaryDirectory(prefix="prime-dht-bench-") as directory:
        async with await SQLiteBackend.open(Path(directory) / "store.sqlite") as backend:
            yield backend


class _Load:
    def __init__(self, name: str, backend: StorageBackend, batches: int) -> None:
        self._name = name
        self._backend = backend
        self._count = batches * BATCH
        self._rng = Random(16)
        self._keys_made = 0
        self._entries: list[Entry] = []

    def cases(self) -> list[Case]:
        """Puts one by one, some at once, and in batches; gets of what was put."""
        return [
            Case(name=f"{self._name}: put", in_flight=1, round=partial(self._puts, 1)),
            Case(name=f"{self._name}: put", in_flight=32, round=partial(self._puts, 1)),
            Case(name=f"{self._name}: put {BATCH}", in_flight=1, round=partial(self._puts, BATCH), items=BATCH),
            Case(name=f"{self._name}: get", in_flight=1, round=self._gets),
        ]

    def _puts(self, batch: int) -> list[Operation]:
        self._entries = [self._new_entry() for _ in range(self._count)]
        starts = range(0, self._count, batch)
        return [partial(self._put, self._entries[start : start + batch]) for start in starts]

    def _gets(self) -> list[Operation]:
        return [partial(self._get, entry) for entry in self._entries]

    def _new_entry(self) -> Entry:
        self._keys_made += 1
        return make_entry(self._rng.randbytes(VALUE_BYTES), key=Key(b"/prime/bench:%d" % self._keys_made))

    async def _put(self, entries: list[Entry]) -> None:
        results = await self._backend.put_entries(entries, now_us=NOW_US)
        assert all(result.outcome is PutOutcome.INSERTED for result in results)

    async def _get(self, entry: Entry) -> None:
        page = await self._backend.get_entries(EntryQuery(key=entry.header.key), now_us=NOW_US)
        assert page.entries == (entry,)
