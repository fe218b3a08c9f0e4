"""How long a peer has kept a round waiting. What rounds are to hostile peers is tested in ``tests/hostile``."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from prime_dht.ids import US_PER_S
from prime_dht.node.rounds import FEW_ANSWERS, LEAST_BYTES_PER_S, Traffic
from prime_dht.sync.schedule import Pace

STALLED_S = Pace().stalled_us / US_PER_S


async def exchange(traffic: Traffic, *, wait_s: float, size_bytes: int, times: int) -> list[float]:
    """Wait so often for a message; for how long the round has stalled just before each comes."""
    stalled_s = []
    for _ in range(times):
        with traffic.wait():
            await trio.sleep(wait_s)
            stalled_s.append(traffic.stalled_s)
        traffic.bytes_received += size_bytes
    return stalled_s


async def test_a_peer_on_a_long_path_has_not_stalled_though_its_answers_together_take_long(
    autojump_clock: MockClock,
) -> None:
    assert max(await exchange(Traffic(), wait_s=0.3, size_bytes=2048, times=16)) < STALLED_S


async def test_a_peer_that_moves_much_has_not_stalled_when_one_message_takes_long(autojump_clock: MockClock) -> None:
    traffic = Traffic(bytes_received=20 * LEAST_BYTES_PER_S)
    assert max(await exchange(traffic, wait_s=10, size_bytes=10 * LEAST_BYTES_PER_S, times=3)) < 0


async def test_a_peer_that_falls_silent_after_a_few_answers_has_stalled_at_once(autojump_clock: MockClock) -> None:
    traffic = Traffic()
    await exchange(traffic, wait_s=0.1, size_bytes=1024, times=5)
    assert await exchange(traffic, wait_s=STALLED_S, size_bytes=0, times=1) == [pytest.approx(STALLED_S)]


async def test_a_peer_that_says_next_to_nothing_again_and_again_has_stalled_after_a_few_seconds(
    autojump_clock: MockClock,
) -> None:
    stalled_s = await exchange(Traffic(), wait_s=0.5, size_bytes=100, times=2 * FEW_ANSWERS + 1)
    assert stalled_s[0] < STALLED_S <= stalled_s[-1]
