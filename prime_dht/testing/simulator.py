"""Swarms of up to tens of thousands of nodes in virtual time: the real routing table and lookup, no network.

A :class:`Simulator` runs any number of lookups at once on one clock. Each query takes a time drawn from a log-normal
distribution; a live peer answers from its routing table, a dead one never does. With ``learns`` the nodes keep their
tables up to date as a running node does, so a swarm can grow out of one contact; otherwise tables stay as they are.

:func:`perfect_tables` gives each node the table it would have after a long quiet time: each bucket full, or holding all
there are. Tables are built when they are first asked for, because lookups in a large swarm meet only part of it, and
from a seed of their own, so the order of asking changes nothing.

:func:`measure` says how good lookups are: *depth*, how many tellings away from its origin a lookup found the closest
peer (1 is a peer of the own table); *RPCs*, the queries it started; and *recall*, the share of the true ``k`` closest
live peers that it returned.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import assert_never

from prime_dht.ids import KAD_KEY_BITS, KadKey, PeerId, kad_key
from prime_dht.kad.contact import Contact
from prime_dht.kad.keyspace import bucket_range, closest
from prime_dht.kad.lookup import Finished, Lookup, LookupConfig, LookupResult, Query, WaitUntil
from prime_dht.kad.routing_table import CheckFirst, RoutingTable

LATENCY_MEDIAN_S = 0.05
LATENCY_SIGMA = 0.6

Tables = Callable[[PeerId], RoutingTable]


def simulated_contacts(n: int, rng: Random) -> list[Contact]:
    """``n`` contacts at random places of the 256-bit keyspace, in ascending order; all sync, none has an address."""
    peers = (PeerId(rng.randbytes(38)) for _ in range(n))
    return sorted(
        (Contact(peer=peer, kad_key=kad_key(peer), syncs=True) for peer in peers), key=lambda one: one.kad_key
    )


def perfect_tables(contacts: Sequence[Contact], k: int, *, seed: int) -> Tables:
    """Tables whose buckets hold ``k`` contacts drawn at random, or all there are in the bucket's range.

    Args:
        contacts: the whole swarm, in ascending order of kad keys.
    """
    keys = [contact.kad_key for contact in contacts]
    place = {contact.peer: index for index, contact in enumerate(contacts)}
    tables: dict[PeerId, RoutingTable] = {}

    def build(local: int) -> RoutingTable:
        rng = Random(f"{seed}/{local}")  # noqa: S311 - a simulation, nothing secret
        table = RoutingTable(keys[local], k)
        missing = len(contacts) - 1
        for index in range(KAD_KEY_BITS):
            if missing == 0:
                break
            bucket = bucket_range(keys[local], index)
            members = range(bisect_left(keys, bucket.start), bisect_left(keys, bucket.stop))
            missing -= len(members)
            for member in rng.sample(members, min(k, len(members))):
                table.seen(contacts[member], 0.0)
        return table

    def table_of(peer: PeerId) -> RoutingTable:
        if peer not in tables:
            tables[peer] = build(place[peer])
        return tables[peer]

    return table_of


@dataclass(frozen=True, slots=True)
class _Answer:
    lookup: int
    contact: Contact


@dataclass(frozen=True, slots=True)
class _Wake:
    lookup: int


class Simulator:
    """Runs lookups over given tables in virtual time. See the module.

    Args:
        contacts: every node.
        tables: each node's routing table.
        config: of every lookup.
        rng: draws the latencies.
        dead: peers that never answer.
        learns: nodes put into their tables who answers them and who asks them, and take out who does not answer.
    """

    def __init__(
        self,
        contacts: Sequence[Contact],
        tables: Tables,
        *,
        config: LookupConfig,
        rng: Random,
        dead: frozenset[PeerId] = frozenset(),
        learns: bool = False,
    ) -> None:
        self.now_s = 0.0
        self._contacts = {contact.peer: contact for contact in contacts}
        self._tables = tables
        self._config = config
        self._rng = rng
        self._dead = dead
        self._learns = learns

    def run(self, requests: Sequence[tuple[PeerId, KadKey]]) -> list[LookupResult]:
        """Start a lookup for each (origin, target) at once; returns their results, in order, when all have ended."""
        return _Run(self, requests).to_the_end()

    def bootstrap(self, peer: PeerId, via: PeerId, rng: Random) -> None:
        """Let a node that knows one other join: look up its own kad key, then refresh its buckets. Needs ``learns``."""
        table = self._tables(peer)
        table.seen(self._contacts[via], self.now_s)
        self.run([(peer, table.local)])
        self.run([(peer, table.random_target(index, rng)) for index in table.buckets_due(self.now_s)])

    def start(self, origin: PeerId, target: KadKey) -> Lookup:
        table = self._tables(origin)
        return Lookup(target, table.find_closest(target), local=table.local, config=self._config, now_s=self.now_s)

    def latency_s(self, peer: PeerId) -> float:
        """How long a peer's answer takes; infinite if it is dead."""
        drawn = self._rng.lognormvariate(math.log(LATENCY_MEDIAN_S), LATENCY_SIGMA)
        return math.inf if peer in self._dead else drawn

    def answer(self, origin: PeerId, peer: PeerId, target: KadKey) -> list[Contact]:
        """What a peer replies to FIND_NODE, and what both learn from that."""
        closer = self._tables(peer).find_closest(target)
        if self._learns:
            self._notice(origin, peer)
            self._notice(peer, origin)
        return closer

    def conclude(self, origin: PeerId, result: LookupResult) -> None:
        """What the origin learns from a lookup that has ended."""
        table = self._tables(origin)
        table.looked_up(result.target, self.now_s)
        if self._learns:
            for hop in result.path:
                if hop.failure:
                    table.remove(hop.contact.peer)

    def _notice(self, observer: PeerId, peer: PeerId) -> None:
        table = self._tables(observer)
        match table.seen(self._contacts[peer], self.now_s):
            case CheckFirst(candidate) if candidate.peer in self._dead:
                table.remove(candidate.peer)
            case CheckFirst(candidate):
                table.seen(candidate, self.now_s)
            case _:
                pass


