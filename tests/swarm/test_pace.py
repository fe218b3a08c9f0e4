"""How many rounds of sync it takes until each node holds all that it is to store; in virtual time, so it is exact."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from prime_dht.background import background_nursery
from prime_dht.config import DhtConfig
from prime_dht.entries.limits import Limits
from prime_dht.errors import QueryError
from prime_dht.events import SyncFinished
from prime_dht.ids import PeerId
from prime_dht.node.core import Node
from prime_dht.node.feed import Subscription
from prime_dht.node.rounds import LEAST_BYTES_PER_S, Rounds, SyncReport, Traffic
from prime_dht.testing.memory_network import MemoryNetwork
from prime_dht.testing.swarm import Swarm, open_swarm

FOUND_EACH_OTHER_S = 1.0
TTL_S = 3600.0


async def has_settled(swarm: Swarm) -> bool:
    holdings = [(await node.health()).holding for node in swarm.nodes]
    return all(holding is not None and holding.is_settled for holding in holdings)


async def settle(swarm: Swarm, *, within_s: float) -> None:
    for _ in range(round(10 * within_s)):
        if await has_settled(swarm):
            return
        await trio.sleep(0.1)
    raise AssertionError(f"not settled after {within_s:g} s")


def subscribe(stack: ExitStack, swarm: Swarm) -> list[Subscription]:
    return [stack.enter_context(node.subscribe()) for node in swarm.nodes]


async def rounds_begun(subscriptions: list[Subscription]) -> list[int]:
    """How many rounds each node began, until its subscription ended."""
    told = [[event async for event in events] for events in subscriptions]
    return [sum(isinstance(event, SyncFinished) and event.begun_here for event in events) for events in told]


@pytest.mark.parametrize(("size", "within_s", "rounds_each"), [(16, 5.0, 3.0), (40, 8.0, 4.0)])
async def test_nodes_that_all_start_at_once_settle_in_seconds_with_a_few_rounds_each(
    size: int, within_s: float, rounds_each: float, autojump_clock: MockClock
) -> None:
    async with background_nursery() as nursery:
        swarm = Swarm(nursery, seed=1, round_trip_s=0.05, config=DhtConfig())
        first = await swarm.start()
        with ExitStack() as stack:
            for _ in range(size - 1):
                await swarm.start(via=[first])
            subscriptions = subscribe(stack, swarm)
            await trio.sleep(FOUND_EACH_OTHER_S)
            assert not await has_settled(swarm)
            await settle(swarm, within_s=within_s)
        assert sum(await rounds_begun(subscriptions)) <= rounds_each * size


async def test_one_that_joins_a_swarm_with_data_holds_its_arc_after_a_round_or_two(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=16) as swarm:
        for number in range(100):
            await swarm.nodes[number % 16].put(f"key {number}", b"value", ttl=TTL_S)
        await settle(swarm, within_s=60)
        with ExitStack() as stack:
            joiner = await swarm.join()
            subscriptions = subscribe(stack, swarm)
            await settle(swarm, within_s=3.0)
        assert sum(await rounds_begun(subscriptions)) <= 2
        health = await joiner.health()
        assert health.holding is not None
        assert health.holding.sectors < 512
        assert health.entries < 100, "it did not fetch what is not its own"


async def test_a_node_whose_store_is_full_keeps_to_the_pace_and_nobody_is_blamed(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        for number in range(60):
            await swarm.nodes[number % 5].put(f"key {number}", b"value", ttl=6 * TTL_S)
        await settle(swarm, within_s=60)
        with ExitStack() as stack:
            full = await swarm.join(config=DhtConfig(limits=Limits(max_store_entries=10)))
            subscriptions = [stack.enter_context(full.subscribe())]
            await trio.sleep(3600)
        (begun,) = await rounds_begun(subscriptions)
        assert 20 < begun < 80
        health = await full.health()
        assert health.holding is not None
        assert not health.holding.is_settled
        assert [node._network.counters().offences for node in swarm.nodes] == [0] * 6


async def test_a_swarm_that_has_settled_has_a_round_per_node_every_two_minutes(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=12) as swarm:
        await trio.sleep(300)
        with ExitStack() as stack:
            subscriptions = subscribe(stack, swarm)
            await trio.sleep(1300)
        assert set(await rounds_begun(subscriptions)) <= {9, 10, 11}


@pytest.mark.parametrize("crosses", [False, True])
async def test_a_partner_that_trickles_does_not_keep_the_others_from_their_turn(
    crosses: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one that begins a round itself meanwhile, which goes on instead."""
    initiate = Rounds.initiate

    async def trickle(rounds: Rounds, peer: PeerId, *, traffic: Traffic, **others: Any) -> SyncReport:
        if (rounds.local, peer) != (node.peer_id, trickling.peer_id):
            return await initiate(rounds, peer, traffic=traffic, **others)
        trickles.set()
        for _ in range(600):
            with traffic.wait():
                await trio.sleep(1)
            traffic.bytes_received += LEAST_BYTES_PER_S
        raise QueryError("this round is over")

    trickles = trio.Event()
    async with open_swarm(seed=1, size=3) as swarm:
        node, trickling, other = swarm.nodes
        await settle(swarm, within_s=60)
        monkeypatch.setattr(Rounds, "initiate", trickle)
        with node.subscribe() as events:
            await trickles.wait()
            if crosses:
                of_trickling = trickling._syncing._rounds
                report = await initiate(of_trickling, node.peer_id, nonce=(1 << 32) - 1)
                assert str(report.outcome) == "equal"
            await trio.sleep(590)
        told = [event async for event in events]
        begun = [event.peer for event in told if isinstance(event, SyncFinished) and event.begun_here]
        assert begun.count(other.peer_id) >= 3


