"""Measuring plain calls, in turns: in each round every case is called once, and a case's time is its median.

So a moment in which the machine did something else spoils one call of each case, not all calls of one.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from .tables import Row


@dataclass(frozen=True, slots=True)
class Case:
    """Something to call.

    Attributes:
        operation: what it does.
        work: the call.
        items: how many values a call handles; times are per value.
        aim_us: what it should take at most.
    """

    operation: str
    work: Callable[[], object]
    items: int = 1
    aim_us: float | None = None


def measure_in_turns(cases: Sequence[Case], *, rounds: int) -> list[Row]:
    """Call cases in their order, again and again; a row for each."""
    took_us_of: list[list[float]] = [[] for _ in cases]
    for _ in range(rounds):
        gc.collect()  # or one case pays for the garbage of another
        for case, durations_us in zip(cases, took_us_of, strict=True):
            durations_us.append(took_us(case.work) / case.items)
    return [
        {"operation": case.operation, "took_us": median(durations_us), "aim_us": case.aim_us}
        for case, durations_us in zip(cases, took_us_of, strict=True)
    ]


def took_us(work: Callable[[], object]) -> float:
    """How long a call takes."""
    began_s = time.perf_counter()
    work()
    return 1e6 * (time.perf_counter() - began_s)
