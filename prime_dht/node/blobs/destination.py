"""Where a fetch brings the blocks of a blob: the node's block store, or what a reader asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from prime_dht.blobs.cid import BlockBytes, Cid, Codec
from prime_dht.blobs.walk import Piece, Walk
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
        """Take a block. As long as this does not return, the block counts as under way: so a slow taker slows all."""
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


class StoreDestination:
    """The block store, for a root that is claimed."""

    def __init__(self, blocks: BlockStore, root: Cid, *, size: int | None = None) -> None:
        self.walk = Walk(root, size=size)
        self._blocks = blocks

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
        await self._blocks.add(self.walk.root, [(cid, data)])
