"""Two replicas compare, and offer each other what differs. Numbers in names are those of the reference's scenarios."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.compare import Identical, SendOps
from prime_dht.partition.decode import Decoded, decode
from prime_dht.testing.partition_samples import CIRCLE, Replica, Round, SampleOp, arcs_of, make_op, play_round

NOW_US = 151
SHARED = [make_op(number, sector=number % 32, created_at_us=number % 160) for number in range(300)]
IN_DISC = make_op(1001, sector=3, created_at_us=17)
ALSO_IN_DISC = make_op(1002, sector=9, created_at_us=70)
IN_RINGS = make_op(1003, sector=3, created_at_us=90)
ALSO_IN_RINGS = make_op(1004, sector=21, created_at_us=145)
IN_TAIL = make_op(1005, sector=3, created_at_us=155)

DISC_STEPS = ["MinimalSnapshot", "DiscSectorsSnapshot", "DiscDetailsSnapshot", "DiscDetailsSnapshot"]
RING_STEPS = ["MinimalSnapshot", "RingDetailsSnapshot", "RingDetailsSnapshot"]


def replica(*more: SampleOp, shared: list[SampleOp] = SHARED, now_us: int = NOW_US) -> Replica:
    return Replica([*shared, *more], now_us=now_us)


def steps(played: Round) -> list[str]:
    """The kinds of the snapshots that were sent."""
    return [type(snapshot).__name__ for snapshot in played.snapshots]


def sync(left: Replica, right: Replica, common: ArcSet = CIRCLE) -> list[Round]:
    """Rounds, opened in turns, after each of which both store what they were offered, until nothing differs."""
    known = {op.op_id: op for op in left.ops | right.ops}
    rounds: list[Round] = []
    replicas = (left, right)
    while not rounds or isinstance(rounds[-1].end, SendOps):
        opener, other = replicas if len(rounds) % 2 == 0 else replicas[::-1]
        played = play_round(opener, other, common)
        for taker, offered in ((other, played.offers[0]), (opener, played.offers[1])):
            for op_id in offered:
                taker.store(known[op_id])
        rounds.append(played)
        assert len(rounds) < 5
    return rounds


def test_31_two_empty_replicas_are_identical() -> None:
    played = play_round(replica(shared=[]), replica(shared=[]), CIRCLE)
    assert (played.end, steps(played)) == (Identical(), ["MinimalSnapshot"])


def test_two_equal_replicas_are_identical_after_one_snapshot() -> None:
    played = play_round(replica(), replica(), CIRCLE)
    assert (played.end, steps(played)) == (Identical(), ["MinimalSnapshot"])


@pytest.mark.parametrize("ours_is_more", [True, False])
def test_32_the_disc_is_synced_one_way_either_way(ours_is_more: bool) -> None:
    more, less = replica(IN_DISC), replica()
    played = play_round(more, less, CIRCLE) if ours_is_more else play_round(less, more, CIRCLE)
    assert steps(played) == DISC_STEPS
    expected = {op.op_id for op in SHARED if op.sector == 3 and op.created_at_us < 80}
    offered, other = played.offers if ours_is_more else played.offers[::-1]
    assert (set(offered), set(other)) == (expected | {IN_DISC.op_id}, expected)


def test_32_the_disc_is_synced_both_ways() -> None:
    left, right = replica(IN_DISC), replica(ALSO_IN_DISC)
    assert [steps(played) for played in sync(left, right)] == [DISC_STEPS, ["MinimalSnapshot"]]
    assert left.ops == right.ops == {*SHARED, IN_DISC, ALSO_IN_DISC}


@pytest.mark.parametrize("op", [IN_RINGS, ALSO_IN_RINGS, IN_TAIL])
@pytest.mark.parametrize("ours_is_more", [True, False])
@pytest.mark.parametrize("shared", [SHARED, []], ids=["equal disc", "nothing else"])
def test_33_rings_are_synced_one_way_either_way(op: SampleOp, ours_is_more: bool, shared: list[SampleOp]) -> None:
    more, less = replica(op, shared=shared), replica(shared=shared)
    played = play_round(more, less, CIRCLE) if ours_is_more else play_round(less, more, CIRCLE)
    assert steps(played) == RING_STEPS
    offered, other = played.offers if ours_is_more else played.offers[::-1]
    assert set(offered) - set(other) == {op.op_id}


def test_33_rings_are_synced_both_ways() -> None:
    left, right = replica(IN_RINGS, IN_TAIL), replica(ALSO_IN_RINGS)
    assert [steps(played) for played in sync(left, right)] == [RING_STEPS, ["MinimalSnapshot"]]
    assert left.ops == right.ops == {*SHARED, IN_RINGS, ALSO_IN_RINGS, IN_TAIL}


@pytest.mark.parametrize("swapped", [False, True])
def test_34_the_disc_is_synced_first_then_rings_and_whoever_opens_the_result_is_the_same(swapped: bool) -> None:
    pair = replica(IN_DISC, IN_RINGS), replica(ALSO_IN_DISC, ALSO_IN_RINGS)
    left, right = pair[::-1] if swapped else pair
    assert [steps(played) for played in sync(left, right)] == [DISC_STEPS, RING_STEPS, ["MinimalSnapshot"]]
    assert left.ops == right.ops == {*SHARED, IN_DISC, ALSO_IN_DISC, IN_RINGS, ALSO_IN_RINGS}


def test_35_what_lies_outside_the_common_arc_is_ignored_in_disc_and_rings() -> None:
    common = CIRCLE - arcs_of(3)
    played = play_round(replica(IN_DISC, IN_RINGS, IN_TAIL), replica(), common)
    assert (played.end, steps(played)) == (Identical(), ["MinimalSnapshot"])


def test_35_beside_what_lies_outside_the_rest_is_synced() -> None:
    left, right = replica(IN_DISC, ALSO_IN_DISC, IN_RINGS, ALSO_IN_RINGS), replica()
    rounds = sync(left, right, CIRCLE - arcs_of(3))
    assert [steps(played) for played in rounds] == [DISC_STEPS, RING_STEPS, ["MinimalSnapshot"]]
    assert right.ops == {*SHARED, ALSO_IN_DISC, ALSO_IN_RINGS}


def test_replicas_a_tick_apart_sync_at_the_later_layout() -> None:
    for tick in range(15, 60):
        now_us = 10 * tick + 1
        left, right = replica(IN_DISC, now_us=now_us), replica(IN_RINGS, now_us=now_us + 10)
        sync(left, right)
        assert left.ops == right.ops == {*SHARED, IN_DISC, IN_RINGS}, tick
        assert left.partition.layout.since_us < right.partition.layout.since_us


op_sets = st.sets(
    st.builds(make_op, st.integers(0, 10**6), sector=st.integers(0, 31), created_at_us=st.integers(0, 420)),
    max_size=40,
)
clocks = st.tuples(st.integers(0, 400), st.integers(-20, 20)).map(lambda drawn: (drawn[0], max(0, sum(drawn))))


@settings(derandomize=True, deadline=None, max_examples=100)
@given(op_sets, op_sets, op_sets, clocks, st.integers(1, 2**32 - 1))
def test_any_two_find_every_difference_in_the_common_arc_and_offer_nothing_outside(
    shared: set[SampleOp], only_left: set[SampleOp], only_right: set[SampleOp], now_us: tuple[int, int], bits: int
) -> None:
    common = ArcSet(bits, 5)
    left, right = Replica(shared | only_left, now_us=now_us[0]), Replica(shared | only_right, now_us=now_us[1])
    before = left.within(common), right.within(common)
    outside = left.ops - before[0], right.ops - before[1]
    rounds = sync(left, right, common)
    assert left.within(common) == right.within(common) == before[0] | before[1]
    assert (left.ops - left.within(common), right.ops - right.within(common)) == outside
    inside = {op.op_id for op in before[0] | before[1]}
    assert all(inside.issuperset(offered) for played in rounds for offered in played.offers)
    assert len(rounds) <= 3


@settings(derandomize=True, deadline=None, max_examples=50)
@given(op_sets, op_sets, op_sets, st.integers(1, 2**32 - 1))
def test_sketches_and_drill_down_agree_on_what_differs(
    shared: set[SampleOp], only_left: set[SampleOp], only_right: set[SampleOp], bits: int
) -> None:
    common = ArcSet(bits, 5)
    left, right = Replica(shared | only_left, now_us=NOW_US), Replica(shared | only_right, now_us=NOW_US)
    ours, theirs = (one.partition.sketches.sketch_of(common.mask, 128) for one in (left, right))
    found = decode(ours.subtract(theirs))
    lacking = left.within(common) - right.ops, right.within(common) - left.ops
    rounds = sync(left, right, common)
    offered = [set[bytes](), set[bytes]()]
    for number, played in enumerate(rounds):
        for one, other in enumerate(played.offers if number % 2 == 0 else played.offers[::-1]):
            offered[one].update(other)
    for ops, ids in zip(lacking, offered, strict=True):
        assert {op.op_id for op in ops} <= ids
    if isinstance(found, Decoded):
        assert [set(found.ours), set(found.theirs)] == [{op.op_id[:16] for op in ops} for ops in lacking]


def test_sketches_decode_nearly_all_differences_they_are_large_enough_for() -> None:
    rng = Random(128)
    decoded = 0
    for _ in range(50):
        numbers = rng.sample(range(10**6), 60)
        left, right = (
            Replica([make_op(number, sector=number % 32) for number in chosen], now_us=NOW_US)
            for chosen in (numbers[:40], numbers[20:])
        )
        mask = np.ones(32, np.bool_)
        ours, theirs = (one.partition.sketches.sketch_of(mask, 128) for one in (left, right))
        decoded += isinstance(decode(ours.subtract(theirs)), Decoded)
    assert decoded >= 49
