"""A store in Redis against one in memory: whatever is done to both, they say and hold the same, full or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, product
from random import Random
from typing import assert_never

from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.entries.entry import Entry
from prime_dht.entries.limits import Limits
from prime_dht.ids import KAD_KEY_BITS, US_PER_S, KadKey, Key, OpId
from prime_dht.kad.keyspace import Prefix
from prime_dht.storage.base import EntryQuery, StorageBackend
from prime_dht.storage.capacity import ALL_LOCATIONS, Capacity, location_of
from prime_dht.storage.memory import MemoryBackend
from prime_dht.storage.redis import RedisBackend
from prime_dht.testing.redis_server import RedisServer
from prime_dht.testing.storage_record_steps import transcript
from prime_dht.testing.storage_samples import NOW_US, bare, in_op_id_order, make_entry, read_all

KEYS = tuple(Key(b"/prime/%d" % i) for i in range(8))
HOUR_US = 3600 * US_PER_S
TIMES_US = st.integers(100, 160) | st.integers(HOUR_US, HOUR_US + 200)

ENTRIES = tuple(
    make_entry(
        value,
        key=key,
        writer=writer,
        subkey=subkey,
        created_at_us=created_at_us,
        expires_at_us=created_at_us + life_us,
        retain_until_us=created_at_us + life_us + 10 * (life_us % 3),
    )
    for (key, writer, subkey), value, created_at_us, life_us in product(
        ((KEYS[0], 0, b""), (KEYS[0], 1, b""), (KEYS[0], 0, b"s"), *((key, i % 3, b"") for i, key in enumerate(KEYS))),
        (b"one", None),
        (100, 110),
        (10, 45, HOUR_US),
    )
)
"""Those that live for an hour are ops."""

SOME_ENTRIES = st.lists(
    st.builds(lambda entry, is_bare: bare(entry) if is_bare else entry, st.sampled_from(ENTRIES), st.booleans()),
    max_size=8,
)


@dataclass(frozen=True, slots=True)
class Put:
    entries: Sequence[Entry]
    now_us: int


@dataclass(frozen=True, slots=True)
class Remove:
    op_ids: Sequence[OpId]


@dataclass(frozen=True, slots=True)
class DeleteExpired:
    now_us: int
    retire_before_us: int
    limit: int


Step = Put | Remove | DeleteExpired

STEPS = st.lists(
    st.one_of(
        st.builds(Put, SOME_ENTRIES, TIMES_US),
        st.builds(Remove, st.lists(st.sampled_from([entry.op_id for entry in ENTRIES]), max_size=4)),
        st.builds(DeleteExpired, TIMES_US, TIMES_US | st.just(1 << 62), st.sampled_from([3, 1000])),
    ),
    max_size=10,
)

SIZE_BYTES = max(entry.size_bytes for entry in ENTRIES)
SIZES_BYTES = st.integers(SIZE_BYTES, 6 * SIZE_BYTES)
LIMITS = st.builds(
    Limits,
    max_slots_per_key=st.integers(1, 3),
    max_store_entries=st.integers(1, 7),
    max_store_bytes=SIZES_BYTES,
    max_publisher_entries=st.integers(1, 4),
    max_publisher_bytes=SIZES_BYTES,
) | st.builds(Limits, max_store_entries=st.integers(1, 7), max_store_bytes=SIZES_BYTES)
ARCS = st.integers(1, 3).flatmap(
    lambda length: st.builds(Prefix, value=st.integers(0, (1 << length) - 1), length=st.just(length))
)
LOCALS = st.integers(0, 255).map(lambda top: KadKey(top << (KAD_KEY_BITS - 8)))
CAPACITIES = st.just(Capacity()) | st.builds(Capacity, limits=LIMITS, local=LOCALS, responsible=ARCS | st.none())

_numbers = count()


async def held_by(store: StorageBackend, now_us: int) -> list[object]:
    """All that a store says of its entries."""
    entries = [
        await read_all(store, EntryQuery(key=key, newest=newest, include_expired=expired, max_bytes=500), now_us=now_us)
        for key, newest, expired in product(KEYS, (False, True), (False, True))
    ]
    found = await store.get_ops([entry.op_id for entry in ENTRIES], now_us=0)
    ops = await store.ops(locations=ALL_LOCATIONS, created_us=range(1 << 62))
    after = ops[0].version if ops else None
    location = location_of(KEYS[0])
    return [
        entries,
        sorted(found, key=lambda entry: entry.op_id),
        await store.keys(),
        await store.stats(),
        ops,
        await store.ops(locations=ALL_LOCATIONS, created_us=range(100, 110), after=after, limit=2),
        await store.ops(locations=range(location, location + 1), created_us=range(101, 200)),
    ]


async def scanned(store: StorageBackend, limit: int) -> set[tuple[bytes, int, int]]:
    ops: list[tuple[bytes, int, int]] = []
    after = b""
    while True:
        page = await store.scan_ops(after=after, limit=limit)
        arrays = (page.op_ids, page.locations, page.created_at_us)
        assert [array.dtype.name for array in arrays] == ["uint8", "uint32", "int64"]
        columns = (page.op_ids, page.locations.tolist(), page.created_at_us.tolist())
        ops += [(op_id.tobytes(), location, at_us) for op_id, location, at_us in zip(*columns, strict=True)]
        after = page.next_cursor
        if not after:
            assert len(set(ops)) == len(ops)
            return set(ops)


@settings(derandomize=True, deadline=None, max_examples=120)
@given(steps=STEPS, capacity=CAPACITIES, now_us=TIMES_US)
async def test_a_store_in_redis_does_as_one_in_memory_does(
    redis_server: RedisServer, steps: Sequence[Step], capacity: Capacity, now_us: int
) -> None:
    prefix = f"laws {next(_numbers)}"
    memory = MemoryBackend(capacity)
    async with memory, RedisBackend.open(redis_server.url, prefix=prefix, capacity=capacity) as redis:
        for step in steps:
            match step:
                case Put(entries, at_us):
                    results = await memory.put_entries(entries, now_us=at_us)
                    assert await redis.put_entries(entries, now_us=at_us) == results
                case Remove(op_ids):
                    removed = await memory.remove_ops(op_ids)
                    assert set(await redis.remove_ops(op_ids)) == set(removed)
                case DeleteExpired(at_us, retire_before_us, limit):
                    expired = await memory.delete_expired(now_us=at_us, retire_before_us=retire_before_us, limit=limit)
                    said = await redis.delete_expired(now_us=at_us, retire_before_us=retire_before_us, limit=limit)
                    assert replace(said, retired=in_op_id_order(said.retired)) == replace(
                        expired, retired=in_op_id_order(expired.retired)
                    )
                case _:
                    assert_never(step)
        assert await held_by(redis, now_us) == await held_by(memory, now_us)
        assert await scanned(redis, 2) == await scanned(memory, 1000)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(data=st.data(), entries=st.lists(st.sampled_from(ENTRIES), max_size=25), now_us=TIMES_US)
async def test_the_same_entries_in_any_order_and_any_portions_make_equal_stores(
    redis_server: RedisServer, data: st.DataObject, entries: list[Entry], now_us: int
) -> None:
    prefix = f"orders {next(_numbers)}"
    async with MemoryBackend() as memory, RedisBackend.open(redis_server.url, prefix=prefix) as redis:
        for store in (memory, redis):
            left = data.draw(st.permutations(entries))
            while left:
                portion = data.draw(st.integers(1, len(left)))
                await store.put_entries(left[:portion], now_us=now_us)
                left = left[portion:]
        assert await held_by(redis, now_us) == await held_by(memory, now_us)


async def test_a_store_in_redis_takes_and_refuses_the_records_and_providers_that_one_in_memory_does(
    redis_server: RedisServer,
) -> None:
    for seed in range(20):
        async with MemoryBackend() as memory, RedisBackend.open(redis_server.url, prefix=f"records {seed}") as redis:
            said = await transcript(memory, Random(seed), steps=60)
            assert await transcript(redis, Random(seed), steps=60) == said, seed


FAR_AND_WIDE = tuple(
    make_entry(bytes(i % 3), key=Key(b"/prime/far/%d" % (i % 10)), writer=i % 3, created_at_us=100 + i)
    for i in range(60)
)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    portions=st.lists(st.lists(st.sampled_from(FAR_AND_WIDE), max_size=20), min_size=1, max_size=4),
    limits=st.builds(Limits, max_store_entries=st.integers(2, 12), max_store_bytes=st.integers(400, 4000)),
    local=LOCALS,
    responsible=ARCS,
)
async def test_a_full_store_in_redis_evicts_what_one_in_memory_does(
    redis_server: RedisServer, portions: list[list[Entry]], limits: Limits, local: KadKey, responsible: Prefix
) -> None:
    prefix = f"full {next(_numbers)}"
    capacity = Capacity(limits=limits, local=local, responsible=responsible)
    memory = MemoryBackend(capacity)
    async with memory, RedisBackend.open(redis_server.url, prefix=prefix, capacity=capacity) as redis:
        for portion in portions:
            results = await memory.put_entries(portion, now_us=NOW_US)
            assert await redis.put_entries(portion, now_us=NOW_US) == results
        assert await redis.keys() == await memory.keys()
        assert await redis.stats() == await memory.stats()
