"""A blob as a stream of bytes: the blocks of a fetch, put in order, each for as long as it waits for its turn.

Nothing is stored. A block counts as under way until its last byte was read, so a reader that is slow slows the fetch,
and what waits here is bounded as that is.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Self

import trio

from prime_dht.blobs.cid import BlockBytes, Cid, Codec
from prime_dht.blobs.walk import Piece
from prime_dht.errors import PrimeDHTError
from prime_dht.node.blobs.destination import ToldWalk


class Window:
    """A :class:`~prime_dht.node.blobs.destination.Destination` that is an async iterator of the content, in order.

    Args:
        start, stop: which bytes of the blob, [start, stop); ``None`` for to the end.
    """

    def __init__(self, root: Cid, *, size: int | None = None, start: int = 0, stop: int | None = None) -> None:
        self.walk = ToldWalk(root, self._note, size=size, start=start, stop=stop)
        self._pieces: deque[Piece] = deque()  # in order, from the one that is read next
        self._waiting: Counter[Cid] = Counter()  # how many of them each block is for
        self._blocks: dict[Cid, BlockBytes] = {}
        self._root: bytes | None = None  # if it is a leaf that came before the walk told it
        self._read_out: dict[Cid, trio.Event] = {}
        self._is_over = False
        self._failure: PrimeDHTError | None = None
        self._came = trio.Event()

    # A destination

    async def held(self, cids: Sequence[Cid]) -> dict[Cid, BlockBytes | None]:
        await trio.lowlevel.checkpoint()
        root = self.walk.root
        if self._root is None or root not in cids:
            return {}
        data, self._root = self._root, None
        await self.take(root, data)
        return {root: data}

    async def take(self, cid: Cid, data: BlockBytes) -> None:
        if cid.codec is Codec.DAG_PB:
            await trio.lowlevel.checkpoint()
        elif cid not in self._waiting:
            self._root = bytes(data)
            await trio.lowlevel.checkpoint()
        else:
            while cid in self._waiting:  # when it was read, the walk may have told of it anew
                self._blocks[cid] = data
                self._came.set()
                self._read_out[cid] = trio.Event()
                await self._read_out[cid].wait()

    def _note(self, piece: Piece) -> None:
        self._pieces.append(piece)
        self._waiting[piece.cid] += 1

    # A stream

    def end(self, failure: PrimeDHTError | None = None) -> None:
        """Nothing more comes: everything was taken, and read, or the rest failed; a reader gets that at its end."""
        self._is_over = True
        self._failure = failure
        self._came.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            if self._pieces and (data := self._blocks.get(self._pieces[0].cid)) is not None:
                part = self.walk.part(self._pieces[0], data)
                self._read(self._pieces.popleft())
                if part:
                    return bytes(part)
            elif self._is_over:
                raise self._failure or StopAsyncIteration
            else:
                self._came = trio.Event()
                await self._came.wait()

    def _read(self, piece: Piece) -> None:
        self._waiting[piece.cid] -= 1
        if not self._waiting[piece.cid]:
            del self._waiting[piece.cid], self._blocks[piece.cid]
            self._read_out.pop(piece.cid).set()
