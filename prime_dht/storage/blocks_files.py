"""Where the bytes of blocks lie: a directory of files, or memory. Everything here blocks.

On disk a block is a file named by its digest, in one of 256 *shards* named by the digest's first byte, so a million
blocks make 4,000 files a directory. A block is written under ``incoming/`` and then renamed, so a file in a shard is
whole, unless power was lost before it was synced.

Each error of the file system is an :class:`OSError` here; the store translates it. But a file that is damaged so that
the system cannot read it holds no block, like one that is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from prime_dht.blobs.cid import DIGEST_BYTES
from prime_dht.durability import sync_path

SHARDS = 256

_NO_BLOCK = {errno.ENOENT, errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.EISDIR}
"""What the system says of a file that is gone or damaged; of others, such as a lack of rights, a file knows nothing."""

_DIGEST = re.compile(f"[0-9a-f]{{{2 * DIGEST_BYTES}}}")

Data = bytes | bytearray | memoryview
"""A block's bytes."""


class BlockFiles(Protocol):
    """Bytes by digest. One thread at a time changes them, while any number read and sync."""

    def write(self, digest: bytes, data: Data) -> None:
        """Take the bytes of a block. Nobody reads a part of them."""
        ...

    def read(self, digest: bytes) -> bytes | None:
        """The bytes of a block; ``None`` if there are none, or they cannot be read."""
        ...

    def remove(self, digest: bytes) -> None:
        """Forget the bytes of a block. If there are none, nothing happens."""
        ...

    def sync(self, digests: Collection[bytes]) -> None:
        """Have blocks survive a loss of power, those that are still there."""
        ...


class DiskFiles:
    """:class:`BlockFiles` in a directory, which is made if it is not there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._incoming = directory / "incoming"
        for each in (self._incoming, *(_shard(directory, first) for first in range(SHARDS))):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_path(directory)  # who made them may have been killed before it did

    def write(self, digest: bytes, data: Data) -> None:
        incoming = self._incoming / digest.hex()
        try:
            with incoming.open("wb") as file:
                file.write(data)
            incoming.rename(self._path(digest))
        except OSError:
            incoming.unlink(missing_ok=True)
            raise

    def read(self, digest: bytes) -> bytes | None:
        # Path.read_bytes makes nine system calls where these are four, and each gives up the interpreter's lock, for
        # which a node that is busy sending blocks makes it wait.
        try:
            descriptor = os.open(self._path(digest), os.O_RDONLY | os.O_CLOEXEC)
            try:
                size = os.fstat(descriptor).st_size
                data = os.read(descriptor, size)
                # The system reads as far as a damaged sector, and says that there is one when it is asked on.
                while len(data) < size and (more := os.read(descriptor, size - len(data))):
                    data += more
                return data
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno not in _NO_BLOCK:
                raise
            return None

    def remove(self, digest: bytes) -> None:
        self._path(digest).unlink(missing_ok=True)

    def sync(self, digests: Collection[bytes]) -> None:
        paths = [self._path(digest) for digest in digests]
        for path in (*paths, *{path.parent for path in paths}):  # the names after what they name
            with contextlib.suppress(FileNotFoundError):  # it was garbage, and collected meanwhile
                sync_path(path)

    def drop_incoming(self) -> None:
        """Remove what was never written to its end."""
        for digest in _digests(self._incoming):
            (self._incoming / digest.hex()).unlink()

    def digests(self, first: int) -> set[bytes]:
        """Those of all blocks in the shard of a first byte."""
        return set(_digests(_shard(self._directory, first)))

    def _path(self, digest: bytes) -> Path:
        return _shard(self._directory, digest[0]) / digest.hex()


class MemoryFiles:
    """:class:`BlockFiles` that end with their process."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, bytes] = {}

    def write(self, digest: bytes, data: Data) -> None:
        self._blocks[digest] = bytes(data)

    def read(self, digest: bytes) -> bytes | None:
        return self._blocks.get(digest)

    def remove(self, digest: bytes) -> None:
        self._blocks.pop(digest, None)

    def sync(self, digests: Collection[bytes]) -> None: ...


def holds_blocks(directory: Path) -> bool:
    """Whether there is a block in a directory, which may not be there, or have nothing to do with blocks."""
    shards = (_shard(directory, first) for first in range(SHARDS))
    return any(_digests(shard) for shard in shards if shard.is_dir())


def _shard(directory: Path, first: int) -> Path:
    return directory / f"{first:02x}"


def _digests(directory: Path) -> list[bytes]:
    """What the files in a directory are named by; those named otherwise are not ours."""
    return [bytes.fromhex(name) for name in os.listdir(directory) if _DIGEST.fullmatch(name)]
