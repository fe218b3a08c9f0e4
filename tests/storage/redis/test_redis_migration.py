"""A store in Redis of an older schema is brought up to date and keeps all it holds."""

from __future__ import annotations

from random import Random

import pytest

from prime_dht.entries.limits import Limits
from prime_dht.errors import ValidationError
from prime_dht.ids import KadKey, TimestampUs
from prime_dht.kad.keyspace import Prefix
from prime_dht.storage.base import OwnSlot
from prime_dht.storage.capacity import Capacity
from prime_dht.storage.memory import MemoryBackend
from prime_dht.storage.redis import RedisBackend
from prime_dht.testing.redis_server import RedisServer
from prime_dht.testing.storage_record_steps import transcript
from prime_dht.testing.storage_samples import NOW_US, make_entry, provider, record

NAMES = (b"a", b"\0", b"\0\1", b"\0\xff", *(b"%d" % number for number in range(250)))

BACK_TO_SCHEMA_1 = r"""
local rows, order = KEYS[1], KEYS[2]
for _, member in ipairs(redis.call('ZRANGE', order, 0, -1)) do
  local kind = member:sub(1, 1)
  local id = member:sub(2)
  if ({X = 1, x = 1, Y = 1, y = 1, w = 1, i = 1, O = 1})[kind] then
    redis.call('ZREM', order, member)
  elseif kind == 'k' or kind == 'm' then
    local expires = redis.call('HGET', rows, member):sub(1, 8)
    redis.call('ZADD', order, 0, kind:upper() .. expires .. id)
  end
end
redis.call('HDEL', rows, '#record_bytes', '#provider_bytes')
redis.call('HSET', rows, '#schema', '1')
"""
"""Leaves what the release before schema 2 wrote."""

BACK_TO_SCHEMA_2 = r"""
for _, member in ipairs(redis.call('ZRANGEBYLEX', KEYS[2], '[i', '(j')) do redis.call('ZREM', KEYS[2], member) end
redis.call('HSET', KEYS[1], '#schema', '2')
"""
"""Leaves what the release before schema 3 wrote."""

BACK_TO_SCHEMA_3 = r"""
for _, member in ipairs(redis.call('ZRANGEBYLEX', KEYS[2], '[O', '(P')) do redis.call('ZREM', KEYS[2], member) end
redis.call('HSET', KEYS[1], '#schema', '3')
"""
"""Leaves what the release before schema 4 wrote."""

DAY_US = 86_400_000_000


async def test_a_store_of_schema_1_keeps_its_records_and_gets_their_limits(
    redis_server: RedisServer, prefix: str
) -> None:
    entry = make_entry()
    async with RedisBackend.open(redis_server.url, prefix=prefix) as store:
        await store.put_entries([entry], now_us=NOW_US)
        for name in NAMES:
            await store.put_record(record(name), now_us=NOW_US)
            await store.add_provider(provider(b"peer", multihash=name, expires_at_us=900), now_us=NOW_US)
        before = await store.stats(), await store.records(), await store.providers()
    members = redis_server.command("ZCARD", f"{prefix}:order")
    redis_server.command("EVAL", BACK_TO_SCHEMA_1, "2", f"{prefix}:rows", f"{prefix}:order")
    async with RedisBackend.open(redis_server.url, prefix=prefix) as store:
        assert (await store.stats(), await store.records(), await store.providers()) == before
        assert redis_server.command("HGET", f"{prefix}:rows", "#schema") == "4"
        assert redis_server.command("ZCARD", f"{prefix}:order") == members
        held_bytes = sum(each.size_bytes for each in before[1])
        store.capacity.limits = Limits(max_records_bytes=held_bytes, max_providers=len(NAMES))
        with pytest.raises(ValidationError, match=f"{held_bytes + 5:,} bytes of plain records"):
            await store.put_record(record(b"b", value=b""), now_us=NOW_US)
        with pytest.raises(ValidationError, match="providers; the limit is 254"):
            await store.add_provider(provider(b"other"), now_us=NOW_US)
        store.capacity = Capacity(limits=Limits(max_providers=1), responsible=Prefix.of(KadKey(0), 0))
        await store.add_provider(provider(b"other"), now_us=900)
        assert [each.provider for each in await store.providers()] == [b"other"]
        gone = await store.delete_expired(now_us=1000, retire_before_us=0)
        assert gone.records == len(NAMES)
    assert redis_server.command("HMGET", f"{prefix}:rows", "#record_bytes", "#provider_bytes").split() == ["0", "0"]


