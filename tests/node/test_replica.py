"""A replica's partition is in step with its store, whatever is done to it, in whatever order that is heard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import assert_never

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.background import background_nursery
from prime_dht.entries.entry import Entry
from prime_dht.entries.limits import Limits
from prime_dht.errors import NotWrittenError, StorageError
from prime_dht.ids import US_PER_S, Key, OpId
from prime_dht.kad.keyspace import Prefix
from prime_dht.node.feed import Feed
from prime_dht.node.replica import LOAD_AGAIN_S, LOOK_EVERY_S, MAX_UNITS_AHEAD, OPS_IN_BATCH, Replica
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.location import sector_of
from prime_dht.partition.parameters import PartitionParameters
from prime_dht.partition.partition import Partition
from prime_dht.storage.base import Expired, Gone, OpArrays, PutResult
from prime_dht.storage.capacity import Capacity, location_of
from prime_dht.storage.memory import MemoryBackend
from prime_dht.sync.declined import Declined
from prime_dht.testing.storage_samples import make_entry
from prime_dht.testing.swarm import EPOCH_US, VirtualClock

PARAMETERS = PartitionParameters(factor=3)
UNIT_US = PARAMETERS.unit_us
HOUR_US = 3600 * US_PER_S

ENTRIES = tuple(
    make_entry(
        key=Key(b"/prime/%d" % (number % 4)),
        subkey=b"%d" % (number % 3),
        created_at_us=EPOCH_US - 10 * UNIT_US + number * UNIT_US // 2,
        expires_at_us=EPOCH_US + life_us,
    )
    for number, life_us in ((number, life_us) for number in range(16) for life_us in (0, UNIT_US, HOUR_US))
)
"""Versions of twelve slots, of which some have expired, some retire soon, and some are no ops."""


class LateBackend(MemoryBackend):
    """A store whose answers take their time, so that they come in any order."""

    def __init__(self, rng: Random, capacity: Capacity | None = None) -> None:
        super().__init__(capacity)
        self._rng = rng
        self.fails = False

    async def put_entries(self, entries: Sequence[Entry], *, now_us: int) -> list[PutResult]:
        await self._dawdle()
        results = await super().put_entries(entries, now_us=now_us)
        await self._dawdle()
        return results

    async def remove_ops(self, op_ids: Sequence[OpId]) -> list[Gone]:
        await self._dawdle()
        gone = await super().remove_ops(op_ids)
        await self._dawdle()
        return gone

    async def delete_expired(self, *, now_us: int, retire_before_us: int, limit: int = 1000) -> Expired:
        await self._dawdle()
        expired = await super().delete_expired(now_us=now_us, retire_before_us=retire_before_us, limit=2)
        await self._dawdle()
        return expired

    async def scan_ops(self, *, after: bytes = b"", limit: int = 65_536) -> OpArrays:
        await self._dawdle()
        page = await super().scan_ops(after=after, limit=3)
        await self._dawdle()
        return page

    async def _dawdle(self) -> None:
        for _ in range(self._rng.randrange(6)):
            await trio.lowlevel.checkpoint()
        if self.fails:
            raise StorageError("the disc is gone")


async def rebuilt(storage: MemoryBackend, now_us: int) -> Partition:
    partition = Partition(PARAMETERS, now_us=now_us)
    ops = await MemoryBackend.scan_ops(storage)
    partition.insert_batch(ops.op_ids, ops.locations, ops.created_at_us)
    return partition


def assert_equal(partition: Partition | None, other: Partition) -> None:
    assert partition is not None
    assert partition.layout == other.layout
    assert partition.op_count == other.op_count
    everywhere = ArcSet.full(sector_bits=PARAMETERS.sector_bits)
    layout = partition.layout
    for start in {*partition.cells.full_slices(), *other.cells.full_slices(), *layout.ring_starts, layout.tail_start}:
        ours, theirs = partition.cells.slice_cells(start, everywhere), other.cells.slice_cells(start, everywhere)
        assert dict(ours) == dict(theirs)
    arrays = (one.sketches.copy().sketch_of(everywhere.mask, 8) for one in (partition, other))
    assert len({sketch.encode() for sketch in arrays}) == 1


@dataclass(frozen=True, slots=True)
class Put:
    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class Remove:
    op_ids: Sequence[OpId]


@dataclass(frozen=True, slots=True)
class Expire:
    pass


@dataclass(frozen=True, slots=True)
class Pass:
    """Let time go by."""

    seconds: float


Step = Put | Remove | Expire | Pass
STEPS = st.lists(
    st.one_of(
        st.builds(Put, st.lists(st.sampled_from(ENTRIES), min_size=1, max_size=4)),
        st.builds(Remove, st.lists(st.sampled_from([entry.op_id for entry in ENTRIES]), max_size=4)),
        st.just(Expire()),
        st.builds(Pass, st.sampled_from([0.0, 1.0, 900.0])),
    ),
    max_size=16,
)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    before=st.lists(st.sampled_from(ENTRIES), max_size=12),
    steps=STEPS,
    seed=st.integers(0, 2**32),
    max_entries=st.sampled_from([4, 100]),
    is_loaded=st.booleans(),
)
def test_after_any_interleaving_the_partition_equals_one_rebuilt_from_the_store(
    before: Sequence[Entry], steps: Sequence[Step], seed: int, max_entries: int, is_loaded: bool
) -> None:
    async def main() -> None:
        clock = VirtualClock()
        limits = Limits(max_store_entries=max_entries)
        nothing = Prefix(value=0, length=256)
        storage = LateBackend(Random(seed), Capacity(limits=limits, responsible=nothing))
        await storage.put_entries(before, now_us=clock.now_us())
        replica = Replica(storage, PARAMETERS, clock, Feed())
        async with background_nursery() as nursery:
            await nursery.start(replica.run)
            if is_loaded:
                await wait_all_tasks_blocked()
            async with trio.open_nursery() as calls:
                for step in steps:
                    match step:
                        case Put(entries):
                            calls.start_soon(put, replica, entries, clock.now_us())
                        case Remove(op_ids):
                            calls.start_soon(replica.remove_ops, op_ids)
                        case Expire():
                            calls.start_soon(replica.expire)
                        case Pass(seconds):
                            await trio.sleep(seconds)
                        case _:
                            assert_never(step)
            await wait_all_tasks_blocked()
            assert_equal(replica.partition, await rebuilt(storage, clock.now_us()))

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def put(replica: Replica, entries: Sequence[Entry], now_us: int) -> None:
    await replica.put_entries(entries, now_us=now_us)


@pytest.mark.parametrize("count", [OPS_IN_BATCH - 1, OPS_IN_BATCH, 5 * OPS_IN_BATCH])
async def test_many_entries_that_come_or_go_at_once_are_counted_as_if_they_came_one_by_one(
    autojump_clock: MockClock, count: int
) -> None:
    clock, storage = VirtualClock(), MemoryBackend()
    replica = Replica(storage, PARAMETERS, clock, Feed())
    entries = [
        make_entry(
            key=Key(b"/prime/%d" % number),
            created_at_us=EPOCH_US - number * HOUR_US,
            expires_at_us=EPOCH_US + HOUR_US,
        )
        for number in range(2 * count)
    ]
    op_ids = [entry.op_id for entry in entries]
    async with background_nursery() as nursery:
        await nursery.start(replica.run)
        await wait_all_tasks_blocked()
        with replica.view() as view:
            assert view is not None
            await replica.put_entries(entries, now_us=clock.now_us())
            assert_equal(replica.partition, await rebuilt(storage, clock.now_us()))
            await replica.remove_ops(op_ids[:count])
            assert_equal(replica.partition, await rebuilt(storage, clock.now_us()))
            assert not any(view.was_here(op_id[:16], is_here=True) for op_id in op_ids[count:])


class HeldUpBackend(MemoryBackend):
    """A store that does what it is asked for, and then takes its time to say so."""

    is_immediate = False

    def __init__(self) -> None:
        super().__init__()
        self.may_return = trio.Event()

    async def put_entries(self, entries: Sequence[Entry], *, now_us: int) -> list[PutResult]:
        results = await super().put_entries(entries, now_us=now_us)
        await self.may_return.wait()
        return results


async def test_what_a_reader_may_have_seen_is_known_to_views_once_the_replica_has_caught_up(
    autojump_clock: MockClock,
) -> None:
    clock, storage = VirtualClock(), HeldUpBackend()
    replica = Replica(storage, PARAMETERS, clock, Feed())
    (cut_id,) = (entry.op_id[:16] for entry in ENTRIES[2:3])
    async with background_nursery() as nursery:
        await nursery.start(replica.run)
        await wait_all_tasks_blocked()
        with replica.view() as view:
            assert view is not None
            nursery.start_soon(put, replica, ENTRIES[2:3], clock.now_us())
            await wait_all_tasks_blocked()
            assert len(await storage.find_ops([cut_id])) == 1
            assert view.was_here(cut_id, is_here=True)  # so it seems
            storage.may_return.set()
            await replica.caught_up()
            assert not view.was_here(cut_id, is_here=True)


async def test_it_is_ready_once_it_has_read_all_ops(autojump_clock: MockClock) -> None:
    clock = VirtualClock()
    storage = LateBackend(Random(1))
    await storage.put_entries(ENTRIES, now_us=clock.now_us())
    replica = Replica(storage, PARAMETERS, clock, Feed())
    with replica.view() as view:
        assert view is None
    async with background_nursery() as nursery:
        await nursery.start(replica.run)
        assert replica.partition is None
        await wait_all_tasks_blocked()
        assert_equal(replica.partition, await rebuilt(storage, clock.now_us()))


async def test_a_put_that_is_cancelled_is_counted_as_what_it_did(autojump_clock: MockClock) -> None:
    clock = VirtualClock()
    storage = LateBackend(Random(2))
    replica = Replica(storage, PARAMETERS, clock, Feed())
    async with background_nursery() as nursery:
        await nursery.start(replica.run)
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await replica.put_entries(ENTRIES[:6], now_us=clock.now_us())
        assert (await storage.stats()).entries
        assert_equal(replica.partition, await rebuilt(storage, clock.now_us()))


async def test_what_became_of_a_call_that_failed_is_read_from_the_store(autojump_clock: MockClock) -> None:
    clock = VirtualClock()
    storage = LateBackend(Random(3))
    replica = Replica(storage, PARAMETERS, clock, Feed())
    async with background_nursery() as nursery:
        await nursery.start(replica.run)
        await wait_all_tasks_blocked()
        storage.fails = True
        with pytest.raises(StorageError):
            await replica.put_entries(ENTRIES[:6], now_us=clock.now_us())
        assert replica.partition is None
        storage.fails = False
        await MemoryBackend.put_entries(storage, ENTRIES[:6], now_us=clock.now_us())
        await trio.sleep(2 * LOAD_AGAIN_S)
        assert_equal(replica.partition, await rebuilt(storage, clock.now_us()))


async def test_it_says_in_which_sectors_the_store_has_something_else_since_it_failed(
    autojump_clock: MockClock,
) -> None:
    clock = VirtualClock()
    storage = LateBackend(Random(3))
    replica = Replica(storage, PARAMETERS, clock, Feed())
    told: list[Sequence[int]] = []
    replica.keep_up(Declined(), told.append)
    async with background_nursery() as nursery:
        await nursery.start(replica.run)
        await wait_all_tasks_blocked()
        entries = [
            make_entry(key=Key(b"/prime/%d" % n), created_at_us=EPOCH_US, expires_at_us=EPOCH_US + HOUR_US)
            for n in range(6)
        ]
        await replica.put_entries(entries, now_us=clock.now_us())
        assert told == []
        with replica.view() as view:
            assert view is not None
            for lost in ([], entries[1:3]):
                assert not view.doubted
                await MemoryBackend.remove_ops(storage, [entry.op_id for entry in lost])
                storage.fails = True
                with pytest.raises(StorageError):
                    await replica.remove_ops([])
                storage.fails = False
                await trio.sleep(2 * LOAD_AGAIN_S)
            sectors = sorted({sector_of(location_of(entry.header.key), sector_bits=9) for entry in lost})
            assert told == [[], sectors]
            assert list(view.doubted) == sectors


class FullBackend(MemoryBackend):
    """A store on a disk that may be full: then what is to be written fails, and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.is_full = False
        self.scans = 0

    async def put_entries(self, entries: Sequence[Entry], *, now_us: int) -> list[PutResult]:
        self._check_disk()
        return await super().put_entries(entries, now_us=now_us)

    async def delete_expired(self, *, now_us: int, retire_before_us: int, limit: int = 1000) -> Expired:
        self._check_disk()
        return await super().delete_expired(now_us=now_us, retire_before_us=retire_before_us, limit=limit)

    async def scan_ops(self, *, after: bytes = b"", limit: int = 65_536) -> OpArrays:
        self.scans += 1
        return await super().scan_ops(after=after, limit=limit)

    def _check_disk(self) -> None:
        if self.is_full:
            raise NotWrittenError("the disk is full")


