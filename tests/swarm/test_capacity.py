"""What nodes do whose stores are full."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from prime_dht.config import DhtConfig, Mode
from prime_dht.entries.limits import Limits
from prime_dht.errors import QueryError
from prime_dht.ids import kad_key, wire_key
from prime_dht.kad.keyspace import Prefix
from prime_dht.testing.swarm import open_swarm

MOST = 4
CONFIG = DhtConfig(mode=Mode.SERVER, replication_factor=1, limits=replace(Limits(), max_store_entries=MOST))


async def test_a_node_that_is_left_alone_keeps_what_it_acknowledges_for_the_one_that_is_gone(
    autojump_clock: MockClock,
) -> None:
    """What it has to store grew by that at once; until a chore's next turn it evicted it again."""
    async with open_swarm(seed=1, size=2, config=CONFIG) as swarm:
        node, other = swarm.nodes
        await trio.sleep(100)  # until every chore has had its turn
        assert swarm.machine_of(node).disc.capacity.responsible == Prefix.of(kad_key(node.peer_id), 1)
        keys = [wire_key(f"k{number}") for number in range(64)]
        far = [key for key in keys if kad_key(key) >> 255 == kad_key(other.peer_id) >> 255][:MOST]
        near = [key for key in keys if kad_key(key) >> 255 == kad_key(node.peer_id) >> 255]
        await swarm.stop(other)
        for key in far:
            assert (await node.put(key, b"v")).acknowledged
        for key in near[:MOST]:
            with pytest.raises(QueryError, match="the limit is 4 entries"):
                await node.put(key, b"v")
        assert all([await node.get(key) for key in far])


async def test_a_node_need_not_keep_what_another_has_kept_for_a_whole_refresh_interval(
    autojump_clock: MockClock,
) -> None:
    config = replace(CONFIG, refresh_interval=600.0)
    async with open_swarm(seed=1, size=2, config=config) as swarm:
        node, other = swarm.nodes
        await trio.sleep(100)
        capacity = swarm.machine_of(node).disc.capacity
        machine = await swarm.stop(other)
        await node.find_closest("k")
        assert capacity.responsible == Prefix.of(kad_key(node.peer_id), 0)
        await (await swarm.start(machine, via=[node])).bootstrap()
        await trio.sleep(500)
        assert capacity.responsible == Prefix.of(kad_key(node.peer_id), 0)
        await trio.sleep(200)
        assert capacity.responsible == Prefix.of(kad_key(node.peer_id), 1)
