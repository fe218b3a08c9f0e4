"""One seed, one history: trio made deterministic, and the log that shows it.

trio promises no order among tasks that are ready at the same instant. It shuffles them with a random source of its own
after an order that depends on where in memory things lie; for Hypothesis it has a switch that makes the order before
the shuffle that in which the tasks were started. :func:`one_history` throws that switch and seeds the source. All other
chance comes from the seed, all time is virtual, nothing uses threads, sockets or files, and no decision of a node may
depend on the order of a set: then one seed is one history, in any process.

That it is so is not assumed. The *log* has a line for whatever the plan did and whatever came of it, and a running hash
over every byte that nodes sent each other, with the time at which it arrived: had only one message come a microsecond
later, the logs of two runs would differ.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import trio

from prime_dht.ids import PeerId

_trio_run: Any = import_module("trio._core._run")  # what is needed of it is private


@contextmanager
def one_history(seed: int) -> Iterator[None]:
    """While this lasts, a call of ``trio.run`` schedules tasks in an order that follows from the seed."""
    was_deterministic = _trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    state = _trio_run._r.getstate()
    _trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
    _trio_run._r.seed(seed)
    try:
        yield
    finally:
        _trio_run._ALLOW_DETERMINISTIC_SCHEDULING = was_deterministic
        _trio_run._r.setstate(state)


class Log:
    """What happened, one line each, in virtual time since the start.

    >>> async def main() -> None:
    ...     log = Log()
    ...     await trio.sleep(3725.5)
    ...     log.note("m2 crashed")
    ...     print(*log.lines)
    >>> trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    1:02:05.500000 m2 crashed
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.messages = 0
        self._digest = hashlib.sha256()

    def note(self, text: str) -> None:
        """Add a line."""
        self.lines.append(f"{_clock_face(trio.current_time())} {text}")

    def message(self, sender: PeerId, receiver: PeerId, message: bytes) -> None:
        """A message has arrived."""
        self.messages += 1
        self._digest.update(struct.pack(">dI", trio.current_time(), len(message)))
        self._digest.update(sender + receiver + message)

    def note_messages(self) -> None:
        """Add a line that stands for every message until now."""
        self.note(f"{self.messages} messages, {self._digest.hexdigest()}")


def _clock_face(time_s: float) -> str:
    minutes, seconds = divmod(time_s, 60)
    return f"{int(minutes) // 60}:{int(minutes) % 60:02}:{seconds:09.6f}"
