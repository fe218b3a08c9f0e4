"""The block store as what a blob is fetched to: each of its blocks once."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from prime_dht.blobs.actions import Finished
from prime_dht.blobs.cid import Cid
from prime_dht.blobs.plan import FetchPlan
from prime_dht.blobs.unixfs import Link, encode_node
from prime_dht.ids import PeerId
from prime_dht.node.blobs.destination import StoreDestination
from prime_dht.storage.blocks import BlockStore, Claim
from prime_dht.testing.blob_fetch import HONEST, FetchWorld

ANNE = PeerId(b"anne")


@pytest.mark.parametrize("is_on_disk", [False, True])
async def test_what_was_taken_is_kept_though_its_memory_is_used_again(is_on_disk: bool, tmp_path: Path) -> None:
    block = Random(1).randbytes(3000)
    root = Cid.of_raw(block)
    opened = (
        await BlockStore.open(tmp_path, max_bytes=1 << 20) if is_on_disk else BlockStore.in_memory(max_bytes=1 << 20)
    )
    async with opened as store:
        await store.claim(Claim(root=root), size_bytes=len(block))
        memory = bytearray(block)
        await StoreDestination(store, root, size=len(block)).take(root, memory)
        memory[:] = bytes(len(memory))
        assert await store.read([root], verify=True) == [block]


async def test_a_blob_of_few_blocks_that_stand_for_very_many_is_kept_in_few_steps() -> None:
    blocks = {Cid.of_raw(bytes(257)): bytes(257)}
    link = Link(cid=next(iter(blocks)), size=257, tsize=0)
    for _ in range(2):
        node = encode_node([link] * 1024)
        blocks[Cid.of_dag_pb(node)] = node
        link = Link(cid=Cid.of_dag_pb(node), size=1024 * link.size, tsize=0)
    async with BlockStore.in_memory(max_bytes=1 << 20) as store:
        walk = StoreDestination(store, link.cid, size=link.size).walk
        plan = FetchPlan(walk, now_us=0)
        plan.on_provider(ANNE)
        world = FetchWorld(plan, blocks, {ANNE: HONEST}, Random(1))
        assert world.run(until=lambda: world.log.looks > len(blocks)) == Finished()
    assert world.store == blocks
    assert plan.progress.settled_bytes == plan.progress.size_bytes == 257 << 20
