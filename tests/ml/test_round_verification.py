"""What anybody can check of a round offline, with real keys and entries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair

from prime_dht.entries import EntryHeader, encode_header, grant, inline, root_of, sign_entry
from prime_dht.errors import ValidationError
from prime_dht.ids import OpId, PeerId, TimestampUs, peer_text
from prime_dht.ml.agreement import Certificate, Commit, Members, Outcome, Phase, Vote, encode_commit, subkey_of
from prime_dht.ml.rounds import members_of, verify_commit
from prime_dht.ml.rounds.posts import round_key
from prime_dht.ml.rounds.verification import as_members
from prime_dht.net.identity import peer_id_of

ROOT = create_new_key_pair(bytes(32))
GROUP = root_of(ROOT.public_key)
KEYS = {peer_id_of(pair): pair for pair in (create_new_key_pair(bytes(31) + bytes([i])) for i in range(1, 6))}
PEERS = sorted(KEYS)
STRANGER = PEERS.pop()
MEMBERS = Members.equal(PEERS)
NETWORK = "lab"
EXPIRES_US = TimestampUs(2_000_000)
OUTCOME = Outcome(round_number=7, op_ids=(OpId(bytes(32)),), aggregate=b"cid")
CAPABILITIES = {
    peer: grant(ROOT.private_key, member=peer, expires_at_us=EXPIRES_US, network_id=NETWORK) for peer in KEYS
}


def envelope(vote: Vote, *, round_number: int = 7, network_id: str = NETWORK) -> bytes:
    header = EntryHeader(
        network_id=network_id,
        key=round_key(GROUP, round_number),
        subkey=subkey_of(vote),
        created_at_us=TimestampUs(1),
        expires_at_us=EXPIRES_US,
        retain_until_us=EXPIRES_US,
        content=inline(b""),
        capability=grant(ROOT.private_key, member=vote.member, expires_at_us=EXPIRES_US, network_id=network_id),
    )
    return sign_entry(header, KEYS[vote.member].private_key, b"").envelope


def commit_of(voters: Iterable[bytes], *, outcome: Outcome = OUTCOME, **signed: object) -> Commit:
    votes = [
        Vote(member=peer, round_number=7, view=0, phase=Phase.PRECOMMIT, digest=outcome.digest)
        for peer in sorted(KEYS)
        if peer in set(voters)
    ]
    proofs = tuple((vote.member, envelope(vote, **signed)) for vote in votes)  # type: ignore[arg-type]
    certificate = Certificate(round_number=7, view=0, phase=Phase.PRECOMMIT, digest=outcome.digest, proofs=proofs)
    return Commit(outcome=outcome, certificate=certificate)


def verify(commit: Commit, *, round_number: int = 7, group: bytes = GROUP, network_id: str = NETWORK) -> Commit:
    return verify_commit(
        encode_commit(commit), members=MEMBERS, group=group, network_id=network_id, round_number=round_number
    )


def test_an_outcome_is_proved_by_what_a_quorum_signed() -> None:
    commit = commit_of(PEERS[:3])
    assert verify(commit) == commit


def test_the_group_and_members_may_be_named_by_text() -> None:
    proof = encode_commit(commit_of(PEERS))
    prefix = f"/prime/group/{GROUP.hex()}/"
    verify_commit(proof, members=map(peer_text, PEERS), group=prefix, network_id=NETWORK, round_number=7)


def test_members_may_be_given_in_any_order_and_twice_and_with_weights() -> None:
    assert as_members([*reversed(PEERS), *map(peer_text, PEERS)]).weights == MEMBERS.weights
    weights = {peer: number + 1 for number, peer in enumerate(PEERS)}
    assert as_members(weights).weights == weights
    assert as_members({peer_text(peer): weight for peer, weight in weights.items()}).weights == weights
    proof = encode_commit(commit_of(PEERS[2:]))
    verify_commit(proof, members=weights, group=GROUP, network_id=NETWORK, round_number=7)
    with pytest.raises(ValidationError, match="no more than two thirds"):
        verify_commit(proof, members=PEERS, group=GROUP, network_id=NETWORK, round_number=7)


def test_what_is_no_member_is_refused() -> None:
    with pytest.raises(ValidationError, match="two weights"):
        as_members({PEERS[0]: 1, peer_text(PEERS[0]): 2})
    for none in (PeerId(b"somebody"), 5):
        with pytest.raises(ValidationError, match="peer id"):
            as_members([none])  # type: ignore[list-item]
        with pytest.raises(ValidationError, match="peer id"):
            as_members({none: 1})  # type: ignore[dict-item]
    for alone in (PEERS[0], peer_text(PEERS[0]), 5):
        with pytest.raises(ValidationError, match="in a list"):
            as_members(alone)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="a group is"):
        members_of([], group=None, network_id=NETWORK)  # type: ignore[arg-type]


def test_two_of_four_prove_nothing() -> None:
    with pytest.raises(ValidationError, match="no more than two thirds"):
        verify(commit_of(PEERS[:2]))


def test_who_is_no_member_proves_nothing() -> None:
    with pytest.raises(ValidationError, match="no member"):
        verify(commit_of([*PEERS[:2], STRANGER]))


def test_another_outcome_is_not_what_was_signed() -> None:
    other = replace(OUTCOME, aggregate=b"other")
    honest = commit_of(PEERS)
    with pytest.raises(ValidationError, match="not of precommits for this outcome"):
        verify(replace(honest, outcome=other))
    forged = replace(honest.certificate, digest=other.digest)
    with pytest.raises(ValidationError, match="not signed"):
        verify(Commit(outcome=other, certificate=forged))


def test_a_vote_that_was_signed_by_somebody_else_is_none() -> None:
    honest = commit_of(PEERS[:3]).certificate
    borrowed = (honest.proofs[0], honest.proofs[1], (honest.proofs[2][0], honest.proofs[1][1]))
    with pytest.raises(ValidationError, match="not signed"):
        verify(Commit(outcome=OUTCOME, certificate=replace(honest, proofs=borrowed)))


def test_any_byte_that_is_changed_in_a_vote_is_noticed() -> None:
    honest = commit_of(PEERS[:3]).certificate
    peer, proof = honest.proofs[0]
    for place in range(0, len(proof), 7):
        changed = proof[:place] + bytes([proof[place] ^ 1]) + proof[place + 1 :]
        certificate = replace(honest, proofs=((peer, changed), *honest.proofs[1:]))
        with pytest.raises(ValidationError):
            verify(Commit(outcome=OUTCOME, certificate=certificate))


def test_votes_of_another_round_network_or_group_prove_nothing() -> None:
    with pytest.raises(ValidationError, match="of round 7, not of 8"):
        verify(commit_of(PEERS), round_number=8)
    with pytest.raises(ValidationError, match="not signed"):
        verify(commit_of(PEERS, round_number=8))
    with pytest.raises(ValidationError, match="not signed"):
        verify(commit_of(PEERS, network_id="other"))
    with pytest.raises(ValidationError, match="not signed"):
        verify(commit_of(PEERS), group=bytes(32))


def test_bytes_that_are_no_commit_prove_nothing() -> None:
    for data in (
        b"",
        b"\xff",
        encode_header(
            EntryHeader(
                network_id=NETWORK,
                key=round_key(GROUP, 7),
                created_at_us=TimestampUs(1),
                expires_at_us=EXPIRES_US,
                retain_until_us=EXPIRES_US,
                content=inline(b""),
            )
        ),
    ):
        with pytest.raises(ValidationError):
            verify_commit(data, members=MEMBERS, group=GROUP, network_id=NETWORK, round_number=7)


def test_members_are_those_whom_the_root_gave_capabilities() -> None:
    capabilities = [CAPABILITIES[peer] for peer in PEERS]
    assert members_of(capabilities, group=GROUP, network_id=NETWORK).weights == MEMBERS.weights
    with pytest.raises(ValidationError, match="another network"):
        members_of(capabilities, group=GROUP, network_id="other")
    other_root = create_new_key_pair(bytes(31) + b"\x09")
    foreign = grant(other_root.private_key, member=STRANGER, expires_at_us=EXPIRES_US, network_id=NETWORK)
    with pytest.raises(ValidationError, match="another group"):
        members_of([*capabilities, foreign], group=GROUP, network_id=NETWORK)
