"""Where a fetch brings the blocks of a blob: the node's block store, or what a reader asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import trio

from prime_dht.blobs.cid import BlockBytes, Cid, Codec
from prime_dht.blobs.walk import Piece, Walk
from prime_dht.errors import PrimeDHTError
from prime_dht.storage.blocks import BlockStore


class Destination(Protocol):
    """Takes blocks, verified, in any order. Each method may raise :class:`~prime_dht.errors.StorageError`."""

    @property
    def walk(self) -> Walk:
        """The walk that the fetch follows."""
        ...

    async def held(self, cids: Sequence[Cid]) -> dict[Cid, BlockBytes | None]:
        """Those of some blocks that are there already; the bytes of nodes and of the root, of others presence."""
        ...

    async def take(self, cid: Cid, data: BlockBytes) -> None:
        """Take a block. As long as this does not return, the block counts as under way: so a slow taker slows all.

        Nothing of its memory is read after that: it is for other blocks then.
        """
        ...


class ToldWalk(Walk):
    """A walk that tells of each leaf when it is drawn, so that a destination knows where its block belongs.

    Args:
        tell: is given each leaf, in order.
    """

    def __init__(
        self, root: Cid, tell: Callable[[Piece], None], *, size: int | None, start: int, stop: int | None
    ) -> None:
        super().__init__(root, size=size, start=start, stop=stop)
        self._tell = tell

    def next_leaf(self) -> Piece | None:
        leaf = super().next_leaf()
        if leaf is not None:
            self._tell(leaf)
        return leaf


class Together:
    """What comes while other blocks are written is written after them, in one step.

    Args:
        write: writes blocks. If it fails, so does every call from then on: a block may have been among those.
    """

    def __init__(self, write: Callable[[Mapping[Cid, BlockBytes]], Awaitable[None]]) -> None:
        self._write = write
        self._waiting: dict[Cid, BlockBytes] = {}
        self._failure: PrimeDHTError | None = None
        self.turn = trio.Lock()
        """Whoever has it writes; take it to do what must not happen meanwhile."""

    async def take(self, cid: Cid, data: BlockBytes) -> None:
        """Write a block; it is written when this returns."""
        self._waiting[cid] = data
        async with self.turn:
            if self._failure is not None:
                raise self._failure
            if cid not in self._waiting:
                return
            blocks, self._waiting = self._waiting, {}
            try:
                with trio.CancelScope(shield=True):  # most are not its own
                    await self._write(blocks)
            except PrimeDHTError as error:
                self._failure = error
                raise


class StoreDestination:
    """The block store, for a root that is claimed. It keeps each block once, however often it is in the blob."""

    def __init__(self, blocks: BlockStore, root: Cid, *, size: int | None = None) -> None:
        self.walk = Walk(root, size=size, each_once=True)
        self._blocks = blocks
        self._together = Together(self._add)

    async def held(self, cids: Sequence[Cid]) -> dict[Cid, BlockBytes | None]:
        root = self.walk.root
        found: dict[Cid, BlockBytes | None] = dict.fromkeys(await self._blocks.adopt(root, cids))
        for cid in [cid for cid in found if cid == root or cid.codec is Codec.DAG_PB]:
            (data,) = await self._blocks.read([cid], verify=True)
            if data is None:
                del found[cid]
            else:
                found[cid] = data
        return found

    async def take(self, cid: Cid, data: BlockBytes) -> None:
        await self._together.take(cid, data)

    async def _add(self, blocks: Mapping[Cid, BlockBytes]) -> None:
        await self._blocks.add(self.walk.root, list(blocks.items()))
