"""The drawings are well-formed SVG in which every cell with ops, and only such, is painted over its slice."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from xml.etree import ElementTree

import pytest

from prime_dht.errors import ValidationError
from prime_dht.partition.cells import Cells, Counts
from prime_dht.partition.drawing import CIRCLE_RADIUS, FULL, MARGIN, OPS, PARTIAL, circle_svg, graph_svg
from prime_dht.partition.parameters import PARAMETERS
from prime_dht.partition.slices import layout_at

NOW_US = 1_800_000_001_000_000
DAY_US = 86_400_000_000
SVG = "{http://www.w3.org/2000/svg}"

draws = pytest.mark.parametrize("draw", [graph_svg, circle_svg])


def counts_of(*placed: tuple[int, int]) -> Counts:
    rng = Random(5)
    cells = Cells(layout_at(NOW_US, PARAMETERS))
    for sector, age_us in placed:
        cells.insert(rng.randbytes(32), sector, NOW_US - age_us)
    return cells.counts()


def painted(svg: str, fill: str) -> list[str]:
    """What the shapes of a colour say of themselves."""
    shapes = [shape for shape in ElementTree.fromstring(svg).iter() if shape.get("fill") == fill]
    return [shape.findtext(f"{SVG}title") or "" for shape in shapes]


@draws
def test_full_slices_are_light_and_partial_ones_and_the_tail_dark(draw: Callable[[Counts], str]) -> None:
    counts = counts_of((3, 0), (4, DAY_US), (4, 400 * DAY_US), (9, 800 * DAY_US))
    svg = draw(counts)
    assert len(painted(svg, FULL)) == counts.full == 2
    assert len(painted(svg, PARTIAL)) == counts.rings + 1 == 12
    assert "2027-01-15 08:00 to 2027-01-15 08:15" in painted(svg, PARTIAL)


@draws
def test_every_cell_with_ops_is_painted_and_says_how_many(draw: Callable[[Counts], str]) -> None:
    svg = draw(counts_of((3, 0), (4, 0), (300, 400 * DAY_US)))
    assert sorted(painted(svg, OPS)) == [
        "sectors 0–7, 2027-01-15 08:00 to 2027-01-15 08:15: 2 ops",
        "sectors 296–303, 2025-12-10 00:00 to 2025-12-15 08:00: 1 op",
    ]


@draws
def test_the_fullest_cell_is_opaque_and_others_are_not(draw: Callable[[Counts], str]) -> None:
    svg = draw(counts_of((3, 0), *[(300, 0)] * 9))
    opacities = sorted(
        float(shape.get("fill-opacity", "1"))
        for shape in ElementTree.fromstring(svg).iter()
        if shape.get("fill") == OPS
    )
    assert 0.25 < opacities[0] < opacities[1] == 1.0


def test_a_circle_of_one_row_is_refused_because_it_would_show_nothing() -> None:
    assert len(painted(circle_svg(counts_of((3, 0)), rows=2), OPS)) == 1
    with pytest.raises(ValidationError, match="2 rows"):
        circle_svg(counts_of((3, 0)), rows=1)


@draws
def test_nothing_at_all_can_be_drawn(draw: Callable[[Counts], str]) -> None:
    assert painted(draw(counts_of()), OPS) == []


def test_in_the_graph_location_0_is_at_the_bottom_and_now_is_right() -> None:
    svg = graph_svg(counts_of((0, 400 * DAY_US), (511, 0)))
    old, new = [shape for shape in ElementTree.fromstring(svg).iter() if shape.get("fill") == OPS]
    assert float(old.get("x", "0")) < float(new.get("x", "0"))
    assert float(old.get("y", "0")) > float(new.get("y", "0"))


def test_the_graph_says_from_when_to_when_it_reaches_once_there_is_a_slice() -> None:
    svg = graph_svg(counts_of((0, 400 * DAY_US), (511, 0)))
    times = [text for shape in ElementTree.fromstring(svg).iter(f"{SVG}text") if "UTC" in (text := shape.text or "")]
    assert times == ["2025-12-10 00:00 UTC", "2027-01-15 08:15 UTC"]
    assert "UTC" not in graph_svg(Cells(layout_at(0, PARAMETERS)).counts())


def test_in_the_circle_locations_go_clockwise_from_the_top_and_time_outwards() -> None:
    svg = circle_svg(counts_of((0, 400 * DAY_US), (128, 0), (511, 0)), rows=4)
    paths = [shape.get("d", "") for shape in ElementTree.fromstring(svg).iter() if shape.get("fill") == OPS]
    first_quarter, second_quarter, last_quarter = ([float(n) for n in re.findall(r"[\d.]+", path)] for path in paths)
    middle, edge = CIRCLE_RADIUS + MARGIN, 2 * CIRCLE_RADIUS + MARGIN
    assert first_quarter[:2] == [middle, middle]  # the oldest slice begins in the middle
    assert second_quarter[2:4] == [edge, middle]  # the tail ends at the edge: the quarter from three o'clock on
    assert second_quarter[9:11] == [middle, edge]  # to six
    assert last_quarter[2:4] == [MARGIN, middle]  # from nine
    assert last_quarter[9:11] == [middle, MARGIN]  # to twelve


def test_a_full_slice_is_ten_times_as_broad_as_a_unit() -> None:
    svg = graph_svg(counts_of((0, 400 * DAY_US), (511, 0)))
    rects = [shape for shape in ElementTree.fromstring(svg).iter() if shape.get("fill") in (FULL, PARTIAL)]
    full, *_, unit = [float(shape.get("width", "0")) for shape in rects]
    assert full / unit == pytest.approx(10, rel=0.01)
