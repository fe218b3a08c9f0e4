"""Pinning: what this node's user wants kept, whatever becomes of the entries that refer to it.

A pin is a claim of this node's own, which a loss of power does not take back, and a fetch if not all is here. Of one
root one pin is under way at a time: another waits for it, and then finds what it has brought. What the node fetches by
itself for the sake of entries is left to a pin of the same root while that goes on.

A pin that is refused because the blob is none, or of another size than was said, and one for the sake of a put that
fails, leave the root as it was before: pinned, if it was, or if somebody else pinned it meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from prime_dht.blobs.cid import Cid
from prime_dht.errors import PrimeDHTError, StorageError
from prime_dht.ids import PeerId
from prime_dht.node.blobs.claims import PIN
from prime_dht.node.blobs.destination import StoreDestination
from prime_dht.node.blobs.fetch import Fetcher, OnProgress, RefusedBlobError
from prime_dht.node.blobs.keeping import Keeping
from prime_dht.storage.blocks import BlockStore, Claim
from prime_dht.storage.blocks_index import LostBlocksError

MOST_FETCHES = 3
"""In a pin: blocks that it has brought may turn out to be damaged, or be let go of, before it has the others."""


@dataclass(slots=True, eq=False)
class _Pinning:
    """Pins of one root that are under way.

    Attributes:
        turn: of the one that fetches.
        change: of whether the root is pinned.
        is_kept: whether it stays pinned though all of them fail; ``None`` before anybody has looked.
    """

    turn: trio.Lock = field(default_factory=trio.Lock)
    change: trio.Lock = field(default_factory=trio.Lock)
    count: int = 0
    is_kept: bool | None = None


class Pins:
    """See the module."""

    def __init__(self, blocks: BlockStore, fetcher: Fetcher, keeping: Keeping) -> None:
        self._blocks = blocks
        self._fetcher = fetcher
        self._keeping = keeping
        self._under_way: dict[Cid, _Pinning] = {}

    async def pin(
        self,
        root: Cid,
        *,
        size: int | None,
        hints: Callable[[], Awaitable[Collection[PeerId]]],
        progress: OnProgress | None,
    ) -> None:
        """Keep a blob and have all of it here, and announce it.

        Args:
            size: that it is said to have, if it is known; it must have it.
            hints: tells who may have it; called if it is not here.

        Raises:
            BlobError: nobody has it; it stays pinned.
            RefusedBlobError: it is no blob, or of another size.
            StorageError: there is no room, the disk fails, or it was unpinned meanwhile.
        """
        async with self._undone_by(RefusedBlobError, root) as pinning, pinning.turn:
            claim = Claim(root=root, label=PIN)
            status = await self._blocks.claim(claim, size_bytes=0, is_synced=True)
            for left in reversed(range(MOST_FETCHES)):
                if status.is_complete:
                    break
                destination = StoreDestination(self._blocks, root, size=size)
                try:
                    with self._keeping.left_to_others(root):
                        may_have = [*await hints(), *self._keeping.publishers_of(root)]
                        await self._fetcher.fetch(destination, may_have, progress=progress)
                    await self._blocks.complete(root, since=status, size_bytes=destination.walk.size)
                    break
                except StorageError as error:
                    status_now = await self._blocks.status(root)
                    if status_now is None:
                        raise _unpinned(root) from error
                    if not left or not isinstance(error, LostBlocksError):
                        raise
                    status = status_now
            if claim not in await self._blocks.claims(root):  # though it is kept for the sake of an entry
                raise _unpinned(root)
        await self._keeping.announce(root)

    @asynccontextmanager
    async def kept(self, root: Cid, *, size_bytes: int) -> AsyncIterator[None]:
        """Pin what is here whole, and put an entry for it; if that fails, it is not pinned for its sake."""
        async with self._undone_by(PrimeDHTError, root):
            await self._blocks.claim(Claim(root=root, label=PIN), size_bytes=size_bytes, is_synced=True)
            yield

    async def unpin(self, root: Cid) -> bool:
        """Keep a blob no longer, unless for the sake of an entry; whether it was pinned."""
        claim = Claim(root=root, label=PIN)
        if claim not in await self._blocks.claims(root):
            return False
        await self._blocks.release(claim)
        await self._keeping.let_go([root])
        return True

    @asynccontextmanager
    async def _undone_by(self, failure: type[PrimeDHTError], root: Cid) -> AsyncIterator[_Pinning]:
        """While a root is being pinned; if that fails so, the pin is undone, unless the root is pinned anyway."""
        pinning = self._under_way.setdefault(root, _Pinning())
        pinning.count += 1
        try:
            async with pinning.change:
                if pinning.is_kept is None:
                    pinning.is_kept = Claim(root=root, label=PIN) in await self._blocks.claims(root)
            yield pinning
            pinning.is_kept = True
        except failure:
            raise
        except BaseException:  # whoever wanted it pinned may want it still
            pinning.is_kept = True
            raise
        finally:
            is_undone = False
            try:
                with trio.CancelScope(shield=True):
                    async with pinning.change:
                        is_undone = pinning.count == 1 and pinning.is_kept is False
                        if is_undone:
                            await self._blocks.release(Claim(root=root, label=PIN))
            finally:
                pinning.count -= 1
                if not pinning.count:
                    del self._under_way[root]
            if is_undone:
                await self._keeping.let_go([root])


def _unpinned(root: Cid) -> StorageError:
    return StorageError(f"blob {root} was unpinned while it was fetched")
