"""Blobs that are larger than was to be taken: nothing but their root is fetched. In virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from prime_dht.blobs.cid import Cid
from prime_dht.blobs.unixfs import MAX_BLOCK_BYTES
from prime_dht.entries.entry import BlobRef
from prime_dht.errors import BlobError, ValidationError
from prime_dht.node.blobs.claims import PIN
from prime_dht.node.core import Node
from prime_dht.storage.blocks import Claim
from prime_dht.testing.swarm import Swarm, open_swarm

VALUE = Random(5).randbytes((2 << 20) + 5)
SIZE = len(VALUE)

Taking = Callable[[Node, Cid, Path, int], Awaitable[object]]


@asynccontextmanager
async def stranger_to_a_blob(value: bytes = VALUE) -> AsyncIterator[tuple[Swarm, Node, Cid]]:
    """A client that knows nothing of a blob but its CID."""
    async with open_swarm(seed=1, size=3) as swarm:
        receipt = await swarm.nodes[0].blobs.add(value)
        assert receipt.blob is not None
        reader = await swarm.join_client()
        swarm.world.blocks_sent.clear()
        yield swarm, reader, Cid.from_bytes(receipt.blob.cid)


async def to_file(node: Node, cid: Cid, path: Path, max_bytes: int) -> None:
    await node.blobs.fetch(cid, to=path, max_bytes=max_bytes)


async def as_bytes(node: Node, cid: Cid, _: Path, max_bytes: int) -> None:
    assert await node.blobs.fetch(cid, max_bytes=max_bytes) == VALUE


async def kept(node: Node, cid: Cid, _: Path, max_bytes: int) -> None:
    assert await node.blobs.fetch(cid, keep=True, max_bytes=max_bytes) == VALUE


async def pinned(node: Node, cid: Cid, _: Path, max_bytes: int) -> None:
    await node.blobs.pin(cid, max_bytes=max_bytes)


async def streamed(node: Node, cid: Cid, _: Path, max_bytes: int) -> None:
    async with node.blobs.stream(cid, max_bytes=max_bytes) as pieces:
        assert b"".join([piece async for piece in pieces]) == VALUE


@pytest.mark.parametrize("take", [to_file, as_bytes, kept, pinned, streamed])
async def test_it_is_refused_before_it_is_fetched_and_nothing_is_kept(
    take: Taking, autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with stranger_to_a_blob() as (swarm, reader, cid):
        with pytest.raises(ValidationError, match=f"blob {cid}: 2,097,157 bytes; at most 2,097,156 were to be taken"):
            await take(reader, cid, tmp_path / "out", SIZE - 1)
        assert swarm.world.blocks_sent.total() == 1
        assert await reader.blobs.kept() == []
        assert not list(await trio.Path(tmp_path).iterdir())
        await take(reader, cid, tmp_path / "out", SIZE)


@pytest.mark.parametrize("is_kept", [False, True])
async def test_a_blob_of_one_block_is_fetched_once_if_no_block_is_too_large(
    is_kept: bool, autojump_clock: MockClock
) -> None:
    async with stranger_to_a_blob(VALUE[:1000]) as (swarm, reader, cid):
        assert await reader.blobs.fetch(cid, keep=is_kept, max_bytes=MAX_BLOCK_BYTES) == VALUE[:1000]
        assert swarm.world.blocks_sent.total() == 1


async def test_a_part_may_be_as_large_as_that_whatever_the_blob_has(autojump_clock: MockClock) -> None:
    async with stranger_to_a_blob() as (_, reader, cid):
        assert await reader.blobs.fetch(cid, start=5, stop=15, max_bytes=10) == VALUE[5:15]
        with pytest.raises(ValidationError, match="11 bytes; at most 10"):
            await reader.blobs.fetch(cid, start=5, stop=16, max_bytes=10)
        with pytest.raises(ValidationError, match=": 2,097,157 bytes; at most 10"):
            await reader.blobs.fetch(cid, start=5, stop=15, keep=True, max_bytes=10)


async def test_a_pin_of_before_stays(autojump_clock: MockClock) -> None:
    async with stranger_to_a_blob() as (_, reader, cid):
        await reader.blobs.pin(cid)
        with pytest.raises(ValidationError, match="at most"):
            await reader.blobs.pin(cid, max_bytes=1)
        assert [blob.is_pinned for blob in await reader.blobs.kept()] == [True]


async def test_of_what_an_entry_refers_to_not_even_the_root_is_fetched(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        await swarm.nodes[0].put("k", VALUE)
        reader = await swarm.join_client()
        found = await reader.get("k", fetch=False)
        assert found is not None
        swarm.world.blocks_sent.clear()
        with pytest.raises(ValidationError, match="at most"):
            await reader.blobs.fetch(found, max_bytes=SIZE - 1)
        assert swarm.world.blocks_sent.total() == 0


@pytest.mark.parametrize("is_pinned", [False, True])
@pytest.mark.parametrize("size", [SIZE, 5], ids=["many blocks", "one block"])
async def test_of_a_blob_that_is_larger_than_its_entry_says_nothing_is_kept(
    size: int, is_pinned: bool, autojump_clock: MockClock
) -> None:
    async with stranger_to_a_blob(VALUE[:size]) as (swarm, reader, cid):
        await swarm.nodes[0].put("k", BlobRef(bytes(cid), 1, "size-1048576"), wait_s=0)
        found = await reader.get("k", fetch=False)
        assert found is not None
        if is_pinned:
            await swarm.machine_of(reader).blocks.claim(Claim(root=cid, label=PIN), size_bytes=0)
        swarm.world.blocks_sent.clear()
        with pytest.raises(BlobError, match=f"{size} bytes where"):
            await reader.blobs.pin(found, max_bytes=1)
        assert [blob.cid for blob in await reader.blobs.kept()] == is_pinned * [cid]
        with pytest.raises(BlobError, match=f"{size} bytes where"):
            await reader.blobs.fetch(found, keep=True, max_bytes=1)
        assert swarm.world.blocks_sent.total() == 2, "the root, each time"
        assert [blob.present_bytes for blob in await reader.blobs.kept()] == is_pinned * [0]


@pytest.mark.parametrize("size", [0, 1])
async def test_a_blob_of_one_block_has_a_size_too(size: int, autojump_clock: MockClock) -> None:
    async with stranger_to_a_blob(VALUE[:size]) as (_, reader, cid):
        assert await reader.blobs.fetch(cid, max_bytes=size) == VALUE[:size]
        if size:
            with pytest.raises(ValidationError, match="1 bytes; at most 0"):
                await reader.blobs.pin(cid, max_bytes=0)
