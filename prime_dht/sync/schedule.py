"""When a node syncs, with whom, and how often it lets others begin.

- *One at a time.* A node initiates one round after another, ``interval_us`` apart and up to ``jitter_us`` more, so that
  nodes which started together do not stay together. A round that is *slow* does not keep the next one back, which goes
  on beside it: much of what comes in both comes twice then, so there are never more than two.
- *Partner.* Of the peers that can be reached the one who may settle the most sectors that we do not hold. Where nobody
  may: first those whose arc is known to overlap ours, then those of unknown arc, then the rest, whose arcs may have
  grown. Among equals the one never synced with, or least recently.
- *Backoff.* A peer that failed is left alone for a while, twice as long each time; one of another network, for as long
  as that gets. One that misbehaved is left alone much longer, and may begin no round meanwhile. One that put us off is
  left alone for a moment.
- *Busy.* Only so many rounds that others began go on at a time, and of one peer not more than a *burst*: 16 in any 10
  minutes. With one peer this node begins half as many, whatever they bring, so that it is never too much for that.
- *Giving way.* A round has *stalled* for as long as an answer is waited for that the bytes it moved do not account
  for. Where there is no place for another, the one that stalled longest gives way to it, if that is longer than a peer
  in earnest takes to answer. Its peer may begin another at once, but for a while only where there is a place. So who
  begins rounds and falls silent keeps others out for a second, and then no more: ids are free, but to keep all places
  takes ten new ones every second, or answers, or bytes. And who is well and only slow loses little, and is not charged.
- *Crossing.* If two nodes begin a round with each other at once, one of the two goes on (:func:`survives`).

A round of which nothing is heard any more expires, each at its own time, long after it should have ended.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from prime_dht.ids import US_PER_S, PeerId
from prime_dht.partition.arcs import ArcSet
from prime_dht.sync.chance import Rng
from prime_dht.sync.messages import Refusal

MAX_PEERS_REMEMBERED = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often.

    Attributes:
        interval_us, jitter_us: from one round that this node initiates to the next; the jitter is drawn each time.
        max_begun: rounds that this node began, at a time; a second one only while the first is slow.
        max_accepted: rounds that others began, at a time.
        stalled_us: one of them gives way to another, if need be, when it has stalled for this long.
        gave_way_us: for how long no other gives way to a peer that gave way itself.
        burst, burst_us: of one peer so many are accepted in any interval of this length, and half as many begun.
        round_us: a round that takes longer has expired: longer than whoever carries rounds out lets any take.
        put_off_us: for how long a peer is left alone that was busy or not ready.
        backoff_us, max_backoff_us: for how long a peer is left alone that failed once; and at most.
        misconduct_backoff_us: for how long one that misbehaved is, at least.
    """

    interval_us: int = 120 * US_PER_S
    jitter_us: int = 10 * US_PER_S
    max_begun: int = 2
    max_accepted: int = 10
    stalled_us: int = US_PER_S
    gave_way_us: int = 600 * US_PER_S
    burst: int = 16
    burst_us: int = 600 * US_PER_S
    round_us: int = 1800 * US_PER_S
    put_off_us: int = 5 * US_PER_S
    backoff_us: int = 60 * US_PER_S
    max_backoff_us: int = 3600 * US_PER_S
    misconduct_backoff_us: int = 1800 * US_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A peer that may be synced with.

    Attributes:
        arc: its arc, as far as known.
        gain: in how many sectors that we do not hold a round with it may help.
    """

    peer: PeerId
    arc: ArcSet | None = None
    gain: int = 0


class Result(Enum):
    """How a round went, as far as the schedule cares."""

    DONE = "done"
    PUT_OFF = "put off"
    FAILED = "failed"
    FOREIGN = "foreign"
    """It is of another network, or of one with other parameters."""

    STALLED = "stalled"
    """It gave way to another, or the peer fell silent after entries had moved."""

    MISCONDUCT = "misconduct"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The round may begin; if it takes the place of another that gives way, that peer's is to be broken off."""

    instead_of: PeerId | None = None


