"""Measuring operations: how long each takes, how many go through, what they cost.

A *case* is one kind of operation with so many in flight. Cases that are to be compared are measured in turns, a *round*
of each at a time. Of all rounds together come the percentiles of an operation's duration; rates and CPU time are the
median of the rounds, so that a moment in which the machine did something else spoils one round and not the result.

CPU time is that of the whole process, in which both ends of every request run.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

import trio

from .tables import Row

Operation = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Something to measure.

    Attributes:
        name, in_flight: the operation, and how many of them run at a time.
        round: makes the operations of one round; called before each, untimed.
        items: values that one operation handles; rate, CPU and requests are per value.
        requests: requests sent so far, if they can be counted.
    """

    name: str
    in_flight: int
    round: Callable[[], Sequence[Operation]]
    items: int = 1
    requests: Callable[[], Awaitable[int]] | None = None


@dataclass(slots=True)
class _Result:
    durations_s: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)


async def measure(cases: Sequence[Case], *, rounds: int) -> list[Row]:
    """Measure cases in turns; a row for each, in order."""
    results = [_Result() for _ in cases]
    for _ in range(rounds):
        for case, result in zip(cases, results, strict=True):
            await _run_round(case, result)
    return [_row(case, result) for case, result in zip(cases, results, strict=True)]


def percentile(values: Sequence[float], percent: float) -> float:
    """The least of the values that at least ``percent`` of them do not exceed.

    >>> percentile([3.0, 1.0, 2.0, 4.0], 50), percentile([3.0, 1.0, 2.0, 4.0], 99)
    (2.0, 4.0)
    """
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


async def _run_round(case: Case, result: _Result) -> None:
    operations = case.round()
    requests_before = await case.requests() if case.requests else 0
    gc.collect()  # or one case pays for the garbage of the one before
    began_s, cpu_began_s = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        left = iter(operations)
        for _ in range(case.in_flight):
            nursery.start_soon(_work_off, left, result.durations_s)
    cpu_s, elapsed_s = time.process_time() - cpu_began_s, time.perf_counter() - began_s
    items = len(operations) * case.items
    result.per_s.append(items / elapsed_s)
    result.cpu_s.append(cpu_s / items)
    if case.requests:
        result.requests.append((await case.requests() - requests_before) / items)


async def _work_off(operations: Iterator[Operation], durations_s: list[float]) -> None:
    for operation in operations:
        began_s = time.perf_counter()
        await operation()
        durations_s.append(time.perf_counter() - began_s)


def _row(case: Case, result: _Result) -> Row:
    return {
        "operation": case.name,
        "in_flight": case.in_flight,
        "p50_ms": 1e3 * percentile(result.durations_s, 50),
        "p99_ms": 1e3 * percentile(result.durations_s, 99),
        "per_s": median(result.per_s),
        "cpu_ms": 1e3 * median(result.cpu_s),
        "rpcs": median(result.requests) if result.requests else None,
    }
