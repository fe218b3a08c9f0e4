"""What a round costs on the stream, beside the entries that have to move. Bytes are exact, so they are asserted."""

from __future__ import annotations

from math import ceil
from random import Random

import pytest

from prime_dht.testing.sync_pair import DAY_US, NOW_US, YEAR_US, Base, Party, Ran, run_round, unsigned_entry

BASES = {n: Base(n) for n in (1000, 100_000)}
HOUR_US = DAY_US // 24


def differing(n: int, d: int, seed: int, *, sides: str, window_us: int = YEAR_US) -> Ran:
    """A round between two nodes that have n ops in common and differ in d more."""
    rng = Random(seed)
    found = [unsigned_entry(b"%d" % rng.getrandbits(64), NOW_US - rng.randrange(window_us)) for _ in range(d)]
    ours = {"initiator": d, "both": d // 2, "responder": 0}[sides]
    one, other = Party(BASES[n]), Party(BASES[n])
    one.put(found[:ours])
    other.put(found[ours:])
    ran = run_round(one, other, seed=seed)
    assert [str(outcome) for outcome in ran.outcomes] == ["equal", "equal"]
    assert one.op_ids == other.op_ids
    return ran


@pytest.mark.parametrize("n", [1000, 100_000])
def test_equal_nodes_find_out_in_one_round_trip_and_a_kilobyte(n: int) -> None:
    for seed in range(20):
        ran = differing(n, 0, seed, sides="both")
        assert ran.message_count == 2
        assert ran.overhead_bytes <= 1000


@pytest.mark.parametrize("n", [1000, 100_000])
@pytest.mark.parametrize("d", [1, 10])
@pytest.mark.parametrize("sides", ["initiator", "both", "responder"])
def test_up_to_ten_differences_take_a_closing_message_more(n: int, d: int, sides: str) -> None:
    rounds = [differing(n, d, seed, sides=sides) for seed in range(40)]
    assert sum(ran.message_count <= 3 and ran.overhead_bytes <= 1500 for ran in rounds) >= 0.9 * len(rounds)


@pytest.mark.parametrize("n", [1000, 100_000])
@pytest.mark.parametrize(("d", "rounds"), [(30, 20), (100, 40), (1000, 20), (10_000, 1)])
@pytest.mark.parametrize("sides", ["initiator", "both", "responder"])
def test_scattered_differences_cost_60_bytes_each(n: int, d: int, rounds: int, sides: str) -> None:
    costs = sorted(differing(n, d, seed, sides=sides).overhead_bytes for seed in range(rounds))
    assert costs[ceil(0.95 * rounds) - 1] <= 1000 + 60 * d


@pytest.mark.parametrize("d", [1000, 10_000])
@pytest.mark.parametrize("sides", ["initiator", "both", "responder"])
def test_many_recent_differences_cost_less_than_scattered_ones(d: int, sides: str) -> None:
    ran = differing(100_000, d, 1, sides=sides, window_us=HOUR_US)
    assert ran.overhead_bytes <= 1000 + 36 * d


def test_a_round_takes_few_round_trips_whatever_differs() -> None:
    for d in (20, 60, 100, 300, 1000):
        for seed in range(10):
            assert differing(100_000, d, seed, sides="both").message_count <= 25
