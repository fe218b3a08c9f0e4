"""Parts of blobs in whole swarms, and how a reader hears of them. In virtual time."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from prime_dht.blobs.cid import Cid
from prime_dht.errors import BlobError, ValidationError
from prime_dht.node.blobs.claims import FRESH_S
from prime_dht.node.blobs.keeping import SWEEP_EVERY_S
from prime_dht.node.blobs.progress import BlobProgress
from prime_dht.node.core import Node
from prime_dht.testing.swarm import Swarm, open_swarm

MIB = 1 << 20
VALUE = Random(7).randbytes(3 * MIB + 5)


async def reader_of(swarm: Swarm, key: str) -> Node:
    """A server that does not hold what is under a key."""
    replicas = swarm.closest_to(key, 3)
    return next(node for node in swarm.nodes if node not in replicas)


async def test_a_part_of_a_blob_costs_only_the_blocks_that_it_lies_in(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        receipt = await swarm.nodes[0].put("k", VALUE)
        reader = await reader_of(swarm, "k")
        await trio.sleep(FRESH_S + 2 * SWEEP_EVERY_S)  # until others have let go of it
        swarm.world.blocks_sent.clear()
        assert receipt.blob is not None
        told: list[BlobProgress] = []
        part = await reader.blobs.fetch(receipt.blob.cid, start=MIB + 1, stop=MIB + 9, progress=told.append)
        assert part == VALUE[MIB + 1 : MIB + 9]
        assert swarm.world.blocks_sent.total() == 2  # the root and one leaf
        assert (told[-1].done_bytes, told[-1].size_bytes) == (8, 8)


@pytest.mark.parametrize(("start", "stop"), [(-5, None), (0, -1), (-2, -1)])
async def test_a_part_counts_from_the_beginning(
    start: int, stop: int | None, autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        (node,) = swarm.nodes
        receipt = await node.blobs.add(VALUE)
        assert receipt.blob is not None
        for to in (None, tmp_path / "out"):
            with pytest.raises(ValidationError, match="count from 0"):
                await node.blobs.fetch(receipt.blob.cid, to=to, start=start, stop=stop)
        with pytest.raises(ValidationError, match="count from 0"):
            async with node.blobs.stream(receipt.blob.cid, start=start, stop=stop):
                pass
    assert not list(await trio.Path(tmp_path).iterdir())


async def test_what_the_callback_raises_comes_out_as_it_is(autojump_clock: MockClock, tmp_path: Path) -> None:
    def fail(_: BlobProgress) -> None:
        raise RuntimeError("the caller's")

    async with open_swarm(seed=1, size=2) as swarm:
        receipt = await swarm.nodes[0].blobs.add(VALUE)
        assert receipt.blob is not None
        for to in (tmp_path / "out", None):
            with pytest.raises(RuntimeError, match="the caller's"):
                await swarm.nodes[1].blobs.fetch(receipt.blob.cid, to=to, progress=fail)
        with pytest.raises(RuntimeError, match="the caller's"):
            async with swarm.nodes[1].blobs.stream(receipt.blob.cid, progress=fail) as pieces:
                assert [piece async for piece in pieces] == []
        await swarm.nodes[1].blobs.fetch(receipt.blob.cid, to=tmp_path / "out")


async def test_a_blob_is_named_by_its_cid_in_any_form_by_what_a_receipt_says_and_by_a_find(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        blob = (await swarm.nodes[0].put("k", VALUE)).blob
        found = await swarm.nodes[1].get("k", fetch=False)
        assert blob is not None
        assert found is not None
        cid = Cid.from_bytes(blob.cid)
        for name in (cid, str(cid), bytes(cid), memoryview(blob.cid), blob, found):
            assert await swarm.nodes[1].blobs.fetch(name, start=5, stop=9) == VALUE[5:9]  # type: ignore[arg-type]
        with pytest.raises(BlobError, match="where 1 were said"):
            await swarm.nodes[1].blobs.fetch(replace(blob, size=1))


@pytest.mark.parametrize("wrong", [None, 36, ["a"], object()])
async def test_what_names_no_blob_is_refused(wrong: object, autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        for take in (swarm.nodes[0].blobs.fetch, swarm.nodes[0].blobs.pin, swarm.nodes[0].blobs.unpin):
            with pytest.raises(ValidationError, match="a CID is bytes"):
                await take(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("start", "stop"), [(1.5, None), ("0", None), (0, 2.5), (0, "9")])
async def test_a_part_begins_and_ends_at_whole_numbers(start: int, stop: int | None, autojump_clock: MockClock) -> None:
    cid = Cid.of_raw(VALUE)
    async with open_swarm(seed=1, size=1) as swarm:
        with pytest.raises(ValidationError, match="is a whole number"):
            await swarm.nodes[0].blobs.fetch(cid, start=start, stop=stop)
        with pytest.raises(ValidationError, match="is a whole number"):
            async with swarm.nodes[0].blobs.stream(cid, start=start, stop=stop):
                pass


async def test_a_stream_gives_the_content_in_order(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        receipt = await swarm.nodes[0].put("k", VALUE)
        assert receipt.blob is not None
        reader = await reader_of(swarm, "k")
        async with reader.blobs.stream(receipt.blob.cid) as pieces:
            assert b"".join([piece async for piece in pieces]) == VALUE


async def test_several_streams_are_read_together(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm, AsyncExitStack() as stack:
        assert (await swarm.nodes[0].put("k", VALUE)).acknowledged
        reader = await reader_of(swarm, "k")
        found = await reader.get("k", fetch=False)
        assert found is not None
        streams = [await stack.enter_async_context(reader.blobs.stream(found)) for _ in range(6)]
        read = [bytearray() for _ in streams]
        while len(read[0]) < len(VALUE):
            for stream, so_far in zip(streams, read, strict=True):
                so_far += await anext(stream)
        assert read == [VALUE] * 6
