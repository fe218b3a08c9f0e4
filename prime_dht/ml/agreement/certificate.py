"""Certificates: that a quorum voted for a digest in one phase of one view, so that anyone can check it offline.

A certificate of prevotes is a *polka*: a lock may give way to it. One of precommits proves the round's outcome, for
there cannot be another: a quorum locked on this one, and a good member of it is in every later quorum.

To check one takes the members of the round, which are known from the group's capabilities, and nothing from a node.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId
from prime_dht.ml.agreement.members import Members
from prime_dht.ml.agreement.statements import Outcome, Phase, Statement, Vote

Verify = Callable[[Statement, bytes], bool]
"""Whether a proof is that of its member having made just this statement: in the right network, key and subkey."""


MAX_PROOF_BYTES = 2048
"""Of one statement: an entry's envelope with its capability, and nothing that swells a certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """The votes of members for one digest.

    Attributes:
        proofs: of each member's vote, in the order of members.
    """

    round_number: int
    view: int
    phase: Phase
    digest: bytes
    proofs: tuple[tuple[PeerId, bytes], ...] = field(repr=False)

    def check(self, members: Members, verify: Verify) -> None:
        """Check that members who are a quorum of these cast these votes.

        Raises:
            ValidationError: a vote is not a member's, or counted twice, or its proof is not valid; or they are no
                quorum.
        """
        voters = [member for member, _ in self.proofs]
        if any(not first < second for first, second in itertools.pairwise(voters)):
            raise ValidationError("the votes of a certificate are in the order of members, one of each")
        if not all(voter in members for voter in voters):
            raise ValidationError("a certificate holds the vote of somebody who is no member")
        if not members.is_quorum(voters):
            raise ValidationError("the votes of a certificate are no more than two thirds")
        for member, proof in self.proofs:
            if len(proof) > MAX_PROOF_BYTES or not verify(self._vote_of(member), proof):
                raise ValidationError("a certificate holds a vote that was not signed")

    def _vote_of(self, member: PeerId) -> Vote:
        return Vote(member=member, round_number=self.round_number, view=self.view, phase=self.phase, digest=self.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A round's outcome, and the certificate of precommits that proves it."""

    outcome: Outcome
    certificate: Certificate

    def check(self, round_number: int, members: Members, verify: Verify) -> None:
        """Check that this is the outcome of a round.

        Raises:
            ValidationError: it is that of another, or the certificate does not prove it.
        """
        certificate = self.certificate
        if not round_number == self.outcome.round_number == certificate.round_number:
            raise ValidationError(f"this is the outcome of round {self.outcome.round_number}, not of {round_number}")
        if certificate.phase is not Phase.PRECOMMIT or certificate.digest != self.outcome.digest:
            raise ValidationError("the certificate is not of precommits for this outcome")
        certificate.check(members, verify)
