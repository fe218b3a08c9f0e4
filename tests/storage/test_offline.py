"""A store whose node does not run is described, checked, written to a file and read back."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from prime_dht.errors import StorageError, ValidationError
from prime_dht.ids import Key
from prime_dht.storage.base import StoreStats
from prime_dht.storage.offline import check, describe, export, import_
from prime_dht.storage.sqlite import SQLiteBackend
from prime_dht.testing.storage_samples import NOW_US, make_entry, provider

ENTRIES = [make_entry(b"value", key=Key(b"/prime/%d" % (n // 2)), writer=n % 3, subkey=b"%d" % n) for n in range(60)]


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    path = tmp_path / "prime.db"
    async with await SQLiteBackend.open(path) as store:
        await store.put_entries(ENTRIES, now_us=NOW_US)
        await store.add_provider(provider(b"a"), now_us=NOW_US)
    return path


async def test_a_description_counts_what_is_there(path: Path) -> None:
    info = await describe(path)
    size_bytes = sum(entry.size_bytes for entry in ENTRIES)
    assert info.stats == StoreStats(keys=30, entries=60, bytes=size_bytes, records=0, providers=1, peers=0, ops=0)
    assert (info.schema, info.publishers) == (4, 3)
    assert info.file_bytes > size_bytes
    assert info.free_bytes == info.journal_bytes == 0


async def test_a_journal_that_was_left_over_is_counted_beside_the_file(path: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed.db"
    async with await SQLiteBackend.open(path) as store:
        await store.put_entries([make_entry(bytes(50_000), key=Key(b"/prime/late"))], now_us=NOW_US)
        for suffix in ("", "-wal"):
            killed.with_name(killed.name + suffix).write_bytes(path.with_name(path.name + suffix).read_bytes())
    info = await describe(killed)
    assert info.journal_bytes > 50_000
    assert info.stats.entries == 61


async def test_a_sound_store_passes_the_check_with_progress(path: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = await check(path, progress=lambda *call: calls.append(call))
    assert (report.entries, report.problems) == (60, ())
    assert calls == [(0, 60), (60, 60)]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("UPDATE entries SET value = x'00' WHERE id = 7", "entry 7: the value has 1 bytes; its header says 5"),
        ("UPDATE entries SET value = x'76616c756f' WHERE id = 7", "entry 7: the value's SHA-256 is not what"),
        ("UPDATE entries SET op_id = zeroblob(32) WHERE id = 7", "entry 7: not what its envelope says: op_id"),
        ("UPDATE entries SET statement = substr(statement, 2) WHERE id = 7", "entry 7: not an envelope"),
        (
            "UPDATE entries SET location = 0, retain_until_us = 5 WHERE id = 7",
            "entry 7: not what its envelope says: location, retain_until_us",
        ),
        ("UPDATE entries SET sector = 1 WHERE id = 7", "entry 7: not what its envelope says: sector"),
        ("UPDATE entries SET publisher = 99 WHERE id = 7", "entry 7: its publisher is not known"),
        ("UPDATE totals SET keys = 31", "it counts 31 keys, but holds 30"),
        ("UPDATE totals SET entries = 61", "it counts 61 entries, but holds 60"),
        ("UPDATE totals SET ops = 61", "it counts 61 ops, but holds 0"),
        ("UPDATE totals SET bytes = 1", "it counts 1 bytes, but holds"),
        ("UPDATE totals SET records = 1", "it counts 1 plain records, but holds 0"),
        ("UPDATE totals SET record_bytes = 1", "it counts 1 bytes of plain records, but holds 0"),
        ("UPDATE totals SET providers = 2", "it counts 2 providers, but holds 1"),
        ("DELETE FROM providers", "bytes of providers, but holds 0"),
        ("UPDATE publishers SET bytes = bytes + 1 WHERE id = 1", "the counts of 1 publishers are wrong"),
        ("INSERT INTO publishers (peer, entries, bytes) VALUES (x'00', 1, 1)", "the counts of 1 publishers are wrong"),
        (
            "DROP INDEX entries_by_slot; UPDATE entries SET key = x'00', subkey = x'' WHERE publisher = 1",
            "1 slots hold more than one entry",
        ),
    ],
)
async def test_a_check_tells_what_is_wrong(path: Path, change: str, problem: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(change)
    report = await check(path)
    assert any(problem in one for one in report.problems), report.problems


async def test_a_check_tells_what_sqlite_finds(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "PRAGMA writable_schema = ON;"
            "UPDATE sqlite_schema SET sql = 'CREATE INDEX entries_by_retention ON entries (created_at_us)'"
            " WHERE name = 'entries_by_retention';"
        )
    assert any(problem.startswith("SQLite: ") for problem in (await check(path)).problems)


async def test_a_check_of_a_file_cut_short_reports_and_touches_nothing(path: Path) -> None:
    whole = cut(path)
    before = files(path)
    report = await check(path)
    assert report.problems == (f"{path}: damaged",)
    assert files(path) == before
    assert len(before["prime.db"]) < len(whole)


def cut(path: Path) -> bytes:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return whole


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.parent.iterdir() if file.suffix != ".lock"}


async def test_where_there_is_no_store_nothing_is_made(tmp_path: Path) -> None:
    path = tmp_path / "prime.db"
    with pytest.raises(StorageError, match="there is no store"):
        await describe(path)
    with pytest.raises(StorageError, match="there is no store"):
        await check(path)
    with pytest.raises(StorageError, match="there is no store"):
        await export(path, io.BytesIO(), now_us=NOW_US)
    assert list(entries_in(tmp_path)) == []


def entries_in(directory: Path) -> Iterator[Path]:
    return directory.iterdir()


async def test_a_store_of_an_older_schema_is_left_for_its_node_to_bring_up_to_date(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 1")
    for look in (describe, check):
        with pytest.raises(StorageError, match="of schema 1; a node that opens it brings it to 4"):
            await look(path)


async def test_an_open_store_is_not_looked_into(path: Path) -> None:
    async with await SQLiteBackend.open(path):
        for look in (describe, check):
            with pytest.raises(StorageError, match="another process has it open"):
                await look(path)
    await check(path)


async def test_what_is_exported_can_be_imported(path: Path, tmp_path: Path) -> None:
    file = io.BytesIO()
    lines = await export(path, file, now_us=NOW_US)
    assert lines == 1 + len(ENTRIES) + 1 + 1
    file.seek(0)
    with pytest.raises(ValidationError, match="no dump of prime_dht"):
        await import_(tmp_path / "none.db", io.BytesIO(b"something else"), now_us=NOW_US)
    assert not (tmp_path / "none.db").exists()
    report = await import_(tmp_path / "other.db", file, now_us=NOW_US)
    assert (report.refused, report.is_whole) == (0, True)
    assert (await describe(tmp_path / "other.db")).stats == (await describe(path)).stats
