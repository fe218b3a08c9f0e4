"""What goes wrong with a database file or its disk is a clear error, and loses nothing that was acknowledged."""

from __future__ import annotations

import errno
import os
import random
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from prime_dht.entries.entry import Entry
from prime_dht.errors import NotWrittenError, StorageError
from prime_dht.ids import Key
from prime_dht.storage import sqlite_file
from prime_dht.storage.base import EntryQuery, PutOutcome
from prime_dht.storage.offline import check
from prime_dht.storage.sqlite import SQLiteBackend
from prime_dht.storage.sqlite_check import CheckReport
from prime_dht.storage.sqlite_file import open_database
from prime_dht.testing.storage_samples import KEY, NOW_US, make_entry, read_all

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prime.db"


async def fill(path: Path, entries: int = 100) -> None:
    """Make a store of entries of 1 KiB."""
    async with await SQLiteBackend.open(path) as store:
        await store.put_entries([make_entry(bytes(1024), subkey=b"%d" % i) for i in range(entries)], now_us=NOW_US)


def files(path: Path) -> dict[str, bytes]:
    """What lies in the directory of a store, but for its lock."""
    return {file.name: file.read_bytes() for file in path.parent.iterdir() if file.suffix != ".lock"}


def contents(path: Path) -> bytes:
    return path.read_bytes()


