"""Agreement on a round's outcome: Tendermint as a pure state machine.

E. Buchman, J. Kwon, Z. Milosevic, "The latest gossip on BFT consensus", arXiv 1807.04938, algorithm 1. Methods name its
lines. Events come in with the time, actions go out; the driver

- signs what is to be broadcast, makes it durable *before* anybody hears it, and gives it to the machine as well, which
  counts its own votes only then;
- delivers what others say, and, as entries are read again, whatever may not have been held, again and again;
- answers each :class:`Check` when it has fetched the contributions and computed the aggregate itself;
- gives back each :class:`Timeout` when its time has come.

**Safe** always: no two good members decide differently, and each outcome was checked by a good member. **Live**: all
good members decide once statements arrive in time, while the bad ones have less than a third of all weight.

Both rest on the lock. Who has seen a quorum prevote for an outcome locks on it before it precommits it, and prevotes
for no other until it sees that a quorum prevoted for that other in a later view.

Deliberate differences from the paper:

- A proposal that rests on earlier prevotes carries them, the polka; the paper's ``validRound`` is the polka's view. So
  no member needs votes of views long gone, and what is held can be bounded (:mod:`~prime_dht.ml.agreement.heard`).
- Whether an outcome is valid takes time to find out. Until then its proposal counts as not arrived.
- A certificate of precommits decides without a check of one's own: a good member of it has checked (line 49 waits for
  one's own). So whoever lags, or cannot fetch the contributions any more, learns the outcome from a :class:`Commit`.
- The valid value is updated from earlier views as well (line 36 knows only the current), which helps after a restart.
- A view is skipped to when a third of all weight has come that far or further (line 55: to exactly that view).

**After a crash** a member must not contradict itself. Given the statements that it made, the machine goes on at the
last of them, locked as it was. It must also be able to tell others why it is locked, or they might never follow it, nor
it them; the votes that it saw then may not be held any more. So what it is :attr:`~Agreement.backed` by when it
precommits is to be made durable as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId
from prime_dht.ml.agreement.certificate import MAX_PROOF_BYTES, Certificate, Commit, Verify
from prime_dht.ml.agreement.heard import Equivocation, Heard
from prime_dht.ml.agreement.members import Members
from prime_dht.ml.agreement.statements import NIL, Outcome, Phase, Proposal, Signed, Statement, Vote


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long to wait, in the first view and more in each one after it, so that it is long enough in the end.

    Attributes:
        propose_us: for the proposal. It must leave time to fetch contributions and to check an aggregate.
        vote_us: for the votes that are missing when a quorum has voted.
        growth_us: what is added to either in each view.
    """

    propose_us: int
    vote_us: int
    growth_us: int

    def __post_init__(self) -> None:
        if not (self.propose_us > 0 and self.vote_us > 0 and self.growth_us > 0):
            raise ValidationError("timeouts, and what they grow by, are above 0")

    def after_us(self, phase: Phase, view: int) -> int:
        """How long a phase of a view waits."""
        return (self.propose_us if phase is Phase.PROPOSE else self.vote_us) + view * self.growth_us


@dataclass(frozen=True, slots=True)
class Timeout:
    """That a phase of a view has lasted long enough."""

    view: int
    phase: Phase


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Sign this, make it durable, and tell it to all members, this one among them."""

    statement: Statement


@dataclass(frozen=True, slots=True)
class ScheduleTimeout:
    """Give the timeout back at a time."""

    timeout: Timeout
    at_us: int


@dataclass(frozen=True, slots=True)
class Check:
    """Find out whether an outcome is valid: its ops are contributions of the round, and the CID their aggregate's."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Accuse:
    """A member equivocates; this is the proof."""

    equivocation: Equivocation


@dataclass(frozen=True, slots=True)
class Decide:
    """The round has this outcome. The machine has no more to do; publish it, for those who lag."""

    commit: Commit


Action = Broadcast | ScheduleTimeout | Check | Accuse | Decide


