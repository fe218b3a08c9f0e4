"""A network that loses messages: replicas and retries make up for it, and the tables heal."""

from __future__ import annotations

from random import Random

import pytest
import trio
from trio.testing import MockClock

from prime_dht.config import DhtConfig
from prime_dht.errors import QueryError
from prime_dht.testing.swarm import open_swarm

OPERATIONS = 60


@pytest.mark.parametrize("share", [0.02, 0.05])
async def test_where_messages_are_lost_puts_are_acknowledged_gets_find_and_tables_heal(
    share: float, autojump_clock: MockClock
) -> None:
    async with open_swarm(seed=1, size=20) as swarm:
        swarm.world.lose(share)
        rng = Random(1)
        untold = 0
        for number in range(OPERATIONS):
            writer, reader = rng.sample(swarm.nodes, 2)
            assert (await writer.put(f"k{number}", b"%d" % number)).acknowledged
            try:
                found = await reader.get(f"k{number}", latest=True)
            except QueryError:  # all replicas failed the reader at once: it cannot tell, and must not say "nothing"
                untold += 1
                continue
            assert found is not None
            assert found.value == b"%d" % number
        assert untold <= OPERATIONS / 20
        forgotten = sum(len(swarm.nodes) - 1 - len(node.peers()) for node in swarm.nodes)
        assert forgotten > 0, "it did lose messages"
        swarm.world.lose(0)
        await trio.sleep(DhtConfig().refresh_interval)
        assert [len(node.peers()) for node in swarm.nodes] == [len(swarm.nodes) - 1] * len(swarm.nodes)
