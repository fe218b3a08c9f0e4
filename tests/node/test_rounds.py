"""How long a peer has kept a round waiting, and what a round sees of the store.

What rounds are to hostile peers is tested in ``tests/hostile``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from prime_dht.entries.entry import Entry
from prime_dht.ids import US_PER_S
from prime_dht.node.rounds import FEW_ANSWERS, LEAST_BYTES_PER_S, SLOW_AFTER_S, Traffic
from prime_dht.storage.base import PutResult
from prime_dht.storage.capacity import location_of
from prime_dht.storage.memory import MemoryBackend
from prime_dht.sync.limits import TURN_BYTES
from prime_dht.sync.schedule import Pace
from prime_dht.testing.hostile_rounds import signed_entries
from prime_dht.testing.swarm import open_swarm

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


@pytest.mark.parametrize(("kib_per_s", "is_slow"), [(16, True), (256, False)])
async def test_a_peer_that_trickles_is_slow_after_some_minutes_and_one_that_moves_much_is_not(
    autojump_clock: MockClock, kib_per_s: int, is_slow: bool
) -> None:
    traffic = Traffic()
    await exchange(traffic, wait_s=1.0, size_bytes=kib_per_s << 10, times=int(SLOW_AFTER_S))
    assert not traffic.is_slow
    await exchange(traffic, wait_s=1.0, size_bytes=kib_per_s << 10, times=int(1.5 * SLOW_AFTER_S))
    assert traffic.is_slow is is_slow


async def test_a_full_turn_may_come_at_the_least_rate_again_and_again(autojump_clock: MockClock) -> None:
    await exchange(Traffic(), wait_s=TURN_BYTES / LEAST_BYTES_PER_S, size_bytes=TURN_BYTES, times=10)


async def test_a_peer_that_says_next_to_nothing_again_and_again_has_stalled_after_a_few_seconds(
    autojump_clock: MockClock,
) -> None:
    stalled_s = await exchange(Traffic(), wait_s=0.5, size_bytes=100, times=2 * FEW_ANSWERS + 1)
    assert stalled_s[0] < STALLED_S <= stalled_s[-1]


class SlowToReturn(MemoryBackend):
    """A store that does what it is asked for, and takes a second to say so."""

    is_immediate = False

    async def put_entries(self, entries: Sequence[Entry], *, now_us: int) -> list[PutResult]:
        results = await super().put_entries(entries, now_us=now_us)
        await trio.sleep(1)
        return results


async def test_a_view_knows_what_went_when_it_is_not_found_among_the_entries(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1) as swarm, trio.open_nursery() as nursery:
        node = await swarm.start(swarm.machine(disc=SlowToReturn()))
        replica, now_us = node._replica, swarm.machine_of(node).clock.now_us()
        await replica.wait_until_ready(timeout_s=60)
        (old,), (new,) = (signed_entries(1, now_us=now_us + later_us) for later_us in (0, 1))
        await replica.put_entries([old], now_us=now_us)
        with replica.view() as view:
            assert view is not None
            nursery.start_soon(partial(replica.put_entries, [new], now_us=now_us))
            await trio.sleep(0.5)
            fetched = await node._syncing._rounds._fetch_entries((old.op_id[:16],))
            assert fetched.entries == ()
            assert view.sector_of_gone(old.op_id) == location_of(old.header.key) >> 23
