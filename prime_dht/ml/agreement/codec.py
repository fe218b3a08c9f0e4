"""Outcomes, certificates, proposals and commits as bytes (``protos/rounds.proto``).

Decoding checks the form; whether a certificate proves anything is :meth:`Certificate.check`'s question.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from prime_dht.errors import ValidationError
from prime_dht.ids import OpId, PeerId
from prime_dht.ml.agreement.agreement import Backed
from prime_dht.ml.agreement.certificate import Certificate, Commit
from prime_dht.ml.agreement.members import MAX_MEMBERS
from prime_dht.ml.agreement.statements import Outcome, Phase, Proposal
from prime_dht.pb import rounds_pb2 as pb

MAX_COMMIT_BYTES = 1 << 22
"""Of a commit or a proposal's value: more than 1,024 members and as many ops take."""

_OP_ID_BYTES = 32
_PHASES = {pb.Certificate.Phase.PREVOTE: Phase.PREVOTE, pb.Certificate.Phase.PRECOMMIT: Phase.PRECOMMIT}
_PHASE_NUMBERS = {phase: number for number, phase in _PHASES.items()}


def encode_commit(commit: Commit) -> bytes:
    """A round's outcome and its proof, to keep or to publish."""
    outcome, certificate = _outcome_message(commit.outcome), _certificate_message(commit.certificate)
    return pb.Commit(outcome=outcome, certificate=certificate).SerializeToString()


def decode_commit(data: bytes) -> Commit:
    """Read a commit that proves nothing until it is checked.

    Raises:
        ValidationError: it has not the form of one.
    """
    message = pb.Commit()
    _parse(message, data)
    return Commit(outcome=_outcome(message.outcome), certificate=_certificate(message.certificate))


def encode_proposal(proposal: Proposal | Backed) -> bytes:
    """The value of a proposal's entry; member, round and view are in its publisher, key and subkey.

    What a member is backed by is noted in the same form.
    """
    message = pb.Proposal(outcome=_outcome_message(proposal.outcome))
    if proposal.polka is not None:
        message.polka.CopyFrom(_certificate_message(proposal.polka))
    return message.SerializeToString()


def decode_proposal(data: bytes, *, member: PeerId, view: int) -> Proposal:
    """The proposal whose entry, of a member and with a subkey for a view, has this value.

    Whoever reads it compares :func:`~prime_dht.ml.agreement.statements.subkey_of` with the entry's subkey.

    Raises:
        ValidationError: it has not the form of one.
    """
    outcome, polka = _proposed(data)
    return Proposal(member=member, round_number=outcome.round_number, view=view, outcome=outcome, polka=polka)


def decode_backed(data: bytes) -> Backed:
    """What a member noted that it is backed by.

    Raises:
        ValidationError: it has not the form of it.
    """
    outcome, polka = _proposed(data)
    if polka is None:
        raise ValidationError("a polka is missing")
    return Backed(outcome, polka)


def _proposed(data: bytes) -> tuple[Outcome, Certificate | None]:
    message = pb.Proposal()
    _parse(message, data)
    return _outcome(message.outcome), _certificate(message.polka) if message.HasField("polka") else None


def _parse(message: pb.Commit | pb.Proposal, data: bytes) -> None:
    if len(data) > MAX_COMMIT_BYTES:
        raise ValidationError(f"a commit or a proposal is at most {MAX_COMMIT_BYTES} bytes, not {len(data)}")
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ValidationError("neither a commit nor a proposal: malformed protobuf") from error


def _outcome_message(outcome: Outcome) -> pb.Outcome:
    return pb.Outcome(round=outcome.round_number, op_ids=b"".join(outcome.op_ids), aggregate=outcome.aggregate)


def _outcome(message: pb.Outcome) -> Outcome:
    ids = message.op_ids
    op_ids = tuple(OpId(ids[start : start + _OP_ID_BYTES]) for start in range(0, len(ids), _OP_ID_BYTES))
    return Outcome(round_number=message.round, op_ids=op_ids, aggregate=message.aggregate)


def _certificate_message(certificate: Certificate) -> pb.Certificate:
    return pb.Certificate(
        round=certificate.round_number,
        view=certificate.view,
        phase=_PHASE_NUMBERS[certificate.phase],
        digest=certificate.digest,
        proofs=[pb.Proof(member=member, envelope=proof) for member, proof in certificate.proofs],
    )


def _certificate(message: pb.Certificate) -> Certificate:
    if message.phase not in _PHASES or len(message.proofs) > MAX_MEMBERS:
        raise ValidationError(f"a certificate is of prevotes or of precommits, of at most {MAX_MEMBERS} members")
    return Certificate(
        round_number=message.round,
        view=message.view,
        phase=_PHASES[message.phase],
        digest=message.digest,
        proofs=tuple((PeerId(proof.member), proof.envelope) for proof in message.proofs),
    )
