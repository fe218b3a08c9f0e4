"""A view: what a node had when a round began.

Sketches can only be subtracted if all symbols of each describe one set, so a round looks at a copy, while at the node
ops come and go. What it reads from the store later is brought back to that moment: ops that came are left out, those
that went are counted in. For that the node tells the view of each change (:meth:`View.inserted`,
:meth:`View.removed`), as it tells its partition.

Ops that the node *declined* belong to the view as if it had them (:mod:`prime_dht.sync.declined`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.cells import Cell, Cells
from prime_dht.partition.combined import Combined
from prime_dht.partition.location import sector_of
from prime_dht.partition.offer import Version
from prime_dht.partition.partition import Partition
from prime_dht.partition.plan import FIRST_SYMBOLS
from prime_dht.partition.sketch import SectorSymbols, Sketch
from prime_dht.partition.slices import Layout
from prime_dht.partition.snapshot import MinimalSnapshot, minimal_snapshot
from prime_dht.partition.symbols import ID_BYTES
from prime_dht.sync.declined import DeclinedOp
from prime_dht.sync.limits import MAX_CHANGES
from prime_dht.sync.messages import WANT_BYTES, Digest, cut, cut_top


@dataclass(frozen=True, slots=True)
class Gone:
    """An op that went."""

    op_id: bytes
    location: int
    created_at_us: int


class View:
    """See the module. :meth:`of` makes one.

    Attributes:
        cells: the combined hashes.
        symbols: the coded symbols of each sector.
        declined: the declined ops among them, by the first 16 bytes of their ids.
        declined_wants: the first 8 bytes of those.
        put_off: the sectors of those that were put off.
        doubted: sectors in which the store may have lost what is in the view.
        is_exact: whether what the store has can still be brought back to the moment of the view.
        knows_all_gone: whether all that went is remembered; else the other side may never hear of some of it.
    """

    def __init__(self, cells: Cells, symbols: SectorSymbols, declined: Iterable[DeclinedOp]) -> None:
        self.cells = cells
        self.symbols = symbols
        self.declined = {op.op_id[:ID_BYTES]: op for op in declined}
        self.declined_wants = frozenset(op_id[:WANT_BYTES] for op_id in self.declined)
        bits = cells.layout.parameters.sector_bits
        put_off = {sector_of(op.location, sector_bits=bits) for op in self.declined.values() if op.is_put_off}
        self.put_off = ArcSet.of_sectors(put_off, sector_bits=bits)
        self.doubted = ArcSet.empty(sector_bits=bits)
        self._came: set[bytes] = set()
        self._gone: dict[bytes, Gone] = {}
        self._sectors_of_gone: dict[bytes, int] = {}
        self._unstored: dict[int, list[Version]] = {}  # of each sector those declined and gone, in order
        for op in self.declined.values():
            self._unstored.setdefault(self._sector_of(op.location), []).append((op.created_at_us, op.op_id))
        for versions in self._unstored.values():
            versions.sort()
        self.is_exact = True
        self.knows_all_gone = True
        self._moved = cells

    @classmethod
    def of(cls, partition: Partition, declined: Iterable[DeclinedOp] = ()) -> View:
        """A copy of what the partition holds now; it costs under a millisecond and some 2 MB for a year of ops.

        A thousand declined ops cost two milliseconds more.
        """
        ops = list(declined)
        cells, sketches = partition.cells.copy(), partition.sketches.copy()
        if ops:
            op_ids = ids_array([op.op_id for op in ops])
            bits = partition.parameters.sector_bits
            sectors = np.array([sector_of(op.location, sector_bits=bits) for op in ops], np.int64)
            cells.insert_batch(op_ids, sectors, np.array([op.created_at_us for op in ops], np.int64))
            sketches.insert_batch(op_ids, sectors)
        return cls(cells, sketches, ops)

    @property
    def layout(self) -> Layout:
        return self.cells.layout

    def op_count(self, arcs: ArcSet) -> int:
        """How many ops there are in some sectors."""
        return _op_count(minimal_snapshot(self.cells, arcs))

    def inserted(self, op_id: bytes) -> None:
        """The node has an op that it had not when the round began."""
        cut_id = op_id[:ID_BYTES]
        if (gone := self._gone.pop(cut_id, None)) is not None:
            self._unstored[self._sector_of(gone.location)].remove((gone.created_at_us, gone.op_id))
            self._sectors_of_gone.pop(op_id[:WANT_BYTES], None)
        elif len(self._came) < MAX_CHANGES:
            self._came.add(cut_id)
        else:
            self.is_exact = False

    def removed(self, op_id: bytes, location: int, created_at_us: int) -> None:
        """The node has an op no more."""
        cut_id = op_id[:ID_BYTES]
        if cut_id in self._came:
            self._came.remove(cut_id)
        elif len(self._gone) < MAX_CHANGES:
            sector = self._sector_of(location)
            self._gone[cut_id] = Gone(op_id, location, created_at_us)
            self._sectors_of_gone[op_id[:WANT_BYTES]] = sector
            insort(self._unstored.setdefault(sector, []), (created_at_us, op_id))
        else:
            self.is_exact = self.knows_all_gone = False

    def unsure(self, sectors: Sequence[int]) -> None:
        """The store may lack what was, or should be, in some sectors: of that nobody told."""
        self.doubted |= ArcSet.of_sectors(sectors, sector_bits=self.layout.parameters.sector_bits)

    def sector_of_gone(self, cut_id: bytes) -> int | None:
        """The sector of an op that went, by the first 8 bytes of its id or more; None if that is not remembered."""
        return self._sectors_of_gone.get(cut_id[:WANT_BYTES])

    def was_here(self, cut_id: bytes, *, is_here: bool) -> bool:
        """Whether an op, by the first 16 bytes of its id, was in the view, given whether the store has it now."""
        return (is_here and cut_id not in self._came) or cut_id in self._gone or cut_id in self.declined

    def ids_of_sector(self, sector: int, stored: Iterable[bytes]) -> list[bytes]:
        """The op ids of a sector as they were, given those that the store has now."""
        ids = {op_id for op_id in stored if op_id[:ID_BYTES] not in self._came}
        ids.update(op_id for _, op_id in self._unstored.get(sector, ()))
        return sorted(ids)

    def page(
        self,
        stored: Sequence[Version],
        locations: range,
        created_us: range,
        after: Version | None,
        upto: Version | None,
    ) -> list[Version]:
        """A page of ops in the order of their versions, those behind ``after`` up to ``upto``, as they were.

        Args:
            locations: those of adjacent sectors.
            stored: those of them that the store has now.
        """
        here = {version for version in stored if version[1][:ID_BYTES] not in self._came}
        for sector in range(self._sector_of(locations.start), self._sector_of(locations[-1]) + 1):
            if versions := self._unstored.get(sector):
                first = max((created_us.start, b""), after or (0, b""))
                here.update(versions[bisect_left(versions, first) : bisect_left(versions, (created_us.stop, b""))])
        return sorted(
            version for version in here if (after is None or version > after) and (upto is None or version <= upto)
        )

    def digest(self, arcs: ArcSet) -> Digest:
        """What is told of some sectors first."""
        snapshot = minimal_snapshot(self.cells, arcs)
        tops = MinimalSnapshot(
            layout=snapshot.layout,
            arcs=arcs,
            disc=cut_top(snapshot.disc),
            rings=tuple(map(cut_top, snapshot.rings)),
            tail=tuple(map(cut_top, snapshot.tail)),
        )
        return Digest(tops=tops, op_count=_op_count(snapshot), sketch=self.sketch(arcs, FIRST_SYMBOLS))

    def sketch(self, arcs: ArcSet, count: int) -> Sketch:
        """The first symbols of some sectors, of those that are kept."""
        return self.symbols.sketch_of(arcs.mask, count)

    def checksums(self, arcs: ArcSet) -> bytes:
        """The XOR of the checksums of each of some sectors, 4 bytes each, little-endian."""
        return self.symbols.checksums()[arcs.mask].astype("<u4").tobytes()

    def cells_at(self, layout: Layout, arcs: ArcSet, slices: Sequence[int]) -> dict[Cell, Combined]:
        """The cells that hold an op, in slices of this layout or a later one that begin at these units; none: in all.

        Raises:
            LocalProtocolError: the layout is an earlier one.
        """
        if layout not in (self.layout, self._moved.layout):
            self._moved = self.cells.moved_to(layout)
        cells = self.cells if layout == self.layout else self._moved
        told = slices or (*cells.full_slices(), *layout.ring_starts, layout.tail_start)
        return {
            Cell(sector, start): cut(combined) for start in told for sector, combined in cells.slice_cells(start, arcs)
        }

    def _sector_of(self, location: int) -> int:
        return sector_of(location, sector_bits=self.layout.parameters.sector_bits)


def ids_array(ids: Sequence[bytes]) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Op ids of 32 bytes in rows."""
    return np.frombuffer(b"".join(ids), np.uint8).reshape(len(ids), 32)


def _op_count(snapshot: MinimalSnapshot) -> int:
    return sum(top.count for top in (snapshot.disc, *snapshot.rings, *snapshot.tail))
