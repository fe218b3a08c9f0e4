"""Statements stand in entries, and their envelopes prove them to anyone, offline."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair

from prime_dht.entries import EntryHeader, inline, sign_entry
from prime_dht.errors import ValidationError
from prime_dht.ids import Key, OpId, PeerId, TimestampUs
from prime_dht.ml.agreement import (
    NIL,
    Certificate,
    Commit,
    Members,
    Outcome,
    Phase,
    Proposal,
    Statement,
    Vote,
    entry_proofs,
    subkey_of,
    vote_of,
)

NETWORK, KEY, ROUND = "testnet", Key(b"/prime/round:7"), 7
NOBODY = PeerId(b"nobody")
KEYS = [create_new_key_pair(bytes([number]) * 32).private_key for number in range(1, 5)]
OUTCOME = Outcome(round_number=ROUND, op_ids=(OpId(b"a" * 32), OpId(b"b" * 32)), aggregate=b"cid")


def entry_for(number: int, subkey: bytes, *, network_id: str = NETWORK, key: Key = KEY) -> tuple[PeerId, bytes]:
    """A member and the envelope of its entry with this subkey."""
    header = EntryHeader(
        network_id=network_id,
        key=key,
        subkey=subkey,
        created_at_us=TimestampUs(1_000),
        expires_at_us=TimestampUs(2_000),
        retain_until_us=TimestampUs(3_000),
        content=inline(b""),
    )
    entry = sign_entry(header, KEYS[number], b"")
    return entry.publisher, entry.envelope


def precommit(member: PeerId = NOBODY, view: int = 3) -> Vote:
    return Vote(member=member, round_number=ROUND, view=view, phase=Phase.PRECOMMIT, digest=OUTCOME.digest)


def test_a_certificate_of_entries_can_be_checked_offline() -> None:
    proofs = sorted(entry_for(number, subkey_of(precommit())) for number in range(3))
    members = Members.equal([*(member for member, _ in proofs), PeerId(b"the fourth")])
    certificate = Certificate(
        round_number=ROUND, view=3, phase=Phase.PRECOMMIT, digest=OUTCOME.digest, proofs=tuple(proofs)
    )
    commit = Commit(outcome=OUTCOME, certificate=certificate)
    commit.check(ROUND, members, entry_proofs(NETWORK, KEY))
    for verify in (entry_proofs("othernet", KEY), entry_proofs(NETWORK, Key(b"/prime/round:8"))):
        with pytest.raises(ValidationError, match="was not signed"):
            commit.check(ROUND, members, verify)
    with pytest.raises(ValidationError, match="was not signed"):
        replace(commit, certificate=replace(certificate, view=4)).check(ROUND, members, entry_proofs(NETWORK, KEY))


def test_an_entry_proves_one_statement_of_its_publisher_and_no_other() -> None:
    verify = entry_proofs(NETWORK, KEY)
    alice, envelope = entry_for(0, subkey_of(precommit()))
    bob, _ = entry_for(1, b"")
    assert verify(precommit(alice), envelope)
    assert not verify(precommit(bob), envelope)
    assert not verify(precommit(alice, view=4), envelope)
    assert not verify(replace(precommit(alice), digest=NIL), envelope)
    assert not verify(replace(precommit(alice), phase=Phase.PREVOTE), envelope)
    assert not verify(precommit(alice), envelope[:-64] + bytes(64))
    assert not verify(precommit(alice), b"no envelope")


votes = st.builds(
    Vote,
    member=st.just(PeerId(b"alice")),
    round_number=st.just(ROUND),
    view=st.integers(0, (1 << 32) - 1),
    phase=st.sampled_from([Phase.PREVOTE, Phase.PRECOMMIT]),
    digest=st.sampled_from([NIL, OUTCOME.digest]),
)


@settings(derandomize=True, deadline=None)
@given(votes, votes)
def test_a_vote_is_read_from_its_subkey_and_no_two_share_one(vote: Vote, other: Vote) -> None:
    assert vote_of(vote.member, ROUND, subkey_of(vote)) == vote
    assert (subkey_of(vote) == subkey_of(other)) == (vote == other)


def test_proposals_of_one_outcome_with_another_polka_have_another_subkey() -> None:
    def proposed(view: int, polka_view: int | None) -> Statement:
        polka = None
        if polka_view is not None:
            polka = Certificate(
                round_number=ROUND, view=polka_view, phase=Phase.PREVOTE, digest=OUTCOME.digest, proofs=()
            )
        return Proposal(member=PeerId(b"alice"), round_number=ROUND, view=view, outcome=OUTCOME, polka=polka)

    subkeys = {subkey_of(proposed(view, polka_view)) for view in (4, 5) for polka_view in (None, 0, 1)}
    assert len(subkeys) == 6
    assert all(subkey[0] == Phase.PROPOSE for subkey in subkeys)


@pytest.mark.parametrize("subkey", [b"", b"\x01\0\0\0", b"\0" + bytes(36), b"\x03" + bytes(36), b"\x01" + bytes(20)])
def test_a_subkey_that_is_no_vote_is_refused(subkey: bytes) -> None:
    with pytest.raises(ValidationError):
        vote_of(PeerId(b"alice"), ROUND, subkey)


def test_the_digest_of_an_outcome_is_of_all_that_it_says() -> None:
    assert OUTCOME.digest.hex() == "a2f12955e77742cb25bfc151fabff14204742b9aa89e32ffe9a531d7beb23b39"
    others = [
        replace(OUTCOME, round_number=8),
        replace(OUTCOME, op_ids=OUTCOME.op_ids[:1]),
        replace(OUTCOME, op_ids=()),
        replace(OUTCOME, aggregate=b"cic"),
    ]
    assert len({other.digest for other in [OUTCOME, *others]}) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"op_ids": OUTCOME.op_ids[::-1]},
        {"op_ids": OUTCOME.op_ids[:1] * 2},
        {"op_ids": (b"short",)},
        {"op_ids": tuple(number.to_bytes(32, "big") for number in range(1025))},
        {"aggregate": b""},
        {"aggregate": bytes(129)},
        {"round_number": -1},
    ],
)
def test_an_outcome_has_its_op_ids_in_order_and_a_cid(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        replace(OUTCOME, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"view": -1}, {"view": 1 << 32}, {"digest": b"x"}, {"phase": Phase.PROPOSE}])
def test_a_vote_has_a_view_a_phase_and_a_digest(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        replace(precommit(), **change)  # type: ignore[arg-type]
