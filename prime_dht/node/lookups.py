"""The driver of :class:`prime_dht.kad.lookup.Lookup`: does what the machine says, tells it what happened."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Container, Iterable, Sequence
from functools import partial
from random import Random
from typing import assert_never

import trio

from prime_dht.config import DhtConfig
from prime_dht.errors import NoTurnError, QueryError, RemoteProtocolError
from prime_dht.events import LookupProgress
from prime_dht.ids import KadKey, Key, PeerId, kad_key
from prime_dht.kad.contact import Contact
from prime_dht.kad.keyspace import common_prefix_length
from prime_dht.kad.lookup import Finished, Lookup, LookupConfig, LookupResult, Query, WaitUntil, anyone
from prime_dht.kad.replicas import answered_keys, choose_replicas, syncs
from prime_dht.node.clock import Clock
from prime_dht.node.feed import Feed
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.wire.kad import FindNode, Reply, Request

QUERY_TIMEOUT_S = 3.0
"""Seconds for one FIND_NODE of a lookup. A dead peer whose machine refuses the dial is passed over at once; one whose
packets vanish holds up the end of the lookup for so long. Connecting and asking take five round trips, so a live peer
has to be worse than 600 ms away to be missed, and even then its answer counts if it comes before the lookup ends.
A PUT_VALUE or GET_VALUE gets all of ``rpc_timeout_s``: each replica matters there, and the store has work to do."""

SLOW_AFTER_S = 1.0
"""Seconds after which a lookup asks others beside a peer that has not answered."""

LOOKUPS_AT_ONCE = 4
"""Lookups that a batch of keys has under way at a time."""

REFRESH_DEPTH = 12
"""Buckets below this index are refreshed by a random target each. A target must be the hash of something, so one in
bucket i costs 2^(i+1) hashes to find (some 10 ms at 12); what lies deeper is near enough for a lookup of this node
itself to cover, unless the swarm has far more than 2^12 · k nodes."""

Task = Callable[[], Awaitable[None]]
"""The work of a task beside the lookup's own."""

Take = Callable[[Contact, Reply], Task | None]
"""Takes a peer's reply in; returns what is to be done for the rest of it, if it is not all.

Raises RemoteProtocolError, and so may that, if it is no reply to what was asked. The peer has failed then.
"""


def _take_nothing(_contact: Contact, _reply: Reply) -> None:
    return None


