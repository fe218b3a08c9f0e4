"""Pinning: what this node's user wants kept, whatever becomes of the entries that refer to it.

A pin is a claim of this node's own, and a fetch if not all is here. Of one root one pin is under way at a time: another
waits for it, and then finds what it has brought. A pin that is refused because the blob is none, or of another size
than was said, leaves the root as it was before: pinned, if it was, or if somebody else pinned it meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from prime_dht.blobs.cid import Cid
from prime_dht.errors import StorageError
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
    """Pins of one root: whose turn it is, and how many there are."""

    turn: trio.Lock = field(default_factory=trio.Lock)
    count: int = 0
    is_kept: bool = False
    """Whether the root stays pinned though the one under way be refused."""


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
        async with self._turn_of(root) as pinning:
            claim = Claim(root=root, label=PIN)
            if claim in await self._blocks.claims(root):
                pinning.is_kept = True
            status = await self._blocks.claim(claim, size_bytes=0)
            for left in reversed(range(MOST_FETCHES)):
                if status.is_complete:
                    break
                destination = StoreDestination(self._blocks, root, size=size)
                try:
                    await self._fetcher.fetch(destination, await hints(), progress=progress)
                    await self._blocks.complete(root, since=status, size_bytes=destination.walk.size)
                    break
                except RefusedBlobError:
                    if not pinning.is_kept:
                        await self.unpin(root)
                    raise
                except StorageError as error:
                    status_now = await self._blocks.status(root)
                    if status_now is None:
                        raise StorageError(f"blob {root} was unpinned while it was fetched") from error
                    if not left or not isinstance(error, LostBlocksError):
                        raise
                    status = status_now
        await self._keeping.announce(root)

    async def keep(self, root: Cid, *, size_bytes: int) -> bool:
        """Pin what is here whole; whether it was not pinned before."""
        self._note_kept(root)
        claim = Claim(root=root, label=PIN)
        is_new = claim not in await self._blocks.claims(root)
        await self._blocks.claim(claim, size_bytes=size_bytes)
        self._note_kept(root)  # of a pin that has begun meanwhile
        return is_new

    async def unpin(self, root: Cid) -> bool:
        """Keep a blob no longer, unless for the sake of an entry; whether it was pinned."""
        claim = Claim(root=root, label=PIN)
        if claim not in await self._blocks.claims(root):
            return False
        await self._blocks.release(claim)
        await self._keeping.let_go([root])
        return True

    @asynccontextmanager
    async def _turn_of(self, root: Cid) -> AsyncIterator[_Pinning]:
        pinning = self._under_way.setdefault(root, _Pinning())
        pinning.count += 1
        try:
            async with pinning.turn:
                pinning.is_kept = False
                yield pinning
        finally:
            pinning.count -= 1
            if not pinning.count:
                del self._under_way[root]

    def _note_kept(self, root: Cid) -> None:
        if (pinning := self._under_way.get(root)) is not None:
            pinning.is_kept = True
