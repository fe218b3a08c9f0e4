"""What a node says of the peers it knows: who they are, how they were found, how far away they are."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from prime_dht.errors import LocalProtocolError, QueryError
from prime_dht.events import LookupProgress
from prime_dht.testing.swarm import EPOCH_US, open_swarm

ROUND_TRIP_S = 0.05


async def test_a_ping_takes_a_round_trip_though_it_has_to_connect_first(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2, round_trip_s=ROUND_TRIP_S) as swarm:
        one, other = swarm.nodes
        one_way_s = swarm.world.one_way_s(one.peer_id, other.peer_id)
        for _ in range(2):
            assert await one.ping(other.peer_id) == pytest.approx(2 * one_way_s)
            swarm.network_of(one).disconnect(other.peer_id)


async def test_a_peer_that_has_stopped_does_not_answer_a_ping_and_is_dialled_each_time(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        one, other = swarm.nodes
        machine = await swarm.stop(other)
        for _ in range(2):
            with pytest.raises(QueryError, match="connection refused"):
                await one.ping(machine.peer)
        await swarm.start(machine)
        assert await one.ping(machine.peer) > 0


async def test_a_node_that_does_not_run_pings_nobody(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        one, other = swarm.nodes
        await swarm.stop(one)
        with pytest.raises(LocalProtocolError):
            await one.ping(other.peer_id)


async def test_a_peer_is_known_by_how_and_when_it_was_found(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        first = swarm.nodes[0]
        found_us = EPOCH_US + int(trio.current_time() * 1e6)
        second = await swarm.join(via=first)
        (known,) = second.peers()
        assert (known.peer, known.source, known.connected, known.replicates) == (first.peer_id, "bootstrap", True, True)
        assert known.addresses == (swarm.address_of(first).partition("/p2p/")[0],)
        assert known.first_seen_us is not None
        assert known.last_seen_us is not None
        assert found_us <= known.first_seen_us <= known.last_seen_us
        await trio.sleep(100)
        await second.find_closest("k")
        (again,) = second.peers()
        assert again.first_seen_us == known.first_seen_us
        assert again.last_seen_us is not None
        assert again.last_seen_us >= known.first_seen_us + 100 * 1_000_000


async def test_a_lookup_tells_of_every_hop_who_named_it_and_what_came_of_it(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        first, second, third = swarm.nodes
        newcomer = await swarm.start()
        await newcomer.add_peer(swarm.address_of(first))
        await swarm.stop(third)
        seen: list[LookupProgress] = []
        with newcomer.subscribe() as events:
            result = await newcomer.find_closest("k")
            await swarm.stop(newcomer)
            with trio.fail_after(60):
                seen = [
                    event
                    async for event in events
                    if isinstance(event, LookupProgress)
                    if event.target == result.target
                ]
        by_peer = {event.peer: event for event in seen}
        assert set(by_peer) == {first.peer_id, second.peer_id, third.peer_id}
        for hop in result.path:
            event = by_peer[hop.contact.peer]
            assert (event.told_by, event.depth, event.distance) == (hop.told_by, hop.depth, hop.distance)
            assert (event.told_by is None) == (event.depth == 1)
            assert (event.heard_of, event.failure) == (hop.heard_of, hop.failure)
        assert by_peer[third.peer_id].failure.startswith("peer ")
        assert by_peer[third.peer_id].heard_of == 0
        assert by_peer[first.peer_id].failure == ""
        assert by_peer[first.peer_id].heard_of > 0
