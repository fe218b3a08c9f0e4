"""The rules, and what whole rounds by these rules cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from statistics import median
from typing import assert_never

import numpy as np
import numpy.typing as npt
import pytest

from prime_dht.partition.decode import Decoded, Undecoded, decode
from prime_dht.partition.plan import (
    Confine,
    Extend,
    Group,
    Salt,
    SendIds,
    Split,
    Step,
    next_step,
    rings_pay,
)
from prime_dht.partition.sketch import MAX_SYMBOLS, SYMBOL_BYTES, SectorSketches
from prime_dht.partition.symbols import ID_BYTES, PLAIN, Code, Ids
from prime_dht.testing.sketch_samples import difference_of, random_ids

M = 128
SECTORS = 512
OPS_PER_SECTOR = 2000
FEW_FLIGHTS = 5
SALT = Code(bytes(range(16)))

ALL = Group(sectors=SECTORS, ops=SECTORS * OPS_PER_SECTOR)
PART = Group(sectors=10, ops=10 * OPS_PER_SECTOR, split=True)
ONE = Group(sectors=1, ops=OPS_PER_SECTOR, symbols=100, split=True)


@pytest.mark.parametrize(
    ("group", "estimate", "step"),
    [
        (ALL, 30, Extend(symbols=48)),
        (ALL, 60, Extend(symbols=88)),
        (ALL, 88, Extend(symbols=128)),
        (ALL, 89, Split(groups=2, symbols=67)),
        (ALL, 168, Split(groups=3, symbols=83)),
        (ALL, 169, Split(groups=4, symbols=65)),
        (ALL, 500, Split(groups=9, symbols=83)),
        (ALL, 1000, Confine()),
        (replace(ALL, confined=True), 1000, Split(groups=18, symbols=83)),
        (replace(ALL, confined=True), 100_000, Split(groups=512, symbols=128)),
        (replace(ALL, symbols=88, extensions=1), 60, Split(groups=2, symbols=46)),
        (replace(ALL, symbols=72, extensions=2), 30, Confine()),
        (replace(ALL, symbols=72, extensions=2, confined=True), 30, Split(groups=2, symbols=25)),
        (PART, 60, Extend(symbols=88)),
        (PART, 89, Confine()),
        (replace(PART, confined=True), 89, Split(groups=2, symbols=67)),
        (replace(PART, sectors=2, confined=True), 100, Split(groups=2, symbols=74)),
        (ONE, 60, Extend(symbols=150)),
        (ONE, 300, Extend(symbols=424)),
        (ONE, 1000, SendIds()),
        (replace(ONE, extensions=2), 60, Salt(symbols=88)),
        (replace(ONE, extensions=2, salted=True), 60, SendIds()),
        (replace(ONE, ops=10**6), 20_000, SendIds()),
    ],
)
def test_what_comes_next(group: Group, estimate: int, step: Step) -> None:
    assert next_step(group, estimate, m=M) == step


def test_whatever_the_guess_what_is_asked_for_is_bounded() -> None:
    for group in (ALL, PART, ONE, replace(ONE, ops=10**30)):
        for estimate in (0, 1, 10**6, 10**20):
            match next_step(group, estimate, m=M):
                case Extend(symbols=symbols) | Salt(symbols=symbols):
                    assert 0 < symbols <= MAX_SYMBOLS
                case Split(groups=groups, symbols=symbols):
                    assert 2 <= groups <= group.sectors
                    assert 0 < symbols <= M
                case Confine() | SendIds():
                    pass
                case never:
                    assert_never(never)


def test_rings_are_drilled_into_when_many_ops_differ() -> None:
    assert rings_pay(100)
    assert not rings_pay(99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of a round: the bytes of all answers, and how many questions had to be answered one after the other."""

    answers_bytes: int
    flights: int


