"""The iterative lookup: whom to ask, until the closest to a target have answered.

A lookup holds *candidates*, the peers it has heard of, in order of distance to its target. It asks the nearest that it
has not asked; whoever answers names more. A candidate is in one of six states::

    HEARD --asked--> ASKED --slow_after_s--> SLOW --query_timeout_s--> FAILED
                      | ^                      |                          |
               held up| |sent                  |                          |
                      v |                      |                          |
                    HELD_UP                    |                          |
                       |                       |                          |
                       +------- answer --------+-------- late answer -----+--> ANSWERED

and a failure reported for one that is ASKED, HELD_UP or SLOW makes it FAILED. Nothing leaves ANSWERED: a failure cannot
overwrite a success. A candidate is asked once, and once more if it FAILED and others have said that it is elsewhere:
then it is HEARD again. So no lie can make the lookup go round, and none hides who is there. A query is HELD_UP as long
as this node cannot send it: that says nothing of the peer, so it is no reason to call it slow.

**Window.** Going outward from the target, count the candidates that are HEARD, ASKED, HELD_UP, or ANSWERED and
eligible, until there are ``k``; FAILED and SLOW ones hold no place. Of this window the nearest HEARD are asked next.
When nothing in it is HEARD, ASKED, HELD_UP or SLOW, it is the ``k`` closest of all that were heard of and are alive:
the lookup has *converged*.

**In flight.** At most ``alpha`` queries are ASKED, or HELD_UP for less than ``slow_after_s``: those that can be sent at
once need not wait for the others. At most ``alpha + k`` are in flight, beside those in doubt that are silent. It is
never round-synchronous: each answer makes room for the next query at once. SLOW queries count neither for ``alpha`` nor
for the window, so a lookup that stalls on slow peers widens, while their answers still count (as in rust-libp2p).

**Doubt.** Those whom only liars seem to have named hold no place, and are put off: :mod:`prime_dht.kad.hearsay`.

**Bounds** on what others can make it do: ``max_queries`` asked and as many more remembered; ``max_closer`` peers taken
from a reply, of which at most ``max_per_subnet`` new ones share a subnet (waived, as in the routing table, in a small
swarm: fewer than ``k`` seeds); a deadline for each query and one for all. What remains: an adversary that *is* the
``k`` closest peers owns the answer. It takes disjoint paths and diverse replicas to prevent that, not this machine.

Values, providers and acknowledgements are not its business. To find a value, send GET_VALUE for each :class:`Query`,
hand the reply's closer peers to :meth:`Lookup.on_reply`, and call :meth:`Lookup.finish` when a quorum has answered.

Source: Maymounkov & Mazières 2002, section 2.3; the libp2p kad-dht specification, "Peer routing". Unlike the paper's it
has no rounds; unlike go-libp2p's it has no final wave of queries, for the window makes sure of the ``k`` closest.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import islice
from typing import assert_never

from prime_dht.errors import ConfigError
from prime_dht.ids import KadKey, PeerId
from prime_dht.kad.candidate import Candidate, Hop, State
from prime_dht.kad.contact import MAX_ADDRESSES_TOLD, Contact
from prime_dht.kad.hearsay import DOUBTED_AT_ONCE, NOTHING, Hearsay
from prime_dht.kad.keyspace import distance


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupConfig:
    """How a node's lookups behave.

    Attributes:
        k: how many of the closest must have answered; also how many are returned at most.
        alpha: queries in flight that are not slow, in [1, k].
        slow_after_s: a query unanswered for so long is slow, in (0, query_timeout_s].
        silent_after_s: a query unanswered for so long counts against those that named the peer; above 0.
        query_timeout_s: a query unanswered for so long has failed.
        timeout_s: a lookup that has run for so long ends with what it has. It may be infinite.
        max_queries: how many peers are asked at most.
        max_closer: how many peers of one reply are looked at.
        max_per_subnet: how many new candidates of one subnet are taken from one reply.
        max_silent: of those that a peer named, how many more may be silent than answer before its word is doubted.

    Raises:
        ConfigError: a number is out of range.
    """

    k: int = 20
    alpha: int = 3
    slow_after_s: float = 1.0
    silent_after_s: float = 2.0
    query_timeout_s: float = 5.0
    timeout_s: float = 30.0
    max_queries: int = 200
    max_closer: int = 40
    max_per_subnet: int = 3
    max_silent: int = 6

    def __post_init__(self) -> None:
        if not 1 <= self.alpha <= self.k:
            raise ConfigError(f"alpha is from 1 to k = {self.k}, not {self.alpha}")
        if not 0 < self.slow_after_s <= self.query_timeout_s:
            raise ConfigError("slow_after_s is above 0 and at most query_timeout_s")
        numbers = self.max_queries, self.max_closer, self.max_per_subnet, self.max_silent
        if min(self.timeout_s, self.silent_after_s) <= 0 or min(numbers) < 1:
            raise ConfigError("timeout_s and silent_after_s are above 0, the numbers of peers at least 1")


class Outcome(Enum):
    """Why a lookup ended."""

    CONVERGED = "the k closest peers seen have answered"
    EXHAUSTED = "every peer heard of was asked, and fewer than k answered"
    ENOUGH = "the caller had what it wanted"
    QUERY_LIMIT = "max_queries peers were asked"
    DEADLINE = "time ran out"


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupResult:
    """What a lookup found.

    Attributes:
        closest: at most ``k`` eligible peers that answered, the nearest first, each once. After ``CONVERGED`` no live
            eligible peer that was heard of is nearer.
        path: all queries, in the order they were started.
        against: how many more of those whom a peer named were silent than answered; see :mod:`prime_dht.kad.hearsay`.
    """

    target: KadKey
    outcome: Outcome
    closest: tuple[Contact, ...]
    path: tuple[Hop, ...]
    started_at_s: float
    ended_at_s: float
    against: Mapping[PeerId, int] = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, slots=True)
class Query:
    """Ask this peer now, and report ``on_reply`` or ``on_failure``; from ``deadline_s`` on it has failed anyway.

    If it cannot be sent now, report ``on_held_up``, and ``on_sent`` later, when its time begins anew.
    """

    contact: Contact
    deadline_s: float


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Nothing more to do until a reply or a failure comes, or until this time; then call ``next`` again."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The lookup has ended; cancel what is in flight."""

    result: LookupResult


