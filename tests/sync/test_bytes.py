"""What a round costs on the stream, beside the entries that have to move. Bytes are exact, so they are asserted."""

from __future__ import annotations

from functools import cache
from math import ceil
from typing import get_args

import pytest

from prime_dht.testing.sync_costs import (
    Side,
    Where,
    aim_bytes,
    differing_parties,
    drill_down_bytes,
    equalise,
    meets_aim,
)
from prime_dht.testing.sync_pair import Base, Ran

base = cache(Base)


def differing(n: int, d: int, seed: int, *, side: Side, where: Where = "scattered") -> Ran:
    """A round between two nodes that have n ops in common and differ in d more; after it they are equal."""
    return equalise(*differing_parties(base(n), where, d, side, seed=seed), seed=seed)


@pytest.mark.parametrize("n", [0, 1000, 100_000, 1_000_000])
def test_equal_nodes_find_out_in_one_round_trip_and_a_kilobyte(n: int) -> None:
    assert all(meets_aim(differing(n, 0, seed, side="both"), "scattered", 0, 0) for seed in range(10))


@pytest.mark.parametrize("n", [1000, 100_000, 1_000_000])
@pytest.mark.parametrize("d", [1, 10])
@pytest.mark.parametrize("where", get_args(Where))
@pytest.mark.parametrize("side", get_args(Side))
def test_up_to_ten_differences_take_a_closing_message_more(n: int, d: int, where: Where, side: Side) -> None:
    rounds = [differing(n, d, seed, side=side, where=where) for seed in range(10)]
    assert sum(meets_aim(ran, where, d, 0) for ran in rounds) >= 0.9 * len(rounds)


@pytest.mark.parametrize("n", [1000, 100_000])
@pytest.mark.parametrize(("d", "rounds"), [(30, 20), (100, 20), (1000, 2)])
@pytest.mark.parametrize("side", get_args(Side))
def test_scattered_differences_cost_60_bytes_each(n: int, d: int, rounds: int, side: Side) -> None:
    costs = sorted(differing(n, d, seed, side=side).overhead_bytes for seed in range(rounds))
    assert costs[ceil(0.95 * rounds) - 1] <= 1000 + 60 * d


@pytest.mark.parametrize(
    ("n", "where"),
    [
        (1000, "scattered"),
        (100_000, "scattered"),
        (1_000_000, "scattered"),
        (100_000, "clustered"),
        (100_000, "recent"),
    ],
)
def test_ten_thousand_differences_are_settled_in_one_round_at_a_bounded_cost(n: int, where: Where) -> None:
    one, other = differing_parties(base(n), where, 10_000, "both", seed=1)
    drilled_bytes = drill_down_bytes(one.partition.cells, other.partition.cells)
    assert equalise(one, other, seed=1).overhead_bytes <= aim_bytes(where, 10_000, drilled_bytes)


@pytest.mark.parametrize("n", [1000, 100_000])
@pytest.mark.parametrize("d", [30, 100, 300, 1000])
@pytest.mark.parametrize("side", get_args(Side))
def test_recent_differences_never_cost_more_than_the_drill_down_and_a_kilobyte(n: int, d: int, side: Side) -> None:
    for seed in range(2):
        one, other = differing_parties(base(n), "recent", d, side, seed=seed)
        drilled_bytes = drill_down_bytes(one.partition.cells, other.partition.cells)
        assert equalise(one, other, seed=seed).overhead_bytes <= drilled_bytes + 1000


def test_a_round_takes_few_round_trips_whatever_differs() -> None:
    for d in (20, 60, 100, 300, 1000):
        for seed in range(5):
            assert differing(100_000, d, seed, side="both").message_count <= 25
