"""Replicas repair themselves: by sync alone, without anybody putting anything again."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from prime_dht.ids import PeerId
from prime_dht.node.core import Node
from prime_dht.storage.base import EntryQuery
from prime_dht.testing.swarm import Swarm, open_swarm

R = 3
KEYS = [f"key {number}" for number in range(40)]
TTL_S = 6 * 3600.0


async def stores(swarm: Swarm, node: Node, key: str) -> bool:
    query = EntryQuery(key=node._key(key))
    page = await swarm.machine_of(node).disc.get_entries(query, now_us=0)
    return bool(page.entries)


async def holders(swarm: Swarm, key: str) -> set[PeerId]:
    return {node.peer_id for node in swarm.nodes if await stores(swarm, node, key)}


async def missing_at_the_closest(swarm: Swarm) -> list[str]:
    """The keys that one of the running servers that should store them does not."""
    return [key for key in KEYS if not {node.peer_id for node in swarm.closest_to(key, R)} <= await holders(swarm, key)]


async def test_two_nodes_with_different_entries_end_with_the_join(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        (one,) = swarm.nodes
        other = await swarm.start()
        for number, key in enumerate(KEYS):
            await (one, other)[number % 2].put(key, b"value", ttl=TTL_S)
        await one.put("both", b"older", ttl=TTL_S)
        await trio.sleep(1)
        await other.put("both", b"newer", ttl=TTL_S)
        assert [len(await holders(swarm, key)) for key in KEYS] == [1] * len(KEYS)
        await other.add_peer(swarm.address_of(one))
        await trio.sleep(10)
        assert [len(await holders(swarm, key)) for key in KEYS] == [2] * len(KEYS)
        discs = [swarm.machine_of(node).disc for node in (one, other)]
        ops = [await disc.ops(locations=range(1 << 32), created_us=range(1 << 62)) for disc in discs]
        assert ops[0] == ops[1]
        assert len(ops[0]) == len(KEYS) + 2  # each has its own slot under the key of both


async def test_a_joiner_stores_what_it_is_among_the_closest_to_with_nobody_putting_it_again(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=2, size=6) as swarm:
        for number, key in enumerate(KEYS):
            await swarm.nodes[number % 6].put(key, b"value", ttl=TTL_S)
        puts = swarm.world.requests["PutValue"]
        joiner = await swarm.join()
        due = [key for key in KEYS if joiner in swarm.closest_to(key, R)]
        assert len(due) > 10
        await trio.sleep(60)
        assert [key for key in due if not await stores(swarm, joiner, key)] == []
        assert swarm.world.requests["PutValue"] == puts
        for key in KEYS:
            assert await joiner.get(key, latest=True) is not None


async def test_when_all_holders_but_one_are_gone_others_take_their_place(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=3, size=12) as swarm:
        for number, key in enumerate(KEYS):
            await swarm.nodes[number % 12].put(key, b"value", ttl=TTL_S)
        for node in swarm.closest_to(KEYS[0], R - 1):
            await swarm.stop(node)
        assert await missing_at_the_closest(swarm)
        await trio.sleep(3600)
        assert await missing_at_the_closest(swarm) == []


async def test_a_silent_peer_does_not_keep_others_from_being_synced_with(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=4, size=8) as swarm:
        for node in swarm.nodes[1:4]:
            swarm.world.silence(node.peer_id)
        for key in KEYS:
            await swarm.nodes[0].put(key, b"value", ttl=TTL_S)
        joiner = await swarm.join(via=swarm.nodes[0])
        await trio.sleep(300)
        due = [key for key in KEYS if joiner in swarm.closest_to(key, R)]
        assert [key for key in due if not await stores(swarm, joiner, key)] == []