async def test_a_migration_that_was_broken_off_is_begun_again(redis_server: RedisServer, prefix: str) -> None:
    async with RedisBackend.open(redis_server.url, prefix=prefix) as store, MemoryBackend() as memory:
        said = [await transcript(one, Random(1), steps=30) for one in (store, memory)]
        assert said[0] == said[1]
        before = await store.stats(), await store.records(), await store.providers()
    redis_server.command("HSET", f"{prefix}:rows", "#schema", "1")
    async with RedisBackend.open(redis_server.url, prefix=prefix) as store:
        assert (await store.stats(), await store.records(), await store.providers()) == before
        gone = await store.delete_expired(now_us=10_000, retire_before_us=0)
        assert (gone.records, gone.providers) == (before[0].records, before[0].providers)
    left = redis_server.command("ZCARD", f"{prefix}:order")
    assert left == "1"


async def test_the_ops_of_a_store_of_schema_2_are_found_by_how_their_ids_begin(
    redis_server: RedisServer, prefix: str
) -> None:
    ops = [make_entry(subkey=b"%d" % number, expires_at_us=DAY_US) for number in range(2500)]
    brief = make_entry(subkey=b"brief")
    keys = f"{prefix}:rows", f"{prefix}:order"
    async with RedisBackend.open(redis_server.url, prefix=prefix) as store:
        await store.put_entries([*ops, brief], now_us=NOW_US)
    members = redis_server.command("ZCARD", keys[1])
    redis_server.command("EVAL", BACK_TO_SCHEMA_2, "2", *keys)
    assert int(redis_server.command("ZCARD", keys[1])) == int(members) - len(ops)
    async with RedisBackend.open(redis_server.url, prefix=prefix) as store:
        assert redis_server.command("HGET", keys[0], "#schema") == "4"
        assert redis_server.command("ZCARD", keys[1]) == members
        found = await store.find_ops([entry.op_id[:8] for entry in (*ops, brief)])
        assert sorted(found) == sorted(entry.op_id for entry in ops)
        await store.remove_ops(found)
        assert await store.find_ops([entry.op_id[:8] for entry in ops]) == []


async def test_the_own_slots_of_a_store_of_schema_3_are_forgotten_in_their_time(
    redis_server: RedisServer, prefix: str
) -> None:
    slot = make_entry().slot
    owns = [
        OwnSlot(slot._replace(subkey=b"%d" % number), TimestampUs(100), TimestampUs(1000 + number))
        for number in range(250)
    ]
    keys = f"{prefix}:rows", f"{prefix}:order"
    async with RedisBackend.open(redis_server.url, prefix=prefix) as store:
        await store.put_own_slots(owns)
    members = redis_server.command("ZCARD", keys[1])
    redis_server.command("EVAL", BACK_TO_SCHEMA_3, "2", *keys)
    assert int(redis_server.command("ZCARD", keys[1])) == int(members) - len(owns)
    async with RedisBackend.open(redis_server.url, prefix=prefix) as store:
        assert redis_server.command("HGET", keys[0], "#schema") == "4"
        assert redis_server.command("ZCARD", keys[1]) == members
        gone = await store.delete_expired(now_us=2 * DAY_US, retire_before_us=DAY_US + 1100)
        assert gone.own_slots == 100
        assert {own.retain_until_us for own in await store.own_slots()} == set(range(1100, 1250))