def narrow(swarm: Swarm, node: Node, bytes_per_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a node's rounds share a link of this rate."""
    link, here = trio.StrictFIFOLock(), swarm.network_of(node)

    def slowed(network: MemoryNetwork) -> Callable[[MemoryNetwork], Callable[[bytes], Awaitable[None]]]:
        carrier = network._carrier

        def carrier_to(other: MemoryNetwork) -> Callable[[bytes], Awaitable[None]]:
            carry = carrier(other)
            if here not in (network, other):
                return carry

            async def carry_slowly(message: bytes) -> None:
                for _ in range(len(message) // 1024):
                    async with link:
                        await trio.sleep(1024 / bytes_per_s)
                await carry(message)

            return carry_slowly

        return carrier_to

    for one in swarm.nodes:
        network = swarm.network_of(one)
        monkeypatch.setattr(network, "_carrier", slowed(network))


async def test_one_that_joins_over_a_path_too_slow_for_a_full_turn_gets_everything_in_smaller_ones(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        for number in range(100):
            await swarm.nodes[number % 2].put(f"key {number}", bytes(60_000), ttl=24 * TTL_S)
        await settle(swarm, within_s=300)
        joiner = await swarm.start()
        narrow(swarm, joiner, LEAST_BYTES_PER_S / 2, monkeypatch)
        for node in swarm.nodes[:2]:
            await joiner.add_peer(swarm.address_of(node))
        await trio.sleep(1200)
        assert (await joiner.health()).entries == 100


async def test_a_link_with_32_kib_a_second_for_each_of_two_rounds_is_held_against_nobody(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        joiner = await swarm.start()
        for number in range(80):
            await (joiner, *swarm.nodes[:2])[number % 3].put(f"key {number}", bytes(60_000), ttl=24 * TTL_S)
        narrow(swarm, joiner, 4 * LEAST_BYTES_PER_S, monkeypatch)
        for node in swarm.nodes[:2]:
            await joiner.add_peer(swarm.address_of(node))
        await trio.sleep(600)
        assert [(await node.health()).entries for node in swarm.nodes] == [80] * 3
        assert [node._network.counters().offences for node in swarm.nodes] == [0] * 3


async def test_turns_that_became_small_are_full_again_after_a_few_answers_in_the_same_round(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        (one,) = swarm.nodes
        for number in range(100):
            await one.put(f"key {number}", bytes(60_000), ttl=24 * TTL_S)
        joiner = await swarm.start()
        for _ in range(3):
            one._syncing._rounds._turn_sizes.unanswered(joiner.peer_id, LEAST_BYTES_PER_S * 50, 50.0)
        await joiner.add_peer(swarm.address_of(one))
        report = await one.sync(joiner.peer_id)
        assert report.outcome.entries_sent == 100
        assert report.traffic.messages_sent <= 16
