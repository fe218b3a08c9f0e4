"""A deliberation: one member's part in agreeing on a round over a store that all read. Pure: reads in, actions out.

:class:`~prime_dht.ml.agreement.Agreement` says what to say; this turns it into entries. Its driver reads all that lies
under the round's key, again and again, and hands it over (:meth:`Deliberation.hear`); what comes back is carried out,
and then it reads again at :attr:`Deliberation.wake_us`, or before.

**Own statements come back by the same way.** What is to be said is noted, so that a crash does not undo it, and put. It
counts only when a read brings it, signed, as it brings everybody's: then it is durable, and others can read it as well.
What reads do not bring is put again. So a statement that did not get through is no special case, nor is one that was
noted by a member that crashed then.

**After a crash** nothing is said until reads have brought all that was noted before. Then the machine goes on from all
that this member is read to have said: whoever cannot read its own votes does not vote. With a vote that locks, what
backs it is noted, too.

**Whether an outcome is valid** may not be known yet, because a contribution has not arrived. The machine is not
answered then, and the question is asked again in each later view, which lasts longer, while a proposal of it is held. A
contribution may also be gone, for its member has put it again as another op, or may have come too late. So after each
view that failed a member looks whether others can fetch what it proposes, and else leaves it out; and if it has nothing
to propose, it collects again.

**Terms.** Members with other terms (:mod:`~prime_dht.ml.rounds.terms`) are as bad as any. They are named; and if they
have a third of all weight, some good member is among them, and the round ends with an error that says what differs.

**Bounds.** What is held of statements is bounded by :mod:`~prime_dht.ml.agreement.heard`, the rest by what is read at a
time. Signatures are verified once in each view, not in each read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import assert_never

from prime_dht.errors import ConfigError, ValidationError
from prime_dht.ids import PeerId, short
from prime_dht.ml.agreement import (
    NIL,
    Accuse,
    Agreement,
    Backed,
    Broadcast,
    Check,
    Commit,
    Decide,
    Equivocation,
    Outcome,
    Phase,
    Proposal,
    ScheduleTimeout,
    Statement,
    Timeout,
    Timeouts,
    Verify,
    decode_backed,
    decode_commit,
    encode_proposal,
    subkey_of,
)
from prime_dht.ml.agreement.agreement import Action as AgreementAction
from prime_dht.ml.agreement.heard import WINDOW
from prime_dht.ml.rounds.posts import COMMIT, TERMS, Post, is_statement, signed_of, statement_of, view_of_proposal
from prime_dht.ml.rounds.terms import Terms

SHORTEST_PAUSE = 32
LONGEST_PAUSE = 4
"""Between reads that bring nothing new pauses double, from a 32nd to a fourth of the time that votes are waited for."""


@dataclass(frozen=True, slots=True)
class Say:
    """Note this statement, unless it is noted, and put it.

    Attributes:
        note: what is to be known of it after a crash; of a proposal, the value of its entry, which others have none.
    """

    statement: Statement
    note: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Examine:
    """Find out whether an outcome is valid, within some time, and tell it to :meth:`Deliberation.examined`."""

    outcome: Outcome
    within_us: int


@dataclass(frozen=True, slots=True)
class Refresh:
    """A view has failed. Find out whether what this member proposes is still there for others to fetch.

    If it is not, or if there is nothing to propose yet, find something within some time, and tell it to
    :meth:`Deliberation.propose`.
    """

    within_us: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The round has this outcome; make it known."""

    commit: Commit


Action = Say | Examine | Refresh | Finish


@dataclass(frozen=True, slots=True)
class _Open:
    """An outcome of which it is not known whether it is valid, and the view in which that was asked last."""

    outcome: Outcome
    tried: int