def put_there(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def empty(path: Path) -> None:
    put_there(path, b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite(path: Path) -> None:
    path.write_bytes(random.Random(7).randbytes(path.stat().st_size))


def overwrite_entries(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'entries'").fetchone()
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
        (put_another_programs_database_there, "not a store of prime_dht; it was left as it is"),
        (put_a_future_schema_there, r"written by a newer prime_dht \(schema 1000; this one knows 4\); left as it is"),
    ],
)
async def test_a_file_that_is_whole_but_not_for_us_is_refused_and_left_as_it_is(
    path: Path, damage: Callable[[Path], None], meaning: str
) -> None:
    await fill(path)
    damage(path)
    before = files(path)
    for _ in range(2):
        with pytest.raises(StorageError, match=rf"^\S+prime\.db: {meaning}$"):
            await SQLiteBackend.open(path)
    assert files(path) == before


@pytest.mark.parametrize(
    ("damage", "meaning"),
    [(empty, "damaged, it is empty"), (truncate, "damaged"), (overwrite, "damaged, or not a database")],
)
async def test_a_damaged_file_is_moved_aside_and_no_empty_one_takes_its_place(
    path: Path, damage: Callable[[Path], None], meaning: str
) -> None:
    await fill(path)
    damage(path)
    damaged = contents(path)
    with pytest.raises(
        StorageError, match=rf"^\S+prime\.db: {meaning}; it was moved to prime\.db\.corrupt-\d{{8}}T\S+Z: "
    ):
        await SQLiteBackend.open(path)
    (aside,) = files(path)
    assert files(path) == {aside: damaged}
    for _ in range(2):
        with pytest.raises(StorageError, match=rf"prime\.db: it is gone, but {aside} is there; move that away"):
            await SQLiteBackend.open(path)
    assert files(path) == {aside: damaged}


async def test_a_store_that_the_disk_can_read_when_it_is_asked_again_stays_where_it_is(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(path)
    connections = 0

    class Unread(sqlite3.Connection):
        def execute(self, *arguments: Any) -> sqlite3.Cursor:
            if connections == 1 and "user_version" in arguments[0]:
                error = sqlite3.DatabaseError("database disk image is malformed")  # as SQLite calls EIO of a read
                error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise error
            return super().execute(*arguments)

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        nonlocal connections
        connections += 1
        return connected(*arguments, factory=Unread, **options)

    connected = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", connect)
    async with await SQLiteBackend.open(path) as store:
        assert (await store.stats()).entries == 100


async def test_a_look_at_a_damaged_file_changes_neither_it_nor_its_journal(path: Path) -> None:
    async with await SQLiteBackend.open(path) as store:
        await store.put_entries([make_entry()], now_us=NOW_US)
        journal = files(path)["prime.db-wal"]
    overwrite(path)
    put_there(path.with_name("prime.db-wal"), journal)
    before = files(path)
    assert (await check(path)).problems == (f"{path}: damaged, or not a database",)
    assert before.items() <= files(path).items()


async def test_a_first_page_that_was_ruined_while_the_journal_was_played_in_comes_back_from_the_journal(
    path: Path,
) -> None:
    async with await SQLiteBackend.open(path) as store:
        await store.put_entries([make_entry(bytes(1024), subkey=b"%d" % i) for i in range(100)], now_us=NOW_US)
        left = files(path)
    put_there(path, bytes(sqlite_file.PAGE_BYTES) + left["prime.db"][sqlite_file.PAGE_BYTES :])
    put_there(path.with_name("prime.db-wal"), left["prime.db-wal"])
    async with await SQLiteBackend.open(path) as store:
        assert (await store.stats()).entries == 100
    assert (await check(path)).problems == ()


async def test_a_backup_in_the_place_of_a_damaged_file_is_opened(path: Path) -> None:
    await fill(path)
    backup = contents(path)
    truncate(path)
    with pytest.raises(StorageError, match="it was moved to"):
        await SQLiteBackend.open(path)
    put_there(path, backup)
    async with await SQLiteBackend.open(path) as store:
        assert (await store.stats()).entries == 100


async def test_whoever_moves_a_damaged_file_away_starts_afresh(path: Path) -> None:
    await fill(path)
    overwrite(path)
    with pytest.raises(StorageError, match="it was moved to"):
        await SQLiteBackend.open(path)
    (aside,) = files(path)
    path.with_name(aside).unlink()
    async with await SQLiteBackend.open(path) as store:
        assert (await store.stats()).entries == 0


async def test_the_journal_of_a_damaged_file_is_moved_with_it(path: Path) -> None:
    async with await SQLiteBackend.open(path) as store:
        await store.put_entries([make_entry()], now_us=NOW_US)
        journal = files(path)["prime.db-wal"]
    overwrite(path)
    put_there(path.with_name("prime.db-wal"), journal)
    with pytest.raises(StorageError, match="it was moved to"):
        await SQLiteBackend.open(path)
    aside = min(files(path))
    assert files(path)[f"{aside}-wal"] == journal
    assert all(name.startswith(aside) for name in files(path))


@pytest.mark.parametrize(("is_started_before", "is_checked"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("steps", range(5))
async def test_whoever_is_killed_while_a_damaged_file_is_moved_leaves_it_with_its_journal_and_a_backup_without(
    path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, is_started_before: bool, is_checked: bool
) -> None:
    async with await SQLiteBackend.open(path) as store:
        await store.put_entries([make_entry()], now_us=NOW_US)
        journal, backup = files(path)["prime.db-wal"], contents(path)
    overwrite(path)
    damaged = contents(path)
    put_there(path.with_name("prime.db-wal"), journal)
    left = steps

    def counted(step: Callable[..., None]) -> Callable[..., None]:
        def take(*arguments: object, **options: object) -> None:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            step(*arguments, **options)

        return take

    with monkeypatch.context() as patch:
        for step in (os.link, os.rename, os.unlink):
            patch.setattr(os, step.__name__, counted(step))
        with pytest.raises((KeyboardInterrupt, StorageError)):
            await SQLiteBackend.open(path)
    is_moved = path.name not in files(path)
    for _ in range(2 if is_started_before or not is_moved else 0):
        with pytest.raises(StorageError, match=r"it was moved to|it is gone, but \S+ is there"):
            await SQLiteBackend.open(path)
    put_there(path, backup)
    if is_checked:
        assert await check(path) == CheckReport(entries=0, problems=())
    async with await SQLiteBackend.open(path) as store:
        assert (await store.stats()).entries == 0
    del (left_there := files(path))["prime.db"]
    aside = min(name for name in left_there if not name.endswith("-wal"))
    assert left_there[aside] == damaged
    assert left_there[f"{aside}-wal"] == journal


async def test_a_damaged_file_is_moved_with_its_journal_where_a_file_can_have_one_name_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    async with await SQLiteBackend.open(path) as store:
        await store.put_entries([make_entry()], now_us=NOW_US)
        journal = files(path)["prime.db-wal"]
    overwrite(path)
    damaged = contents(path)
    put_there(path.with_name("prime.db-wal"), journal)
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError, match="it was moved to"):
        await SQLiteBackend.open(path)
    aside = min(files(path))
    assert files(path) == {aside: damaged, f"{aside}-wal": journal}


async def test_a_store_that_is_brought_back_has_its_journal_though_an_earlier_one_is_damaged(
    path: Path,
) -> None:
    damaged = path.with_name("prime.db.corrupt-20200101T000000.000000Z")
    put_there(damaged, b"damaged")
    async with await SQLiteBackend.open(path.with_name("other.db")) as store:
        await store.put_entries([make_entry()], now_us=NOW_US)
        put_there(path.with_name("prime.db-wal"), contents(path.with_name("other.db-wal")))
        away = contents(path.with_name("other.db"))
    with pytest.raises(StorageError, match="it is gone, but"):
        await SQLiteBackend.open(path)
    put_there(path, away)
    async with await SQLiteBackend.open(path) as store:
        assert (await store.stats()).entries == 1


async def test_damage_inside_the_file_is_an_error_when_it_is_read(path: Path) -> None:
    await fill(path)
    overwrite_entries(path)
    async with await SQLiteBackend.open(path) as store:
        with pytest.raises(StorageError, match=r"prime\.db: damaged$"):
            await store.get_entries(EntryQuery(key=KEY), now_us=NOW_US)


async def test_a_value_that_rotted_is_an_error_and_not_a_value(path: Path) -> None:
    await fill(path, entries=1)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE entries SET value = ?", (bytes(1023) + b"\x01",))
    async with await SQLiteBackend.open(path) as store:
        with pytest.raises(StorageError, match="SHA-256"):
            await store.get_entries(EntryQuery(key=KEY), now_us=NOW_US)


async def test_a_journal_whose_store_is_gone_is_not_played_into_a_new_one(path: Path) -> None:
    put_there(path.with_name("prime.db-wal"), b"journal")
    with pytest.raises(StorageError, match=r"it is gone, but prime\.db-wal is there"):
        await SQLiteBackend.open(path)
    assert files(path) == {"prime.db-wal": b"journal"}


async def test_a_store_whose_making_was_interrupted_is_made_again(path: Path) -> None:
    put_there(path.with_name("prime.db.new"), b"half a store")
    await fill(path)
    async with await SQLiteBackend.open(path) as store:
        assert (await store.stats()).entries == 100


@pytest.mark.parametrize("directory", ["/proc/self", "/nowhere/at all"])
async def test_a_directory_that_takes_no_files_is_an_error(directory: str) -> None:
    with pytest.raises(StorageError, match=rf"^{directory}/prime\.db: (No such file|Permission|Operation)[\w ]+$"):
        await SQLiteBackend.open(Path(directory) / "prime.db")


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Let nobody write into a directory. Root may all the same, so be somebody else meanwhile, who has its files."""
    is_root = os.geteuid() == 0
    directory.chmod(0o555)
    if is_root:
        for file in directory.iterdir():
            os.chown(file, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        directory.chmod(0o755)


async def test_a_read_only_directory_is_an_error_and_what_is_in_it_stays() -> None:
    with TemporaryDirectory() as name:  # not in pytest's, which others than its owner cannot even look into
        path = Path(name) / "prime.db"
        with read_only(path.parent), pytest.raises(StorageError, match=r"prime\.db: Permission denied$"):
            await SQLiteBackend.open(path)
        await fill(path)
        with read_only(path.parent), pytest.raises(StorageError, match=r"prime\.db: it cannot be (opened|written)$"):
            await SQLiteBackend.open(path)
        async with await SQLiteBackend.open(path) as store:
            assert (await store.stats()).entries == 100


async def test_a_full_disk_fails_the_put_and_loses_nothing(path: Path) -> None:
    database = open_database(path, synchronous="FULL")
    async with SQLiteBackend(database) as store:
        kept, large = make_entry(), make_entry(bytes(60_000), key=Key(b"/prime/large"))
        await store.put_entries([kept], now_us=NOW_US)
        (pages,) = database.writer.execute("PRAGMA page_count").fetchone()
        database.writer.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(NotWrittenError, match=r"prime\.db: the disk is full"):
            await store.put_entries([large], now_us=NOW_US)
        assert await read_all(store, EntryQuery(key=KEY)) == [kept]
        assert await store.keys() == [KEY]
        database.writer.execute(f"PRAGMA max_page_count = {pages + 20}")
        assert [result.outcome for result in await store.put_entries([large], now_us=NOW_US)] == [PutOutcome.INSERTED]


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size: to SQLite that is a disk that fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_store_that_is_opened_on_a_full_disk_says_so_and_loses_nothing(path: Path) -> None:
    await fill(path)
    before = contents(path)
    with files_of_at_most(1000), pytest.raises(StorageError, match=r"prime\.db: the disk is full"):
        await SQLiteBackend.open(path)
    assert contents(path) == before
    async with await SQLiteBackend.open(path) as store:
        assert (await store.stats()).entries == 100


async def test_a_journal_that_cannot_grow_fails_puts_until_it_can_and_what_was_acknowledged_stays(path: Path) -> None:
    acknowledged: list[Entry] = []
    refused = 0
    async with await SQLiteBackend.open(path) as store:
        with files_of_at_most(1 << 20):
            for number in range(40):
                entry = make_entry(bytes(60_000), key=Key(b"/prime/%d" % number))
                try:
                    await store.put_entries([entry], now_us=NOW_US)
                except StorageError as error:
                    assert str(error) == f"{path}: disk I/O error"  # noqa: PT017 - the others are to go on
                    refused += 1
                else:
                    acknowledged.append(entry)
        assert len(acknowledged) > 3
        assert refused > 3
        acknowledged.append(entry)
        await store.put_entries([entry], now_us=NOW_US)
    async with await SQLiteBackend.open(path) as store:
        assert await store.keys() == sorted(entry.header.key for entry in acknowledged)
        assert await store.get_ops([entry.op_id for entry in acknowledged], now_us=NOW_US) == acknowledged
    assert (await check(path)).problems == ()


async def test_closing_on_a_full_disk_keeps_the_journal_for_the_next_time(path: Path) -> None:
    store = await SQLiteBackend.open(path)
    entries = [make_entry(bytes(60_000), key=Key(b"/prime/%d" % number)) for number in range(5)]
    await store.put_entries(entries, now_us=NOW_US)
    with files_of_at_most(len(contents(path))):
        await store.aclose()
    assert "prime.db-wal" in files(path)
    async with await SQLiteBackend.open(path) as store:
        assert (await store.stats()).entries == 5
