"""Memory for large blocks on their way, which is used again for the blocks that come after them.

Memory that is fresh from the system comes in pages, each of which is filled with zeros when it is first touched. For a
block that takes as long as to hash half of it. And what begins at a page, as this memory does, can be written to the
disk directly from there (:mod:`prime_dht.node.blobs.disk`).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

from prime_dht.blobs.cid import BlockBytes

Memory = bytearray | memoryview
"""What a block can be written to."""

Lend = Callable[[int], Memory]
"""Gives memory for a block of so many bytes; ``bytearray`` does, and fills it with zeros."""

CAPACITY_BYTES = 1 << 20
"""Of one piece of memory: the size of most blocks."""

LARGE_BYTES = CAPACITY_BYTES // 2
"""Smaller blocks get memory of their own, or a few bytes of each would take a whole piece."""


def pages(size: int) -> mmap.mmap:
    """Memory of ``size`` bytes that begins at a page."""
    return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class BlockMemory:
    """Lends memory to blocks of between :data:`LARGE_BYTES` and :data:`CAPACITY_BYTES`.

    Args:
        kept: pieces of memory that are kept for blocks to come, at most.
    """

    def __init__(self, *, kept: int) -> None:
        self._kept = kept
        self._free: list[mmap.mmap] = []

    def lend(self, size: int) -> Memory:
        """Memory for a block of ``size`` bytes, with anything in it.

        Raises:
            MemoryError, OSError: there is none.
        """
        if not LARGE_BYTES <= size <= CAPACITY_BYTES:
            return bytearray(size)
        piece = self._free.pop() if self._free else pages(CAPACITY_BYTES)
        return memoryview(piece)[:size]

    def take_back(self, data: BlockBytes) -> None:
        """Nobody needs a block any more, which may be another's memory, and cannot be read from now on if it was lent.

        What is never given back is let go of with its block.
        """
        if not (isinstance(data, memoryview) and isinstance(data.obj, mmap.mmap)):
            return
        piece = data.obj
        data.release()
        if len(self._free) < self._kept:
            self._free.append(piece)

    def close(self) -> None:
        """Let go of what is kept; nothing is from now on."""
        self._kept = 0
        self._free.clear()
