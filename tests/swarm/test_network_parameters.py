"""Nodes whose network parameters differ talk, but do not sync: they say why, once, and leave each other alone."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from prime_dht.config import DhtConfig
from prime_dht.entries.limits import Limits
from prime_dht.events import SyncFinished
from prime_dht.ids import US_PER_S, short
from prime_dht.testing.hostile_rounds import HOUR_US, signed_entries
from prime_dht.testing.swarm import open_swarm

USUAL = DhtConfig()
HOUR_S = 3600.0


@pytest.mark.parametrize(
    ("other", "here", "there"),
    [
        (replace(USUAL, unit_s=300.0), "unit 15m, not 5m", "unit 5m, not 15m"),
        (replace(USUAL, factor=8), "factor 9, not 8", "factor 8, not 9"),
        (replace(USUAL, sector_bits=12), "sector_bits 9, not 12", "sector_bits 12, not 9"),
        (replace(USUAL, limits=Limits(max_ttl_s=7 * 86_400.0)), "max_ttl 30d, not 7d", "max_ttl 7d, not 30d"),
    ],
)
async def test_who_differs_in_a_parameter_is_refused_with_it_told_of_once_and_left_alone(
    other: DhtConfig, here: str, there: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "prime_dht"):
        async with open_swarm(seed=1, size=1) as swarm:
            (usual,) = swarm.nodes
            with usual.subscribe() as events:
                unusual = await swarm.join(config=other)
                refusal = (await usual.sync(unusual.peer_id)).outcome.refusal
                assert refusal is not None
                assert refusal.text == there
                await trio.sleep(3 * HOUR_S)
                with trio.move_on_after(0.001):
                    rounds = 0
                    async for event in events:
                        rounds += isinstance(event, SyncFinished)
    assert 3 <= rounds <= 9  # one by hand; of those that either begins, one an hour
    said = sorted(message for message in caplog.messages if message.startswith("no sync with peer"))
    about = "no sync with peer {}, other network parameters: "
    possible = [
        {f"{about.format(short(peer))}it has {theirs}", f"{about.format(short(peer))}this node has {ours}"}
        for peer, ours, theirs in ((unusual.peer_id, here, there), (usual.peer_id, there, here))
    ]
    assert len(said) == 2
    assert all(any(message in said for message in of_node) for of_node in possible)


async def test_who_differs_counts_for_nothing_that_a_node_stores_or_holds(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        usual = swarm.nodes[0]
        for _ in range(8):
            await swarm.join(config=replace(USUAL, unit_s=300.0))
        await trio.sleep(2 * HOUR_S)
        holding = (await usual.health()).holding
        assert holding is not None
        assert holding.is_settled
        equals = {contact.peer for contact in usual._neighbourhood.own_arc.equals()}
        assert {node.peer_id for node in swarm.nodes[1:5]} <= equals
        wrong = next(node for node in swarm.nodes[5:] if node.peer_id not in equals)
        repaired = await swarm.start(await swarm.stop(wrong), via=[usual])
        await trio.sleep(60)
        assert repaired.peer_id in {contact.peer for contact in usual._neighbourhood.own_arc.equals()}


async def test_nodes_that_agree_on_unusual_parameters_sync(autojump_clock: MockClock) -> None:
    tuned = DhtConfig(unit_s=60.0, factor=5, sector_bits=12, limits=Limits(max_ttl_s=86_400.0), ttl=3600.0)
    async with open_swarm(seed=1, size=1, config=tuned) as swarm:
        (one,) = swarm.nodes
        for number in range(20):
            await one.put(f"key {number}", b"value")
        other = await swarm.join()
        await trio.sleep(60)
        assert (await other.health()).entries == 20
        outcome = (await other.sync(one.peer_id, dry_run=True)).outcome
        assert outcome.common is not None
        assert (len(outcome.common), outcome.only_ours, outcome.only_theirs) == (4096, 0, 0)
        await trio.sleep(3600 + 60)
        assert (await other.health()).entries == 0


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (USUAL, ""),
        (DhtConfig(unit_s=60.0), "retired: the entry has retired: the tick after its retain_until has passed"),
    ],
)
async def test_what_has_retired_by_the_units_of_the_network_is_not_taken_any_more(
    config: DhtConfig, reason: str, autojump_clock: MockClock
) -> None:
    async with open_swarm(seed=1, size=1, config=config) as swarm:
        await trio.sleep(600)
        (node,) = swarm.nodes
        now_us = swarm.machine_of(node).clock.now_us()
        (entry,) = signed_entries(1, now_us=now_us - HOUR_US - 200 * US_PER_S)
        (status,) = await node._writer._server.join([entry], relayer=None)
        assert status.reason == reason
