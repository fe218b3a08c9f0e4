"""Agreement, step by step: what each rule of the algorithm does, and what would happen without it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId
from prime_dht.ml.agreement import (
    NIL,
    Accuse,
    Action,
    Agreement,
    Backed,
    Broadcast,
    Certificate,
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
    Timeout,
    Timeouts,
    Vote,
)
from prime_dht.ml.agreement.heard import WINDOW
from prime_dht.testing.agreement import ROUND, member_named, outcome_named, sign, verify

A, B, C, D = (member_named(i) for i in range(4))
MEMBERS = Members.equal([A, B, C, D])
TIMEOUTS = Timeouts(propose_us=300, vote_us=100, growth_us=10)
X, Y = outcome_named(b"x"), outcome_named(b"y")
PREVOTE, PRECOMMIT = Phase.PREVOTE, Phase.PRECOMMIT
TURN = [MEMBERS.proposer(ROUND, view) for view in range(4)]  # D proposes in view 0, A in view 1, B in view 2


def signed(statement: Statement) -> Signed[Statement]:
    return Signed(statement, sign(statement))


def vote(member: PeerId, view: int, phase: Phase, digest: bytes) -> Signed[Statement]:
    return signed(Vote(member=member, round_number=ROUND, view=view, phase=phase, digest=digest))


def proposal(view: int, outcome: Outcome, polka: Certificate | None = None) -> Signed[Statement]:
    return signed(
        Proposal(member=MEMBERS.proposer(ROUND, view), round_number=ROUND, view=view, outcome=outcome, polka=polka)
    )


def certificate(view: int, phase: Phase, outcome: Outcome, voters: Iterable[PeerId] = (A, B, C)) -> Certificate:
    proofs = tuple((voter, vote(voter, view, phase, outcome.digest).proof) for voter in sorted(voters))
    return Certificate(round_number=ROUND, view=view, phase=phase, digest=outcome.digest, proofs=proofs)


class Driver:
    """A machine, and the driver that signs what it says and checks what it asks; time stands still."""

    def __init__(
        self,
        member: PeerId,
        *,
        outcome: Outcome | None = None,
        said: Iterable[Signed[Statement]] = (),
        backed: Backed | None = None,
        machine: type[Agreement] = Agreement,
    ) -> None:
        self.said = list(said)
        self.timeouts: list[ScheduleTimeout] = []
        self.accused: list[PeerId] = []
        self.machine = machine(
            member=member,
            members=MEMBERS,
            round_number=ROUND,
            outcome=outcome,
            timeouts=TIMEOUTS,
            verify=verify,
            said=self.said,
            backed=backed,
        )
        self._act(self.machine.start(0))

    def hear(self, *heard: Signed[Statement]) -> Driver:
        for one in heard:
            self._act(self.machine.receive(one, 0))
        return self

    def time_out(self, view: int, phase: Phase) -> Driver:
        self._act(self.machine.time_out(Timeout(view, phase), 0))
        return self

    def votes(self) -> list[tuple[int, Phase, bytes]]:
        return [(one.statement.view, one.statement.phase, one.statement.digest) for one in self.said]

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Broadcast(statement):
                    self.said.append(signed(statement))
                    self.hear(self.said[-1])
                case Check(outcome):
                    self._act(self.machine.checked(outcome, True, 0))
                case ScheduleTimeout():
                    self.timeouts.append(action)
                case Accuse(equivocation):
                    self.accused.append(equivocation.first.statement.member)
                case Decide():
                    pass


class Unlocked(Agreement):
    """What goes wrong without the lock."""

    def _may_prevote(self, proposal: Proposal) -> bool:
        return True


class Yielding(Agreement):
    """What goes wrong if a lock gives way to any polka."""

    def _may_prevote(self, proposal: Proposal) -> bool:
        return proposal.polka is not None or super()._may_prevote(proposal)


def test_who_proposes_takes_turns() -> None:
    assert TURN == [D, A, B, C]
    assert Driver(D, outcome=X).votes() == [(0, Phase.PROPOSE, X.digest), (0, PREVOTE, X.digest)]
    assert Driver(A, outcome=X).votes() == []


def test_when_all_is_well_one_view_decides() -> None:
    a = Driver(A, outcome=Y).hear(proposal(0, X))
    assert a.votes() == [(0, PREVOTE, X.digest)]
    a.hear(vote(B, 0, PREVOTE, X.digest), vote(D, 0, PREVOTE, X.digest))
    assert a.votes()[1:] == [(0, PRECOMMIT, X.digest)]
    a.hear(vote(C, 0, PRECOMMIT, X.digest), vote(D, 0, PRECOMMIT, X.digest))
    commit = a.machine.decided
    assert commit is not None
    assert commit.outcome == X
    assert [member for member, _ in commit.certificate.proofs] == [A, C, D]
    commit.check(ROUND, MEMBERS, verify)


def test_votes_may_come_before_the_proposal() -> None:
    a = Driver(A).hear(*(vote(one, 0, phase, X.digest) for phase in (PREVOTE, PRECOMMIT) for one in (B, C, D)))
    assert a.machine.decided is None
    a.hear(proposal(0, X))
    assert a.machine.decided is not None


def test_an_invalid_proposal_gets_a_vote_for_none_and_an_unchecked_one_no_vote() -> None:
    machine = Agreement(member=A, members=MEMBERS, round_number=ROUND, outcome=None, timeouts=TIMEOUTS, verify=verify)
    machine.start(0)
    assert machine.receive(proposal(0, X), 5) == [Check(X)]
    assert machine.receive(vote(B, 0, PREVOTE, X.digest), 5) == []
    assert machine.checked(X, False, 6) == [
        Broadcast(Vote(member=A, round_number=ROUND, view=0, phase=PREVOTE, digest=NIL))
    ]


def test_timeouts_grow_with_the_view_and_lead_to_the_next() -> None:
    a = Driver(A, outcome=Y)
    assert a.timeouts == [ScheduleTimeout(Timeout(0, Phase.PROPOSE), 300)]
    a.time_out(0, Phase.PROPOSE)
    assert a.votes() == [(0, PREVOTE, NIL)]
    a.hear(vote(B, 0, PREVOTE, X.digest), vote(C, 0, PREVOTE, NIL))
    assert a.timeouts[1:] == [ScheduleTimeout(Timeout(0, PREVOTE), 100)]
    a.time_out(0, PREVOTE)
    assert a.votes()[1:] == [(0, PRECOMMIT, NIL)]
    a.hear(vote(B, 0, PRECOMMIT, NIL), vote(C, 0, PRECOMMIT, NIL))
    assert a.timeouts[2:] == [ScheduleTimeout(Timeout(0, PRECOMMIT), 100)]
    a.time_out(0, PRECOMMIT)
    assert a.votes()[2:] == [(1, Phase.PROPOSE, Y.digest), (1, PREVOTE, Y.digest)]
    assert a.timeouts[3:] == [ScheduleTimeout(Timeout(1, Phase.PROPOSE), 310)]


def test_a_timeout_of_what_is_past_does_nothing() -> None:
    a = Driver(A).hear(proposal(0, X))
    a.time_out(0, Phase.PROPOSE)
    a.time_out(3, PRECOMMIT)
    assert a.votes() == [(0, PREVOTE, X.digest)]
    assert a.machine.view == 0


def test_a_quorum_for_none_ends_the_view_without_waiting() -> None:
    a = Driver(A).hear(proposal(0, X), *(vote(one, 0, PREVOTE, NIL) for one in (B, C, D)))
    assert a.votes() == [(0, PREVOTE, X.digest), (0, PRECOMMIT, NIL)]


def test_a_third_that_is_further_pulls_the_others_after_it_and_less_does_not() -> None:
    a = Driver(A).hear(vote(B, 9, PREVOTE, NIL))
    assert a.machine.view == 0
    a.hear(vote(C, 5, PREVOTE, NIL))
    assert a.machine.view == 5


def locked_on_x(machine: type[Agreement] = Agreement) -> Driver:
    """B, after it precommitted X in view 0 without seeing others do so."""
    b = Driver(B, machine=machine)
    b.hear(proposal(0, X), vote(A, 0, PREVOTE, X.digest), vote(D, 0, PREVOTE, X.digest))
    b.hear(vote(C, 0, PRECOMMIT, NIL), vote(D, 0, PRECOMMIT, NIL)).time_out(0, PRECOMMIT)
    assert (0, PRECOMMIT, X.digest) in b.votes()
    assert b.machine.view == 1
    return b


def test_whoever_is_locked_votes_for_nothing_else() -> None:
    b = locked_on_x().hear(proposal(1, Y))
    assert b.votes()[-1] == (1, PREVOTE, NIL)


def test_whoever_is_locked_votes_for_the_same_again() -> None:
    b = locked_on_x().hear(proposal(1, X))
    assert b.votes()[-1] == (1, PREVOTE, X.digest)


def test_a_later_polka_opens_the_lock() -> None:
    b = locked_on_x().time_out(1, Phase.PROPOSE)
    b.hear(vote(C, 3, PREVOTE, NIL), vote(D, 3, PREVOTE, NIL))
    assert b.hear(proposal(3, Y, certificate(2, PREVOTE, Y))).votes()[-1] == (3, PREVOTE, Y.digest)


def vote_when_locked_later_than_a_polka(machine: type[Agreement]) -> bytes:
    """What B prevotes in view 4, locked on X in view 3, when Y is proposed with a polka of view 2."""
    b = locked_on_x(machine).hear(vote(C, 3, PREVOTE, NIL), vote(D, 3, PREVOTE, NIL))
    b.hear(proposal(3, X), vote(A, 3, PREVOTE, X.digest), vote(D, 3, PREVOTE, X.digest))
    b.hear(vote(C, 4, PREVOTE, NIL), vote(A, 4, PREVOTE, NIL), proposal(4, Y, certificate(2, PREVOTE, Y)))
    return next(digest for view, phase, digest in b.votes() if (view, phase) == (4, PREVOTE))


def test_an_earlier_polka_does_not_open_the_lock() -> None:
    assert vote_when_locked_later_than_a_polka(Agreement) == NIL
    assert vote_when_locked_later_than_a_polka(Yielding) == Y.digest


def test_whoever_saw_a_polka_proposes_its_outcome_and_shows_it() -> None:
    b = Driver(B, outcome=Y).hear(proposal(0, X), vote(A, 0, PREVOTE, X.digest), vote(D, 0, PREVOTE, X.digest))
    b.hear(vote(A, 2, PREVOTE, NIL), vote(C, 2, PREVOTE, NIL))
    made = next(one.statement for one in b.said if one.statement.view == 2)
    assert isinstance(made, Proposal)
    assert made.outcome == X
    assert made.polka == certificate(0, PREVOTE, X, (A, B, D))


def outcomes_of_a_plot(machine: type[Agreement], *, crashes: bool = False, remembers: bool = True) -> list[bytes]:
    """The digests that good members decide, A, B and C, when D lies and the network helps it.

    In view 0 D proposes X. A and B see all votes for it and lock, C does not. D precommits X, and shows that, and what
    B precommitted, to A alone: A decides X. Perhaps B crashes now. Then D proposes Y in view 4, and votes for it.
    """
    a, b, c = Driver(A, machine=machine), Driver(B, machine=machine), Driver(C, machine=machine)
    prevotes = [vote(one, 0, PREVOTE, X.digest) for one in (A, B, D)]
    a.hear(proposal(0, X), *prevotes, vote(B, 0, PRECOMMIT, X.digest), vote(D, 0, PRECOMMIT, X.digest))
    b.hear(proposal(0, X), *prevotes)
    if crashes:
        b = Driver(B, machine=machine, said=b.said if remembers else ())
    for one, other in ((b, C), (c, B)):
        one.hear(vote(D, 4, PREVOTE, Y.digest), vote(other, 4, PREVOTE, NIL), proposal(4, Y))
    for phase in (PREVOTE, PRECOMMIT):
        for one, other_said in ((b, list(c.said)), (c, list(b.said))):
            one.hear(vote(D, 4, phase, Y.digest), *(said for said in other_said if said.statement.view == 4))
    decided = [driver.machine.decided for driver in (a, b, c)]
    return sorted({commit.outcome.digest for commit in decided if commit is not None})


def test_no_plot_makes_members_disagree_and_without_the_lock_it_does() -> None:
    assert outcomes_of_a_plot(Agreement) == [X.digest]
    assert outcomes_of_a_plot(Unlocked) == sorted([X.digest, Y.digest])


def test_after_a_crash_a_member_is_locked_as_before_and_if_it_forgot_members_disagree() -> None:
    assert outcomes_of_a_plot(Agreement, crashes=True) == [X.digest]
    assert outcomes_of_a_plot(Agreement, crashes=True, remembers=False) == sorted([X.digest, Y.digest])


def test_after_a_crash_a_locked_member_can_still_show_others_why() -> None:
    before = Driver(A).hear(proposal(0, X), vote(B, 0, PREVOTE, X.digest), vote(C, 0, PREVOTE, X.digest)).machine
    assert before.backed == Backed(X, certificate(0, PREVOTE, X))
    locked = [vote(A, 0, PRECOMMIT, X.digest)]
    others = [vote(member, 1, PREVOTE, NIL) for member in (B, C)]
    assert Driver(A, outcome=Y, said=locked).hear(*others).said[1] == proposal(1, Y)
    backed = Driver(A, outcome=Y, said=locked, backed=before.backed).hear(*others)
    assert backed.said[1] == proposal(1, X, certificate(0, PREVOTE, X))


def test_what_a_member_is_said_to_be_backed_by_has_to_be_proved() -> None:
    for wrong in (certificate(0, PREVOTE, Y), certificate(0, PRECOMMIT, X), certificate(0, PREVOTE, X, (A, B))):
        with pytest.raises(ValidationError, match=r"polka|two thirds"):
            Driver(A, backed=Backed(X, wrong))


@pytest.mark.parametrize(
    ("said", "match"),
    [
        (vote(B, 0, PREVOTE, X.digest), "itself"),
        (signed(Vote(member=A, round_number=ROUND + 1, view=0, phase=PREVOTE, digest=X.digest)), "of round"),
        (Signed(vote(A, 0, PREVOTE, X.digest).statement, b"forged"), "did not sign"),
    ],
)
def test_a_member_goes_on_only_from_what_it_said_and_signed_itself_in_this_round(
    said: Signed[Statement], match: str
) -> None:
    with pytest.raises(ValidationError, match=match):
        Driver(A, said=[said])


def test_of_a_proposer_that_proposes_this_and_that_no_more_is_checked_than_is_held() -> None:
    checked: list[Statement] = []

    def counting(statement: Statement, proof: bytes) -> bool:
        checked.append(statement)
        return verify(statement, proof)

    machine = Agreement(member=A, members=MEMBERS, round_number=ROUND, outcome=None, timeouts=TIMEOUTS, verify=counting)
    machine.start(0)
    for number in range(20):
        machine.receive(proposal(0, outcome_named(b"%d" % number)), 0)
    assert len(checked) == 2
    assert [one.first.statement.member for one in machine.equivocations] == [TURN[0]]


def test_what_is_proposed_can_change_until_it_is_its_turn() -> None:
    driver = Driver(A, outcome=X)
    driver.machine.propose(Y)
    assert driver.hear(*[vote(member, 1, PREVOTE, NIL) for member in (B, C)]).said[0] == proposal(1, Y)
    with pytest.raises(ValidationError, match=f"round 0, not of {ROUND}"):
        driver.machine.propose(Outcome(round_number=0, op_ids=(), aggregate=b"cid"))


def test_after_a_crash_a_member_says_nothing_twice() -> None:
    d = Driver(D, outcome=X)
    assert d.votes() == [(0, Phase.PROPOSE, X.digest), (0, PREVOTE, X.digest)]
    for count in (1, 2):
        again = Driver(D, outcome=Y, said=d.said[:count])
        assert again.votes() == d.votes()
    again.hear(vote(A, 0, PREVOTE, X.digest), vote(B, 0, PREVOTE, X.digest))
    assert again.votes()[2:] == [(0, PRECOMMIT, X.digest)]
    last = Driver(D, outcome=Y, said=again.said)
    last.hear(vote(A, 0, PREVOTE, NIL), vote(B, 0, PREVOTE, NIL), vote(C, 0, PREVOTE, NIL))
    assert last.votes() == again.votes()


def test_a_commit_is_taken_from_anyone_who_can_prove_it() -> None:
    a = Driver(A)
    commit = Commit(outcome=X, certificate=certificate(3, PRECOMMIT, X, (B, C, D)))
    assert a.machine.learn(commit) == [Decide(commit)]
    assert a.machine.learn(commit) == []
    assert a.machine.receive(vote(B, 0, PREVOTE, NIL), 0) == []


UNPROVED = {
    "too few": (certificate(0, PRECOMMIT, X, (A, B)), "no more than two thirds"),
    "prevotes": (certificate(0, PREVOTE, X), "not of precommits for this outcome"),
    "another outcome": (certificate(0, PRECOMMIT, Y), "not of precommits for this outcome"),
    "a stranger": (certificate(0, PRECOMMIT, X, (A, B, C, member_named(9))), "somebody who is no member"),
    "one of them twice": (
        Certificate(
            round_number=ROUND, view=0, phase=PRECOMMIT, digest=X.digest,
            proofs=((A, vote(A, 0, PRECOMMIT, X.digest).proof),) * 3,
        ),
        "one of each",
    ),
    "another view": (
        Certificate(
            round_number=ROUND, view=1, phase=PRECOMMIT, digest=X.digest,
            proofs=certificate(0, PRECOMMIT, X).proofs,
        ),
        "was not signed",
    ),
    "a proof that swells": (
        Certificate(
            round_number=ROUND, view=0, phase=PRECOMMIT, digest=X.digest,
            proofs=((A, bytes(4096)), (B, b""), (C, b"")),
        ),
        "was not signed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", UNPROVED)
def test_a_commit_that_is_not_proved_is_refused(what: str) -> None:
    unproved, complaint = UNPROVED[what]
    with pytest.raises(ValidationError, match=complaint):
        Driver(A).machine.learn(Commit(outcome=X, certificate=unproved))


def test_the_outcome_of_another_round_is_refused() -> None:
    other = Outcome(round_number=ROUND + 1, op_ids=X.op_ids, aggregate=X.aggregate)
    assert other.digest != X.digest
    with pytest.raises(ValidationError, match=f"the outcome of round {ROUND + 1}"):
        Driver(A).machine.learn(Commit(outcome=other, certificate=certificate(0, PRECOMMIT, other)))
    with pytest.raises(ValidationError, match=f"that of round {ROUND + 1}"):
        Driver(A, outcome=other)


REFUSED: dict[str, tuple[Signed[Statement], str]] = {
    "a stranger": (vote(member_named(9), 0, PREVOTE, NIL), "no member"),
    "another round": (
        signed(Vote(member=B, round_number=ROUND + 1, view=0, phase=PREVOTE, digest=NIL)),
        f"of round {ROUND + 1}",
    ),
    "a forgery": (
        Signed(Vote(member=B, round_number=ROUND, view=0, phase=PREVOTE, digest=NIL), vote(C, 0, PREVOTE, NIL).proof),
        "did not sign",
    ),
    "not its turn": (signed(Proposal(member=B, round_number=ROUND, view=0, outcome=X)), "not its turn"),
    "the outcome of another round": (
        proposal(0, Outcome(round_number=ROUND + 1, op_ids=X.op_ids, aggregate=X.aggregate)),
        "outcome of another round",
    ),
    "a polka for something else": (proposal(1, X, certificate(0, PREVOTE, Y)), "not of prevotes for its outcome"),
    "a polka of precommits": (proposal(1, X, certificate(0, PRECOMMIT, X)), "not of prevotes for its outcome"),
    "a polka of no earlier view": (proposal(1, X, certificate(1, PREVOTE, X)), "of an earlier view"),
    "a polka of too few": (proposal(1, X, certificate(0, PREVOTE, X, (A, B))), "no more than two thirds"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_member_of_this_round_can_say_is_refused(what: str) -> None:
    statement, complaint = REFUSED[what]
    a = Driver(A)
    with pytest.raises(ValidationError, match=complaint):
        a.machine.receive(statement, 0)
    assert a.machine.held == 0


@pytest.mark.parametrize(("phase", "size"), [(Phase.PROPOSE, 32), (Phase.PROPOSE, 0), (PREVOTE, 31), (PRECOMMIT, 33)])
def test_a_vote_is_a_prevote_or_a_precommit_of_a_whole_digest_or_of_none(phase: Phase, size: int) -> None:
    with pytest.raises(ValidationError, match="a vote is a prevote or a precommit"):
        Vote(member=A, round_number=ROUND, view=0, phase=phase, digest=bytes(size))


def test_whoever_says_two_things_is_accused_once_with_the_proof() -> None:
    first, second, third = (vote(B, 0, PREVOTE, digest) for digest in (X.digest, Y.digest, NIL))
    a = Driver(A).hear(first, first, second, third)
    assert a.accused == [B]
    (proof,) = a.machine.equivocations
    assert (proof.first, proof.second) == (first, second)
    assert Driver(A).hear(proposal(0, X), proposal(0, Y)).accused == [D]


def test_what_bad_members_say_takes_bounded_room_and_crowds_out_nobody() -> None:
    a = Driver(A)
    for view in range(200):
        for number in range(20):
            made_up = outcome_named(b"%d" % number)
            a.hear(*(vote(D, view, phase, made_up.digest) for phase in (PREVOTE, PRECOMMIT)))
            if MEMBERS.proposer(ROUND, view) == D:
                a.hear(proposal(view, made_up))
    # Of each view in the window two votes in each phase; where D proposes also two proposals, and two votes more.
    assert a.machine.held <= (WINDOW + 1) * 2 * 2 + 3 * (2 + 2 * 2) + 1
    assert a.machine.view == 0
    # B and C are heard as if D were silent, and D's vote for what was proposed counts, whatever else it said.
    late = Driver(A).hear(*(vote(D, 0, PREVOTE, outcome_named(b"%d" % number).digest) for number in range(9)))
    late.hear(proposal(0, X), vote(B, 0, PREVOTE, X.digest), vote(D, 0, PREVOTE, X.digest))
    assert late.votes()[-1] == (0, PRECOMMIT, X.digest)


def test_views_long_gone_are_forgotten() -> None:
    a = Driver(A)
    for view in range(100):
        if MEMBERS.proposer(ROUND, view) != A:
            a.hear(proposal(view, X))
        a.hear(*(vote(one, view, phase, NIL) for phase in (PREVOTE, PRECOMMIT) for one in (B, C)))
    assert a.machine.view == 99
    assert a.machine.held <= (WINDOW + 1) * (1 + 2 * 3)


def test_weights_count_instead_of_heads() -> None:
    members = Members({A: 5, B: 1, C: 1, D: 1})
    assert not members.is_quorum([A])
    assert members.is_quorum([A, B])
    assert members.is_third([A])
    assert not members.is_third([B, C])
    three = Members.equal([A, B, C])
    assert three.is_third([A])
    assert not three.is_quorum([A, B])


@pytest.mark.parametrize("weights", [{}, {A: 0}, {A: True}, {A: -1, B: 3}])
def test_weights_without_sense_are_refused(weights: dict[PeerId, int]) -> None:
    with pytest.raises(ValidationError):
        Members(weights)
