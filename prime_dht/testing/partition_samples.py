"""Ops, replicas that hold them, and rounds between two: what the tests of the partition are made of.

The partition here is a tiny one, of 32 sectors, whose unit is 10 microseconds and whose full slices are 8 units.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.cells import Cells
from prime_dht.partition.combined import NOTHING, Combined
from prime_dht.partition.compare import Action, SendOps, SendSnapshot, next_action
from prime_dht.partition.location import sector_locations, sector_of
from prime_dht.partition.offer import Offer, OpQuery, Version
from prime_dht.partition.parameters import PartitionParameters
from prime_dht.partition.partition import Partition
from prime_dht.partition.slices import layout_at
from prime_dht.partition.snapshot import DiscDetailsSnapshot, RingDetailsSnapshot, Snapshot, minimal_snapshot

TINY = PartitionParameters(unit_us=10, factor=3, sector_bits=5)
CIRCLE = ArcSet.full(sector_bits=TINY.sector_bits)


@dataclass(frozen=True, slots=True, order=True)
class SampleOp:
    """An op, as a store has it."""

    created_at_us: int
    op_id: bytes
    location: int

    @property
    def sector(self) -> int:
        """Its sector in the tiny partition."""
        return sector_of(self.location, sector_bits=TINY.sector_bits)

    @property
    def combined(self) -> Combined:
        """What it adds to its cell."""
        return Combined(self.op_id, 1)


def make_op(number: int, *, sector: int = 0, created_at_us: int = 0) -> SampleOp:
    """An op in the middle of a sector of the tiny partition; of each place and time there is one for every number."""
    locations = sector_locations(sector, sector_bits=TINY.sector_bits)
    op_id = hashlib.sha256(b"%d %d %d" % (number, sector, created_at_us)).digest()
    return SampleOp(created_at_us, op_id, locations[len(locations) // 2])


def arcs_of(*sectors: int) -> ArcSet:
    """Some sectors of the tiny partition."""
    return ArcSet.of_sectors(sectors, sector_bits=TINY.sector_bits)


def combined(ops: Iterable[SampleOp]) -> Combined:
    """The combined hash of some ops."""
    return sum((op.combined for op in ops), start=NOTHING)


def columns(ops: Iterable[SampleOp]) -> tuple[NDArray[np.uint8], NDArray[np.uint32], NDArray[np.int64]]:
    """Op ids, locations and times, as arrays."""
    listed = list(ops)
    return (
        np.frombuffer(b"".join(op.op_id for op in listed), np.uint8).reshape(-1, 32),
        np.array([op.location for op in listed], np.uint32),
        np.array([op.created_at_us for op in listed], np.int64),
    )


def cells_of(ops: Iterable[SampleOp], *, now_us: int) -> Cells:
    """The cells of some ops, at a time."""
    cells = Cells(layout_at(now_us, TINY))
    for op in ops:
        cells.insert(op.op_id, op.sector, op.created_at_us)
    return cells


class Replica:
    """A store of ops in memory, with its partition, of which it tells each op that really comes or goes."""

    def __init__(self, ops: Iterable[SampleOp] = (), *, now_us: int) -> None:
        self.ops = set(ops)
        self.partition = Partition(TINY, now_us=now_us)
        self.partition.insert_batch(*columns(self.ops))

    def store(self, op: SampleOp) -> None:
        """Take an op, unless it is here."""
        if op not in self.ops:
            self.ops.add(op)
            self.partition.insert(op.op_id, op.location, op.created_at_us)

    def drop(self, op: SampleOp) -> None:
        """Give an op up, if it is here."""
        if op in self.ops:
            self.ops.remove(op)
            self.partition.remove(op.op_id, op.location, op.created_at_us)

    def ask(self, query: OpQuery) -> list[Version]:
        """What a store answers."""
        found = sorted(
            (op.created_at_us, op.op_id)
            for op in self.ops
            if op.location in query.locations and op.created_at_us in query.created_us
        )
        return [version for version in found if query.after is None or version > query.after][: query.limit]

    def fill(self, offer: Offer) -> list[bytes]:
        """Put the replica's ops into an offer; returns those that it has room for."""
        while query := offer.query():
            offer.take(self.ask(query))
        return offer.op_ids

    def within(self, arcs: ArcSet) -> set[SampleOp]:
        """Its ops in some sectors."""
        return {op for op in self.ops if op.sector in arcs}


@dataclass(frozen=True, slots=True)
class Round:
    """What happened between the replica that opened a round (0) and the other (1).

    Attributes:
        snapshots: those that were sent, in order, the two in turns.
        offers: the ids that each has offered.
        end: the action that ended it.
    """

    end: Action
    snapshots: list[Snapshot]
    offers: tuple[list[bytes], list[bytes]] = field(default_factory=lambda: ([], []))


def play_round(opener: Replica, other: Replica, common: ArcSet, *, max_bytes: int = 1 << 20) -> Round:
    """Compare two replicas until both have offered what they have in the cells that differ. Neither takes anything."""
    snapshot: Snapshot | None = minimal_snapshot(opener.partition.cells, common)
    replicas, details_sent = (opener, other), [False, False]
    snapshots: list[Snapshot] = []
    offers: tuple[list[bytes], list[bytes]] = ([], [])
    action: Action | None = None
    turn = 1
    while snapshot is not None:
        snapshots.append(snapshot)
        assert len(snapshots) <= 4, "a round has an end"
        action = next_action(replicas[turn].partition.cells, snapshot, common=common, details_sent=details_sent[turn])
        snapshot = None
        match action:
            case SendSnapshot(snapshot=following):
                snapshot = following
                details_sent[turn] = isinstance(following, DiscDetailsSnapshot | RingDetailsSnapshot)
            case SendOps(layout=layout, cells=cells, details=details):
                offers[turn].extend(replicas[turn].fill(Offer(layout, cells, max_bytes=max_bytes)))
                snapshot = details
        turn = 1 - turn
    assert action is not None
    return Round(action, snapshots, offers)
