"""Swarms that were separate become one when any two of their members meet, and nobody makes a storm of it."""

from __future__ import annotations

from random import Random

import pytest
import trio
from trio.testing import MockClock

from prime_dht.config import DhtConfig
from prime_dht.ids import PeerId, kad_key, wire_key
from prime_dht.node import maintenance, strangers
from prime_dht.node.core import Node
from prime_dht.node.maintenance import ALONE_AFTER_S, REMEMBER_EVERY_S, SETTLE_AFTER_S
from prime_dht.node.neighbourhood import NAMED_AT_MOST
from prime_dht.testing.memory_network import MemoryNetwork
from prime_dht.testing.swarm import Swarm, open_swarm
from prime_dht.wire.kad import Connection, FindNode, PeerRecord, Reply, Request


async def start_separately(swarm: Swarm, size: int) -> list[Node]:
    """A swarm of its own, in the same world."""
    first = await swarm.start()
    nodes = [first, *[await swarm.join(via=first) for _ in range(size - 1)]]
    await trio.sleep(2 * SETTLE_AFTER_S)
    return nodes


def known(node: Node) -> set[PeerId]:
    return {status.peer for status in node.peers()}


def all_know_all(nodes: list[Node]) -> bool:
    everybody = {node.peer_id for node in nodes}
    return all(known(node) == everybody - {node.peer_id} for node in nodes)


async def finds_the_closest(swarm: Swarm, node: Node, raw_target: bytes) -> bool:
    """Whether a node's lookup of a target ends with those that are closest to it in all of the world."""
    k, target = node.config.k_bucket_size, kad_key(raw_target)
    others = (kad_key(other.peer_id) for other in swarm.nodes if other is not node)
    found = await node._explorer.find_closest(raw_target)
    return [server.kad_key for server in found.closest] == sorted(others, key=lambda key: key ^ target)[:k]


async def test_two_swarms_of_ten_are_one_seconds_after_two_members_met(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1) as swarm:
        one, other = await start_separately(swarm, 10), await start_separately(swarm, 10)
        for number in range(20):
            await one[number % 10].put(f"one {number}", b"of one")
            await other[number % 10].put(f"other {number}", b"of the other")
        before = swarm.world.requests.total()
        await one[3].add_peer(swarm.address_of(other[7]))
        await trio.sleep(3)
        assert all_know_all(swarm.nodes)
        await trio.sleep(57)
        # A hundred pairs are new to each other, and each is met from both sides.
        assert swarm.world.requests.total() - before < 450
        rng = Random(1)
        for node in swarm.nodes:
            assert await finds_the_closest(swarm, node, rng.randbytes(32))
        for number in range(20):
            for key, value in ((f"one {number}", b"of one"), (f"other {number}", b"of the other")):
                receipt = await rng.choice(swarm.nodes).put(f"new {key}", value)
                assert set(receipt.stored_by) == {server.peer_id for server in swarm.closest_to(f"new {key}", 3)}
                assert await rng.choice(swarm.nodes).get(f"new {key}", latest=True) is not None


async def test_what_each_swarm_held_can_be_found_in_the_other_afterwards(autojump_clock: MockClock) -> None:
    """At the nodes that hold it, which are in every lookup's reach; moving it to those now closest is sync's work."""
    async with open_swarm(seed=2) as swarm:
        one, other = await start_separately(swarm, 10), await start_separately(swarm, 10)
        keys = [f"key {number}" for number in range(20)]
        holders = {key: (await one[number % 10].put(key, b"value")).stored_by for number, key in enumerate(keys)}
        await other[0].add_peer(swarm.address_of(one[0]))
        await trio.sleep(3)
        for key in keys:
            for node in other:
                found = {server.peer for server in (await node.find_closest(key)).closest}
                assert found >= set(holders[key]) - {node.peer_id}


async def test_swarms_with_more_members_than_a_table_holds_are_one_all_round_the_circle(
    autojump_clock: MockClock,
) -> None:
    config = DhtConfig(k_bucket_size=6)
    async with open_swarm(seed=5, config=config) as swarm:
        one, other = await start_separately(swarm, 40), await start_separately(swarm, 40)
        before = swarm.world.requests.total()
        await one[3].add_peer(swarm.address_of(other[7]))
        await trio.sleep(2 * strangers.LOOK_AT_MOST_S)
        assert swarm.world.requests.total() - before < 60 * len(swarm.nodes)
        rng, acquainted = Random(1), 0
        for number in range(30):
            key = f"key {number}"
            replicas = swarm.closest_to(key, 3)
            peers = {each.peer_id for each in replicas}
            acquainted += all(known(replica) >= peers - {replica.peer_id} for replica in replicas)
            receipt = await rng.choice(one).put(key, b"value")
            assert set(receipt.stored_by) == {replica.peer_id for replica in replicas}
            assert await rng.choice(other).get(key, latest=True) is not None
        assert acquainted >= 27, "of one that spreads no further than to neighbours it would be 12"


async def test_a_node_that_joins_through_both_swarms_makes_them_one(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=3) as swarm:
        one, other = await start_separately(swarm, 8), await start_separately(swarm, 8)
        node = await swarm.start(via=[one[0], other[0]])
        await node.bootstrap()
        await trio.sleep(3)
        assert all_know_all(swarm.nodes)


