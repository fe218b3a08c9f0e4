"""Snapshots, and comparing them. Numbers in names are those of the reference's scenarios.

At 151 µs the tiny partition has the full slice [0, 80), the rings [80, 120), [120, 140), [140, 150), which begin at the
units 8, 12 and 14, and the tail from 150 on, unit 15.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.errors import ValidationError
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.cells import Cell, Cells
from prime_dht.partition.combined import NOTHING
from prime_dht.partition.compare import (
    CannotCompare,
    CellMismatch,
    DiscMismatch,
    Identical,
    Reason,
    RingMismatch,
    SectorMismatch,
    compare,
    next_action,
)
from prime_dht.partition.parameters import PartitionParameters
from prime_dht.partition.slices import layout_at
from prime_dht.partition.snapshot import (
    DiscDetailsSnapshot,
    DiscSectorsSnapshot,
    MinimalSnapshot,
    RingDetailsSnapshot,
    Snapshot,
    disc_details_snapshot,
    disc_sectors_snapshot,
    minimal_snapshot,
    ring_details_snapshot,
)
from prime_dht.testing.partition_samples import CIRCLE, TINY, arcs_of, cells_of, make_op

NOW_US = 151
ONE, OTHER = make_op(1).combined, make_op(2).combined
LAYOUT = layout_at(NOW_US, TINY)
CELLS = cells_of(
    [make_op(number, sector=number % 5, created_at_us=number % 160) for number in range(400)], now_us=NOW_US
)


def minimal(
    now_us: int = NOW_US, *, disc: bool = True, rings: tuple[int, ...] = (), tail: bool = True
) -> MinimalSnapshot:
    """A minimal snapshot that differs from the default in the disc, in rings, by their index, or in the tail."""
    layout = layout_at(now_us, TINY)
    return MinimalSnapshot(
        layout=layout,
        arcs=CIRCLE,
        disc=ONE if disc else OTHER,
        rings=tuple(OTHER if ring in rings else ONE for ring in range(len(layout.ring_sizes))),
        tail=(ONE, NOTHING, NOTHING if tail else OTHER),
    )


def all_kinds(cells: Cells, arcs: ArcSet = CIRCLE) -> list[Snapshot]:
    return [
        minimal_snapshot(cells, arcs),
        disc_sectors_snapshot(cells, arcs),
        disc_details_snapshot(cells, arcs),
        ring_details_snapshot(cells, arcs, {*cells.layout.ring_starts, cells.layout.tail_start}),
    ]


def sectors(now_us: int = NOW_US, **told: int) -> DiscSectorsSnapshot:
    """The disc's sectors by name (s3), each with the combined hash of the op with a number."""
    return DiscSectorsSnapshot(
        layout=layout_at(now_us, TINY),
        arcs=CIRCLE,
        sectors={int(name[1:]): make_op(op).combined for name, op in told.items()},
    )


def details(told: dict[tuple[int, int], int], now_us: int = 311) -> DiscDetailsSnapshot:
    """Cells (sector, start), each with the combined hash of the op with a number. There are 3 full slices."""
    return DiscDetailsSnapshot(
        layout=layout_at(now_us, TINY),
        arcs=CIRCLE,
        cells={Cell(*cell): make_op(op).combined for cell, op in told.items()},
    )


def ring_details(
    told: dict[tuple[int, int], int], rings: frozenset[int] = frozenset({8, 15}), now_us: int = NOW_US
) -> RingDetailsSnapshot:
    return RingDetailsSnapshot(
        layout=layout_at(now_us, TINY),
        arcs=CIRCLE,
        rings=rings,
        cells={Cell(*cell): make_op(op).combined for cell, op in told.items()},
    )


def test_24_what_is_compared_with_itself_is_identical() -> None:
    for snapshot in all_kinds(CELLS):
        assert compare(snapshot, snapshot) == Identical()


def test_25_if_the_disc_differs_that_is_said() -> None:
    assert compare(minimal(), minimal(disc=False)) == DiscMismatch()


def test_25_that_the_disc_differs_comes_before_rings() -> None:
    assert compare(minimal(), minimal(disc=False, rings=(1,), tail=False)) == DiscMismatch()


def test_26_with_different_disc_boundaries_snapshots_cannot_be_compared_at_any_level() -> None:
    far_us = NOW_US + 80
    pairs: list[tuple[Snapshot, Snapshot]] = [
        (minimal(), minimal(far_us)),
        (sectors(), sectors(far_us)),
        (details({}), details({}, now_us=311 + 80)),
        (ring_details({}), ring_details({}, frozenset({16, 23}), now_us=far_us)),
    ]
    for one, other in pairs:
        assert compare(one, other) == compare(other, one) == CannotCompare(Reason.LAYOUTS)


def test_27_rings_that_differ_are_named_by_where_they_begin() -> None:
    assert compare(minimal(), minimal(rings=(0, 2))) == RingMismatch((8, 14))


def test_27_the_tail_that_differs_is_named_likewise() -> None:
    assert compare(minimal(), minimal(tail=False)) == RingMismatch((15,))


