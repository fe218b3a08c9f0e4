"""A file that is open: :class:`PrimeFile`, for reading or for writing; and several that are written together."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import trio
from fsspec.spec import AbstractBufferedFile
from fsspec.transaction import Transaction

from prime_dht.filesystem.details import details_of
from prime_dht.filesystem.errors import os_errors
from prime_dht.node.blobs.putting import READ_BYTES

if TYPE_CHECKING:
    from prime_dht.filesystem.filesystem import PrimeFileSystem
    from prime_dht.filesystem.tree import Tree


class PrimeFile(AbstractBufferedFile):  # type: ignore[misc]
    """What ``open`` gives, in binary.

    Who **reads** sees one version, whatever is written meanwhile: that which was there when it was opened. What is
    asked for is fetched in blocks of ``block_size`` bytes, as the cache that ``cache_type`` names sees fit.

    What is **written** goes to a temporary file, and from there to the swarm when it is closed; before that nobody sees
    anything of it. If it is in a ``with`` of its own that ends by an error, or nobody closes it, nothing is written.
    (What is put around it closes it after an error, too: text, compression, ``fsspec.open``; there a transaction
    helps.) Appending takes what is there first, and writes all of it.
    """

    def __init__(
        self,
        fs: PrimeFileSystem,
        path: str,
        mode: str,
        block_size: int | None,
        autocommit: bool,
        *,
        ttl: float | None,
        **options: Any,
    ) -> None:
        options.pop("size", None)  # of a file that is opened anew elsewhere; the entry says what it is now
        if mode == "rb":
            self._found = fs._tree.find_file(path)
            with os_errors(path):
                self._details = details_of(path, self._found)
            options["size"] = self._details["size"]
        else:
            self._ttl = ttl
            self._written = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this is open
        super().__init__(fs, path, mode, block_size or fs.blocksize, autocommit, **options)
        if mode == "ab" and fs.exists(path):
            fs.get_file(path, self._written)
            self.loc = self._written.tell()

    def _fetch_range(self, start: int, end: int) -> bytes:
        tree: Tree = self.fs._tree
        return tree.read(self.path, self._found, start, min(end, self.size))

    def _upload_chunk(self, final: bool = False) -> bool:
        self._written.write(self.buffer.getvalue())
        if final and self.autocommit:
            self._publish()
        return True

    def commit(self) -> None:
        """Make visible what was written in a transaction; fsspec calls it when that ends."""
        if not self._written.closed:  # it was discarded
            if not self.closed:
                self.close()
            self._publish()

    def discard(self) -> None:
        """Forget what was written."""
        self._written.close()
        self.closed = True

    def _publish(self) -> None:
        try:
            self._written.flush()
            content = _pieces(self._written.fileno())
            self.fs._tree.write(self.path, content, ttl_s=self._ttl, exclusive=self.mode == "xb")
        finally:
            self._written.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and self.mode != "rb":
            self.discard()
        self.close()

    def __del__(self) -> None:
        if not self.closed and self.mode != "rb":
            self.discard()


class PrimeTransaction(Transaction):  # type: ignore[misc]
    """fsspec's; but one that fails has ended, too. Of older versions it goes on, and what is written is never seen."""

    def complete(self, commit: bool = True) -> None:
        fs = self.fs
        try:
            super().complete(commit)
        finally:
            while self.files:
                self.files.popleft().discard()
            fs._intrans = False
            fs._transaction = None


async def _pieces(descriptor: int) -> AsyncGenerator[bytes]:
    """All of a file that has no name, and so is gone with whoever has it open, however that ends."""
    start = 0
    while piece := await trio.to_thread.run_sync(os.pread, descriptor, READ_BYTES, start):
        yield piece
        start += len(piece)