async def test_while_the_disk_is_full_no_op_is_read_again_and_the_layout_moves_on(autojump_clock: MockClock) -> None:
    clock, storage = VirtualClock(), FullBackend()
    replica = Replica(storage, PARAMETERS, clock, Feed())
    async with background_nursery() as nursery:
        await nursery.start(replica.run)
        await wait_all_tasks_blocked()
        brief = make_entry(created_at_us=EPOCH_US, expires_at_us=EPOCH_US + UNIT_US)
        await replica.put_entries([brief], now_us=clock.now_us())
        partition, storage.is_full = replica.partition, True
        assert partition is not None
        before = partition.layout
        with pytest.raises(NotWrittenError):
            await replica.put_entries(ENTRIES[2:3], now_us=clock.now_us())
        await trio.sleep(3 * UNIT_US / US_PER_S)
        assert replica.partition is partition
        assert partition.layout.tail_start == before.tail_start + 3
        assert partition.op_count == 1  # it could not be retired
        storage.is_full = False
        await replica.put_entries(ENTRIES[2:3], now_us=clock.now_us())
        await trio.sleep(UNIT_US / US_PER_S)
        assert replica.partition is partition
        assert storage.scans == 1
        assert_equal(partition, await rebuilt(storage, clock.now_us()))


async def test_right_after_a_tick_the_layout_moves_on_and_ops_have_retired(autojump_clock: MockClock) -> None:
    clock = VirtualClock()
    storage = MemoryBackend()
    replica = Replica(storage, PARAMETERS, clock, Feed())
    async with background_nursery() as nursery:
        await nursery.start(replica.run)
        await wait_all_tasks_blocked()
        brief = make_entry(created_at_us=EPOCH_US, expires_at_us=EPOCH_US + UNIT_US)
        await replica.put_entries([brief], now_us=clock.now_us())
        for passed in range(1, 4):
            await trio.sleep_until(passed * UNIT_US / US_PER_S - 0.001)
            assert replica.partition is not None
            before = replica.partition.layout
            await trio.sleep(0.002)
            assert replica.partition.layout.tail_start == before.tail_start + 1
            assert replica.partition.op_count == (passed == 1)  # it is retained up to the first tick


