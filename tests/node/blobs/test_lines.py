"""Many fetches from one peer, which serves a few streams of one other and resets those beyond; in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.blobs.actions import Ask, Cancel
from prime_dht.blobs.cid import Cid
from prime_dht.blobs.memory import Lend
from prime_dht.errors import BlobError, PrimeDHTError, QueryError
from prime_dht.ids import PeerId
from prime_dht.net.block_server import SERVED_OF_PEER
from prime_dht.net.network import Network
from prime_dht.node.blobs.fetch import Fetcher
from prime_dht.node.blobs.lines import LINES_OF_PEER, TURN_S, Line, Lines
from prime_dht.node.blobs.window import Window
from prime_dht.node.records import Records
from prime_dht.storage.blocks import BlockStore
from prime_dht.testing.blob_fetch import blocks_of
from prime_dht.testing.memory_blocks import MemoryBlockStream

ANNE, BOB = PeerId(b"anne"), PeerId(b"bob")
CHUNK_BYTES = 1000
MANY = 3 * SERVED_OF_PEER
AGES_S = 24 * 3600.0


class Provider:
    """A peer that serves so many streams at a time, each at its own pace.

    Attributes:
        most: streams that there were at a time.
        in_all: streams that there were.
    """

    def __init__(self, blocks: Mapping[Cid, bytes], *, block_s: float = 0.0, streams: int = SERVED_OF_PEER) -> None:
        self._blocks = blocks
        self._block_s = block_s
        self._streams = streams
        self._open = 0
        self.most = self.in_all = 0

    async def present(self, cids: Iterable[Cid]) -> set[Cid]:
        await trio.lowlevel.checkpoint()
        return {*cids} & self._blocks.keys()

    async def read(self, cids: Sequence[Cid]) -> list[bytes | None]:
        await trio.sleep(self._block_s)
        return [self._blocks.get(cid) for cid in cids]

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[MemoryBlockStream]:
        await trio.sleep(0.001)
        if self._open == self._streams:
            raise QueryError("the stream was reset")
        self._open += 1
        self.in_all += 1
        self.most = max(self.most, self._open)
        travel = partial(trio.sleep, 0.001)
        stream = MemoryBlockStream(
            self, travel=travel, travel_back=travel, is_open=lambda: True, lie=None, sent=lambda _: None
        )
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.carry)
                try:
                    yield stream
                finally:
                    nursery.cancel_scope.cancel()
        finally:
            self._open -= 1


class World:
    """A node among these providers. Searches find nobody: whom a fetch may ask it is told."""

    def __init__(self, providers: Mapping[PeerId, Provider]) -> None:
        self.local = PeerId(b"reader")
        self._providers = providers
        network, records = cast("Network", self), cast("Records", self)
        store = BlockStore.in_memory(max_bytes=0)
        self.fetcher = Fetcher(network, records, store, in_flight_bytes=4 * 8 * CHUNK_BYTES)

    def ask_blocks(self, peer: PeerId, *, timeout_s: float, lend: Lend) -> object:
        assert timeout_s
        return self._providers[peer].stream()

    async def find_providers(self, _multihash: bytes, _count: int) -> list[object]:
        await trio.lowlevel.checkpoint()
        return []

    def opened(self, root: Cid, nursery: trio.Nursery, providers: Sequence[PeerId] = (ANNE,)) -> Window:
        """A stream of a blob's content."""
        window = Window(root)

        async def fetch() -> None:
            try:
                await self.fetcher.fetch(window, providers, waits=False)
                window.end()
            except PrimeDHTError as error:
                window.end(error)

        nursery.start_soon(fetch)
        return window


def blob_of(number: int, chunks: int) -> tuple[Cid, dict[Cid, bytes], bytes]:
    """Content of its own: its root, its blocks, and it."""
    rng = Random(number)
    content = [rng.randbytes(CHUNK_BYTES) for _ in range(chunks)]
    return *blocks_of(content, 100), b"".join(content)


def blobs_of(count: int, chunks: int) -> tuple[list[tuple[Cid, bytes]], dict[Cid, bytes]]:
    """Several: the root and content of each, and all blocks."""
    made = [blob_of(number, chunks) for number in range(count)]
    return [(root, content) for root, _, content in made], {
        cid: data for _, blocks, _ in made for cid, data in blocks.items()
    }


async def read(window: Window, *, pause_s: float = 0.0) -> bytes:
    content = bytearray()
    async for piece in window:
        content += piece
        await trio.sleep(pause_s)
    return bytes(content)