class Deliberation:
    """See the module.

    Attributes:
        wake_us: when to read again at the latest.
        commit: the round's outcome, once it is known.
        heard_from: the members whose statements were read.
        differing: members with other terms, and what differs.
    """

    def __init__(
        self,
        *,
        member: PeerId,
        terms: Terms,
        round_number: int,
        timeouts: Timeouts,
        verify: Verify,
        noted: Mapping[bytes, bytes] = MappingProxyType({}),
    ) -> None:
        """Begin, or go on after a crash.

        Args:
            verify: checks the envelopes of posts.
            noted: the notes of all that was to be said in this round before, by subkey.

        Raises:
            ValidationError: it is no member, or what was noted is nothing that it noted.
        """
        if member not in terms.members:
            raise ValidationError("only a member takes part in a round")
        self._member = member
        self._terms = terms
        self._round_number = round_number
        self._timeouts = timeouts
        self._verify = verify
        self._said = {
            subkey: Say(statement_of(member, round_number, subkey, note), note) for subkey, note in noted.items()
        }
        self._machine: Agreement | None = None
        self._timers: list[tuple[int, Timeout]] = []
        self._open: dict[bytes, _Open] = {}
        self._read: set[bytes] = set()
        self._judged: set[bytes] = set()
        self._judged_in = 0
        self._refused: set[bytes] = set()
        self._pause_us = 0
        self._read_us = 0
        self._outcome: Outcome | None = None
        self._refreshed_in = 0
        self.commit: Commit | None = None
        self.heard_from: set[PeerId] = set()
        self.differing: Mapping[PeerId, str] = {}

    @property
    def wake_us(self) -> int:
        return min([self._read_us, *(at_us for at_us, _ in self._timers)])

    @property
    def equivocations(self) -> tuple[Equivocation, ...]:
        """The proofs against members that equivocated, one against each."""
        return () if self._machine is None else self._machine.equivocations

    def needs_value(self, publisher: PeerId, subkey: bytes) -> bool:
        """Whether the value of such a post is looked at, so that it is worth holding, and a blob worth fetching."""
        if publisher not in self._terms.members:
            return False
        view = view_of_proposal(subkey)
        if view is None:
            return subkey in (TERMS, COMMIT)
        current = 0 if self._machine is None else self._machine.view
        is_its_turn = publisher == self._terms.members.proposer(self._round_number, view)
        return publisher == self._member or (is_its_turn and abs(view - current) <= WINDOW)

    def learn(self, posts: Iterable[Post]) -> Commit | None:
        """The round's outcome, if somebody knows it already and proves it; this is part of hearing.

        Raises:
            ConfigError: members with a third of all weight have other terms.
        """
        posts = [post for post in posts if post.publisher in self._terms.members]
        self._compare_terms(posts)
        for post in posts:
            if post.subkey != COMMIT or post.value is None or post.envelope in self._refused:
                continue
            try:
                commit = decode_commit(post.value)
                commit.check(self._round_number, self._terms.members, self._verify)
            except ValidationError:
                self._refused.add(post.envelope)
            else:
                return commit
        return None

    def hear(self, posts: Collection[Post], now_us: int) -> list[Action]:
        """All that lies under the round's key has been read.

        Raises:
            ConfigError: members with a third of all weight have other terms.
        """
        posts = [post for post in posts if post.publisher in self._terms.members]
        envelopes = {post.envelope for post in posts}
        is_news = not envelopes <= self._read
        self._read = envelopes
        self._judged &= envelopes
        self._refused &= envelopes
        self.commit = self.commit or self.learn(posts)
        actions: list[Action] = []
        if self.commit is None and self._machine is None:
            actions += self._begin(posts, now_us)
        if self.commit is None and self._machine is not None:
            actions += self._deliver(self._machine, posts, now_us)
            actions += self._ask_again(self._machine)
            actions += self._refresh(self._machine)
        if self.commit is not None:
            return [Finish(self.commit)]
        read = {post.subkey for post in posts if post.publisher == self._member and post.is_readable}
        unread: list[Action] = [say for subkey, say in self._said.items() if subkey not in read]
        self._pace(now_us, is_quiet=not (is_news or unread))
        return unread + [action for action in actions if not isinstance(action, Say)]

    def tick(self, now_us: int) -> list[Action]:
        """Time has passed."""
        due = [timeout for at_us, timeout in self._timers if at_us <= now_us]
        self._timers = [timer for timer in self._timers if timer[0] > now_us]
        actions: list[Action] = []
        for timeout in due:
            if self._machine is not None and self.commit is None:
                actions += self._carry_out(self._machine, self._machine.time_out(timeout, now_us))
        return self._then(actions, now_us)

    def examined(self, outcome: Outcome, valid: bool | None, now_us: int) -> list[Action]:
        """The answer to :class:`Examine`; ``None``: it cannot be told yet."""
        if valid is None or self._machine is None or self.commit is not None:
            return []
        self._open.pop(outcome.digest, None)
        return self._then(self._carry_out(self._machine, self._machine.checked(outcome, valid, now_us)), now_us)

    def propose(self, outcome: Outcome) -> None:
        """What this member proposes when it is its turn; checked. Without one it only votes."""
        self._outcome = outcome
        if self._machine is not None:
            self._machine.propose(outcome)

    def _then(self, actions: list[Action], now_us: int) -> list[Action]:
        if any(isinstance(action, Say) for action in actions):
            self._pace(now_us, is_quiet=False)
        return actions

    def _compare_terms(self, posts: Iterable[Post]) -> None:
        told = {post.publisher: post.value or b"" for post in posts if post.subkey == TERMS}
        differences = {peer: self._terms.differences(theirs) for peer, theirs in told.items() if peer != self._member}
        self.differing = {peer: text for peer, text in differences.items() if text}
        if self._terms.members.is_third(self.differing):
            named = ". ".join(f"{short(peer)}: {text}" for peer, text in sorted(self.differing.items())[:3])
            raise ConfigError(
                f"{len(self.differing)} of {len(self._terms.members)} members take part in round {self._round_number} "
                f"by other terms. {named}"
            )

    def _begin(self, posts: Iterable[Post], now_us: int) -> list[Action]:
        """Once all that was noted before is read, go on from all that is read."""
        own = [post for post in posts if post.publisher == self._member and is_statement(post.subkey)]
        if not self._said.keys() <= {post.subkey for post in own} or not all(post.is_readable for post in own):
            return []
        self._machine = machine = Agreement(
            member=self._member,
            members=self._terms.members,
            round_number=self._round_number,
            outcome=self._outcome,
            timeouts=self._timeouts,
            verify=self._verify,
            said=[signed_of(post, self._round_number) for post in own],
            backed=self._noted_backing(),
        )
        return self._carry_out(machine, machine.start(now_us))

    def _noted_backing(self) -> Backed | None:
        """What this member was backed by when it last locked."""
        locks = [say for say in self._said.values() if say.statement.phase is Phase.PRECOMMIT and say.note]
        return decode_backed(max(locks, key=lambda say: say.statement.view).note) if locks else None

    def _deliver(self, machine: Agreement, posts: Iterable[Post], now_us: int) -> list[Action]:
        """Tell the machine what was read: proposals first, then prevotes, then precommits."""
        actions: list[Action] = []
        for post in sorted(posts, key=lambda post: (post.subkey, post.publisher)):
            if machine.view != self._judged_in:  # there is room now for what there was none for
                self._judged.clear()
                self._judged_in = machine.view
            is_known = post.envelope in self._judged or post.envelope in self._refused
            if is_known or not is_statement(post.subkey) or not post.is_readable:
                continue
            try:
                actions += self._carry_out(machine, machine.receive(signed_of(post, self._round_number), now_us))
            except ValidationError:
                self._refused.add(post.envelope)
                continue
            self.heard_from.add(post.publisher)
            self._judged.add(post.envelope)
        return actions

    def _ask_again(self, machine: Agreement) -> list[Action]:
        """In a later view there is more time to find out what could not be told before.

        They share as much time as a new one has, or bad proposers could keep members busy with what is not there.
        """
        self._open = {digest: one for digest, one in self._open.items() if machine.awaits_check(one.outcome)}
        again = [one for one in self._open.values() if one.tried < machine.view]
        self._open |= {one.outcome.digest: replace(one, tried=machine.view) for one in again}
        return [Examine(one.outcome, self._examining_us(machine.view) // len(again)) for one in again]

    def _refresh(self, machine: Agreement) -> list[Action]:
        if machine.view <= self._refreshed_in:
            return []
        self._refreshed_in = machine.view
        return [Refresh(self._examining_us(machine.view) // 2)]

    def _examining_us(self, view: int) -> int:
        """Half of the time that the view waits for its proposal: some has passed, and votes are to follow."""
        return self._timeouts.after_us(Phase.PROPOSE, view) // 2

    def _carry_out(self, machine: Agreement, told: Iterable[AgreementAction]) -> list[Action]:
        actions: list[Action] = []
        for action in told:
            match action:
                case Broadcast(statement):
                    say = Say(statement, _note_of(statement, machine.backed))
                    self._said[subkey_of(statement)] = say
                    actions.append(say)
                case ScheduleTimeout(timeout, at_us):
                    self._timers = [timer for timer in self._timers if timer[1].view >= timeout.view]
                    self._timers.append((at_us, timeout))
                case Check(outcome):
                    self._open[outcome.digest] = _Open(outcome, machine.view)
                    actions.append(Examine(outcome, self._examining_us(machine.view)))
                case Accuse():
                    pass  # the machine keeps the proof
                case Decide(commit):
                    self.commit = commit
                    actions.append(Finish(commit))
                case _:
                    assert_never(action)
        return actions

    def _pace(self, now_us: int, *, is_quiet: bool) -> None:
        shortest_us = self._timeouts.vote_us // SHORTEST_PAUSE
        longest_us = self._timeouts.vote_us // LONGEST_PAUSE
        self._pause_us = min(max(shortest_us, 2 * self._pause_us), longest_us) if is_quiet else shortest_us
        self._read_us = now_us + self._pause_us


def _note_of(statement: Statement, backed: Backed | None) -> bytes:
    """Of a proposal, what it proposes; of a vote that locks, what backs it."""
    if isinstance(statement, Proposal):
        return encode_proposal(statement)
    locks = statement.phase is Phase.PRECOMMIT and statement.digest != NIL
    return encode_proposal(backed) if locks and backed is not None else b""
