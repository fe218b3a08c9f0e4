"""What a node does by itself, time and again: join, refresh, check, expire, hand on, republish, remember peers.

Each task waits with jitter drawn from the node's ``rng``, so that nodes that started together do not act together. A
task that fails says so in one line and goes on at its next turn.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

import trio

from prime_dht.config import DhtConfig
from prime_dht.errors import PrimeDHTError, QueryError, RemoteProtocolError, StorageError
from prime_dht.ids import KAD_KEY_BITS, US_PER_S, PeerId, kad_key
from prime_dht.kad.keyspace import Prefix
from prime_dht.kad.replicas import known_region
from prime_dht.net.addresses import address_text, host_in
from prime_dht.net.network import Network
from prime_dht.node.clock import Clock, Jumps
from prime_dht.node.feed import Feed
from prime_dht.node.handing_on import HandingOn
from prime_dht.node.held import HeldSectors
from prime_dht.node.lookups import REFRESH_DEPTH, Explorer, raw_target
from prime_dht.node.neighbourhood import JOIN_K, Neighbourhood
from prime_dht.node.records import Records
from prime_dht.node.replica import Replica
from prime_dht.node.strangers import Strangers
from prime_dht.storage.base import KnownPeer, StorageBackend

if TYPE_CHECKING:
    from trio_typing import TaskStatus

logger = logging.getLogger(__name__)

EXPIRE_EVERY_S = 60.0
CHECK_EVERY_S = 60.0
NEAREST_SILENT_S = 300.0
"""When one of the k nearest has not been heard from for so long, it is asked whether it is there."""

HAND_ON_EVERY_S = 60.0
REMEMBER_EVERY_S = 300.0
LOOK_FOR_LOST_EVERY_S = 60.0
LOOK_FOR_LOST = 4
"""Of the peers that are remembered and not known any more, so many are asked each time: most may be gone for good."""

REJOIN_FIRST_S = 1.0
REJOIN_AT_MOST_S = 60.0
REJOIN_WANTED_S = 5.0
"""How long after one try its owner may cause another, by wanting something: there may be hundreds of peers to dial."""

ALONE_AFTER_S = 300.0
"""When none of those that a node remembers has answered for so long since it started, or since it lost the last that it
knew, it goes on as the first."""

SLEPT_S = 30.0
"""How much further the calendar may have gone than the monotonic clock from one check to the next."""

REMEMBERED_PEERS = 200
"""Peers kept across restarts: three quarters are those seen last, which in a network that is cut in two come all to be
of one half; the others, of the rest, those known for longest, which are the likeliest to be there still."""

SETTLE_AFTER_S = 3.0
"""How long after joining a node looks around again. Nodes that join at one moment can miss each other: when each asks,
nobody has met the other yet."""

SETTLE_WITH = 6
"""Of its nearest, those that it then asks for theirs: together they know whom it missed, and if it missed nobody, that
costs a quarter of a lookup."""

MEETING_PATIENCE_S = 2.0
"""Once one of the peers to join through has answered, the others have so long: one that is silent holds up no join."""

MEET_FOUND = 8
"""Of the peers found on the local network, those that this node meets to join; through them it finds the others."""

FORGET_AFTER_S = 7 * 86_400.0
"""A peer not seen for so long is not remembered."""


class Maintenance:
    """A node's chores. :meth:`run` does them all until cancelled."""

    def __init__(
        self,
        network: Network,
        neighbourhood: Neighbourhood,
        explorer: Explorer,
        records: Records,
        replica: Replica,
        handing_on: HandingOn,
        held: HeldSectors,
        storage: StorageBackend,
        config: DhtConfig,
        clock: Clock,
        feed: Feed,
        rng: Random,
        bootstrap_peers: Iterable[tuple[PeerId, bytes]],
    ) -> None:
        self._network = network
        self._neighbourhood = neighbourhood
        self._explorer = explorer
        self._records = records
        self._replica = replica
        self._handing_on = handing_on
        self._held = held
        self._storage = storage
        self._config = config
        self._clock = clock
        self._feed = feed
        self._rng = rng
        self._bootstrap_addresses: dict[PeerId, list[bytes]] = {}
        for peer, address in bootstrap_peers:
            if peer != network.local:
                self._bootstrap_addresses.setdefault(peer, []).append(address)
        self._bootstrap_peers = list(self._bootstrap_addresses)
        self._strangers = Strangers(network.local, neighbourhood, explorer, rng)
        self._joining = trio.Lock()
        self._joins = 0
        self._began_s = clock.monotonic_s()
        self._found = trio.Event()
        self._tried_at_s = math.inf  # when the last try to join failed, if the one since did not succeed
        self._own_addresses: set[bytes] | None = None
        self._jumps = Jumps(clock)
        self._host_of: dict[PeerId, str] = {}  # from where those in the table were connected last

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Everything that recurs, until cancelled."""
        with suppress(StorageError):  # it is reported when this node joins
            if not (self._bootstrap_peers or await self._recall_peers()):
                self._be_the_first()  # at once: what its owner puts meanwhile need not go elsewhere
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._every, EXPIRE_EVERY_S, self._replica.expire)
            nursery.start_soon(self._every, CHECK_EVERY_S, self.check)
            nursery.start_soon(self._every, self._config.refresh_interval, self._meet_again_and_refresh)
            nursery.start_soon(self._every, LOOK_FOR_LOST_EVERY_S, self._look_for_lost)
            nursery.start_soon(self._every, HAND_ON_EVERY_S, self._handing_on.hand_on_strays)
            nursery.start_soon(self._every, REMEMBER_EVERY_S, self.remember_peers)
            nursery.start_soon(self._every, self._config.record_republish_s, self._records.republish)
            nursery.start_soon(self._stay_joined)
            nursery.start_soon(self._strangers.run)
            task_status.started()

    async def bootstrap(self) -> int:
        """Meet the bootstrap peers and those remembered, then everyone near; returns how many peers are known then.

        Whoever calls this while a join is under way waits for that one. A server that only remembers peers, and finds
        none of them, goes on trying: it may be the first to come back.

        Raises:
            QueryError: there are bootstrap peers, or those that a client remembers, and none of them, nor any other,
                answers.
            StorageError: the remembered peers cannot be read.
        """
        try:
            await self._join_once()
        except QueryError:
            if self._bootstrap_peers or not self._neighbourhood.is_server:
                raise
        return len(self._neighbourhood.table)

    async def _join_once(self) -> None:
        joins = self._joins
        async with self._joining:
            if self._joins == joins:
                await self._join()

    async def add_peer(self, peer: PeerId, address: bytes) -> None:
        """Take in a peer that this node's owner names, and the swarm that it is of.

        Raises:
            QueryError: it does not answer.
            RemoteProtocolError: it answers wrongly.
        """
        self._network.learn_addresses(peer, (address,), source="manual")
        await self._neighbourhood.introduce(peer)
        self._strangers.vouch(peer, is_urgent=True)

    def peer_found(self, peer: PeerId, addresses: Iterable[bytes], *, source: str) -> None:
        """Somebody on the network says that there is a peer: meet it soon, and join through it if nobody is known."""
        self._network.learn_addresses(peer, addresses, source=source)
        if self._neighbourhood.table.get(peer) is None:
            self._strangers.vouch(peer)
            self._found.set()

    def wanted(self) -> None:
        """The owner wants something of the swarm. If nobody is known, try to join, and not only when that is due."""
        if self._tried_at_s == math.inf:  # each put and get comes by here: no more than this, once it has joined
            return
        known = self._neighbourhood
        if len(known.table) or (known.is_server and known.has_looked_around):
            return
        if self._clock.monotonic_s() >= self._tried_at_s + REJOIN_WANTED_S:
            self._found.set()

    async def _join(self) -> None:
        remembered = await self._recall_peers()
        reasons = await self._meet(remembered)
        table = self._neighbourhood.table
        if len(table):
            await self.refresh(k=min(JOIN_K, self._config.k_bucket_size))
        if len(table):
            self._joins += 1
        elif self._may_be_cut_off(remembered):
            asked = self._bootstrap_peers or remembered
            if not asked:
                raise QueryError("the last peer that was known does not answer any more")
            named = "bootstrap" if self._bootstrap_peers else "remembered"
            raise QueryError(f"no {named} peer answers: {reasons.get(asked[0], 'the one that did is gone again')}")
        else:
            self._be_the_first()

    def _may_be_cut_off(self, remembered: Sequence[PeerId]) -> bool:
        """Whether there may be others, though none answers.

        Who loses the last that it knew while it holds all sectors lacks nothing that they had. It goes on alone after
        ``ALONE_AFTER_S``, even if its owner named peers to join through: those may have been stopped for good.
        """
        lost_all_at_s = self._neighbourhood.lost_all_at_s
        alone_since_s = self._began_s if lost_all_at_s is None else lost_all_at_s
        if self._clock.monotonic_s() < alone_since_s + ALONE_AFTER_S:
            return bool(self._bootstrap_peers or remembered or lost_all_at_s is not None)
        return bool(self._bootstrap_peers and self._held.missing)

    def _be_the_first(self) -> None:
        """Of its swarm: there is nobody whom this node does not know."""
        self._neighbourhood.looked_up_itself(Prefix.of(self._neighbourhood.local, 0))

    async def _meet(self, remembered: Sequence[PeerId]) -> dict[PeerId, str]:
        """Introduce this node to those vouched for, unless they are known; why any did not answer."""
        found = self._strangers.take_vouched(MEET_FOUND)
        vouched_for = dict.fromkeys([*self._bootstrap_peers, *remembered, *found])
        table = self._neighbourhood.table
        reasons: dict[PeerId, str] = {}

        async def meet(peer: PeerId) -> None:
            try:
                await self._neighbourhood.introduce(peer)
            except (QueryError, RemoteProtocolError) as error:
                reasons[peer] = str(error)
            else:
                deadline_s = trio.current_time() + MEETING_PATIENCE_S
                nursery.cancel_scope.deadline = min(nursery.cancel_scope.deadline, deadline_s)

        async with trio.open_nursery() as nursery:
            for peer in vouched_for:
                if table.get(peer) is None:
                    nursery.start_soon(meet, peer)
        return reasons

    async def refresh(self, *, k: int | None = None) -> None:
        """Look up this node itself, then a random target in each farther bucket that no lookup has touched lately.

        The first lookup covers the region of which it found every server: no bucket within needs another.

        Args:
            k: how many servers the lookups in farther buckets find, and which need none; by default the
                configuration's, and then each gets one.
        """
        table = self._neighbourhood.table
        if not len(table):
            return
        result = await self._explorer.find_closest(self._network.local)
        if not len(table):  # whoever was there is gone
            return
        region = known_region(result)
        self._neighbourhood.looked_up_itself(region)
        covered_from = REFRESH_DEPTH if region is None else min(region.length, REFRESH_DEPTH)
        for index in table.buckets_due(self._clock.monotonic_s()):
            if index < covered_from and (k is None or table.bucket_sizes()[index] < k):
                target = raw_target(self._neighbourhood.local, index, self._rng)
                await self._explorer.find_closest(target, k=k)

    async def _meet_again_and_refresh(self) -> None:
        """Refresh; and meet all peers vouched for that are not known any more, be there room for them or not."""
        known = {contact.peer for contact in self._neighbourhood.table}
        await self._meet(await self._recall_peers())
        for contact in self._neighbourhood.table:
            if contact.peer not in known:
                self._strangers.vouch(contact.peer, is_urgent=True)
        await self.refresh()

    async def _look_for_lost(self) -> None:
        """See whether some of the peers vouched for that are not known any more are there again.

        When a network that was cut in two is whole again, its halves have forgotten each other; through one of those
        that answer all others are found. And a client learns of a server that was away only by asking.
        """
        table = self._neighbourhood.table
        if not len(table):
            return  # then they all are tried
        remembered = {known.peer: known for known in await self._storage.peers(limit=REMEMBERED_PEERS)}
        vouched_for = dict.fromkeys([*self._bootstrap_peers, *remembered])
        # Those whose place others have are no loss, and would not get one back: there may be many for ever.
        lost = [peer for peer in vouched_for if table.get(peer) is None and table.has_room(kad_key(peer))]
        asked = self._rng.sample(lost, min(LOOK_FOR_LOST, len(lost)))
        self._learn_again(remembered[peer] for peer in asked if peer in remembered)

        async def meet(peer: PeerId) -> None:
            with suppress(QueryError, RemoteProtocolError):
                await self._neighbourhood.introduce(peer)
            if table.get(peer) is not None:
                self._strangers.vouch(peer, is_urgent=True)

        async with trio.open_nursery() as nursery:
            for peer in asked:
                nursery.start_soon(meet, peer)

    async def check(self) -> None:
        """Probe the peers that have not been heard from for long; see whether this node's arc may shrink.

        Of the nearest it matters sooner: as long as one that died counts, the arc is too small.
        """
        self._neighbourhood.own_arc.observe()
        for contact in self._neighbourhood.table.checks_due(self._clock.monotonic_s()):
            self._neighbourhood.probe(contact.peer)
        for contact in self._neighbourhood.table.find_closest(self._neighbourhood.local):
            if self._is_silent(contact.peer):
                self._neighbourhood.probe(contact.peer)
        if reason := self._interruption():
            logger.info("%s: asking all peers whether they are there", reason)
            for contact in self._neighbourhood.table:
                self._neighbourhood.probe(contact.peer)
        self._probe_who_moved()

    def _is_silent(self, peer: PeerId) -> bool:
        acquaintance = self._neighbourhood.acquaintances.get(peer)
        silent_us = 0 if acquaintance is None else self._clock.now_us() - acquaintance.last_seen_us
        return silent_us > NEAREST_SILENT_S * US_PER_S

    def _interruption(self) -> str:
        """What happened since the last check after which peers may have lost this node, or it them; mostly nothing."""
        jump_s = self._jumps.since_last_us() / US_PER_S
        own, own_before = set(self._network.own_addresses()), self._own_addresses
        self._own_addresses = own
        if own_before not in (None, own):
            return f"the addresses of this node are {', '.join(map(address_text, sorted(own))) or 'none'} now"
        if abs(jump_s) > SLEPT_S:
            return f"the machine slept, or its clock was set by {jump_s:+.0f} s"
        return ""

    def _probe_who_moved(self) -> None:
        """A peer does not say that it moved; it is connected from elsewhere. Asked, it says where it listens now."""
        table = self._neighbourhood.table
        hosts: dict[PeerId, str] = {}
        for contact in table:
            remote = self._network.remote_address_of(contact.peer)
            before = self._host_of.get(contact.peer, "")
            host = hosts[contact.peer] = before if remote is None else host_in(remote)
            if host != before and host not in map(host_in, self._network.addresses_of(contact.peer)):
                self._neighbourhood.probe(contact.peer)
        self._host_of = hosts

    async def remember_peers(self) -> None:
        """Keep the addresses of those in the table for the next start."""
        now_us = self._clock.now_us()
        await self._storage.put_peers(
            [
                KnownPeer(
                    peer=contact.peer,
                    addresses=addresses,
                    source=self._network.source_of(contact.peer),
                    first_seen_us=acquaintance.first_seen_us,
                    last_seen_us=acquaintance.last_seen_us,
                )
                for contact in self._neighbourhood.table
                if (addresses := self._network.lasting_addresses_of(contact.peer))
                and (acquaintance := self._neighbourhood.acquaintances.get(contact.peer)) is not None
            ]
        )
        # Last seen first, and all of them: after each call no more than REMEMBERED_PEERS stay. Those that seem to have
        # been seen later than now, because the clock was ahead, are no longer the first.
        remembered = await self._storage.peers(limit=REMEMBERED_PEERS + KAD_KEY_BITS * self._config.k_bucket_size)
        remembered.sort(key=lambda known: known.last_seen_us > now_us)
        last = REMEMBERED_PEERS - REMEMBERED_PEERS // 4
        remembered[last:] = sorted(remembered[last:], key=lambda known: known.first_seen_us - known.last_seen_us)
        await self._storage.remove_peers(
            [
                known.peer
                for place, known in enumerate(remembered)
                if place >= REMEMBERED_PEERS or known.last_seen_us < now_us - FORGET_AFTER_S * US_PER_S
            ]
        )

    async def _recall_peers(self) -> list[PeerId]:
        """Those remembered. Where they are, and those that the owner named, is learned again: it may be forgotten."""
        remembered = await self._storage.peers(limit=REMEMBERED_PEERS)
        self._learn_again(remembered)
        return [known.peer for known in remembered]

    def _learn_again(self, remembered: Iterable[KnownPeer]) -> None:
        for peer, addresses in self._bootstrap_addresses.items():
            self._network.learn_addresses(peer, addresses, source="bootstrap")
        for known in remembered:
            # Of one of whom more is known by now, it is what was said once: not its own word of today.
            source = "kad" if self._network.addresses_of(known.peer) else known.source
            self._network.learn_addresses(known.peer, known.addresses, source=source)
            self._neighbourhood.acquaintances.remember(
                known.peer, first_seen_us=known.first_seen_us, last_seen_us=known.last_seen_us
            )

    async def _stay_joined(self) -> None:
        """Until this node has joined, and when it knows nobody any more, try.

        That is less and less often, but at once if somebody comes, or if its owner wants something.
        """
        delay_s, tries, is_alone = REJOIN_FIRST_S, 0, False
        while True:
            # It may have joined without having settled: when its owner called ``bootstrap`` after this had failed.
            known = self._neighbourhood
            if known.own_arc.has_settled and known.has_looked_around and len(known.table) and not is_alone:
                delay_s, tries, is_alone = REJOIN_FIRST_S, 0, False
                self._tried_at_s = math.inf
                with trio.move_on_after(REJOIN_AT_MOST_S):
                    await known.loss.wait()
                continue
            tries += 1
            self._found = trio.Event()
            self._tried_at_s = math.inf
            try:
                await self._join_once()
            except (QueryError, StorageError) as error:
                # Ever less often, as one line at each attempt would say nothing new.
                level = logging.WARNING if tries & (tries - 1) == 0 else logging.DEBUG
                logger.log(level, "not joined: %s; trying again in %g s, then ever less often", error, delay_s)
            else:
                if len(known.table):
                    is_alone = False
                    logger.info("joined; known peers: %d", len(known.table))
                    await self._settle()
                    continue
                if known.is_server and not is_alone:
                    logger.info("alone: no other node is known; others can join through this one")
                is_alone = True
            self._tried_at_s = self._clock.monotonic_s()
            # Those who join after the first look for it themselves; those whom this node had lost do not.
            is_first = known.has_looked_around and known.lost_all_at_s is None
            with trio.move_on_after(delay_s * (1 + 0.2 * self._rng.random())):
                await _first_of(self._found, *(() if is_first else (known.arrival,)))
            delay_s = min(2 * delay_s, REJOIN_AT_MOST_S)

    async def _settle(self) -> None:
        """Meet those who joined at the same time: a few of the nearest name them by now, and they are then probed."""
        await trio.sleep(SETTLE_AFTER_S * (1 + 0.2 * self._rng.random()))
        for contact in self._neighbourhood.table.find_closest(self._neighbourhood.local, SETTLE_WITH):
            self._neighbourhood.probe(contact.peer)
        await trio.sleep(SETTLE_AFTER_S)  # for them to answer, and to name others
        self._neighbourhood.own_arc.has_settled = True
        try:
            await self.remember_peers()  # it may die before the chore's first turn
        except StorageError as error:
            logger.warning("peers could not be remembered: %s; again within %g s", error, REMEMBER_EVERY_S)

    async def _every(self, interval_s: float, chore: Callable[[], Awaitable[object]]) -> None:
        while True:
            await trio.sleep(interval_s * (1 + 0.2 * self._rng.random()))
            try:
                await chore()
            except PrimeDHTError as error:
                logger.warning("%s failed: %s; again in %g s", chore.__name__, error, interval_s)


async def _first_of(*events: trio.Event) -> None:
    """Wait until one of several events is set."""

    async def wait(event: trio.Event) -> None:
        await event.wait()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for event in events:
            nursery.start_soon(wait, event)
