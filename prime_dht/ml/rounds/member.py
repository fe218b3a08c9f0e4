"""A member's round, from its own gradient to the aggregate that all agreed on: :class:`RoundMember`.

The thread that calls :meth:`RoundMember.run` does it all, and waits in between.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, SupportsFloat, SupportsIndex, assert_never

from prime_dht.blobs.chunking import TensorChunker
from prime_dht.blocking.call import checked_timeout
from prime_dht.entries import capability_in, check_capability
from prime_dht.errors import BlobError, LocalProtocolError, PrimeDHTError, QueryError, ValidationError
from prime_dht.ids import US_PER_S, PeerId, peer_text
from prime_dht.ml.aggregation import Aggregate, Rule, screen
from prime_dht.ml.aggregation.rule import whole
from prime_dht.ml.agreement import (
    Certificate,
    Commit,
    Equivocation,
    Outcome,
    Proposal,
    Statement,
    Timeouts,
    encode_commit,
    entry_proofs,
    subkey_of,
)
from prime_dht.ml.codecs import Codec, ErrorFeedback
from prime_dht.ml.gradients import Gradients, gradient_key
from prime_dht.ml.gradients.announcement import checked_round, group_of
from prime_dht.ml.gradients.gradients import DEFAULT_TTL_S as GRADIENT_TTL_S
from prime_dht.ml.rounds.board import Board, entries_under
from prime_dht.ml.rounds.deliberation import Action, Deliberation, Examine, Finish, Refresh, Say
from prime_dht.ml.rounds.examiner import Examiner
from prime_dht.ml.rounds.journal import Journal, journals_of
from prime_dht.ml.rounds.posts import COMMIT, TERMS, round_key
from prime_dht.ml.rounds.terms import Terms
from prime_dht.ml.rounds.verification import GivenMembers, as_members
from prime_dht.ml.tensors import Spec, Tensors, Weights, as_tensors, check_spec
from prime_dht.ml.weights import from_safetensors, to_safetensors
from prime_dht.quantities import number_of

if TYPE_CHECKING:
    from prime_dht.blocking import BlockingDHT
    from prime_dht.ml.gradients import Collected
    from prime_dht.node.dht import PrimeDHT
    from prime_dht.node.results import Found

TIMEOUTS = Timeouts(propose_us=30 * US_PER_S, vote_us=5 * US_PER_S, growth_us=5 * US_PER_S)
"""For gradients of some megabytes, on the Internet."""

DEFAULT_TTL_S = 86_400.0
"""Of a round's statements, outcome and aggregate: whoever was away for so long cannot catch up with it."""

PUBLISHING_S = 60.0
"""For the outcome of a round that was decided at the last moment."""

