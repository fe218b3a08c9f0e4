"""The Redis backend keeps every promise of the interface, and keeps to its prefix, against a real server."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from itertools import count

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prime_dht.entries.entry import Slot
from prime_dht.errors import NotWrittenError
from prime_dht.ids import US_PER_S, Key, PeerId, TimestampUs
from prime_dht.storage.base import EntryQuery, Op, OwnSlot, PutOutcome, StorageBackend
from prime_dht.storage.capacity import ALL_LOCATIONS
from prime_dht.storage.redis import NotDurableWarning, RedisBackend
from prime_dht.storage.redis_store import ABANDONED_AFTER_S
from prime_dht.testing.redis_server import RedisServer
from prime_dht.testing.storage_conformance import StorageConformance
from prime_dht.testing.storage_samples import (
    KEY,
    NOW_US,
    in_slot_order,
    known_peer,
    make_entry,
    provider,
    read_all,
    record,
)

StartRedis = Callable[..., RedisServer]

DAY_MS = 86_400_000
_numbers = count()


class TestRedisBackend(StorageConformance):
    @pytest.fixture
    async def backend(self, redis_server: RedisServer, prefix: str) -> AsyncIterator[StorageBackend]:
        async with RedisBackend.open(redis_server.url, prefix=prefix) as backend:
            yield backend


async def test_a_reopened_store_holds_all_it_held(redis_server: RedisServer, prefix: str) -> None:
    entry, tombstone = make_entry(subkey=b"a"), make_entry(None, subkey=b"b")
    own = OwnSlot(entry.slot, TimestampUs(100), TimestampUs(1000))
    async with RedisBackend.open(redis_server.url, prefix=prefix) as store:
        await store.put_entries([entry, tombstone], now_us=NOW_US)
        await store.put_record(record(b"a"), now_us=NOW_US)
        await store.add_provider(provider(b"a"), now_us=NOW_US)
        await store.put_peers([known_peer(b"a")])
        await store.put_own_slots([own])
        await store.put_meta("name", b"value")
        before = await store.stats()
    async with RedisBackend.open(redis_server.url, prefix=prefix) as store:
        assert await store.stats() == before
        assert await read_all(store, EntryQuery(key=KEY)) == [entry, tombstone]
        assert await store.records() == [record(b"a")]
        assert await store.get_providers(b"content", now_us=NOW_US) == [provider(b"a")]
        assert await store.peers() == [known_peer(b"a")]
        assert await store.own_slot(entry.slot) == own
        assert await store.get_meta("name") == b"value"


async def test_stores_with_different_prefixes_have_nothing_in_common(redis_server: RedisServer, prefix: str) -> None:
    old, new = make_entry(b"old", created_at_us=100), make_entry(b"new", created_at_us=101)
    async with (
        RedisBackend.open(redis_server.url, prefix=prefix) as one,
        RedisBackend.open(redis_server.url, prefix=f"{prefix}:rows") as other,
    ):
        await one.put_entries([new], now_us=NOW_US)
        await other.put_entries([old], now_us=NOW_US)
        await one.put_meta("name", b"one")
        assert await read_all(one, EntryQuery(key=KEY)) == [new]
        assert await read_all(other, EntryQuery(key=KEY)) == [old]
        assert await other.get_meta("name") is None
        assert await other.remove_ops([new.op_id]) == []


async def test_a_key_with_many_slots_is_read_to_its_end(redis_server: RedisServer, prefix: str) -> None:
    entries = [make_entry(writer=i % 3, subkey=b"%d" % i, created_at_us=100 + i % 7) for i in range(350)]
    newest = [entry for entry in entries if entry.header.created_at_us == 106]
    async with RedisBackend.open(redis_server.url, prefix=prefix) as store:
        await store.put_entries(entries, now_us=NOW_US)
        assert await read_all(store, EntryQuery(key=KEY, max_bytes=40_000)) == in_slot_order(entries)
        one_publisher = EntryQuery(key=KEY, publishers=(entries[0].publisher,))
        assert await read_all(store, one_publisher) == in_slot_order(entries[::3])
        greatest = max(newest, key=lambda entry: entry.op_id)
        assert await read_all(store, EntryQuery(key=KEY, newest=True)) == [greatest]


async def test_the_ops_of_a_crowded_sector_come_whole_and_in_order(redis_server: RedisServer, prefix: str) -> None:
    hour_us = 3600 * US_PER_S
    keys = (KEY, *(Key(b"/prime/%d" % i) for i in range(20)))
    entries = [
        make_entry(key=key, subkey=b"%d" % i, created_at_us=100 + i, expires_at_us=hour_us)
        for key in keys
        for i in range(100 if key == KEY else 3)
    ]
    async with RedisBackend.open(redis_server.url, prefix=prefix) as store:
        await store.put_entries(entries, now_us=NOW_US)
        pages: list[list[Op]] = []
        after = None
        while page := await store.ops(locations=ALL_LOCATIONS, created_us=range(100, 190), after=after, limit=50):
            pages.append(page)
            after = page[-1].version
        assert [len(page) for page in pages] == [50, 50, 50]
        in_time = [entry.version for entry in entries if entry.header.created_at_us < 190]
        assert [op.version for page in pages for op in page] == sorted(in_time)


async def test_ops_are_found_by_how_their_ids_begin_without_a_look_at_the_others(start_redis: StartRedis) -> None:
    server = start_redis()

    def calls() -> dict[str, int]:
        said = server.command("INFO", "commandstats")
        return {name: int(count) for name, count in re.findall(r"cmdstat_(\w+):calls=(\d+)", said)}

    async with RedisBackend.open(server.url, prefix="a") as store:
        ops = [make_entry(subkey=b"%d" % number, expires_at_us=DAY_MS * 1000) for number in range(1000)]
        await store.put_entries(ops, now_us=NOW_US)
        prefixes = [entry.op_id[:16] for entry in ops[:10]]
        before = calls()
        assert sorted(await store.find_ops(prefixes)) == sorted(entry.op_id for entry in ops[:10])
        after = calls()
    reads = {name: after[name] - before.get(name, 0) for name in after if name.startswith(("z", "hget"))}
    assert {name: count for name, count in reads.items() if count} == {"zrangebylex": 10, "hget": 1, "zscore": 1}


async def test_all_of_a_store_is_under_its_prefix(start_redis: StartRedis) -> None:
    server = start_redis()
    async with RedisBackend.open(server.url, prefix="node 1") as store:
        await store.put_entries([make_entry(key=Key(b"/prime/\r\n*"))], now_us=NOW_US)
        await store.put_record(record(b"a"), now_us=NOW_US)
        assert sorted(server.command("KEYS", "*").splitlines()) == ["node 1:lease", "node 1:order", "node 1:rows"]


async def test_an_abandoned_store_ends_a_month_after_all_it_holds_has_retired(
    redis_server: RedisServer, prefix: str
) -> None:
    weeks_us = 14 * 86_400 * US_PER_S
    month_ms = ABANDONED_AFTER_S * 1000

    def left_ms() -> list[int]:
        return [int(redis_server.command("PTTL", f"{prefix}:{part}")) for part in ("rows", "order")]

    async with RedisBackend.open(redis_server.url, prefix=prefix) as store:
        assert all(month_ms - DAY_MS < left <= month_ms for left in left_ms())
        await store.put_entries([make_entry(expires_at_us=NOW_US + weeks_us)], now_us=NOW_US)
        await store.put_entries([make_entry(subkey=b"brief")], now_us=NOW_US)
        assert all(13 * DAY_MS < left - month_ms <= 14 * DAY_MS for left in left_ms())


NAMES = st.lists(st.sampled_from([b"\0", b"\1", b"\2", b"\xff", b"a"]), min_size=1, max_size=4).map(b"".join)


@settings(derandomize=True, deadline=None, max_examples=20)
@example(names=[b"\0", b"\0\1", b"\0\xff", b"\0\0\1", b"a\0\1a", b"a"])
@given(names=st.lists(NAMES | st.binary(min_size=1, max_size=40), min_size=1, max_size=6, unique=True))
async def test_whatever_bytes_a_name_has_it_is_found_again_and_in_order(
    redis_server: RedisServer, names: list[bytes]
) -> None:
    keys = [Key(b"/prime/" + name) for name in names]
    entries = [make_entry(key=key, subkey=subkey, writer=i % 3) for key in keys for i, subkey in enumerate(names)]
    async with RedisBackend.open(redis_server.url, prefix=f"names {next(_numbers)}") as store:
        await store.put_entries(entries, now_us=NOW_US)
        for name in names:
            await store.put_record(record(name), now_us=NOW_US)
            await store.put_own_slots([OwnSlot(Slot(Key(b"k"), PeerId(name), name), TimestampUs(1), TimestampUs(2))])
            for peer in names:
                await store.add_provider(provider(peer, multihash=name), now_us=NOW_US)
        assert await store.keys() == sorted(keys)
        assert await store.keys(after=min(keys)) == sorted(keys)[1:]
        for key in keys:
            of_key = in_slot_order([entry for entry in entries if entry.header.key == key])
            assert await read_all(store, EntryQuery(key=key, max_bytes=1)) == of_key
        assert await store.records() == sorted(map(record, names), key=lambda record: record.key)
        assert [own.slot.subkey for own in await store.own_slots()] == sorted(names)
        provided = [(record.multihash, record.provider) for record in await store.providers()]
        assert provided == sorted((multihash, peer) for multihash in names for peer in names)
        for name in names:
            assert len(await store.get_providers(name, now_us=NOW_US)) == len(names)


@pytest.mark.parametrize(
    ("configuration", "risk"),
    [
        (("appendonly", "no"), r"appendonly no"),
        (("appendfsync", "no"), r"appendfsync no"),
        (("maxmemory", "1gb", "maxmemory-policy", "allkeys-lru"), r"maxmemory-policy is not noeviction"),
    ],
)
async def test_a_server_that_may_lose_what_it_acknowledged_is_warned_of(
    start_redis: StartRedis, configuration: tuple[str, ...], risk: str
) -> None:
    server = start_redis()
    server.command("CONFIG", "SET", *configuration)
    with pytest.warns(NotDurableWarning, match=rf"^redis://127\.0\.0\.1:\d+/0 prefix 'a': .*{risk}"):
        async with RedisBackend.open(server.url, prefix="a") as store:
            await store.put_meta("name", b"value")


async def test_a_server_that_does_not_tell_is_warned_of(start_redis: StartRedis) -> None:
    server = start_redis()
    server.command("ACL", "SETUSER", "node", "on", ">word", "~*", "+@all", "-config")
    with pytest.warns(NotDurableWarning, match="it does not tell"):
        async with RedisBackend.open(server.url.replace("//", "//node:word@"), prefix="a") as store:
            await store.put_meta("name", b"value")


async def test_a_full_server_refuses_what_is_new_and_still_gives_back_what_is_old(start_redis: StartRedis) -> None:
    server = start_redis(maxmemory_policy="noeviction")
    async with RedisBackend.open(server.url, prefix="a") as store:
        old = [make_entry(bytes(60_000), subkey=b"%d" % i) for i in range(50)]
        await store.put_entries(old, now_us=NOW_US)
        server.command("CONFIG", "SET", "maxmemory", "1mb")
        with pytest.raises(NotWrittenError, match=r"^redis://\S+: the server says: OOM .*$"):
            await store.put_entries([make_entry(expires_at_us=5000)], now_us=NOW_US)
        assert await read_all(store, EntryQuery(key=KEY)) == in_slot_order(old)
        assert len((await store.delete_expired(now_us=1001, retire_before_us=1001)).retired) == 50
        server.command("CONFIG", "SET", "maxmemory", "0")
        (result,) = await store.put_entries([make_entry(expires_at_us=5000)], now_us=NOW_US)
        assert result.outcome is PutOutcome.INSERTED
