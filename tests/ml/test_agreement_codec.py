"""Commits and proposals travel as bytes, and bytes of strangers are commits or refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.errors import ValidationError
from prime_dht.ids import OpId, PeerId
from prime_dht.ml.agreement import (
    Backed,
    Certificate,
    Commit,
    Outcome,
    Phase,
    Proposal,
    decode_backed,
    decode_commit,
    decode_proposal,
    encode_commit,
    encode_proposal,
)
from prime_dht.pb import rounds_pb2 as pb

ALICE = PeerId(b"alice")

outcomes = st.builds(
    Outcome,
    round_number=st.integers(0, (1 << 63) - 1),
    op_ids=st.sets(st.binary(min_size=32, max_size=32), max_size=4).map(
        lambda ids: tuple(OpId(op_id) for op_id in sorted(ids))
    ),
    aggregate=st.binary(min_size=1, max_size=128),
)
certificates = st.builds(
    Certificate,
    round_number=st.integers(0, (1 << 63) - 1),
    view=st.integers(0, (1 << 32) - 1),
    phase=st.sampled_from([Phase.PREVOTE, Phase.PRECOMMIT]),
    digest=st.binary(max_size=32),
    proofs=st.lists(st.tuples(st.binary().map(PeerId), st.binary()), max_size=3).map(tuple),
)
often = settings(derandomize=True, deadline=None)


@often
@given(outcomes, certificates)
def test_a_commit_comes_back_from_its_bytes(outcome: Outcome, certificate: Certificate) -> None:
    commit = Commit(outcome=outcome, certificate=certificate)
    assert decode_commit(encode_commit(commit)) == commit


@often
@given(outcomes, st.none() | certificates, st.integers(0, (1 << 32) - 1))
def test_a_proposal_comes_back_from_its_bytes(outcome: Outcome, polka: Certificate | None, view: int) -> None:
    proposal = Proposal(member=ALICE, round_number=outcome.round_number, view=view, outcome=outcome, polka=polka)
    assert decode_proposal(encode_proposal(proposal), member=ALICE, view=view) == proposal


@often
@given(outcomes, certificates)
def test_what_backs_a_member_comes_back_from_its_bytes(outcome: Outcome, polka: Certificate) -> None:
    assert decode_backed(encode_proposal(Backed(outcome, polka))) == Backed(outcome, polka)


def test_an_outcome_alone_backs_nobody() -> None:
    with pytest.raises(ValidationError, match="polka is missing"):
        decode_backed(pb.Proposal(outcome=OUTCOME).SerializeToString())


OUTCOME = pb.Outcome(round=7, op_ids=bytes(32), aggregate=b"cid")
PROOF = pb.Proof(member=ALICE, envelope=b"envelope")
PHASES = pb.Certificate.Phase


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (b"\xff", "malformed"),
        (bytes((1 << 22) + 1), "at most 4194304 bytes"),
        (pb.Commit(outcome=OUTCOME), "of prevotes or of precommits"),
        (pb.Commit(outcome=OUTCOME, certificate=pb.Certificate(phase=PHASES.UNSPECIFIED)), "of prevotes"),
        (
            pb.Commit(outcome=OUTCOME, certificate=pb.Certificate(phase=PHASES.PREVOTE, proofs=[PROOF] * 1025)),
            "of at most 1024 members",
        ),
        (pb.Commit(outcome=pb.Outcome(aggregate=b"cid", op_ids=bytes(33))), "ids of 32 bytes"),
        (pb.Commit(outcome=pb.Outcome(aggregate=b"cid", op_ids=bytes(32 * 1025))), "at most 1024 ops"),
        (pb.Commit(outcome=pb.Outcome(aggregate=b"cid", op_ids=bytes(64))), "none is named twice"),
        (pb.Commit(outcome=pb.Outcome(aggregate=b"cid", round=1 << 63)), "no round"),
        (pb.Commit(), "the CID of an aggregate"),
    ],
)
def test_bytes_that_have_not_the_form_are_refused(message: bytes | pb.Commit, complaint: str) -> None:
    data = message if isinstance(message, bytes) else message.SerializeToString()
    with pytest.raises(ValidationError, match=complaint):
        decode_commit(data)


@often
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for decode in (decode_commit, lambda data: decode_proposal(data, member=ALICE, view=3)):
        try:
            decode(data)
        except ValidationError:
            continue
