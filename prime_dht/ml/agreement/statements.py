"""What members say of a round: proposals and votes, and how they stand in entries.

A round's *outcome* is the op ids of the contributions to aggregate, and the CID of the aggregate; votes name it by its
*digest*. Members go from *view* to view until they agree. In each view one member *proposes* an outcome, and each
member *prevotes* and then *precommits* its digest, or :data:`NIL`, which means none. (In arXiv 1807.04938: height,
round and id(v) for our round, view and digest.)

Every statement is an entry of its member, under one key for the round. Its subkey is ::

    phase (1 byte) ‖ view (4 bytes, big-endian) ‖ digest (32 bytes, or none for NIL) ‖ polka view (4 bytes, or none)

so a member that says two things in one phase of one view has two entries in two slots, which are never replaced: the
proof that it equivocated. The polka view is that of a proposal's polka, if it has one. A vote's entry needs no value:
key, publisher and subkey say it all, and its signed envelope is the *proof* that stands in certificates.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Generic, TypeVar

from prime_dht.errors import ValidationError
from prime_dht.ids import OpId, PeerId

if TYPE_CHECKING:
    from prime_dht.ml.agreement.certificate import Certificate

NIL = b""
DIGEST_BYTES = 32
MAX_OPS = 1024
MAX_CID_BYTES = 128
MAX_VIEW = (1 << 32) - 1
MAX_ROUND = (1 << 63) - 1

_DOMAIN = b"prime-round-outcome\x00"
_VIEW_BYTES = 4


class Phase(IntEnum):
    """The steps of a view, in order."""

    PROPOSE = 0
    PREVOTE = 1
    PRECOMMIT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a round can come to.

    Attributes:
        op_ids: of the contributions' entries, in order, none twice, at most 1,024.
        aggregate: the binary CID of the aggregate.
        digest: SHA-256 over a domain, the round, the number of ops, their ids, and the CID.
    """

    round_number: int
    op_ids: tuple[OpId, ...]
    aggregate: bytes
    digest: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.round_number <= MAX_ROUND:
            raise ValidationError(f"there is no round {self.round_number}")
        if len(self.op_ids) > MAX_OPS or any(len(op_id) != 32 for op_id in self.op_ids):
            raise ValidationError(f"an outcome names at most {MAX_OPS} ops by their ids of 32 bytes")
        if any(not first < second for first, second in itertools.pairwise(self.op_ids)):
            raise ValidationError("the op ids of an outcome are in order, and none is named twice")
        if not 0 < len(self.aggregate) <= MAX_CID_BYTES:
            raise ValidationError(f"the CID of an aggregate has 1 to {MAX_CID_BYTES} bytes")
        parts = (self.round_number.to_bytes(8, "big"), len(self.op_ids).to_bytes(4, "big"), *self.op_ids)
        object.__setattr__(self, "digest", hashlib.sha256(b"".join((_DOMAIN, *parts, self.aggregate))).digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """The proposer of a view proposes an outcome.

    With a *polka*, the certificate that a quorum prevoted for it in an earlier view, it may convince those who are
    locked on another outcome. (The paper sends the number of that view and trusts that the votes arrive as well.)
    """

    member: PeerId
    round_number: int
    view: int
    outcome: Outcome
    polka: Certificate | None = None

    def __post_init__(self) -> None:
        _check_view(self.view)

    @property
    def phase(self) -> Phase:
        return Phase.PROPOSE

    @property
    def digest(self) -> bytes:
        return self.outcome.digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """A member prevotes or precommits a digest, or :data:`NIL`, in a view."""

    member: PeerId
    round_number: int
    view: int
    phase: Phase
    digest: bytes

    def __post_init__(self) -> None:
        if self.phase is Phase.PROPOSE or len(self.digest) not in (0, DIGEST_BYTES):
            raise ValidationError("a vote is a prevote or a precommit, of a digest of 32 bytes or of none")
        _check_view(self.view)


Statement = Proposal | Vote
Said = TypeVar("Said", bound=Statement, covariant=True)


@dataclass(frozen=True, slots=True)
class Signed(Generic[Said]):
    """A statement with the proof that its member made it: the envelope of its entry."""

    statement: Said
    proof: bytes = field(repr=False)


def subkey_of(statement: Statement) -> bytes:
    """The subkey of a statement's entry."""
    polka = statement.polka if isinstance(statement, Proposal) else None
    return b"".join(
        (
            bytes([statement.phase]),
            statement.view.to_bytes(_VIEW_BYTES, "big"),
            statement.digest,
            b"" if polka is None else polka.view.to_bytes(_VIEW_BYTES, "big"),
        )
    )


def vote_of(member: PeerId, round_number: int, subkey: bytes) -> Vote:
    """The vote that an entry of a member under this subkey is.

    Raises:
        ValidationError: it is none; a proposal's entry has phase 0, and its outcome in the value.
    """
    if len(subkey) <= _VIEW_BYTES or subkey[0] not in (Phase.PREVOTE, Phase.PRECOMMIT):
        raise ValidationError("the subkey is not that of a vote")
    return Vote(
        member=member,
        round_number=round_number,
        view=int.from_bytes(subkey[1 : 1 + _VIEW_BYTES], "big"),
        phase=Phase(subkey[0]),
        digest=subkey[1 + _VIEW_BYTES :],
    )


def _check_view(view: int) -> None:
    if not 0 <= view <= MAX_VIEW:
        raise ValidationError(f"there is no view {view}")
