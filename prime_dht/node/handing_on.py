"""Strays given to their replicas and dropped: what :mod:`prime_dht.node.strays` decides, done.

Only a server does it, and only once its partition is loaded, which says where there are strays without a look at the
store. (Who knows no others is to store everything, and has none.) What is acknowledged is dropped only if it lies
outside the arc still: arcs grow at once.

With an entry this node drops the blob that the entry refers to. So such an entry is acknowledged only by replicas that
hold the blob.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from prime_dht.entries.codec import encode_entry_set
from prime_dht.entries.entry import Entry, Version
from prime_dht.errors import QueryError, RemoteProtocolError
from prime_dht.events import EntriesHandedOn
from prime_dht.ids import Key, OpId, PeerId, kad_key
from prime_dht.net.network import Network
from prime_dht.node.batches import BATCH_ENTRIES
from prime_dht.node.blobs.claims import root_of
from prime_dht.node.blobs.holding import held_by
from prime_dht.node.clock import Clock
from prime_dht.node.feed import Feed
from prime_dht.node.held import HeldSectors
from prime_dht.node.lookups import Explorer
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.node.replica import Replica
from prime_dht.node.strays import Gift, Pass, Turns, stray_regions
from prime_dht.storage.base import Op, StorageBackend
from prime_dht.wire.kad import PutValue, Record, StatusCode

logger = logging.getLogger(__name__)

PAUSE_S = 0.25
"""Between batches: puts and gets come first. 256 entries a second, so an arc of 100,000 takes some minutes."""

ALL_TIMES_US = range(1 << 63)


class HandingOn:
    """See the module.

    Args:
        replication: r.
    """

    def __init__(
        self,
        network: Network,
        held: HeldSectors,
        replica: Replica,
        storage: StorageBackend,
        neighbourhood: Neighbourhood,
        explorer: Explorer,
        clock: Clock,
        feed: Feed,
        *,
        replication: int,
    ) -> None:
        self._network = network
        self._held = held
        self._replica = replica
        self._storage = storage
        self._neighbourhood = neighbourhood
        self._explorer = explorer
        self._clock = clock
        self._feed = feed
        self._replication = replication
        self._turns = Turns()

    async def hand_on_strays(self) -> None:
        """One pass, if there are strays and one is due.

        Raises:
            StorageError: the store failed. What was dropped until then was acknowledged.
        """
        partition = self._replica.partition
        is_due = self._turns.is_due(self._clock.monotonic_s())
        if partition is None or not is_due or not self._neighbourhood.is_server:
            return
        regions = list(stray_regions(partition.cells.counts().ops.sum(axis=0).tolist(), self._held.arc))
        if not regions:
            return
        under_way = Pass(self._network.local, self._replication)
        dropped = 0
        for region in regions:
            after: Version | None = None
            while not under_way.is_hopeless and (ops := await self._read(region, after)):
                dropped += await self._hand_on(under_way, ops)
                after = ops[-1].version
                await trio.sleep(PAUSE_S)
        self._turns.ended(self._clock.monotonic_s(), dropped=dropped, kept=under_way.kept)
        if dropped:
            logger.info("handed %d entries on to their replicas and dropped them", dropped)
        self._feed.publish(EntriesHandedOn(dropped=dropped, kept=under_way.kept))

    async def _read(self, region: range, after: Version | None) -> list[Op]:
        return await self._storage.ops(locations=region, created_us=ALL_TIMES_US, after=after, limit=BATCH_ENTRIES)

    async def _hand_on(self, under_way: Pass, ops: Sequence[Op]) -> int:
        """Give a batch to its replicas; returns how many of it were dropped."""
        batch = await self._storage.get_ops([op.op_id for op in ops], now_us=self._clock.now_us())
        gifts = under_way.gifts(batch, await self._servers_near({entry.header.key for entry in batch}))
        async with trio.open_nursery() as nursery:
            for gift in gifts:
                nursery.start_soon(self._give, under_way, gift)
        arc, location_of = self._held.arc, {op.op_id: op.location for op in ops}
        settled = [op_id for op_id in under_way.settled() if not arc.covers(location_of[op_id])]
        return len(await self._replica.remove_ops(settled)) if settled else 0

    async def _servers_near(self, keys: set[Key]) -> dict[Key, list[PeerId]]:
        """The servers near each key, nearest first: out of the routing table where it has them all, else looked up."""
        known = {key for key in keys if self._neighbourhood.knows_all_near(kad_key(key))}
        servers = {key: await self._explorer.replicas_of(key, self._replication) for key in known}
        if unknown := keys - known:
            servers |= await self._explorer.servers_near(unknown, self._replication)
        return {key: [contact.peer for contact in contacts] for key, contacts in servers.items()}

    async def _give(self, under_way: Pass, gift: Gift) -> None:
        under_way.answered(gift, await self._acknowledged(gift.peer, gift.entries))

    async def _acknowledged(self, peer: PeerId, entries: Sequence[Entry]) -> list[bool]:
        """Of each entry whether a replica has it durably, its blob included, or something newer in its slot."""
        records = tuple(Record(entry.header.key, encode_entry_set((entry,))) for entry in entries)
        nothing = [False] * len(entries)
        try:
            reply = await self._neighbourhood.ask(self._neighbourhood.contact(peer), PutValue(records, no_echo=True))
        except (QueryError, RemoteProtocolError) as error:
            logger.debug("strays could not be handed on: %s", error)
            return nothing
        if not reply.replicates or len(reply.statuses) != len(entries):
            return nothing
        lacking = await self._lacking(peer, entries)
        return [
            status.code is StatusCode.SUPERSEDED or (status.code is StatusCode.STORED and entry.op_id not in lacking)
            for entry, status in zip(entries, reply.statuses, strict=True)
        ]

    async def _lacking(self, peer: PeerId, entries: Sequence[Entry]) -> set[OpId]:
        """The entries that refer to a blob which a replica does not hold."""
        now_us = self._clock.now_us()
        roots = {
            entry.op_id: root for entry in entries if (root := root_of(entry)) is not None and entry.is_live(now_us)
        }
        held = await held_by(self._network, peer, set(roots.values())) if roots else set()
        return {op_id for op_id, root in roots.items() if root not in held}
