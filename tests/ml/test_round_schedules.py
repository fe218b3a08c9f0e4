"""Deliberations over a store whose puts get lost or come late and whose reads miss things, under crashes and a liar.

The store has three replicas, and a put that two of them took is acknowledged; a read joins what two of them have. Until
:data:`CALM_US` puts reach some replicas at once, some late and some never, reads fail, contributions cannot be fetched,
and members crash, also between noting, putting and acting on it. From then on all of that works; the liar goes on.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest

from prime_dht.ids import PeerId
from prime_dht.ml.aggregation import CoordinateMedian
from prime_dht.ml.agreement import (
    NIL,
    Commit,
    Members,
    Phase,
    Proposal,
    Statement,
    Vote,
    encode_commit,
    encode_proposal,
    subkey_of,
)
from prime_dht.ml.rounds.deliberation import Action, Deliberation, Examine, Finish, Refresh, Say
from prime_dht.ml.rounds.posts import COMMIT, TERMS, Post, is_statement
from prime_dht.ml.rounds.terms import Terms
from prime_dht.testing.agreement import ROUND, TIMEOUTS, is_valid, member_named, outcome_named, sign, verify

CALM_US = 5_000_000
END_US = 60_000_000
SEEDS = range(24)
VALID = (outcome_named(b"x"), outcome_named(b"y"))
OFFERED = (*VALID, outcome_named(b"z", valid=False))


class Store:
    """The replicas' posts, by publisher and subkey."""

    def __init__(self, rng: Random, later: Callable[[int, Callable[[], None]], None]) -> None:
        self.is_calm = False
        self._rng = rng
        self._later = later
        self._replicas: list[dict[tuple[PeerId, bytes], Post]] = [{}, {}, {}]

    def put(self, post: Post) -> None:
        for replica in self._replicas:
            fate = "at once" if self.is_calm else self._rng.choice(("at once", "late", "never"))
            if fate == "at once":
                replica[post.publisher, post.subkey] = post
            elif fate == "late":
                self._later(self._rng.randrange(CALM_US), lambda to=replica: to.setdefault(slot_of(post), post))  # type: ignore[misc]

    def read(self) -> list[Post] | None:
        if not self.is_calm and self._rng.random() < 0.5:
            return None
        first, second = self._rng.sample(self._replicas, 2)
        return list((first | second).values())

    def everything(self) -> list[Post]:
        joined: dict[tuple[PeerId, bytes], Post] = {}
        for replica in self._replicas:
            joined |= replica
        return list(joined.values())

    def become_calm(self) -> None:
        self.is_calm = True
        for replica in self._replicas:  # as sync has it
            replica.update({slot_of(post): post for post in self.everything()})


def slot_of(post: Post) -> tuple[PeerId, bytes]:
    return post.publisher, post.subkey


def post_of(statement: Statement) -> Post:
    value = encode_proposal(statement) if isinstance(statement, Proposal) else b""
    return Post(publisher=statement.member, subkey=subkey_of(statement), value=value, envelope=sign(statement))


@dataclass(slots=True)
class Member:
    deliberation: Deliberation
    journal: dict[bytes, bytes] = field(default_factory=dict)
    is_up: bool = True