Action = Query | WaitUntil | Finished


def anyone(_contact: Contact) -> bool:
    """The predicate of a lookup for which every peer counts."""
    return True


class Lookup:
    """One lookup. Call :meth:`next` after each event, do what it says, report what happens. See the module.

    Attributes:
        target: what was given.

    Args:
        target: where to look.
        seeds: contacts to begin with: the table's ``k`` closest to the target.
        local: this node's kad key; a reply that names it is not believed.
        config: how to go about it.
        now_s: when it starts; all times are seconds of one monotonic clock.
        eligible: which peers that answered count towards the ``k``, by their contact as it was when they answered.
            Others are asked and believed as well, but are not in the result.
        reserve: more contacts to begin with, asked for at most once: when the seeds leave fewer to ask than could be,
            or when there are others to compare them with. Most puts and gets are done before.
        against: what counts against whom from lookups before this one.
    """

    def __init__(
        self,
        target: KadKey,
        seeds: Iterable[Contact],
        *,
        local: KadKey,
        config: LookupConfig,
        now_s: float,
        eligible: Callable[[Contact], bool] = anyone,
        reserve: Callable[[], Iterable[Contact]] | None = None,
        against: Mapping[PeerId, int] = NOTHING,
    ) -> None:
        self.target = target
        self._local = local
        self._config = config
        self._alpha = config.alpha
        self._eligible = eligible
        self._started_at_s = now_s
        self._known: dict[PeerId, Candidate] = {}
        self._by_distance: list[Candidate] = []
        self._asked: list[Candidate] = []  # in the order they were asked
        self._in_flight: dict[PeerId, Candidate] = {}
        self._hearsay: Hearsay | None = None  # most lookups hear of nobody else
        self._result: LookupResult | None = None
        self._reserve = reserve
        self._against = against
        self._begin_with(seeds)

    def next(self, now_s: float) -> list[Action]:
        """What to do now: queries to start, then one ``WaitUntil``; or, once it has ended, only ``Finished``."""
        queries: list[Query] = []
        if self._result is None:
            if now_s >= self._started_at_s + self._config.timeout_s:
                self._end(Outcome.DEADLINE, now_s)
            else:
                self._pass_time(now_s)
                queries = self._advance(now_s)
        if self._result is not None:
            return [Finished(self._result)]
        return [*queries, WaitUntil(self._next_change_at_s(now_s))]

    def on_reply(self, contact: Contact, closer: Iterable[Contact], now_s: float) -> None:
        """A peer answered and named others that may be closer.

        Ignored once the lookup has ended, and from a peer that was not asked or has answered already.

        Args:
            contact: the peer, as it is known now; connecting may have told more of it, such as whether it syncs.
            closer: the peers it named.
        """
        candidate = self._known.get(contact.peer)
        if self._result is not None or candidate is None or not candidate.is_awaited:
            return
        self._in_flight.pop(contact.peer, None)
        candidate.state = State.ANSWERED
        candidate.contact = contact
        candidate.answered_at_s = now_s
        candidate.failure = ""
        if self._hearsay is not None:
            self._hearsay.answered(contact.peer)
        named_peers = list(islice(closer, self._config.max_closer))
        if named_peers:
            self._draw_reserve()
        new_in_subnet: Counter[bytes] = Counter()
        for named in named_peers:
            candidate.heard_of += 1
            if named.peer not in self._known and named.kad_key != self.target and not self._is_small_swarm:
                if any(new_in_subnet[subnet] >= self._config.max_per_subnet for subnet in named.subnets):
                    continue
                new_in_subnet.update(named.subnets)
            self._hear(named, told_by=contact.peer, depth=candidate.depth + 1)

    def on_failure(self, peer: PeerId, reason: str) -> None:
        """A query failed: the peer could not be reached, broke the protocol or refused. Ignored unless in flight."""
        candidate = self._in_flight.pop(peer, None)
        if candidate is not None:
            if candidate.state is not State.HELD_UP and self._hearsay is not None:
                self._hearsay.silent(peer)
            candidate.fail(reason)

    def on_held_up(self, peer: PeerId) -> None:
        """A query cannot be sent yet, and not because of its peer: until it is, it does not become slow and fail."""
        candidate = self._in_flight.get(peer)
        if candidate is not None:
            candidate.state = State.HELD_UP

    def on_sent(self, peer: PeerId, now_s: float) -> None:
        """A query that was held up is held up no longer. Ignored unless it is."""
        candidate = self._in_flight.get(peer)
        if candidate is not None and candidate.state is State.HELD_UP:
            candidate.state, candidate.asked_at_s = State.ASKED, now_s

    def widen(self, alpha: int) -> None:
        """From the next call of :meth:`next` on keep up to ``alpha`` queries in flight, if that is more, but at most k.

        For a caller that began with as few as might do, and has learnt that they do not.
        """
        self._alpha = max(self._alpha, min(alpha, self._config.k))

    def narrow(self, alpha: int) -> None:
        """From the next call of :meth:`next` on keep at most ``alpha`` queries in flight, but at least one.

        For a caller that needs so many more answers: the queries under way may be all it takes.
        """
        self._alpha = max(1, min(alpha, self._alpha))

    def finish(self, now_s: float) -> LookupResult:
        """The caller has what it wanted. If the lookup had ended already, its result stands.

        Report the reply that was enough first: answers no longer count once the lookup has ended.
        """
        return self._result or self._end(Outcome.ENOUGH, now_s)

    def has_heard_nearest(self, count: int) -> bool:
        """Whether the nearest that were heard of have answered, so many of them; those that failed do not matter."""
        self._draw_reserve()
        nearest = islice((one for one in self._by_distance if one.state is not State.FAILED), count)
        return all(candidate.state is State.ANSWERED for candidate in nearest)

    def hop(self, peer: PeerId) -> Hop:
        """How the query of a peer that was asked stands."""
        return self._known[peer].hop()

    def _begin_with(self, seeds: Iterable[Contact]) -> None:
        for seed in seeds:
            self._hear(seed, told_by=None, depth=1)
        self._is_small_swarm = len(self._known) < self._config.k

    def _draw_reserve(self) -> None:
        if self._reserve is not None:
            reserve, self._reserve = self._reserve, None
            self._begin_with(reserve())

    def _hear(self, contact: Contact, *, told_by: PeerId | None, depth: int) -> None:
        if contact.kad_key == self._local:
            return
        told = contact.addresses[:MAX_ADDRESSES_TOLD]
        known = self._known.get(contact.peer)
        if told_by is not None and (known is None or known.told_by is not None):
            self._hearsay = self._hearsay or Hearsay(max_silent=self._config.max_silent, before=self._against)
            self._hearsay.named(contact.peer, told_by)
        if known is None:
            named = contact if len(told) == len(contact.addresses) else replace(contact, addresses=told)
            candidate = Candidate(named, distance(contact.kad_key, self.target), told_by, depth, last_teller=told_by)
            self._known[contact.peer] = candidate
            insort(self._by_distance, candidate, key=lambda one: one.distance)
            if len(self._by_distance) - len(self._asked) > self._config.max_queries:
                self._forget_farthest()
        elif known.state is not State.ANSWERED and told_by != known.last_teller and told != known.contact.addresses:
            known.hear_more(told, told_by)

    def _forget_farthest(self) -> None:
        for index in reversed(range(len(self._by_distance))):
            if not self._by_distance[index].was_asked:
                forgotten = self._by_distance.pop(index).contact.peer
                del self._known[forgotten]
                if self._hearsay is not None:
                    self._hearsay.forget(forgotten)
                return

    def _pass_time(self, now_s: float) -> None:
        """Queries that have waited long enough become slow or fail."""
        for candidate in list(self._in_flight.values()):
            if candidate.state is State.HELD_UP:
                continue
            if now_s >= candidate.asked_at_s + self._config.query_timeout_s:
                self.on_failure(candidate.contact.peer, "no answer before the deadline")
            elif now_s >= candidate.asked_at_s + self._config.slow_after_s:
                candidate.state = State.SLOW
            if now_s >= candidate.asked_at_s + self._config.silent_after_s and self._hearsay is not None:
                self._hearsay.silent(candidate.contact.peer)

    def _advance(self, now_s: float, *, in_spite_of_doubt: bool = False) -> list[Query]:
        """Walk the window: start what may be started; end the lookup if nothing in the window is open."""
        config = self._config
        hearsay = self._hearsay if self._hearsay is not None and self._hearsay.doubted else None
        at_most = DOUBTED_AT_ONCE if in_spite_of_doubt else self._alpha
        prompt = sum(self._is_prompt(candidate, now_s) for candidate in self._in_flight.values())
        in_flight = len(self._in_flight) - (sum(map(hearsay.is_late, self._in_flight)) if hearsay is not None else 0)
        queries: list[Query] = []
        places = 0
        is_open = is_cut_short = has_doubts = has_late = False
        for candidate in self._by_distance:
            is_doubted = hearsay is not None and hearsay.is_doubted(candidate.contact.peer)
            match candidate.state:
                case State.HEARD | State.HELD_UP if is_doubted and not in_spite_of_doubt:
                    has_doubts = True
                case State.FAILED:
                    pass
                case State.ANSWERED:
                    places += self._eligible(candidate.contact)
                case State.ASKED | State.HELD_UP:
                    places += not is_doubted
                    is_open = True
                case State.SLOW:
                    if hearsay is None or not hearsay.is_late(candidate.contact.peer):
                        is_open = True
                    else:
                        has_late |= hearsay.is_waited_for(candidate.contact.peer)
                case State.HEARD:
                    if len(self._asked) == config.max_queries:
                        is_cut_short = True
                        continue
                    places += not is_doubted
                    is_open = True
                    if prompt < at_most and in_flight < at_most + config.k:
                        prompt += 1
                        in_flight += 1
                        queries.append(self._ask(candidate, now_s))
                case _:
                    assert_never(candidate.state)
            if places == config.k:
                break
        if self._reserve is not None and places < config.k and (prompt < self._alpha or not is_open):
            self._draw_reserve()
            return [*queries, *self._advance(now_s)]
        if not is_open and has_doubts:
            return self._advance(now_s, in_spite_of_doubt=True)
        if not is_open and not has_late:
            if places == config.k and not is_cut_short:
                self._end(Outcome.CONVERGED, now_s)
            elif len(self._asked) == config.max_queries:  # so peers may have been passed over, or forgotten
                self._end(Outcome.QUERY_LIMIT, now_s)
            else:
                self._end(Outcome.EXHAUSTED, now_s)
        return queries

    def _ask(self, candidate: Candidate, now_s: float) -> Query:
        if candidate.has_chance:  # else it was asked before
            self._asked.append(candidate)
        candidate.state = State.ASKED
        candidate.asked_at_s, candidate.failure = now_s, ""
        self._in_flight[candidate.contact.peer] = candidate
        return Query(candidate.contact, now_s + self._config.query_timeout_s)

    def _is_prompt(self, candidate: Candidate, now_s: float) -> bool:
        """Whether a query in flight counts for ``alpha``."""
        is_held_up = candidate.state is State.HELD_UP and now_s < candidate.asked_at_s + self._config.slow_after_s
        return is_held_up or candidate.state is State.ASKED

    def _next_change_at_s(self, now_s: float) -> float:
        """When what a query in flight counts for changes next, or the lookup runs out of time, whichever is first."""
        config = self._config
        earliest_s = self._started_at_s + config.timeout_s
        for candidate in self._in_flight.values():
            patience_s = config.query_timeout_s if candidate.state is State.SLOW else config.slow_after_s
            until_silent_s = math.inf if candidate.told_by is None else config.silent_after_s
            for at_s in (candidate.asked_at_s + patience_s, candidate.asked_at_s + until_silent_s):
                if now_s < at_s < earliest_s:
                    earliest_s = at_s
        return earliest_s

    def _end(self, outcome: Outcome, now_s: float) -> LookupResult:
        if self._hearsay is not None:
            for peer in self._in_flight:
                self._hearsay.spare(peer)
        answered = (
            candidate.contact
            for candidate in self._by_distance
            if candidate.state is State.ANSWERED and self._eligible(candidate.contact)
        )
        self._result = LookupResult(
            target=self.target,
            outcome=outcome,
            closest=tuple(islice(answered, self._config.k)),
            path=tuple(candidate.hop() for candidate in self._asked),
            started_at_s=self._started_at_s,
            ended_at_s=now_s,
            against=NOTHING if self._hearsay is None else dict(self._hearsay.against),
        )
        return self._result
