"""A blob as a stream: pieces in order, whatever order blocks come in, and as slow as its reader."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from prime_dht.blobs.cid import Cid, Codec
from prime_dht.errors import BlobError
from prime_dht.node.blobs.window import Window
from prime_dht.testing.blob_fetch import blocks_of

CHUNKS = [bytes([number]) * (100 + number) for number in range(6)]
ROOT, BLOCKS = blocks_of(CHUNKS, links_per_node=10)


def told(window: Window, root: Cid = ROOT, blocks: dict[Cid, bytes] = BLOCKS) -> list[Cid]:
    """Walk all of a blob; returns its leaves, each once."""
    window.walk.give(root, blocks[root])
    leaves: list[Cid] = []
    while leaf := window.walk.next_leaf():
        leaves.append(leaf.cid)
    return list(dict.fromkeys(leaves))


async def take_all(window: Window, cids: Sequence[Cid], blocks: dict[Cid, bytes] = BLOCKS) -> None:
    async with trio.open_nursery() as nursery:
        for cid in cids:
            nursery.start_soon(window.take, cid, blocks[cid])
    window.end()


@pytest.mark.parametrize("seed", range(5))
async def test_pieces_come_in_order_in_whatever_order_blocks_are_taken(seed: int, nursery: trio.Nursery) -> None:
    window = Window(ROOT)
    leaves = told(window)
    Random(seed).shuffle(leaves)
    nursery.start_soon(take_all, window, leaves)
    assert [piece async for piece in window] == CHUNKS


async def test_a_block_is_taken_when_its_last_byte_was_read(nursery: trio.Nursery) -> None:
    window = Window(ROOT)
    first, second, *_ = told(window)
    taken: list[Cid] = []

    async def take(cid: Cid) -> None:
        await window.take(cid, BLOCKS[cid])
        taken.append(cid)

    nursery.start_soon(take, second)
    nursery.start_soon(take, first)
    await wait_all_tasks_blocked()
    assert taken == []
    await anext(window)
    await wait_all_tasks_blocked()
    assert taken == [first]
    await anext(window)
    await wait_all_tasks_blocked()
    assert taken == [first, second]


async def test_a_block_that_comes_many_times_is_kept_until_its_last_time(nursery: trio.Nursery) -> None:
    chunks = [b"a" * 9, b"b" * 9, b"a" * 9, b"a" * 9]
    root, blocks = blocks_of(chunks, links_per_node=10)
    window = Window(root)
    nursery.start_soon(take_all, window, told(window, root, blocks), blocks)
    assert [piece async for piece in window] == chunks


async def test_a_block_that_is_told_again_just_as_it_was_read_is_not_asked_for_twice(nursery: trio.Nursery) -> None:
    chunks = [b"a" * 9, b"b" * 9, b"a" * 9]
    root, blocks = blocks_of(chunks, links_per_node=10)
    window = Window(root)
    window.walk.give(root, blocks[root])
    first = window.walk.next_leaf()
    assert first is not None
    nursery.start_soon(window.take, first.cid, blocks[first.cid])
    await wait_all_tasks_blocked()
    assert await anext(window) == chunks[0]
    second, third = window.walk.next_leaf(), window.walk.next_leaf()  # before the one who takes has heard of it
    assert second is not None
    assert third is not None
    assert third.cid == first.cid
    nursery.start_soon(window.take, second.cid, blocks[second.cid])
    assert [await anext(window), await anext(window)] == chunks[1:]


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (50, 330), (300, None), (100, 201)])
async def test_a_part_of_a_blob_is_what_is_read(start: int, stop: int | None, nursery: trio.Nursery) -> None:
    window = Window(ROOT, start=start, stop=stop)
    nursery.start_soon(take_all, window, told(window))
    assert b"".join([piece async for piece in window]) == b"".join(CHUNKS)[start:stop]


async def test_what_failed_is_raised_when_all_that_came_has_been_read(nursery: trio.Nursery) -> None:
    window = Window(ROOT)
    first, *_ = told(window)
    nursery.start_soon(window.take, first, BLOCKS[first])
    window.end(BlobError("nobody has the rest"))
    await wait_all_tasks_blocked()
    assert await anext(window) == CHUNKS[0]
    with pytest.raises(BlobError, match="nobody has the rest"):
        await anext(window)


async def test_a_blob_of_one_block_whose_size_nobody_told_is_read(nursery: trio.Nursery) -> None:
    root, blocks = blocks_of([b"small"], links_per_node=3)
    assert root.codec is Codec.RAW
    window = Window(root)
    window.walk.give(root, blocks[root])
    memory = bytearray(blocks[root])
    await window.take(root, memory)  # the plan takes it before it walks on
    memory[:] = bytes(len(memory))  # it is for other blocks from now on
    told(window, root, blocks)

    async def look() -> None:
        assert await window.held([root]) == {root: b"small"}
        window.end()

    nursery.start_soon(look)
    assert [piece async for piece in window] == [b"small"]
