"""A store of an older schema is brought up to date and keeps all it holds."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from prime_dht.entries.limits import Limits
from prime_dht.errors import StorageError
from prime_dht.ids import KadKey, TimestampUs, kad_key
from prime_dht.kad.keyspace import Prefix
from prime_dht.storage.base import EntryQuery, OwnSlot
from prime_dht.storage.capacity import Capacity
from prime_dht.storage.offline import check
from prime_dht.storage.sqlite import SQLiteBackend
from prime_dht.storage.sqlite_schema import MIGRATIONS
from prime_dht.testing.storage_samples import (
    KEY,
    NOW_US,
    OTHER_KEY,
    bare,
    in_slot_order,
    known_peer,
    make_entry,
    provider,
    read_all,
    record,
)

VERSION_1 = Path(__file__).with_name("version_1.sql")
VERSION_2 = Path(__file__).with_name("version_2.sql")
DAY_US = 86_400_000_000
PATCHED = "prime_dht.storage.sqlite_file.MIGRATIONS"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prime.db"


def restore(script: Path, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script.read_text())


async def test_a_store_of_schema_1_is_found_as_it_was_left(path: Path) -> None:
    restore(VERSION_1, path)
    first = make_entry(b"value", subkey=b"a")
    under_key = [
        first,
        make_entry(None, subkey=b"b"),
        make_entry(b"longer", writer=2, subkey=b"c", expires_at_us=DAY_US),
        bare(make_entry(b"expired on arrival", writer=1, subkey=b"d", expires_at_us=200, retain_until_us=DAY_US)),
        make_entry(b"an op", writer=1, subkey=b"e", expires_at_us=300_000_100),
        make_entry(b"no op", writer=1, subkey=b"f", expires_at_us=300_000_099),
    ]
    under_other_key = [
        make_entry(b"another", writer=1, key=OTHER_KEY, created_at_us=150),
        make_entry(
            b"",
            writer=2,
            key=OTHER_KEY,
            subkey=b"\x00\xff",
            created_at_us=120,
            expires_at_us=300,
            retain_until_us=DAY_US,
        ),
    ]
    for _ in range(2):
        async with await SQLiteBackend.open(path) as store:
            everything = EntryQuery(key=KEY, include_expired=True)
            assert await read_all(store, everything) == in_slot_order(under_key)
            assert await read_all(store, EntryQuery(key=OTHER_KEY)) == in_slot_order(under_other_key)
            for entry in under_key + under_other_key:
                assert await store.get_ops([entry.op_id], now_us=NOW_US) == [entry]
            ops = await store.ops(locations=range(1 << 32), created_us=range(DAY_US))
            assert {op.op_id for op in ops} == {entry.op_id for entry in (*under_key[2:5], under_other_key[1])}
            assert await store.records() == [record(b"a")]
            assert await store.get_providers(b"content", now_us=NOW_US) == [provider(b"a")]
            assert await store.peers() == [known_peer(b"a")]
            assert await store.own_slot(first.slot) == OwnSlot(first.slot, TimestampUs(100), TimestampUs(1000))
            assert await store.get_meta("name") == b"value"
            stats = await store.stats()
            assert (stats.keys, stats.entries, stats.ops) == (2, 8, 4)
            assert stats.bytes == sum(entry.size_bytes for entry in under_key + under_other_key)
    assert (await check(path)).problems == ()


async def test_a_store_of_schema_2_keeps_its_records_and_counts_and_places_them(path: Path) -> None:
    restore(VERSION_2, path)
    first = make_entry(b"value", subkey=b"a")
    records = [
        record(b"a"),
        replace(record(b"b", value=b"longer record", expires_at_us=500), publisher=first.publisher),
    ]
    providers = [
        provider(b"a", expires_at_us=700),
        provider(b"b"),
        provider(b"a", multihash=b"other content", expires_at_us=600),
    ]
    async with await SQLiteBackend.open(path) as store:
        assert await read_all(store, EntryQuery(key=KEY)) == [first]
        assert await store.records() == records
        assert await store.providers() == providers
        stats = await store.stats()
        assert (stats.keys, stats.entries, stats.records, stats.providers, stats.peers) == (2, 2, 2, 3, 1)
    assert (await check(path)).problems == ()
    near = min((record(b"%d" % number) for number in range(10)), key=lambda each: kad_key(each.key))
    near_content = min((b"%d" % number for number in range(10)), key=kad_key)
    limits = Limits(max_records=2, max_providers=3)
    capacity = Capacity(limits=limits, responsible=Prefix.of(KadKey(0), 256))
    async with await SQLiteBackend.open(path, capacity=capacity) as store:
        await store.put_record(near, now_us=NOW_US)
        furthest = max(records, key=lambda each: kad_key(each.key))
        assert {each.key for each in await store.records()} == {near.key, *(one.key for one in records)} - {
            furthest.key
        }
        await store.add_provider(provider(b"c", multihash=near_content), now_us=NOW_US)
        left = {(each.multihash, each.provider) for each in await store.providers()}
        furthest_content = max((b"content", b"other content"), key=kad_key)
        gone = min((one for one in providers if one.multihash == furthest_content), key=lambda one: one.expires_at_us)
        before = {(one.multihash, one.provider) for one in providers}
        assert left == before - {(gone.multihash, gone.provider)} | {(near_content, b"c")}


async def fill(path: Path) -> None:
    async with await SQLiteBackend.open(path) as store:
        await store.put_entries([make_entry(subkey=b"%d" % i) for i in range(100)], now_us=NOW_US)


async def test_an_older_schema_is_brought_up_to_date_and_keeps_its_entries(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(path)
    later = (*MIGRATIONS, "CREATE TABLE added (name TEXT); INSERT INTO meta VALUES ('added', x'01');")
    monkeypatch.setattr(PATCHED, later)
    for _ in range(2):
        async with await SQLiteBackend.open(path) as store:
            assert await store.get_meta("added") == b"\x01"
            assert (await store.stats()).entries == 100


async def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(path)
    with monkeypatch.context() as patch:
        patch.setattr(PATCHED, (*MIGRATIONS, "DROP TABLE meta; DROP TABLE absent;"))
        with pytest.raises(StorageError, match="no such table: absent"):
            await SQLiteBackend.open(path)
    async with await SQLiteBackend.open(path) as store:
        assert await store.get_meta("added") is None
        assert (await store.stats()).entries == 100
