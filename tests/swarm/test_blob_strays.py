"""An entry that is handed on takes its blob along: it is dropped only where those who should have it hold the blob."""

from __future__ import annotations

from random import Random

import trio
from trio.testing import MockClock

from prime_dht.config import DhtConfig
from prime_dht.ids import wire_key
from prime_dht.node.blobs.claims import FRESH_S
from prime_dht.node.blobs.keeping import SWEEP_EVERY_S
from prime_dht.node.core import Node
from prime_dht.node.maintenance import HAND_ON_EVERY_S
from prime_dht.storage.capacity import location_of
from prime_dht.testing.swarm import Swarm, open_swarm

R = 3
REFRESH_S = 600.0
CONFIG = DhtConfig(k_bucket_size=8, refresh_interval=REFRESH_S)
VALUE = Random(1).randbytes(200_000)


def is_outside(node: Node, key: str) -> bool:
    return not node._syncing._held.arc.covers(location_of(wire_key(key)))


async def holders(swarm: Swarm) -> set[Node]:
    return {node for node in swarm.nodes if any(blob.is_complete for blob in await node.blobs.kept())}


async def test_a_holder_whose_arc_shrank_keeps_the_blob_until_the_closest_hold_it(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=5, size=3, config=CONFIG) as swarm:
        old = list(swarm.nodes)
        await old[0].put("k", VALUE, ttl=86_400)
        await trio.sleep(30)
        assert await holders(swarm) == set(old)
        for node in old:
            swarm.world.block_lies[node.peer_id] = lambda *_: None
        for _ in range(9):
            await swarm.join()
        closest = set(swarm.closest_to("k", R))
        strays = {node for node in old if node not in closest}
        await trio.sleep(3 * REFRESH_S)
        assert any(is_outside(node, "k") for node in strays)
        assert await holders(swarm) == set(old)
        swarm.world.block_lies.clear()
        await trio.sleep(2 * 3600 + 2 * HAND_ON_EVERY_S + FRESH_S + SWEEP_EVERY_S)
        assert closest <= await holders(swarm)
        assert not {node for node in strays if is_outside(node, "k")} & await holders(swarm)
