"""Snapshots: what two nodes send each other to compare, from coarse to fine.

==============================  ==========================================================================
:class:`MinimalSnapshot`        the top hashes of disc, rings and tail: opens a round
:class:`DiscSectorsSnapshot`    the top hash of the disc in each sector
:class:`DiscDetailsSnapshot`    the combined hash of each cell of the disc in some sectors
:class:`RingDetailsSnapshot`    the combined hash of each cell of some rings, of which the tail may be one
==============================  ==========================================================================

A snapshot says which sectors it tells of (``arcs``, never none) and of which layout it is. In a list of sectors or
cells, those that hold no op are left out. Rings, and slices in general, are named by the unit at which they begin; as a
ring, the tail begins where the rings end.

Snapshots check themselves: one that could be made is consistent with its layout, whoever sent the bytes.

**A tick apart.** Clocks differ, so for a moment after each tick two nodes have different layouts. In a quarter of such
cases even the number of rings is the same, and comparing ring by ring would compare different times. So a snapshot
tells its layout, and as time only appends and merges, an earlier minimal snapshot can be moved to a later layout
exactly: :meth:`MinimalSnapshot.moved_to`. For this it tells the first units of the tail one by one.

>>> from prime_dht.partition.parameters import PartitionParameters
>>> from prime_dht.partition.slices import layout_at
>>> parameters = PartitionParameters(unit_us=10, factor=3)
>>> cells = Cells(layout_at(71, parameters))
>>> cells.insert(bytes([1]) * 32, 0, 5)
>>> cells.insert(bytes([2]) * 32, 0, 75)
>>> before = minimal_snapshot(cells, ArcSet.full(sector_bits=9))
>>> [ring.count for ring in before.rings], [unit.count for unit in before.tail]
([1, 0, 0], [1, 0, 0])
>>> after = before.moved_to(layout_at(81, parameters))
>>> [ring.count for ring in after.rings], [unit.count for unit in after.tail]
([1, 0, 0, 1], [0, 0])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prime_dht.errors import ValidationError
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.cells import Cell, Cells
from prime_dht.partition.combined import Combined
from prime_dht.partition.slices import Layout, move, steps_between

TAIL_UNITS = 2
"""So many units of the tail a minimal snapshot tells one by one: by so many ticks the layouts of two nodes may differ.

