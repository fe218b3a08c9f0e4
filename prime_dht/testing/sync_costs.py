"""What a round costs in bytes, beside what it has to move: for the tests, which assert it, and for the benchmark.

Two nodes have the ops of a base in common and differ in d more, which are *scattered* over a year and all sectors,
*clustered* in one sector, or *recent*, of the last hour. Either the initiator has all of them, or each side half, or
the responder all.

Beside it stands what the drill-down costs as the reference describes it: 43 bytes of a minimal snapshot and 34 for each
ring in it, 36 for each sector or cell that is told and 9 for each sector of cells, and 34 for each op id, offered by
both sides from all cells that differ; disc first, and the rings in a second round.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import count
from random import Random
from typing import Literal

from prime_dht.entries.entry import Entry
from prime_dht.partition.cells import Cell, Cells
from prime_dht.partition.combined import Combined
from prime_dht.partition.location import sector_of
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

HOUR_US = DAY_US // 24

_SECTOR = 300

Where = Literal["scattered", "clustered", "recent"]
Side = Literal["initiator", "both", "responder"]


def differing_parties(base: Base, where: Where, d: int, side: Side, *, seed: int) -> tuple[Party, Party]:
    """An initiator and a responder that differ in ``d`` ops."""
    rng = Random(seed)  # noqa: S311 - a simulation, nothing secret
    window_us = HOUR_US if where == "recent" else YEAR_US
    found: list[Entry] = []
    for number in range(d):
        key = _key_in_sector() if where == "clustered" else b"%d" % rng.getrandbits(64)
        found.append(unsigned_entry(key, NOW_US - rng.randrange(window_us), writer=b"%d" % number))
    ours = {"initiator": d, "both": d // 2, "responder": 0}[side]
    one, other = Party(base), Party(base)
    one.put(found[:ours])
    other.put(found[ours:])
    return one, other


def equalise(one: Party, other: Party, *, seed: int) -> Ran:
    """A round, after which both are equal, or it was no good."""
    ran = run_round(one, other, seed=seed)
    assert [str(outcome) for outcome in ran.outcomes] == ["equal", "equal"]
    assert one.op_ids == other.op_ids
    return ran


def aim_bytes(where: Where, d: int, drill_down_bytes: int) -> int:
    """What a round may cost beside the entries, at most nearly always."""
    if d == 0:
        return 1000
    if d <= 10:
        return 1500
    return 1000 + 60 * d if where == "scattered" else 1000 + drill_down_bytes


def meets_aim(ran: Ran, where: Where, d: int, drill_down_bytes: int) -> bool:
    """Whether a round costs no more than it may; of up to ten differences also in messages: one each way, one more."""
    most_messages = {0: 2}.get(d, 3 if d <= 10 else ran.message_count)
    return ran.overhead_bytes <= aim_bytes(where, d, drill_down_bytes) and ran.message_count <= most_messages


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


@cache
def _key_in_sector() -> bytes:
    """A key whose entries are all in one sector."""
    keys = (b"%d" % number for number in count())
    return next(
        key for key in keys if sector_of(location_of(unsigned_entry(key, 1)), sector_bits=CIRCLE.sector_bits) == _SECTOR
    )
