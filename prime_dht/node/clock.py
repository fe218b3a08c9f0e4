"""The node's two clocks, as a seam: tests and simulations put their own in place; and when the calendar was set."""

from __future__ import annotations

import time
from typing import Protocol

import trio

from prime_dht.ids import US_PER_S, TimestampUs


class Clock(Protocol):
    """The calendar's clock, which can be set back, and one that only goes forward."""

    def now_us(self) -> TimestampUs:
        """Microseconds since the Unix epoch."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since some point; the clock of all deadlines."""
        ...


class SystemClock:
    """The machine's wall clock, and trio's clock, which tests can replace."""

    def now_us(self) -> TimestampUs:
        return TimestampUs(time.time_ns() // 1000)

    def monotonic_s(self) -> float:
        return trio.current_time()


class Jumps:
    """By how much the calendar goes otherwise than the clock that only goes forward, from one look to the next.

    Somebody has set it; or the machine slept, while the calendar went on and the other stood still.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead_us = 0
        self.since_last_us()

    def since_last_us(self) -> int:
        """By how much since the last look; less than 0 if it was set back."""
        before_us = self._ahead_us
        self._ahead_us = self._clock.now_us() - int(self._clock.monotonic_s() * US_PER_S)
        return self._ahead_us - before_us
