"""Lookups over the network: with what they begin, and what the node wants of them.

:mod:`prime_dht.node.lookup_run` drives each to its end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from random import Random

import trio

from prime_dht.config import DhtConfig
from prime_dht.ids import KadKey, Key, kad_key
from prime_dht.kad.contact import Contact
from prime_dht.kad.hearsay import Memory
from prime_dht.kad.keyspace import common_prefix_length
from prime_dht.kad.lookup import Lookup, LookupConfig, LookupResult, anyone
from prime_dht.kad.replicas import answered_keys, choose_replicas, syncs
from prime_dht.node.clock import Clock
from prime_dht.node.feed import Feed
from prime_dht.node.lookup_run import LookupRun, Take, Until
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

KEYS_PER_TIMEOUT = 256
"""Keys of one operation for which it has ``operation_timeout_s``; with more of them it has as many times as long. So a
slow link has to carry 7 Mbit/s of the largest values, and no peer holds up the operation for longer than that."""

REFRESH_DEPTH = 12
"""Buckets below this index are refreshed by a random target each. A target must be the hash of something, so one in
bucket i costs 2^(i+1) hashes to find (some 10 ms at 12); what lies deeper is near enough for a lookup of this node
itself to cover, unless the swarm has far more than 2^12 · k nodes."""


def _take_nothing(_contact: Contact, _reply: Reply) -> None:
    return None


class Explorer:
    """Runs lookups over the network."""

    def __init__(self, neighbourhood: Neighbourhood, config: DhtConfig, clock: Clock, feed: Feed) -> None:
        self._neighbourhood = neighbourhood
        self._config = config
        self._clock = clock
        self._feed = feed
        self._memory = Memory(max_silent=LookupConfig().max_silent)

    def lookup(
        self,
        target: KadKey,
        *,
        k: int | None = None,
        alpha: int | None = None,
        replicas_only: bool = False,
        seeds: Iterable[Contact] | None = None,
        nearest: Sequence[Contact] = (),
        query_timeout_s: float = QUERY_TIMEOUT_S,
        slow_after_s: float = SLOW_AFTER_S,
        timeout_s: float | None = None,
    ) -> Lookup:
        """A lookup that starts from the ``k`` contacts of the routing table that are closest to its target.

        Args:
            k: how many of the closest must answer; the configuration's by default.
            alpha: how many are asked at a time; the configuration's by default.
            replicas_only: whether only peers that keep entry sets count towards ``k``.
            seeds: the contacts to start from instead.
            nearest: the contacts to start from that may be all it takes: the routing table is not looked into before
                they turn out not to be.
            query_timeout_s: seconds that one peer has to answer, if the configuration allows as many.
            timeout_s: seconds after which it ends with what it has; ``operation_timeout_s`` by default.
        """
        wanted = k or self._config.k_bucket_size
        query_timeout_s = min(query_timeout_s, self._config.rpc_timeout_s)

        def known() -> list[Contact]:
            return self._neighbourhood.table.find_closest(target, self._config.k_bucket_size)

        if seeds is None:
            seeds = nearest or known()
        now_s = self._clock.monotonic_s()
        return Lookup(
            target,
            seeds,
            local=self._neighbourhood.local,
            config=LookupConfig(
                k=wanted,
                alpha=min(alpha or self._config.alpha, wanted),
                query_timeout_s=query_timeout_s,
                slow_after_s=min(slow_after_s, query_timeout_s),
                timeout_s=timeout_s or self._config.operation_timeout_s,
            ),
            now_s=now_s,
            eligible=syncs if replicas_only else anyone,
            reserve=known if nearest else None,
            against=self._memory.now(now_s),
        )

    async def find_closest(
        self,
        raw_target: bytes,
        *,
        k: int | None = None,
        replicas_only: bool = False,
        through: Contact | None = None,
        timeout_s: float | None = None,
    ) -> LookupResult:
        """The ``k`` closest servers to a target.

        Args:
            raw_target: a peer id or a wire key, whose hash is the target.
            through: look with the eyes of this one: start from it alone.
            timeout_s: as in :meth:`lookup`.
        """
        request = FindNode(raw_target)
        # With all that is known as seeds, running out of peers means that there are no more: the k closest that others
        # name may be dead to a large part.
        seeds = self._neighbourhood.table if through is None else (through,)
        lookup = self.lookup(kad_key(raw_target), k=k, replicas_only=replicas_only, seeds=seeds, timeout_s=timeout_s)
        return await self.run(lookup, request)

    async def replicas_of(self, key: Key, replication: int, *, timeout_s: float | None = None) -> list[Contact]:
        """The replicas of a key, this node included if it is one, nearest first.

        They come out of the routing table where that knows all servers near the key, as it does in a swarm of up to
        ``k`` nodes, and else out of a lookup, which takes ``timeout_s`` at most (:meth:`lookup`).
        """
        target = kad_key(key)
        if self._neighbourhood.knows_all_near(target):
            return self._neighbourhood.nearest_replicas(target, replication)
        found = await self.find_closest(key, k=replication, replicas_only=True, timeout_s=timeout_s)
        return choose_replicas(target, found.closest, replication, own=self._neighbourhood.own_contact())

    async def servers_near(
        self, keys: Iterable[Key], replication: int, *, timeout_s: float = math.inf
    ) -> dict[Key, list[Contact]]:
        """The servers near each of many keys, this node among them if it is one, nearest first.

        Neighbouring keys share a lookup, so of the up to ``k`` servers only the first ``replication`` are certainly the
        closest: the replicas. One lookup goes first: in a small swarm it answers for all keys. What it leaves open is
        split among several. For keys that have had none within ``timeout_s``, the routing table must do.
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

        with trio.move_on_after(timeout_s):
            await settle(places[:1])
            left = unsettled(places)
            part_size = max(1, math.ceil(len(left) / LOOKUPS_AT_ONCE))
            async with trio.open_nursery() as nursery:
                for start in range(0, len(left), part_size):
                    nursery.start_soon(settle, left[start : start + part_size])
        for place in unsettled(places):
            servers[by_place[place]] = self._neighbourhood.nearest_replicas(place, k)
        return servers

    def timeout_s(self, keys: int) -> float:
        """Seconds within which an operation on so many keys is to end, whatever peers do."""
        return self._config.operation_timeout_s * math.ceil(keys / KEYS_PER_TIMEOUT)

    async def run(
        self,
        lookup: Lookup,
        request: Request,
        *,
        take: Take = _take_nothing,
        until: Until = lambda: False,
    ) -> LookupResult:
        """Drive a lookup to its end, which is early if after some answer ``until`` says so.

        Args:
            request: what each peer is asked.
            take: is given each reply before the lookup is.
        """
        run = LookupRun(lookup, request, self._neighbourhood, self._clock, self._feed, take=take, until=until)
        result = await run.result()
        self._memory.learn(result.against, result.ended_at_s)
        return result


def raw_target(local: KadKey, index: int, rng: Random) -> bytes:
    """Bytes whose kad key lies in the range of bucket ``index`` around ``local``, below :data:`REFRESH_DEPTH`."""
    while True:
        raw = rng.randbytes(32)
        if common_prefix_length(local, kad_key(raw)) == index:
            return raw
