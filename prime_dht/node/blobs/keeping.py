"""Keeping blobs: a replica fetches those that its entries refer to, announces them, and lets go of those none does.

What is to be fetched is what is claimed (:mod:`prime_dht.node.blobs.claims`) and not *complete*: after a put, a join, a
round of sync or a crash alike, and, within a minute, after a block turned out to be damaged or gone. A few are fetched
at a time, in the order that :mod:`prime_dht.node.blobs.turns` tells. Those who may have a blob are its publisher, the
other replicas of the entry's key, and its providers. A node that has a blob whole is a provider of its root until it
lets go of it, and says so again at each republish.

More nodes have an entry than the ``r`` closest to its key: it is in the arcs of others too. They fetch its blob only
when they are among the ``r`` closest, which they may become, and unless somebody put the entry to them, who may have
known better and waits for them.

**Holding.** A peer that asks for the presence of a root hears that it is here only if it is claimed and complete: all
its blocks are here, and survive a loss of power. That is how a put learns which replicas hold a blob.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING, assert_never

import trio

from prime_dht.blobs.cid import Cid
from prime_dht.errors import BlobError, LocalProtocolError, QueryError, StorageError, ValidationError
from prime_dht.events import BlobFetched
from prime_dht.ids import Key, PeerId, kad_key
from prime_dht.kad.replicas import choose_replicas, syncs
from prime_dht.node.blobs.claims import PIN, BlobClaims, KeptBlob, all_roots
from prime_dht.node.blobs.destination import StoreDestination
from prime_dht.node.blobs.fetch import Fetcher
from prime_dht.node.blobs.turns import Begin, GiveWay, Turn, Turns, WaitUntil
from prime_dht.node.feed import Feed
from prime_dht.node.lookups import Explorer
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.node.records import Records
from prime_dht.storage.blocks import BlockStore, Claim
from prime_dht.storage.blocks_index import LostBlocksError
from prime_dht.storage.blocks_status import Collected, NoRoomError

if TYPE_CHECKING:
    from trio_typing import TaskStatus

SWEEP_EVERY_S = 60.0
COLLECT_PAUSE_S = 0.1
"""Between two batches of garbage, for others to get at the store."""

logger = logging.getLogger(__name__)


async def collect_all(blocks: BlockStore, *, pause_s: float = 0.0) -> Collected:
    """Remove all garbage of a block store, with pauses between two batches of it; returns how much it was."""
    count = size_bytes = 0
    while True:
        batch = await blocks.collect()
        count += batch.blocks
        size_bytes += batch.bytes
        if batch.is_all:
            return Collected(blocks=count, bytes=size_bytes, is_all=True)
        await trio.sleep(pause_s)


class HeldBlocks:
    """What this node serves of its block store: a :class:`prime_dht.net.block_server.BlockSource`.

    Attributes:
        served_bytes: of blocks that were read for peers, since the start.
    """

    def __init__(self, blocks: BlockStore) -> None:
        self._blocks = blocks
        self.served_bytes = 0

    async def present(self, cids: Iterable[Cid]) -> set[Cid]:
        """Those that this node holds, with all that is under them: see the module."""
        return await self._blocks.held(cids)

    async def read(self, cids: Sequence[Cid]) -> list[bytes | None]:
        found = await self._blocks.read(cids)
        self.served_bytes += sum(len(data) for data in found if data is not None)
        return found


class Keeping:
    """See the module."""

    def __init__(
        self,
        blocks: BlockStore,
        claims: BlobClaims,
        fetcher: Fetcher,
        records: Records,
        explorer: Explorer,
        known: Neighbourhood,
        feed: Feed,
        rng: Random,
        *,
        replication: int,
    ) -> None:
        self._blocks = blocks
        self._claims = claims
        self._fetcher = fetcher
        self._records = records
        self._explorer = explorer
        self._known = known
        self._feed = feed
        self._replication = replication
        self._turns = Turns(rng, self._is_ours)
        self._scopes: dict[Turn, trio.CancelScope] = {}
        self._told_damaged: set[Cid] = set()

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep until cancelled."""
        task_status.started()
        while True:
            try:
                await self._claims.load()
                await self._announce_all()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._fetch_missing, nursery)
                    await self._sweep_always()
            except* StorageError as group:
                logger.warning("blobs cannot be kept now: %s", group.exceptions[0])
            await trio.sleep(SWEEP_EVERY_S)

    async def replicas_of(self, key: Key) -> list[PeerId]:
        """Those that should hold what entries under a key refer to."""
        try:
            return [contact.peer for contact in await self._explorer.replicas_of(key, self._replication)]
        except QueryError:
            return []

    def publishers_of(self, root: Cid) -> list[PeerId]:
        """Of the entries here that refer to a blob: they may have it."""
        return list({blob.publisher for blob in self._claims.kept.values() if blob.root == root})

    @contextmanager
    def left_to_others(self, root: Cid) -> Iterator[None]:
        """While somebody else brings a blob here, this does not, nor what it has begun: each block would come twice."""
        for turn in self._turns.leave(root):
            self._scopes[turn].cancel()
        try:
            yield
        finally:
            self._turns.take_back(root)
            self._claims.changed.set()

    async def announce(self, root: Cid) -> None:
        """Say that this node has a blob, from now on until :meth:`let_go`, which may be called meanwhile."""
        await self._provide(root, announce=True)
        if not self._claims.keeps(root) and await self._blocks.status(root) is None:
            await self._records.stop_providing(root.multihash)

    async def collect(self) -> Collected:
        """Remove garbage, all of it; returns how much it was."""
        return await collect_all(self._blocks, pause_s=COLLECT_PAUSE_S)

    async def let_go(self, roots: Iterable[Cid]) -> None:
        """Announce those no longer that nobody claims any more, and forget their blocks."""
        for root in roots:
            if await self._blocks.status(root) is None:
                await self._records.stop_providing(root.multihash)
        await self.collect()

    # Within

    async def _announce_all(self) -> None:
        """Be a provider of what is complete; others remember it from before, so they are told at the next republish."""
        for status in await all_roots(self._blocks):
            if status.is_complete:
                await self._provide(status.root, announce=False)

    async def _provide(self, root: Cid, *, announce: bool) -> None:
        try:
            await self._records.provide(root.multihash, announce=announce)
        except (LocalProtocolError, QueryError, ValidationError) as error:
            logger.debug("blob %s is not announced: %s", root, error)

    async def _sweep_always(self) -> None:
        await self.let_go(await self._claims.sweep())  # also what a process has left that was killed, or gave up
        while True:
            await trio.sleep(SWEEP_EVERY_S)
            await self.let_go(await self._claims.sweep())  # and of what puts have left that ended half way
            await self._take_up_lacking()

    async def _take_up_lacking(self) -> None:
        """Have those fetched that lack something, though nobody has said so: blocks of them are damaged or gone."""
        lacking = {status.root: status for status in await all_roots(self._blocks, is_partial=True)}
        kept = [blob for blob in self._claims.kept.values() if blob.root in lacking]
        self._turns.add(kept)
        if kept:
            self._claims.changed.set()
        pinned = lacking.keys() - {blob.root for blob in kept}
        self._told_damaged &= pinned
        for root in pinned - self._told_damaged:
            # A pin alone does not know its size before it is whole, and whoever asked for it was told that it is not.
            if self._turns.is_elsewhere(root):
                continue
            if lacking[root].size_bytes and Claim(root=root, label=PIN) in await self._blocks.claims(root):
                self._told_damaged.add(root)
                logger.warning("blob %s, which is pinned, is not whole; to fetch the rest, pin it again", root)

    async def _fetch_missing(self, nursery: trio.Nursery) -> None:
        while True:
            self._claims.changed = trio.Event()
            self._turns.add(self._claims.take_new())
            self._turns.retain(self._claims.kept)
            match self._turns.next(trio.current_time()):
                case Begin(turn):
                    scope = self._scopes[turn] = trio.CancelScope()
                    nursery.start_soon(self._fetch, turn, scope)
                case GiveWay(turn):
                    logger.debug("the fetch of blob %s gives way to others", turn.blob.root)
                    self._scopes[turn].cancel()
                case WaitUntil(at_s):
                    with trio.move_on_at(at_s):
                        await self._claims.changed.wait()
                    await trio.sleep(self._turns.rest_s)
                case action:
                    assert_never(action)

    def _is_ours(self, blob: KeptBlob) -> bool:
        """Whether this node is to have a blob here; others are to hold most of what sync brings entries of."""
        return blob.is_by_put or self._is_replica_of(blob.key)

    def _is_replica_of(self, key: Key) -> bool:
        """Whether this node is one of the ``r`` closest that it knows; near itself it knows all."""
        target, own = kad_key(key), self._known.own_contact()
        servers = self._known.table.find_closest(target, self._replication, where=syncs)
        return own is not None and own in choose_replicas(target, servers, self._replication, own=own)

    async def _fetch(self, turn: Turn, scope: trio.CancelScope) -> None:
        blob, began_at_s = turn.blob, trio.current_time()
        failure: str | None = None
        try:
            with scope:
                failure = await self._bring(turn)
        except (BlobError, StorageError) as error:
            failure = str(error)
            if isinstance(error, NoRoomError):
                await self._claims.give_up(blob.root, failure)
            self._turns.retain(self._claims.kept)  # what was let go of in the meantime is no failure
            if (wait_s := self._turns.failed(turn, trio.current_time())) is not None:
                logger.log(_level_of(error), "a blob could not be fetched: %s; trying again in %.0f s", failure, wait_s)
        finally:
            self._turns.ended(turn)
            del self._scopes[turn]
            self._claims.changed.set()
        if failure is not None:
            elapsed_s = trio.current_time() - began_at_s
            self._feed.publish(
                BlobFetched(
                    cid=str(blob.root), key=blob.key, size_bytes=blob.size, elapsed_s=elapsed_s, failure=failure
                )
            )

    async def _bring(self, turn: Turn) -> str | None:
        """Have a blob here, and announce it; ``None`` if there was nothing to fetch."""
        blob = turn.blob
        status = self._claims.found(blob) or await self._blocks.status(blob.root)
        is_to_fetch = status is not None and not status.is_complete
        if is_to_fetch:
            destination = StoreDestination(self._blocks, blob.root, size=blob.size)
            hints = [blob.publisher, *await self.replicas_of(blob.key)]
            await self._fetcher.fetch(
                destination, hints, progress=lambda progress: self._turns.told(turn, progress, trio.current_time())
            )
            self._turns.brought(turn)
            # Others may have said another size.
            status = await self._blocks.complete(blob.root, since=status, size_bytes=blob.size)
        self._turns.done(blob.root)
        if status is not None:  # nor was it let go of in the meantime
            if status.is_complete:
                self._claims.came(blob.root, status.size_bytes)
            await self.announce(blob.root)
        return "" if is_to_fetch else None


def _level_of(error: BlobError | StorageError) -> int:
    """What strangers can bring about, or a put of the same blob here, is not worth more than a debug line.

    That the disk fails is.
    """
    is_of_disk = isinstance(error, StorageError) and not isinstance(error, NoRoomError | LostBlocksError)
    return logging.WARNING if is_of_disk else logging.DEBUG
