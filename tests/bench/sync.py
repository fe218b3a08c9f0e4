"""Sync: what a round costs in bytes and messages, what it takes of the processor, and how fast it moves entries.

Bytes are those on the stream less the entries that have to move. Which differences are measured, and what stands beside
it for the drill-down, is described in :mod:`prime_dht.testing.sync_costs`; the limit is that of information: the ids
that differ, 32 bytes each. The last column says how many of the rounds kept within the aim; those with up to ten
differences have to do with three messages for that.
"""

from __future__ import annotations

import time
from math import ceil
from statistics import median
from typing import get_args

import trio

from prime_dht.testing.sync_costs import (
    Side,
    Where,
    aim_bytes,
    differing_parties,
    drill_down_bytes,
    equalise,
    meets_aim,
)
from prime_dht.testing.sync_pair import Base, Party, run_round

from .tables import Row, Table
from .transfer import measure_transfer

SEEDS = {0: 5, 1: 40, 10: 40, 100: 20, 1000: 5, 10_000: 2}
CPU_ROUNDS = 50


async def measure_sync(*, quick: bool) -> list[Table]:
    """The tables of bytes, of CPU time and of entries moved."""
    transfer = await measure_transfer(quick=quick)
    sizes = [1000] if quick else [1000, 100_000, 1_000_000]
    rows: list[Row] = []
    for n in sizes:
        base = Base(n)
        for where in get_args(Where):
            for d in (0, 1, 10, 100) if quick else SEEDS:
                for side in get_args(Side) if d else ("both",):
                    rows.append(_row(base, n, where, d, side, seeds=1 if quick else SEEDS[d]))
                    await trio.lowlevel.checkpoint()
    return [
        Table(name="sync_bytes", title="A sync round: bytes beside the entries, and messages", rows=rows),
        Table(
            name="sync_cpu",
            title=f"A round between equal nodes of {sizes[-1]:,} ops, both sides together",
            rows=[{"took_ms": _equal_ms(base), "aim_ms": 5.0}],
        ),
        transfer,
    ]


def _row(base: Base, n: int, where: Where, d: int, side: Side, *, seeds: int) -> Row:
    one, other = differing_parties(base, where, d, side, seed=0)
    drilled_bytes = drill_down_bytes(one.partition.cells, other.partition.cells)
    rounds = [equalise(*differing_parties(base, where, d, side, seed=seed), seed=seed) for seed in range(seeds)]
    costs = sorted(ran.overhead_bytes for ran in rounds)
    return {
        "n": n,
        "where": where,
        "d": d,
        "with": side,
        "p50_bytes": round(median(costs)),
        "p95_bytes": costs[ceil(0.95 * len(costs)) - 1],
        "aim_bytes": aim_bytes(where, d, drilled_bytes),
        "messages": round(median(ran.message_count for ran in rounds)),
        "drill_down_bytes": drilled_bytes,
        "limit_bytes": 32 * d,
        "within_aim": f"{sum(meets_aim(ran, where, d, drilled_bytes) for ran in rounds)}/{len(rounds)}",
    }


def _equal_ms(base: Base) -> float:
    one, other = Party(base), Party(base)
    took_ms: list[float] = []
    for seed in range(CPU_ROUNDS):
        began_s = time.process_time()
        run_round(one, other, seed=seed, is_wired=True)
        took_ms.append(1000 * (time.process_time() - began_s))
    return median(took_ms)