@dataclass(frozen=True, slots=True)
class _Lock:
    """The digest this member precommitted last, and in which view; at first none, in view -1."""

    view: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Backed:
    """An outcome that is valid, and the polka for it; of those that are known, that of the latest view."""

    outcome: Outcome
    polka: Certificate


class Agreement:
    """One member's part in agreeing on the outcome of one round.

    Attributes:
        view, phase: where it is.
        backed: an outcome that a quorum is known to have prevoted: what it is locked on, or a later one.
        decided: the round's outcome, once it is known.
    """

    def __init__(
        self,
        *,
        member: PeerId,
        members: Members,
        round_number: int,
        outcome: Outcome | None,
        timeouts: Timeouts,
        verify: Verify,
        said: Iterable[Signed[Statement]] = (),
        backed: Backed | None = None,
    ) -> None:
        """Begin, or go on after a crash.

        Args:
            outcome: what this member proposes when it is its turn; checked. Without one it only votes.
            verify: checks the proofs of statements.
            said: all that this member has said in this round before, in any order.
            backed: what it was backed by when it last precommitted an outcome.

        Raises:
            ValidationError: it is no member, the outcome is of another round, ``said`` is not what it said, or
                ``backed`` proves nothing.
        """
        if member not in members:
            raise ValidationError("only a member takes part in a round")
        self._member = member
        self._members = members
        self._round_number = round_number
        self._outcome: Outcome | None = None
        self._timeouts = timeouts
        self._verify = verify
        self._heard = Heard(members)
        self._lock = _Lock(-1, NIL)
        self.backed = backed
        self._checks: dict[bytes, bool | None] = {} if backed is None else {backed.outcome.digest: True}
        self._waiting: set[Phase] = set()
        self._actions: list[Action] = []
        self.view = 0
        self.phase = Phase.PROPOSE
        self.decided: Commit | None = None
        self._said = sorted(said, key=lambda signed: (signed.statement.view, signed.statement.phase))
        if outcome is not None:
            self.propose(outcome)
        if backed is not None:
            self._check_polka(backed.outcome, backed.polka)

    @property
    def equivocations(self) -> tuple[Equivocation, ...]:
        """The proofs against members that equivocated, one against each."""
        return tuple(self._heard.equivocations.values())

    @property
    def held(self) -> int:
        """How many statements it holds; bounded, see :mod:`~prime_dht.ml.agreement.heard`."""
        return len(self._heard)

    def start(self, now_us: int) -> list[Action]:
        """Begin with the first view, or go on with that of the last statement made before a crash (line 10)."""
        if not self._said:
            self._enter(0, now_us)
            return self._advance(now_us)
        for signed in self._said:
            self._check_statement(signed)
            statement = signed.statement
            if statement.member != self._member:
                raise ValidationError("a member goes on from what it said itself")
            if statement.phase is Phase.PRECOMMIT and statement.digest != NIL:
                self._lock = _Lock(statement.view, statement.digest)
        last = self._said[-1].statement
        self.view, self.phase = last.view, last.phase
        for signed in self._said:
            self._heard.add(signed, self.view)
        if self.phase is Phase.PROPOSE:
            self._wait(Phase.PROPOSE, now_us)
        return self._advance(now_us)

    def receive(self, signed: Signed[Statement], now_us: int) -> list[Action]:
        """A member said something, this one perhaps.

        Raises:
            ValidationError: it did not, or it is not what a member of this round can say; nothing has changed.
        """
        if self.decided is not None or not self._heard.wants(signed.statement):
            return []
        self._check_statement(signed)
        equivocation = self._heard.add(signed, self.view)
        if equivocation is not None:
            self._actions.append(Accuse(equivocation))
        return self._advance(now_us)

    def learn(self, commit: Commit) -> list[Action]:
        """Somebody says what the outcome of the round is, and proves it.

        Raises:
            ValidationError: it is not proved.
        """
        if self.decided is not None:
            return []
        commit.check(self._round_number, self._members, self._verify)
        self.decided = commit
        return [Decide(commit)]

    def propose(self, outcome: Outcome) -> None:
        """What this member proposes from its next turn on, unless it knows of one that is backed; checked.

        Raises:
            ValidationError: it is the outcome of another round.
        """
        if outcome.round_number != self._round_number:
            raise ValidationError(f"the outcome is that of round {outcome.round_number}, not of {self._round_number}")
        self._outcome = outcome
        self._checks[outcome.digest] = True

    def awaits_check(self, outcome: Outcome) -> bool:
        """Whether the answer to a :class:`Check` is still waited for: the outcome may be proposed again and again."""
        return self._checks.get(outcome.digest, True) is None

    def checked(self, outcome: Outcome, valid: bool, now_us: int) -> list[Action]:
        """The answer to a :class:`Check`."""
        if outcome.digest in self._checks:
            self._checks[outcome.digest] = valid
        return self._advance(now_us)

    def time_out(self, timeout: Timeout, now_us: int) -> list[Action]:
        """The time of a timeout has come (lines 57 to 67)."""
        if self.decided is None and timeout.view == self.view:
            match timeout.phase:
                case Phase.PROPOSE | Phase.PREVOTE:
                    if self.phase is timeout.phase:
                        self._vote(Phase(timeout.phase + 1), NIL)
                case Phase.PRECOMMIT:
                    self._enter(self.view + 1, now_us)
                case _:
                    assert_never(timeout.phase)
        return self._advance(now_us)

    def _advance(self, now_us: int) -> list[Action]:
        """Apply the rules until none of them applies any more."""
        while self.decided is None and (
            self._decide()
            or self._skip(now_us)
            or self._prevote()
            or self._precommit()
            or self._precommit_nil()
            or self._wait_for_votes(now_us)
        ):
            pass
        if self.decided is None:
            self._ask()
        actions, self._actions = self._actions, []
        return actions

    def _decide(self) -> bool:
        """A quorum precommitted an outcome, in any view (line 49)."""
        for certificate in self._heard.certificates(Phase.PRECOMMIT):
            outcome = self._outcome_of(certificate.digest)
            if outcome is not None:
                self.decided = Commit(outcome=outcome, certificate=certificate)
                self._actions.append(Decide(self.decided))
                return True
        return False

    def _skip(self, now_us: int) -> bool:
        """A good member is in a later view (line 55)."""
        reached = self._heard.reached()
        if reached <= self.view:
            return False
        self._enter(reached, now_us)
        return True

    def _prevote(self) -> bool:
        """The proposal is there and checked (lines 22 and 28)."""
        if self.phase is not Phase.PROPOSE:
            return False
        for proposal in self._heard.proposals(self.view):
            valid = self._checks.get(proposal.digest)
            if valid is not None:
                self._vote(Phase.PREVOTE, proposal.digest if valid and self._may_prevote(proposal) else NIL)
                return True
        return False

    def _may_prevote(self, proposal: Proposal) -> bool:
        """Whether the lock allows it: it is on the same outcome, or no later than the polka that came with this one."""
        backed_in = -1 if proposal.polka is None else proposal.polka.view
        return self._lock.view <= backed_in or self._lock.digest == proposal.digest

    def _precommit(self) -> bool:
        """A quorum prevoted a valid outcome: lock on it and precommit it, or remember it at least (line 36)."""
        for polka in self._heard.certificates(Phase.PREVOTE):
            outcome = self._outcome_of(polka.digest)
            if outcome is None or not self._checks.get(polka.digest):
                continue
            locks = polka.view == self.view and self.phase is Phase.PREVOTE
            if locks:
                self._lock = _Lock(self.view, polka.digest)
                self._vote(Phase.PRECOMMIT, polka.digest)
            newer = self.backed is None or self.backed.polka.view < polka.view
            if newer:
                self.backed = Backed(outcome, polka)
            if locks or newer:
                return True
        return False

    def _precommit_nil(self) -> bool:
        """A quorum prevoted for none (line 44)."""
        if self.phase is not Phase.PREVOTE:
            return False
        if not self._members.is_quorum(self._heard.voters(self.view, Phase.PREVOTE, NIL)):
            return False
        self._vote(Phase.PRECOMMIT, NIL)
        return True

    def _wait_for_votes(self, now_us: int) -> bool:
        """A quorum voted, for whatever: the other votes have so much time (lines 34 and 47)."""
        for phase in (Phase.PREVOTE, Phase.PRECOMMIT):
            if phase in self._waiting or (phase is Phase.PREVOTE and self.phase is not Phase.PREVOTE):
                continue
            if self._members.is_quorum(self._heard.voters(self.view, phase)):
                self._wait(phase, now_us)
                return True
        return False

    def _ask(self) -> None:
        """Have the outcomes checked that are proposed up to this view, each once."""
        proposals = [proposal for proposal in self._heard.all_proposals() if proposal.view <= self.view]
        for proposal in proposals:
            if proposal.digest not in self._checks:
                self._checks[proposal.digest] = None
                self._actions.append(Check(proposal.outcome))

    def _enter(self, view: int, now_us: int) -> None:
        """Begin a view (lines 11 to 21)."""
        self.view, self.phase = view, Phase.PROPOSE
        self._waiting.clear()
        self._heard.forget(view)
        kept = {proposal.digest for proposal in self._heard.all_proposals()}
        kept |= {known.digest for known in (self._outcome, self.backed and self.backed.outcome) if known}
        self._checks = {digest: valid for digest, valid in self._checks.items() if digest in kept}
        self._wait(Phase.PROPOSE, now_us)
        backed = self.backed
        outcome = self._outcome if backed is None else backed.outcome
        if outcome is not None and self._members.proposer(self._round_number, view) == self._member:
            self._actions.append(
                Broadcast(
                    Proposal(
                        member=self._member,
                        round_number=self._round_number,
                        view=view,
                        outcome=outcome,
                        polka=None if backed is None else backed.polka,
                    )
                )
            )

    def _vote(self, phase: Phase, digest: bytes) -> None:
        self.phase = phase
        vote = Vote(member=self._member, round_number=self._round_number, view=self.view, phase=phase, digest=digest)
        self._actions.append(Broadcast(vote))

    def _wait(self, phase: Phase, now_us: int) -> None:
        self._waiting.add(phase)
        at_us = now_us + self._timeouts.after_us(phase, self.view)
        self._actions.append(ScheduleTimeout(Timeout(self.view, phase), at_us))

    def _outcome_of(self, digest: bytes) -> Outcome | None:
        for proposal in self._heard.all_proposals():
            if proposal.digest == digest:
                return proposal.outcome
        return None

    def _check_statement(self, signed: Signed[Statement]) -> None:
        statement = signed.statement
        if statement.member not in self._members:
            raise ValidationError("somebody who is no member of the round speaks in it")
        if statement.round_number != self._round_number:
            raise ValidationError(f"this is of round {statement.round_number}, not of {self._round_number}")
        if isinstance(statement, Proposal):
            self._check_proposal(statement)
        if len(signed.proof) > MAX_PROOF_BYTES or not self._verify(statement, signed.proof):
            raise ValidationError("a member did not sign what it is said to have said")

    def _check_proposal(self, proposal: Proposal) -> None:
        if proposal.member != self._members.proposer(self._round_number, proposal.view):
            raise ValidationError(f"a member proposes in view {proposal.view}, and it is not its turn")
        if proposal.outcome.round_number != self._round_number:
            raise ValidationError("a proposal is the outcome of another round")
        if proposal.polka is None:
            return
        if not proposal.polka.view < proposal.view:
            raise ValidationError("the polka of a proposal is of an earlier view")
        self._check_polka(proposal.outcome, proposal.polka)

    def _check_polka(self, outcome: Outcome, polka: Certificate) -> None:
        if (polka.round_number, polka.phase, polka.digest) != (self._round_number, Phase.PREVOTE, outcome.digest):
            raise ValidationError("a polka is not of prevotes for its outcome")
        polka.check(self._members, self._verify)
