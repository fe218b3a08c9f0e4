"""Blocking work on one of trio's worker threads, for those who do much of it in small pieces.

``trio.to_thread.run_sync`` names its thread, copies the context and holds a place of a limiter for each call, which
costs more than a small read does. Here is only what is left without: something runs on a thread, and then something
else in the event loop. Whoever uses it bounds how much of that there is, and waits for it before the loop ends.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import trio


@dataclass(slots=True, eq=False)
class Asked:
    """Something that a task has asked for, and waits to be told the outcome of."""

    caller: trio.lowlevel.Task | None = field(default=None, init=False)
    """While it waits."""

    def tell(self) -> None:
        """The outcome is there."""
        if self.caller is not None:
            trio.lowlevel.reschedule(self.caller)
            self.caller = None


def run_then(work: Callable[[], None], then: Callable[[], None]) -> None:
    """Run ``work`` on a worker thread, and when it has ended, ``then`` in the event loop. Neither may raise.

    Raises:
        RuntimeError: the system lets this process have no more threads.
    """
    token = trio.lowlevel.current_trio_token()

    def deliver(_: object) -> None:
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(then)

    trio.lowlevel.start_thread_soon(work, deliver)
