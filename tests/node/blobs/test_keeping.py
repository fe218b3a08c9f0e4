"""What a node says that it holds."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from prime_dht.blobs.cid import Cid
from prime_dht.node.blobs.keeping import HeldBlocks, collect_all
from prime_dht.storage.blocks import BlockStore, Claim
from prime_dht.storage.blocks_status import Collected
from prime_dht.testing.blob_fetch import blocks_of

ROOT, BLOCKS = blocks_of([b"one", b"two"], links_per_node=3)
LEAF, *_ = BLOCKS


async def test_a_root_is_held_once_all_under_it_is_here_for_good_and_somebody_claims_it() -> None:
    blocks = BlockStore.in_memory(max_bytes=1000)
    held = HeldBlocks(blocks)
    claim = Claim(root=ROOT)
    assert await held.present([ROOT]) == set()
    await blocks.claim(claim, size_bytes=6)
    await blocks.add(ROOT, list(BLOCKS.items()))
    assert await held.present([ROOT]) == set()
    await blocks.complete(ROOT)
    assert await held.present([ROOT, LEAF, Cid.of_raw(b"absent")]) == {ROOT}
    await blocks.release(claim)
    assert await held.present([ROOT]) == set()


async def test_each_block_is_handed_out_and_counted_whether_its_root_is_held_or_not() -> None:
    blocks = BlockStore.in_memory(max_bytes=1000)
    held = HeldBlocks(blocks)
    await blocks.claim(Claim(root=ROOT), size_bytes=6)
    await blocks.add(ROOT, [(LEAF, BLOCKS[LEAF])])
    assert await held.read([LEAF, ROOT]) == [b"one", None]
    assert held.served_bytes == 3


async def test_garbage_is_removed_batch_after_batch_with_pauses_until_none_is_left(autojump_clock: MockClock) -> None:
    blocks = BlockStore.in_memory(max_bytes=100_000)
    root, many = blocks_of((index.to_bytes(4, "big") for index in range(2500)), links_per_node=3000)
    await blocks.claim(Claim(root=root), size_bytes=10_000)
    await blocks.add(root, [(cid, data) for cid, data in many.items() if cid != root])
    await blocks.release(Claim(root=root))
    assert await collect_all(blocks, pause_s=5.0) == Collected(blocks=2500, bytes=10_000, is_all=True)
    assert trio.current_time() == 10.0
    assert (await blocks.stats()).blocks == 0
