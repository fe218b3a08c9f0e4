"""The picture of a partition shows each op just once, in the row of its sector and the column of its slice."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.errors import ValidationError
from prime_dht.partition.cells import Cells
from prime_dht.partition.drawing import circle_svg, graph_svg
from prime_dht.partition.parameters import PARAMETERS, PartitionParameters
from prime_dht.partition.picture import coarser, describe, parts, text_picture
from prime_dht.partition.slices import layout_at

NOW_US = 1_800_000_001_000_000
DAY_US = 86_400_000_000

ops = st.lists(st.tuples(st.integers(0, 511), st.integers(0, 4_000 * DAY_US)), max_size=60)


def cells_of(*placed: tuple[int, int]) -> Cells:
    """Cells with an op for each (sector, age in µs)."""
    rng = Random(5)
    cells = Cells(layout_at(NOW_US, PARAMETERS))
    for sector, age_us in placed:
        cells.insert(rng.randbytes(32), sector, NOW_US - age_us)
    return cells


@settings(derandomize=True, deadline=None, max_examples=50)
@given(placed=ops, rows=st.sampled_from([1, 8, 64, 512]), full_columns=st.integers(1, 80))
def test_coarser_counts_hold_the_same_ops(placed: list[tuple[int, int]], rows: int, full_columns: int) -> None:
    counts = cells_of(*placed).counts()
    drawn = coarser(counts, rows=rows, full_columns=full_columns)
    assert drawn.ops.sum() == len(placed)
    assert drawn.full <= full_columns
    assert drawn.rings == counts.rings
    assert drawn.ops.shape == (len(drawn.slices), rows)
    for row in range(rows):
        sectors = range(row * 512 // rows, (row + 1) * 512 // rows)
        assert drawn.ops[:, row].sum() == sum(sector in sectors for sector, _ in placed)
    for column, span in enumerate(drawn.slices):
        assert drawn.ops[column].sum() == sum(NOW_US - age_us in span for _, age_us in placed)


def test_the_picture_has_a_line_for_each_row_and_a_column_for_each_slice() -> None:
    head, *lines = text_picture(cells_of((511, 0), (0, 100 * DAY_US)).counts(), rows=8).splitlines()
    assert head.split() == ["sectors", "d", "rings", "t"]
    assert lines[0] == "448–511  │ │           │.│"
    assert lines[7] == "   0–63  │.│           │ │"
    assert all(line.endswith("│ │           │ │") for line in lines[1:7])


def test_the_more_ops_a_cell_holds_the_darker_it_is() -> None:
    placed = [(0, 0)] + [(64, 0)] * 20 + [(128, 0)] * 900
    lines = text_picture(cells_of(*placed).counts(), rows=8).splitlines()
    assert [line[-2] for line in reversed(lines[1:9])] == [".", "+", "@", " ", " ", " ", " ", " "]
    assert lines[9] == "ops in a cell: '.' 1, '+' 20, '@' 900"


def test_a_shade_stands_for_more_the_more_the_fullest_cell_holds() -> None:
    placed = [(64 * row, 0) for row in range(8) for _ in range(3**row)]
    lines = text_picture(cells_of(*placed).counts(), rows=8).splitlines()
    assert [line[-2] for line in reversed(lines[1:9])] == [".", ":", "=", "+", "*", "#", "%", "@"]
    assert "cell: ':' 2 to 3, '=' 9" in text_picture(cells_of((0, 0), *placed).counts(), rows=8)


def test_labels_and_cells_stand_below_each_other_however_few_sectors_there_are() -> None:
    cells = Cells(layout_at(151, PartitionParameters(unit_us=10, factor=3, sector_bits=5)))
    cells.insert(bytes(32), 31, 0)
    assert text_picture(cells.counts(), rows=2).splitlines() == [
        "sectors   d r",
        "  16–31  │.│   │",
        "   0–15  │ │   │",
        "ops in a cell: '.' 1",
        "from 1970-01-01 00:00; rings from 1970-01-01 00:00",
    ]
    assert text_picture(cells.counts(), rows=32).splitlines()[1] == "     31  │.│   │"


def test_before_there_is_any_slice_the_picture_has_no_times() -> None:
    assert text_picture(Cells(layout_at(0, PARAMETERS)).counts(), rows=1).splitlines() == ["sectors", "  0–511  ││"]


def test_an_op_dated_after_the_year_9999_is_drawn_too() -> None:
    cells = Cells(layout_at(NOW_US, PARAMETERS))
    cells.insert(bytes(32), 3, 2**63 - 1)
    assert describe(cells.counts()).endswith("tail  1 op, day 106,751,991 to day 106,751,991")
    assert text_picture(cells.counts(), rows=8).endswith("; tail from day 106,751,991")
    assert all(": 1 op<" in draw(cells.counts()) for draw in (graph_svg, circle_svg))


def test_an_empty_partition_is_drawn_and_described_too() -> None:
    counts = cells_of().counts()
    assert describe(counts).splitlines()[0] == "0 ops in 0 of 512 sectors, the most in one: 0"
    assert "disc  empty" in describe(counts)
    assert "tail  empty" in describe(counts)
    assert len(text_picture(counts, rows=32).splitlines()) == 34


def test_the_description_names_disc_rings_and_tail() -> None:
    assert describe(cells_of((3, 0), (4, DAY_US), (4, DAY_US + 1), (4, 400 * DAY_US)).counts()).splitlines() == [
        "4 ops in 2 of 512 sectors, the most in one: 3",
        "disc  1 op in 1 full slice of 5.3 d, 2025-12-10 00:00 to 2025-12-15 08:00",
        "rings 2 ops in 1 of 11 partial slices, 2027-01-08 16:00 to 2027-01-15 08:00",
        "tail  1 op, 2027-01-15 08:00 to 2027-01-15 08:15",
    ]


def test_the_parts_are_all_of_it() -> None:
    counts = cells_of((3, 0), (4, DAY_US), (4, 400 * DAY_US)).counts()
    assert [part.slices for part in parts(counts)] == [
        counts.slices[:1],
        counts.slices[1 : 1 + counts.rings],
        counts.slices[1 + counts.rings :],
    ]
    assert [int(part.ops.sum()) for part in parts(counts)] == [1, 1, 1]
    assert [(part.full, part.rings) for part in parts(counts)] == [(1, 0), (counts.rings, 0), (1, 0)]


@pytest.mark.parametrize(("rows", "full_columns"), [(0, 1), (3, 1), (1024, 1), (8, 0)])
def test_what_cannot_be_drawn_is_refused(rows: int, full_columns: int) -> None:
    with pytest.raises(ValidationError, match=r"rows is a power of two|full_columns is at least 1"):
        coarser(cells_of().counts(), rows=rows, full_columns=full_columns)
