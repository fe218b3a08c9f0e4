"""The SQLite backend keeps every promise of the interface, and keeps it over restarts, damage and a full disk."""

from __future__ import annotations

import random
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest

from prime_dht.errors import StorageError
from prime_dht.ids import Key, TimestampUs
from prime_dht.storage import sqlite_file
from prime_dht.storage.base import EntryQuery, OwnSlot, PutOutcome, StorageBackend
from prime_dht.storage.sqlite import SQLiteBackend
from prime_dht.storage.sqlite_file import open_database
from prime_dht.testing.storage_conformance import StorageConformance
from prime_dht.testing.storage_samples import KEY, NOW_US, known_peer, make_entry, provider, read_all, record


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
        await store.put_record(record(b"a"))
        await store.add_provider(provider(b"a"))
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


def size_bytes(path: Path) -> int:
    return path.stat().st_size


def contents(path: Path) -> bytes:
    return path.read_bytes()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite(path: Path) -> None:
    path.write_bytes(random.Random(7).randbytes(path.stat().st_size))


def overwrite_first_page_of_values(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'inline_values'").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * sqlite_file.PAGE_BYTES)
        file.write(b"\xff" * sqlite_file.PAGE_BYTES)


def put_another_programs_database_there(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE notes (note TEXT)")


def put_a_future_schema_there(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 1000")


@pytest.mark.parametrize(
    ("damage", "meaning"),
    [
        (empty, "damaged, it is empty; it was left as it is"),
        (truncate, "damaged; it was left as it is"),
        (overwrite, "damaged, or not a store of prime_dht; it was left as it is"),
        (put_another_programs_database_there, "not a store of prime_dht; it was left as it is"),
        (put_a_future_schema_there, r"written by a newer prime_dht \(schema 1000; this one knows 1\); left as it is"),
    ],
)
async def test_a_file_that_cannot_be_used_is_refused_in_one_line_and_left_as_it_is(
    path: Path, damage: Callable[[Path], None], meaning: str
) -> None:
    await fill(path)
    damage(path)
    before = contents(path)
    for _ in range(2):
        with pytest.raises(StorageError, match=rf"^\S+prime\.db: {meaning}$"):
            await SQLiteBackend.open(path)
    assert contents(path) == before


async def test_damage_inside_the_file_is_an_error_when_it_is_read(path: Path) -> None:
    await fill(path)
    overwrite_first_page_of_values(path)
    async with await SQLiteBackend.open(path) as store:
        with pytest.raises(StorageError, match=r"prime\.db: damaged; it was left as it is"):
            await store.get_entries(EntryQuery(key=KEY), now_us=NOW_US)


async def test_a_value_that_rotted_is_an_error_and_not_a_value(path: Path) -> None:
    await fill(path, entries=1)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE inline_values SET value = ?", (bytes(1023) + b"\x01",))
    async with await SQLiteBackend.open(path) as store:
        with pytest.raises(StorageError, match="SHA-256"):
            await store.get_entries(EntryQuery(key=KEY), now_us=NOW_US)


async def test_a_journal_whose_store_is_gone_is_not_played_into_a_new_one(path: Path) -> None:
    journal = path.with_name("prime.db-wal")
    journal.write_bytes(b"journal")
    with pytest.raises(StorageError, match=r"it is gone, but prime\.db-wal is there"):
        await SQLiteBackend.open(path)
    assert [file.name for file in path.parent.glob("prime.db*") if file.suffix != ".lock"] == ["prime.db-wal"]


async def test_a_store_whose_making_was_interrupted_is_made_again(path: Path) -> None:
    path.with_name("prime.db.new").write_bytes(b"half a store")
    await fill(path)
    async with await SQLiteBackend.open(path) as store:
        assert (await store.stats()).entries == 100


@pytest.mark.parametrize("directory", ["/proc/self", "/nowhere/at all"])
async def test_a_directory_that_takes_no_files_is_an_error(directory: str) -> None:
    with pytest.raises(StorageError, match=rf"^{directory}/prime\.db: (No such file|Permission|Operation)[\w ]+$"):
        await SQLiteBackend.open(Path(directory) / "prime.db")


async def test_a_full_disk_fails_the_put_and_loses_nothing(path: Path) -> None:
    database = open_database(path, synchronous="FULL")
    async with SQLiteBackend(database) as store:
        kept, large = make_entry(), make_entry(bytes(60_000), key=Key(b"/prime/large"))
        await store.put_entries([kept], now_us=NOW_US)
        (pages,) = database.writer.execute("PRAGMA page_count").fetchone()
        database.writer.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(StorageError, match=r"prime\.db: the disk is full"):
            await store.put_entries([large], now_us=NOW_US)
        assert await read_all(store, EntryQuery(key=KEY)) == [kept]
        assert await store.keys() == [KEY]
        database.writer.execute(f"PRAGMA max_page_count = {pages + 20}")
        assert [result.outcome for result in await store.put_entries([large], now_us=NOW_US)] == [PutOutcome.INSERTED]


@pytest.mark.parametrize(("synchronous", "level"), [("FULL", 2), ("NORMAL", 1)])
def test_the_setting_says_whether_a_commit_waits_for_the_disk(
    path: Path, synchronous: sqlite_file.Synchronous, level: int
) -> None:
    database = open_database(path, synchronous=synchronous)
    assert database.writer.execute("PRAGMA synchronous").fetchone() == (level,)
    assert database.writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


async def test_an_older_schema_is_brought_up_to_date_and_keeps_its_entries(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(path)
    later = (*sqlite_file.MIGRATIONS, "CREATE TABLE added (name TEXT); INSERT INTO meta VALUES ('added', x'01');")
    monkeypatch.setattr(sqlite_file, "MIGRATIONS", later)
    for _ in range(2):
        async with await SQLiteBackend.open(path) as store:
            assert await store.get_meta("added") == b"\x01"
            assert (await store.stats()).entries == 100


async def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(path)
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_file, "MIGRATIONS", (*sqlite_file.MIGRATIONS, "DROP TABLE meta; DROP TABLE absent;"))
        with pytest.raises(StorageError, match="no such table: absent"):
            await SQLiteBackend.open(path)
    async with await SQLiteBackend.open(path) as store:
        assert await store.get_meta("added") is None
        assert (await store.stats()).entries == 100
