"""What nodes do whose stores are full."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from prime_dht.config import DhtConfig, Mode
from prime_dht.entries.limits import Limits
from prime_dht.errors import QueryError, RefusedError
from prime_dht.ids import PeerId, kad_key, wire_key
from prime_dht.kad.keyspace import Prefix
from prime_dht.testing.simulation.disc import Disc
from prime_dht.testing.simulation.plan import Trouble
from prime_dht.testing.swarm import open_swarm
from prime_dht.wire.kad import PutValue, Reply, Request

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


async def test_who_cannot_store_any_more_is_still_read_from(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        client = await swarm.join_client()
        await client.put("k", b"v")
        network = swarm.network_of(client)
        call, post = network.call, network.post

        async def refuse(peer: PeerId, request: Request, **given: Any) -> Reply:
            if isinstance(request, PutValue):
                raise RefusedError("the disk is full")
            return await call(peer, request, **given)

        monkeypatch.setattr(network, "call", refuse)
        monkeypatch.setattr(
            network,
            "post",
            lambda peer, request, **more: not isinstance(request, PutValue) and post(peer, request, **more),
        )
        for _ in range(3):
            with pytest.raises(QueryError, match="the disk is full"):
                await client.put("k", b"more")
            found = await client.get("k", latest=True)
            assert found is not None
            assert found.value == b"v"


@pytest.mark.parametrize("replication", [1, 3])
async def test_what_a_replica_cannot_store_the_next_closest_stores(replication: int, autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5, config=DhtConfig(replication_factor=replication)) as swarm:
        disc = Disc(pytest.fail)
        full = await swarm.start(swarm.machine(disc=disc), via=swarm.nodes[:1])
        await full.bootstrap()
        client = await swarm.join_client()
        disc.trouble = Trouble.FULL
        keys = [key for key in map("key {}".format, range(20)) if full in swarm.closest_to(key, replication)]
        for _ in range(3):
            receipts = [await client.put(key, b"value") for key in keys]
            receipts += await client.put_many(dict.fromkeys(keys, b"value"))
            for receipt in receipts:
                assert [peer for peer, _ in receipt.failed] == [full.peer_id]
                assert len(receipt.stored_by) == replication


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
