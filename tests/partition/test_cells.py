"""Combined hashes of cells, as ops come and time passes. Numbers in names are those of the reference's scenarios.

With the tiny parameters a unit is 10 µs, and at 151 µs the full slice [0, 80) is just made, with rings [80, 120),
[120, 140), [140, 150) and the tail from 150 on.
"""

from __future__ import annotations

import numpy as np
import pytest

from prime_dht.errors import LocalProtocolError, ValidationError
from prime_dht.partition.cells import Cells
from prime_dht.partition.combined import NOTHING, Combined
from prime_dht.partition.slices import layout_at
from prime_dht.testing.partition_samples import CIRCLE, TINY, arcs_of, cells_of, combined, make_op

NOW_US = 151
IN_DISC, IN_RINGS, IN_TAIL = (0, 79), (80, 119, 120, 149), (150, 151, 999)


def test_combining_is_commutative_and_associative_and_counts() -> None:
    a, b, c = (make_op(number).combined for number in range(3))
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert (a + b + c).count == 3
    assert (a + a).hash == NOTHING.hash


def test_of_nothing_the_combined_hash_is_empty_and_adds_nothing() -> None:
    a = make_op(0).combined
    assert NOTHING + NOTHING == NOTHING == Combined(bytes(32), 0)
    assert NOTHING + a == a


@pytest.mark.parametrize(("size", "count"), [(31, 1), (33, 1), (0, 0), (32, -1)])
def test_a_combined_hash_of_another_length_is_an_error(size: int, count: int) -> None:
    with pytest.raises(ValidationError):
        Combined(bytes(size), count)


def test_6_the_hash_of_a_slice_is_the_xor_of_its_ops() -> None:
    ops = [make_op(number, sector=number, created_at_us=created) for number, created in enumerate(IN_RINGS)]
    cells = cells_of(ops, now_us=NOW_US)
    assert cells.ring_tops(CIRCLE) == (combined(ops[:2]), combined(ops[2:3]), combined(ops[3:]))


def test_7_full_slices_need_not_be_stored_they_are_made_of_the_ops() -> None:
    ops = [make_op(1, created_at_us=0), make_op(2, created_at_us=79), make_op(3, created_at_us=80)]
    cells = cells_of(ops, now_us=231)
    assert cells.layout.full_count == 2
    assert [dict(cells.slice_cells(start, CIRCLE)) for start in (0, 8)] == [
        {0: combined(ops[:2])},
        {0: combined(ops[2:])},
    ]


def test_9_a_unit_later_a_slice_has_the_tail_s_ops_and_the_others_are_as_they_were() -> None:
    ops = [make_op(number, created_at_us=created) for number, created in enumerate((*IN_DISC, *IN_RINGS, *IN_TAIL))]
    before = cells_of(ops, now_us=NOW_US)
    after = before.moved_to(layout_at(NOW_US + 10, TINY))
    assert after.ring_tops(CIRCLE) == (*before.ring_tops(CIRCLE), combined(ops[6:8]))
    assert after.disc_top(CIRCLE) == before.disc_top(CIRCLE)
    assert after.tail_tops(CIRCLE, 1) == (NOTHING, combined(ops[8:]))


def test_10_a_new_full_slice_is_made_of_partial_ones_and_the_old_ones_are_as_they_were() -> None:
    ops = [make_op(number, created_at_us=created) for number, created in enumerate((0, 79, 80, 159, 160))]
    before = cells_of(ops, now_us=229)
    after = before.moved_to(layout_at(231, TINY))
    assert (before.layout.full_count, after.layout.full_count) == (1, 2)
    assert dict(after.slice_cells(0, CIRCLE)) == dict(before.slice_cells(0, CIRCLE)) == {0: combined(ops[:2])}
    assert dict(after.slice_cells(8, CIRCLE)) == {0: combined(ops[2:4])}
    assert after.disc_top(CIRCLE) == combined(ops[:4])


def test_10_one_update_may_bring_several_full_slices() -> None:
    ops = [make_op(number, created_at_us=10 * number) for number in range(40)]
    after = cells_of(ops, now_us=231).moved_to(layout_at(391, TINY))
    assert after.layout.full_count == 4
    assert [dict(after.slice_cells(start, CIRCLE)) for start in (16, 24)] == [
        {0: combined(ops[16:24])},
        {0: combined(ops[24:32])},
    ]


