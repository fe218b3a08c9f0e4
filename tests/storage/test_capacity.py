"""Full stores: whatever is put, limits hold, what matters stays, all that goes is told, and backends agree."""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.entries.entry import Entry
from prime_dht.entries.limits import Limits
from prime_dht.ids import KAD_KEY_BITS, KadKey, Key, OpId, kad_key
from prime_dht.kad.keyspace import Prefix
from prime_dht.storage.base import Gone, PutOutcome, PutResult, StorageBackend
from prime_dht.storage.capacity import LOCATION_BITS, Capacity, furthest_first, locations_of
from prime_dht.storage.memory import MemoryBackend
from prime_dht.storage.offline import describe
from prime_dht.storage.sqlite import SQLiteBackend
from prime_dht.testing.storage_samples import NOW_US, make_entry

LOCATIONS = st.integers(0, (1 << LOCATION_BITS) - 1)


@settings(derandomize=True)
@given(held=st.sets(st.one_of(LOCATIONS, st.integers(0, 40))), near=LOCATIONS, length=st.integers(0, LOCATION_BITS))
def test_locations_come_by_their_distance_without_those_of_the_arc(held: set[int], near: int, length: int) -> None:
    ordered = sorted(held)
    spared = locations_of(Prefix.of(KadKey(near << (KAD_KEY_BITS - LOCATION_BITS)), length))

    def held_in(block: range) -> tuple[int, int] | None:
        within = ordered[bisect_left(ordered, block.start) : bisect_left(ordered, block.stop)]
        return (within[0], within[-1]) if within else None

    outside = [location for location in held if location not in spared]
    outside.sort(key=lambda location: location ^ near, reverse=True)
    assert list(furthest_first(held_in, near=near, spared=spared)) == outside


@settings(derandomize=True)
@given(key=st.integers(0, (1 << KAD_KEY_BITS) - 1), length=st.integers(0, LOCATION_BITS))
def test_the_locations_of_an_arc_are_those_of_its_keys(key: int, length: int) -> None:
    arc = Prefix.of(KadKey(key), length)
    below_bits = KAD_KEY_BITS - LOCATION_BITS
    locations = locations_of(arc)
    assert len(locations) == 1 << (LOCATION_BITS - length)
    assert arc.covers(KadKey(locations[0] << below_bits))
    assert arc.covers(KadKey(((locations[-1] + 1) << below_bits) - 1))


async def test_a_slot_whose_entry_need_not_be_retained_counts_it_as_evicted_where_room_is_made_of_it(
    tmp_path: Path,
) -> None:
    old = make_entry(created_at_us=100, expires_at_us=150)
    newer = make_entry(bytes(500), created_at_us=101)
    limits = Limits(max_store_bytes=newer.size_bytes + 1)
    other = make_entry(subkey=b"other", expires_at_us=160)
    for store in (MemoryBackend(), await SQLiteBackend.open(tmp_path / "prime.db")):
        async with store:
            await store.put_entries([old, other], now_us=140)
            store.capacity = Capacity(limits=limits)
            (result,) = await store.put_entries([newer], now_us=200)
            assert result == PutResult(PutOutcome.INSERTED, evicted=(Gone.of(old), Gone.of(other)))


async def test_a_publisher_of_whom_nothing_is_left_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "prime.db"
    first, second = make_entry(writer=0), make_entry(writer=1)
    async with await SQLiteBackend.open(path, capacity=Capacity(limits=Limits(max_store_entries=1))) as store:
        await store.put_entries([first], now_us=NOW_US)
        await store.remove_ops([first.op_id])
        brief = make_entry(writer=2, expires_at_us=150)
        results = await store.put_entries([brief, second], now_us=NOW_US)
        assert results[1].evicted == (Gone.of(brief),)  # which came and went in one call
    assert (await describe(path)).publishers == 1


