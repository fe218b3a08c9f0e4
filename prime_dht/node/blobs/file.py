"""A blob written to a file: each block to its place as it comes, and the whole under its name when all have come.

Until then the content lies beside the file, in one of the same name that begins with a dot and ends in ``.partial``,
and the nodes of its DAG, which are no content, in one that ends in ``.nodes``. They are what an interrupted fetch
leaves behind, however it ended. The next one of the same blob to the same file goes on from there: it believes nothing,
but reads each block where it would lie, and has it if its hash is right. Of a part of a blob, the leaves that it cuts
through cannot be told so, and are fetched again.

A block that is in the blob several times is written to all its places, and found again by one of them.

A link is followed: the file that it leads to is replaced. What is there and is no file, such as a pipe or a device, is
left as it is, and nothing is written.

What was written goes to the disk at once, past the system's cache, or is brought there bit by bit
(:mod:`prime_dht.node.blobs.disk`): otherwise a blob of the size of memory would push out of the cache what the reader
works with, and its last byte would wait for all others to reach the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import trio

from prime_dht.blobs.cid import CID_BYTES, BlockBytes, Cid, Codec
from prime_dht.blobs.unixfs import MAX_BLOCK_BYTES
from prime_dht.blobs.walk import Piece
from prime_dht.durability import sync_path
from prime_dht.errors import BlobError, StorageError, ValidationError
from prime_dht.node.blobs.destination import Together, ToldWalk
from prime_dht.node.blobs.disk import DiskWriter

T = TypeVar("T")

MAX_REMEMBERED = 1 << 17
"""Leaves whose places are remembered, in case they come again: of 128 GiB with the fixed chunker."""

MAX_NODES = 1 << 16
"""Nodes that are kept, and remembered with some 230 bytes each: of 11 TiB with the profile's chunks and links. Of more,
as there are in a DAG that somebody made to be in the way, those beyond are fetched again when they come again.
"""

NAME_BYTES = 160
"""Of a file's name, at most, in those of the files that are beside it."""

_RECORD = struct.Struct(f">{CID_BYTES}sI")
"""Before each node: its CID and how many bytes it has."""