class Schedule:
    """Good members and perhaps a liar, in virtual time, from a seed."""

    def __init__(
        self,
        seed: int,
        *,
        count: int = 4,
        liars: int = 0,
        silent: int = 0,
        crashes: int = 0,
        keeps_journal: bool = True,
    ) -> None:
        self._rng = Random(seed)
        self._keeps_journal = keeps_journal
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self.now_us = 0
        self.store = Store(self._rng, self._at)
        names = [member_named(i) for i in range(count)]
        self.members = Members.equal(names)
        self.terms = Terms(members=self.members, rule=CoordinateMedian(), bad=1, spec={})
        self._rng.shuffle(names)
        self.liars = names[:liars]
        self._without = names[-1] if count > 1 and self._rng.random() < 0.3 else None  # it has nothing to propose
        self.decided: dict[PeerId, Commit] = {}
        self.good = {one: Member(self._deliberation(one, {})) for one in names[liars + silent :]}
        for one in self.good:
            self._at(self._rng.randrange(100_000), lambda one=one: self._step(one))  # type: ignore[misc]
        self._crashes_left = crashes
        self._at(CALM_US, self.store.become_calm)
        for liar in self.liars:
            self._at(0, lambda liar=liar: self._lie(liar))  # type: ignore[misc]

    def run(self) -> None:
        while self._events and self.now_us < END_US and self.decided.keys() != self.good.keys():
            self.now_us, _, event = heapq.heappop(self._events)
            event()

    def check_safe(self) -> None:
        assert len({commit.outcome.digest for commit in self.decided.values()}) <= 1
        for commit in self.decided.values():
            assert is_valid(commit.outcome)
            commit.check(ROUND, self.members, verify)
        assert not self.equivocators() & self.good.keys()

    def check_live(self) -> None:
        assert self.decided.keys() == self.good.keys()

    def equivocators(self) -> set[PeerId]:
        said: dict[tuple[PeerId, bytes], set[bytes]] = {}
        for post in self.store.everything():
            if is_statement(post.subkey):
                said.setdefault((post.publisher, post.subkey[:5]), set()).add(post.subkey)
        return {publisher for (publisher, _), subkeys in said.items() if len(subkeys) > 1}

    def _at(self, after_us: int, event: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (self.now_us + after_us, self._order, event))

    def _deliberation(self, one: PeerId, journal: dict[bytes, bytes]) -> Deliberation:
        deliberation = Deliberation(
            member=one,
            terms=self.terms,
            round_number=ROUND,
            timeouts=TIMEOUTS,
            verify=verify,
            noted=dict(journal),
        )
        if one != self._without:
            deliberation.propose(self._rng.choice(VALID))
        return deliberation

    def _step(self, one: PeerId) -> None:
        """What the driver does: read, let time pass, carry out, and again later."""
        member = self.good[one]
        deliberation = member.deliberation
        if not member.is_up or one in self.decided:
            return
        posts = self.store.read()
        actions = [] if posts is None else deliberation.hear(posts, self.now_us)
        actions += deliberation.tick(self.now_us)
        while actions and member.is_up:
            actions = actions[1:] + self._carry_out(one, actions[0])
        if posts is None:
            self._at(50_000, lambda: self._if_same(one, deliberation))
        else:
            self._at(max(0, deliberation.wake_us - self.now_us), lambda: self._if_same(one, deliberation))

    def _if_same(self, one: PeerId, deliberation: Deliberation) -> None:
        if self.good[one].deliberation is deliberation:
            self._step(one)

    def _carry_out(self, one: PeerId, action: Action) -> list[Action]:
        member = self.good[one]
        match action:
            case Say(statement, note):
                member.journal.setdefault(subkey_of(statement), note)
                if self._crashes_now():
                    self._go_down(one)
                    return []
                self.store.put(post_of(statement))
                if self._crashes_now():
                    self._go_down(one)
                return []
            case Examine(outcome):
                cannot_tell = not self.store.is_calm and self._rng.random() < 0.5
                valid = None if cannot_tell else is_valid(outcome)
                return member.deliberation.examined(outcome, valid, self.now_us)
            case Refresh():
                member.deliberation.propose(self._rng.choice(VALID))
                return []
            case Finish(commit):
                self.decided[one] = commit
                if self._rng.random() < 0.5:
                    value = encode_commit(commit)
                    self.store.put(Post(publisher=one, subkey=COMMIT, value=value, envelope=b"commit" + one))
                return []

    def _crashes_now(self) -> bool:
        if not self._crashes_left or self.store.is_calm or self._rng.random() < 0.6:
            return False
        self._crashes_left -= 1
        return True

    def _go_down(self, one: PeerId) -> None:
        member = self.good[one]
        member.is_up = False
        if not self._keeps_journal:
            member.journal = {}

        def come_back() -> None:
            member.is_up = True
            member.deliberation = self._deliberation(one, member.journal)
            self._step(one)

        self._at(self._rng.randrange(CALM_US // 4), come_back)

    def _lie(self, liar: PeerId) -> None:
        """Vote for this and that, and propose it, in the views where members are."""
        posts = self.store.everything()
        views = [int.from_bytes(post.subkey[1:5], "big") for post in posts if len(post.subkey) >= 5] or [0]
        for view in {self._rng.choice(views), max(views) + self._rng.choice((0, 1))}:
            outcome = self._rng.choice(OFFERED)
            if self.members.proposer(ROUND, view) == liar:
                self.store.put(post_of(Proposal(member=liar, round_number=ROUND, view=view, outcome=outcome)))
            for phase in (Phase.PREVOTE, Phase.PRECOMMIT):
                digest = self._rng.choice((outcome.digest, outcome.digest, NIL))
                vote = Vote(member=liar, round_number=ROUND, view=view, phase=phase, digest=digest)
                self.store.put(post_of(vote))
        garbage = self._rng.randbytes(self._rng.randrange(40))
        for subkey in (TERMS, COMMIT, b"\x00" + bytes(4) + garbage, garbage):
            self.store.put(Post(publisher=liar, subkey=subkey, value=garbage, envelope=self._rng.randbytes(8)))
        self._at(self._rng.randrange(100_000, 300_000), lambda: self._lie(liar))


FAULTS: dict[str, dict[str, int]] = {
    "all are good": {},
    "one is alone": {"count": 1},
    "one of four is silent": {"silent": 1},
    "members crash and come back": {"crashes": 6},
    "one of four lies": {"liars": 1},
    "one of four lies, the others crash and come back": {"liars": 1, "crashes": 6},
    "of seven one lies and one is silent": {"count": 7, "liars": 1, "silent": 1},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_members_agree_and_all_decide_once_the_store_is_reliable(fault: str) -> None:
    for seed in SEEDS:
        schedule = Schedule(seed, **FAULTS[fault])  # type: ignore[arg-type]
        schedule.run()
        schedule.check_safe()
        schedule.check_live()


def test_without_a_journal_some_member_that_crashed_contradicts_itself() -> None:
    def contradicts_itself(seed: int) -> bool:
        schedule = Schedule(seed, crashes=8, keeps_journal=False)
        schedule.run()
        return bool(schedule.equivocators())

    assert any(contradicts_itself(seed) for seed in SEEDS)


def test_who_lies_is_found_out_and_nobody_else() -> None:
    found_out = 0
    for seed in SEEDS:
        schedule = Schedule(seed, liars=1)
        schedule.run()
        for member in schedule.good.values():
            accused = [one.first.statement.member for one in member.deliberation.equivocations]
            assert accused in ([], schedule.liars)
            found_out += len(accused)
    assert found_out > len(SEEDS)


def test_while_a_third_is_silent_nothing_is_decided() -> None:
    schedule = Schedule(0, count=6, silent=2)
    schedule.run()
    assert not schedule.decided
