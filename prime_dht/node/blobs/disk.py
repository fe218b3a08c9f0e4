"""Writing to a file past the system's cache, where the system lets us.

What is written in the usual way is copied into the *cache*, pushes out of it what others work with, and is brought to
the disk when it suits the system. Written *directly*, with Linux's ``O_DIRECT``, it goes from the program's memory to
the disk, for less CPU. That is for whole *units* of the disk alone, from memory that begins at one, as that of
:class:`~prime_dht.blobs.memory.BlockMemory` does; other bytes are copied to such memory before. So the whole units of
what is written are written directly and what it has of a unit at either end through the cache; and all of it where the
system or the file system knows no direct writing.

Linux keeps the two coherent: a direct write first brings to the disk what the cache has of its units, and afterwards
drops that from the cache. So what was written either way may be read through the cache, and a unit that two writes
share, written through it.

Source: open(2), of O_DIRECT.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack

import numpy as np

from prime_dht.blobs.cid import BlockBytes
from prime_dht.blobs.memory import pages

UNIT_BYTES = 4096
"""A multiple of what any usual disk and file system asks direct writes to begin and end at."""

DIRECT_FROM_BYTES = 16 * UNIT_BYTES
"""Less than that is not worth waiting for the disk."""

BUFFER_BYTES = 1 << 20
"""What is copied and written directly at a time."""

CACHED_BYTES = 8 << 20
"""What was written through the cache and not yet brought to the disk, about."""


class DiskWriter:
    """Writes to a file, in one thread at a time. It may be read meanwhile.

    Args:
        descriptor: of the file, open for writing, which the caller closes.
        resources: what else is open is closed with them.
    """

    def __init__(self, descriptor: int, resources: ExitStack) -> None:
        self._descriptor = descriptor
        self._direct = _open_directly(descriptor, resources)
        self._buffer = pages(BUFFER_BYTES)
        self._cached_bytes = 0

    def write(self, data: BlockBytes, at: int) -> None:
        """Write bytes to their place in the file, all of them.

        Raises:
            OSError: the disk is full, or fails; some of them may be written.
        """
        rest = memoryview(data)
        while rest:
            before_unit = -at % UNIT_BYTES
            if self._direct is None or len(rest) < before_unit + DIRECT_FROM_BYTES:
                written = self._write_through_cache(rest, at)
            elif before_unit:  # at the beginning, or where a direct write was cut short within a unit
                written = self._write_through_cache(rest[:before_unit], at)
            else:
                written = self._write_directly(self._direct, rest, at)
            rest, at = rest[written:], at + written

    def sync(self) -> None:
        """Bring to the disk what was written, either way, and let the cache go of it."""
        os.fsync(self._descriptor)  # for what was written directly, the file's size and where on the disk it lies
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        self._cached_bytes = 0

    def _write_through_cache(self, data: memoryview, at: int) -> int:
        written = os.pwrite(self._descriptor, data, at)
        self._cached_bytes += written
        if self._cached_bytes >= CACHED_BYTES:
            self.sync()
        return written

    def _write_directly(self, direct: int, data: memoryview, at: int) -> int:
        """How many bytes were written: none, if this file takes no direct writes."""
        units = data[: len(data) - len(data) % UNIT_BYTES]
        try:
            return os.pwrite(direct, units if _begins_at_unit(units) else self._copy(units[:BUFFER_BYTES]), at)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._direct = None
            return 0

    def _copy(self, data: memoryview) -> memoryview:
        self._buffer[: len(data)] = data
        return memoryview(self._buffer)[: len(data)]


def _begins_at_unit(data: memoryview) -> bool:
    """Whether its memory does."""
    return np.frombuffer(data, np.uint8).ctypes.data % UNIT_BYTES == 0


def _open_directly(descriptor: int, resources: ExitStack) -> int | None:
    """The same file again, for direct writes; ``None`` if the system or the file system knows none."""
    if not hasattr(os, "O_DIRECT"):  # not on macOS
        return None
    try:
        # By its descriptor, for at its path there may be another by now.
        direct = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None
    resources.callback(os.close, direct)
    return direct
