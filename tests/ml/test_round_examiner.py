"""Whether an outcome is valid: by computing it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from prime_dht.errors import QueryError, ValidationError
from prime_dht.ids import OpId, PeerId, TimestampUs
from prime_dht.ml.aggregation import CoordinateMedian
from prime_dht.ml.agreement import Members
from prime_dht.ml.codecs import codec_named
from prime_dht.ml.gradients import Collected, Gradient, Gradients
from prime_dht.ml.rounds.examiner import AGGREGATES_KEPT, Examiner, cid_of
from prime_dht.ml.rounds.terms import Terms
from prime_dht.ml.tensors import spec_of

PEERS = [PeerId(b"member %d" % i) for i in range(4)]
ROUND = 7


def gradient(number: int, value: float | None = None, *, member: PeerId | None = None) -> Gradient:
    return Gradient(
        member=member or PEERS[number],
        round=ROUND,
        tensors={"w": np.full(3, number if value is None else value, np.float32)},
        metrics={},
        weight=1.0,
        codec=codec_named("none"),
        op_id=OpId(bytes([number]) * 32),
        created_at_us=TimestampUs(0),
    )


ALL = [gradient(i) for i in range(4)]
TERMS = Terms(members=Members.equal(PEERS), rule=CoordinateMedian(), bad=1, spec=spec_of(ALL[0].tensors))


class Swarm:
    """What gradients there are to be fetched."""

    def __init__(self, there: Iterable[Gradient] = ()) -> None:
        self.there = {one.op_id: one for one in there}
        self.asked: list[Collection[OpId]] = []
        self.answers = True

    def fetch(self, _: int, op_ids: Collection[OpId], **__: Any) -> Mapping[OpId, Gradient]:
        self.asked.append(op_ids)
        if not self.answers:
            raise QueryError("nobody could be asked")
        return {op_id: self.there[op_id] for op_id in op_ids if op_id in self.there}


def examiner(swarm: Swarm | None = None) -> Examiner:
    return Examiner(cast("Gradients", swarm or Swarm()), TERMS, ROUND)


def collected(gradients: Iterable[Gradient]) -> Collected:
    return Collected(round=ROUND, gradients={one.member: one for one in gradients}, missing=(), rejected={})


def test_an_outcome_names_all_that_was_collected_and_the_cid_of_their_aggregate() -> None:
    outcome = examiner().propose(collected(reversed(ALL)))
    assert outcome.op_ids == tuple(one.op_id for one in ALL)
    assert outcome.aggregate == cid_of({"w": np.full(3, 1.5, np.float32)})


def test_members_who_collected_different_gradients_find_each_others_outcomes_valid() -> None:
    first, second = examiner(Swarm(ALL)), examiner(Swarm(ALL))
    outcomes = first.propose(collected(ALL[:3])), second.propose(collected(ALL[1:]))
    assert outcomes[0] != outcomes[1]
    assert first.examine(outcomes[1], timeout_s=1) is True
    assert second.examine(outcomes[0], timeout_s=1) is True
    aggregate = second.aggregate_of(outcomes[0])
    assert aggregate is not None
    np.testing.assert_array_equal(aggregate.tensors["w"], np.full(3, 1, np.float32))
    assert aggregate.used == tuple(PEERS[:3])


def test_an_aggregate_that_is_another_is_not_valid() -> None:
    outcome = replace(examiner().propose(collected(ALL)), aggregate=cid_of({"w": np.zeros(3, np.float32)}))
    assert examiner(Swarm(ALL)).examine(outcome, timeout_s=1) is False


def test_what_was_not_fetched_leaves_it_open() -> None:
    outcome = examiner().propose(collected(ALL))
    swarm = Swarm(ALL[1:])
    other = examiner(swarm)
    assert other.examine(outcome, timeout_s=1) is None
    swarm.answers = False
    assert other.examine(outcome, timeout_s=1) is None
    swarm.answers, swarm.there = True, Swarm(ALL).there
    assert other.examine(outcome, timeout_s=1) is True


def test_only_what_is_not_held_is_fetched() -> None:
    outcome = examiner().propose(collected(ALL))
    swarm = Swarm(ALL)
    one = examiner(swarm)
    one.propose(collected(ALL[:3]))
    assert one.examine(outcome, timeout_s=1) is True
    assert swarm.asked == [[ALL[3].op_id]]
    assert one.examine(outcome, timeout_s=1) is True
    assert len(swarm.asked) == 1


def test_contributions_of_fewer_than_a_quorum_or_of_one_member_twice_or_of_strangers_are_not_valid() -> None:
    outcome = examiner().propose(collected(ALL))
    two = replace(outcome, op_ids=outcome.op_ids[:2])
    assert examiner(Swarm(ALL)).examine(two, timeout_s=1) is False
    twice = [*ALL[:3], gradient(3, member=PEERS[2])]
    without_them = replace(outcome, aggregate=cid_of({"w": np.full(3, 0.5, np.float32)}))
    assert examiner(Swarm(twice)).examine(without_them, timeout_s=1) is False
    strange = [*ALL[:3], gradient(3, member=PeerId(b"stranger"))]
    assert examiner(Swarm(strange)).examine(outcome, timeout_s=1) is False


def test_an_outcome_that_names_more_than_there_are_members_is_not_even_looked_for() -> None:
    swarm = Swarm()
    outcome = replace(examiner().propose(collected(ALL)), op_ids=tuple(OpId(bytes([i]) * 32) for i in range(5)))
    assert examiner(swarm).examine(outcome, timeout_s=1) is False
    assert not swarm.asked


def test_with_too_few_contributions_there_is_nothing_to_propose() -> None:
    with pytest.raises(ValidationError, match="2 of 4 members are no quorum"):
        examiner().propose(collected(ALL[:2]))


def test_what_is_not_finite_is_named_in_the_outcome_and_rejected() -> None:
    one = examiner()
    outcome = one.propose(collected([*ALL[:3], gradient(3, np.nan)]))
    aggregate = one.aggregate_of(outcome)
    assert aggregate is not None
    assert len(outcome.op_ids) == 4
    assert list(aggregate.rejected) == [PEERS[3]]


def test_few_aggregates_are_kept_and_the_own_one_among_them() -> None:
    swarm = Swarm(ALL)
    one = examiner(swarm)
    own = one.propose(collected(ALL))
    others = [examiner().propose(collected(ALL[:i] + ALL[i + 1 :])) for i in range(4)]
    for outcome in others:
        assert one.examine(outcome, timeout_s=1) is True
    kept = [outcome for outcome in (own, *others) if one.aggregate_of(outcome)]
    assert kept == [own, others[-1]]
    assert len(kept) == AGGREGATES_KEPT


def test_what_came_too_late_to_be_collected_is_proposed_once_there_is_enough() -> None:
    swarm = Swarm(ALL[:2])
    one = examiner(swarm)
    newest = {gradient.member: gradient.op_id for gradient in ALL}
    with pytest.raises(ValidationError):
        one.propose(collected(ALL[:1]))
    assert not one.proposes(newest.values())
    assert one.propose_late(newest, timeout_s=1) is None
    swarm.there = {ALL[2].op_id: ALL[2]}
    late = one.propose_late(newest, timeout_s=1)
    assert late is not None
    assert late.op_ids == tuple(gradient.op_id for gradient in ALL[:3])
    assert swarm.asked == [[gradient.op_id for gradient in ALL[1:]], [gradient.op_id for gradient in ALL[2:]]]
    assert one.proposes(newest.values())
    assert not one.proposes({ALL[0].op_id})


def test_what_is_gone_is_not_proposed_with_what_came_late() -> None:
    one = examiner(Swarm(ALL))
    one.propose(collected(ALL[:3]))
    again = replace(ALL[0], op_id=OpId(b"again".ljust(32)))
    newest = {gradient.member: gradient.op_id for gradient in (again, *ALL[1:])}
    assert one.leave_out_what_is_gone(set(newest.values())) is None
    late = one.propose_late(newest, timeout_s=1)
    assert late is not None
    assert late.op_ids == tuple(gradient.op_id for gradient in ALL[1:])


def test_what_is_gone_is_left_out_as_long_as_enough_is_left() -> None:
    one = examiner(Swarm(ALL))
    whole = one.propose(collected(ALL))
    there = {gradient.op_id for gradient in ALL}
    assert one.leave_out_what_is_gone(there) is None
    rest = one.leave_out_what_is_gone(there - {ALL[1].op_id})
    assert rest is not None
    assert rest.op_ids == (ALL[0].op_id, ALL[2].op_id, ALL[3].op_id)
    assert one.leave_out_what_is_gone(set()) is None
    assert one.examine(whole, timeout_s=1) is True
