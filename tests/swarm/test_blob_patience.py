"""How long a fetch waits: for a block that nobody has, for a slow reader, for a provider that is away. Virtual time."""

from __future__ import annotations

from random import Random

import pytest
import trio
from trio.testing import MockClock

from prime_dht.blobs.cid import Cid
from prime_dht.errors import BlobError
from prime_dht.node.blobs.progress import BlobProgress
from prime_dht.testing.swarm import Swarm, open_swarm

MIB = 1 << 20
VALUE = Random(7).randbytes(40 * MIB)
AGES_S = 24 * 3600.0


async def added(swarm: Swarm) -> Cid:
    receipt = await swarm.nodes[0].blobs.add(VALUE, pin=True)
    assert receipt.blob is not None
    return Cid.from_bytes(receipt.blob.cid)


@pytest.mark.parametrize("lost", [1, 39])
async def test_a_get_of_a_blob_of_which_nobody_has_a_block_says_so(lost: int, autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        root, leaf = await added(swarm), Cid.of_raw(VALUE[lost * MIB : (lost + 1) * MIB])
        swarm.world.block_lies[swarm.nodes[0].peer_id] = lambda cid, data: None if cid == leaf else data
        reader = await swarm.join_client()
        with trio.fail_after(AGES_S), pytest.raises(BlobError, match=f"nobody has block {leaf}"):
            await reader.blobs.fetch(root)


async def test_a_stream_gives_what_lies_before_a_block_that_nobody_has_and_then_says_so(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        root, leaf = await added(swarm), Cid.of_raw(VALUE[2 * MIB : 3 * MIB])
        swarm.world.block_lies[swarm.nodes[0].peer_id] = lambda cid, data: None if cid == leaf else data
        reader = await swarm.join_client()
        with trio.fail_after(AGES_S):
            async with reader.blobs.stream(root) as pieces:
                for number in range(2):
                    assert await anext(pieces) == VALUE[number * MIB : (number + 1) * MIB]
                    await trio.sleep(60)
                with pytest.raises(BlobError, match=f"nobody has block {leaf}"):
                    await anext(pieces)


async def test_a_reader_that_takes_minutes_for_each_piece_gets_all_of_them(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        root = await added(swarm)
        reader = await swarm.join_client()
        came = b""
        async with reader.blobs.stream(root) as pieces:
            async for piece in pieces:
                came += piece
                await trio.sleep(300)
        assert came == VALUE


async def test_a_get_goes_on_when_its_only_provider_was_restarted(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        root, provider = await added(swarm), swarm.nodes[0]
        reader = await swarm.join_client()
        is_half_way = trio.Event()

        def look(progress: BlobProgress) -> None:
            if progress.done_bytes > len(VALUE) / 2:
                is_half_way.set()

        async def restart() -> None:
            await is_half_way.wait()
            machine = await swarm.stop(provider)
            await trio.sleep(20)
            await swarm.start(machine)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(restart)
            assert await reader.blobs.fetch(root, progress=look) == VALUE
