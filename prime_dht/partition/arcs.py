"""Sets of sectors, and how they are encoded.

An *arc* is a piece of the circle, given by its first and last location, both of which belong to it. It may wrap around
past the highest location: then its last location is before its first. An *arc set* is a set of sectors, so the arcs it
is made of begin and end where sectors do. What a node stores is always the sectors that share a prefix, but what two
nodes have in common, hold or want to compare can be any.

>>> around_zero = Arc(510 << 23, (3 << 23) - 1)
>>> arcs = ArcSet.of([around_zero], sector_bits=9)
>>> list(arcs), [hex(arc.last) for arc in arcs.arcs()]
([0, 1, 2, 510, 511], ['0x17fffff', '0xffffffff'])
>>> list(arcs & ArcSet.of_prefix(0b1111111, 7, sector_bits=9))
[510, 511]

**Encoding**: one bit for each sector, sector s being bit s mod 32 of the 32-bit word s // 32; words are little-endian.
512 sectors are 16 words, 64 bytes. In that form any bytes of the right length are an arc set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import or_
from typing import Self

import numpy as np
from numpy.typing import NDArray

from prime_dht.errors import ValidationError
from prime_dht.partition.location import sector_locations, sector_of


@dataclass(frozen=True, slots=True)
class Arc:
    """The locations from ``first`` to ``last``, both included; around past the highest if ``last`` is before."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class ArcSet:
    """An immutable set of sectors.

    Attributes:
        bits: bit s is set if sector s belongs to it.
        sector_bits: there are 2**sector_bits sectors.

    Raises:
        ValidationError: a sector does not exist; or, of an operation on two, they are of different sector bits.
    """

    bits: int
    sector_bits: int

    def __post_init__(self) -> None:
        if self.bits < 0 or self.bits >> (1 << self.sector_bits):
            raise ValidationError(f"there are {1 << self.sector_bits} sectors")

    @classmethod
    def empty(cls, *, sector_bits: int) -> Self:
        return cls(0, sector_bits)

    @classmethod
    def full(cls, *, sector_bits: int) -> Self:
        return cls((1 << (1 << sector_bits)) - 1, sector_bits)

    @classmethod
    def of_sectors(cls, sectors: Iterable[int], *, sector_bits: int) -> Self:
        """The set of the given sectors.

        Raises:
            ValidationError: one does not exist.
        """
        present = list(sectors)
        if present and not 0 <= min(present) <= max(present) < 1 << sector_bits:
            raise ValidationError(f"sectors are in [0, {1 << sector_bits})")
        return cls(reduce(or_, (1 << sector for sector in present), 0), sector_bits)

    @classmethod
    def of(cls, arcs: Iterable[Arc], *, sector_bits: int) -> Self:
        """The union of some arcs, which may overlap.

        Raises:
            ValidationError: an arc is not on the circle, or does not begin and end where sectors do.
        """
        return cls(reduce(or_, (_bits_of(arc, sector_bits) for arc in arcs), 0), sector_bits)

    @classmethod
    def of_prefix(cls, prefix: int, length: int, *, sector_bits: int) -> Self:
        """The sectors that hold the kad keys whose first ``length`` bits are the number ``prefix``.

        That is 2**(sector_bits − length) of them, or, for a prefix longer than ``sector_bits``, the one it lies in.

        Raises:
            ValidationError: ``prefix`` is no number of ``length`` bits.
        """
        if length < 0 or prefix < 0 or prefix >> length:
            raise ValidationError(f"{prefix} is no number of {length} bits")
        spare = sector_bits - length
        if spare < 0:
            return cls(1 << (prefix >> -spare), sector_bits)
        return cls(((1 << (1 << spare)) - 1) << (prefix << spare), sector_bits)

    @classmethod
    def decode(cls, raw: bytes, *, sector_bits: int) -> Self:
        """Read an encoded arc set.

        Raises:
            ValidationError: it is not one bit for each sector.
        """
        expected = (1 << sector_bits) // 8
        if len(raw) != expected:
            raise ValidationError(f"an arc set of 2**{sector_bits} sectors has {expected} bytes, not {len(raw)}")
        return cls(int.from_bytes(raw, "little"), sector_bits)

    def encode(self) -> bytes:
        """One bit for each sector; see the module."""
        return self.bits.to_bytes((1 << self.sector_bits) // 8, "little")

    def arcs(self) -> list[Arc]:
        """The fewest arcs, none of which wraps around, in the order of locations."""
        arcs: list[Arc] = []
        for sector in self:
            locations = sector_locations(sector, sector_bits=self.sector_bits)
            follows = bool(arcs) and arcs[-1].last == locations.start - 1
            first = arcs.pop().first if follows else locations.start
            arcs.append(Arc(first, locations.stop - 1))
        return arcs

    def covers(self, location: int) -> bool:
        """Whether a location lies in one of the sectors."""
        return sector_of(location, sector_bits=self.sector_bits) in self

    @property
    def columns(self) -> slice | NDArray[np.bool_]:
        """Selects the sectors from an axis of an array that has one place for each: a slice where that can do it."""
        return _columns(self.bits, self.sector_bits)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """For each sector whether it belongs to the set. Read-only."""
        return _mask(self.bits, self.sector_bits)

    def __contains__(self, sector: int) -> bool:
        return sector >= 0 and bool(self.bits >> sector & 1)

    def __iter__(self) -> Iterator[int]:
        """The sectors, in ascending order."""
        return iter(np.flatnonzero(self.mask).tolist())

    def __len__(self) -> int:
        return self.bits.bit_count()

    def __and__(self, other: ArcSet) -> ArcSet:
        self._check_comparable(other)
        return ArcSet(self.bits & other.bits, self.sector_bits)

    def __or__(self, other: ArcSet) -> ArcSet:
        self._check_comparable(other)
        return ArcSet(self.bits | other.bits, self.sector_bits)

    def __sub__(self, other: ArcSet) -> ArcSet:
        self._check_comparable(other)
        return ArcSet(self.bits & ~other.bits, self.sector_bits)

    def _check_comparable(self, other: ArcSet) -> None:
        if self.sector_bits != other.sector_bits:
            raise ValidationError(f"arc sets of {self.sector_bits} and {other.sector_bits} sector bits")


def _bits_of(arc: Arc, sector_bits: int) -> int:
    first, last = (sector_of(location, sector_bits=sector_bits) for location in (arc.first, arc.last))
    starts = sector_locations(first, sector_bits=sector_bits).start == arc.first
    ends = sector_locations(last, sector_bits=sector_bits).stop - 1 == arc.last
    if not (starts and ends):
        raise ValidationError(f"the arc from {arc.first} to {arc.last} does not begin and end where sectors do")
    up_to_last, before_first = (1 << (last + 1)) - 1, (1 << first) - 1
    if arc.first <= arc.last:
        return up_to_last & ~before_first
    every = (1 << (1 << sector_bits)) - 1
    return up_to_last | (every & ~before_first)


@lru_cache(maxsize=256)
def _mask(bits: int, sector_bits: int) -> NDArray[np.bool_]:
    raw = np.frombuffer(bits.to_bytes((1 << sector_bits) // 8, "little"), np.uint8)
    mask = np.unpackbits(raw, bitorder="little").view(np.bool_)
    mask.flags.writeable = False
    return mask


@lru_cache(maxsize=256)
def _columns(bits: int, sector_bits: int) -> slice | NDArray[np.bool_]:
    first = (bits & -bits).bit_length() - 1 if bits else 0
    is_one_run = (bits >> first) & ((bits >> first) + 1) == 0
    return slice(first, first + bits.bit_count()) if is_one_run else _mask(bits, sector_bits)
