"""Posts: what lies under a round's key, ``/prime/group/<root>/round:<number>``, and what of it is what.

======================================== ============================================= ==============================
subkey                                   what it is                                    value
======================================== ============================================= ==============================
``phase ‖ view ‖ digest [‖ polka view]`` a statement (:mod:`~prime_dht.ml.agreement`)  of a proposal, what it proposes
``03``                                   the terms by which its publisher takes part   :class:`~.terms.Terms`
``04``                                   the outcome, and its certificate              ``Commit`` of ``rounds.proto``
======================================== ============================================= ==============================

A member's statements are never replaced, for each has a slot of its own. Its terms are what it said last.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from prime_dht.errors import ValidationError
from prime_dht.ids import Key, PeerId, wire_key
from prime_dht.ml.agreement import Phase, Signed, Statement, decode_proposal, subkey_of, vote_of

TERMS = b"\x03"
COMMIT = b"\x04"

_VIEW_ENDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """An entry under a round's key.

    Attributes:
        value: ``None`` if it is not needed, or is a blob that has not been fetched.
        envelope: its signed header.
    """

    publisher: PeerId
    subkey: bytes
    value: bytes | None = field(repr=False)
    envelope: bytes = field(repr=False)

    @property
    def is_readable(self) -> bool:
        """Whether all of it is here that counts: of a vote that is the envelope alone."""
        return self.value is not None or view_of_proposal(self.subkey) is None


def round_key(group: bytes, round_number: int) -> Key:
    """The key of a group's round.

    >>> round_key(bytes(32), 7)[-9:]
    b'0/round:7'
    """
    return wire_key(f"group/{group.hex()}/round:{round_number}")


def view_of_proposal(subkey: bytes) -> int | None:
    """The view in which an entry with this subkey proposes; ``None`` if it is no proposal."""
    if len(subkey) < _VIEW_ENDS or subkey[0] != Phase.PROPOSE:
        return None
    return int.from_bytes(subkey[1:_VIEW_ENDS], "big")


def is_statement(subkey: bytes) -> bool:
    """Whether an entry with this subkey says something in the round, or claims to."""
    return bool(subkey) and subkey[0] <= Phase.PRECOMMIT


def statement_of(member: PeerId, round_number: int, subkey: bytes, value: bytes) -> Statement:
    """The statement that a member's entry is.

    Raises:
        ValidationError: it is none.
    """
    view = view_of_proposal(subkey)
    if view is None:
        return vote_of(member, round_number, subkey)
    proposal = decode_proposal(value, member=member, view=view)
    if subkey_of(proposal) != subkey:
        raise ValidationError("a proposal is not what its subkey says")
    return proposal


def signed_of(post: Post, round_number: int) -> Signed[Statement]:
    """The statement that a readable post is, with its proof, which is still to be checked.

    Raises:
        ValidationError: it is none.
    """
    return Signed(statement_of(post.publisher, round_number, post.subkey, post.value or b""), post.envelope)