class FileDestination:
    """A :class:`~prime_dht.node.blobs.destination.Destination`. Close it, whether it was finished or not.

    Args:
        path: of the file, as :func:`place_of` says it.
        start, stop: which bytes of the blob, [start, stop); ``None`` for to the end.
    """

    def __init__(
        self, path: Path, root: Cid, *, size: int | None = None, start: int = 0, stop: int | None = None
    ) -> None:
        self.walk = ToldWalk(root, self._note, size=size, start=start, stop=stop)
        part = "" if (start, stop) == (0, None) else f".{start}-{'' if stop is None else stop}"
        self._path = path
        self._partial = partial_path(path, root, part)
        self._nodes_path = self._partial.with_suffix(".nodes")
        self._start = start
        self._stop = stop
        self._places: dict[Cid, list[Piece]] = {}  # of leaves that are under way
        self._written: dict[Cid, Piece] = {}
        self._nodes: dict[Cid, tuple[int, int]] = {}  # where in their file, and how many bytes
        self._resources = contextlib.ExitStack()
        self._content = self._node_file = -1
        self._was_there = self._is_finished = False
        self._writer: DiskWriter | None = None
        self._together = Together(self._take)

    async def open(self) -> None:
        """Make the files, or open those that were left.

        Raises:
            BlobError: somebody is writing them.
            StorageError: they cannot be written.
        """
        await self._in_thread(self._open)

    async def held(self, cids: Sequence[Cid]) -> dict[Cid, BlockBytes | None]:
        async with self._together.turn:
            found = await self._in_thread(lambda: dict(self._found(cids)))
            # The walk goes on meanwhile, and may tell further places of them; at the end there are none.
            while cids := [cid for cid in found if cid in self._places]:
                places = {cid: self._places.pop(cid) for cid in cids}
                await self._in_thread(lambda: self._write_found(places))  # noqa: B023 - it is done at once
        return found

    async def take(self, cid: Cid, data: BlockBytes) -> None:
        await self._together.take(cid, data)
        while cid in self._places:  # told since it was written, before this could return
            await self._together.take(cid, data)

    async def _take(self, blocks: Mapping[Cid, BlockBytes]) -> None:
        places = self._taken_places(blocks)
        # No leaves are nodes, and the root, if it is a leaf that came before the walk told it.
        nodes = {cid: data for cid, data in blocks.items() if cid not in places}
        await self._in_thread(lambda: self._write_new(nodes, places, blocks))
        while places := self._taken_places(blocks):  # the walk went on meanwhile
            await self._in_thread(lambda: self._write_new({}, places, blocks))

    def _taken_places(self, cids: Iterable[Cid]) -> dict[Cid, list[Piece]]:
        """Where blocks are to be written, each place once."""
        return {cid: self._places.pop(cid) for cid in cids if cid in self._places}

    async def finish(self) -> None:
        """Everything was taken: give the file its name, in place of what had it before.

        Raises:
            StorageError: that failed; what was taken stays.
        """
        assert not self._places, "a place that the walk told was not written"
        await self._in_thread(self._finish)

    async def aclose(self) -> None:
        """Close the files; what is not finished stays, unless there is nothing of it."""
        with trio.CancelScope(shield=True):
            await self._in_thread(self._close)

    # On worker threads

    def _open(self) -> None:
        _check_place(self._path)
        with contextlib.ExitStack() as resources:
            content = self._opened_alone(resources)
            self._node_file = self._opened(self._nodes_path, resources)
            self._was_there = os.fstat(content).st_size > 0
            self._read_nodes()
            self._writer = DiskWriter(content, resources)
            self._content, self._resources = content, resources.pop_all()

    def _opened_alone(self, resources: contextlib.ExitStack) -> int:
        """The file of the content, which nobody else writes until the resources are closed."""
        while True:
            with contextlib.ExitStack() as attempt:
                content = self._opened(self._partial, attempt)
                try:
                    fcntl.flock(content, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise BlobError(f"{self._path}: this blob is being fetched to it already") from error
                # A child that was forked in the meantime has it open as well: closing alone would leave it locked.
                attempt.callback(fcntl.flock, content, fcntl.LOCK_UN)
                if _is_at(self._partial, content):  # else whoever had locked it gave it its name, or removed it
                    resources.push(attempt.pop_all())
                    return content

    def _opened(self, path: Path, resources: contextlib.ExitStack) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        resources.callback(os.close, descriptor)
        return descriptor

    def _read_nodes(self) -> None:
        """Note which nodes were left, up to the first that is not whole."""
        end = 0
        while len(self._nodes) < MAX_NODES:
            head = os.pread(self._node_file, _RECORD.size, end)
            if len(head) < _RECORD.size:
                break
            raw, size = _RECORD.unpack(head)
            try:
                cid = Cid.from_bytes(raw)
            except ValidationError:
                break
            if size > MAX_BLOCK_BYTES or not cid.verify(os.pread(self._node_file, size, end + _RECORD.size)):
                break
            self._nodes[cid] = (end + _RECORD.size, size)
            end += _RECORD.size + size
        os.ftruncate(self._node_file, end)

    def _write_new(
        self,
        nodes: Mapping[Cid, BlockBytes],
        places: Mapping[Cid, Sequence[Piece]],
        blocks: Mapping[Cid, BlockBytes],
    ) -> None:
        for cid, data in nodes.items():
            self._add_node(cid, data)
        for cid, pieces in places.items():
            self._write(pieces, blocks[cid])
            self._remember(cid, pieces)

    def _add_node(self, cid: Cid, data: BlockBytes) -> None:
        if len(self._nodes) >= MAX_NODES:
            return
        end = os.fstat(self._node_file).st_size
        _write_all(self._node_file, b"".join((_RECORD.pack(bytes(cid), len(data)), data)), end)
        self._nodes[cid] = (end + _RECORD.size, len(data))

    def _found(self, cids: Sequence[Cid]) -> Iterator[tuple[Cid, BlockBytes | None]]:
        for cid in cids:
            data = self._find(cid)
            if data is not None:
                yield cid, data if cid.codec is Codec.DAG_PB or cid == self.walk.root else None

    def _write_found(self, places: Mapping[Cid, Sequence[Piece]]) -> None:
        """Write blocks, of which each lies at one of its places, or at another, to all of them."""
        for cid, pieces in places.items():
            data = self._find(cid, pieces)
            if data is None:
                raise StorageError(f"{self._path}: somebody else changed {self._partial.name}")
            self._write(pieces, data)
            self._remember(cid, pieces)

    def _find(self, cid: Cid, pieces: Sequence[Piece] = ()) -> BlockBytes | None:
        """The bytes of a block, from wherever they may lie: as a node, at one of these pieces, or at another place."""
        if cid in self._nodes:
            at, size = self._nodes[cid]
            data = os.pread(self._node_file, size, at)
            return data if cid.verify(data) else None
        places = [self._written[cid]] if cid in self._written else []
        if self._was_there:
            places += [*pieces, *self._places.get(cid, [])]
        for place in places:
            data = os.pread(self._content, place.size, max(place.start - self._start, 0))
            if cid.verify(data):
                return data
        return None

    def _write(self, places: Sequence[Piece], data: BlockBytes) -> None:
        assert self._writer is not None
        for place in places:
            self._writer.write(self.walk.part(place, data), max(place.start - self._start, 0))

    def _finish(self) -> None:
        assert self.walk.part_bytes is not None
        assert self._writer is not None
        os.ftruncate(self._content, self.walk.part_bytes)
        self._writer.sync()
        _check_place(self._path)  # it may have come meanwhile
        self._partial.rename(self._path)
        self._is_finished = True
        self._nodes_path.unlink(missing_ok=True)
        sync_path(self._path.parent)

    def _close(self) -> None:
        is_empty = self._content >= 0 and not os.fstat(self._content).st_size and not self._nodes
        if is_empty and not self._is_finished:
            self._partial.unlink(missing_ok=True)
            self._nodes_path.unlink(missing_ok=True)
        self._resources.close()

    # Within

    def _note(self, piece: Piece) -> None:
        self._places.setdefault(piece.cid, []).append(piece)

    def _remember(self, cid: Cid, places: Sequence[Piece]) -> None:
        """Note where it can be read again: not where the part that is fetched cuts through it."""
        whole = next((place for place in places if self._is_whole(place)), None)
        if whole is None:
            return
        self._written[cid] = whole
        if len(self._written) > MAX_REMEMBERED:
            del self._written[next(iter(self._written))]

    def _is_whole(self, place: Piece) -> bool:
        return self._start <= place.start and (self._stop is None or place.stop <= self._stop)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        def translated() -> T:
            try:
                return work()
            except OSError as error:
                raise StorageError(f"{self._path}: {error.strerror}") from error

        return await trio.to_thread.run_sync(translated)


def place_of(path: Path) -> Path:
    """Where the file is that is to be written: where ``path`` leads, if it is a link. This blocks.

    Raises:
        StorageError: what is there is no file, or it cannot be reached.
        ValidationError: no file can have this name.
    """
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise ValidationError(f"{os.fspath(path)!r}: not the name of a file: {error}") from error
    if not path.name or b"\0" in raw:
        raise ValidationError(f"{os.fspath(path)!r}: not the name of a file")
    try:
        place = path.resolve() if path.is_symlink() else path
        _check_place(place)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    except RuntimeError as error:  # a loop of links
        raise StorageError(f"{path}: {error}") from error
    return place


def write_small(path: Path, value: bytes) -> None:
    """Write a value that is no blob, whole or not at all. This blocks.

    Raises:
        StorageError: it cannot be written.
        ValidationError: no file can have this name.
    """
    place = place_of(path)
    incoming = place.with_name(f".{secrets.token_hex(8)}.partial")  # its own: others may be writing the same file
    try:
        with incoming.open("wb") as file:
            file.write(value)
            file.flush()
            os.fsync(file.fileno())
        incoming.rename(place)
        sync_path(place.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            incoming.unlink()
        raise StorageError(f"{path}: {error.strerror}") from error


def partial_path(path: Path, root: Cid, part: str = "") -> Path:
    """Where the content of a blob lies while it is fetched to ``path``. Whatever lies there before may save fetching.

    Args:
        part: names a part of the blob; empty for the whole.
    """
    # A file's name may have 255 bytes on most systems, and this one is longer than the file's.
    name = os.fsencode(path.name)[:NAME_BYTES].decode(errors="ignore")
    return path.with_name(f".{name}.{str(root)[-8:]}{part}.partial")


def _check_place(path: Path) -> None:
    """Raise if what is there is no file: it is not to be replaced."""
    if path.is_dir():
        raise StorageError(f"{path}: it is a directory")
    if os.path.lexists(path) and not path.is_file():
        raise StorageError(f"{path}: it is there, and no file")


def _write_all(descriptor: int, data: BlockBytes | memoryview, at: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, at)
        rest, at = rest[written:], at + written


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the file that is open is the one that lies there."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
