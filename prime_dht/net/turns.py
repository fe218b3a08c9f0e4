"""Turns to dial: one at a time dials a peer, and so many peers are dialled at a time by a process.

Hosts of one process share its CPU, and handshakes that start by the hundred run out of time together. So a *caller*,
who wants a connection to a peer, may wait: for its *turn*, which begins when the peer is being dialled, for itself or
for another caller. That wait is this process's doing and says nothing of the peer; a caller's time for the peer begins
with the turn. Nobody waits any longer when the peer connects by itself.

A silent peer keeps its turn until its time is over, and anybody can name hundreds of those. So callers have *shares*:
those whose tasks one nursery holds, as it does all of one lookup, get no more turns together than twice what they leave
free for others. A turn that is free goes to whose share has fewest, and among equals to who came first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

DIALS_AT_ONCE = 48
"""Peers that are dialled at the same time, by all hosts of the process; two thirds of them at most for one share."""

_turns_of_process: trio.lowlevel.RunVar[_Shared] = trio.lowlevel.RunVar("prime_dht dials")

Dial = Callable[[], Awaitable[object]]

Share = trio.Nursery | None
"""The nursery of the tasks that share; the main task has none."""


class Caller:
    """One who wants a connection: the task that makes this.

    Args:
        timeout_s: for the peer, from the turn on.
        on_turn: called when the turn begins.

    Attributes:
        scope: of the caller's wait.
        share: of the turns of the process.
        began_s: when its turn began, by trio's clock; ``None`` before that.
    """

    def __init__(self, timeout_s: float, on_turn: Callable[[], None] | None) -> None:
        self._timeout_s = timeout_s
        self._on_turn = on_turn
        self.scope = trio.CancelScope()
        self.share: Share = trio.lowlevel.current_task().parent_nursery
        self.began_s: float | None = None

    def begin(self) -> None:
        """Its turn has come, unless it had already."""
        if self.began_s is None:
            self.began_s = trio.current_time()
            self.scope.deadline = self.began_s + self._timeout_s
            if self._on_turn is not None:
                self._on_turn()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the turn began; 0 if it has not."""
        return 0.0 if self.began_s is None else trio.current_time() - self.began_s


class Turns:
    """The turns of those who want a connection to one peer.

    Attributes:
        callers: who wants it now.
    """

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._is_dialled = False
        self.callers: set[Caller] = set()

    @contextmanager
    def waiting(self, caller: Caller, *, at_most_s: float) -> Iterator[None]:
        """While a caller waits, at most so many seconds for its turn; its scope says whether it was cut short."""
        self.callers.add(caller)
        if self._is_dialled:
            caller.begin()
        else:
            caller.scope.deadline = trio.current_time() + at_most_s
            _shared().wanted(self)  # out of its share, if another's was used up
        try:
            with caller.scope:
                yield
        finally:
            self.callers.discard(caller)

    @property
    def is_taken(self) -> bool:
        """Whether somebody has the turn to dial the peer."""
        return self._lock.locked()

    async def dial(self, dial: Dial, is_reached: Callable[[], bool]) -> None:
        """Dial the peer when nobody else of the host does and there is a turn, if it is not reached by then."""
        async with self._lock:
            if is_reached():
                return
            async with _shared().turn(self):
                self._is_dialled = True
                for caller in self.callers:
                    caller.begin()
                try:
                    await dial()
                finally:
                    self._is_dialled = False

    def connected(self) -> None:
        """The peer has connected by itself: whoever has no turn yet needs none."""
        for caller in self.callers:
            if caller.began_s is None:
                caller.scope.cancel()


class _Shared:
    """The turns that there are at a time."""

    def __init__(self) -> None:
        self._taken: dict[Turns, Share] = {}
        self._waiting: dict[Turns, trio.Event] = {}  # who came first first

    @asynccontextmanager
    async def turn(self, turns: Turns) -> AsyncIterator[None]:
        """Wait for one of them; it lasts as long as the block."""
        began = self._waiting[turns] = trio.Event()
        self.wanted(turns)
        try:
            await began.wait()
            yield
        finally:
            if self._waiting.pop(turns, None) is None:
                del self._taken[turns]
                while self._waiting and self._give(self._waiting):
                    pass

    def wanted(self, turns: Turns) -> None:
        """One more wants the peer: give it a turn if it may have one. Who else waits could have none before either."""
        if turns in self._waiting:
            self._give((turns,))

    def _give(self, waiting: Iterable[Turns]) -> bool:
        """Give one that is free to who of those that wait is the first to get it; whether it may have it."""
        free = DIALS_AT_ONCE - len(self._taken)
        if not free:
            return False
        used = Counter(self._taken.values())
        wanted = [(turns, caller.share) for turns in waiting for caller in turns.callers]
        unused = (each for each in wanted if each[1] not in used)  # where there are many, it is soon found
        turns, share = next(unused, None) or min(wanted, key=lambda each: used[each[1]])
        if used[share] >= 2 * free:
            return False
        self._taken[turns] = share
        self._waiting.pop(turns).set()
        return True


def _shared() -> _Shared:
    try:
        return _turns_of_process.get()
    except LookupError:
        shared = _Shared()
        _turns_of_process.set(shared)
        return shared
