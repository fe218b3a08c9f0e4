"""A view: what a node had when a round began.

Sketches can only be subtracted if all symbols of each describe one set, so a round looks at a copy, while at the node
ops come and go. What it reads from the store later is brought back to that moment: ops that came are left out, those
that went are counted in. For that the node tells the view of each change (:meth:`View.inserted`,
:meth:`View.removed`), as it tells its partition.

Ops that the node *declined* belong to the view as if it had them (:mod:`prime_dht.sync.declined`).
"""

from __future__ import annotations

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


class View:
    """See the module. :meth:`of` makes one.

    Attributes:
        cells: the combined hashes.
        symbols: the coded symbols of each sector.
        declined: the declined ops among them, by the first 16 bytes of their ids.
        declined_wants: the first 8 bytes of those.
    """

    def __init__(self, cells: Cells, symbols: SectorSymbols, declined: Iterable[DeclinedOp]) -> None:
        self.cells = cells
        self.symbols = symbols
        self.declined = {op.op_id[:ID_BYTES]: op for op in declined}
        self.declined_wants = frozenset(op_id[:WANT_BYTES] for op_id in self.declined)
        self._came: set[bytes] = set()
        self._gone: dict[bytes, Gone] = {}
        self._is_exact = True

    @classmethod
    def of(cls, partition: Partition, declined: Iterable[DeclinedOp] = ()) -> View:
        """A copy of what the partition holds now; it costs under a millisecond and some 2 MB for a year of ops."""
        ops = list(declined)
        cells, sketches = partition.cells.copy(), partition.sketches.copy()
        for op in ops:
            sector = sector_of(op.location, sector_bits=partition.parameters.sector_bits)
            cells.insert(op.op_id, sector, op.created_at_us)
            sketches.insert(op.op_id, sector)
        return cls(cells, sketches, ops)

    @property
    def layout(self) -> Layout:
        return self.cells.layout

    @property
    def is_exact(self) -> bool:
        """Whether what the store has can still be brought back to the moment of the view."""
        return self._is_exact

    def op_count(self, arcs: ArcSet) -> int:
        """How many ops there are in some sectors."""
        return _op_count(minimal_snapshot(self.cells, arcs))

    def inserted(self, op_id: bytes) -> None:
        """The node has an op that it had not when the round began."""
        cut_id = op_id[:ID_BYTES]
        if self._gone.pop(cut_id, None) is None and self._has_room():
            self._came.add(cut_id)

    def removed(self, op_id: bytes, location: int) -> None:
        """The node has an op no more."""
        cut_id = op_id[:ID_BYTES]
        if cut_id in self._came:
            self._came.remove(cut_id)
        elif self._has_room():
            self._gone[cut_id] = Gone(op_id, location)

    def was_here(self, cut_id: bytes, *, is_here: bool) -> bool:
        """Whether an op, by the first 16 bytes of its id, was in the view, given whether the store has it now."""
        return (is_here and cut_id not in self._came) or cut_id in self._gone or cut_id in self.declined

    def ids_of_sector(self, sector: int, stored: Iterable[bytes]) -> list[bytes]:
        """The op ids of a sector as they were, given those that the store has now."""
        sector_bits = self.layout.parameters.sector_bits
        ids = {op_id for op_id in stored if op_id[:ID_BYTES] not in self._came}
        added = [(op.op_id, op.location) for op in self._gone.values()]
        added += ((op.op_id, op.location) for op in self.declined.values())
        ids.update(op_id for op_id, location in added if sector_of(location, sector_bits=sector_bits) == sector)
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

        Ops that went meanwhile are not in it: the store no longer says when they were created.
        """
        here = [version for version in stored if version[1][:ID_BYTES] not in self._came]
        here += (
            (op.created_at_us, op.op_id)
            for op in self.declined.values()
            if op.location in locations and op.created_at_us in created_us
        )
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
        cells = self.cells if layout == self.layout else self.cells.moved_to(layout)
        told = slices or (*cells.full_slices(), *layout.ring_starts, layout.tail_start)
        return {
            Cell(sector, start): cut(combined) for start in told for sector, combined in cells.slice_cells(start, arcs)
        }

    def _has_room(self) -> bool:
        """Whether one more change can be remembered."""
        self._is_exact = self._is_exact and len(self._came) + len(self._gone) < MAX_CHANGES
        return self._is_exact


def ids_array(ids: Sequence[bytes]) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Op ids of 32 bytes in rows."""
    return np.frombuffer(b"".join(ids), np.uint8).reshape(len(ids), 32)


def _op_count(snapshot: MinimalSnapshot) -> int:
    return sum(top.count for top in (snapshot.disc, *snapshot.rings, *snapshot.tail))
