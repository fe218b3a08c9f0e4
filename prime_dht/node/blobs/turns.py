"""Whose turn it is: the order in which a node fetches the blobs that it is to keep, a few at a time.

Anybody can put entries that refer to blobs which nobody has, or which come a block a minute, as many as one likes.
Others' blobs must not wait for those.

- *Among publishers.* The next turn is of the publisher with the fewest fetches under way; of these, of the one whose
  last turn began or was cut short the longest ago; and of those that had none, of the one whose reference came last.
- *Of one publisher* the reference that was tried least is fetched; of these, the newest.
- *Giving way.* A fetch to which nothing has come for ``QUIET_S`` gives way to others that wait; if all of these were
  tried before, after twice as long, and so on. Of those under way the one that began first has twice as long for each
  time that it was tried itself. So a new reference never waits for long, and one that is slow gets its time too. Any
  fetch gives way after ``TURN_S``, to a publisher that has none under way.
- *Again.* What failed or was quiet waits for its next turn; ever longer, unless blocks come.

References are told apart, though they be to the same blob, for one may be wrong about its size, or its publisher lack
it. They are fetched one after the other, and all are done when the blob is here. So a fetch gives way to others to the
same blob only when it is quiet, and no other fetch gives way to them.

Nothing here has a clock: all times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from operator import attrgetter
from random import Random

from prime_dht.blobs.cid import Cid
from prime_dht.ids import OpId, PeerId
from prime_dht.node.blobs.claims import KeptBlob
from prime_dht.node.blobs.progress import BlobProgress

TURNS_AT_ONCE = 2
"""Fetches in the background, of those that a node runs; the rest are left to readers."""

QUIET_S = 5.0
TURN_S = 60.0
RETRY_FIRST_S = 5.0
RETRY_AT_MOST_S = 3600.0
LOOK_AGAIN_S = 60.0
"""Whether this node is to have a blob is looked at again after so long."""
LOOKS_AT_ONCE = 250
LOOKS_OF = 50
LOOK_PAUSE_S = 0.01
"""It is looked at for so many at a time, a matter of 5 ms, and then for others; or for a 50th of all, if that is more:
to go through all of them takes about as long. New ones come first, and then those that were looked at longest ago."""
REST_S = 3e-6
"""For each reference, between two times that all of them are gone through: that takes a third of it, or less."""
MOST_DOUBLINGS = 20
"""However often a reference was tried: a time has no room for more than a thousand."""


@dataclass(slots=True)
class _Reference:
    """A blob that is lacking, for the sake of one entry.

    Attributes:
        due_s: when it is fetched next, or looked at again.
        ours_until_s: until when it need not be looked at.
        looked_s: when it was looked at last.
    """

    blob: KeptBlob
    due_s: float = -math.inf
    ours_until_s: float = -math.inf
    looked_s: float = -math.inf
    tries: int = 0


@dataclass(slots=True, eq=False)
class Turn:
    """A fetch that is under way: since when, and when it was heard of last.

    It need not give way before it has a place among all fetches of the node, nor once it has all blocks.
    """

    blob: KeptBlob
    began_s: float = math.inf
    heard_s: float = math.inf
    progress: BlobProgress | None = None


@dataclass(frozen=True, slots=True)
class Begin:
    """Fetch ``turn.blob``, and report how that goes."""

    turn: Turn


@dataclass(frozen=True, slots=True)
class GiveWay:
    """Break this fetch off."""

    turn: Turn


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Nothing to do until something is reported, or until this time."""

    at_s: float


