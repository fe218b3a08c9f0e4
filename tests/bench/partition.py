"""The partition: what an op costs, what a round costs before a byte is sent, and what it all takes in memory.

A million ops over a year, their ids and locations drawn evenly. The aims are those the partition was built for; like
all times, these are reported and not asserted.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
from numpy.typing import NDArray

from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.parameters import PARAMETERS
from prime_dht.partition.partition import Partition
from prime_dht.partition.slices import layout_at
from prime_dht.partition.snapshot import disc_details_snapshot, minimal_snapshot

from .sketches import measure_sketches
from .tables import Row, Table
from .turns import Case, measure_in_turns, took_us

NOW_US = 1_800_000_001_000_000
YEAR_US = 365 * 86_400 * 1_000_000
BATCH = 512
TICKS = 1024
PAGE = 65_536
"""As many ops as a store gives at a time when all are read."""


@dataclass(frozen=True, slots=True)
class Ops:
    """Op ids of shape (n, 32), locations and times of shape (n,)."""

    op_ids: NDArray[np.uint8]
    locations: NDArray[np.uint32]
    created_at_us: NDArray[np.int64]

    def part(self, start: int, stop: int) -> Ops:
        return Ops(self.op_ids[start:stop], self.locations[start:stop], self.created_at_us[start:stop])

    def dated(self, created_at_us: int) -> Ops:
        """The same, all of one moment."""
        return Ops(self.op_ids, self.locations, np.full_like(self.created_at_us, created_at_us))

    def singly(self) -> list[tuple[bytes, int, int]]:
        ids = (op_id.tobytes() for op_id in self.op_ids)
        return list(zip(ids, self.locations.tolist(), self.created_at_us.tolist(), strict=True))


async def measure_partition(*, quick: bool) -> list[Table]:
    """The tables of speed and of memory, and those of the sketches."""
    ops = _make(20_000 if quick else 1_000_000)
    rounds = 1 if quick else 21
    title = f"Partition of {len(ops.op_ids):,} ops over a year: cells and sketches together"
    held, peak = _memory(ops)
    return [
        Table(name="partition", title=title, rows=_speed(ops, rounds)),
        Table(
            name="partition_memory",
            title="Memory beyond the list of ops",
            rows=[
                {"what": "held", "MB": held, "aim_MB": 16.0},
                {"what": "at most while loading", "MB": peak, "aim_MB": None},
            ],
        ),
        *measure_sketches(quick=quick),
    ]


def _make(n: int) -> Ops:
    rng = np.random.default_rng(5)
    return Ops(
        rng.integers(0, 256, (n, 32), dtype=np.uint8),
        rng.integers(0, 1 << 32, n, dtype=np.uint32),
        NOW_US - rng.integers(0, YEAR_US, n),
    )


def _load(ops: Ops) -> Partition:
    partition = Partition(PARAMETERS, now_us=NOW_US)
    for start in range(0, len(ops.op_ids), PAGE):
        page = ops.part(start, start + PAGE)
        partition.insert_batch(page.op_ids, page.locations, page.created_at_us)
    return partition


def _speed(ops: Ops, rounds: int) -> list[Row]:
    load_us = median(took_us(lambda: _load(ops)) for _ in range(min(rounds, 3)))
    partition = _load(ops)
    old, recent = ops.part(0, BATCH), ops.part(0, BATCH).dated(NOW_US)
    new = recent.singly()
    circle = ArcSet.full(sector_bits=PARAMETERS.sector_bits)
    half = ArcSet.of_prefix(1, 1, sector_bits=PARAMETERS.sector_bits)
    scattered = ArcSet.of_sectors(range(0, PARAMETERS.sector_count, 2), sector_bits=PARAMETERS.sector_bits)

    def insert_singly() -> None:
        for op in new:
            partition.insert(*op)

    def remove_singly() -> None:
        for op in new:
            partition.remove(*op)

    def insert(batch: Ops) -> Callable[[], None]:
        return lambda: partition.insert_batch(batch.op_ids, batch.locations, batch.created_at_us)

    def remove(batch: Ops) -> Callable[[], None]:
        return lambda: partition.remove_batch(batch.op_ids, batch.locations, batch.created_at_us)

    def minimal(arcs: ArcSet) -> Callable[[], object]:
        return lambda: minimal_snapshot(partition.cells, arcs)

    cases = [
        Case("insert one", insert_singly, BATCH, 30.0),
        Case("remove one", remove_singly, BATCH, 30.0),
        Case(f"insert {BATCH} new ones, per op", insert(recent), BATCH, 5.0),
        Case(f"remove {BATCH} new ones, per op", remove(recent), BATCH, 5.0),
        Case(f"insert {BATCH} of any age, per op", insert(old), BATCH, 5.0),
        Case(f"remove {BATCH} of any age, per op", remove(old), BATCH, 5.0),
        Case("minimal snapshot, full arc", minimal(circle), 1, 300.0),
        Case("minimal snapshot, half the circle", minimal(half)),
        Case("minimal snapshot, every other sector", minimal(scattered)),
        Case("details of all cells of the disc", lambda: disc_details_snapshot(partition.cells, circle)),
    ]
    rows = measure_in_turns(cases, rounds=rounds)
    advance = f"advance by a tick, worst of {TICKS:,}"
    rows.append({"operation": advance, "took_us": _worst_advance_us(partition), "aim_us": 2000.0})
    rows.append({"operation": f"load all {len(ops.op_ids):,}", "took_us": load_us, "aim_us": 2e6})
    return rows


def _worst_advance_us(partition: Partition) -> float:
    """The slowest of so many ticks that two slices become full, each measured three times."""
    worst_us = 0.0
    for tick in range(1, TICKS + 1):
        now_us = NOW_US + tick * PARAMETERS.unit_us
        layout = layout_at(now_us, PARAMETERS)
        worst_us = max(worst_us, min(took_us(partial(partition.cells.moved_to, layout)) for _ in range(3)))
        partition.advance(now_us)
    return worst_us


def _memory(ops: Ops) -> tuple[float, float]:
    """What a partition holds once it is loaded, and at most meanwhile, in MB."""
    tracemalloc.start()
    partition = _load(ops)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert partition.op_count == len(ops.op_ids)
    return held / 1e6, peak / 1e6
