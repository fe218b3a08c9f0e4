"""Comparing snapshots, and what to do next.

Two nodes drill down from what differs at all to the cells in which it does, the disc before the rings:

======================  =====================================  ==============================================
compared                differs in                             next action
======================  =====================================  ==============================================
minimal                 the disc                               send the disc's sectors
minimal                 rings, or the tail                     send the details of these rings
sectors of the disc     sectors                                send the details of these sectors
details                 cells                                  send the ops in them, with our own details
                                                               unless the other side has had them
======================  =====================================  ==============================================

Snapshots of different kinds, arcs or parameters cannot be compared, nor can those of layouts too far apart. Of minimal
snapshots a tick or two apart, the earlier is moved to the later one's layout first; from then on the round is held at
that layout, to which the node that is behind moves a view of its cells (:meth:`Cells.moved_to`). The disc can be
compared wherever both have the same full slices.

Two nodes that differ in one op of the disc; ``left`` starts the round. The last action of each side is to send ops.

>>> from prime_dht.partition.parameters import PartitionParameters
>>> from prime_dht.partition.slices import layout_at
>>> parameters = PartitionParameters(unit_us=10, factor=3)
>>> left, right = Cells(layout_at(151, parameters)), Cells(layout_at(151, parameters))
>>> right.insert(bytes([1]) * 32, 300, 5)
>>> arcs = ArcSet.full(sector_bits=9)
>>> to_left = next_action(right, minimal_snapshot(left, arcs), common=arcs)
>>> to_right = next_action(left, to_left.snapshot, common=arcs)
>>> type(to_left.snapshot).__name__, type(to_right.snapshot).__name__
('DiscSectorsSnapshot', 'DiscDetailsSnapshot')
>>> to_left = next_action(right, to_right.snapshot, common=arcs)
>>> to_left.cells, next_action(left, to_left.details, common=arcs, details_sent=True).cells
((Cell(sector=300, start=0),), (Cell(sector=300, start=0),))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar, assert_never

from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.cells import Cell, Cells
from prime_dht.partition.combined import Combined
from prime_dht.partition.slices import Layout
from prime_dht.partition.snapshot import (
    TAIL_UNITS,
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


class Reason(Enum):
    """Why snapshots cannot be compared."""

    PARAMETERS = "unit, factor or sector bits differ"
    KINDS = "the snapshots are of different kinds"
    ARCS = "the snapshots are of different arcs"
    RINGS = "the snapshots are of different rings"
    LAYOUTS = "the layouts are too far apart"


@dataclass(frozen=True, slots=True)
class Identical:
    """Nothing differs."""


@dataclass(frozen=True, slots=True)
class CannotCompare:
    """The snapshots say nothing about each other."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class DiscMismatch:
    """The disc differs, and perhaps more."""


@dataclass(frozen=True, slots=True)
class RingMismatch:
    """The disc is equal, and these rings differ, or the tail, at the later of the two layouts."""

    rings: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SectorMismatch:
    """The disc differs in these sectors."""

    sectors: ArcSet


@dataclass(frozen=True, slots=True)
class CellMismatch:
    """These cells differ, in order."""

    cells: tuple[Cell, ...]


Comparison = Identical | CannotCompare | DiscMismatch | RingMismatch | SectorMismatch | CellMismatch


