"""Rounds of agreement in virtual time, from a seed: members that lag, crash and restart, and such that lie.

Until :data:`CALM_US` the network is on the side of the liars: of each phase of each view each member misses what some
others say, mostly so few that it goes on to the next view without them, and what it hears comes late, and twice. The
outcome is not told, lest whoever knows it first spares the others to agree on it. From then on statements arrive within
:data:`DELAY_US`; and as entries are read again, what a member said last is delivered anew every :data:`REREAD_US`. Good
members sign what they say with :func:`sign`, which nobody can forge for another.

A *liar* hears everything, votes for whatever it hears of, for none, and for what nobody proposed, in the view and far
ahead of it, telling each member something else; when it is its turn it proposes several outcomes, some of them invalid.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import assert_never

from prime_dht.ids import OpId, PeerId
from prime_dht.ml.agreement import (
    NIL,
    Accuse,
    Action,
    Agreement,
    Broadcast,
    Check,
    Commit,
    Decide,
    Members,
    Outcome,
    Phase,
    Proposal,
    ScheduleTimeout,
    Signed,
    Statement,
    Timeouts,
    Vote,
    subkey_of,
)

ROUND = 7
CALM_US = 20_000_000
DELAY_US = 50_000
REREAD_US = 500_000
END_US = 400_000_000
TIMEOUTS = Timeouts(propose_us=200_000, vote_us=100_000, growth_us=100_000)

_INVALID = b"invalid"


def member_named(number: int) -> PeerId:
    """The peer id of the member with a number."""
    return PeerId(b"member %03d" % number)


def sign(statement: Statement) -> bytes:
    """The proof that its member made a statement; in tests only members ask for their own."""
    said = (statement.member, statement.round_number.to_bytes(8, "big"), subkey_of(statement))
    return hashlib.sha256(b"\x00".join(said)).digest()


def verify(statement: Statement, proof: bytes) -> bool:
    """Whether :func:`sign` made the proof of a statement."""
    return proof == sign(statement)


def outcome_named(name: bytes, *, valid: bool = True) -> Outcome:
    """One of many outcomes."""
    op_id = OpId(hashlib.sha256(name).digest())
    return Outcome(round_number=ROUND, op_ids=(op_id,), aggregate=name if valid else _INVALID + name)


def is_valid(outcome: Outcome) -> bool:
    """Whether good members find an outcome valid."""
    return not outcome.aggregate.startswith(_INVALID)


@dataclass(slots=True)
class Member:
    """A good member: its machine, and what it would find on its disk."""

    machine: Agreement
    said: list[Signed[Statement]] = field(default_factory=list)
    is_up: bool = True


class Swarm:
    """Members of a round, some of them liars, in virtual time.

    Attributes:
        good: the good members that are not silent.
        decided: what each good member decided.
    """

    def __init__(
        self,
        seed: int,
        *,
        weights: Iterable[int],
        liars: Iterable[int] = (),
        silent: Iterable[int] = (),
        crashes: int = 0,
    ) -> None:
        self._rng = Random(seed)  # noqa: S311 - schedules, no secrets
        self._missing = self._rng.choice((0.3, 0.6, 0.9))
        self._support = self._rng.choice((2, 8, 30))
        self._longest_us = self._rng.choice((20_000, 100_000, 300_000))
        self._missed: dict[tuple[PeerId, int, Phase], list[PeerId]] = {}
        self.members = Members({member_named(i): weight for i, weight in enumerate(weights)})
        self._liars = [member_named(i) for i in liars]
        absent = {*self._liars, *map(member_named, silent)}
        self.good = {one: Member(self._machine(one)) for one in self.members.weights if one not in absent}
        self.decided: dict[PeerId, Commit] = {}
        self.most_held = 0
        self.accused: set[PeerId] = set()
        self.now_us = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self._told: set[tuple[PeerId, PeerId, int, Phase]] = set()
        for one, member in self.good.items():
            self._act(one, member.machine.start(0))
            self._at(CALM_US + self._rng.randrange(REREAD_US), lambda one=one: self._reread(one))  # type: ignore[misc]
        for _ in range(crashes):
            self._at(self._rng.randrange(CALM_US), self._crash)

    def run(self) -> None:
        """Go on until all good members have decided, or until the end."""
        while self._events and self.now_us < END_US and self.decided.keys() != self.good.keys():
            self.now_us, _, event = heapq.heappop(self._events)
            event()

    def _machine(self, one: PeerId, said: Iterable[Signed[Statement]] = ()) -> Agreement:
        return Agreement(
            member=one,
            members=self.members,
            round_number=ROUND,
            outcome=outcome_named(one),
            timeouts=TIMEOUTS,
            verify=verify,
            said=said,
        )

    def _at(self, after_us: int, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now_us + after_us, self._count, event))

    def _act(self, one: PeerId, actions: list[Action]) -> None:
        member = self.good[one]
        machine = member.machine
        self.most_held = max(self.most_held, machine.held)
        for action in actions:
            match action:
                case Broadcast(statement):
                    signed = Signed(statement, sign(statement))
                    member.said.append(signed)
                    self._tell(one, signed, one)
                    self._tell_all(signed)
                    self._lie_about(statement)
                case ScheduleTimeout(timeout, at_us):
                    self._at(
                        at_us - self.now_us,
                        lambda timeout=timeout: self._if_up(  # type: ignore[misc]
                            one, machine, lambda: machine.time_out(timeout, self.now_us)
                        ),
                    )
                case Check(outcome):
                    self._at(
                        self._rng.randrange(2 * DELAY_US),
                        lambda outcome=outcome: self._if_up(  # type: ignore[misc]
                            one, machine, lambda: machine.checked(outcome, is_valid(outcome), self.now_us)
                        ),
                    )
                case Accuse(equivocation):
                    self.accused.add(equivocation.first.statement.member)
                case Decide(commit):
                    self.decided[one] = commit
                case _:
                    assert_never(action)

    def _if_up(self, one: PeerId, machine: Agreement, event: Callable[[], list[Action]]) -> None:
        member = self.good[one]
        if member.is_up and member.machine is machine:
            self._act(one, event())

    def _tell_all(self, signed: Signed[Statement]) -> None:
        for other in self.good:
            self._tell(other, signed, signed.statement.member)

    def _tell(self, to: PeerId, signed: Signed[Statement], source: PeerId) -> None:
        if self.now_us >= CALM_US or source == to:
            delays_us = [0 if source == to else self._rng.randrange(DELAY_US)]
        elif source in self._missed_by(to, signed.statement):
            delays_us = []
        else:
            delays_us = [self._rng.randrange(self._longest_us) for _ in range(self._rng.choice((1, 1, 2)))]
        for delay_us in delays_us:
            self._at(delay_us, lambda: self._hear(to, signed))

    def _missed_by(self, to: PeerId, statement: Statement) -> list[PeerId]:
        """Whom a member does not hear in this phase of this view until the network is calm."""
        key = (to, statement.view, statement.phase)
        if key not in self._missed:
            others = [one for one in self.members.weights if one != to]
            most = len(others) if statement.phase is Phase.PROPOSE else (len(others) + 1) // 3
            self._missed[key] = self._rng.sample(others, most) if self._rng.random() < self._missing else []
        return self._missed[key]

    def _hear(self, to: PeerId, signed: Signed[Statement]) -> None:
        member = self.good[to]
        if member.is_up:
            self._act(to, member.machine.receive(signed, self.now_us))

    def _tell_outcome(self, commit: Commit) -> None:
        for other, member in self.good.items():
            self._at(
                self._rng.randrange(DELAY_US),
                lambda other=other, member=member: self._if_up(  # type: ignore[misc]
                    other, member.machine, lambda: member.machine.learn(commit)
                ),
            )

    def _reread(self, one: PeerId) -> None:
        """Others read again what a member said last, and the outcome if it knows it."""
        for signed in self.good[one].said[-12:]:
            self._tell_all(signed)
        if one in self.decided:
            self._tell_outcome(self.decided[one])
        self._at(REREAD_US, lambda: self._reread(one))

    def _crash(self) -> None:
        """A good member crashes, and comes back with what it had made durable."""
        one = self._rng.choice(sorted(self.good))
        member = self.good[one]
        member.is_up = False

        def restart() -> None:
            if member.is_up or one in self.decided:
                member.is_up = True
                return
            member.is_up = True
            member.machine = self._machine(one, member.said)
            self._act(one, member.machine.start(self.now_us))

        self._at(self._rng.randrange(CALM_US), restart)

    def _lie_about(self, heard: Statement) -> None:
        """Liars answer what they hear, telling each member what suits them; few things twice, so that a run ends."""
        for liar in self._liars:
            for other in self.good:
                for statement in self._lies_of(liar, heard):
                    told = (liar, other, statement.view, statement.phase)
                    if told not in self._told or self._rng.random() < 0.1:
                        self._told.add(told)
                        self._tell(other, Signed(statement, sign(statement)), liar)

    def _lies_of(self, liar: PeerId, heard: Statement) -> list[Statement]:
        made_up = outcome_named(b"made up %d" % self._rng.randrange(5)).digest
        digest = self._rng.choices((heard.digest, NIL, made_up), (self._support, 2, 1))[0]
        view = heard.view + self._rng.choice((0, 0, 0, 0, 0, 1, 3, 1000))
        lies: list[Statement] = [self._vote(liar, view, phase, digest) for phase in (Phase.PREVOTE, Phase.PRECOMMIT)]
        for view in (heard.view, heard.view + 1):
            if self.members.proposer(ROUND, view) == liar:
                name = b"lie %d" % self._rng.randrange(4)
                outcome = outcome_named(name, valid=self._rng.random() < 0.7)
                lies.append(Proposal(member=liar, round_number=ROUND, view=view, outcome=outcome))
        return lies

    def _vote(self, liar: PeerId, view: int, phase: Phase, digest: bytes) -> Vote:
        return Vote(member=liar, round_number=ROUND, view=view, phase=phase, digest=digest)

    def check_safe(self) -> None:
        """No two good members decided differently, and every decision is valid and proved."""
        digests = {commit.outcome.digest for commit in self.decided.values()}
        assert len(digests) <= 1, "members disagree"
        for commit in self.decided.values():
            assert is_valid(commit.outcome), "an invalid outcome was decided"
            commit.check(ROUND, self.members, verify)

    def check_live(self) -> None:
        """All good members decided."""
        missing = self.good.keys() - self.decided.keys()
        assert not missing, f"{len(missing)} of {len(self.good)} members did not decide"
