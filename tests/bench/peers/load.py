"""The load that each peer gets, with the standard library alone: it runs in the peers' own environments."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from random import Random
from statistics import median
from typing import Protocol

NODES = 16
VALUE_BYTES = 1024
IN_FLIGHT = (1, 32)

Operation = Callable[[], Awaitable[None]]
Row = dict[str, str | int | float | None]


class Peer(Protocol):
    """A swarm of somebody else's nodes.

    Attributes:
        name: of the software and how it runs here.
    """

    name: str

    async def put(self, node: int, key: str, value: bytes) -> None:
        """Store a value from the node of this number, and be done when its API says so."""
        ...

    async def get(self, node: int, key: str) -> bytes | None:
        """Read a value from the node of this number."""
        ...

    def holds(self, node: int, key: str) -> bool:
        """Whether that node has the value itself, as far as one can know."""
        ...


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured: rounds, and operations in each."""

    rounds: int
    operations: int


def scale_of_arguments() -> Scale:
    """What the command line of a peer's module says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--operations", type=int, default=200)
    options = parser.parse_args()
    return Scale(options.rounds, options.operations)


async def measure(peer: Peer, scale: Scale) -> list[Row]:
    """Put and get, with one and with 32 in flight, in rounds that take turns.

    Raises:
        RuntimeError: a get did not return what was put.
    """
    rng = Random(16)
    durations_s: dict[tuple[str, int], list[float]] = {}
    per_s: dict[tuple[str, int], list[float]] = {}
    cpu_s: dict[tuple[str, int], list[float]] = {}
    keys_made = 0
    for _ in range(scale.rounds):
        for in_flight in IN_FLIGHT:
            values = {f"bench:{keys_made + n}": rng.randbytes(VALUE_BYTES) for n in range(scale.operations)}
            keys_made += scale.operations
            putters = {key: rng.randrange(NODES) for key in values}
            rounds: dict[str, Sequence[Operation]] = {
                "put": [_put(peer, putters[key], key, value) for key, value in values.items()],
                "get": [_get(peer, rng, putters[key], key, value) for key, value in values.items()],
            }
            for operation, calls in rounds.items():
                case = operation, in_flight
                gc.collect()
                cpu_began_s, began_s = session_cpu_s(), time.perf_counter()
                left = iter(calls)
                await asyncio.gather(*(_work_off(left, durations_s.setdefault(case, [])) for _ in range(in_flight)))
                elapsed_s = time.perf_counter() - began_s
                per_s.setdefault(case, []).append(scale.operations / elapsed_s)
                cpu_s.setdefault(case, []).append((session_cpu_s() - cpu_began_s) / scale.operations)
    return [
        {
            "peer": peer.name,
            "operation": operation,
            "in_flight": in_flight,
            "p50_ms": 1e3 * _percentile(durations_s[operation, in_flight], 50),
            "p99_ms": 1e3 * _percentile(durations_s[operation, in_flight], 99),
            "per_s": median(per_s[operation, in_flight]),
            "cpu_ms": 1e3 * median(cpu_s[operation, in_flight]),
        }
        for operation, in_flight in per_s
    ]


def print_result(rows: Sequence[Row], *, package: str) -> None:
    """What the parent reads: one line of JSON, the last on standard output."""
    print(json.dumps({"version": version(package), "rows": rows}), flush=True)


def session_cpu_s() -> float:
    """CPU seconds of every process in this session, whose leader this process is; some peers start others.

    Where ``/proc`` is missing, those of this process alone.
    """
    if not Path("/proc/self/stat").exists():
        return time.process_time()
    own = str(os.getsid(0))
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        if fields[3] == own:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _put(peer: Peer, node: int, key: str, value: bytes) -> Operation:
    async def put() -> None:
        await peer.put(node, key, value)

    return put


def _get(peer: Peer, rng: Random, putter: int, key: str, value: bytes) -> Operation:
    async def get() -> None:
        others = [node for node in range(NODES) if node != putter]
        without = [node for node in others if not peer.holds(node, key)]
        if await peer.get(rng.choice(without or others), key) != value:
            raise RuntimeError(f"{peer.name}: {key} was put and not found")

    return get


async def _work_off(operations: Iterator[Operation], durations_s: list[float]) -> None:
    for operation in operations:
        began_s = time.perf_counter()
        await operation()
        durations_s.append(time.perf_counter() - began_s)


def _percentile(values: Sequence[float], percent: float) -> float:
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
