"""The whole partition: whatever comes, goes and passes, it is what it would be if it were made anew."""

from __future__ import annotations

from random import Random

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from prime_dht.errors import ValidationError
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.parameters import PartitionParameters
from prime_dht.partition.partition import Partition
from prime_dht.partition.slices import layout_at
from prime_dht.partition.snapshot import Snapshot, disc_details_snapshot, minimal_snapshot, ring_details_snapshot
from prime_dht.testing.partition_samples import TINY, Replica, SampleOp, columns, make_op

NOW_US = 151

sample_ops = st.builds(make_op, st.integers(0, 10**6), sector=st.integers(0, 31), created_at_us=st.integers(0, 600))


def everything(partition: Partition) -> tuple[object, ...]:
    """All that can be seen of a partition."""
    cells, layout = partition.cells, partition.layout
    circle = ArcSet.full(sector_bits=partition.parameters.sector_bits)
    snapshots: list[Snapshot] = [
        minimal_snapshot(cells, circle),
        disc_details_snapshot(cells, circle),
        ring_details_snapshot(cells, circle, {*layout.ring_starts, layout.tail_start}),
    ]
    sketches = [partition.sketches.sketch_of([sector], 16) for sector in circle]
    counts = cells.counts()
    return snapshots, sketches, partition.op_count, counts.slices, counts.ops.tolist()


class OneReplica(RuleBasedStateMachine):
    """Ops come and go, singly and in batches, and time passes, mostly forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.now_us = self.latest_us = 0
        self.ops: set[SampleOp] = set()
        self.partition = Partition(TINY, now_us=0)

    @rule(op=sample_ops)
    def insert(self, op: SampleOp) -> None:
        if op not in self.ops:
            self.ops.add(op)
            self.partition.insert(op.op_id, op.location, op.created_at_us)

    @rule(ops=st.sets(sample_ops, max_size=20))
    def insert_batch(self, ops: set[SampleOp]) -> None:
        self.partition.insert_batch(*columns(ops - self.ops))
        self.ops |= ops

    @precondition(lambda self: self.ops)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        op = data.draw(st.sampled_from(sorted(self.ops)))
        self.ops.remove(op)
        self.partition.remove(op.op_id, op.location, op.created_at_us)

    @precondition(lambda self: self.ops)
    @rule(data=st.data())
    def remove_batch(self, data: st.DataObject) -> None:
        ops = data.draw(st.sets(st.sampled_from(sorted(self.ops))))
        self.partition.remove_batch(*columns(ops))
        self.ops -= ops

    @rule(us=st.integers(-30, 30) | st.integers(0, 300))
    def pass_time(self, us: int) -> None:
        self.now_us += us
        self.latest_us = max(self.latest_us, self.now_us)
        self.partition.advance(self.now_us)

    @invariant()
    def is_as_made_anew(self) -> None:
        anew = Partition(TINY, now_us=self.latest_us)
        anew.insert_batch(*columns(self.ops))
        assert self.partition.layout == layout_at(self.latest_us, TINY)
        assert everything(self.partition) == everything(anew)


@pytest.mark.parametrize("now_us", [0, 1_800_000_001_000_000, 2**63 - 1])
@pytest.mark.parametrize(
    "parameters",
    [
        PartitionParameters(unit_us=1, factor=1, sector_bits=5),
        PartitionParameters(unit_us=1, factor=53, sector_bits=12),
        PartitionParameters(factor=53),
        PartitionParameters(unit_us=2**63 - 1),
    ],
)
def test_parameters_and_times_may_go_to_their_bounds(parameters: PartitionParameters, now_us: int) -> None:
    rng = Random(53)
    times = [0, 1, now_us, 2**63 - 1, *(rng.getrandbits(63) for _ in range(20))]
    ops = [SampleOp(created_at_us, rng.randbytes(32), rng.getrandbits(32)) for created_at_us in times]
    moved, made = Partition(parameters, now_us=0), Partition(parameters, now_us=now_us)
    for op in ops:
        moved.insert(op.op_id, op.location, op.created_at_us)
    moved.advance(now_us)
    made.insert_batch(*columns(ops))
    assert everything(moved) == everything(made)
    moved.remove_batch(*columns(ops))
    assert everything(moved) == everything(Partition(parameters, now_us=now_us))


OneReplica.TestCase.settings = settings(derandomize=True, deadline=None, max_examples=40, stateful_step_count=25)
TestOneReplicaIsAsMadeAnew = OneReplica.TestCase


def test_singly_and_in_batches_are_the_same() -> None:
    ops = [make_op(number, sector=number % 32, created_at_us=number % 200) for number in range(500)]
    singly, together = Partition(TINY, now_us=NOW_US), Partition(TINY, now_us=NOW_US)
    for op in ops:
        singly.insert(op.op_id, op.location, op.created_at_us)
    together.insert_batch(*columns(ops))
    assert everything(singly) == everything(together)
    for op in ops[:250]:
        singly.remove(op.op_id, op.location, op.created_at_us)
    together.remove_batch(*columns(ops[:250]))
    assert everything(singly) == everything(together)


def test_36_the_op_count_is_0_rises_and_is_there_after_loading() -> None:
    partition = Partition(TINY, now_us=NOW_US)
    assert partition.op_count == 0
    partition.insert(make_op(1).op_id, 0, 85)
    assert partition.op_count == 1
    loaded = Replica([make_op(number, created_at_us=number) for number in range(100)], now_us=NOW_US)
    assert loaded.partition.op_count == 100


def test_8_before_the_next_update_nothing_changes() -> None:
    partition = Replica([make_op(number, created_at_us=number) for number in range(160)], now_us=NOW_US).partition
    before = everything(partition)
    for now_us in (NOW_US, 155, partition.layout.next_update_us):
        assert not partition.advance(now_us)
    assert everything(partition) == before


def test_a_clock_that_was_set_back_changes_nothing() -> None:
    partition = Partition(TINY, now_us=NOW_US)
    assert not partition.advance(NOW_US - 100)
    assert partition.layout == layout_at(NOW_US, TINY)


def test_what_is_refused_is_in_neither_cells_nor_sketches() -> None:
    partition = Partition(TINY, now_us=NOW_US)
    before = everything(partition)
    with pytest.raises(ValidationError):
        partition.insert(bytes(31), 0, 0)
    with pytest.raises(ValidationError):
        partition.insert(bytes(32), 2**32, 0)
    with pytest.raises(ValidationError):
        partition.insert_batch(np.zeros((1, 32), np.uint8), np.zeros(1, np.uint32), np.array([-1]))
    assert everything(partition) == before


def test_its_memory_does_not_depend_on_how_many_ops_there_are() -> None:
    few, many = (Replica((make_op(n, created_at_us=85) for n in range(count)), now_us=NOW_US) for count in (1, 1000))
    columns_bytes, symbols_bytes = 2 * 32 * 40, 32 * 128 * 24  # of the disc and of one ring; of each sector's sketch
    assert few.partition.nbytes == many.partition.nbytes == columns_bytes + symbols_bytes
