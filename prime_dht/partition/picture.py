"""A partition as text: a summary in words, and a picture of sectors down and slices across.

Both are made from :class:`~prime_dht.partition.cells.Counts`, which knows how many ops each cell holds. A picture has
no room for 512 sectors, nor for the full slices of ten years, so it is made of *coarser* counts, of cells added up.

>>> from prime_dht.partition.cells import Cells
>>> from prime_dht.partition.parameters import PARAMETERS
>>> from prime_dht.partition.slices import layout_at
>>> cells = Cells(layout_at(1_800_000_001_000_000, PARAMETERS))
>>> for sector, age_s in ((0, 0), (0, 86_400), (300, 9_000_000), (301, 9_000_000), (301, 9_000_001)):
...     cells.insert(bytes([sector % 256]) * 32, sector, 1_800_000_000_000_000 - age_s * 1_000_000)
>>> print(describe(cells.counts()))
5 ops in 3 of 512 sectors, the most in one: 2
disc  3 ops in 1 full slice of 5.3 d, 2026-09-29 08:00 to 2026-10-04 16:00
rings 1 op in 1 of 11 partial slices, 2027-01-08 16:00 to 2027-01-15 08:00
tail  1 op, 2027-01-15 08:00 to 2027-01-15 08:15
>>> print(text_picture(cells.counts(), rows=4))
sectors   d rings       t
384–511  │ │           │ │
256–383  │-│           │ │
128–255  │ │           │ │
  0–127  │ │   .       │.│
ops in a cell: '.' 1, '-' 3
from 2026-09-29 08:00; rings from 2027-01-08 16:00; tail from 2027-01-15 08:00
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from prime_dht.errors import ValidationError
from prime_dht.ids import US_PER_S
from prime_dht.partition.cells import Counts

US_PER_DAY = 86_400 * US_PER_S

SHADES = ".:-=+*#%@"
"""Of cells that hold ops, from the least to the most: the counts between 1 and the highest, cut geometrically."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR_10000_US = 253_402_300_800 * US_PER_S


def describe(counts: Counts) -> str:
    """How many ops there are, in how many sectors, and how they lie in disc, rings and tail; in UTC."""
    by_sector = counts.ops.sum(axis=0)
    lines = [
        f"{ops_text(int(by_sector.sum()))} in {np.count_nonzero(by_sector):,} of {len(by_sector):,} sectors, "
        f"the most in one: {int(by_sector.max(initial=0)):,}"
    ]
    disc, rings, tail = parts(counts)
    if disc.slices:
        days = (disc.slices[0].stop - disc.slices[0].start) / US_PER_DAY
        slices = f"{len(disc.slices):,} full slice{'' if len(disc.slices) == 1 else 's'} of {days:.1f} d"
        lines.append(f"disc  {_total(disc)} in {slices}, {_span(disc)}")
    else:
        lines.append("disc  empty")
    if rings.slices:
        used = np.count_nonzero(rings.ops.sum(axis=1))
        lines.append(f"rings {_total(rings)} in {used} of {len(rings.slices)} partial slices, {_span(rings)}")
    lines.append(f"tail  {_total(tail)}, {_span(tail)}" if tail.slices else "tail  empty")
    return "\n".join(lines)


def text_picture(counts: Counts, *, rows: int = 32, full_columns: int = 64) -> str:
    """Sectors down, highest first, and slices across; the more ops in a cell, the darker.

    Args:
        counts: what to draw.
        rows: of the picture, a power of two that is at most the number of sectors.
        full_columns: the most for full slices, 1 or more. Partial slices and units of the tail have a column each.

    Raises:
        ValidationError: ``rows`` or ``full_columns`` is out of range.
    """
    drawn = coarser(counts, rows=rows, full_columns=full_columns)
    most = int(drawn.ops.max(initial=0))
    limits = [max(shade + 1, round(most ** (shade / (len(SHADES) - 1)))) for shade in range(len(SHADES))]
    shades = np.where(drawn.ops, np.array([*SHADES])[np.searchsorted(limits, drawn.ops)], " ")
    strips = np.split(shades, [drawn.full, drawn.full + drawn.rings])
    shown = [(name, strip) for name, strip in zip(("disc", "rings", "tail"), strips, strict=True) if len(strip)]
    each = counts.ops.shape[1] // rows
    labels = [sectors_text(row * each, each) for row in range(rows)]
    width = max(len(label) for label in ("sectors", *labels))
    lines = [f"{'sectors':{width}}   {' '.join(_fitted(name, len(strip)) for name, strip in shown)}".rstrip()]
    for row in reversed(range(rows)):
        lines.append(f"{labels[row]:>{width}}  │{'│'.join(''.join(strip[:, row]) for _, strip in shown)}│")
    if most:
        lines.append(f"ops in a cell: {', '.join(_legend(drawn, shades))}")
    if drawn.slices:
        lines.append("; ".join(_times(drawn)))
    return "\n".join(lines)


