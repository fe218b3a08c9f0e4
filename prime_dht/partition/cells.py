"""The combined hashes of all cells, as columns of numpy arrays.

A *column* is a slice across all sectors: for each sector four 64-bit words of XOR, and a count. Columns are kept by the
unit at which their slice begins, and only for slices that hold an op, so a history with gaps costs nothing in the gaps:
512 sectors are 20 KB for each slice in use, 2 MB for a year. (Words are in the machine's own byte order: XOR does not
care, and none leaves the machine but as bytes.)

Beside them stands one more column, the *disc column*, the sum of all full slices. Of a year of history, then, the top
hash of the disc over any arc is a reduction of one column, and a minimal snapshot one of fifteen. No store is asked.

The tail is kept by unit. So when the layout moves on, the first unit of the tail simply is a ring, rings merge by
adding columns, and nothing is ever sorted into slices again. Ops dated ahead of now are in units further on; how far
ahead they may be dated is for admission to say, which thereby bounds how many units those can be.

:meth:`Cells.moved_to` makes the cells of a later layout and leaves these as they are: so a node moves on, and so it
sees its own data as a node does whose layout is ahead of its own. The two share what did not change, therefore of the
two only one may be changed from then on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from prime_dht.errors import LocalProtocolError, ValidationError
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.combined import HASH_BYTES, NOTHING, Combined
from prime_dht.partition.slices import END_OF_TIME_US, Layout, move, steps_between

WORDS = 4
_WORDS_OF = Struct(f"={WORDS}Q").unpack


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """A sector in a slice, which is named by the unit at which it begins. Cells of one sector are in order of time."""

    sector: int
    start: int


class Column:
    """The combined hashes of one slice in all sectors.

    Attributes:
        words: uint64, of shape (4, sectors).
        counts: int64, of shape (sectors,).
        op_count: the sum of the counts.
    """

    __slots__ = ("_flat_counts", "_flat_words", "counts", "op_count", "words")

    def __init__(self, words: NDArray[np.uint64], counts: NDArray[np.int64]) -> None:
        self.words = words
        self.counts = counts
        self.op_count = int(counts.sum())
        # Single cells are read and written through these: indexing an array makes an object of each number first.
        self._flat_words = words.reshape(-1).data
        self._flat_counts = counts.data

    @classmethod
    def empty(cls, sector_count: int) -> Column:
        return cls(np.zeros((WORDS, sector_count), np.uint64), np.zeros(sector_count, np.int64))

    @property
    def nbytes(self) -> int:
        return self.words.nbytes + self.counts.nbytes

    def change(self, sector: int, op_id: bytes, sign: int) -> None:
        """Add (1) or take away (-1) one op.

        Raises:
            LocalProtocolError: it would take an op away from a cell that has none.
        """
        counts, words = self._flat_counts, self._flat_words
        count = counts[sector] + sign
        if count < 0:
            raise LocalProtocolError(f"an op is removed from sector {sector} that never was inserted")
        counts[sector] = count
        self.op_count += sign
        sector_count = len(counts)
        for word in _WORDS_OF(op_id):
            words[sector] ^= word
            sector += sector_count

    def change_all(self, words: NDArray[np.uint64], counts: NDArray[np.int64]) -> None:
        """Add to each cell, or take away where the counts are negative, what a column of such arrays has in it."""
        self.words ^= words
        self.counts += counts
        self.op_count += int(counts.sum())

    def top(self, arcs: ArcSet) -> Combined:
        """The top hash over some sectors."""
        columns = arcs.columns
        words = np.bitwise_xor.reduce(self.words[:, columns], axis=1)
        return Combined(words.tobytes(), int(self.counts[columns].sum()))

    def cells(self, arcs: ArcSet) -> Iterator[tuple[int, Combined]]:
        """The sectors of some arcs that hold an op, in ascending order, with their combined hashes."""
        sectors = np.flatnonzero((self.counts > 0) & arcs.mask)
        hashes = np.ascontiguousarray(self.words[:, sectors].T).tobytes()
        counts = self.counts[sectors].tolist()
        for i, (sector, count) in enumerate(zip(sectors.tolist(), counts, strict=True)):
            yield sector, Combined(hashes[i * HASH_BYTES : (i + 1) * HASH_BYTES], count)

    def copy(self) -> Column:
        """The same, to be changed on its own."""
        return Column(self.words.copy(), self.counts.copy())

    def __add__(self, other: Column) -> Column:
        return Column(self.words ^ other.words, self.counts + other.counts)


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """How many ops each cell of some slices holds: the picture of a partition.

    Attributes:
        slices: the ``created_at_us`` [start, stop) of each slice, in order: full slices that hold an op, every ring,
            and units of the tail that hold an op.
        full: how many of these are full slices.
        rings: how many of these, behind the full ones, are rings.
        ops: int64, of shape (slices, sectors).
    """

    slices: tuple[range, ...]
    full: int
    rings: int
    ops: NDArray[np.int64]


class Cells:
    """The combined hashes of all cells of a layout. See the module.

    Attributes:
        layout: which slices there are.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._sector_count = layout.parameters.sector_count
        self._columns: dict[int, Column] = {}
        self._disc = Column.empty(self._sector_count)

    @property
    def op_count(self) -> int:
        """How many ops there are in all cells."""
        return sum(column.op_count for column in self._columns.values())

    @property
    def column_count(self) -> int:
        """How many slices hold an op, each unit of the tail for itself."""
        return len(self._columns)

    @property
    def nbytes(self) -> int:
        """What the arrays take."""
        return sum(column.nbytes for column in (self._disc, *self._columns.values()))

    def insert(self, op_id: bytes, sector: int, created_at_us: int) -> None:
        """Add an op that is not in yet.

        Raises:
            ValidationError: the op id does not have 32 bytes, the sector does not exist, or the time is negative or
                2**63 or more.
        """
        start = self._start_of(op_id, sector, created_at_us)
        column = self._columns.get(start)
        if column is None:
            column = self._columns[start] = Column.empty(self._sector_count)
        column.change(sector, op_id, 1)
        if start < self.layout.disc_end:
            self._disc.change(sector, op_id, 1)

    def remove(self, op_id: bytes, sector: int, created_at_us: int) -> None:
        """Take away an op that is in.

        Raises:
            ValidationError: as :meth:`insert`.
            LocalProtocolError: its cell is empty.
        """
        start = self._start_of(op_id, sector, created_at_us)
        column = self._columns.get(start)
        if column is None:
            raise LocalProtocolError("an op is removed from a slice that has none")
        column.change(sector, op_id, -1)
        if start < self.layout.disc_end:
            self._disc.change(sector, op_id, -1)
        if not column.op_count:
            del self._columns[start]

    def insert_batch(
        self, op_ids: NDArray[np.uint8], sectors: NDArray[np.int64], created_at_us: NDArray[np.int64]
    ) -> None:
        """Add ops that are not in yet, none of them twice.

        Args:
            op_ids: of shape (n, 32).
            sectors, created_at_us: of shape (n,).

        Raises:
            ValidationError: an array has another shape, a sector does not exist, or a time is negative.
        """
        starts, words, counts = self._by_slice(op_ids, sectors, created_at_us)
        for i, start in enumerate(starts):
            if start in self._columns:
                self._columns[start].change_all(words[:, i], counts[i])
            else:
                self._columns[start] = Column(words[:, i].copy(), counts[i].copy())
            if start < self.layout.disc_end:
                self._disc.change_all(words[:, i], counts[i])

    def remove_batch(
        self, op_ids: NDArray[np.uint8], sectors: NDArray[np.int64], created_at_us: NDArray[np.int64]
    ) -> None:
        """Take away ops that are in, none of them twice.

        Raises:
            ValidationError: as :meth:`insert_batch`.
            LocalProtocolError: a cell has fewer ops than are taken away; then none is.
        """
        starts, words, counts = self._by_slice(op_ids, sectors, created_at_us)
        for i, start in enumerate(starts):
            if start not in self._columns or (self._columns[start].counts < counts[i]).any():
                raise LocalProtocolError("ops are removed that never were inserted")
        for i, start in enumerate(starts):
            self._columns[start].change_all(words[:, i], -counts[i])
            if start < self.layout.disc_end:
                self._disc.change_all(words[:, i], -counts[i])
            if not self._columns[start].op_count:
                del self._columns[start]

    def copy(self) -> Cells:
        """The cells as they are now, for a round; what comes and goes later is in one of the two alone."""
        copied = Cells(self.layout)
        copied._columns = {start: column.copy() for start, column in self._columns.items()}
        copied._disc = self._disc.copy()
        return copied

    def moved_to(self, layout: Layout) -> Cells:
        """The cells of this layout or a later one, with the same ops in them.

        Raises:
            LocalProtocolError: the layout is an earlier one, or one of other parameters.
        """
        columns = dict(self._columns)
        promoted = move(steps_between(self.layout, layout, columns), columns)
        moved = Cells(layout)
        moved._columns, moved._disc = columns, sum(promoted, start=self._disc)
        return moved

    def disc_top(self, arcs: ArcSet) -> Combined:
        """The top hash of the disc."""
        return self._disc.top(arcs)

    def ring_tops(self, arcs: ArcSet) -> tuple[Combined, ...]:
        """The top hash of each ring, in order; those of empty rings too."""
        return tuple(self._top(start, arcs) for start in self.layout.ring_starts)

    def tail_tops(self, arcs: ArcSet, units: int) -> tuple[Combined, ...]:
        """The top hash of each of the tail's first units, and behind these that of all the rest."""
        last = self.layout.tail_start + units
        rest = (column.top(arcs) for start, column in self._columns.items() if start >= last)
        return (*(self._top(start, arcs) for start in range(self.layout.tail_start, last)), sum(rest, start=NOTHING))

    def disc_sectors(self, arcs: ArcSet) -> Iterator[tuple[int, Combined]]:
        """The sectors whose disc holds an op, with the top hash of that."""
        return self._disc.cells(arcs)

    def full_slices(self) -> list[int]:
        """The units at which the full slices that hold an op begin, in order."""
        return sorted(start for start in self._columns if start < self.layout.disc_end)

    def slice_cells(self, start: int, arcs: ArcSet) -> Iterator[tuple[int, Combined]]:
        """The sectors in which the slice that begins at a unit holds an op, with their combined hashes.

        All of the tail is one slice here.
        """
        if start == self.layout.tail_start:
            tail = (column for unit, column in self._columns.items() if unit >= start)
            return sum(tail, start=Column.empty(self._sector_count)).cells(arcs)
        column = self._columns.get(start)
        return iter(()) if column is None else column.cells(arcs)

    def counts(self) -> Counts:
        """How many ops each cell holds."""
        full = self.full_slices()
        tail = sorted(start for start in self._columns if start >= self.layout.tail_start)
        nothing = np.zeros(self._sector_count, np.int64)
        starts = (*full, *self.layout.ring_starts, *tail)
        columns = (self._columns.get(start) for start in starts)
        rows = [nothing if column is None else column.counts for column in columns]
        unit_us = self.layout.parameters.unit_us
        return Counts(
            slices=(
                *(self.layout.slice_us(start) for start in (*full, *self.layout.ring_starts)),
                *(range(unit * unit_us, (unit + 1) * unit_us) for unit in tail),
            ),
            full=len(full),
            rings=len(self.layout.ring_starts),
            ops=np.array(rows, np.int64).reshape(len(starts), self._sector_count),
        )

    def _top(self, start: int, arcs: ArcSet) -> Combined:
        column = self._columns.get(start)
        return NOTHING if column is None else column.top(arcs)

    def _start_of(self, op_id: bytes, sector: int, created_at_us: int) -> int:
        """The unit at which the slice begins that an op belongs to, if it is an op."""
        if len(op_id) != HASH_BYTES:
            raise ValidationError(f"an op id has {HASH_BYTES} bytes, not {len(op_id)}")
        if not 0 <= sector < self._sector_count:
            raise ValidationError(f"sectors are in [0, {self._sector_count}), and {sector} is not")
        if not 0 <= created_at_us < END_OF_TIME_US:
            raise ValidationError(f"created_at_us is in [0, 2**63), and {created_at_us} is not")
        return self.layout.start_of(created_at_us // self.layout.parameters.unit_us)

    def _by_slice(
        self, op_ids: NDArray[np.uint8], sectors: NDArray[np.int64], created_at_us: NDArray[np.int64]
    ) -> tuple[list[int], NDArray[np.uint64], NDArray[np.int64]]:
        """What a batch adds to each slice: where the slices begin, words of shape (4, slices, sectors), and counts."""
        n = len(op_ids)
        if op_ids.shape != (n, HASH_BYTES) or sectors.shape != (n,) or created_at_us.shape != (n,):
            raise ValidationError("a batch of n ops is op ids of shape (n, 32), and sectors and times of shape (n,)")
        if n and not (sectors.min() >= 0 and sectors.max() < self._sector_count and created_at_us.min() >= 0):
            raise ValidationError(f"sectors are in [0, {self._sector_count}), times not negative")
        layout = self.layout
        units = created_at_us // layout.parameters.unit_us
        power = layout.parameters.factor
        starts = np.where(units < layout.disc_end, units >> power << power, units)
        in_ring = (units >= layout.disc_end) & (units < layout.tail_start)
        ring_starts = np.array(layout.ring_starts, np.int64)
        starts[in_ring] = ring_starts[np.searchsorted(ring_starts, units[in_ring], side="right") - 1]
        slices, row = np.unique(starts, return_inverse=True)
        cell = row * self._sector_count + sectors
        shape = (len(slices), self._sector_count)
        words = np.zeros((WORDS, len(slices) * self._sector_count), np.uint64)
        for xored, of_ops in zip(words, np.ascontiguousarray(op_ids).view(np.uint64).T, strict=True):
            np.bitwise_xor.at(xored, cell, of_ops)
        counts = np.bincount(cell, minlength=words.shape[1]).astype(np.int64)
        return slices.tolist(), words.reshape(WORDS, *shape), counts.reshape(shape)