async def test_a_clock_that_is_set_back_by_more_than_a_unit_sets_the_layout_back(autojump_clock: MockClock) -> None:
    clock = VirtualClock()
    storage = LateBackend(Random(4))
    replica = Replica(storage, PARAMETERS, clock, Feed())
    clock.set_by_us = 30 * 86_400 * US_PER_S
    async with background_nursery() as nursery:
        await nursery.start(replica.run)
        await wait_all_tasks_blocked()
        ahead = replica.partition
        clock.set_by_us = 0
        await replica.put_entries(ENTRIES, now_us=clock.now_us())
        assert replica.partition is ahead
        await trio.sleep(120)
        assert_equal(replica.partition, await rebuilt(storage, clock.now_us()))


@pytest.mark.parametrize("jump_s", [31, -31])
async def test_of_what_it_has_it_is_unsure_since_the_calendar_jumped_also_in_a_round(
    jump_s: int, autojump_clock: MockClock
) -> None:
    clock = VirtualClock()
    replica = Replica(MemoryBackend(), PARAMETERS, clock, Feed())
    told: list[Sequence[int]] = []
    replica.keep_up(Declined(), told.append)
    async with background_nursery() as nursery:
        await nursery.start(replica.run)
        await trio.sleep(2 * LOOK_EVERY_S)
        with replica.view() as view:
            assert view is not None
            clock.set_by_us += 29 * US_PER_S
            await trio.sleep(60 * LOOK_EVERY_S)
            assert (told, list(view.doubted)) == ([], [])
            clock.set_by_us += jump_s * US_PER_S
            await trio.sleep(2 * LOOK_EVERY_S)
            assert list(map(list, told)) == [list(range(512))] == [list(view.doubted)]


