"""The SQLite backend keeps every promise of the interface, and keeps it over restarts."""

from __future__ import annotations

import contextlib
import stat
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing

from prime_dht.entries.entry import Entry
from prime_dht.errors import StorageError
from prime_dht.ids import Key, TimestampUs
from prime_dht.storage import sqlite_reads
from prime_dht.storage.base import EntryQuery, OwnSlot, StorageBackend
from prime_dht.storage.offline import check
from prime_dht.storage.sqlite import SQLiteBackend
from prime_dht.storage.sqlite_entries import MOST_PAGES_GIVEN_BACK
from prime_dht.storage.sqlite_file import OpenDatabase, Synchronous, journal_of, open_database
from prime_dht.storage.sqlite_schema import STEM_BYTES, stem_of
from prime_dht.testing.forking import forked
from prime_dht.testing.storage_conformance import StorageConformance
from prime_dht.testing.storage_samples import (
    KEY,
    NOW_US,
    known_peer,
    make_entry,
    provider,
    read_all,
    record,
)

PATIENCE_S = 30.0


class TestSQLiteBackend(StorageConformance):
    @pytest.fixture
    async def backend(self, path: Path) -> AsyncIterator[StorageBackend]:
        async with await SQLiteBackend.open(path) as backend:
            yield backend


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prime.db"


async def fill(path: Path, entries: int = 100) -> None:
    """Make a store of entries of 1 KiB."""
    async with await SQLiteBackend.open(path) as store:
        await store.put_entries([make_entry(bytes(1024), subkey=b"%d" % i) for i in range(entries)], now_us=NOW_US)


async def test_a_reopened_store_holds_all_it_held(path: Path) -> None:
    entry, tombstone = make_entry(subkey=b"a"), make_entry(None, subkey=b"b")
    own = OwnSlot(entry.slot, TimestampUs(100), TimestampUs(1000))
    async with await SQLiteBackend.open(path) as store:
        await store.put_entries([entry, tombstone], now_us=NOW_US)
        await store.put_record(record(b"a"), now_us=NOW_US)
        await store.add_provider(provider(b"a"), now_us=NOW_US)
        await store.put_peers([known_peer(b"a")])
        await store.put_own_slots([own])
        await store.put_meta("name", b"value")
        before = await store.stats()
    async with await SQLiteBackend.open(path, synchronous="NORMAL") as store:
        assert await store.stats() == before
        assert await read_all(store, EntryQuery(key=KEY)) == [entry, tombstone]
        assert await store.records() == [record(b"a")]
        assert await store.get_providers(b"content", now_us=NOW_US) == [provider(b"a")]
        assert await store.peers() == [known_peer(b"a")]
        assert await store.own_slot(entry.slot) == own
        assert await store.get_meta("name") == b"value"


