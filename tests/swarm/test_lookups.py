"""Lookups over whole nodes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from prime_dht.errors import ValidationError
from prime_dht.ids import kad_key
from prime_dht.kad.lookup import Outcome
from prime_dht.testing.swarm import Swarm, open_swarm


def by_distance(swarm: Swarm, target: bytes) -> list[bytes]:
    return sorted((node.peer_id for node in swarm.nodes), key=lambda peer: kad_key(peer) ^ kad_key(target))


async def test_a_dead_peer_is_never_in_a_result(autojump_clock: MockClock) -> None:
    """Scenario 14."""
    async with open_swarm(seed=1, size=40) as swarm:
        for node in swarm.nodes[5:35:3]:
            await swarm.stop(node)
        alive = {node.peer_id for node in swarm.nodes}
        for number in range(5):
            result = await swarm.nodes[number].find_closest(f"key {number}")
            assert {contact.peer for contact in result.closest} <= alive
            assert len(result.closest) == 20


async def test_a_lookup_finds_the_k_closest_of_all_and_shows_the_path(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=60) as swarm:
        node = swarm.nodes[30]
        result = await node.find_closest("k")
        others = [peer for peer in by_distance(swarm, b"/prime/k") if peer != node.peer_id]
        assert [contact.peer for contact in result.closest] == others[:20]
        assert result.outcome is Outcome.CONVERGED
        assert {contact.peer for contact in result.closest} <= {hop.contact.peer for hop in result.path}
        assert all(hop.told_by is None for hop in result.path if hop.depth == 1)


async def test_101_queries_at_once_all_finish(autojump_clock: MockClock) -> None:
    """Scenario 19."""
    async with open_swarm(seed=1, size=20) as swarm:
        node = swarm.nodes[0]
        done = 0

        async def query(number: int) -> None:
            nonlocal done
            result = await node.find_closest(f"key {number}")
            assert len(result.closest) == 19
            done += 1

        async with trio.open_nursery() as nursery:
            for number in range(101):
                nursery.start_soon(query, number)
        assert done == 101


async def test_among_5_and_40_nodes_a_peer_is_found_and_the_closest_are_the_closest_of_all(
    autojump_clock: MockClock,
) -> None:
    """Scenario 24: five that everybody joins through, and forty that know them only."""
    async with open_swarm(seed=1, size=5) as swarm:
        hubs = list(swarm.nodes)
        for number in range(40):
            await swarm.join(via=hubs[number % 5])
        asker, sought = swarm.nodes[7], swarm.nodes[44]
        info = await asker.find_peer(sought.peer_id)
        assert info is not None
        assert [str(address) for address in info.addrs] == [swarm.address_of(sought).split("/p2p/")[0]]
        result = await asker.find_closest(info.peer_id)
        others = [peer for peer in by_distance(swarm, sought.peer_id) if peer != asker.peer_id]
        assert [contact.peer for contact in result.closest] == others[:20]
        assert others[0] == sought.peer_id


async def test_a_client_is_found_by_whoever_asks_a_node_that_knows_it(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        client = await swarm.join_client()
        await swarm.nodes[4].add_peer(swarm.address_of(swarm.nodes[1]))
        swarm.network_of(swarm.nodes[1]).learn_addresses(
            client.peer_id, [swarm.world.address_of(client.peer_id)], source="test"
        )
        info = await swarm.nodes[4].find_peer(client.peer_id)
        assert info is not None
        assert len(info.addrs) == 1


async def test_a_peer_that_nobody_knows_is_not_found(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        stranger = swarm.machine().peer
        assert await swarm.nodes[0].find_peer(stranger) is None
        own = await swarm.nodes[0].find_peer(swarm.nodes[0].peer_id)
        assert own is not None
        assert len(own.addrs) == 1
        for wrong in (b"not a peer id", "not a peer id", 5):
            with pytest.raises(ValidationError):
                await swarm.nodes[0].find_peer(wrong)  # type: ignore[arg-type]


async def test_a_value_is_found_along_a_chain_of_four_where_each_knows_only_the_next(
    autojump_clock: MockClock,
) -> None:
    """Scenario 25. Clients are not heard from, so a chain of tables is made by hand."""
    async with open_swarm(seed=1) as swarm:
        chain = [await swarm.start() for _ in range(4)]
        await chain[3].put("k", b"at the end")
        for node, following in pairwise(chain):
            await node.add_peer(swarm.address_of(following))
            following._neighbourhood.table.remove(node.peer_id)
        client = await swarm.start(swarm.machine(listens=False), via=[chain[0]])
        await client.add_peer(swarm.address_of(chain[0]))
        found = await client.get("k")
        assert found is not None
        assert found.value == b"at the end"