class Turns:
    """See the module. Report what happens, call :meth:`next` and do what it says, until that is to wait.

    Args:
        is_ours: whether this node is to have a blob here at all; asked of each blob every ``LOOK_AGAIN_S`` at most, and
            of no more than ``LOOKS_AT_ONCE``, or a part of all, each time that :meth:`next` is called.
    """

    def __init__(self, rng: Random, is_ours: Callable[[KeptBlob], bool]) -> None:
        self._rng = rng
        self._is_ours = is_ours
        self._lacking: dict[OpId, _Reference] = {}
        self._under_way: dict[OpId, Turn] = {}
        self._elsewhere: Counter[Cid] = Counter()
        self._served_s: dict[PeerId, float] = {}

    @property
    def rest_s(self) -> float:
        """How long to wait before :meth:`next` is called again, whatever happens: it costs as much as there are."""
        return REST_S * len(self._lacking)

    def add(self, blobs: Iterable[KeptBlob]) -> None:
        """Blobs are claimed, and are lacking, or may be. Those known already stay as they are."""
        for blob in blobs:
            if blob.op_id not in self._lacking:
                self._lacking[blob.op_id] = _Reference(blob)

    def retain(self, op_ids: Container[OpId]) -> None:
        """Only these entries are still there."""
        for op_id in [op_id for op_id in self._lacking if op_id not in op_ids]:
            del self._lacking[op_id]
        publishers = {reference.blob.publisher for reference in self._lacking.values()}
        self._served_s = {peer: at_s for peer, at_s in self._served_s.items() if peer in publishers}

    def next(self, now_s: float) -> Begin | GiveWay | WaitUntil:
        """What is to be done now."""
        waiting, is_all = self._waiting(now_s)
        roots = {*self._elsewhere, *(turn.blob.root for turn in self._under_way.values())}
        free = [reference for reference in waiting if reference.blob.root not in roots]
        if free and len(self._under_way) < TURNS_AT_ONCE:
            first = self._first(free)
            turn = self._under_way[first.blob.op_id] = Turn(first.blob)
            self._served_s[first.blob.publisher] = now_s
            return Begin(turn)
        changes_s = [each.due_s for each in self._lacking.values() if each.due_s > now_s]
        if not is_all:
            changes_s.append(now_s + LOOK_PAUSE_S)
        for turn in self._under_way.values():
            same = [reference for reference in waiting if reference.blob.root == turn.blob.root]
            gives_way_at_s = self._gives_way_at_s(turn, same, free)
            if now_s >= gives_way_at_s:
                if now_s >= turn.heard_s + QUIET_S:
                    self.failed(turn, now_s)
                self.ended(turn)
                self._served_s[turn.blob.publisher] = now_s
                return GiveWay(turn)
            changes_s.append(gives_way_at_s)
        return WaitUntil(min(changes_s, default=math.inf))

    def told(self, turn: Turn, progress: BlobProgress, now_s: float) -> None:
        """How far it is: the first time it has begun; and later it shows whether anything came."""
        before, turn.progress = turn.progress, progress
        if before is None:
            turn.began_s = turn.heard_s = now_s
        elif progress.fetched_blocks > before.fetched_blocks:
            turn.heard_s = now_s
            if reference := self._lacking.get(turn.blob.op_id):
                reference.tries = 0
        elif (progress.done_bytes, progress.fetched_parts) != (before.done_bytes, before.fetched_parts):
            turn.heard_s = now_s  # of a part of a block, or of a block that was here already

    def leave(self, root: Cid) -> list[Turn]:
        """Somebody else fetches a blob here, until :meth:`take_back`. Returns the fetches to break off."""
        self._elsewhere[root] += 1
        return [turn for turn in self._under_way.values() if turn.blob.root == root]

    def take_back(self, root: Cid) -> None:
        """They do so no longer, however that went."""
        self._elsewhere[root] -= 1
        self._elsewhere += Counter()  # those that are left

    def is_elsewhere(self, root: Cid) -> bool:
        """Whether somebody else fetches it here."""
        return root in self._elsewhere

    def brought(self, turn: Turn) -> None:
        """All its blocks are here."""
        turn.began_s = turn.heard_s = math.inf

    def failed(self, turn: Turn, now_s: float) -> float | None:
        """It failed. Returns in how many seconds it is tried again; ``None`` if it need not be."""
        reference = self._lacking.get(turn.blob.op_id)
        if reference is None or self._under_way.get(turn.blob.op_id) is not turn:
            return None
        wait_s = min(_doubled_s(RETRY_FIRST_S, reference.tries), RETRY_AT_MOST_S) * self._rng.uniform(1.0, 1.5)
        reference.tries += 1
        reference.due_s = now_s + wait_s
        return wait_s

    def done(self, root: Cid) -> None:
        """A blob is here, or nobody wants it here any more."""
        for op_id in [op_id for op_id, each in self._lacking.items() if each.blob.root == root]:
            del self._lacking[op_id]

    def ended(self, turn: Turn) -> None:
        """It is under way no longer, however it went."""
        if self._under_way.get(turn.blob.op_id) is turn:
            del self._under_way[turn.blob.op_id]

    # Within

    def _waiting(self, now_s: float) -> tuple[list[_Reference], bool]:
        """What is to be fetched and due, and not under way; and whether all were looked at."""
        waiting: list[_Reference] = []
        unsure: list[_Reference] = []
        for op_id, reference in self._lacking.items():
            if reference.due_s > now_s or op_id in self._under_way:
                continue
            if reference.ours_until_s > now_s:
                waiting.append(reference)
            else:
                unsure.append(reference)
        looks = max(LOOKS_AT_ONCE, len(self._lacking) // LOOKS_OF)
        if len(unsure) > looks:
            unsure.sort(key=attrgetter("looked_s"))
        for reference in unsure[:looks]:
            reference.looked_s = now_s
            if self._is_ours(reference.blob):
                reference.ours_until_s = now_s + LOOK_AGAIN_S
                waiting.append(reference)
            else:
                reference.due_s = now_s + LOOK_AGAIN_S
        return waiting, len(unsure) <= looks

    def _first(self, free: list[_Reference]) -> _Reference:
        """Whose turn is next, of references to blobs that are not being fetched."""
        busy = Counter(turn.blob.publisher for turn in self._under_way.values())
        latest_s: dict[PeerId, float] = {}
        for reference in free:
            publisher, since_s = reference.blob.publisher, reference.blob.since_s
            latest_s[publisher] = max(since_s, latest_s.get(publisher, since_s))

        def rank(reference: _Reference) -> tuple[float, ...]:
            blob = reference.blob
            served_s = self._served_s.get(blob.publisher, -math.inf)
            publisher_rank = busy[blob.publisher], served_s, -latest_s[blob.publisher]
            return *publisher_rank, reference.tries, -blob.created_at_us

        return min(free, key=rank)

    def _gives_way_at_s(self, turn: Turn, same: list[_Reference], free: list[_Reference]) -> float:
        """When it has been quiet for too long for those that wait for it, or they have waited for its end.

        That is, references to the same blob, and those that could begin in its place.
        """
        own = self._lacking.get(turn.blob.op_id)
        is_eldest = turn is next(iter(self._under_way.values()))
        own_tries = own.tries if own is not None and is_eldest else 0
        tries = [each.tries for each in same] + [max(each.tries, own_tries) for each in free]
        if not tries:
            return math.inf
        quiet_at_s = turn.heard_s + _doubled_s(QUIET_S, min(tries))
        busy = {each.blob.publisher for each in self._under_way.values()}
        have_turns = all(each.blob.publisher in busy for each in free)
        return quiet_at_s if have_turns else min(quiet_at_s, turn.began_s + TURN_S)


def _doubled_s(first_s: float, tries: int) -> float:
    """So long at first, and twice as long for each try."""
    return first_s * float(2 ** min(tries, MOST_DOUBLINGS))
