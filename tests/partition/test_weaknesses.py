"""The known weaknesses of the reference's model, which this one does not have. Their numbers are in the names."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from random import Random

import pytest

from prime_dht.partition.cells import Cells
from prime_dht.partition.combined import NOTHING
from prime_dht.partition.compare import DiscMismatch, Identical, SendOps, compare, next_action
from prime_dht.partition.offer import OP_ID_COST_BYTES, Cursor, Offer, OpQuery, Version
from prime_dht.partition.parameters import PARAMETERS
from prime_dht.partition.partition import Partition
from prime_dht.partition.slices import layout_at
from prime_dht.partition.snapshot import disc_details_snapshot, minimal_snapshot
from prime_dht.testing.partition_samples import CIRCLE, TINY, Replica, make_op, play_round

NOW_US = 151


def test_4_1_a_cell_larger_than_the_budget_is_offered_in_pages_and_does_not_block_the_rings() -> None:
    in_disc = [make_op(number) for number in range(50)]
    in_rings = make_op(99, created_at_us=90)
    left, right = Replica([*in_disc, in_rings], now_us=NOW_US), Replica(now_us=NOW_US)
    known = {op.op_id: op for op in left.ops}
    cursor: Cursor | None = None
    for _ in range(50 // 4 + 1):
        theirs = disc_details_snapshot(right.partition.cells, CIRCLE)
        action = next_action(left.partition.cells, theirs, common=CIRCLE)
        assert isinstance(action, SendOps)
        offer = Offer(action.layout, action.cells, max_bytes=4 * OP_ID_COST_BYTES, after=cursor)
        for op_id in left.fill(offer):
            right.store(known[op_id])
        cursor = offer.cursor
    assert right.ops == set(in_disc)
    rings = play_round(left, right, CIRCLE, max_bytes=4 * OP_ID_COST_BYTES)
    assert rings.offers == ([in_rings.op_id], [])


def test_4_2_an_op_stored_twice_or_before_an_update_counts_once() -> None:
    op = make_op(1, created_at_us=155)
    replica = Replica(now_us=NOW_US)
    replica.store(op)
    replica.partition.advance(NOW_US + 10)
    replica.store(op)
    assert replica.partition.cells.ring_tops(CIRCLE)[-1] == op.combined
    replica.drop(op)
    replica.drop(op)
    assert replica.partition.cells.ring_tops(CIRCLE)[-1] == NOTHING


def test_4_2_a_wrong_hash_does_not_outlive_the_process() -> None:
    replica = Replica([make_op(number, created_at_us=number) for number in range(100)], now_us=NOW_US)
    right = minimal_snapshot(replica.partition.cells, CIRCLE)
    replica.partition.insert(make_op(-1).op_id, 0, 0)
    assert compare(minimal_snapshot(replica.partition.cells, CIRCLE), right) == DiscMismatch()
    restarted = Replica(replica.ops, now_us=NOW_US)
    assert compare(minimal_snapshot(restarted.partition.cells, CIRCLE), right) == Identical()


def ticks_with_as_many_rings_as_before() -> Iterator[int]:
    for tick in range(2_000_000, 2_000_000 + 512):
        before, after = (layout_at(now * PARAMETERS.unit_us + 1, PARAMETERS) for now in (tick, tick + 1))
        if len(before.ring_sizes) == len(after.ring_sizes):
            yield tick


def test_4_3_on_a_quarter_of_ticks_the_number_of_rings_does_not_show_that_layouts_differ() -> None:
    assert len(list(ticks_with_as_many_rings_as_before())) / 512 == pytest.approx(0.25, abs=0.01)


def test_4_3_neighbours_in_time_with_equal_data_are_identical_at_every_tick() -> None:
    rng = Random(43)
    for tick in [8, 9, 10, *range(15, 100)]:
        ops = [make_op(number, created_at_us=rng.randrange(10 * tick + 10)) for number in range(20)]
        behind, ahead = Replica(ops, now_us=10 * tick + 1), Replica(ops, now_us=10 * tick + 11)
        for one, other in ((behind, ahead), (ahead, behind)):
            played = play_round(one, other, CIRCLE)
            assert (played.end, len(played.snapshots)) == (Identical(), 1)


def test_4_4_an_op_dated_far_ahead_does_not_keep_a_node_from_starting() -> None:
    op = make_op(1, created_at_us=10**15)
    replica = Replica([op], now_us=NOW_US)
    assert replica.partition.layout == layout_at(NOW_US, TINY)
    assert replica.partition.cells.tail_tops(CIRCLE, 2) == (NOTHING, NOTHING, op.combined)
    assert replica.partition.advance(NOW_US + 1000)
    assert play_round(replica, Replica([op], now_us=NOW_US + 1000), CIRCLE).end == Identical()


def ids_that_cancel(rng: Random) -> list[bytes]:
    """Ids whose XOR is 0, found among 257 by Gaussian elimination."""
    rows: dict[int, tuple[int, frozenset[int]]] = {}
    for _ in count():
        chosen = rng.getrandbits(256)
        left, members = chosen, frozenset([chosen])
        while left and left.bit_length() in rows:
            xored, others = rows[left.bit_length()]
            left, members = left ^ xored, members ^ others
        if not left:
            return [member.to_bytes(32, "big") for member in members]
        rows[left.bit_length()] = left, members
    raise AssertionError


def test_4_8_ops_chosen_so_that_they_cancel_are_seen_by_their_count() -> None:
    chosen = ids_that_cancel(Random(48))
    without, with_them = Cells(layout_at(NOW_US, TINY)), Cells(layout_at(NOW_US, TINY))
    for op_id in chosen:
        with_them.insert(op_id, 0, 0)
    top = with_them.disc_top(CIRCLE)
    assert (top.hash, top.count) == (NOTHING.hash, len(chosen))
    assert compare(minimal_snapshot(without, CIRCLE), minimal_snapshot(with_them, CIRCLE)) == DiscMismatch()


class CountingReplica(Replica):
    asked = 0

    def ask(self, query: OpQuery) -> list[Version]:
        self.asked += 1
        return super().ask(query)


def test_4_9_no_snapshot_asks_the_store_only_an_offer_does_once_for_each_cell() -> None:
    ops = [make_op(number, sector=number % 32, created_at_us=number % 160) for number in range(600)]
    left, right = CountingReplica(ops, now_us=NOW_US), CountingReplica(ops, now_us=NOW_US)
    assert play_round(left, right, CIRCLE).end == Identical()
    assert (left.asked, right.asked) == (0, 0)
    for sector in (3, 4, 5):
        left.store(make_op(1000 + sector, sector=sector))
    assert len(play_round(left, right, CIRCLE).snapshots) == 4
    assert (left.asked, right.asked) == (3, 3)


def test_a_partition_of_the_default_parameters_starts_at_any_time() -> None:
    for now_us in (-1, 0, 1_800_000_000_000_000, 2**62):
        assert Partition(PARAMETERS, now_us=now_us).op_count == 0