Clocks 10 minutes apart are in the same unit of 15 minutes or in adjacent ones; one more is for messages on their way.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MinimalSnapshot:
    """The top hashes of everything.

    Attributes:
        layout, arcs: what it is of.
        disc: the top hash of the disc.
        rings: the top hash of each ring, in order, empty ones too.
        tail: the top hashes of the tail's first units, then that of all the rest of it; at least the last, at most 3.

    Raises:
        ValidationError: what it tells does not fit the layout.
    """

    layout: Layout
    arcs: ArcSet
    disc: Combined
    rings: tuple[Combined, ...]
    tail: tuple[Combined, ...]

    def __post_init__(self) -> None:
        _check_arcs(self.layout, self.arcs)
        if len(self.rings) != len(self.layout.ring_sizes):
            raise ValidationError(f"{len(self.rings)} ring tops for {len(self.layout.ring_sizes)} rings")
        if not 1 <= len(self.tail) <= TAIL_UNITS + 1:
            raise ValidationError(f"the tail is told in 1 to {TAIL_UNITS + 1} parts, not {len(self.tail)}")

    def moved_to(self, layout: Layout) -> MinimalSnapshot | None:
        """The minimal snapshot of the same ops at this layout or a later one, or None if that is too far ahead.

        Raises:
            LocalProtocolError: the layout is an earlier one, or one of other parameters.
        """
        ticks = layout.tail_start - self.layout.tail_start
        if ticks >= len(self.tail):
            return None
        first = self.layout.tail_start
        kept = dict(zip(self.layout.ring_starts, self.rings, strict=True))
        kept.update(zip(range(first, first + ticks), self.tail, strict=False))
        promoted = move(steps_between(self.layout, layout, kept), kept)
        return MinimalSnapshot(
            layout=layout,
            arcs=self.arcs,
            disc=sum(promoted, start=self.disc),
            rings=tuple(kept[start] for start in layout.ring_starts),
            tail=self.tail[ticks:],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscSectorsSnapshot:
    """The top hash of the disc in each sector.

    Attributes:
        layout, arcs: what it is of.
        sectors: the top hash of each sector whose disc holds an op.

    Raises:
        ValidationError: what it tells lies outside ``arcs``, or tells of no op.
    """

    layout: Layout
    arcs: ArcSet
    sectors: Mapping[int, Combined]

    def __post_init__(self) -> None:
        _check_arcs(self.layout, self.arcs)
        _check_told(self.arcs, self.sectors, self.sectors.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscDetailsSnapshot:
    """The combined hash of each cell of the disc in some sectors.

    Attributes:
        layout, arcs: what it is of.
        cells: the combined hash of each cell that holds an op.

    Raises:
        ValidationError: a cell lies outside ``arcs`` or in no full slice, or holds no op.
    """

    layout: Layout
    arcs: ArcSet
    cells: Mapping[Cell, Combined]

    def __post_init__(self) -> None:
        _check_arcs(self.layout, self.arcs)
        _check_told(self.arcs, (cell.sector for cell in self.cells), self.cells.values())
        starts = range(0, self.layout.disc_end, self.layout.parameters.full_units)
        if not all(cell.start in starts for cell in self.cells):
            raise ValidationError("a cell lies in no full slice")


@dataclass(frozen=True, slots=True, kw_only=True)
class RingDetailsSnapshot:
    """The combined hash of each cell of some rings.

    Attributes:
        layout, arcs: what it is of.
        rings: the rings it tells of, and the tail if it does.
        cells: the combined hash of each cell that holds an op.

    Raises:
        ValidationError: there is no such ring, or a cell lies outside ``arcs`` or ``rings``, or holds no op.
    """

    layout: Layout
    arcs: ArcSet
    rings: frozenset[int]
    cells: Mapping[Cell, Combined]

    def __post_init__(self) -> None:
        _check_arcs(self.layout, self.arcs)
        _check_told(self.arcs, (cell.sector for cell in self.cells), self.cells.values())
        if not self.rings <= {*self.layout.ring_starts, self.layout.tail_start}:
            raise ValidationError("no such ring")
        if not all(cell.start in self.rings for cell in self.cells):
            raise ValidationError("a cell lies in none of the rings")


Snapshot = MinimalSnapshot | DiscSectorsSnapshot | DiscDetailsSnapshot | RingDetailsSnapshot


def minimal_snapshot(cells: Cells, arcs: ArcSet) -> MinimalSnapshot:
    """The minimal snapshot of some sectors.

    Raises:
        ValidationError: there are none, here and in the functions below.
    """
    return MinimalSnapshot(
        layout=cells.layout,
        arcs=arcs,
        disc=cells.disc_top(arcs),
        rings=cells.ring_tops(arcs),
        tail=cells.tail_tops(arcs, TAIL_UNITS),
    )


def disc_sectors_snapshot(cells: Cells, arcs: ArcSet) -> DiscSectorsSnapshot:
    """The top hash of the disc in each of some sectors."""
    return DiscSectorsSnapshot(layout=cells.layout, arcs=arcs, sectors=dict(cells.disc_sectors(arcs)))


def disc_details_snapshot(cells: Cells, arcs: ArcSet) -> DiscDetailsSnapshot:
    """The cells of the disc in some sectors."""
    return DiscDetailsSnapshot(layout=cells.layout, arcs=arcs, cells=_cells_in(cells, cells.full_slices(), arcs))


def ring_details_snapshot(cells: Cells, arcs: ArcSet, rings: Iterable[int]) -> RingDetailsSnapshot:
    """The cells of some rings, or the tail, in some sectors.

    Raises:
        ValidationError: also if there is no such ring.
    """
    told = frozenset(rings)
    return RingDetailsSnapshot(layout=cells.layout, arcs=arcs, rings=told, cells=_cells_in(cells, told, arcs))


def _cells_in(cells: Cells, starts: Iterable[int], arcs: ArcSet) -> dict[Cell, Combined]:
    return {Cell(sector, start): combined for start in starts for sector, combined in cells.slice_cells(start, arcs)}


def _check_arcs(layout: Layout, arcs: ArcSet) -> None:
    if not arcs.bits or arcs.sector_bits != layout.parameters.sector_bits:
        raise ValidationError("a snapshot is of one sector at least, and all of the same size")


def _check_told(arcs: ArcSet, sectors: Iterable[int], told: Iterable[Combined]) -> None:
    if not set(sectors) <= set(arcs):
        raise ValidationError("a snapshot tells of a sector that is not in its arcs")
    if not all(combined.count for combined in told):
        raise ValidationError("a snapshot lists only what holds an op")
