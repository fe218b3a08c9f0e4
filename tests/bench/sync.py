"""Sync: what a round costs in bytes and messages, and what it takes of the processor.

Two nodes have n ops of a year in common and differ in d more, which are *scattered* over the year and all sectors,
*clustered* in one sector, or *recent*, of the last hour. Either the initiator has all of them, or each side half, or
the responder all. Bytes are those on the stream less the entries that have to move.

Beside it stands what the drill-down costs as the reference describes it: 43 bytes of a minimal snapshot and 34 for each
ring in it, 36 for each sector or cell that is told and 9 for each sector of cells, and 34 for each op id, offered by
both sides from all cells that differ; disc first, and the rings in a second round. And the limit: the ids that differ,
32 bytes each.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from math import ceil
from random import Random
from statistics import median

import trio

from prime_dht.entries.entry import Entry
from prime_dht.partition.cells import Cell, Cells
from prime_dht.partition.combined import Combined
from prime_dht.testing.sync_pair import (
    CIRCLE,
    DAY_US,
    NOW_US,
    YEAR_US,
    Base,
    Party,
    Ran,
    location_of,
    run_round,
    unsigned_entry,
)

from .tables import Row, Table

HOUR_US = DAY_US // 24
SECTOR = 300
SEEDS = {0: 5, 1: 40, 10: 40, 100: 40, 1000: 10, 10_000: 2}
CPU_ROUNDS = 50

DRILLED = 2
"""Of so many of them the drill-down is computed too, which takes far longer and hardly differs."""


async def measure_sync(*, quick: bool) -> list[Table]:
    """The tables of bytes and of CPU time."""
    sizes = [1000] if quick else [1000, 100_000, 1_000_000]
    rows: list[Row] = []
    for n in sizes:
        base = Base(n)
        for where in ("scattered", "clustered", "recent"):
            for d in (0, 1, 10, 100) if quick else SEEDS:
                for sides in ("both",) if d == 0 else ("initiator", "both", "responder"):
                    rows.append(_row(base, n, where, d, sides, seeds=1 if quick else SEEDS[d]))
                    await trio.lowlevel.checkpoint()
    return [
        Table(name="sync_bytes", title="A sync round: bytes beside the entries, and messages", rows=rows),
        Table(
            name="sync_cpu",
            title=f"A round between equal nodes of {sizes[-1]:,} ops, both sides together",
            rows=[{"took_ms": _equal_ms(Base(sizes[-1])), "aim_ms": 5.0}],
        ),
    ]


def _row(base: Base, n: int, where: str, d: int, sides: str, *, seeds: int) -> Row:
    rounds: list[Ran] = []
    drilled: list[int] = []
    for seed in range(seeds):
        found = _entries(where, d, seed)
        ours = {"initiator": d, "both": d // 2, "responder": 0}[sides]
        one, other = Party(base), Party(base)
        one.put(found[:ours])
        other.put(found[ours:])
        if seed < DRILLED:
            drilled.append(drill_down_bytes(one.partition.cells, other.partition.cells))
        ran = run_round(one, other, seed=seed)
        assert one.op_ids == other.op_ids
        assert [str(outcome) for outcome in ran.outcomes] == ["equal", "equal"]
        rounds.append(ran)
    costs = sorted(ran.overhead_bytes for ran in rounds)
    aims = {0: 1000, 1: 1500, 10: 1500}
    return {
        "n": n,
        "where": where,
        "d": d,
        "with": sides,
        "p50_bytes": round(median(costs)),
        "p95_bytes": costs[ceil(0.95 * len(costs)) - 1],
        "aim_bytes": aims.get(d, 1000 + 60 * d if where == "scattered" else max(drilled) + 1000),
        "messages": round(median(ran.message_count for ran in rounds)),
        "drill_down_bytes": round(median(drilled)),
        "limit_bytes": 32 * d,
    }


def _entries(where: str, d: int, seed: int) -> list[Entry]:
    rng = Random(seed)
    window_us = HOUR_US if where == "recent" else YEAR_US
    found: list[Entry] = []
    one_key = next(
        key
        for key in (b"%d" % number for number in range(1 << 20))
        if location_of(unsigned_entry(key, 1)) >> 23 == SECTOR
    )
    for number in range(d):
        key = one_key if where == "clustered" else b"%d" % rng.getrandbits(64)
        found.append(unsigned_entry(key, NOW_US - rng.randrange(window_us), writer=b"%d" % number))
    return found


def _equal_ms(base: Base) -> float:
    one, other = Party(base), Party(base)
    took_ms: list[float] = []
    for seed in range(CPU_ROUNDS):
        began_s = time.process_time()
        run_round(one, other, seed=seed, is_wired=True)
        took_ms.append(1000 * (time.process_time() - began_s))
    return median(took_ms)


def drill_down_bytes(one: Cells, other: Cells) -> int:
    """What the two would say to each other by the reference's drill-down, until both have offered the ops that differ.

    A round between equal nodes is a minimal snapshot each way.
    """
    minimal_bytes = 43 + 34 * (len(one.layout.ring_starts) + 1)
    disc = [dict(cells.disc_sectors(CIRCLE)) for cells in (one, other)]
    sectors = {sector for sector, _ in disc[0].items() ^ disc[1].items()}
    slices = sorted({*one.full_slices(), *other.full_slices()})
    total_bytes = 2 * minimal_bytes
    if sectors:
        total_bytes += 36 * max(map(len, disc))
        total_bytes += _details_bytes(one, other, slices, in_sectors=sectors)
    rings = [*one.layout.ring_starts, one.layout.tail_start]
    differing = [
        start for start in rings if dict(one.slice_cells(start, CIRCLE)) != dict(other.slice_cells(start, CIRCLE))
    ]
    if differing:
        total_bytes += minimal_bytes if sectors else 0
        total_bytes += _details_bytes(one, other, differing, in_sectors=set(CIRCLE))
    return total_bytes


def _details_bytes(one: Cells, other: Cells, starts: Iterable[int], *, in_sectors: set[int]) -> int:
    """Details from both sides, and the ids of both in the cells that differ."""
    told: list[dict[Cell, Combined]] = [
        {
            Cell(sector, start): combined
            for start in starts
            for sector, combined in cells.slice_cells(start, CIRCLE)
            if sector in in_sectors
        }
        for cells in (one, other)
    ]
    differing = {cell for cell, _ in told[0].items() ^ told[1].items()}
    ids = sum(cells[cell].count for cells in told for cell in differing if cell in cells)
    sectors = sum(len({cell.sector for cell in cells}) for cells in told)
    return 36 * sum(map(len, told)) + 9 * sectors + 34 * ids
