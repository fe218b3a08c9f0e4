"""One member's part in a round, step by step."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from prime_dht.errors import ConfigError, ValidationError
from prime_dht.ids import PeerId
from prime_dht.ml.aggregation import CenteredClipping, CoordinateMedian, FederatedAverage, Rule
from prime_dht.ml.agreement import (
    NIL,
    Backed,
    Certificate,
    Commit,
    Members,
    Outcome,
    Phase,
    Proposal,
    Statement,
    Vote,
    encode_commit,
    encode_proposal,
    subkey_of,
)
from prime_dht.ml.agreement.heard import WINDOW
from prime_dht.ml.rounds.deliberation import Action, Deliberation, Examine, Finish, Refresh, Say
from prime_dht.ml.rounds.posts import COMMIT, TERMS, Post, statement_of
from prime_dht.ml.rounds.terms import Terms
from prime_dht.testing.agreement import ROUND, TIMEOUTS, member_named, outcome_named, sign, verify

MEMBERS = Members.equal(map(member_named, range(4)))
PROPOSER, SECOND, THIRD, FOURTH = (MEMBERS.proposer(ROUND, view) for view in range(4))
VOTES = (Phase.PREVOTE, Phase.PRECOMMIT)
X, Y = outcome_named(b"x"), outcome_named(b"y")


def terms(*, rule: Rule = CoordinateMedian(), bad: int = 1) -> Terms:  # noqa: B008 - frozen
    return Terms(members=MEMBERS, rule=rule, bad=bad, spec={})


def deliberation_of(member: PeerId, *, noted: dict[bytes, bytes] | None = None) -> Deliberation:
    return Deliberation(
        member=member, terms=terms(), round_number=ROUND, timeouts=TIMEOUTS, verify=verify, noted=noted or {}
    )


def vote(member: PeerId, phase: Phase, digest: bytes, view: int = 0) -> Vote:
    return Vote(member=member, round_number=ROUND, view=view, phase=phase, digest=digest)


def proposal(outcome: Outcome, view: int = 0, polka: Certificate | None = None) -> Proposal:
    member = MEMBERS.proposer(ROUND, view)
    return Proposal(member=member, round_number=ROUND, view=view, outcome=outcome, polka=polka)


def certificate(phase: Phase, outcome: Outcome, voters: Iterable[PeerId], view: int = 0) -> Certificate:
    proofs = tuple((voter, sign(vote(voter, phase, outcome.digest, view))) for voter in sorted(voters))
    return Certificate(round_number=ROUND, view=view, phase=phase, digest=outcome.digest, proofs=proofs)


def post(statement: Statement, *, value: bytes | None = b"") -> Post:
    if isinstance(statement, Proposal) and value is not None:
        value = encode_proposal(statement)
    return Post(publisher=statement.member, subkey=subkey_of(statement), value=value, envelope=sign(statement))


def told(member: PeerId, subkey: bytes, value: bytes) -> Post:
    return Post(publisher=member, subkey=subkey, value=value, envelope=member + subkey + value[:8])


def said(actions: Iterable[Action]) -> list[Statement]:
    return [action.statement for action in actions if isinstance(action, Say)]


def test_a_statement_that_is_not_read_is_said_again_until_it_is() -> None:
    deliberation = deliberation_of(PROPOSER)
    deliberation.propose(X)
    assert said(deliberation.hear([], 0)) == [proposal(X)]
    assert said(deliberation.hear([], 1)) == [proposal(X)]
    assert said(deliberation.hear([post(proposal(X))], 2)) == [vote(PROPOSER, Phase.PREVOTE, X.digest)]


def test_an_own_vote_counts_when_it_is_read_and_not_before() -> None:
    deliberation = deliberation_of(PROPOSER)
    deliberation.propose(X)
    others = [vote(member, Phase.PREVOTE, X.digest) for member in (SECOND, THIRD)]
    read = [post(proposal(X)), *map(post, others)]
    deliberation.hear([], 0)
    assert said(deliberation.hear(read, 1)) == [vote(PROPOSER, Phase.PREVOTE, X.digest)]
    own = post(vote(PROPOSER, Phase.PREVOTE, X.digest))
    assert said(deliberation.hear([*read, own], 2)) == [vote(PROPOSER, Phase.PRECOMMIT, X.digest)]


def test_nothing_is_said_after_a_crash_until_all_that_was_noted_is_read() -> None:
    mine = vote(SECOND, Phase.PREVOTE, X.digest)
    deliberation = deliberation_of(SECOND, noted={subkey_of(mine): b""})
    assert deliberation.hear([post(proposal(Y))], 0) == [Say(mine, b"")]
    assert deliberation.tick(10**12) == []
    actions = deliberation.hear([post(proposal(Y)), post(mine)], 1)
    assert [action.outcome for action in actions if isinstance(action, Examine)] == [Y]
    assert said(deliberation.examined(Y, True, 2)) == []


def test_what_was_read_of_an_own_vote_binds_although_its_note_was_lost() -> None:
    deliberation = deliberation_of(SECOND)
    mine = vote(SECOND, Phase.PREVOTE, X.digest)
    deliberation.hear([post(mine), post(proposal(Y))], 0)
    assert said(deliberation.examined(Y, True, 1)) == []


def test_nothing_is_said_while_an_own_statement_cannot_be_read_whole() -> None:
    deliberation = deliberation_of(PROPOSER)
    deliberation.propose(Y)
    assert deliberation.hear([post(proposal(X), value=None)], 0) == []
    assert deliberation.hear([post(proposal(X))], 1) == [Examine(X, TIMEOUTS.propose_us // 2)]


def test_an_own_proposal_whose_value_nobody_has_is_put_again() -> None:
    deliberation = deliberation_of(PROPOSER)
    deliberation.propose(X)
    deliberation.hear([], 0)
    assert said(deliberation.hear([post(proposal(X), value=None)], 1)) == [proposal(X)]


def test_with_a_vote_that_locks_it_is_noted_what_backs_it_so_that_it_can_be_proposed_after_a_crash() -> None:
    deliberation = deliberation_of(SECOND)
    prevotes = [vote(member, Phase.PREVOTE, X.digest) for member in (PROPOSER, SECOND, THIRD)]
    deliberation.hear([post(proposal(X))], 0)
    deliberation.examined(X, True, 0)
    actions = deliberation.hear([post(proposal(X)), *map(post, prevotes)], 1)
    (lock,) = [action for action in actions if isinstance(action, Say)]
    assert lock.statement == vote(SECOND, Phase.PRECOMMIT, X.digest)
    polka = certificate(Phase.PREVOTE, X, (PROPOSER, SECOND, THIRD))
    assert lock.note == encode_proposal(Backed(X, polka))

    # It crashes, and comes back when the votes that it saw are not to be had any more.
    notes = {subkey_of(lock.statement): lock.note}
    later = deliberation_of(SECOND, noted=notes)
    later.propose(Y)
    reached: list[Statement] = [vote(member, Phase.PREVOTE, NIL, view=1) for member in (THIRD, FOURTH)]
    read = [post(lock.statement), *map(post, reached)]
    assert said(later.hear(read, 2)) == [proposal(X, view=1, polka=polka)]


def test_what_cannot_be_told_to_be_valid_is_asked_again_in_the_next_view_and_all_that_share_its_time() -> None:
    deliberation = deliberation_of(FOURTH)
    read = [post(proposal(X)), post(proposal(Y))]
    new = [Examine(outcome, TIMEOUTS.propose_us // 2) for outcome in (X, Y)]
    assert sorted(deliberation.hear(read, 0), key=repr) == sorted(new, key=repr)
    assert deliberation.examined(X, None, 0) == deliberation.examined(Y, None, 0) == []
    assert deliberation.hear(read, 1) == []
    read += [post(vote(member, Phase.PREVOTE, NIL, view=1)) for member in (SECOND, THIRD)]
    again = [action for action in deliberation.hear(read, 2) if isinstance(action, Examine)]
    assert {one.outcome for one in again} == {X, Y}
    assert {one.within_us for one in again} == {(TIMEOUTS.propose_us + TIMEOUTS.growth_us) // 4}
    assert deliberation.hear(read, 3) == []


def test_after_a_view_that_failed_it_looks_once_whether_what_it_proposes_is_still_there() -> None:
    deliberation = deliberation_of(THIRD)
    refresh = Refresh((TIMEOUTS.propose_us + TIMEOUTS.growth_us) // 4)
    deliberation.propose(X)
    assert deliberation.hear([], 0) == []
    read = [post(vote(member, Phase.PREVOTE, NIL, view=1)) for member in (PROPOSER, FOURTH)]
    assert deliberation.hear(read, 1) == [refresh]
    assert deliberation.hear(read, 2) == []
    deliberation.propose(Y)
    read += [post(vote(member, Phase.PREVOTE, NIL, view=2)) for member in (PROPOSER, FOURTH)]
    assert said(deliberation.hear(read, 4)) == [proposal(Y, view=2)]


def test_who_has_nothing_to_propose_looks_for_something_after_each_view_that_failed() -> None:
    deliberation = deliberation_of(THIRD)
    read = [post(vote(member, Phase.PREVOTE, NIL, view=1)) for member in (PROPOSER, FOURTH)]
    assert [type(action) for action in deliberation.hear(read, 1)] == [Refresh]


def test_what_is_proposed_again_and_again_is_asked_again_as_long_as_it_is() -> None:
    """Others may be locked on it and vote for nothing else."""
    deliberation = deliberation_of(FOURTH)
    read: list[Post] = []
    asked = []
    for view in range(0, 4 * WINDOW, 4):
        read.append(post(proposal(X, view=view)))
        read += [post(vote(member, Phase.PREVOTE, NIL, view=view)) for member in (SECOND, THIRD)]
        asked.append([action.outcome for action in deliberation.hear(read, view) if isinstance(action, Examine)])
        assert deliberation.examined(X, None, view) == []
    assert asked == [[X]] * WINDOW


def test_an_outcome_that_somebody_proves_ends_it() -> None:
    commit = Commit(outcome=X, certificate=certificate(Phase.PRECOMMIT, X, (PROPOSER, SECOND, THIRD)))
    forged = Commit(outcome=Y, certificate=certificate(Phase.PRECOMMIT, Y, (SECOND, THIRD)))
    deliberation = deliberation_of(FOURTH)
    read = [told(SECOND, COMMIT, encode_commit(forged)), told(THIRD, COMMIT, b"\xff")]
    assert deliberation.hear(read, 0) == []
    assert deliberation.commit is None
    assert deliberation.hear([*read, told(PROPOSER, COMMIT, encode_commit(commit))], 1) == [Finish(commit)]
    assert deliberation.tick(10**12) == []


def test_who_takes_part_by_other_terms_is_named() -> None:
    deliberation = deliberation_of(FOURTH)
    other = terms(rule=FederatedAverage(), bad=0).encode()
    deliberation.hear([told(SECOND, TERMS, other), told(THIRD, TERMS, terms().encode())], 0)
    assert deliberation.differing == {SECOND: "bad is 0, not 1; rule is FederatedAverage(), not CoordinateMedian()"}


def test_the_start_of_a_rule_is_one_of_the_terms() -> None:
    start = {"w": np.zeros(3, np.float32)}
    ours, theirs = (terms(rule=CenteredClipping(1.0, start={"w": start["w"] + shift})) for shift in (0, 1))
    assert ours.differences(terms(rule=CenteredClipping(1.0, start=start)).encode()) == ""
    assert "with start" in ours.differences(theirs.encode())
    assert "with start" in ours.differences(terms(rule=CenteredClipping(1.0)).encode())


def test_if_a_third_takes_part_by_other_terms_the_round_fails_and_says_what_differs() -> None:
    deliberation = deliberation_of(FOURTH)
    with pytest.raises(ConfigError, match=r"2 of 4 members take part in round 7 by other terms.*bad is 0, not 1"):
        deliberation.hear([told(member, TERMS, terms(bad=0).encode()) for member in (SECOND, THIRD)], 0)


def test_what_others_than_members_say_is_not_even_looked_at() -> None:
    stranger = PeerId(b"stranger")
    deliberation = deliberation_of(FOURTH)
    lies = [vote(stranger, phase, X.digest) for phase in (Phase.PREVOTE, Phase.PRECOMMIT)]
    assert deliberation.hear([*map(post, lies), told(stranger, TERMS, b"{}"), told(stranger, COMMIT, b"")], 0) == []
    assert not deliberation.differing
    assert not deliberation.heard_from


def test_what_is_no_statement_or_of_another_round_is_passed_over() -> None:
    deliberation = deliberation_of(FOURTH)
    of_another = Outcome(round_number=ROUND + 1, op_ids=(), aggregate=b"cid")
    lies = [
        told(PROPOSER, b"", b""),
        told(PROPOSER, b"\x00", b""),
        told(PROPOSER, b"\x01\x00\x00\x00\x00123", b""),
        told(PROPOSER, subkey_of(proposal(X)), encode_proposal(proposal(Y))),
        told(PROPOSER, b"\x00" + bytes(4) + of_another.digest, encode_proposal(proposal(of_another))),
        told(PROPOSER, b"\x09", b"future"),
    ]
    assert deliberation.hear(lies, 0) == []
    assert not deliberation.heard_from


def test_a_proposal_that_is_not_what_its_subkey_says_is_none() -> None:
    with pytest.raises(ValidationError, match="not what its subkey says"):
        statement_of(PROPOSER, ROUND, subkey_of(proposal(X)), encode_proposal(proposal(Y)))


def test_votes_for_which_there_was_no_room_count_when_their_view_has_come() -> None:
    deliberation = deliberation_of(FOURTH)
    far = WINDOW + 1
    read = [post(vote(member, Phase.PREVOTE, NIL, view=far)) for member in (PROPOSER, SECOND, THIRD)]
    deliberation.hear(read, 0)
    deliberation.hear(read, 0)
    assert said(deliberation.tick(10**9))[:2] == [vote(FOURTH, phase, NIL, view=far) for phase in VOTES]


def test_an_equivocation_is_proved() -> None:
    deliberation = deliberation_of(FOURTH)
    lies = [vote(SECOND, Phase.PREVOTE, digest) for digest in (NIL, X.digest)]
    deliberation.hear(list(map(post, lies)), 0)
    (found,) = deliberation.equivocations
    assert {found.first.statement, found.second.statement} == set(lies)


def test_signatures_are_checked_once_in_a_view_however_often_posts_are_read() -> None:
    checked: list[Statement] = []

    def counting(statement: Statement, proof: bytes) -> bool:
        checked.append(statement)
        return verify(statement, proof)

    deliberation = Deliberation(member=FOURTH, terms=terms(), round_number=ROUND, timeouts=TIMEOUTS, verify=counting)
    far = [vote(SECOND, Phase.PREVOTE, X.digest, view=view) for view in range(WINDOW + 1, WINDOW + 10)]
    forged = Post(publisher=THIRD, subkey=subkey_of(vote(THIRD, Phase.PREVOTE, NIL)), value=b"", envelope=b"forged")
    for now_us in range(10):
        deliberation.hear([*map(post, far), forged], now_us)
    assert len(checked) == len(far) + 1


def test_pauses_grow_while_reads_bring_nothing_new_and_are_short_again_when_they_do() -> None:
    deliberation = deliberation_of(FOURTH)
    pauses = []
    for _ in range(6):
        deliberation.hear([], 0)
        pauses.append(deliberation.wake_us)
    assert pauses == [3125, 6250, 12_500, 25_000, 25_000, 25_000]
    deliberation.hear([post(vote(SECOND, Phase.PREVOTE, NIL))], 0)
    assert deliberation.wake_us == 3125


def test_values_are_needed_of_outcomes_and_of_proposals_near_by_whose_turn_it_is() -> None:
    deliberation = deliberation_of(FOURTH)
    assert deliberation.needs_value(SECOND, COMMIT)
    assert deliberation.needs_value(SECOND, TERMS)
    assert deliberation.needs_value(PROPOSER, subkey_of(proposal(X)))
    assert not deliberation.needs_value(PeerId(b"stranger"), COMMIT)
    assert not deliberation.needs_value(SECOND, subkey_of(proposal(X)))
    assert not deliberation.needs_value(PROPOSER, subkey_of(proposal(X, view=4 * WINDOW)))
    assert not deliberation.needs_value(SECOND, subkey_of(vote(SECOND, Phase.PREVOTE, NIL)))


def test_only_a_member_deliberates() -> None:
    with pytest.raises(ValidationError, match="only a member"):
        deliberation_of(PeerId(b"stranger"))
