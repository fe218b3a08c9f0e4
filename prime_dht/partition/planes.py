"""Coded symbols in memory: an array for each of their fields, and how ids are added to them.

A few ids are added one by one, through memoryviews, which for single numbers are several times faster than numpy; many
are added together.
"""

from __future__ import annotations

from collections.abc import Iterable
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

import numpy as np
import numpy.typing as npt

from prime_dht.partition.symbols import Indices, Words

SYMBOL = np.dtype([("low", "<u8"), ("high", "<u8"), ("checksum", "<u4"), ("count", "<i2")])
"""A coded symbol as it travels."""

Symbols = npt.NDArray[np.void]
"""Coded symbols of the type :data:`SYMBOL`."""


class Planes:
    """The fields of ``n`` coded symbols, each an array of shape (n,). Counts are exact: nothing is lost at 2**15.

    They lie in one block of memory, of shape (3, n), because one block is copied ten times as fast as four.
    """

    def __init__(self, block: Words) -> None:
        self.block = block
        self.n = block.shape[1]
        self.low, self.high = block[0], block[1]
        checksum, count = np.split(block[2].view(np.uint32), 2)
        self.checksum: npt.NDArray[np.uint32] = checksum
        self.count: npt.NDArray[np.int32] = count.view(np.int32)
        self.views = (self.low.data, self.high.data, self.checksum.data, self.count.data)

    @classmethod
    def zeros(cls, n: int) -> Planes:
        """Symbols of nothing."""
        return cls(np.zeros((3, n), np.uint64))

    @classmethod
    def unwritten(cls, n: int) -> Planes:
        """Symbols of nothing, of which those that are never written take no memory.

        They come from the system and go back to it. What malloc once had back it clears and hands out whole.
        """
        pages = mmap(-1, 3 * n * 8, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        return cls(np.frombuffer(pages, np.uint64).reshape(3, n))

    @classmethod
    def unpacked(cls, symbols: Symbols) -> Planes:
        """Symbols that travelled."""
        planes = cls.zeros(len(symbols))
        planes.low[:], planes.high[:] = symbols["low"], symbols["high"]
        planes.checksum[:], planes.count[:] = symbols["checksum"], symbols["count"]
        return planes

    def copy(self) -> Planes:
        """The same, to be changed on its own. It is for a short time, so malloc may keep its memory for the next."""
        return Planes(self.block.copy())

    def packed(self) -> Symbols:
        """The symbols as they travel."""
        symbols = np.empty(self.n, SYMBOL)
        symbols["low"], symbols["high"] = self.low, self.high
        symbols["checksum"], symbols["count"] = self.checksum, self.count
        return symbols

    def add(self, low: int, high: int, checksum: int, places: Iterable[int], sign: int) -> None:
        """Add one id to the symbols at ``places``, or, with the sign -1, take it from them."""
        lows, highs, checksums, counts = self.views
        for place in places:
            lows[place] ^= low
            highs[place] ^= high
            checksums[place] ^= checksum
            counts[place] += sign

    def add_many(
        self,
        low: Words,
        high: Words,
        checksum: npt.NDArray[np.uint32],
        places: Indices,
        sign: npt.NDArray[np.int32] | np.int32,
    ) -> None:
        """Add many ids, each to one symbol; arrays of one shape, except that all may share a sign."""
        np.bitwise_xor.at(self.low, places, low)
        np.bitwise_xor.at(self.high, places, high)
        np.bitwise_xor.at(self.checksum, places, checksum)
        np.add.at(self.count, places, sign)