_RETRY_S = 0.25
_NAMED = 5

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What came of a round.

    Attributes:
        commit: the outcome, and the certificate that proves it.
        aggregate: of the contributions that the outcome names. A member that came too late to compute it has the
            tensors alone, as they were agreed on: then nobody is in ``used`` and ``rejected``.
        missing: members whose gradient this one did not get in time.
        rejected: members whose gradient could not be used, and why.
        equivocations: proofs against members that said two things where one is allowed, one against each.
        differing: members that take part by other terms, and what differs.
        is_published: whether this member's put of the outcome and the aggregate was acknowledged. If not, others can
            still find the outcome, as it did.
    """

    commit: Commit
    aggregate: Aggregate
    missing: tuple[PeerId, ...] = ()
    rejected: Mapping[PeerId, str] = field(default_factory=dict)
    equivocations: tuple[Equivocation, ...] = ()
    differing: Mapping[PeerId, str] = field(default_factory=dict)
    is_published: bool

    @property
    def outcome(self) -> Outcome:
        return self.commit.outcome

    @property
    def certificate(self) -> Certificate:
        return self.commit.certificate

    @property
    def proof(self) -> bytes:
        """Outcome and certificate as bytes, for :func:`~prime_dht.ml.rounds.verify_commit`."""
        return encode_commit(self.commit)


class RoundMember:
    """One member of a group, round after round.

    Args:
        dht: joined, as the member; with a data directory, so that a member whose process ends can come back.
        members: all members of the rounds, by peer id, this one among them; or the weights of their votes by peer id.
        rule: how gradients become one.
        bad: so many of them the rule has to stand, also where no more than a quorum of the members take part.
        spec: that gradients must have, :func:`~prime_dht.ml.tensors.spec_of` one of them. All members must have the
            same members, rule, bad and spec; those that have not are named in an error.
        capability: that this member was given, to write in the group: the text in the file that
            ``prime-dht group invite`` made, or what :func:`prime_dht.entries.capability.grant` returned.
        group: as for :class:`~prime_dht.ml.gradients.Gradients`; the capability's by default.
        codec: how gradients travel.
        timeouts: how long members wait for each other while they agree.
        collect_s: seconds to wait for the gradients of all; at most half of what a round has left.
        ttl_s: seconds that the round's statements, outcome and aggregate live; a day by default, or less where the
            network does not allow so much. Gradients live no longer, and four hours at most.
        progress: is told, in words, how far a round is.

    Raises:
        ValidationError: this node is no member, the capability is not for it or not of the group, the rule does not
            stand so many bad of as few as decide a round, or a tensor of the spec is not floating.
    """

    def __init__(
        self,
        dht: BlockingDHT,
        *,
        members: GivenMembers,
        rule: Rule,
        bad: int,
        spec: Spec,
        capability: bytes | str,
        group: str | bytes | None = None,
        codec: str | Codec | ErrorFeedback = "none",
        timeouts: Timeouts = TIMEOUTS,
        collect_s: float = 60.0,
        ttl_s: float | None = None,
        progress: Progress = lambda _: None,
    ) -> None:
        async def about(node: PrimeDHT) -> tuple[PeerId, str, float]:
            return node.peer_id, node.config.network_id, node.config.limits.max_ttl_s

        self.peer_id, self._network_id, max_ttl_s = dht.call(about)
        self.members = as_members(members)
        if self.peer_id not in self.members:
            raise ValidationError(f"this node, {peer_text(self.peer_id)}, is none of the {len(self.members)} members")
        bad = whole("the number of bad members", bad)
        if bad < 0:
            raise ValidationError(f"there cannot be {bad} bad members")
        if bad > (most := rule.stands(fewest := self.members.fewest())):
            raise ValidationError(
                f"a round goes on with {fewest} of {len(self.members)} members, and {rule.name} of {fewest} "
                + (f"stands at most {most} bad, not {bad}" if most >= 0 else "is not defined: there are too few")
            )
        screen((), spec)
        capability = capability_in(capability)
        root = group_of(group, capability)
        if root is None:
            raise ValidationError("rounds are a group's: give the capability that `prime-dht group invite` made")
        check_capability(capability, root=root, network_id=self._network_id, member=self.peer_id, expires_at_us=0)
        self.group = root
        self.terms = Terms(members=self.members, rule=rule, bad=bad, spec=dict(spec))
        self._dht = dht
        self._capability = capability
        self._codec = codec
        self._timeouts = timeouts
        self._collect_s = collect_s
        self._ttl_s = min(DEFAULT_TTL_S, max_ttl_s) if ttl_s is None else number_of("ttl_s", ttl_s)
        self._progress = progress
        self._gradients = Gradients(dht, group=root, capability=capability, ttl_s=min(GRADIENT_TTL_S, self._ttl_s))
        self._sitting = threading.Lock()
        self._journals = journals_of(dht)

    def run(
        self,
        round_number: SupportsIndex,
        tensors: Weights,
        metrics: Mapping[str, SupportsFloat | str] | None = None,
        *,
        weight: float = 1.0,
        timeout: float = 600.0,
    ) -> Committed:
        """Take part in a round: publish, collect, agree, aggregate, commit.

        Again after a crash, or after this failed, it goes on where it was: a gradient that was published before stands,
        and so does what was said. Of a round that is over it returns what it came to.

        Args:
            round_number: 0 or more; of a group each is used once, also by another training run.
            tensors: this member's gradient.
            metrics, weight: what others are told with it, as in :meth:`~prime_dht.ml.gradients.Gradients.publish`.
            timeout: seconds within which the round has to be decided.

        Raises:
            ValidationError: there is no such round, the tensors are not of the spec, the capability has ended, or this
                is a forked process.
            ConfigError: members with a third of all weight take part by other terms.
            QueryError: the round was not decided in time, or its aggregate cannot be fetched.
            StorageError: what was said in the round before cannot be read, or what is to be said not written.
            LocalProtocolError: this member is in a round already, or this node in the same one.
        """
        if self._dht.peer_id != self.peer_id:
            raise ValidationError("in this process the client has another identity, which is no member")
        round_number = checked_round(round_number)
        arrays = as_tensors(tensors)
        check_spec(arrays, self.terms.spec)
        timeout = checked_timeout(timeout)
        if not self._sitting.acquire(blocking=False):
            raise LocalProtocolError("this member is in a round already; one ends before the next begins")
        try:
            with self._journals.opened(f"{self.group.hex()}-{round_number}") as journal:
                return _Sitting(self, round_number, journal, timeout).carry_out(arrays, metrics or {}, weight)
        finally:
            self._sitting.release()


class _Sitting:
    """One run of a round, with a deadline."""

    def __init__(self, member: RoundMember, round_number: int, journal: Journal, timeout_s: float) -> None:
        self._gradient_key = gradient_key(round_number, member.group)
        key = round_key(member.group, round_number)
        self._member = member
        self._dht = member._dht
        self._round_number = round_number
        self._timeout_s = timeout_s
        self._deadline_s = time.monotonic() + timeout_s
        self._board = Board(self._dht, key, capability=member._capability, ttl_s=member._ttl_s)
        self._lacks = ""
        self._is_decided = False
        self._examiner = Examiner(member._gradients, member.terms, round_number)
        self._journal = journal
        self._deliberation = Deliberation(
            member=member.peer_id,
            terms=member.terms,
            round_number=round_number,
            timeouts=member._timeouts,
            verify=entry_proofs(member._network_id, key),
            noted=self._journal.notes,
        )

    def carry_out(self, tensors: Tensors, metrics: Mapping[str, SupportsFloat | str], weight: float) -> Committed:
        """From the own gradient to the outcome."""
        collected: Collected | None = None
        self._announce()
        posts = self._board.read(self._deliberation.needs_value, timeout_s=self._left_s)
        commit = self._deliberation.learn(posts or ())
        if commit is not None:
            self._note_published_before(tensors)
        else:
            self._publish(tensors, metrics, weight)
            collected = self._collect()
            commit = self._deliberate()
        self._is_decided = True
        self._tell(f"committed in view {commit.certificate.view}: {len(commit.outcome.op_ids)} gradients")
        aggregate = self._aggregate(commit.outcome)
        return Committed(
            commit=commit,
            aggregate=aggregate,
            missing=collected.missing if collected else (),
            rejected={**(collected.rejected if collected else {}), **aggregate.rejected},
            equivocations=self._deliberation.equivocations,
            differing=self._deliberation.differing,
            is_published=self._publish_outcome(commit, aggregate),
        )

    def _announce(self) -> None:
        """Tell by what terms this member takes part, before anything else."""
        while not self._board.put(TERMS, self._member.terms.encode(), timeout_s=self._left_s):
            self._wait(_RETRY_S)

    def _publish(self, tensors: Tensors, metrics: Mapping[str, SupportsFloat | str], weight: float) -> None:
        """Publish the own gradient, once: were it put again, others would look for its old op id in vain."""
        member = self._member
        while True:
            try:
                if (before := self._published_before()) is not None:
                    self._tell("its gradient was published before")
                    self._note_sent(tensors, before)
                    return
                receipt = member._gradients.publish(
                    self._round_number,
                    tensors,
                    metrics,
                    weight=weight,
                    codec=member._codec,
                    timeout=self._left_s,
                )
                self._board.trouble = receipt.warning or ""
                self._tell(": ".join(filter(None, ("published its gradient", receipt.warning))))
                return
            except QueryError as error:
                self._board.trouble = str(error)
                self._wait(_RETRY_S)

    def _published_before(self) -> Found | None:
        """The entry of the gradient that this member has published in this round.

        Raises:
            QueryError: nobody could be asked.
        """
        own = self._dht.get_all(self._gradient_key, publishers=[self._member.peer_id], timeout=self._left_s)
        return max(own, key=lambda one: (one.created_at_us, one.op_id), default=None)

    def _note_published_before(self, tensors: Tensors) -> None:
        """Of a round that is over: what this member sent in it, and so what it left out."""
        try:
            if isinstance(self._member._codec, ErrorFeedback) and (before := self._published_before()) is not None:
                self._note_sent(tensors, before)
        except QueryError as error:
            self._tell(f"what its gradient left out is not known: {error}")

    def _note_sent(self, tensors: Tensors, published: Found) -> None:
        """Have an error feedback know what was sent before a crash, which its errors may be older than."""
        feedback = self._member._codec
        if not isinstance(feedback, ErrorFeedback):
            return
        try:
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory) / "gradient"
                self._dht.get(
                    published.key,
                    subkey=published.subkey,
                    publisher=published.publisher,
                    to=path,
                    timeout=self._left_s,
                )
                feedback.resume(tensors, path.read_bytes() if path.exists() else b"")
        except (BlobError, ValidationError) as error:
            self._tell(f"what its gradient left out is not known: {error}")

    def _collect(self) -> Collected | None:
        """Collect what there is, and make of it what this member will propose."""
        member = self._member
        try:
            collected = member._gradients.collect(
                self._round_number,
                members=list(member.members.weights),
                timeout=min(member._collect_s, self._left_s / 2),
                spec=member.terms.spec,
            )
        except QueryError as error:
            self._board.trouble = str(error)
            return None
        try:
            self._deliberation.propose(self._examiner.propose(collected))
            self._tell(f"collected {len(collected.gradients)} of {len(member.members)} gradients")
        except ValidationError as error:
            self._lacks = f"Nothing could be proposed: {error}. "
            self._tell(f"collected too little to propose anything: {error}")
        return collected

    def _deliberate(self) -> Commit:
        deliberation = self._deliberation
        while True:
            posts = self._board.read(deliberation.needs_value, timeout_s=self._left_s)
            actions = deque[Action]() if posts is None else deque(deliberation.hear(posts, _now_us()))
            actions += deliberation.tick(_now_us())
            while actions:
                match actions.popleft():
                    case Say(statement, note):
                        self._say(statement, note)
                    case Examine(outcome, within_us):
                        valid = self._examiner.examine(outcome, timeout_s=min(within_us / US_PER_S, self._left_s))
                        actions += deliberation.examined(outcome, valid, _now_us())
                    case Refresh() as refresh if actions:  # nobody waits for what this member may propose one day
                        actions.append(refresh)
                    case Refresh(within_us):
                        self._refresh(within_s=within_us / US_PER_S)
                    case Finish(commit):
                        return commit
                    case action:
                        assert_never(action)
            self._wait(_RETRY_S if posts is None else (deliberation.wake_us - _now_us()) / US_PER_S)

    def _say(self, statement: Statement, note: bytes) -> None:
        """Note it, so that a crash does not undo it; then let others hear it. If that fails, it will be said again."""
        subkey = subkey_of(statement)
        self._journal.note(subkey, note)
        self._board.put(subkey, note if isinstance(statement, Proposal) else b"", timeout_s=self._left_s)

    def _refresh(self, *, within_s: float) -> None:
        """Propose nothing that others cannot fetch any more, and what has come too late to be collected at first."""
        try:
            entries = entries_under(self._dht, self._gradient_key, timeout_s=self._left_s)
            published = sorted((one.created_at_us, one.op_id, one.publisher) for one in entries)
        except QueryError as error:
            self._board.trouble = str(error)
            return
        there = {op_id for _, op_id, _ in published}
        if self._examiner.proposes(there):
            return
        outcome = self._examiner.leave_out_what_is_gone(there)
        if outcome is None:
            newest = {publisher: op_id for _, op_id, publisher in published if publisher in self._member.members}
            outcome = self._examiner.propose_late(newest, timeout_s=min(within_s, self._left_s))
        if outcome is not None:
            self._lacks = ""
            self._tell(f"proposes {len(outcome.op_ids)} gradients now, for others are gone, or have come late")
            self._deliberation.propose(outcome)

    def _aggregate(self, outcome: Outcome) -> Aggregate:
        """Of an outcome that is decided: as this member computes it, or else as those who could have published it."""
        within_s = self._member._timeouts.propose_us / US_PER_S
        if self._examiner.examine(outcome, timeout_s=min(within_s, self._left_s)):
            aggregate = self._examiner.aggregate_of(outcome)
            assert aggregate is not None
            return aggregate
        self._tell("fetching the aggregate")
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "aggregate.safetensors"
            while not self._fetch(outcome.aggregate, path):
                self._wait(_RETRY_S)
            tensors = from_safetensors(path.read_bytes())
        check_spec(tensors, self._member.terms.spec)
        return Aggregate(tensors=tensors, used=(), rejected={})

    def _fetch(self, cid: bytes, path: Path) -> bool:
        try:
            self._dht.blobs.fetch(cid, to=path, timeout=self._left_s)
        except (QueryError, BlobError) as error:
            self._board.trouble = str(error)
            return False
        return True

    def _publish_outcome(self, commit: Commit, aggregate: Aggregate) -> bool:
        """Let others know; whether that was acknowledged. The round is decided all the same.

        The outcome goes first, for those who lag. They can compute the aggregate, or wait for one who has.
        """
        self._deadline_s = max(self._deadline_s, time.monotonic() + PUBLISHING_S)
        try:
            while not self._board.put(COMMIT, encode_commit(commit), timeout_s=self._left_s):
                self._wait(_RETRY_S)
            self._journal.discard()
            if not aggregate.used:  # it is there, for this member fetched it
                return True
            return self._dht.blobs.add(
                to_safetensors(aggregate.tensors),
                chunker=TensorChunker.name,
                ttl=self._member._ttl_s,
                timeout=self._left_s,
            ).acknowledged
        except PrimeDHTError as error:  # a full disk among them: the caller is to have what was decided
            self._tell(f"the outcome was not published: {error}")
            return False

    @property
    def _left_s(self) -> float:
        """Seconds until the deadline.

        Raises:
            QueryError: it has passed.
        """
        left_s = self._deadline_s - time.monotonic()
        if left_s > 0:
            return left_s
        if self._is_decided:
            raise QueryError(
                f"round {self._round_number} is decided, but its aggregate could not be had, or not be published, "
                f"within {self._timeout_s:g} s. {self._board.trouble}".rstrip()
            )
        others = [peer for peer in self._member.members.weights if peer != self._member.peer_id]
        silent = [peer_text(peer) for peer in others if peer not in self._deliberation.heard_from]
        raise QueryError(
            f"round {self._round_number} was not decided within {self._timeout_s:g} s. "
            f"{len(silent)} of {len(others)} other members were not heard: {', '.join(silent[:_NAMED]) or 'none'}. "
            f"{self._lacks}{self._board.trouble}".rstrip()
        )

    def _wait(self, seconds: float) -> None:
        time.sleep(max(0.0, min(seconds, self._left_s)))

    def _tell(self, text: str) -> None:
        self._member._progress(f"round {self._round_number}: {text}")


def _now_us() -> int:
    return time.monotonic_ns() // 1000