def test_27_with_another_number_of_rings_snapshots_cannot_be_compared() -> None:
    assert compare(minimal(), minimal(NOW_US + 30)) == CannotCompare(Reason.LAYOUTS)
    for rings in ((ONE,) * 2, (ONE,) * 4):
        with pytest.raises(ValidationError, match="rings"):
            replace(minimal(), rings=rings)


@pytest.mark.parametrize(
    ("ours", "theirs", "differing"),
    [
        (sectors(s1=1, s3=1), sectors(s1=1), [3]),
        (sectors(s1=1), sectors(s1=1, s3=1), [3]),
        (sectors(s1=1, s3=1), sectors(s1=2, s3=1), [1]),
        (sectors(s1=1), sectors(s3=1), [1, 3]),
    ],
    ids=["missing there", "missing here", "unequal", "missing either way"],
)
def test_28_sectors_differ(ours: Snapshot, theirs: Snapshot, differing: list[int]) -> None:
    assert compare(ours, theirs) == SectorMismatch(arcs_of(*differing))


@pytest.mark.parametrize(
    ("ours", "theirs", "differing"),
    [
        ({(1, 0): 1, (1, 8): 2, (2, 0): 3}, {(2, 0): 3}, [(1, 0), (1, 8)]),
        ({(2, 0): 3}, {(1, 0): 1, (1, 8): 2, (2, 0): 3}, [(1, 0), (1, 8)]),
        ({(1, 0): 1, (1, 8): 2}, {(1, 0): 1}, [(1, 8)]),
        ({(1, 0): 1}, {(1, 0): 1, (1, 8): 2}, [(1, 8)]),
        ({(1, 0): 1, (1, 8): 2}, {(1, 0): 1, (1, 8): 3}, [(1, 8)]),
    ],
    ids=["sector missing there", "sector missing here", "slice missing there", "slice missing here", "unequal"],
)
def test_29_cells_of_the_disc_differ(
    ours: dict[tuple[int, int], int], theirs: dict[tuple[int, int], int], differing: list[tuple[int, int]]
) -> None:
    assert compare(details(ours), details(theirs)) == CellMismatch(tuple(Cell(*cell) for cell in differing))


def test_29_cells_that_differ_come_in_order() -> None:
    cells = [(sector, start) for sector in range(0, 32, 3) for start in (0, 8, 16)]
    theirs = details(dict.fromkeys(reversed(cells), 1))
    assert compare(details({}), theirs) == CellMismatch(tuple(Cell(*cell) for cell in cells))


def test_30_details_of_other_rings_cannot_be_compared() -> None:
    assert compare(ring_details({}), ring_details({}, frozenset({8}))) == CannotCompare(Reason.RINGS)
    assert compare(ring_details({}), ring_details({}, frozenset({8, 14}))) == CannotCompare(Reason.RINGS)


@pytest.mark.parametrize(
    ("ours", "theirs", "differing"),
    [
        ({(1, 8): 1, (3, 15): 2}, {(1, 8): 1}, [(3, 15)]),
        ({(1, 8): 1}, {(1, 8): 1, (3, 15): 2}, [(3, 15)]),
        ({(1, 8): 1, (3, 15): 2}, {(1, 8): 2, (3, 15): 2}, [(1, 8)]),
    ],
    ids=["missing there", "missing here", "unequal"],
)
def test_30_cells_of_rings_differ(
    ours: dict[tuple[int, int], int], theirs: dict[tuple[int, int], int], differing: list[tuple[int, int]]
) -> None:
    assert compare(ring_details(ours), ring_details(theirs)) == CellMismatch(tuple(Cell(*cell) for cell in differing))


def test_snapshots_of_different_kinds_cannot_be_compared() -> None:
    kinds = all_kinds(CELLS)
    for number, one in enumerate(kinds):
        for other in kinds[number + 1 :]:
            assert compare(one, other) == compare(other, one) == CannotCompare(Reason.KINDS)


def test_snapshots_of_other_parameters_cannot_be_compared() -> None:
    others = Cells(layout_at(NOW_US, PartitionParameters(unit_us=20, factor=3, sector_bits=5)))
    for one, other in zip(all_kinds(CELLS), all_kinds(others), strict=True):
        assert compare(one, other) == next_action(CELLS, other, common=CIRCLE) == CannotCompare(Reason.PARAMETERS)


def test_minimal_snapshots_of_different_arcs_cannot_be_compared() -> None:
    ours, theirs = minimal_snapshot(CELLS, CIRCLE), minimal_snapshot(CELLS, arcs_of(1))
    assert compare(ours, theirs) == CannotCompare(Reason.ARCS)


def test_of_sectors_that_only_one_snapshot_tells_of_nothing_is_said() -> None:
    ops = [
        make_op(sector + created, sector=sector, created_at_us=created) for sector in (30, 31) for created in (0, 85)
    ]
    theirs = cells_of(ops, now_us=NOW_US)
    for ours, told in zip(all_kinds(Cells(LAYOUT), arcs_of(30))[1:], all_kinds(theirs)[1:], strict=True):
        match compare(ours, told):
            case SectorMismatch(sectors=differing):
                assert differing == arcs_of(30)
            case CellMismatch(cells=cells):
                assert {cell.sector for cell in cells} == {30}
            case other:
                raise AssertionError(other)