async def test_a_client_that_knows_both_swarms_does_not_make_them_one(autojump_clock: MockClock) -> None:
    """Nobody asks a client, so nobody hears from it who else there is."""
    async with open_swarm(seed=3) as swarm:
        one, other = await start_separately(swarm, 4), await start_separately(swarm, 4)
        client = await swarm.join_client(via=one[0])
        await client.add_peer(swarm.address_of(other[0]))
        await trio.sleep(60)
        assert all_know_all(one)
        assert all_know_all(other)


async def test_a_request_of_a_stranger_is_enough(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing is done by those who ask."""
    async with open_swarm(seed=4) as swarm:
        one, other = await start_separately(swarm, 5), await start_separately(swarm, 5)
        network = swarm.network_of(one[0])
        network.learn_addresses(other[0].peer_id, [swarm.world.address_of(other[0].peer_id)], source="test")
        await network.call(other[0].peer_id, FindNode(one[0].peer_id), timeout_s=5)
        await trio.sleep(3)
        assert all_know_all(swarm.nodes)


async def test_who_went_on_alone_looks_for_its_place_as_soon_as_one_of_those_that_it_lost_is_back(
    autojump_clock: MockClock,
) -> None:
    """It had no peer to join through. They had looked for their places long before, and need not do so again."""
    async with open_swarm(seed=5, size=40, config=DhtConfig(k_bucket_size=6)) as swarm:
        await trio.sleep(60)
        node, *others = swarm.nodes
        swarm.world.partition([other.peer_id for other in others], [node.peer_id])
        await trio.sleep(3 * ALONE_AFTER_S)
        assert node._neighbourhood.has_looked_around
        swarm.world.heal()
        await others[16].add_peer(swarm.address_of(node))
        await trio.sleep(10)
        for number in range(30):
            replicas = await node._explorer.replicas_of(wire_key(f"key {number}"), 3)
            nearest = swarm.closest_to(f"key {number}", 3)
            assert [replica.peer for replica in replicas] == [other.peer_id for other in nearest]


async def test_halves_that_were_apart_while_many_came_and_went_become_one_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those whom each saw last are of its own half, and the peer that all joined through is gone for good."""
    monkeypatch.setattr(maintenance, "REMEMBERED_PEERS", 8)
    async with open_swarm(seed=1, size=5) as swarm:
        await trio.sleep(2 * REMEMBER_EVERY_S)
        await swarm.stop(swarm.nodes[0])
        lasting = list(swarm.nodes)
        halves = [lasting[:2], lasting[2:]]
        sides = [[node.peer_id for node in half] for half in halves]
        for _ in range(3):
            for half, side in zip(halves, sides, strict=True):
                machines = [swarm.machine() for _ in range(3)]
                side += [machine.peer for machine in machines]
                swarm.world.partition(*sides)
                for machine in machines:
                    await swarm.start(machine, via=[half[0]])
            await trio.sleep(1.2 * REMEMBER_EVERY_S)
            for node in [node for node in swarm.nodes if node not in lasting]:
                await swarm.stop(node)
        swarm.world.heal()
        await trio.sleep(600)
        assert all_know_all(lasting)


async def test_a_hundred_nodes_that_start_at_once_make_no_storm(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1) as swarm:
        first = await swarm.start()
        for _ in range(99):
            await swarm.start(via=[first])
        await trio.sleep(20)
        joining = swarm.world.requests.total()
        assert joining < 100 * 75
        connections = sum(len(swarm.network_of(node).connected_peers()) for node in swarm.nodes)
        assert connections < 100 * 55, "half of all, with twenty neighbours and some to route by"
        await trio.sleep(180)
        assert swarm.world.requests.total() - joining < 100 * 20, "looks, ever less often, find that there is no news"


async def test_a_crowd_of_strangers_that_are_vouched_for_are_looked_through_ever_less_often(
    autojump_clock: MockClock,
) -> None:
    config = DhtConfig(k_bucket_size=4)
    async with open_swarm(seed=1, size=40, config=config) as swarm:
        await trio.sleep(600)
        node = swarm.nodes[-1]
        sent = swarm.network_of(node).sent.total()
        for other in swarm.nodes[:-1]:
            node.peer_found(other.peer_id, [swarm.world.address_of(other.peer_id)], source="mdns")
        await trio.sleep(300)
        assert swarm.network_of(node).sent.total() - sent < 150


async def test_of_the_neighbours_that_a_liar_names_a_bounded_number_is_dialled(autojump_clock: MockClock) -> None:
    """It names new ones for ever, and each of them would name more."""
    async with open_swarm(seed=1, size=3) as swarm, trio.open_nursery() as nursery:
        node = swarm.nodes[0]

        async def lie(_peer: PeerId, _request: Request) -> Reply:
            liars = [await start() for _ in range(5)]
            return Reply(
                closer=tuple(
                    PeerRecord(liar.local, (swarm.world.address_of(liar.local),), Connection.CONNECTED)
                    for liar in liars
                )
            )

        async def start() -> MemoryNetwork:
            network = swarm.world.network(swarm.machine().peer, lie)
            await nursery.start(network.run)
            network.mount(as_server=True)
            return network

        liar = await start()
        liar.learn_addresses(node.peer_id, [swarm.world.address_of(node.peer_id)], source="test")
        sent = swarm.network_of(node).sent.total()
        await liar.call(node.peer_id, FindNode(liar.local), timeout_s=5)
        await trio.sleep(strangers.UNVOUCHED_TIMES / 2)
        assert swarm.network_of(node).sent.total() - sent <= 1 + NAMED_AT_MOST * node.config.k_bucket_size
        nursery.cancel_scope.cancel()
