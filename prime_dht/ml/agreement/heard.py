"""What a member has heard of a round, bounded whatever bad members say.

Statements are held of the views from :data:`WINDOW` before to :data:`WINDOW` after the current one. Of a view are held

- the first two proposals; a good proposer makes one;
- of each member's prevotes, and of its precommits, the first two, and besides those for NIL and for a held proposal; so
  no vote for what a good proposer proposed is ever crowded out. The second proves that its member equivocates.

Of views further ahead it is only known how far each member has come. What is not held is not lost: statements are
entries, which stay, and are read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from prime_dht.ids import PeerId
from prime_dht.ml.agreement.certificate import Certificate
from prime_dht.ml.agreement.members import Members
from prime_dht.ml.agreement.statements import NIL, Phase, Proposal, Signed, Statement, Vote

WINDOW = 8
_FREELY = 2


@dataclass(frozen=True, slots=True)
class Equivocation:
    """The proof that a member said two things in one phase of one view."""

    first: Signed[Statement]
    second: Signed[Statement]


class Heard:
    """The statements that are held.

    Attributes:
        equivocations: the first proof against each member that equivocated.
    """

    def __init__(self, members: Members) -> None:
        self._members = members
        self._proposals: dict[int, list[Signed[Proposal]]] = {}
        self._votes: dict[tuple[int, Phase], dict[PeerId, dict[bytes, Signed[Vote]]]] = {}
        self._quorums: set[tuple[int, Phase, bytes]] = set()
        self._furthest: dict[PeerId, int] = {}
        self.equivocations: dict[PeerId, Equivocation] = {}

    def __len__(self) -> int:
        """How many statements are held."""
        votes = sum(len(by_digest) for voters in self._votes.values() for by_digest in voters.values())
        return votes + sum(map(len, self._proposals.values()))

    def wants(self, statement: Statement) -> bool:
        """Whether it is worth checking: it is not held yet, in one wording or another, and may be."""
        match statement:
            case Proposal():
                proposed = self._proposed(statement.view)
                return len(proposed) < _FREELY and statement.digest not in proposed
            case Vote():
                votes = self._votes.get((statement.view, statement.phase), {})
                return statement.digest not in votes.get(statement.member, {})
            case _:
                assert_never(statement)

    def add(self, signed: Signed[Statement], current: int) -> Equivocation | None:
        """Hear a statement that is not known yet; returns the proof if it is the first that its member equivocates."""
        statement = signed.statement
        self._furthest[statement.member] = max(statement.view, self._furthest.get(statement.member, 0))
        if abs(statement.view - current) > WINDOW:
            return None
        before: list[Signed[Statement]]
        match statement:
            case Proposal():
                proposals = self._proposals.setdefault(statement.view, [])
                before = list(proposals)
                if len(proposals) < _FREELY:
                    proposals.append(Signed(statement, signed.proof))
            case Vote():
                votes = self._votes.setdefault((statement.view, statement.phase), {}).setdefault(statement.member, {})
                before = list(votes.values())
                if len(votes) < _FREELY or statement.digest in {NIL, *self._proposed(statement.view)}:
                    votes[statement.digest] = Signed(statement, signed.proof)
                    # Noted once, so that nothing that bad members make up costs time whenever the rules are applied.
                    quorum = (statement.view, statement.phase, statement.digest)
                    if self._members.is_quorum(self.voters(*quorum)):
                        self._quorums.add(quorum)
            case _:
                assert_never(statement)
        if not before or statement.member in self.equivocations:
            return None
        self.equivocations[statement.member] = Equivocation(before[0], signed)
        return self.equivocations[statement.member]

    def forget(self, current: int) -> None:
        """Forget the views that lie too far from the one that is now current."""
        for view in [view for view in self._proposals if abs(view - current) > WINDOW]:
            del self._proposals[view]
        for key in [key for key in self._votes if abs(key[0] - current) > WINDOW]:
            del self._votes[key]
        self._quorums = {quorum for quorum in self._quorums if abs(quorum[0] - current) <= WINDOW}

    def proposals(self, view: int) -> list[Proposal]:
        """What was proposed in a view."""
        return [signed.statement for signed in self._proposals.get(view, ())]

    def all_proposals(self) -> Iterator[Proposal]:
        """What was proposed in the views that are held, the latest first."""
        for view in sorted(self._proposals, reverse=True):
            yield from self.proposals(view)

    def voters(self, view: int, phase: Phase, digest: bytes | None = None) -> list[PeerId]:
        """The members that voted in a phase of a view, for a digest or for anything."""
        votes = self._votes.get((view, phase), {})
        return [member for member, by_digest in votes.items() if digest is None or digest in by_digest]

    def certificates(self, phase: Phase) -> Iterator[Certificate]:
        """The certificates that the votes heard in a phase make, those of the latest view first."""
        for view, _, digest in sorted((quorum for quorum in self._quorums if quorum[1] is phase), reverse=True):
            if digest == NIL:
                continue
            votes = self._votes[view, phase]
            voters = sorted(self.voters(view, phase, digest))
            yield Certificate(
                round_number=votes[voters[0]][digest].statement.round_number,
                view=view,
                phase=phase,
                digest=digest,
                proofs=tuple((member, votes[member][digest].proof) for member in voters),
            )

    def reached(self) -> int:
        """The latest view that members with a third of all weight, so one who is good, have reached; 0 if none."""
        there: list[PeerId] = []
        for member, view in sorted(self._furthest.items(), key=lambda item: -item[1]):
            there.append(member)
            if self._members.is_third(there):
                return view
        return 0

    def _proposed(self, view: int) -> list[bytes]:
        return [proposal.digest for proposal in self.proposals(view)]