def dated(hours: Iterable[int]) -> list[Entry]:
    """Entries put at these hours before the swarm's time began, that live for a month."""
    times_us = [EPOCH_US - hour * HOUR_US for hour in hours]
    return [
        make_entry(key=Key(b"/prime/at %d" % at_us), created_at_us=at_us, expires_at_us=at_us + 720 * HOUR_US)
        for at_us in times_us
    ]


async def test_while_the_clock_is_behind_what_is_stored_it_waits_for_it_to_be_set_and_says_so(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    clock = VirtualClock()
    storage = MemoryBackend()
    await storage.put_entries(dated(range(MAX_UNITS_AHEAD + 1)), now_us=EPOCH_US)
    replica = Replica(storage, PARAMETERS, clock, Feed())
    clock.set_by_us = -EPOCH_US
    async with background_nursery() as nursery:
        await nursery.start(replica.run)
        await trio.sleep(3 * LOOK_EVERY_S)
        assert replica.partition is None
        assert "the clock says 1970-01-01T00:00:00+00:00, and most of the entries stored are dated later" in caplog.text
        late = dated([MAX_UNITS_AHEAD + 1])
        await replica.put_entries(late, now_us=clock.now_us())
        clock.set_by_us = 0
        await trio.sleep(2 * LOOK_EVERY_S)
        assert_equal(replica.partition, await rebuilt(storage, clock.now_us()))
        clock.set_by_us = -EPOCH_US  # as a battery fails while it runs
        await trio.sleep(3 * LOOK_EVERY_S)
        assert replica.partition is None


@pytest.mark.parametrize("hours", [range(MAX_UNITS_AHEAD), [*range(-200, 0), *range(1, 300)]])
async def test_a_few_ops_ahead_of_the_clock_or_fewer_than_behind_it_are_no_reason_to_wait(
    hours: Sequence[int], autojump_clock: MockClock
) -> None:
    clock = VirtualClock()
    storage = MemoryBackend()
    await storage.put_entries(dated(hours), now_us=EPOCH_US)
    replica = Replica(storage, PARAMETERS, clock, Feed())
    clock.set_by_us = -EPOCH_US if isinstance(hours, range) else 0
    async with background_nursery() as nursery:
        await nursery.start(replica.run)
        await wait_all_tasks_blocked()
        assert_equal(replica.partition, await rebuilt(storage, clock.now_us()))


async def test_a_view_stays_as_it_was_and_is_told_what_came_and_went(autojump_clock: MockClock) -> None:
    clock = VirtualClock()
    replica = Replica(MemoryBackend(), PARAMETERS, clock, Feed())
    older, newer = sorted((ENTRIES[2], ENTRIES[2 + 36]), key=lambda entry: entry.version)
    assert older.slot == newer.slot
    async with background_nursery() as nursery:
        await nursery.start(replica.run)
        await wait_all_tasks_blocked()
        await replica.put_entries([older], now_us=clock.now_us())
        with replica.view() as view:
            assert view is not None
            await replica.put_entries([newer], now_us=clock.now_us())
            assert view.cells.op_count == 1
            assert view.was_here(older.op_id[:16], is_here=False)
            assert not view.was_here(newer.op_id[:16], is_here=True)
