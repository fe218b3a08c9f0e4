"""What a suite returns: tables of rows, printed for people and written as JSON for programs from the same values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Cell = str | int | float | None
Row = Mapping[str, Cell]
"""Columns by name. A name ends in its unit (``p50_ms``, ``per_s``), so neither people nor programs have to guess."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One kind of measurement.

    Attributes:
        name: how JSON knows it.
        title: what was measured, and under which circumstances.
        rows: all with the same columns.
    """

    name: str
    title: str
    rows: Sequence[Row]


def render(table: Table) -> str:
    """A table as aligned text.

    >>> print(render(Table(name="t", title="Two", rows=[{"what": "a", "p50_ms": 0.5}, {"what": "bb", "p50_ms": None}])))
    Two
    what  p50 ms
    a      0.500
    bb         –
    """
    names = list(table.rows[0]) if table.rows else []
    texts = [[name.replace("_", " ") for name in names], *([_text(row[name]) for name in names] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    is_text = [any(isinstance(row[name], str) for row in table.rows) for name in names]
    lines = (
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(cells, widths, is_text, strict=True)
        ).rstrip()
        for cells in texts
    )
    return "\n".join((table.title, *lines))


def _text(cell: Cell) -> str:
    """A cell, numbers with three or four significant digits.

    >>> [_text(cell) for cell in (1234.5, 12.345, 0.01234, 7, 10_000, None, "x")]
    ['1,234', '12.3', '0.012', '7', '10,000', '–', 'x']
    """
    match cell:
        case None:
            return "–"
        case str():
            return cell
        case int():
            return f"{cell:,}"
        case float():
            digits = 0 if abs(cell) >= 100 else 1 if abs(cell) >= 10 else 3
            return f"{cell:,.{digits}f}"