class Explorer:
    """Runs lookups over the network."""

    def __init__(self, neighbourhood: Neighbourhood, config: DhtConfig, clock: Clock, feed: Feed) -> None:
        self._neighbourhood = neighbourhood
        self._config = config
        self._clock = clock
        self._feed = feed

    def lookup(
        self,
        target: KadKey,
        *,
        k: int | None = None,
        alpha: int | None = None,
        replicas_only: bool = False,
        seeds: Iterable[Contact] = (),
        nearest: Sequence[Contact] = (),
        through: Contact | None = None,
        query_timeout_s: float = QUERY_TIMEOUT_S,
        slow_after_s: float = SLOW_AFTER_S,
    ) -> Lookup:
        """A lookup that starts from the routing table.

        Args:
            k: how many of the closest must answer; the configuration's by default.
            alpha: how many are asked at a time; the configuration's by default.
            replicas_only: whether only peers that keep entry sets count towards ``k``.
            seeds: contacts to start from as well.
            nearest: the contacts to start from that may be all it takes: the routing table is not looked into before
                they turn out not to be.
            through: the one to start from alone, instead of the routing table and seeds.
            query_timeout_s: seconds that one peer has to answer, if the configuration allows as many.
        """
        wanted = k or self._config.k_bucket_size
        query_timeout_s = min(query_timeout_s, self._config.rpc_timeout_s)

        def known() -> list[Contact]:
            return self._neighbourhood.table.find_closest(target, self._config.k_bucket_size)

        if through is not None:
            seeds = (through,)
        elif not nearest:
            seeds = (*seeds, *known())
        return Lookup(
            target,
            nearest or seeds,
            local=self._neighbourhood.local,
            config=LookupConfig(
                k=wanted,
                alpha=min(alpha or self._config.alpha, wanted),
                query_timeout_s=query_timeout_s,
                slow_after_s=min(slow_after_s, query_timeout_s),
                timeout_s=self._config.operation_timeout_s,
            ),
            now_s=self._clock.monotonic_s(),
            eligible=syncs if replicas_only else anyone,
            reserve=known if nearest else None,
        )

    async def find_closest(
        self,
        raw_target: bytes,
        *,
        k: int | None = None,
        replicas_only: bool = False,
        through: Contact | None = None,
    ) -> LookupResult:
        """The ``k`` closest servers to a target.

        Args:
            raw_target: a peer id or a wire key, whose hash is the target.
            through: look with the eyes of this one: start from it alone.
        """
        request = FindNode(raw_target)
        # With all that is known as seeds, running out of peers means that there are no more: the k closest that others
        # name may be dead to a large part.
        seeds = self._neighbourhood.table
        lookup = self.lookup(kad_key(raw_target), k=k, replicas_only=replicas_only, seeds=seeds, through=through)
        return await self.run(lookup, request)

    async def replicas_of(self, key: Key, replication: int) -> list[Contact]:
        """The replicas of a key, this node included if it is one, nearest first.

        They come out of the routing table where that knows all servers near the key, as it does in a swarm of up to
        ``k`` nodes, and else out of a lookup.
        """
        target = kad_key(key)
        if self._neighbourhood.knows_all_near(target):
            return self._neighbourhood.nearest_replicas(target, replication)
        servers = (await self.find_closest(key, k=replication, replicas_only=True)).closest
        return choose_replicas(target, servers, replication, own=self._neighbourhood.own_contact())

    async def servers_near(self, keys: Iterable[Key], replication: int) -> dict[Key, list[Contact]]:
        """The servers near each of many keys, this node among them if it is one, nearest first.

        Neighbouring keys share a lookup, so of the up to ``k`` servers only the first ``replication`` are certainly the
        closest: the replicas. One lookup goes first: in a small swarm it answers for all keys. What it leaves open is
        split among several.
        """
        by_place = {kad_key(key): key for key in keys}
        places = sorted(by_place)
        own = self._neighbourhood.own_contact()
        k = self._config.k_bucket_size
        servers: dict[Key, list[Contact]] = {}

        def unsettled(part: Sequence[KadKey]) -> list[KadKey]:
            return [place for place in part if by_place[place] not in servers]

        async def settle(part: Sequence[KadKey]) -> None:
            while part := unsettled(part):
                result = await self.find_closest(by_place[part[0]], replicas_only=True)
                # Those of other parts as well: they need not look there again.
                for place in answered_keys(places, result, replication):
                    servers[by_place[place]] = choose_replicas(place, result.closest, k, own=own)

        await settle(places[:1])
        left = unsettled(places)
        part_size = max(1, math.ceil(len(left) / LOOKUPS_AT_ONCE))
        async with trio.open_nursery() as nursery:
            for start in range(0, len(left), part_size):
                nursery.start_soon(settle, left[start : start + part_size])
        return servers

    async def run(
        self,
        lookup: Lookup,
        request: Request,
        *,
        take: Take = _take_nothing,
        until: Callable[[], bool] = lambda: False,
    ) -> LookupResult:
        """Drive a lookup to its end, which is early if after some answer ``until`` says so.

        Args:
            request: what each peer is asked.
            take: is given each reply before the lookup is.
        """
        woken = trio.Event()
        is_over = False
        to_start: list[Task] = []
        blameless: set[PeerId] = set()

        def conclude(contact: Contact, asked_at_s: float, outcome: Reply | QueryError | RemoteProtocolError) -> None:
            now_s = self._clock.monotonic_s()
            if isinstance(outcome, Reply):
                closer = self._neighbourhood.heard_of(outcome.closer)
                known = self._neighbourhood.table.get(contact.peer)  # if it has a place, its answer was noted there
                lookup.on_reply(known or self._neighbourhood.contact(contact.peer), closer, now_s)
                if until():
                    lookup.finish(now_s)
            else:
                if isinstance(outcome, NoTurnError):
                    blameless.add(contact.peer)
                lookup.on_failure(contact.peer, str(outcome))
            if self._feed.is_heard:
                self._publish(lookup, contact.peer, now_s - asked_at_s)
            woken.set()

        def answered(contact: Contact, asked_at_s: float, outcome: Reply | QueryError | RemoteProtocolError) -> None:
            if is_over:
                return
            if isinstance(outcome, Reply):
                try:
                    rest = take(contact, outcome)
                except RemoteProtocolError as error:
                    outcome = error
                else:
                    if rest is not None:
                        to_start.append(partial(take_rest, contact, asked_at_s, outcome, rest))
                        woken.set()
                        return
            conclude(contact, asked_at_s, outcome)

        async def take_rest(contact: Contact, asked_at_s: float, reply: Reply, rest: Task) -> None:
            try:
                await rest()
            except (QueryError, RemoteProtocolError) as error:
                conclude(contact, asked_at_s, error)
            else:
                conclude(contact, asked_at_s, reply)

        def sent(peer: PeerId) -> None:
            lookup.on_sent(peer, self._clock.monotonic_s())
            woken.set()

        async def query(contact: Contact, asked_at_s: float) -> None:
            try:
                reply = await self._neighbourhood.ask(contact, request, on_turn=partial(sent, contact.peer))
            except (QueryError, RemoteProtocolError) as error:
                answered(contact, asked_at_s, error)
            else:
                answered(contact, asked_at_s, reply)

        async def go_on(nursery: trio.Nursery | None) -> LookupResult | None:
            """Drive the lookup to its end; or, without a nursery, until there is a task to start."""
            nonlocal woken, is_over
            while True:
                now_s = self._clock.monotonic_s()
                for action in lookup.next(now_s):
                    match action:
                        case Query(contact):
                            # Most go over a stream that is open, and need no task that waits.
                            if not self._neighbourhood.post(contact, request, partial(answered, contact, now_s)):
                                lookup.on_held_up(contact.peer)
                                to_start.append(partial(query, contact, now_s))
                        case WaitUntil(at_s):
                            if to_start:
                                if nursery is None:
                                    return None
                                for task in to_start:
                                    nursery.start_soon(task)
                                to_start.clear()
                            left_s = at_s - self._clock.monotonic_s()  # first: a sum of both clocks would round it away
                            with trio.CancelScope(deadline=trio.current_time() + left_s):
                                await woken.wait()
                            woken = trio.Event()
                        case Finished(result):
                            is_over = True
                            self._conclude(result, blameless)
                            return result
                        case _:
                            assert_never(action)

        try:
            result = await go_on(None)  # a nursery costs as much as a query, and most lookups need none
            if result is None:
                async with trio.open_nursery() as nursery:
                    result = await go_on(nursery)
                    nursery.cancel_scope.cancel()
            assert result is not None
            return result
        finally:
            is_over = True  # if it was cancelled as well: what was posted is answered all the same

    def _publish(self, lookup: Lookup, peer: PeerId, elapsed_s: float) -> None:
        hop = lookup.hop(peer)
        self._feed.publish(
            LookupProgress(
                target=lookup.target,
                peer=peer,
                told_by=hop.told_by,
                depth=hop.depth,
                distance=hop.distance,
                elapsed_s=elapsed_s,
                heard_of=hop.heard_of,
                failure=hop.failure,
            )
        )

    def _conclude(self, result: LookupResult, blameless: Container[PeerId]) -> None:
        """What the node learns from a lookup: which bucket it refreshed, and who failed.

        That includes peers that let the lookup's deadline for them pass, though the call itself had not ended yet.
        """
        self._neighbourhood.table.looked_up(result.target, result.ended_at_s)
        for hop in result.path:
            if hop.failure and hop.contact.peer not in blameless:
                self._neighbourhood.failed(hop.contact.peer, hop.failure)


def raw_target(local: KadKey, index: int, rng: Random) -> bytes:
    """Bytes whose kad key lies in the range of bucket ``index`` around ``local``, below :data:`REFRESH_DEPTH`."""
    while True:
        raw = rng.randbytes(32)
        if common_prefix_length(local, kad_key(raw)) == index:
            return raw