@dataclass(frozen=True, slots=True)
class SendSnapshot:
    """Send a snapshot, and wait for the answer."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class SendOps:
    """Send the ids of our ops in some cells of a layout (:mod:`prime_dht.partition.offer`), with our details if any."""

    layout: Layout
    cells: tuple[Cell, ...]
    details: DiscDetailsSnapshot | RingDetailsSnapshot | None


Action = Identical | CannotCompare | SendSnapshot | SendOps

Place = TypeVar("Place", int, Cell)


def compare(ours: Snapshot, theirs: Snapshot) -> Comparison:
    """In what two snapshots differ, as far as they tell of the same sectors. Which is whose makes no difference."""
    if ours.layout.parameters != theirs.layout.parameters:
        return CannotCompare(Reason.PARAMETERS)
    match ours, theirs:
        case MinimalSnapshot(), MinimalSnapshot():
            return _compare_minimal(ours, theirs)
        case DiscSectorsSnapshot(), DiscSectorsSnapshot():
            if ours.layout.full_count != theirs.layout.full_count:
                return CannotCompare(Reason.LAYOUTS)
            common = ours.arcs & theirs.arcs
            sectors = [sector for sector in _differing(ours.sectors, theirs.sectors) if sector in common]
            return (
                SectorMismatch(ArcSet.of_sectors(sectors, sector_bits=common.sector_bits)) if sectors else Identical()
            )
        case DiscDetailsSnapshot(), DiscDetailsSnapshot():
            if ours.layout.full_count != theirs.layout.full_count:
                return CannotCompare(Reason.LAYOUTS)
        case RingDetailsSnapshot(), RingDetailsSnapshot():
            if ours.layout != theirs.layout:
                return CannotCompare(Reason.LAYOUTS)
            if ours.rings != theirs.rings:
                return CannotCompare(Reason.RINGS)
        case _:
            return CannotCompare(Reason.KINDS)
    common = ours.arcs & theirs.arcs
    cells = [cell for cell in _differing(ours.cells, theirs.cells) if cell.sector in common]
    return CellMismatch(tuple(sorted(cells))) if cells else Identical()


def next_action(cells: Cells, theirs: Snapshot, *, common: ArcSet, details_sent: bool = False) -> Action:
    """What to do about a snapshot that a peer has sent.

    Args:
        cells: ours. They stay as they are.
        theirs: it may tell of more than the common arcs; the rest is ignored.
        common: the sectors that both nodes store.
        details_sent: whether this node has sent a details snapshot in this round.
    """
    if theirs.layout.parameters != cells.layout.parameters:
        return CannotCompare(Reason.PARAMETERS)
    if theirs.layout.tail_start - cells.layout.tail_start > TAIL_UNITS:
        return CannotCompare(Reason.LAYOUTS)
    if not (told := theirs.arcs & common):
        return CannotCompare(Reason.ARCS)
    if theirs.layout.since_us > cells.layout.since_us:
        cells = cells.moved_to(theirs.layout)
    if isinstance(theirs, RingDetailsSnapshot) and theirs.layout != cells.layout:
        return CannotCompare(Reason.LAYOUTS)  # ours has moved on, and may not have these rings any more
    ours = _counterpart(cells, theirs, told)
    match compare(ours, theirs):
        case Identical() | CannotCompare() as ended:
            return ended
        case DiscMismatch():
            return SendSnapshot(disc_sectors_snapshot(cells, told))
        case RingMismatch(rings=rings):
            return SendSnapshot(ring_details_snapshot(cells, told, rings))
        case SectorMismatch(sectors=sectors):
            return SendSnapshot(disc_details_snapshot(cells, sectors))
        case CellMismatch(cells=differing):
            assert isinstance(ours, DiscDetailsSnapshot | RingDetailsSnapshot)
            return SendOps(cells.layout, differing, None if details_sent else ours)
        case never:
            assert_never(never)


def _counterpart(cells: Cells, theirs: Snapshot, arcs: ArcSet) -> Snapshot:
    """Our snapshot of the kind of theirs."""
    match theirs:
        case MinimalSnapshot():
            return minimal_snapshot(cells, arcs)
        case DiscSectorsSnapshot():
            return disc_sectors_snapshot(cells, arcs)
        case DiscDetailsSnapshot():
            return disc_details_snapshot(cells, arcs)
        case RingDetailsSnapshot(rings=rings):
            return ring_details_snapshot(cells, arcs, rings)
        case never:
            assert_never(never)


def _compare_minimal(ours: MinimalSnapshot, theirs: MinimalSnapshot) -> Comparison:
    if ours.arcs != theirs.arcs:
        return CannotCompare(Reason.ARCS)
    later = max(ours.layout, theirs.layout, key=lambda layout: layout.since_us)
    one, other = ours.moved_to(later), theirs.moved_to(later)
    if one is None or other is None:
        return CannotCompare(Reason.LAYOUTS)
    if one.disc != other.disc:
        return DiscMismatch()
    rings = [start for start, a, b in zip(later.ring_starts, one.rings, other.rings, strict=True) if a != b]
    if sum(one.tail[1:], start=one.tail[0]) != sum(other.tail[1:], start=other.tail[0]):
        rings.append(later.tail_start)
    return RingMismatch(tuple(rings)) if rings else Identical()


def _differing(ours: Mapping[Place, Combined], theirs: Mapping[Place, Combined]) -> set[Place]:
    """The places that only one has, or that both have and that are unequal."""
    return {place for place, _ in ours.items() ^ theirs.items()}
