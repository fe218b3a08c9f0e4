"""Put, get and sync together keep every live entry on its replicas while nodes come and go."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from prime_dht.config import DhtConfig
from prime_dht.ids import wire_key
from prime_dht.node.core import Node
from prime_dht.storage.base import EntryQuery
from prime_dht.testing.swarm import Swarm, open_swarm

R = 3
TTL_S = 12 * 3600.0
KEYS = [f"key {number}" for number in range(200)]
PAUSE_S = 420.0
"""Between one that leaves and the next: until then the others have noticed, and have taken over what it stored."""


async def stores(swarm: Swarm, node: Node, key: str) -> bool:
    page = await swarm.machine_of(node).disc.get_entries(EntryQuery(key=wire_key(key)), now_us=0)
    return bool(page.entries)


async def test_with_a_third_of_all_nodes_replaced_one_by_one_each_entry_is_on_its_replicas_and_found_by_all(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=7, size=20, config=DhtConfig(refresh_interval=1800.0)) as swarm:
        writer = swarm.nodes[0]
        for start in range(0, len(KEYS), 50):
            await writer.put_many([(key, b"value") for key in KEYS[start : start + 50]], ttl=TTL_S)
        puts = swarm.world.requests["PutValue"]
        for _ in range(7):
            await swarm.stop(swarm.nodes[0])  # the writer too: it need not be there any more
            await swarm.join()
            await trio.sleep(PAUSE_S)
        lacking = [
            (key, node.peer_id)
            for key in KEYS
            for node in swarm.closest_to(key, R)
            if not await stores(swarm, node, key)
        ]
        assert lacking == []
        for number, node in enumerate(swarm.nodes):
            found = await node.get_many(KEYS[number::20])
            assert [key for key, value in found.items() if value is None] == []
            assert len(found) == len(KEYS[number::20])
        handed_on = swarm.world.requests["PutValue"] - puts
        assert handed_on < len(KEYS), "strays come in batches; nobody puts anything else"