def test_31_an_empty_arc_has_no_snapshot() -> None:
    none = ArcSet.empty(sector_bits=5)
    for make in (minimal_snapshot, disc_sectors_snapshot, disc_details_snapshot):
        with pytest.raises(ValidationError):
            make(CELLS, none)
    with pytest.raises(ValidationError):
        ring_details_snapshot(CELLS, none, {8})
    assert next_action(CELLS, minimal(), common=none) == CannotCompare(Reason.ARCS)


@pytest.mark.parametrize(
    "make",
    [
        lambda: minimal_snapshot(CELLS, ArcSet.full(sector_bits=9)),
        lambda: replace(minimal(), tail=()),
        lambda: replace(minimal(), tail=(ONE,) * 4),
        lambda: replace(sectors(s3=1), arcs=arcs_of(2)),
        lambda: replace(sectors(), sectors={3: NOTHING}),
        lambda: replace(sectors(), sectors={32: ONE}),
        lambda: replace(details({(3, 0): 1}), arcs=arcs_of(2)),
        lambda: details({(3, 1): 1}),
        lambda: details({(3, 24): 1}),
        lambda: details({(3, -8): 1}),
        lambda: replace(details({}), cells={Cell(3, 0): NOTHING}),
        lambda: ring_details({(3, 12): 1}),
        lambda: ring_details({}, frozenset({8, 9})),
        lambda: ring_details({}, frozenset({0})),
        lambda: replace(ring_details({(3, 8): 1}), arcs=arcs_of(2)),
        lambda: replace(ring_details({}), cells={Cell(3, 8): NOTHING}),
        lambda: ring_details_snapshot(CELLS, CIRCLE, {9}),
    ],
)
def test_a_snapshot_that_contradicts_itself_cannot_be_made(make: Callable[[], Snapshot]) -> None:
    with pytest.raises(ValidationError):
        make()


def test_a_minimal_snapshot_can_be_moved_no_further_than_it_tells_the_tail() -> None:
    snapshot = minimal_snapshot(CELLS, CIRCLE)
    moved = snapshot.moved_to(layout_at(NOW_US + 20, TINY))
    assert moved is not None
    assert len(moved.tail) == 1
    assert snapshot.moved_to(layout_at(NOW_US + 30, TINY)) is None
    assert moved.moved_to(layout_at(NOW_US + 30, TINY)) is None


def test_of_a_node_more_than_two_ticks_ahead_nothing_is_compared() -> None:
    for ticks, too_far in ((2, False), (3, True)):
        theirs = CELLS.moved_to(layout_at(NOW_US + 10 * ticks, TINY))
        for snapshot in all_kinds(theirs):
            action = next_action(CELLS, snapshot, common=CIRCLE)
            assert action == (CannotCompare(Reason.LAYOUTS) if too_far else Identical())


def test_of_a_node_that_a_tick_has_left_behind_rings_cannot_be_compared_and_the_disc_still_can() -> None:
    ours = CELLS.moved_to(layout_at(NOW_US + 10, TINY))
    assert [next_action(ours, snapshot, common=CIRCLE) for snapshot in all_kinds(CELLS)] == [
        Identical(),
        Identical(),
        Identical(),
        CannotCompare(Reason.LAYOUTS),
    ]
    merged = CELLS.moved_to(layout_at(NOW_US + 20, TINY))
    assert 15 in ours.layout.ring_starts
    assert 15 not in merged.layout.ring_starts
    gone = ring_details_snapshot(ours, CIRCLE, {15})
    assert next_action(merged, gone, common=CIRCLE) == CannotCompare(Reason.LAYOUTS)


@settings(derandomize=True, deadline=None)
@given(
    st.sets(st.tuples(st.integers(0, 31), st.integers(0, 600)), max_size=60),
    st.integers(0, 500),
    st.integers(0, 20),
    st.integers(1, 2**32 - 1),
)
def test_a_minimal_snapshot_moved_is_that_of_the_cells_moved(
    places: set[tuple[int, int]], now_us: int, later_us: int, bits: int
) -> None:
    ops = [make_op(number, sector=sector, created_at_us=us) for number, (sector, us) in enumerate(sorted(places))]
    cells, later, arcs = cells_of(ops, now_us=now_us), layout_at(now_us + later_us, TINY), ArcSet(bits, 5)
    moved, made = minimal_snapshot(cells, arcs).moved_to(later), minimal_snapshot(cells.moved_to(later), arcs)
    if later.tail_start > cells.layout.tail_start + 2:
        assert moved is None
    else:
        assert moved is not None
        assert (moved.disc, moved.rings) == (made.disc, made.rings)
        assert sum(moved.tail, start=NOTHING) == sum(made.tail, start=NOTHING)
        assert compare(minimal_snapshot(cells, arcs), made) == Identical()
