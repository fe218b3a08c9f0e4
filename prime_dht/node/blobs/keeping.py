"""Keeping blobs: a replica fetches those that its entries refer to, announces them, and lets go of those none does.

What is to be fetched is what is claimed (:mod:`prime_dht.node.blobs.claims`) and not *complete*: after a put, a join, a
round of sync or a crash alike. The newest comes first, a few at a time; one that fails waits, ever longer, for its next
turn. Those who may have a blob are its publisher, the other replicas of the entry's key, and its providers. A node that
has a blob whole is a provider of its root until it lets go of it, and says so again at each republish.

More nodes have an entry than the ``r`` closest to its key: it is in the arcs of others too. They fetch its blob only
when they are among the ``r`` closest, which they may become, and unless somebody put the entry to them, who may have
known better and waits for them.

**Holding.** A peer that asks for the presence of a root hears that it is here only if it is claimed and complete: all
its blocks are here, and survive a loss of power. That is how a put learns which replicas hold a blob.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import trio

from prime_dht.blobs.cid import Cid
from prime_dht.errors import BlobError, LocalProtocolError, QueryError, StorageError, ValidationError
from prime_dht.events import BlobFetched
from prime_dht.ids import Key, PeerId, kad_key
from prime_dht.kad.replicas import choose_replicas, syncs
from prime_dht.node.blobs.claims import BlobClaims, KeptBlob, all_roots
from prime_dht.node.blobs.destination import StoreDestination
from prime_dht.node.blobs.fetch import Fetcher
from prime_dht.node.feed import Feed
from prime_dht.node.lookups import Explorer
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.node.records import Records
from prime_dht.storage.blocks import BlockStore

if TYPE_CHECKING:
    from trio_typing import TaskStatus

FETCHES_AT_ONCE = 2
"""In the background, of those that a node runs; the rest are left to readers."""

RETRY_FIRST_S = 5.0
RETRY_AT_MOST_S = 3600.0
SWEEP_EVERY_S = 60.0
COLLECT_PAUSE_S = 0.1
"""Between two batches of garbage, for others to get at the store."""

logger = logging.getLogger(__name__)


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
        held: set[Cid] = set()
        for cid in cids:
            status = await self._blocks.status(cid)
            if status is not None and status.is_complete:
                held.add(cid)
        return held

    async def read(self, cids: Sequence[Cid]) -> list[bytes | None]:
        found = await self._blocks.read(cids)
        self.served_bytes += sum(len(data) for data in found if data is not None)
        return found


@dataclass(slots=True)
class _Turn:
    """When a root that is lacking is fetched next."""

    due_s: float = 0.0
    tries: int = 0


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
        self._rng = rng
        self._replication = replication
        self._missing: dict[Cid, KeptBlob] = {}  # or not known to be complete; and for whose sake
        self._turns: dict[Cid, _Turn] = {}
        self._under_way: set[Cid] = set()

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

    async def announce(self, root: Cid) -> None:
        """Say that this node has a blob, from now on until :meth:`let_go`."""
        await self._provide(root, announce=True)

    async def collect(self) -> tuple[int, int]:
        """Remove garbage, all of it; returns how many blocks and bytes."""
        blocks = size_bytes = 0
        while True:
            collected = await self._blocks.collect()
            blocks += collected.blocks
            size_bytes += collected.bytes
            if collected.is_all:
                return blocks, size_bytes
            await trio.sleep(COLLECT_PAUSE_S)

    async def let_go(self, roots: Iterable[Cid]) -> None:
        """Announce those no longer that nobody claims any more, and forget their blocks."""
        for root in roots:
            if await self._blocks.status(root) is None:
                self._missing.pop(root, None)
                self._turns.pop(root, None)
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
        while True:
            await trio.sleep(SWEEP_EVERY_S)
            if gone := await self._claims.sweep():
                await self.let_go(gone)

    async def _fetch_missing(self, nursery: trio.Nursery) -> None:
        while True:
            self._claims.changed = trio.Event()
            self._missing.update((blob.root, blob) for blob in self._claims.take_new())
            for blob in self._due()[: FETCHES_AT_ONCE - len(self._under_way)]:
                self._under_way.add(blob.root)
                nursery.start_soon(self._fetch, blob)
            now_s = trio.current_time()
            later_s = (self._turn(root).due_s for root in self._missing if self._turn(root).due_s > now_s)
            with trio.move_on_at(min(later_s, default=math.inf)):
                await self._claims.changed.wait()

    def _due(self) -> list[KeptBlob]:
        """What is to be fetched now, the newest first; what others are to hold is looked at again later."""
        due: list[KeptBlob] = []
        now_s = trio.current_time()
        for root, blob in self._missing.items():
            if root in self._under_way or self._turn(root).due_s > now_s:
                continue
            if blob.is_by_put or self._is_replica_of(blob.key):
                due.append(blob)
            else:
                self._turns[root] = _Turn(due_s=now_s + SWEEP_EVERY_S)
        return sorted(due, key=lambda blob: blob.created_at_us, reverse=True)

    def _is_replica_of(self, key: Key) -> bool:
        """Whether this node is one of the ``r`` closest that it knows; near itself it knows all."""
        target, own = kad_key(key), self._known.own_contact()
        servers = self._known.table.find_closest(target, self._replication, where=syncs)
        return own is not None and own in choose_replicas(target, servers, self._replication, own=own)

    def _turn(self, root: Cid) -> _Turn:
        return self._turns.get(root) or _Turn()

    async def _fetch(self, blob: KeptBlob) -> None:
        began_at_s = trio.current_time()
        try:
            failure = await self._bring(blob)
        except (BlobError, StorageError) as error:
            failure = str(error)
            self._try_later(blob.root, failure)
        finally:
            self._under_way.discard(blob.root)
            self._claims.changed.set()
        if failure is not None:
            elapsed_s = trio.current_time() - began_at_s
            self._feed.publish(
                BlobFetched(
                    cid=str(blob.root), key=blob.key, size_bytes=blob.size, elapsed_s=elapsed_s, failure=failure
                )
            )

    async def _bring(self, blob: KeptBlob) -> str | None:
        """Have a blob here, and announce it; ``None`` if there was nothing to fetch."""
        status = await self._blocks.status(blob.root)
        is_to_fetch = status is not None and not status.is_complete
        if is_to_fetch:
            destination = StoreDestination(self._blocks, blob.root, size=blob.size)
            await self._fetcher.fetch(destination, [blob.publisher, *await self.replicas_of(blob.key)])
            await self._blocks.complete(blob.root)
        self._missing.pop(blob.root, None)
        self._turns.pop(blob.root, None)
        if await self._blocks.status(blob.root) is not None:  # nor was it let go of in the meantime
            await self.announce(blob.root)
        return "" if is_to_fetch else None

    def _try_later(self, root: Cid, reason: str) -> None:
        if root not in self._missing:  # it was let go of in the meantime
            return
        turn = self._turns.setdefault(root, _Turn())
        wait_s = min(RETRY_FIRST_S * 2**turn.tries, RETRY_AT_MOST_S) * self._rng.uniform(1.0, 1.5)
        turn.tries += 1
        turn.due_s = trio.current_time() + wait_s
        logger.warning("a blob could not be fetched: %s; trying again in %.0f s", reason, wait_s)
