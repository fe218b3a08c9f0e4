"""Which blocks are to be brought to the disk, and what is committed with them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import pytest
import trio
import trio.testing

from prime_dht.blobs.cid import Cid
from prime_dht.errors import StorageError
from prime_dht.storage.blocks import BlockStore, Claim
from prime_dht.storage.blocks_files import DiskFiles, MemoryFiles
from prime_dht.storage.blocks_index import IN_MEMORY, BlockIndex
from prime_dht.storage.blocks_status import RootStatus
from prime_dht.storage.blocks_syncing import LEAST_BYTES, Finishes, Unsynced

ROOTS = [Cid.of_raw(b"%d" % number) for number in range(4)]


def test_what_is_added_while_others_reach_the_disk_has_not_reached_it() -> None:
    unsynced = Unsynced()
    unsynced.add({b"before": 5000, b"again": 1})
    assert unsynced.take() == [b"again", b"before"]
    unsynced.add({b"again": 1, b"meanwhile": 1})
    assert unsynced.brought() == [b"before"]
    unsynced.are_safe()
    assert unsynced.bytes == 2 * LEAST_BYTES
    assert unsynced.take() == [b"again", b"meanwhile"]


def test_what_the_disk_did_not_take_is_brought_again_and_what_is_gone_is_not() -> None:
    unsynced = Unsynced()
    unsynced.add({b"kept": 5000, b"again": 5000, b"gone": 5000})
    unsynced.take()
    unsynced.add({b"again": 5000})
    unsynced.remove([b"gone"])
    assert unsynced.brought() == [b"kept"]
    unsynced.give_back()
    assert unsynced.bytes == 10_000
    assert unsynced.take() == [b"again", b"kept"]
    unsynced.are_safe()
    assert unsynced.bytes == 0


async def claim_and_add(store: BlockStore) -> None:
    for number, root in enumerate(ROOTS):
        await store.claim(Claim(root=root), size_bytes=1)
        await store.add(root, [(root, b"%d" % number)])


async def completed_together(store: BlockStore, roots: list[Cid]) -> list[Cid]:
    """Say side by side that roots are complete; returns those of which the store took it."""
    taken: list[Cid] = []

    async def complete(root: Cid) -> None:
        try:
            await store.complete(root)
            taken.append(root)
        except StorageError:
            pass

    async with trio.open_nursery() as nursery:
        for root in roots:
            nursery.start_soon(complete, root)
    return taken


async def complete_roots(store: BlockStore) -> set[Cid]:
    return {status.root for status in await store.roots() if status.is_complete}


def files_in(directory: Path) -> list[BinaryIO]:
    """The files of all blocks of a store, open."""
    return [path.open("rb") for path in directory.glob("??/*")]


async def test_one_that_is_wrong_keeps_no_other_from_being_complete(tmp_path: Path) -> None:
    async with await BlockStore.open(tmp_path, max_bytes=1000) as store:
        await claim_and_add(store)
        unknown = Cid.of_raw(b"unknown")
        assert set(await completed_together(store, [ROOTS[0], unknown, *ROOTS[1:]])) == set(ROOTS)
        assert await complete_roots(store) == set(ROOTS)


async def test_when_the_disk_fails_none_is_complete_and_all_are_brought_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought: list[int] = []

    def fail(_files: DiskFiles, _digests: list[bytes]) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async with await BlockStore.open(tmp_path, max_bytes=1000) as store:
        await claim_and_add(store)
        monkeypatch.setattr(DiskFiles, "sync", fail)
        assert await completed_together(store, ROOTS) == []
        assert await complete_roots(store) == set()
        monkeypatch.setattr(DiskFiles, "sync", lambda _files, digests: brought.append(len(digests)))
        assert set(await completed_together(store, ROOTS)) == set(ROOTS)
    assert brought == [4]


@pytest.mark.parametrize("is_damaged", [False, True])
async def test_what_the_disk_failed_to_take_is_written_again_or_forgotten_if_it_is_not_whole_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_damaged: bool
) -> None:
    def fail(_files: DiskFiles, _digests: list[bytes]) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async with await BlockStore.open(tmp_path, max_bytes=1000) as store:
        await claim_and_add(store)
        not_taken = files_in(tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr(DiskFiles, "sync", fail)
            assert await completed_together(store, ROOTS) == []
        damaged = ROOTS[0].digest.hex()
        if is_damaged:
            (tmp_path / damaged[:2] / damaged).write_bytes(b"\0")
        whole = set(ROOTS[is_damaged:])
        assert set(await completed_together(store, ROOTS)) == whole
        assert await complete_roots(store) == whole
        assert (await store.stats()).blocks == len(whole)
        assert [os.fstat(file.fileno()).st_nlink for file in not_taken] == [0] * len(ROOTS)  # others have their names
        for file in not_taken:
            file.close()


async def test_who_gives_up_waiting_for_its_turn_is_not_complete_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await BlockStore.open(tmp_path, max_bytes=1000) as store:
        await claim_and_add(store)
        begun = trio.Event()

        def sync(_files: DiskFiles, _digests: list[bytes]) -> None:
            trio.from_thread.run_sync(begun.set)
            trio.from_thread.run(trio.testing.wait_all_tasks_blocked)

        monkeypatch.setattr(DiskFiles, "sync", sync)
        async with trio.open_nursery() as nursery, trio.open_nursery() as given_up:
            nursery.start_soon(store.complete, ROOTS[0])
            await begun.wait()
            given_up.start_soon(store.complete, ROOTS[1])
            nursery.start_soon(store.complete, ROOTS[2])
            await trio.testing.wait_all_tasks_blocked()
            given_up.cancel_scope.cancel()
        assert await complete_roots(store) == {ROOTS[0], ROOTS[2]}


async def test_who_gives_up_while_another_commits_its_root_goes_on_when_that_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, scope = Cid.of_raw(b"put"), trio.CancelScope()
    seen: list[RootStatus | None] = []
    added, others_wait = trio.Event(), trio.Event()
    async with await BlockStore.open(tmp_path, max_bytes=1000) as store:
        await claim_and_add(store)

        async def put() -> None:
            with scope:
                async with store.draft() as draft:
                    await store.add(draft, [(root, b"put")])
                    added.set()
                    await others_wait.wait()
                    await store.settle(draft, Claim(root=root), size_bytes=3)
            seen.append(await store.status(root))

        async def have_others_wait() -> None:
            nursery.start_soon(store.complete, ROOTS[1])
            await trio.testing.wait_all_tasks_blocked()
            others_wait.set()
            await store.add(ROOTS[2], [(Cid.of_raw(b"more"), b"more")])  # so that there is something to bring again
            await trio.testing.wait_all_tasks_blocked()

        async def give_up() -> None:
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            await store.collect()

        steps = iter([have_others_wait, give_up])
        monkeypatch.setattr(DiskFiles, "sync", lambda *_: trio.from_thread.run(next(steps)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put)
            await added.wait()
            nursery.start_soon(store.complete, ROOTS[0])
        assert scope.cancelled_caught
        assert seen == [await store.status(root)]
        assert seen[0] is not None
        assert (seen[0].is_complete, seen[0].present_blocks) == (True, 1)
        assert await store.read([root]) == [b"put"]
        monkeypatch.undo()


def _never(_digests: Sequence[bytes]) -> None:
    raise AssertionError("nothing is damaged")


async def test_one_that_breaks_off_half_way_leaves_nothing_while_others_are_committed() -> None:
    index = BlockIndex(IN_MEMORY)

    async def at_once(work: Callable[[], None]) -> None:
        await trio.lowlevel.checkpoint()
        work()

    finishes = Finishes(lambda: index, MemoryFiles(), Unsynced(), forget=_never, change=at_once, read=at_once)

    def claim(root: Cid) -> None:
        index.claim(bytes(root), b"", b"", 1)

    def break_off() -> None:
        claim(ROOTS[1])
        raise StorageError("broken off")

    async def be_wrong() -> None:
        with pytest.raises(StorageError, match="broken off"):
            await finishes.run(break_off)

    async with trio.open_nursery() as nursery:
        for work in (lambda: claim(ROOTS[0]), lambda: claim(ROOTS[2])):
            nursery.start_soon(finishes.run, work)
        nursery.start_soon(be_wrong)
    with index.transaction():
        assert {row.cid for row in index.roots(b"", 10)} == {bytes(ROOTS[0]), bytes(ROOTS[2])}
    index.close()