@pytest.mark.parametrize("created", [None, 0, 3 * 80])
def test_11_how_many_full_slices_there_are_does_not_depend_on_the_data(created: int | None) -> None:
    ops = [] if created is None else [make_op(0, created_at_us=created)]
    cells = cells_of(ops, now_us=(5 * 8 + 7) * 10 + 1)
    assert cells.layout.full_count == 5
    assert cells.full_slices() == [op.created_at_us // 10 for op in ops]
    assert cells.nbytes == (1 + len(ops)) * 32 * 40


@pytest.mark.parametrize("created", [*IN_DISC, *IN_RINGS, *IN_TAIL])
def test_12_an_op_is_added_to_an_empty_slice_and_xored_into_one_that_is_not(created: int) -> None:
    one, other = make_op(1, created_at_us=created), make_op(2, created_at_us=created)
    cells = Cells(layout_at(NOW_US, TINY))
    slices = [0, 8, 12, 14, 15]
    for ops in ([one], [one, other]):
        cells.insert(ops[-1].op_id, 0, created)
        held = {start: dict(cells.slice_cells(start, CIRCLE)) for start in slices}
        (start,) = (start for start in slices if created in cells.layout.slice_us(start))
        assert held == {one: {0: combined(ops)} if one == start else {} for one in slices}
        assert cells.disc_top(CIRCLE) == (combined(ops) if start == 0 else NOTHING)


def test_16_an_op_goes_into_the_sector_of_its_location() -> None:
    ops = [make_op(sector, sector=sector, created_at_us=85) for sector in range(32)]
    cells = cells_of(ops, now_us=NOW_US)
    assert dict(cells.slice_cells(8, CIRCLE)) == {op.sector: op.combined for op in ops}


def test_17_all_sectors_are_updated_at_the_same_time() -> None:
    ops = [make_op(sector, sector=sector, created_at_us=155) for sector in range(32)]
    moved = cells_of(ops, now_us=NOW_US).moved_to(layout_at(NOW_US + 10, TINY))
    assert moved.layout.next_update_us == 170
    assert dict(moved.slice_cells(15, CIRCLE)) == {op.sector: op.combined for op in ops}


def test_18_an_update_fills_just_one_slice_in_each_sector() -> None:
    ops = [make_op(sector, sector=sector, created_at_us=150 + sector % 10) for sector in range(32)]
    before = cells_of(ops, now_us=NOW_US)
    after = before.moved_to(layout_at(NOW_US + 10, TINY))
    assert before.ring_tops(CIRCLE) == (NOTHING,) * 3
    assert after.ring_tops(CIRCLE) == (NOTHING,) * 3 + (combined(ops),)


def test_top_hashes_are_those_of_the_arcs_alone() -> None:
    ops = [
        make_op(10 * sector + number, sector=sector, created_at_us=created)
        for sector in range(32)
        for number, created in enumerate((0, 85, 155))
    ]
    cells = cells_of(ops, now_us=NOW_US)
    for arcs in (arcs_of(7), arcs_of(*range(8, 16)), arcs_of(0, 5, 31), CIRCLE):
        disc, ring, tail = (combined(op for op in ops[number::3] if op.sector in arcs) for number in range(3))
        assert cells.disc_top(arcs) == disc
        assert cells.ring_tops(arcs) == (ring, NOTHING, NOTHING)
        assert cells.tail_tops(arcs, 1) == (tail, NOTHING)


def test_the_tail_is_told_by_unit_and_what_is_further_on_as_one() -> None:
    ops = [make_op(number, created_at_us=created) for number, created in enumerate((149, 150, 159, 160, 170, 10**6))]
    tops = cells_of(ops, now_us=NOW_US).tail_tops(CIRCLE, 2)
    assert tops == (combined(ops[1:3]), combined(ops[3:4]), combined(ops[4:]))


def test_a_slice_costs_memory_only_while_it_holds_an_op() -> None:
    op = make_op(1, created_at_us=0)
    cells = Cells(layout_at(NOW_US, TINY))
    empty = cells.nbytes
    cells.insert(op.op_id, 0, 0)
    assert cells.nbytes == 2 * empty
    cells.remove(op.op_id, 0, 0)
    assert cells.nbytes == empty
    assert cells.disc_top(CIRCLE) == NOTHING


def test_moving_leaves_the_cells_as_they_were() -> None:
    ops = [make_op(number, sector=number % 32, created_at_us=number) for number in range(155)]
    cells = cells_of(ops, now_us=NOW_US)
    tops = cells.disc_top(CIRCLE), cells.ring_tops(CIRCLE), cells.tail_tops(CIRCLE, 2)
    moved = cells.moved_to(layout_at(NOW_US + 200, TINY))
    assert (cells.disc_top(CIRCLE), cells.ring_tops(CIRCLE), cells.tail_tops(CIRCLE, 2)) == tops
    assert moved.op_count == cells.op_count == 155


def test_a_copy_and_what_it_is_of_change_on_their_own() -> None:
    ops = [make_op(number, sector=number % 32, created_at_us=number) for number in range(155)]
    cells, more = cells_of(ops, now_us=NOW_US), make_op(155, created_at_us=17)
    copied = cells.copy()
    assert [copied.disc_top(CIRCLE), *copied.ring_tops(CIRCLE)] == [cells.disc_top(CIRCLE), *cells.ring_tops(CIRCLE)]
    cells.insert(more.op_id, more.sector, more.created_at_us)
    copied.remove(ops[85].op_id, ops[85].sector, 85)
    assert cells.disc_top(CIRCLE) == copied.disc_top(CIRCLE) + more.combined
    assert copied.ring_tops(CIRCLE)[0] + ops[85].combined == cells.ring_tops(CIRCLE)[0]
    assert dict(cells.slice_cells(0, arcs_of(0)))[0] == dict(copied.slice_cells(0, arcs_of(0)))[0] + more.combined


def test_an_op_that_was_not_inserted_cannot_be_removed_from_an_empty_cell() -> None:
    op = make_op(1, sector=1, created_at_us=85)
    cells = cells_of([op], now_us=NOW_US)
    for sector, created in ((1, 0), (2, 85)):
        with pytest.raises(LocalProtocolError):
            cells.remove(make_op(2).op_id, sector, created)
    assert cells.op_count == 1
    assert cells.ring_tops(CIRCLE)[0] == op.combined


def test_a_batch_that_takes_more_than_there_is_takes_nothing() -> None:
    op = make_op(1, sector=1, created_at_us=85)
    cells = cells_of([op], now_us=NOW_US)
    ids = np.frombuffer(op.op_id * 2, np.uint8).reshape(2, 32)
    for sectors, times in (([1, 1], [85, 85]), ([1, 2], [85, 85]), ([1, 1], [85, 0])):
        with pytest.raises(LocalProtocolError):
            cells.remove_batch(ids, np.array(sectors), np.array(times))
    assert cells.ring_tops(CIRCLE)[0] == op.combined


@pytest.mark.parametrize(
    ("op_id", "sector", "created"),
    [(bytes(31), 0, 0), (bytes(32), 32, 0), (bytes(32), -1, 0), (bytes(32), 0, -1), (bytes(32), 0, 2**63)],
)
def test_what_is_no_op_is_refused(op_id: bytes, sector: int, created: int) -> None:
    cells = Cells(layout_at(NOW_US, TINY))
    for change in (cells.insert, cells.remove):
        with pytest.raises(ValidationError):
            change(op_id, sector, created)


@pytest.mark.parametrize(
    ("ids", "sectors", "times"),
    [
        ((2, 31), [0, 0], [0, 0]),
        ((2, 32), [0], [0, 0]),
        ((2, 32), [0, 0], [0]),
        ((2, 32), [0, 32], [0, 0]),
        ((2, 32), [-1, 0], [0, 0]),
        ((2, 32), [0, 0], [0, -1]),
    ],
)
def test_a_batch_that_is_none_is_refused(ids: tuple[int, int], sectors: list[int], times: list[int]) -> None:
    cells = Cells(layout_at(NOW_US, TINY))
    for change in (cells.insert_batch, cells.remove_batch):
        with pytest.raises(ValidationError):
            change(np.zeros(ids, np.uint8), np.array(sectors), np.array(times))
    assert cells.op_count == 0


def test_an_empty_batch_changes_nothing() -> None:
    cells = Cells(layout_at(NOW_US, TINY))
    cells.insert_batch(np.zeros((0, 32), np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert cells.op_count == 0


def test_counts_picture_the_cells_with_the_times_of_their_slices() -> None:
    ops = [make_op(number, sector=number, created_at_us=created) for number, created in enumerate((0, 1, 85, 155, 175))]
    counts = cells_of(ops, now_us=NOW_US).counts()
    assert counts.slices == (
        range(80),
        range(80, 120),
        range(120, 140),
        range(140, 150),
        range(150, 160),
        range(170, 180),
    )
    assert (counts.full, counts.rings, counts.ops.shape) == (1, 3, (6, 32))
    assert [row[:6].tolist() for row in counts.ops] == [
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0] * 6,
        [0] * 6,
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
    ]
