"""The node's two clocks, as a seam: tests and simulations put their own in place."""

from __future__ import annotations

import time
from typing import Protocol

import trio

from prime_dht.ids import TimestampUs


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
