"""Agreement under whatever a seed can think of: never two outcomes, and always one in the end."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import pytest

from prime_dht.ids import PeerId
from prime_dht.ml.agreement import (
    NIL,
    Accuse,
    Action,
    Agreement,
    Broadcast,
    Check,
    Decide,
    Members,
    Phase,
    Proposal,
    ScheduleTimeout,
    Signed,
    Statement,
    Timeout,
    Vote,
)
from prime_dht.ml.agreement.heard import WINDOW
from prime_dht.testing.agreement import (
    ROUND,
    TIMEOUTS,
    Swarm,
    is_valid,
    member_named,
    outcome_named,
    sign,
    verify,
)

VALID = (outcome_named(b"x"), outcome_named(b"y"))
INVALID = outcome_named(b"z", valid=False)
SEEDS = range(48)
STEPS = 500


class Unlocked(Agreement):
    """What goes wrong without the lock."""

    def _may_prevote(self, proposal: Proposal) -> bool:
        return True


class Trusting(Agreement):
    """What goes wrong if a proposal is not checked."""

    def checked(self, outcome: object, valid: bool, now_us: int) -> list[Action]:
        return super().checked(outcome, True, now_us)  # type: ignore[arg-type]


class Majority(Members):
    """What goes wrong if half of the members are a quorum."""

    def is_quorum(self, members: Iterable[PeerId]) -> bool:
        return 2 * len(list(members)) >= len(self)


class Plot:
    """Three good members and a liar who controls the network and the clock, as a seed moves it.

    Any statement arrives, again and again, or never; any timeout fires at once; the liar tells each member whatever may
    help it. Nobody is told the outcome, so each must find it.
    """

    def __init__(self, seed: int, machine: type[Agreement] = Agreement, members: type[Members] = Members) -> None:
        self.rng = Random(seed)
        names = [member_named(i) for i in range(4)]
        self.liar = names[seed % 4]
        self.members = members.equal(names)
        self.outcomes = [*VALID, INVALID]
        self.pending: list[tuple[PeerId, Signed[Statement]]] = []
        self.decided: set[bytes] = set()
        self.good = {
            one: machine(
                member=one,
                members=self.members,
                round_number=ROUND,
                outcome=self.rng.choice(VALID),
                timeouts=TIMEOUTS,
                verify=verify,
            )
            for one in names
            if one != self.liar
        }
        for one, good in self.good.items():
            self.act(one, good.start(0))

    def run(self, steps: int) -> set[bytes]:
        """The digests that good members decide."""
        for _ in range(steps):
            one = self.rng.choice(list(self.good))
            match self.rng.choices(("deliver", "time out", "lie"), (12, 4, 20))[0]:
                case "deliver" if self.pending:
                    to, signed = self.pending.pop(self.rng.randrange(len(self.pending)))
                    self.act(to, self.good[to].receive(signed, 0))
                case "time out":
                    good = self.good[one]
                    self.act(one, good.time_out(Timeout(good.view, self.rng.choice(list(Phase))), 0))
                case _:
                    self.lie_to(one)
        return self.decided

    def lie_to(self, one: PeerId) -> None:
        view = self.good[one].view + self.rng.choice((0, 0, 0, 1))
        outcome = self.rng.choice(self.outcomes)
        statement: Statement
        if self.members.proposer(ROUND, view) == self.liar and self.rng.random() < 0.3:
            statement = Proposal(member=self.liar, round_number=ROUND, view=view, outcome=outcome)
        else:
            phase = self.rng.choice((Phase.PREVOTE, Phase.PRECOMMIT))
            digest = self.rng.choice((outcome.digest, outcome.digest, NIL))
            statement = Vote(member=self.liar, round_number=ROUND, view=view, phase=phase, digest=digest)
        self.act(one, self.good[one].receive(Signed(statement, sign(statement)), 0))

    def act(self, one: PeerId, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Broadcast(statement):
                    signed = Signed(statement, sign(statement))
                    self.pending += [(other, signed) for other in self.good if other != one]
                    self.act(one, self.good[one].receive(signed, 0))
                case Check(outcome):
                    self.act(one, self.good[one].checked(outcome, is_valid(outcome), 0))
                case Decide(commit):
                    commit.check(ROUND, self.members, verify)
                    self.decided.add(commit.outcome.digest)
                case ScheduleTimeout() | Accuse():
                    pass


def decided_in(seed: int, machine: type[Agreement] = Agreement, members: type[Members] = Members) -> set[bytes]:
    return Plot(seed, machine, members).run(STEPS)


def test_no_schedule_and_no_liar_makes_members_disagree() -> None:
    decided = [decided_in(seed) for seed in SEEDS]
    assert all(len(digests) <= 1 for digests in decided)
    assert not any(INVALID.digest in digests for digests in decided)
    assert {VALID[0].digest} in decided
    assert {VALID[1].digest} in decided


def test_without_the_lock_some_schedule_makes_members_disagree() -> None:
    assert any(len(decided_in(seed, machine=Unlocked)) > 1 for seed in SEEDS)


def test_with_half_of_the_members_as_a_quorum_some_schedule_makes_members_disagree() -> None:
    assert any(len(decided_in(seed, members=Majority)) > 1 for seed in SEEDS)


def test_without_checks_some_schedule_decides_an_invalid_outcome() -> None:
    assert any(INVALID.digest in decided_in(seed, machine=Trusting) for seed in SEEDS)


FAULTS: dict[str, dict[str, object]] = {
    "all are good": {"weights": [1] * 4},
    "one is alone": {"weights": [1]},
    "one of four lies": {"weights": [1] * 4, "liars": [0]},
    "one of four is silent, the others crash and restart": {"weights": [1] * 4, "silent": [2], "crashes": 5},
    "one of five lies, the others crash and restart": {"weights": [1] * 5, "liars": [4], "crashes": 5},
    "of seven one lies and one is silent": {"weights": [1] * 7, "liars": [3], "silent": [5]},
    "two of seven lie": {"weights": [1] * 7, "liars": [1, 4]},
    "the heaviest of five lies": {"weights": [3, 2, 2, 2, 1], "liars": [0]},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_members_agree_and_all_decide_once_statements_arrive_in_time(fault: str) -> None:
    for seed in range(6):
        swarm = Swarm(seed, **FAULTS[fault])  # type: ignore[arg-type]
        swarm.run()
        swarm.check_safe()
        swarm.check_live()
        n = len(swarm.members)
        assert swarm.most_held <= (2 * WINDOW + 1) * (2 + 2 * 5 * n)


def test_who_lies_is_found_out() -> None:
    accused = set()
    for seed in range(6):
        swarm = Swarm(seed, weights=[1] * 4, liars=[0])
        swarm.run()
        accused |= swarm.accused
    assert accused == {member_named(0)}


def test_while_a_third_is_silent_nothing_is_decided() -> None:
    swarm = Swarm(0, weights=[1] * 6, silent=[0, 1])
    swarm.run()
    assert not swarm.decided


def test_a_seed_gives_the_same_history_again() -> None:
    def history(seed: int) -> tuple[int, dict[PeerId, bytes]]:
        swarm = Swarm(seed, weights=[1] * 4, liars=[1], crashes=2)
        swarm.run()
        return swarm.now_us, {one: commit.outcome.digest for one, commit in swarm.decided.items()}

    assert history(5) == history(5)
    assert history(5) != history(6)
