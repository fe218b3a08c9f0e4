"""Sketches: the first coded symbols of a set of ops, and those of every sector, kept as ops come and go.

What a coded symbol is, and which ops are in which, is told in :mod:`prime_dht.partition.symbols`. Three ops make this
one, the sketch of 4 symbols of which each has 22 bytes:

>>> ids = np.arange(96, dtype=np.uint8).reshape(3, 32)
>>> everything = Sketch.of(ids, 4)
>>> everything.symbols["count"].tolist(), len(everything.encode())
([3, 2, 3, 2], 88)

**Linear.** The sketch of a set minus that of another is the sketch of what they differ in; what only this node has
counts as positive. So the symbols of the sectors of any arc combine to the sketch of that arc, and a node keeps the
first ``m`` symbols per sector, whatever arcs its partners may ask for:

>>> sketches = SectorSketches(sector_count=512, m=128)
>>> sketches.insert_batch(ids, np.array([7, 7, 300]))
>>> sketches.sketch_of(range(512), 4) == everything
True
>>> everything.subtract(sketches.sketch_of(range(256), 4)) == sketches.sketch_of(range(256, 512), 4)
True

**Once.** An op is inserted once when it comes and removed once when it goes. Symbols cannot tell which ops are in them:
what is inserted twice cancels itself in the XORs and is counted twice.

**Forgery.** All of this is linear, so whoever publishes many ops can choose among them two sets of equal sketches, as
of equal combined hashes. It harms only these ops, and it shows in a salted sketch of the sector, of which one symbol is
enough: ``Sketch.of(ids, 1, Code(salt))``. So now and then a round compares a sector at random by one.

**One set.** Sketches can be subtracted and decoded only if all symbols of one describe the same set. While a round
lasts ops come and go, therefore a round works with a copy. Symbols beyond those kept are made from the ids of
that same set (:meth:`Sketch.of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from prime_dht.errors import LocalProtocolError, ValidationError
from prime_dht.partition.planes import SYMBOL, Planes, Symbols
from prime_dht.partition.symbols import (
    PLAIN,
    Code,
    Ids,
    Indices,
    checksum_of,
    checksums_of,
    halves_of,
    halves_of_many,
    indices,
    indices_of_many,
)

SYMBOL_BYTES = SYMBOL.itemsize

MAX_SYMBOLS = 1 << 14
"""The longest sketch: enough for some 11,000 differences. It bounds the work that a hostile one can cause."""

SectorSet = npt.NDArray[np.bool_] | npt.NDArray[np.integer] | Sequence[int]
"""A boolean mask of shape (sector_count,), or the numbers of distinct sectors."""

_Field = TypeVar("_Field", bound=np.generic)

_TOGETHER_FROM = 40  # ops; below, one by one is faster
_BATCH = 1 << 15  # ops whose intermediate arrays stay in the processor's cache


@dataclass(frozen=True, slots=True)
class Sketch:
    """The first coded symbols of a set of ops, at least one, as bytes as they travel, and their code."""

    data: bytes
    code: Code = PLAIN

    @classmethod
    def of(cls, ids: Ids, count: int, code: Code = PLAIN) -> Sketch:
        """The first ``count`` symbols of the ops with these ids."""
        planes = Planes.zeros(count)
        _add_all(planes, ids, np.zeros(len(ids), np.intp), count, code, 1)
        return cls(planes.packed().tobytes(), code)

    @classmethod
    def decode(cls, data: bytes, code: Code = PLAIN) -> Sketch:
        """Read the sketch that a peer sent. Whatever its symbols are, :mod:`~prime_dht.partition.decode` can bear it.

        Raises:
            ValidationError: these are not whole symbols, at least 1 and at most 16,384.
        """
        return cls(_whole(data, MAX_SYMBOLS), code)

    def encode(self, start: int = 0) -> bytes:
        """The symbols from ``start`` on, as they travel."""
        return self.data[start * SYMBOL_BYTES :]

    def append(self, data: bytes) -> Sketch:
        """This sketch, continued by what a peer sent after it.

        Raises:
            ValidationError: as for :meth:`decode`, of both together.
        """
        return Sketch(self.data + _whole(data, MAX_SYMBOLS - len(self)), self.code)

    def __len__(self) -> int:
        """How many symbols."""
        return len(self.data) // SYMBOL_BYTES

    @property
    def symbols(self) -> Symbols:
        """The symbols, to read."""
        return np.frombuffer(self.data, SYMBOL)

    def prefix(self, count: int) -> Sketch:
        """The first ``count`` symbols, or all if there are fewer."""
        return Sketch(self.data[: count * SYMBOL_BYTES], self.code)

    def subtract(self, other: Sketch) -> Sketch:
        """The sketch of the difference: of what only this set has, counted positive, and what only the other has.

        Raises:
            LocalProtocolError: their lengths or codes differ.
        """
        if len(self) != len(other) or self.code != other.code:
            raise LocalProtocolError("only sketches of the same length and code can be subtracted")
        ours, theirs, difference = self.symbols, other.symbols, np.empty(len(self), SYMBOL)
        for field in ("low", "high", "checksum"):
            difference[field] = ours[field] ^ theirs[field]
        difference["count"] = ours["count"] - theirs["count"]
        return Sketch(difference.tobytes(), self.code)


class SectorSymbols:
    """The first ``m`` coded symbols of every sector, to read.

    Attributes:
        sector_count, m: how many sectors, and how many symbols of each.
    """

    def __init__(self, planes: Planes, sector_count: int) -> None:
        self.sector_count = sector_count
        self.m = len(planes.low) // sector_count
        self._planes = planes

    @property
    def nbytes(self) -> int:
        """The memory they take, in bytes."""
        return int(self._planes.block.nbytes)

    def sketch_of(self, sectors: SectorSet, count: int) -> Sketch:
        """The first ``count`` symbols of all ops in some sectors.

        Raises:
            LocalProtocolError: ``count`` is not in [1, m].
        """
        if not 1 <= count <= self.m:
            raise LocalProtocolError(f"{self.m} coded symbols of each sector are kept, not {count}")
        chosen = np.asarray(sectors) if len(sectors) else np.empty(0, np.intp)
        planes, symbols = self._planes, np.empty(count, SYMBOL)
        for field, plane in (("low", planes.low), ("high", planes.high), ("checksum", planes.checksum)):
            symbols[field] = np.bitwise_xor.reduce(self._by_sector(plane)[chosen, :count], axis=0)
        symbols["count"] = np.add.reduce(self._by_sector(planes.count)[chosen, :count], axis=0)
        return Sketch(symbols.tobytes())

    def checksums(self) -> npt.NDArray[np.uint32]:
        """The XOR of the checksums of each sector's ops, shape (sector_count,).

        In 2 KiB for 512 sectors it shows which of them differ; that one differs and does not show it has the
        probability 2**-32, unless somebody chose the ops for that.
        """
        return self._by_sector(self._planes.checksum)[:, 0].copy()

    def _by_sector(self, plane: npt.NDArray[_Field]) -> npt.NDArray[_Field]:
        return plane.reshape(self.sector_count, self.m)


class SectorSketches(SectorSymbols):
    """The first ``m`` coded symbols of every sector, kept as ops come and go."""

    def __init__(self, sector_count: int, m: int = 128) -> None:
        super().__init__(Planes.unwritten(sector_count * m), sector_count)  # of most sectors a node holds nothing

    def insert(self, op_id: bytes, sector: int) -> None:
        """Add one op, by its id of 16 bytes or more."""
        self._toggle(op_id, sector, 1)

    def remove(self, op_id: bytes, sector: int) -> None:
        """Take out one op."""
        self._toggle(op_id, sector, -1)

    def insert_batch(self, ids: Ids, sectors: npt.NDArray[np.integer]) -> None:
        """Add ops, a few or a million, each in its sector; ``sectors`` has the shape (n,)."""
        self._toggle_batch(ids, sectors, 1)

    def remove_batch(self, ids: Ids, sectors: npt.NDArray[np.integer]) -> None:
        """Take out ops."""
        self._toggle_batch(ids, sectors, -1)

    def copy(self) -> SectorSketches:
        """The symbols as they are now, for a round; what comes and goes later is in one of the two alone."""
        copied = copy(self)
        copied._planes = self._planes.copy()
        return copied

    def _toggle(self, op_id: bytes, sector: int, sign: int) -> None:
        low, high = halves_of(op_id)
        seed = PLAIN.seed_of(low, high)
        base = sector * self.m
        self._planes.add(low, high, checksum_of(seed), [base + index for index in indices(seed, self.m)], sign)

    def _toggle_batch(self, ids: Ids, sectors: npt.NDArray[np.integer], sign: int) -> None:
        if len(ids) < _TOGETHER_FROM:
            for op_id, sector in zip(ids, sectors.tolist(), strict=True):
                self._toggle(op_id.tobytes(), sector, sign)
            return
        _add_all(self._planes, ids, sectors.astype(np.intp) * self.m, self.m, PLAIN, sign)


def _whole(data: bytes, most: int) -> bytes:
    count, rest = divmod(len(data), SYMBOL_BYTES)
    if rest or not 1 <= count <= most:
        raise ValidationError(f"{len(data)} bytes are not 1 to {most} coded symbols")
    return data


def _add_all(planes: Planes, ids: Ids, base: Indices, stop: int, code: Code, sign: int) -> None:
    """Add ids to their symbols in [0, stop); symbol ``i`` of an id has the place base + ``i``."""
    for begin in range(0, len(ids), _BATCH):
        low, high = halves_of_many(ids[begin : begin + _BATCH])
        seeds = code.seeds_of(low, high)
        checksums = checksums_of(seeds)
        batch_base = base[begin : begin + _BATCH]
        for which, index in indices_of_many(seeds, stop):
            planes.add_many(low[which], high[which], checksums[which], batch_base[which] + index, np.int32(sign))