class _Run:
    """Some lookups on the simulator's clock, until the last has ended."""

    def __init__(self, simulator: Simulator, requests: Sequence[tuple[PeerId, KadKey]]) -> None:
        self._simulator = simulator
        self._origins = [origin for origin, _ in requests]
        self._lookups = [simulator.start(origin, target) for origin, target in requests]
        self._results: dict[int, LookupResult] = {}
        self._wake_at_s: dict[int, float] = {}
        self._events: list[tuple[float, int, _Answer | _Wake]] = []
        self._scheduled = 0

    def to_the_end(self) -> list[LookupResult]:
        simulator = self._simulator
        for index in range(len(self._lookups)):
            self._step(index)
        while len(self._results) < len(self._lookups):
            simulator.now_s, _, event = heapq.heappop(self._events)
            if event.lookup in self._results:
                continue
            match event:
                case _Answer(index, contact):
                    lookup = self._lookups[index]
                    closer = simulator.answer(self._origins[index], contact.peer, lookup.target)
                    lookup.on_reply(contact, closer, simulator.now_s)
                case _Wake(index):
                    if self._wake_at_s[index] != simulator.now_s:
                        continue  # it has waited for something else since
                case _:
                    assert_never(event)
            self._step(event.lookup)
        return [self._results[index] for index in range(len(self._lookups))]

    def _step(self, index: int) -> None:
        simulator = self._simulator
        for action in self._lookups[index].next(simulator.now_s):
            match action:
                case Query(contact):
                    self._schedule(simulator.now_s + simulator.latency_s(contact.peer), _Answer(index, contact))
                case WaitUntil(at_s):
                    self._wake_at_s[index] = at_s
                    self._schedule(at_s, _Wake(index))
                case Finished(result):
                    self._results[index] = result
                    simulator.conclude(self._origins[index], result)
                case _:
                    assert_never(action)

    def _schedule(self, at_s: float, event: _Answer | _Wake) -> None:
        self._scheduled += 1  # breaks ties in the order of scheduling
        heapq.heappush(self._events, (at_s, self._scheduled, event))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How good the lookups of one swarm were; means over all lookups, each from a random live node to a random key."""

    n: int
    k: int
    alpha: int
    dead_fraction: float
    lookups: int
    mean_depth: float
    mean_rpcs: float
    mean_recall: float
    mean_duration_s: float


def measure(n: int, *, k: int = 20, alpha: int, dead_fraction: float = 0.0, lookups: int, seed: int) -> Report:
    """Run ``lookups`` lookups at once in a swarm of ``n`` nodes with perfect tables, some of whose nodes then died."""
    rng = Random(seed)  # noqa: S311 - a simulation, nothing secret
    contacts = simulated_contacts(n, rng)
    dead = frozenset(contact.peer for contact in rng.sample(contacts, round(n * dead_fraction)))
    alive = [contact for contact in contacts if contact.peer not in dead]
    config = LookupConfig(k=k, alpha=alpha)
    simulator = Simulator(contacts, perfect_tables(contacts, k, seed=seed), config=config, rng=rng, dead=dead)
    requests = [(rng.choice(alive).peer, KadKey(rng.getrandbits(KAD_KEY_BITS))) for _ in range(lookups)]
    results = simulator.run(requests)
    return Report(
        n=n,
        k=k,
        alpha=alpha,
        dead_fraction=dead_fraction,
        lookups=lookups,
        mean_depth=fmean(depth_of_closest(result) for result in results),
        mean_rpcs=fmean(len(result.path) for result in results),
        mean_recall=fmean(
            recall(result, [contact for contact in alive if contact.peer != origin], k)
            for result, (origin, _) in zip(results, requests, strict=True)
        ),
        mean_duration_s=fmean(result.ended_at_s - result.started_at_s for result in results),
    )


def depth_of_closest(result: LookupResult) -> int:
    """How many tellings away from the origin the closest peer of a result was found."""
    return next(hop.depth for hop in result.path if hop.contact.peer == result.closest[0].peer)


def recall(result: LookupResult, alive: Sequence[Contact], k: int) -> float:
    """The share of the ``k`` live peers closest to the target that a result holds, in [0, 1]."""
    truth = {contact.peer for contact in closest(alive, result.target, k)}
    return len(truth & {contact.peer for contact in result.closest}) / len(truth)
