"""A partition as SVG: the graph, with time to the right and locations up, and the circle, with time outwards.

Both show the same cells: full slices are light, partial slices and the tail dark, and over both lies an orange that is
the denser the more ops a cell holds. A unit slice lasts a quarter of an hour and a full slice five days, so a slice is
drawn not as long as it lasts but ``1 + log2`` of its units: a full slice ten times as broad as a unit slice. Full
slices without any op are left out. Each cell says in words what it is when a browser's pointer rests on it.

In the circle locations go round clockwise from the top, where the highest and the lowest meet, and time begins in the
middle: full slices make up the disc, each partial slice is a ring around it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

from prime_dht.errors import ValidationError
from prime_dht.partition.cells import Counts
from prime_dht.partition.picture import coarser, moment, ops_text, sectors_text

FULL, PARTIAL, OPS, LINE = "#bcdcf5", "#1f5a8c", "#ff8c1a", "#ffffff"

GRAPH_WIDTH, GRAPH_HEIGHT = 1200.0, 640.0
CIRCLE_RADIUS = 480.0
MARGIN = 48.0

FAINTEST = 0.25
"""How opaque the orange of a cell with one op is; that of the fullest cell is opaque."""

CAPTION = "light: full slices, dark: partial slices and the tail; the denser the orange, the more ops"


@dataclass(frozen=True, slots=True)
class _Strip:
    """A slice: where it is drawn, from 0 to 1, and what it is."""

    start: float
    stop: float
    is_full: bool
    name: str


def graph_svg(counts: Counts, *, rows: int = 64, full_columns: int = 80) -> str:
    """Time to the right, locations upwards.

    Args:
        counts, rows, full_columns: see :func:`prime_dht.partition.picture.text_picture`.

    Raises:
        ValidationError: ``rows`` or ``full_columns`` is out of range.
    """
    drawn = coarser(counts, rows=rows, full_columns=full_columns)
    height = GRAPH_HEIGHT / rows

    def body() -> Iterator[str]:
        for column, strip in enumerate(_strips(drawn)):
            x, width = MARGIN + strip.start * GRAPH_WIDTH, (strip.stop - strip.start) * GRAPH_WIDTH
            yield _rect(x, MARGIN, width, GRAPH_HEIGHT, fill=FULL if strip.is_full else PARTIAL, title=strip.name)
            for row, opacity, title in _used(drawn, column, strip, counts.ops.shape[1] // rows):
                y = MARGIN + GRAPH_HEIGHT - (row + 1) * height
                yield _rect(x, y, width, height, fill=OPS, opacity=opacity, title=title)
            yield f'<path d="M{x:.2f} {MARGIN:g}v{GRAPH_HEIGHT:g}" stroke="{LINE}" stroke-width="0.5"/>'
        for row in range(rows + 1):
            y = MARGIN + row * height
            yield f'<path d="M{MARGIN:g} {y:.2f}h{GRAPH_WIDTH:g}" stroke="{LINE}" stroke-width="0.25"/>'
        below = MARGIN + GRAPH_HEIGHT + 18
        if drawn.slices:
            yield _text(MARGIN, below, f"{moment(drawn.slices[0].start)} UTC")
            yield _text(MARGIN + GRAPH_WIDTH, below, f"{moment(drawn.slices[-1].stop)} UTC", anchor="end")
        yield _text(MARGIN, MARGIN - 8, f"location 2^32 − 1, sector {counts.ops.shape[1] - 1}")
        yield _text(MARGIN, below + 18, f"location 0 at the bottom; {CAPTION}")

    return _document(GRAPH_WIDTH + 2 * MARGIN, GRAPH_HEIGHT + 2 * MARGIN, body())


def circle_svg(counts: Counts, *, rows: int = 64, full_columns: int = 24) -> str:
    """Time outwards from the middle, locations round the clock.

    Args:
        counts, rows, full_columns: see :func:`prime_dht.partition.picture.text_picture`. Rows are 2 at least: an arc
            that ends where it begins is none in SVG.

    Raises:
        ValidationError: ``rows`` or ``full_columns`` is out of range.
    """
    if rows < 2:
        raise ValidationError(f"a circle has 2 rows at least, not {rows}")
    drawn = coarser(counts, rows=rows, full_columns=full_columns)
    middle = CIRCLE_RADIUS + MARGIN
    strips = _strips(drawn)

    def body() -> Iterator[str]:
        for strip in reversed(strips):  # the outermost first: each covers the middle of the one before
            fill = FULL if strip.is_full else PARTIAL
            yield (
                f'<circle cx="{middle:g}" cy="{middle:g}" r="{strip.stop * CIRCLE_RADIUS:.2f}" fill="{fill}" '
                f'stroke="{LINE}" stroke-width="0.5"><title>{strip.name}</title></circle>'
            )
        for column, strip in enumerate(strips):
            for row, opacity, title in _used(drawn, column, strip, counts.ops.shape[1] // rows):
                path = _ring_piece(middle, strip, row / rows, (row + 1) / rows)
                yield f'<path d="{path}" fill="{OPS}" fill-opacity="{opacity:.2f}"><title>{title}</title></path>'
        for row in range(rows):
            x, y = _on_circle(middle, CIRCLE_RADIUS, row / rows)
            yield f'<path d="M{middle:g} {middle:g}L{x:.2f} {y:.2f}" stroke="{LINE}" stroke-width="0.25"/>'
        yield _text(middle, MARGIN - 12, "location 0", anchor="middle")
        yield _text(middle, 2 * middle - 12, f"time outwards; {CAPTION}", anchor="middle")

    return _document(2 * middle, 2 * middle, body())


def _strips(drawn: Counts) -> list[_Strip]:
    shortest = min((len(span) for span in drawn.slices), default=1)
    breadths = [1 + math.log2(len(span) / shortest) for span in drawn.slices]
    edges = [edge / (sum(breadths) or 1) for edge in accumulate(breadths, initial=0.0)]
    named = zip(pairwise(edges), drawn.slices, strict=True)
    return [
        _Strip(start, stop, column < drawn.full, f"{moment(span.start)} to {moment(span.stop)}")
        for column, ((start, stop), span) in enumerate(named)
    ]


def _used(drawn: Counts, column: int, strip: _Strip, sectors_each: int) -> Iterator[tuple[int, float, str]]:
    """The cells of a slice that hold ops: row, opacity, and what to say of them."""
    most = math.log2(1 + int(drawn.ops.max(initial=0)))
    for row, ops in enumerate(drawn.ops[column].tolist()):
        if ops:
            sectors = f"sector{'s' if sectors_each > 1 else ''} {sectors_text(row * sectors_each, sectors_each)}"
            opacity = FAINTEST + (1 - FAINTEST) * math.log2(1 + ops) / most
            yield row, opacity, f"{sectors}, {strip.name}: {ops_text(ops)}"


def _ring_piece(middle: float, strip: _Strip, start: float, stop: float) -> str:
    """The path around the part of a ring between two fractions of a turn."""
    inner, outer = strip.start * CIRCLE_RADIUS, strip.stop * CIRCLE_RADIUS
    corners = [
        _on_circle(middle, radius, turn)
        for radius, turn in ((inner, start), (outer, start), (outer, stop), (inner, stop))
    ]
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = corners
    return (
        f"M{ax:.2f} {ay:.2f}L{bx:.2f} {by:.2f}A{outer:.2f} {outer:.2f} 0 0 1 {cx:.2f} {cy:.2f}"
        f"L{dx:.2f} {dy:.2f}A{inner:.2f} {inner:.2f} 0 0 0 {ax:.2f} {ay:.2f}Z"
    )


def _on_circle(middle: float, radius: float, turn: float) -> tuple[float, float]:
    """Clockwise from the top."""
    angle = 2 * math.pi * turn
    return middle + radius * math.sin(angle), middle - radius * math.cos(angle)


def _rect(x: float, y: float, width: float, height: float, *, fill: str, title: str, opacity: float = 1.0) -> str:
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" fill="{fill}" '
        f'fill-opacity="{opacity:.2f}"><title>{title}</title></rect>'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{text}</text>'


def _document(width: float, height: float, body: Iterator[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        'font-family="sans-serif" font-size="13" fill="#333333">'
    )
    return "\n".join((head, '<rect width="100%" height="100%" fill="#ffffff"/>', *body, "</svg>\n"))