def coarser(counts: Counts, *, rows: int, full_columns: int) -> Counts:
    """The same ops in fewer, larger cells: sectors added up to ``rows``, full slices to at most ``full_columns``.

    Raises:
        ValidationError: ``rows`` is no power of two or above the number of sectors, or ``full_columns`` is below 1.
    """
    sector_count = counts.ops.shape[1]
    if not 1 <= rows <= sector_count or rows & (rows - 1):
        raise ValidationError(f"rows is a power of two in [1, {sector_count}], not {rows}")
    if full_columns < 1:
        raise ValidationError(f"full_columns is at least 1, not {full_columns}")
    ops = counts.ops.reshape(len(counts.slices), rows, sector_count // rows).sum(axis=2)
    together = max(1, math.ceil(counts.full / full_columns))
    bounds = [*range(0, counts.full, together), *range(counts.full, len(counts.slices) + 1)]
    return Counts(
        slices=tuple(
            range(counts.slices[first].start, counts.slices[following - 1].stop)
            for first, following in pairwise(bounds)
        ),
        full=math.ceil(counts.full / together),
        rings=counts.rings,
        ops=np.add.reduceat(ops, np.array(bounds[:-1], np.intp), axis=0),
    )


def parts(counts: Counts) -> tuple[Counts, Counts, Counts]:
    """The disc, the rings and the tail, each as the full slices of its own counts."""
    bounds = (0, counts.full, counts.full + counts.rings, len(counts.slices))
    disc, rings, tail = (
        Counts(slices=counts.slices[start:stop], full=stop - start, rings=0, ops=counts.ops[start:stop])
        for start, stop in pairwise(bounds)
    )
    return disc, rings, tail


def moment(time_us: int) -> str:
    """A time as people write it, in UTC, to the minute; beyond the year 9999, where ``datetime`` ends, in days.

    >>> moment(1_800_000_000_000_000), moment(1 << 62)
    ('2027-01-15 08:00', 'day 53,375,995')
    """
    if time_us >= _YEAR_10000_US:
        return f"day {time_us // US_PER_DAY:,}"
    return f"{_EPOCH + timedelta(microseconds=time_us):%Y-%m-%d %H:%M}"


def ops_text(count: int) -> str:
    """So many ops, in words."""
    return f"{count:,} op{'' if count == 1 else 's'}"


def sectors_text(first: int, count: int) -> str:
    """The numbers of so many adjacent sectors."""
    return f"{first}–{first + count - 1}" if count > 1 else f"{first}"


def _legend(drawn: Counts, shades: NDArray[np.str_]) -> Iterator[str]:
    """Each shade that occurs, with the counts that it stands for."""
    for shade in SHADES:
        numbers = drawn.ops[shades == shade]
        if numbers.size:
            least, most = int(numbers.min()), int(numbers.max())
            yield f"'{shade}' {least:,}" + (f" to {most:,}" if most > least else "")


def _times(drawn: Counts) -> Iterator[str]:
    disc, rings, tail = parts(drawn)
    if disc.slices:
        yield f"from {moment(disc.slices[0].start)}"
    if rings.slices:
        yield f"rings from {moment(rings.slices[0].start)}"
    if tail.slices:
        yield f"tail from {moment(tail.slices[0].start)}"


def _fitted(name: str, width: int) -> str:
    """A name above a strip of so many columns, or its first letter."""
    return f"{name if len(name) <= width else name[0]:<{width}}"


def _total(part: Counts) -> str:
    return ops_text(int(part.ops.sum()))


def _span(part: Counts) -> str:
    return f"{moment(part.slices[0].start)} to {moment(part.slices[-1].stop)}"
