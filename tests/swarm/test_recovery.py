"""What becomes of a node when its machine sleeps, its address changes or its clock jumps: it recovers by itself."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from prime_dht.errors import QueryError
from prime_dht.ids import US_PER_S, PeerId
from prime_dht.node import maintenance
from prime_dht.node.core import Node
from prime_dht.node.maintenance import REMEMBER_EVERY_S, SETTLE_AFTER_S
from prime_dht.testing.swarm import Swarm, open_swarm

HOUR_S = 3600


def known(node: Node) -> set[PeerId]:
    return {status.peer for status in node.peers()}


def all_know_all(swarm: Swarm) -> bool:
    everybody = {node.peer_id for node in swarm.nodes}
    return all(known(node) == everybody - {node.peer_id} for node in swarm.nodes)


async def test_a_machine_that_slept_for_hours_is_back_minutes_after_it_wakes(autojump_clock: MockClock) -> None:
    """Also the first of the swarm, whom nobody told of a bootstrap peer: it remembers those it knew."""
    for sleeper in (0, 3):
        async with open_swarm(seed=1, size=6) as swarm:
            node = swarm.nodes[sleeper]
            await node.put("k", b"value")
            await trio.sleep(2 * REMEMBER_EVERY_S)
            swarm.world.silence(node.peer_id)
            await trio.sleep(3 * HOUR_S)
            assert known(node) == set()
            assert all(node.peer_id not in known(other) for other in swarm.nodes)
            swarm.world.unsilence(node.peer_id)
            await trio.sleep(180)
            assert all_know_all(swarm)
            assert await node.get("k", latest=True) is not None


async def test_a_node_that_dies_moments_after_it_joined_remembers_whom_it_met(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        node = await swarm.join()
        await trio.sleep(4 * SETTLE_AFTER_S)
        remembered = await swarm.machine_of(node).disc.peers(limit=100)
        assert {one.peer for one in remembered} == known(node)
        assert len(remembered) == 6


async def test_who_wakes_asks_its_peers_so_that_those_who_missed_it_meet_it_again(autojump_clock: MockClock) -> None:
    """Its own clock stood still, so it missed nobody: it is its calendar that tells."""
    async with open_swarm(seed=1, size=6) as swarm:
        node = swarm.nodes[3]
        await trio.sleep(120)
        for other in swarm.nodes:
            if other is not node:
                other._neighbourhood.failed(node.peer_id, "it slept")
        swarm.machine_of(node).clock.set_by_us += 8 * HOUR_S * US_PER_S
        await trio.sleep(120)
        assert all_know_all(swarm)


async def test_a_node_whose_address_changes_is_known_at_the_new_one_minutes_later(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        node, other = swarm.nodes[2], swarm.nodes[4]
        await trio.sleep(120)
        swarm.world.move(node.peer_id)
        await trio.sleep(240)
        assert all_know_all(swarm)
        for each in swarm.nodes:
            each_network = swarm.network_of(each)
            if each is not node:
                assert swarm.world.address_of(node.peer_id) in each_network.addresses_of(node.peer_id)
        newcomer = await swarm.join(via=other)
        await newcomer.find_closest("k")
        assert node.peer_id in known(newcomer)
        assert len((await newcomer.put("k", b"value", replication=7)).stored_by) == 7


async def test_a_node_that_nobody_can_reach_where_it_was_is_found_when_somebody_asks_for_it(
    autojump_clock: MockClock,
) -> None:
    """At once: whoever fails to reach it leaves it out, and it is heard from at its next check."""
    async with open_swarm(seed=1, size=6) as swarm:
        node = swarm.nodes[2]
        await trio.sleep(120)
        swarm.world.move(node.peer_id)
        for other in swarm.nodes:
            await other.put(f"key of {other.peer_id.hex()}", b"value")
        await trio.sleep(240)
        assert all_know_all(swarm)


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
async def test_a_clock_that_jumps_an_hour_and_is_set_right_again_costs_a_node_nothing(
    jump_s: int, autojump_clock: MockClock
) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        node, other = swarm.nodes[2], swarm.nodes[4]
        await node.put("k", b"before")
        clock = swarm.machine_of(node).clock
        clock.set_by_us += jump_s * US_PER_S
        await trio.sleep(2 * REMEMBER_EVERY_S)
        assert all_know_all(swarm)
        assert (await other.put("another's", b"value")).acknowledged
        clock.set_by_us -= jump_s * US_PER_S
        await trio.sleep(2 * REMEMBER_EVERY_S)
        assert all_know_all(swarm)
        assert (await node.put("new", b"after")).acknowledged
        for key, value in (("k", b"before"), ("another's", b"value"), ("new", b"after")):
            for reader in (node, other):
                found = await reader.get(key, latest=True)
                assert found is not None
                assert found.value == value


async def test_a_put_by_a_clock_an_hour_fast_is_refused_with_the_reason_and_holds_up_its_slot_for_that_hour_alone(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        node = swarm.closest_to("k", 6)[5]
        clock = swarm.machine_of(node).clock
        clock.set_by_us += HOUR_S * US_PER_S
        with pytest.raises(QueryError, match="dated too far in the future"):
            await node.put("k", b"of the future")
        clock.set_by_us -= HOUR_S * US_PER_S
        assert (await node.put("another", b"now")).acknowledged
        await trio.sleep(HOUR_S)
        assert (await node.put("k", b"an hour later")).acknowledged
        found = await swarm.nodes[0].get("k")
        assert found is not None
        assert found.value == b"an hour later"


async def test_peers_that_were_not_heard_from_for_long_are_forgotten(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert maintenance.FORGET_AFTER_S == 7 * 86_400
    monkeypatch.setattr(maintenance, "FORGET_AFTER_S", 6.0 * HOUR_S)
    async with open_swarm(seed=1, size=3) as swarm:
        node, gone = swarm.nodes[0], swarm.nodes[1]
        disc = swarm.machine_of(node).disc
        await trio.sleep(2 * REMEMBER_EVERY_S)
        await swarm.stop(gone)
        await trio.sleep(5 * HOUR_S)
        assert gone.peer_id in {peer.peer for peer in await disc.peers()}
        await trio.sleep(2 * HOUR_S)
        assert gone.peer_id not in {peer.peer for peer in await disc.peers()}
        assert swarm.nodes[1].peer_id in {peer.peer for peer in await disc.peers()}


async def test_a_peer_is_remembered_with_when_it_was_first_and_last_heard_from(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        node, other = swarm.nodes
        (met,) = node.peers()
        assert met.source == "identify", "the other came to it"
        await trio.sleep(2 * HOUR_S)
        (status,) = node.peers()
        assert met.first_seen_us == status.first_seen_us
        assert met.last_seen_us is not None
        assert status.last_seen_us is not None
        assert status.last_seen_us > met.last_seen_us
        machine = await swarm.stop(node)
        (kept,) = await machine.disc.peers()
        assert (kept.first_seen_us, kept.source) == (met.first_seen_us, met.source)
        await trio.sleep(HOUR_S)
        node = await swarm.start(machine)
        await node.bootstrap()
        (again,) = node.peers()
        assert again.first_seen_us == met.first_seen_us
        assert (again.source, again.peer) == (met.source, other.peer_id)
