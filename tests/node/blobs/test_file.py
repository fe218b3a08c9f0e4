"""A blob written to a file: its places, its name, and what is left of an interrupted fetch."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.blobs.actions import Ask, Finished, Look, Store
from prime_dht.blobs.cid import BlockBytes, Cid
from prime_dht.blobs.plan import FetchLimits, FetchPlan
from prime_dht.blobs.unixfs import MAX_BLOCK_BYTES
from prime_dht.blobs.walk import Piece
from prime_dht.errors import BlobError, StorageError
from prime_dht.ids import PeerId
from prime_dht.node.blobs.file import FileDestination
from prime_dht.testing.blob_fetch import blocks_of
from prime_dht.testing.forking import forked

PEER = PeerId(b"\x00\x01p")
CHUNKS = [bytes([number]) * (1000 + number) for number in range(7)]
CONTENT = b"".join(CHUNKS)
ROOT, BLOCKS = blocks_of(CHUNKS, links_per_node=3)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def bring(
    destination: FileDestination, blocks: Mapping[Cid, bytes] = BLOCKS, *, at_most: int | None = None
) -> list[Cid]:
    """Carry out a fetch from one provider, block by block; returns what it brought.

    Args:
        at_most: stop after so many blocks.
    """
    plan = FetchPlan(destination.walk, now_us=0)
    plan.on_provider(PEER)
    asked: deque[Cid] = deque()
    brought: list[Cid] = []
    while True:
        *actions, last = plan.next(0)
        for action in actions:
            match action:
                case Look(cids):
                    held = await destination.held(cids)
                    for cid in held:
                        plan.on_present(cid, held[cid], 0)
                    for cid in cids:
                        if cid not in held:
                            plan.on_absent(cid)
                case Ask(_, cids):
                    asked += cids
                case Store(cid, data):
                    memory = bytearray(data)
                    await destination.take(cid, memory)
                    memory[:] = bytes(len(memory))  # it is for other blocks from now on
                    plan.on_stored(cid, 0)
                    brought.append(cid)
        if isinstance(last, Finished) or len(brought) == at_most:
            return brought
        if asked and not any(isinstance(action, Store) for action in actions):
            cid = asked.popleft()
            plan.on_block(PEER, cid, blocks[cid], 0)


async def test_a_blob_is_there_under_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"before")
    destination = FileDestination(path, ROOT)
    await destination.open()
    await bring(destination)
    assert path.read_bytes() == b"before"
    await destination.finish()
    await destination.aclose()
    assert path.read_bytes() == CONTENT
    assert names_in(tmp_path) == [path.name]


@pytest.mark.parametrize("at_most", range(1, len(BLOCKS)))
@pytest.mark.parametrize("size", [None, len(CONTENT)])
async def test_what_an_interrupted_fetch_brought_is_not_brought_again(
    at_most: int, size: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "out"
    first = FileDestination(path, ROOT, size=size)
    await first.open()
    brought = await bring(first, at_most=at_most)
    await first.aclose()
    assert not path.exists()
    second = FileDestination(path, ROOT, size=size)
    await second.open()
    brought += await bring(second)
    await second.finish()
    await second.aclose()
    assert sorted(map(bytes, brought)) == sorted(map(bytes, BLOCKS))
    assert path.read_bytes() == CONTENT


async def test_what_was_changed_in_the_meantime_is_brought_again(tmp_path: Path) -> None:
    path = tmp_path / "out"
    first = FileDestination(path, ROOT)
    await first.open()
    await bring(first, at_most=8)
    await first.aclose()
    for name in names_in(tmp_path):
        raw = bytearray((tmp_path / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (tmp_path / name).write_bytes(raw)
    second = FileDestination(path, ROOT)
    await second.open()
    assert await bring(second)
    await second.finish()
    await second.aclose()
    assert path.read_bytes() == CONTENT


async def test_a_block_that_comes_many_times_is_brought_once(tmp_path: Path) -> None:
    chunks = [b"again" * 100] * 40 + [b"other"] + [b"again" * 100] * 40
    root, blocks = blocks_of(chunks, links_per_node=7)
    path = tmp_path / "out"
    destination = FileDestination(path, root)
    await destination.open()
    brought = await bring(destination, blocks)
    await destination.finish()
    await destination.aclose()
    assert len(brought) == len(set(brought)) == len(blocks)
    assert path.read_bytes() == b"".join(chunks)


class WalkedMeanwhile(FileDestination):
    """Of which the walk goes on while something is written for the first time."""

    has_walked_on = False

    def _write(self, places: Sequence[Piece], data: BlockBytes) -> None:
        super()._write(places, data)
        if not self.has_walked_on:
            self.has_walked_on = True
            while self.walk.next_leaf():
                pass


@pytest.mark.parametrize("is_found", [False, True])
async def test_a_place_that_is_told_while_a_block_is_written_is_written_as_well(is_found: bool, tmp_path: Path) -> None:
    chunks = [b"again", b"other", b"again"]
    root, blocks = blocks_of(chunks, links_per_node=7)
    path = tmp_path / "out"
    if is_found:
        before = FileDestination(path, root)
        await before.open()
        await bring(before, blocks, at_most=2)
        await before.aclose()
    destination = WalkedMeanwhile(path, root)
    await destination.open()
    destination.walk.give(root, blocks[root])
    first = destination.walk.next_leaf()
    assert first is not None
    if is_found:
        # Found where it lies; its other place is told while that is written.
        assert await destination.held([first.cid]) == {first.cid: None}
    else:
        await destination.take(first.cid, blocks[first.cid])
    other = Cid.of_raw(b"other")
    await destination.take(other, blocks[other])
    await destination.finish()
    await destination.aclose()
    assert path.read_bytes() == b"".join(chunks)


async def test_blocks_that_come_twice_within_a_few_are_written_twice_though_all_is_done_at_once(tmp_path: Path) -> None:
    four = [[b"%4d" % (4 * index + at) * 250 for at in range(4)] for index in range(20)]
    chunks = [chunk for some in four for chunk in [*some, *some[1:]]]
    root, blocks = blocks_of(chunks, links_per_node=1000)
    path = tmp_path / "out"
    destination = FileDestination(path, root)
    await destination.open()
    plan = FetchPlan(destination.walk, now_us=0, limits=FetchLimits(max_bytes=4000))
    plan.on_provider(PEER)
    changed = trio.Event()

    async def look(cids: Sequence[Cid]) -> None:
        held = await destination.held(cids)
        for cid in cids:
            if cid in held:
                plan.on_present(cid, held[cid], 0)
            else:
                plan.on_absent(cid)
        changed.set()

    async def store(cid: Cid, data: BlockBytes) -> None:
        await destination.take(cid, data)
        plan.on_stored(cid, 0)
        changed.set()

    async with trio.open_nursery() as nursery:
        while True:
            changed = trio.Event()
            *actions, last = plan.next(0)
            for action in actions:
                match action:
                    case Look(cids):
                        nursery.start_soon(look, cids)
                    case Ask(_, cids):
                        for cid in cids:
                            plan.on_block(PEER, cid, blocks[cid], 0)
                        changed.set()
                    case Store(cid, data):
                        nursery.start_soon(store, cid, data)
            if isinstance(last, Finished):
                break
            await changed.wait()
    await destination.finish()
    await destination.aclose()
    assert path.read_bytes() == b"".join(chunks)


async def test_what_the_part_cuts_through_is_found_again_where_it_is_whole(tmp_path: Path) -> None:
    chunks = [b"again" * 100, b"again" * 100, b"other", b"more", b"again" * 100]
    root, blocks = blocks_of(chunks, links_per_node=2)
    path = tmp_path / "out"
    destination = FileDestination(path, root, start=7)
    await destination.open()
    brought = await bring(destination, blocks)
    await destination.finish()
    await destination.aclose()
    assert len(brought) == len(set(brought))
    assert path.read_bytes() == b"".join(chunks)[7:]


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (1500, 4500), (7000, None), (0, 100_000), (1000, 2001), (5, 5)])
async def test_a_part_of_a_blob_is_what_the_file_has(start: int, stop: int | None, tmp_path: Path) -> None:
    path = tmp_path / "out"
    destination = FileDestination(path, ROOT, start=start, stop=stop)
    await destination.open()
    await bring(destination)
    await destination.finish()
    await destination.aclose()
    assert path.read_bytes() == CONTENT[start:stop]


@pytest.mark.parametrize("chunk", [b"", b"a small one"])
async def test_a_blob_of_one_block_whose_size_nobody_told_is_written(chunk: bytes, tmp_path: Path) -> None:
    root, blocks = blocks_of([chunk], links_per_node=3)
    path = tmp_path / "out"
    destination = FileDestination(path, root)
    await destination.open()
    assert await bring(destination, blocks) == [root]
    await destination.finish()
    await destination.aclose()
    assert path.read_bytes() == chunk


async def test_a_file_is_fetched_to_by_one_at_a_time(tmp_path: Path) -> None:
    one, other = (FileDestination(tmp_path / "out", ROOT) for _ in range(2))
    await one.open()
    with pytest.raises(BlobError, match="already"):
        await other.open()
    await other.aclose()
    await one.aclose()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_child_that_was_forked_meanwhile_does_not_keep_others_from_the_file(tmp_path: Path) -> None:
    first = FileDestination(tmp_path / "out", ROOT)
    await first.open()
    await bring(first, at_most=3)
    with forked():
        await first.aclose()
        second = FileDestination(tmp_path / "out", ROOT)
        await second.open()
        await second.aclose()


class Overtaken(FileDestination):
    """Whose file gets its name from another, who is done with it, after it was opened and before it is locked."""

    other: FileDestination | None = None

    def _opened(self, path: Path, resources: contextlib.ExitStack) -> int:
        descriptor = super()._opened(path, resources)
        if self.other is not None:
            other, self.other = self.other, None
            other._finish()
            other._close()
        return descriptor


async def test_a_file_that_another_finished_while_it_was_opened_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out"
    first, second = FileDestination(path, ROOT), Overtaken(path, ROOT)
    await first.open()
    await bring(first)
    second.other = first
    await second.open()
    assert path.read_bytes() == CONTENT
    assert len(await bring(second)) == len(BLOCKS)
    await second.finish()
    await second.aclose()
    assert path.read_bytes() == CONTENT
    assert names_in(tmp_path) == [path.name]


async def test_a_fetch_that_brought_nothing_leaves_nothing(tmp_path: Path) -> None:
    destination = FileDestination(tmp_path / "out", ROOT)
    await destination.open()
    await destination.aclose()
    assert names_in(tmp_path) == []


async def test_when_the_disk_is_full_what_came_stays_and_the_next_fetch_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "out"
    first = FileDestination(path, ROOT)
    await first.open()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT) // 2, hard))
    try:
        with pytest.raises(StorageError, match=str(path)):
            await bring(first)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await first.aclose()
    assert not path.exists()
    second = FileDestination(path, ROOT)
    await second.open()
    assert 0 < len(await bring(second)) < len(BLOCKS)
    await second.finish()
    await second.aclose()
    assert path.read_bytes() == CONTENT


LARGE_CHUNKS = [bytes([number]) * 100_000 for number in range(6)]


@pytest.mark.parametrize("room_bytes", [0, 65_536, 150_000, 299_008])
async def test_when_the_disk_is_full_within_a_large_block_all_whole_ones_stay(
    room_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, blocks = blocks_of(LARGE_CHUNKS, links_per_node=9)
    path = tmp_path / "out"
    first = FileDestination(path, root)
    await first.open()
    pwrite = os.pwrite

    def until_full(descriptor: int, data: memoryview, at: int) -> int:
        if at >= room_bytes and at + len(data) > 1000:  # nodes are small, and in a file of their own
            raise OSError(errno.ENOSPC, "no space")
        return pwrite(descriptor, data[: max(1000, room_bytes - at)], at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", until_full)
        with pytest.raises(StorageError, match=f"{path}: no space"):
            await bring(first, blocks)
    await first.aclose()
    assert not path.exists()
    second = FileDestination(path, root)
    await second.open()
    assert len(await bring(second, blocks)) == len(LARGE_CHUNKS) - room_bytes // 100_000
    await second.finish()
    await second.aclose()
    assert path.read_bytes() == b"".join(LARGE_CHUNKS)


@pytest.mark.parametrize("start", [0, 1000])
async def test_all_of_a_blob_is_on_the_disk_before_it_gets_its_name(
    start: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, blocks = blocks_of(LARGE_CHUNKS, links_per_node=9)
    done: list[str] = []

    def note(owner: object, name: str) -> None:
        call = getattr(owner, name)

        def noted(*arguments: object) -> object:
            done.append(name)
            return call(*arguments)

        monkeypatch.setattr(owner, name, noted)

    note(os, "pwrite")
    note(os, "ftruncate")
    note(os, "fsync")
    note(Path, "rename")
    destination = FileDestination(tmp_path / "out", root, start=start)
    await destination.open()
    await bring(destination, blocks)
    await destination.finish()
    await destination.aclose()
    assert done[-4:] == ["ftruncate", "fsync", "rename", "fsync"]
    assert done.count("pwrite") > len(LARGE_CHUNKS)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    sizes=st.lists(
        st.sampled_from([1, 4095, 4096, 65_535, 65_536, 65_537, 69_632, 200_000, 1_044_480, 1_048_575, 1_048_576]),
        min_size=1,
        max_size=5,
    ),
    order=st.lists(st.integers(0, 4), min_size=1, max_size=7),
    start=st.sampled_from([0, 1, 4095, 4096, 65_537, 300_000]),
    cut_at_end=st.sampled_from([None, 1, 5000]),
    at_most=st.integers(1, 9),
    seed=st.integers(0, 99),
)
async def test_a_part_is_whole_wherever_it_was_interrupted_and_however_often_its_blocks_come(
    sizes: list[int], order: list[int], start: int, cut_at_end: int | None, at_most: int, seed: int
) -> None:
    rng = Random(seed)
    kinds = [rng.randbytes(size) for size in sizes]
    chunks = [kinds[index % len(kinds)] for index in order]
    content = b"".join(chunks)
    stop = None if cut_at_end is None else max(0, len(content) - cut_at_end)
    root, blocks = blocks_of(chunks, links_per_node=3)
    with TemporaryDirectory() as directory:
        path = Path(directory) / "out"
        brought: list[set[Cid]] = []
        for so_many in (at_most, None):
            destination = FileDestination(path, root, size=len(content), start=start, stop=stop)
            await destination.open()
            brought.append(set(await bring(destination, blocks, at_most=so_many)))
            if so_many is None:
                await destination.finish()
            await destination.aclose()
        assert path.read_bytes() == content[start:stop]
        if (start, stop) == (0, None):
            assert brought[0].isdisjoint(brought[1])


async def test_a_file_may_have_the_longest_name_there_is(tmp_path: Path) -> None:
    for name in ("n" * 255, "\N{SNOWMAN}" * 85):
        destination = FileDestination(tmp_path / name, ROOT, start=10, stop=5000)
        await destination.open()
        await bring(destination)
        await destination.finish()
        await destination.aclose()
        assert (tmp_path / name).read_bytes() == CONTENT[10:5000]


async def test_a_directory_that_is_not_there_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "out"
    destination = FileDestination(path, ROOT)
    with pytest.raises(StorageError, match=str(path)):
        await destination.open()
    await destination.aclose()


async def test_a_directory_in_the_place_of_the_file_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="directory"):
        await FileDestination(tmp_path, ROOT).open()


async def test_of_very_many_nodes_a_bounded_number_is_kept_and_the_blob_comes_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prime_dht.node.blobs.file.MAX_NODES", 5)
    chunks = [bytes([number % 7]) * 10 for number in range(60)]
    root, blocks = blocks_of(chunks, links_per_node=2)
    largest = max(len(data) for data in blocks.values())
    path = tmp_path / "out"
    for at_most in (30, None):
        destination = FileDestination(path, root)
        await destination.open()
        await bring(destination, blocks, at_most=at_most)
        assert 0 < destination._nodes_path.stat().st_size <= 5 * (largest + 40)
        if at_most is None:
            await destination.finish()
        await destination.aclose()
    assert path.read_bytes() == b"".join(chunks)


async def test_what_was_left_of_a_node_is_read_only_if_it_may_be_so_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = FileDestination(tmp_path / "out", ROOT)
    destination._nodes_path.write_bytes(bytes(ROOT) + (2**32 - 1).to_bytes(4, "big") + b"node")
    stock, read_bytes = os.pread, [0]

    def pread(file: int, size: int, at: int) -> bytes:
        read_bytes.append(size)
        return stock(file, min(size, 99), at)

    monkeypatch.setattr(os, "pread", pread)
    await destination.open()
    assert 0 < max(read_bytes) <= MAX_BLOCK_BYTES
    assert destination._nodes_path.stat().st_size == 0
    await destination.aclose()