class Replicas:
    """Two replicas that differ in some ops. What both have would cancel in every sketch, so it is left out."""

    def __init__(self, ids: Ids, sectors: npt.NDArray[np.int64]) -> None:
        self.cut, self.ids, self.sectors = len(ids) // 2, ids, sectors
        self.ours, self.theirs = SectorSketches(SECTORS, M), SectorSketches(SECTORS, M)
        self.ours.insert_batch(ids[: self.cut], sectors[: self.cut])
        self.theirs.insert_batch(ids[self.cut :], sectors[self.cut :])

    def play_round(self) -> Cost:
        """Go on until every difference is found."""
        answers_bytes, flights, found = 0, 0, 0
        groups = [(np.arange(SECTORS), ALL, 0)]
        while groups:
            flights += 1
            confining = 0
            failed: list[tuple[npt.NDArray[np.int64], Group, int]] = []
            for sectors, group, had in groups:
                answers_bytes += (group.symbols - had) * SYMBOL_BYTES
                match self._compare(sectors, group):
                    case Decoded(ours=ours, theirs=theirs):
                        found += len(ours) + len(theirs)
                    case Undecoded(estimate=estimate):
                        step = next_step(group, estimate, m=M)
                        if isinstance(step, Confine):
                            confining = 1
                            answers_bytes += 4 * len(sectors)
                            sectors = sectors[(self.ours.checksums() != self.theirs.checksums())[sectors]]
                            group = replace(group, sectors=len(sectors), ops=len(sectors) * OPS_PER_SECTOR)
                            group = replace(group, confined=True, extensions=0)
                            step = next_step(group, estimate, m=M)
                        if isinstance(step, SendIds):
                            answers_bytes += group.ops * ID_BYTES
                            found += int(np.isin(self.sectors, sectors).sum())
                        failed += _follow(step, sectors, group)
                    case never:
                        assert_never(never)
            groups, flights = failed, flights + confining
        assert found == len(self.ids)
        return Cost(answers_bytes=answers_bytes, flights=flights)

    def _compare(self, sectors: npt.NDArray[np.int64], group: Group) -> Decoded | Undecoded:
        if group.symbols <= M and not group.salted:
            ours = self.ours.sketch_of(sectors, group.symbols)
            return decode(ours.subtract(self.theirs.sketch_of(sectors, group.symbols)))
        assert len(sectors) == 1
        within = self.sectors == sectors[0]
        ours, theirs = self.ids[: self.cut][within[: self.cut]], self.ids[self.cut :][within[self.cut :]]
        return decode(difference_of(ours, theirs, group.symbols, SALT if group.salted else PLAIN))


def _follow(
    step: Step, sectors: npt.NDArray[np.int64], group: Group
) -> Iterator[tuple[npt.NDArray[np.int64], Group, int]]:
    """The groups to compare next, and how many of their symbols are there already."""
    match step:
        case Extend(symbols=symbols):
            yield sectors, replace(group, symbols=symbols, extensions=group.extensions + 1), group.symbols
        case Split(groups=groups, symbols=symbols):
            for part in np.array_split(sectors, groups):
                ops = len(part) * OPS_PER_SECTOR
                yield part, replace(group, sectors=len(part), ops=ops, symbols=symbols, extensions=0, split=True), 0
        case Salt(symbols=symbols):
            yield sectors, replace(group, symbols=symbols, extensions=0, salted=True), 0
        case Confine() | SendIds():
            pass
        case never:
            assert_never(never)


@pytest.mark.parametrize(
    ("d", "trials", "median_kb", "worst_kb"),
    [(1, 20, 0.71, 0.71), (10, 50, 0.71, 1.6), (100, 40, 6, 10), (1000, 6, 50, 60)],
)
def test_scattered_differences_cost_little_more_than_their_symbols(
    d: int, trials: int, median_kb: float, worst_kb: float
) -> None:
    """A drill-down through cells would cost 52 kB for 10 of them, 332 kB for 100 and 2 MB for 1,000."""
    rng = np.random.Generator(np.random.PCG64(d))
    costs = [
        Replicas(random_ids(Random(trial), d), rng.integers(0, SECTORS, d)).play_round() for trial in range(trials)
    ]
    assert median(cost.answers_bytes for cost in costs) <= 1000 * median_kb
    assert max(cost.answers_bytes for cost in costs) <= 1000 * worst_kb
    assert median(cost.flights for cost in costs) < FEW_FLIGHTS


@pytest.mark.parametrize(("d", "most_kb"), [(10, 2), (100, 11), (300, 28), (1500, 66)])
def test_differences_in_one_sector_are_confined_to_it(d: int, most_kb: float) -> None:
    for trial in range(6):
        cost = Replicas(random_ids(Random(trial), d), np.full(d, 77)).play_round()
        assert cost.answers_bytes <= 1000 * most_kb
        assert cost.flights <= FEW_FLIGHTS + 1