async def test_closing_leaves_one_file_and_its_lock(path: Path) -> None:
    await fill(path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["prime.db", "prime.db.lock"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_child_that_was_forked_meanwhile_does_not_keep_others_from_the_store(path: Path) -> None:
    with contextlib.ExitStack() as stack:
        async with await SQLiteBackend.open(path):
            stack.enter_context(forked())
        async with await SQLiteBackend.open(path):
            pass


async def test_all_its_files_are_for_their_owner_alone(path: Path) -> None:
    async with await SQLiteBackend.open(path) as store:
        await store.put_entries([make_entry()], now_us=NOW_US)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(["prime.db", "prime.db-wal", "prime.db-shm", "prime.db.lock"], 0o600)


async def test_an_open_store_cannot_be_opened_again_until_it_is_closed(path: Path) -> None:
    async with await SQLiteBackend.open(path):
        with pytest.raises(StorageError, match=r"prime\.db: another process has it open"):
            await SQLiteBackend.open(path)
    await (await SQLiteBackend.open(path)).aclose()


async def test_deleted_entries_give_their_disk_back(path: Path) -> None:
    await fill(path, entries=1000)
    full_bytes = size_bytes(path)
    async with await SQLiteBackend.open(path) as store:
        expired = await store.delete_expired(now_us=1000, retire_before_us=1000)
        assert expired.values_dropped == 1000
    assert size_bytes(path) < full_bytes / 2


async def test_a_clean_up_gives_back_only_so_many_pages_and_the_next_one_goes_on(path: Path) -> None:
    database = open_database(path, synchronous="NORMAL")
    free = "PRAGMA freelist_count"
    async with SQLiteBackend(database) as store:
        large = [make_entry(bytes(60_000), subkey=b"%d" % i) for i in range(200)]
        await store.put_entries(large, now_us=NOW_US)
        await store.remove_ops([entry.op_id for entry in large])
        (before,) = database.writer.execute(free).fetchone()
        assert before > MOST_PAGES_GIVEN_BACK
        for expected in (before - MOST_PAGES_GIVEN_BACK, 0):
            await store.delete_expired(now_us=NOW_US, retire_before_us=0)
            assert database.writer.execute(free).fetchone() == (expected,)


async def test_an_entry_of_1_kib_takes_at_most_1600_bytes_of_disk(path: Path) -> None:
    rng = Random(16)
    day_us, now_us, count = 86_400_000_000, 1_790_000_000_000_000, 2000
    async with await SQLiteBackend.open(path, synchronous="NORMAL") as store:
        empty_bytes = size_bytes(path)
        await store.put_entries(
            [
                make_entry(
                    rng.randbytes(1024),
                    key=Key(b"/prime/model:%d" % rng.getrandbits(40)),
                    writer=number % 3,
                    created_at_us=now_us + number,
                    expires_at_us=now_us + day_us + number,
                )
                for number in range(count)
            ],
            now_us=now_us,
        )
    assert (size_bytes(path) - empty_bytes) / count <= 1600


async def test_the_stem_left_out_of_every_row_is_how_envelopes_begin() -> None:
    for writer in range(3):
        entry = make_entry(writer=writer)
        assert entry.envelope.startswith(stem_of(entry.publisher))
        assert len(stem_of(entry.publisher)) == STEM_BYTES


class Gate:
    """Called by SQLite in the midst of a statement: says that it was, and waits to be let on."""

    def __init__(self) -> None:
        self._entered = threading.Event()
        self._leave = threading.Event()

    def __call__(self) -> int:
        self._entered.set()
        assert self._leave.wait(PATIENCE_S)
        return 0

    async def entered(self) -> None:
        assert await trio.to_thread.run_sync(self._entered.wait, PATIENCE_S)

    def open(self) -> None:
        self._leave.set()

    @property
    def is_open(self) -> bool:
        return self._leave.is_set()


async def test_reads_go_on_while_a_write_and_another_read_are_long(path: Path) -> None:
    database = open_database(path, synchronous="NORMAL")
    first, second = make_entry(subkey=b"1"), make_entry(subkey=b"2")
    read: list[Entry] = []
    async with SQLiteBackend(database) as store:
        await store.put_entries([first], now_us=NOW_US)

        async def read_at_length() -> None:
            read.extend(await read_all(store, EntryQuery(key=KEY)))

        read_gate, write_gate = Gate(), Gate()
        database.readers[-1].set_progress_handler(read_gate, 1)
        database.writer.set_progress_handler(write_gate, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_at_length)
            nursery.start_soon(partial(store.put_entries, [second], now_us=NOW_US))
            await read_gate.entered()
            await write_gate.entered()
            assert await read_all(store, EntryQuery(key=KEY)) == [first]
            read_gate.open()
            write_gate.open()
        assert first in read
        assert await read_all(store, EntryQuery(key=KEY)) == [first, second]


async def test_closing_waits_for_reads_that_are_under_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = open_database(path, synchronous="NORMAL")
    store = SQLiteBackend(database)
    await store.put_entries([make_entry()], now_us=NOW_US)
    gate = Gate()
    for reader in database.readers:
        reader.set_progress_handler(gate, 1)
    closed = trio.Event()
    read: list[Entry] = []
    was_let_on: list[bool] = []
    close_database = OpenDatabase.close

    def note_close(database: OpenDatabase) -> Callable[[], None]:
        was_let_on.append(gate.is_open)
        return partial(close_database, database)

    # Noted where closing is asked for: the thread that then closes may be late.
    monkeypatch.setattr(OpenDatabase, "close", property(note_close))

    async def read_entries() -> None:
        read.extend(await read_all(store, EntryQuery(key=KEY)))

    async def close() -> None:
        await store.aclose()
        closed.set()

    async with trio.open_nursery() as nursery:
        for _ in range(2 * len(database.readers)):  # half of them wait for a reader
            nursery.start_soon(read_entries)
        await gate.entered()
        nursery.start_soon(close)
        await trio.testing.wait_all_tasks_blocked()
        assert not closed.is_set()
        gate.open()
    assert read == [make_entry()] * 2 * len(database.readers)
    assert was_let_on == [True]


async def test_a_page_is_of_one_moment_though_its_entries_go_meanwhile(path: Path) -> None:
    database = open_database(path, synchronous="NORMAL")
    entries = [make_entry(subkey=b"%d" % number) for number in range(3)]
    read: list[Entry] = []
    async with SQLiteBackend(database) as store:
        await store.put_entries(entries, now_us=NOW_US)
        gate = Gate()

        def stop_between_statements(statement: str) -> None:
            if "peer, statement" in statement:  # the slots have been found, and their rows are read next
                gate()

        database.readers[-1].set_trace_callback(stop_between_statements)

        async def read_entries() -> None:
            read.extend(await read_all(store, EntryQuery(key=KEY)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_entries)
            await gate.entered()
            await store.remove_ops([entry.op_id for entry in entries])
            gate.open()
        assert read == entries
        assert await store.keys() == []


async def test_a_put_of_1_kib_takes_at_most_56_kib_of_journal(path: Path) -> None:
    rng = Random(16)
    entries = [
        make_entry(rng.randbytes(1024), key=Key(b"/prime/model:%d" % rng.getrandbits(40)), created_at_us=number)
        for number in range(800)
    ]
    async with await SQLiteBackend.open(path, synchronous="NORMAL") as store:
        await store.put_entries(entries[:-50], now_us=NOW_US)
    journal = journal_of(path)
    async with await SQLiteBackend.open(path, synchronous="NORMAL") as store:
        for entry in entries[-50:]:
            await store.put_entries([entry], now_us=NOW_US)
        assert journal.stat().st_size / 50 <= 56 << 10


async def test_what_retired_is_refused_after_a_restart_too(path: Path) -> None:
    entry = make_entry()
    async with await SQLiteBackend.open(path) as store:
        await store.delete_expired(now_us=2000, retire_before_us=1001)
    async with await SQLiteBackend.open(path) as store:
        (result,) = await store.put_entries([entry], now_us=NOW_US)
        assert "retired" in result.reason


async def test_what_is_new_in_an_empty_slot_takes_seven_statements_and_a_transaction(path: Path) -> None:
    database = open_database(path, synchronous="NORMAL")
    statements: list[str] = []
    async with SQLiteBackend(database) as store:
        await store.put_entries([make_entry()], now_us=NOW_US)  # makes its publisher known
        database.writer.set_trace_callback(statements.append)
        await store.put_entries([make_entry(key=Key(b"/prime/new"))], now_us=NOW_US)
        database.writer.set_trace_callback(None)
    assert len(statements) == 1 + 7 + 1


async def test_what_one_call_has_put_is_there_for_what_follows_in_it(path: Path) -> None:
    first, second = make_entry(b"first", created_at_us=1), make_entry(b"second", created_at_us=2)
    async with await SQLiteBackend.open(path) as store:
        await store.put_entries([first, second, first, make_entry(subkey=b"other")], now_us=NOW_US)
        assert [entry.value for entry in await read_all(store, EntryQuery(key=KEY, subkeys=(b"",)))] == [b"second"]
    assert (await check(path)).problems == ()


def test_ops_are_read_from_their_index_alone(path: Path) -> None:
    database = open_database(path, synchronous="NORMAL")
    for statement in (sqlite_reads.OPS, sqlite_reads.OPS_OF_SECTOR):
        plan = database.writer.execute(f"EXPLAIN QUERY PLAN {statement}", (0,) * statement.count("?")).fetchall()
        (search,) = (step for *_, step in plan if "entries" in step)
        assert search.startswith("SEARCH entries USING COVERING INDEX ops (")
    database.close()


def size_bytes(path: Path) -> int:
    return path.stat().st_size


@pytest.mark.parametrize(("synchronous", "level"), [("FULL", 2), ("NORMAL", 1)])
def test_the_setting_says_whether_a_commit_waits_for_the_disk(path: Path, synchronous: Synchronous, level: int) -> None:
    database = open_database(path, synchronous=synchronous)
    assert database.writer.execute("PRAGMA synchronous").fetchone() == (level,)
    assert database.writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()
