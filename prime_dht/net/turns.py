"""Turns to dial: one at a time dials a peer, and so many peers are dialled at a time by a process.

Hosts of one process share its CPU, and handshakes that start by the hundred run out of time together. So a *caller*,
who wants a connection to a peer, may wait: for its *turn*, which begins when the peer is being dialled, for itself or
for another caller. That wait is this process's doing and says nothing of the peer; a caller's time for the peer begins
with the turn. Nobody waits any longer when the peer connects by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio

DIALS_AT_ONCE = 32
"""Peers that are dialled at the same time, by all hosts of the process."""

_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("prime_dht dials")

Dial = Callable[[], Awaitable[None]]


class Caller:
    """One who wants a connection.

    Args:
        timeout_s: for the peer, from the turn on.
        on_turn: called when the turn begins.

    Attributes:
        scope: of the caller's wait.
        began_s: when its turn began, by trio's clock; ``None`` before that.
    """

    def __init__(self, timeout_s: float, on_turn: Callable[[], None] | None) -> None:
        self._timeout_s = timeout_s
        self._on_turn = on_turn
        self.scope = trio.CancelScope()
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
    """The turns of those who want a connection to one peer."""

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._waiting: set[Caller] = set()
        self._is_dialled = False

    @contextmanager
    def waiting(self, caller: Caller, *, at_most_s: float) -> Iterator[None]:
        """While a caller waits, at most so many seconds for its turn; its scope says whether it was cut short."""
        if self._is_dialled:
            caller.begin()
        else:
            caller.scope.deadline = trio.current_time() + at_most_s
            self._waiting.add(caller)
        try:
            with caller.scope:
                yield
        finally:
            self._waiting.discard(caller)

    @property
    def is_taken(self) -> bool:
        """Whether somebody has the turn to dial the peer."""
        return self._lock.locked()

    async def dial(self, dial: Dial, *, is_connected: Callable[[], bool]) -> None:
        """Dial the peer when nobody else of the host does and there is room in the process, if it is not connected."""
        async with self._lock:
            if is_connected():
                return
            async with _room():
                self._is_dialled = True
                while self._waiting:
                    self._waiting.pop().begin()
                try:
                    await dial()
                finally:
                    self._is_dialled = False

    def connected(self) -> None:
        """The peer has connected by itself: whoever has no turn yet needs none."""
        for caller in self._waiting:
            caller.scope.cancel()


def _room() -> trio.CapacityLimiter:
    try:
        return _limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(DIALS_AT_ONCE)
        _limiter.set(limiter)
        return limiter