@pytest.mark.parametrize("pause_s", [0.0, 40.0])
async def test_as_many_blobs_as_one_likes_are_read_from_one_peer_at_once(
    autojump_clock: MockClock, nursery: trio.Nursery, pause_s: float
) -> None:
    blobs, blocks = blobs_of(MANY, chunks=20)
    anne = Provider(blocks, block_s=0.05)
    world = World({ANNE: anne})
    whole: list[int] = []

    async def get(number: int, root: Cid, content: bytes) -> None:
        assert await read(world.opened(root, nursery), pause_s=pause_s) == content
        whole.append(number)

    async with trio.open_nursery() as readers:
        readers.cancel_scope.deadline = trio.current_time() + AGES_S
        for number, (root, content) in enumerate(blobs):
            readers.start_soon(get, number, root, content)
    assert sorted(whole) == list(range(MANY))
    assert anne.most <= LINES_OF_PEER < SERVED_OF_PEER


async def test_streams_of_one_peer_may_be_read_piece_by_piece_in_turn_however_many_they_are(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    blobs, blocks = blobs_of(MANY, chunks=30)
    world = World({ANNE: Provider(blocks, block_s=0.01)})
    windows = [world.opened(root, nursery) for root, _ in blobs]
    pieces: list[list[bytes]] = [[] for _ in blobs]
    with trio.fail_after(60):
        for _ in range(30):
            for window, so_far in zip(windows, pieces, strict=True):
                so_far.append(await anext(window))
    assert [b"".join(each) for each in pieces] == [content for _, content in blobs]


async def test_streams_that_are_open_and_not_read_keep_no_other_waiting(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    blobs, blocks = blobs_of(LINES_OF_PEER + 2, chunks=30)
    world = World({ANNE: Provider(blocks, block_s=0.01)})
    *unread, (other, other_content), (root, content) = blobs
    windows = [world.opened(each, nursery) for each, _ in unread]
    await trio.sleep(1)
    with trio.fail_after(2):
        assert await read(world.opened(root, nursery)) == content
        assert await read(world.opened(other, nursery)) == other_content
    assert await read(windows[0]) == unread[0][1]


async def test_fetches_that_take_long_keep_a_short_one_waiting_for_no_longer_than_a_turn_or_two(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    blobs, blocks = blobs_of(LINES_OF_PEER, chunks=600)
    root, more, content = blob_of(99, chunks=3)
    anne = Provider(blocks | more, block_s=0.1)
    world = World({ANNE: anne})
    read_on: list[int] = []

    async def read_all(number: int, long: Cid) -> None:
        await read(world.opened(long, nursery))
        read_on.append(number)

    for number, (long, _) in enumerate(blobs):
        nursery.start_soon(read_all, number, long)
    await trio.sleep(1)
    with trio.fail_after(3 * TURN_S):
        assert await read(world.opened(root, nursery)) == content
    assert not read_on
    before = anne.in_all
    await trio.sleep(4 * TURN_S)
    assert anne.in_all <= before + 1, "a turn that nobody waits for does not end"


async def test_a_fetch_that_has_another_provider_does_not_wait_for_its_turn(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    blobs, blocks = blobs_of(LINES_OF_PEER, chunks=20)
    root, more, content = blob_of(99, chunks=20)
    world = World({ANNE: Provider(blocks | more, block_s=14.0), BOB: Provider(more, block_s=0.01)})
    for long, _ in blobs:
        nursery.start_soon(read, world.opened(long, nursery))
    await trio.sleep(1)
    with trio.fail_after(2):
        assert await read(world.opened(root, nursery, [ANNE, BOB])) == content


async def test_a_peer_that_serves_even_fewer_streams_is_one_that_cannot_be_reached(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    root, blocks, _ = blob_of(1, chunks=3)
    with pytest.raises(BlobError, match="nobody has block"):
        await read(World({ANNE: Provider(blocks, streams=0)}).opened(root, nursery))


class Unheard:
    """A fetch that is not interested in whose turn it is."""

    def held_up(self, peer: PeerId, cids: Collection[Cid]) -> None: ...

    def has_turn(self, peer: PeerId) -> None: ...


@pytest.mark.parametrize("is_awaited", [False, True])
async def test_a_line_on_which_all_that_was_asked_is_cancelled_keeps_no_other_waiting(
    nursery: trio.Nursery, is_awaited: bool
) -> None:
    lines, asked = Lines(), Cid.of_raw(b"asked")
    *first, last = [Line(ANNE, lines, Unheard()) for _ in range(LINES_OF_PEER + 1)]

    async def talk(line: Line) -> None:
        async with lines.turn(line):
            while await line.next() is not None:
                await trio.lowlevel.checkpoint()

    async def begin(line: Line) -> None:
        nursery.start_soon(talk, line)
        await wait_all_tasks_blocked()

    for line in first:
        line.say(Ask(ANNE, (asked,)))
        await begin(line)
    if is_awaited:
        await begin(last)
        assert not last.has_turn
    first[0].say(Cancel(ANNE, (asked,)))
    first[0].rest()
    await wait_all_tasks_blocked()
    if not is_awaited:
        await begin(last)
    assert last.has_turn
    assert [line.has_turn for line in first] == [False] + [True] * (LINES_OF_PEER - 1)
