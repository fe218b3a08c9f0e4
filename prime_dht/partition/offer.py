"""The ops to offer from cells that differ: all of them, in pages under a byte budget.

That two nodes differ in a cell does not say by which op, so each offers the ids of all it has there. One message holds
only so many. The order of an offer is that of (sector, ``created_at``, op id), and where a page ends is a
:class:`Cursor` in that order: it means the same in any layout, so the next page can come in another round. No cell is
too large to be offered, and none can keep others from being offered for ever.

The ops are in a store that has to be asked, perhaps by waiting. So an :class:`Offer` says what to ask for, and is told
what came:

>>> from prime_dht.partition.parameters import PartitionParameters
>>> from prime_dht.partition.slices import layout_at
>>> layout = layout_at(11, PartitionParameters(unit_us=10, factor=3))
>>> offer = Offer(layout, [Cell(sector=3, start=0)], max_bytes=3 * OP_ID_COST_BYTES)
>>> offer.query()
OpQuery(locations=range(25165824, 33554432), created_us=range(0, 10), after=None, limit=3)
>>> offer.take([(4, b"one"), (7, b"other")])
>>> offer.op_ids, offer.query(), offer.cursor
([b'one', b'other'], None, None)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prime_dht.errors import LocalProtocolError, ValidationError
from prime_dht.partition.cells import Cell
from prime_dht.partition.location import sector_locations
from prime_dht.partition.slices import Layout

OP_ID_COST_BYTES = 34
"""An op id in a message: 32 bytes, with their field number and length."""

Version = tuple[int, bytes]
"""(``created_at_us``, op id): the order of ops in a cell."""


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """The last op that was offered."""

    sector: int
    version: Version


@dataclass(frozen=True, slots=True)
class OpQuery:
    """Ask the store for the first ops of a cell, in the order of their versions.

    Attributes:
        locations, created_us: the cell, both [start, stop).
        after: only ops whose version is greater.
        limit: how many at most, at least 1.
    """

    locations: range
    created_us: range
    after: Version | None
    limit: int


class Offer:
    """One page of an offer. See the module: call :meth:`query` and :meth:`take` in turns until there is no query.

    Args:
        layout: that of the cells.
        cells: those that differ, in any order.
        max_bytes: what the op ids may take in a message.
        after: where the page before ended.

    Attributes:
        op_ids: the page.
        cursor: behind which op the next page begins; None while there is room, so at the end if the offer is complete.

    Raises:
        ValidationError: the budget is too small for a single op id.
    """

    def __init__(self, layout: Layout, cells: Iterable[Cell], *, max_bytes: int, after: Cursor | None = None) -> None:
        self._room = max_bytes // OP_ID_COST_BYTES
        if self._room < 1:
            raise ValidationError(f"{max_bytes} bytes hold no op id, which takes {OP_ID_COST_BYTES}")
        self.op_ids: list[bytes] = []
        self.cursor: Cursor | None = None
        self._layout = layout
        self._after = after
        self._left = sorted((cell for cell in cells if not self._is_past(cell)), reverse=True)

    def query(self) -> OpQuery | None:
        """What to ask the store for next; nothing if the page is full or the offer complete."""
        if not self._left or not self._room:
            return None
        cell = self._left[-1]
        return OpQuery(
            sector_locations(cell.sector, sector_bits=self._layout.parameters.sector_bits),
            self._layout.slice_us(cell.start),
            self._after.version if self._after and self._after.sector == cell.sector else None,
            self._room,
        )

    def take(self, versions: Sequence[Version]) -> None:
        """Take what the store gave for the query, which is all there is if it is less than was asked for.

        Raises:
            LocalProtocolError: there was no query, or it is more than was asked for.
        """
        if not self._left or not self._room or len(versions) > self._room:
            raise LocalProtocolError("an offer takes what it asked for, no more")
        cell = self._left[-1]
        self.op_ids += (op_id for _, op_id in versions)
        self._room -= len(versions)
        if self._room:
            self._left.pop()
        else:
            self.cursor = Cursor(cell.sector, versions[-1])

    def _is_past(self, cell: Cell) -> bool:
        """Whether the pages before have offered all of a cell."""
        if self._after is None or cell.sector > self._after.sector:
            return False
        created_at_us, _ = self._after.version
        return cell.sector < self._after.sector or self._layout.slice_us(cell.start).stop <= created_at_us
