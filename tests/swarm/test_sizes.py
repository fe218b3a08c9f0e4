"""What DESIGN section 3 says of put, get, absence and receipts, on swarms of every size."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trio.testing import MockClock

from prime_dht.config import DhtConfig, Mode
from prime_dht.errors import ConfigError, QueryError
from prime_dht.testing.swarm import open_swarm


@pytest.mark.parametrize("size", [1, 2, 3, 5, 20, 60])
async def test_every_node_reads_what_any_node_put(size: int, autojump_clock: MockClock) -> None:
    async with open_swarm(seed=size, size=size) as swarm:
        for number, node in enumerate(swarm.nodes):
            await node.put(f"key {number}", b"value %d" % number)
        for reader in swarm.nodes:
            for number in range(0, size, max(1, size // 5)):
                found = await reader.get(f"key {number}")
                assert found is not None
                assert found.value == b"value %d" % number
                assert found.publisher == swarm.nodes[number].peer_id


@pytest.mark.parametrize("size", [1, 2, 3, 5, 20, 60])
async def test_a_put_is_stored_by_exactly_the_r_closest(size: int, autojump_clock: MockClock) -> None:
    async with open_swarm(seed=size, size=size) as swarm:
        for number, node in enumerate(swarm.nodes[:: max(1, size // 10)]):
            key = f"key {number}"
            receipt = await node.put(key, b"value")
            closest = {server.peer_id for server in swarm.closest_to(key, 3)}
            assert set(receipt.stored_by) == closest
            assert len(receipt.stored_by) == len(closest)
            assert receipt.acknowledged
            assert receipt.failed == receipt.refused == ()
            assert receipt.needed == min(2, size)
            holders = {one.peer_id for one in swarm.nodes if await swarm.machine_of(one).disc.keys() != []}
            assert closest <= holders


@pytest.mark.parametrize("size", [1, 2, 3, 5, 20, 60])
async def test_what_nobody_put_reads_as_none(size: int, autojump_clock: MockClock) -> None:
    async with open_swarm(seed=size, size=size) as swarm:
        assert await swarm.nodes[-1].get("nobody's") is None
        assert len(await swarm.nodes[0].get_all("nobody's")) == 0


async def test_two_hundred_nodes_place_find_and_miss_as_few_do(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=200) as swarm:
        for number in range(20):
            key = f"key {number}"
            receipt = await swarm.nodes[number * 7].put(key, b"value")
            assert set(receipt.stored_by) == {server.peer_id for server in swarm.closest_to(key, 3)}
            found = await swarm.nodes[199 - number * 3].get(key)
            assert found is not None
            assert found.answered == 2
        assert await swarm.nodes[100].get("nobody's") is None
        result = await swarm.nodes[50].find_closest("key 3")
        assert [contact.peer for contact in result.closest[:3]] == [
            server.peer_id for server in swarm.closest_to("key 3", 3)
        ]
        sent = sum(swarm.network_of(node).sent.total() for node in swarm.nodes)
        assert sent < 200 * 100, "joining costs each node less than a hundred requests"


async def test_a_lone_node_stores_with_one_of_three_and_a_warning(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        (node,) = swarm.nodes
        receipt = await node.put("k", b"value")
        assert receipt.stored_by == (node.peer_id,)
        assert (receipt.needed, receipt.wanted, receipt.acknowledged) == (1, 3, True)
        assert receipt.warning == "stored by 1 of 3 replicas"
        assert (await node.health()).warnings == ("no other server is known",)


async def test_a_lone_client_raises(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1) as swarm:
        client = await swarm.start(swarm.machine(listens=False))
        with pytest.raises(QueryError, match="has found no peers"):
            await client.put("k", b"value")
        with pytest.raises(QueryError, match="has found no peers"):
            await client.get("k")
        with pytest.raises(QueryError):
            await client.get_many(["k"])
        with pytest.raises(QueryError):
            await client.find_providers(b"\x12\x20" + b"x" * 32)
        with pytest.raises(QueryError):
            await client.get_record(b"/pk/x")
        assert (await client.health()).target_arc is None


async def test_a_client_puts_and_gets_and_stores_nothing_itself(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        client = await swarm.join_client()
        receipt = await client.put("k", b"value")
        assert set(receipt.stored_by) == {server.peer_id for server in swarm.closest_to("k", 3)}
        found = await client.get("k", latest=True)
        assert found is not None
        assert found.publisher == client.peer_id
        assert await swarm.machine_of(client).disc.keys() == []


async def test_a_quorum_is_capped_by_the_servers_that_are_known(autojump_clock: MockClock) -> None:
    config = DhtConfig(replication_factor=5, read_quorum=5)
    async with open_swarm(seed=1, size=4, config=config) as swarm:
        receipt = await swarm.nodes[0].put("k", b"value")
        assert (receipt.wanted, receipt.needed, len(receipt.stored_by)) == (5, 3, 4)
        found = await swarm.nodes[1].get("k")
        assert found is not None
        assert found.answered == 4


async def test_a_reader_may_ask_for_more_answers_than_the_quorum(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=20) as swarm:
        await swarm.nodes[0].put("k", b"value")
        for quorum in (1, 2, 3):
            found = await swarm.nodes[7].get("k", quorum=quorum)
            assert found is not None
            assert found.answered == quorum
        for quorum in (0, 4):
            with pytest.raises(ConfigError):
                await swarm.nodes[7].get("k", quorum=quorum)


async def test_replication_can_be_chosen_for_one_put(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=20) as swarm:
        receipt = await swarm.nodes[0].put("k", b"value", replication=7)
        assert set(receipt.stored_by) == {server.peer_id for server in swarm.closest_to("k", 7)}
        assert receipt.needed == 4
        with pytest.raises(ConfigError):
            await swarm.nodes[0].put("k", b"value", replication=21)


async def test_with_a_true_routing_table_a_put_is_r_requests_and_a_get_is_a_quorum(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=20) as swarm:
        client = await swarm.join_client()
        before = swarm.world.requests.copy()
        await client.put("k", b"value")
        assert swarm.world.requests - before == {"PutValue": 3}
        before = swarm.world.requests.copy()
        await client.get("k", latest=True)
        assert swarm.world.requests - before == {"GetValue": 2}


async def test_a_client_that_would_serve_is_in_client_mode_all_the_same(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        config = replace(DhtConfig(), mode=Mode.CLIENT)
        client = await swarm.join(config=config)
        await client.put("k", b"value")
        assert (await client.health()).mode == "client"
        for node in swarm.nodes[:3]:
            assert client.peer_id not in {status.peer for status in node.peers()}