ENTRIES = tuple(
    make_entry(
        bytes(value_bytes),
        key=Key(b"/prime/%d" % number),
        writer=writer,
        subkey=subkey,
        created_at_us=created_at_us,
        expires_at_us=created_at_us + life_us,
        retain_until_us=created_at_us + life_us + value_bytes,
    )
    for number, writer, subkey, value_bytes, created_at_us, life_us in product(
        range(8), (0, 1), (b"", b"s"), (0, 30, 300), (100, 110), (20, 500)
    )
)
BY_OP_ID = {entry.op_id: entry for entry in ENTRIES}
TIMES_US = st.integers(110, 200)
PUTS = st.lists(st.tuples(st.lists(st.sampled_from(ENTRIES), min_size=1, max_size=5), TIMES_US), max_size=12)
LIMITS = st.builds(
    Limits,
    max_store_entries=st.integers(1, 8),
    max_store_bytes=st.integers(500, 4000),
    max_publisher_entries=st.integers(1, 6),
    max_publisher_bytes=st.integers(500, 3000),
    max_slots_per_key=st.integers(1, 3),
)
LOCALS = st.integers(0, (1 << KAD_KEY_BITS) - 1).map(KadKey)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(puts=PUTS, limits=LIMITS, local=LOCALS, length=st.none() | st.integers(0, 5))
async def test_limits_hold_and_what_goes_is_told_and_may_go(
    puts: Sequence[tuple[Sequence[Entry], int]], limits: Limits, local: KadKey, length: int | None
) -> None:
    arc = None if length is None else Prefix.of(local, length)
    store = MemoryBackend(Capacity(limits=limits, local=local, responsible=arc))
    held: set[OpId] = set()
    for entries, now_us in puts:
        for entry, result in zip(entries, await store.put_entries(entries, now_us=now_us), strict=True):
            for evicted in result.evicted:
                gone = BY_OP_ID[evicted.op_id].header
                assert gone.retain_until_us < now_us or not (arc is None or arc.covers(kad_key(gone.key)))
                held.remove(evicted.op_id)
            if result.displaced is not None:
                held.remove(result.displaced.op_id)
            if result.outcome is PutOutcome.INSERTED:
                held.add(entry.op_id)
            assert (entry.op_id in held) or result.outcome is not PutOutcome.DUPLICATE
            assert bool(result.reason) == (result.outcome is PutOutcome.REFUSED)
        found = await store.get_ops(list(BY_OP_ID), now_us=0)
        assert {entry.op_id for entry in found} == held
        assert len(found) <= limits.max_store_entries
        assert sum(entry.size_bytes for entry in found) <= limits.max_store_bytes
        assert max(Counter(entry.publisher for entry in found).values(), default=0) <= limits.max_publisher_entries
        assert max(Counter(entry.header.key for entry in found).values(), default=0) <= limits.max_slots_per_key
    await store.aclose()


async def state_of(store: StorageBackend) -> tuple[object, ...]:
    found = await store.get_ops(list(BY_OP_ID), now_us=0)
    return await store.stats(), sorted(found, key=lambda entry: entry.op_id)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(puts=PUTS, limits=LIMITS, local=LOCALS, length=st.none() | st.integers(0, 5), limit=st.integers(0, 3))
async def test_backends_given_the_same_in_the_same_order_agree_in_all_they_say_and_hold(
    puts: Sequence[tuple[Sequence[Entry], int]], limits: Limits, local: KadKey, length: int | None, limit: int
) -> None:
    arc = None if length is None else Prefix.of(local, length)
    with tempfile.TemporaryDirectory() as directory:
        capacity = Capacity(limits=limits, local=local, responsible=arc)
        database = await SQLiteBackend.open(Path(directory) / "prime.db", synchronous="NORMAL", capacity=capacity)
        async with MemoryBackend(capacity) as memory, database:
            for entries, now_us in puts:
                said = [await store.put_entries(entries, now_us=now_us) for store in (memory, database)]
                assert said[0] == said[1]
                for store in (memory, database):
                    await store.delete_expired(now_us=now_us - 20, retire_before_us=now_us - 40, limit=limit)
                assert await state_of(memory) == await state_of(database)