@dataclass(frozen=True, slots=True)
class Active:
    """A round under way.

    Attributes:
        nonce: that of the opening.
        is_ours: whether this node began it.
    """

    peer: PeerId
    nonce: int
    began_us: int
    is_ours: bool


@dataclass(slots=True)
class _Memory:
    """What is remembered of a peer."""

    synced_us: int | None = None
    failures: int = 0
    alone_until_us: int = 0
    shut_out_until_us: int = 0
    displaces_from_us: int = 0
    accepted_us: deque[int] = field(default_factory=deque)
    refused_us: deque[int] = field(default_factory=deque)
    begun_us: deque[int] = field(default_factory=deque)


class Schedule:
    """See the module. All times are microseconds of one clock that never steps back.

    Attributes:
        due_us: when to initiate the next round.
        active: the rounds under way, those that began first first.
    """

    def __init__(self, us: PeerId, *, pace: Pace, now_us: int, rng: Rng) -> None:
        self.due_us = now_us + rng.randint(0, pace.jitter_us)
        self.active: list[Active] = []
        self._us = us
        self._pace = pace
        self._memories: OrderedDict[PeerId, _Memory] = OrderedDict()

    def initiate(
        self,
        candidates: Iterable[Candidate],
        *,
        arc: ArcSet,
        nonce: int,
        now_us: int,
        rng: Rng,
        slow: Collection[PeerId] = (),
    ) -> PeerId | None:
        """Begin a round, if one is due: with whom, or None. The round is active from here on.

        Args:
            candidates: those that can be reached; none twice.
            arc: ours. Without one there is no round.
            nonce: for the opening, below 2**32.
            slow: partners with whom the round that this node began is slow.
        """
        self.expire(now_us)
        if now_us < self.due_us or not arc:
            return None
        self.due_us = now_us + self._pace.interval_us + rng.randint(0, self._pace.jitter_us)
        begun = [active.peer for active in self.active if active.is_ours]
        if len(begun) >= self._pace.max_begun or not all(peer in slow for peer in begun):
            return None
        ready = [candidate for candidate in candidates if self._is_ready(candidate, now_us)]
        rng.shuffle(ready)
        if not ready:
            return None
        peer = min(ready, key=lambda candidate: self._rank(candidate, arc)).peer
        self.active.append(Active(peer, nonce, now_us, is_ours=True))
        self._memory(peer).begun_us.append(now_us)
        return peer

    def accept(self, peer: PeerId, *, nonce: int, stalled_us: Mapping[PeerId, int], now_us: int) -> Accepted | Refusal:
        """Whether a round may begin that a peer opened with this nonce; if so, it is active from here on.

        Args:
            stalled_us: for how long the rounds under way have stalled that were accepted, by peer.
        """
        self.expire(now_us)
        memory = self._memory(peer)
        if now_us < memory.shut_out_until_us:
            return Refusal.TOO_OFTEN
        if self._lately(memory.accepted_us, now_us) >= self._pace.burst:
            memory.refused_us.append(now_us)
            return Refusal.TOO_OFTEN
        ours = next((active for active in self.active if active.peer == peer and active.is_ours), None)
        if ours is not None and survives((ours.nonce, self._us), (nonce, peer)):
            return Refusal.CROSSED
        accepted = [active for active in self.active if not active.is_ours]
        if any(active.peer == peer for active in accepted):
            return Refusal.BUSY
        instead_of = None
        if len(accepted) >= self._pace.max_accepted:
            instead_of = max((active.peer for active in accepted), key=lambda other: stalled_us[other])
            if stalled_us[instead_of] < self._pace.stalled_us or now_us < memory.displaces_from_us:
                return Refusal.BUSY
            self.end(instead_of, is_ours=False, result=Result.STALLED, now_us=now_us)
        if ours is not None:
            self.active.remove(ours)
        memory.accepted_us.append(now_us)
        self.active.append(Active(peer, nonce, now_us, is_ours=False))
        return Accepted(instead_of)

    def is_pestered_by(self, peer: PeerId, *, now_us: int) -> bool:
        """Whether a peer that was refused because it begins too many rounds goes on all the same, or is shut out.

        Its owner may have begun them by hand, so it is not for a few.
        """
        memory = self._memory(peer)
        if self._lately(memory.refused_us, now_us) > self._pace.burst:
            memory.refused_us.popleft()
            return True
        return now_us < memory.shut_out_until_us

    def end(self, peer: PeerId, *, is_ours: bool, result: Result, now_us: int) -> None:
        """A round is over, if it has not expired before."""
        for active in self.active:
            if active.peer == peer and active.is_ours is is_ours:
                self.active.remove(active)
                self._note(peer, result, now_us)
                return

    def expire(self, now_us: int) -> None:
        """End the rounds that have taken too long."""
        for active in [active for active in self.active if active.began_us + self._pace.round_us <= now_us]:
            self.end(active.peer, is_ours=active.is_ours, result=Result.FAILED, now_us=now_us)

    def forgive(self) -> None:
        """Leave nobody alone any longer for rounds that failed, as that was for a reason which is no more."""
        for memory in self._memories.values():
            memory.failures = 0
            memory.alone_until_us = memory.shut_out_until_us

    def _note(self, peer: PeerId, result: Result, now_us: int) -> None:
        memory, pace = self._memory(peer), self._pace
        if result is Result.DONE:
            memory.synced_us, memory.failures, memory.alone_until_us, memory.shut_out_until_us = now_us, 0, 0, 0
            return
        if result is Result.PUT_OFF:
            memory.alone_until_us = max(memory.alone_until_us, now_us + pace.put_off_us)
            return
        if result is Result.STALLED:
            memory.alone_until_us = max(memory.alone_until_us, now_us + pace.backoff_us)
            memory.displaces_from_us = now_us + pace.gave_way_us
            return
        memory.failures += 1
        wait_us = min(pace.max_backoff_us, pace.backoff_us << min(memory.failures - 1, 32))
        if result is Result.FOREIGN:
            wait_us = pace.max_backoff_us
        elif result is Result.MISCONDUCT:
            wait_us = max(wait_us, pace.misconduct_backoff_us)
            memory.shut_out_until_us = now_us + wait_us
        memory.alone_until_us = now_us + wait_us

    def _is_ready(self, candidate: Candidate, now_us: int) -> bool:
        memory = self._memories.get(candidate.peer)
        is_alone = memory is not None and (
            now_us < memory.alone_until_us or self._lately(memory.begun_us, now_us) >= self._pace.burst // 2
        )
        is_active = any(active.peer == candidate.peer for active in self.active)
        return not is_alone and not is_active and candidate.peer != self._us

    def _lately(self, times_us: deque[int], now_us: int) -> int:
        """How many rounds there were within a burst's interval; times before that are forgotten."""
        while times_us and times_us[0] <= now_us - self._pace.burst_us:
            times_us.popleft()
        return len(times_us)

    def _rank(self, candidate: Candidate, arc: ArcSet) -> tuple[int, int, int]:
        overlap = 1 if candidate.arc is None else 0 if candidate.arc & arc else 2
        memory = self._memories.get(candidate.peer)
        return -candidate.gain, overlap, -1 if memory is None or memory.synced_us is None else memory.synced_us

    def _memory(self, peer: PeerId) -> _Memory:
        """What is remembered of a peer; of too many, those of whom nothing was heard for longest are forgotten."""
        memory = self._memories.setdefault(peer, _Memory())
        self._memories.move_to_end(peer)
        if len(self._memories) > MAX_PEERS_REMEMBERED:
            self._memories.popitem(last=False)
        return memory


def survives(ours: tuple[int, PeerId], theirs: tuple[int, PeerId]) -> bool:
    """Whether our round goes on, of two that crossed: the one with the greater (nonce, peer id of who began it).

    Both sides decide alike, so just one of the two goes on.

    >>> one, other = (7, PeerId(b"a")), (7, PeerId(b"b"))
    >>> survives(one, other), survives(other, one)
    (False, True)
    """
    return ours > theirs
