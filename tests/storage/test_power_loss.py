"""What was acknowledged has been synced, so it survives a loss of power (:mod:`prime_dht.testing.storage_power`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pytest
import trio

from prime_dht.blobs.cid import Cid
from prime_dht.ids import Key, OpId
from prime_dht.storage.blocks import INDEX_FILE, BlockStore, Claim
from prime_dht.storage.blocks_files import SHARDS, DiskFiles
from prime_dht.storage.offline import check
from prime_dht.storage.sqlite import SQLiteBackend
from prime_dht.storage.sqlite_file import Synchronous, open_database
from prime_dht.testing.storage_power import Disk, installed
from prime_dht.testing.storage_samples import NOW_US, make_entry

PUTS = 30
PAGES_BETWEEN_CHECKPOINTS = 25


async def moments_of_puts(
    directory: Path, synchronous: Synchronous, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Mapping[str, bytes], list[OpId]]]:
    """What a loss of power would leave at each sync and each reply, and what had been acknowledged by then."""
    disk = Disk(directory)
    acknowledged: list[OpId] = []
    moments: list[tuple[Mapping[str, bytes], list[OpId]]] = []

    def note_moment() -> None:
        moments.append((disk.after_a_loss_of_power(), list(acknowledged)))

    with installed(disk, monkeypatch):
        database = open_database(directory / "prime.db", synchronous=synchronous)
        database.writer.execute(f"PRAGMA wal_autocheckpoint = {PAGES_BETWEEN_CHECKPOINTS}")
        disk.on_sync = note_moment
        async with SQLiteBackend(database) as store:
            for number in range(PUTS):
                note_moment()
                entry = make_entry(bytes(300 * number), key=Key(b"/prime/%d" % number))
                await store.put_entries([entry], now_us=NOW_US)
                acknowledged.append(entry.op_id)
            note_moment()
        note_moment()
    return moments


def restore(image: Mapping[str, bytes], directory: Path) -> Path:
    directory.mkdir()
    for name, data in image.items():
        (directory / name).write_bytes(data)
    return directory / "prime.db"


async def lost_with(image: Mapping[str, bytes], acknowledged: Sequence[OpId], directory: Path) -> set[OpId]:
    """What had been acknowledged and is not in the store that starts from an image; it has to be sound all the same."""
    path = restore(image, directory)
    async with await SQLiteBackend.open(path) as store:
        found = await store.get_ops(acknowledged, now_us=NOW_US)
    assert (await check(path)).problems == ()
    return set(acknowledged) - {entry.op_id for entry in found}


def make_directory(path: Path) -> Path:
    path.mkdir()
    return path


async def test_a_loss_of_power_at_any_sync_or_reply_loses_nothing_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = await moments_of_puts(make_directory(tmp_path / "disk"), "FULL", monkeypatch)
    assert len(moments) > 2 * PUTS  # a sync for each put, and those of checkpoints
    for number, (image, acknowledged) in enumerate(moments):
        assert await lost_with(image, acknowledged, tmp_path / str(number)) == set()


async def test_without_waiting_for_the_disk_a_loss_of_power_costs_what_was_acknowledged_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Shows that the test above would see a sync that is missing; and what the setting NORMAL promises.
    moments = await moments_of_puts(make_directory(tmp_path / "disk"), "NORMAL", monkeypatch)
    lost = [await lost_with(*moment, tmp_path / str(number)) for number, moment in enumerate(moments)]
    assert any(lost)
    assert lost[-1] == set()  # after the store was closed
    for (_, acknowledged), gone in zip(moments, lost, strict=True):
        assert gone == set(acknowledged[len(acknowledged) - len(gone) :])  # the last ones, and nothing between


async def test_a_loss_of_power_brings_no_journal_back_that_was_deleted_before_its_directory_was_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SQLite turns a new store to WAL mode under the protection of another journal.
    moments = await moments_of_puts(make_directory(tmp_path / "disk"), "NORMAL", monkeypatch)
    journals = [{name for name in image if name.endswith(("-wal", "-journal"))} for image, _ in moments]
    assert {"prime.db-wal"} in journals
    assert {"prime.db-wal", "prime.db-journal"} not in journals


async def test_a_root_that_was_said_to_be_complete_is_so_after_a_loss_of_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiskFiles, "sync", lambda *_: None)  # of the files of blocks, which are not on this disk
    directory = make_directory(tmp_path / "blocks")
    disk = Disk(directory)
    data = [b"brought", b"put"]
    brought, put = roots = [Cid.of_raw(each) for each in data]
    images: list[Mapping[str, bytes]] = []
    with installed(disk, monkeypatch):
        async with await BlockStore.open(directory, max_bytes=1000) as store:
            await store.claim(Claim(root=brought), size_bytes=7)
            await store.add(brought, [(brought, data[0])])
            await store.complete(brought)
            images.append(disk.after_a_loss_of_power())
            async with store.draft() as draft:
                await store.add(draft, [(put, data[1])])
                await store.settle(draft, Claim(root=put), size_bytes=3)
                images.append(disk.after_a_loss_of_power())
    for count, image in enumerate(images, 1):
        left = left_of(directory, image, tmp_path / str(count))
        async with await BlockStore.open(left, max_bytes=1000) as store:
            statuses = [await store.status(root) for root in roots[:count]]
            assert [status is not None and status.is_complete for status in statuses] == [True] * count
            assert await store.read(roots[:count], verify=True) == data[:count]


async def test_a_root_that_was_collected_and_is_put_again_is_not_taken_for_the_one_that_had_reached_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiskFiles, "sync", lambda *_: None)  # of the files of blocks, which are not on this disk
    directory = make_directory(tmp_path / "blocks")
    disk = Disk(directory)
    root = Cid.of_raw(b"put")
    claim = Claim(root=root)
    with installed(disk, monkeypatch):
        async with await BlockStore.open(directory, max_bytes=1000) as store:
            async with store.draft() as draft:
                await store.add(draft, [(root, b"put")])
                await store.settle(draft, claim, size_bytes=3)
            await store.release(claim)
            assert (await store.collect()).blocks == 1
            async with store.draft() as draft:
                await store.add(draft, [(root, b"put")])
                left = left_of(directory, disk.after_a_loss_of_power(), tmp_path / "left")
    for path in left.glob("??/*"):
        path.write_bytes(b"")  # its name has reached the disk
    async with await BlockStore.open(left, max_bytes=1000) as store:
        assert await store.status(root) is None
        assert await store.read([root]) == [None]


async def test_a_loss_of_power_takes_the_name_of_no_directory_that_a_block_store_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict[Path, set[str]] = {}
    fsync = os.fsync

    def note_names(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            names[path] = set(os.listdir(path))

    monkeypatch.setattr(os, "fsync", note_names)
    async with await BlockStore.open(tmp_path / "data" / "blocks", max_bytes=1000):
        made = directories_below(tmp_path)
    assert len(made) == 2 + 1 + SHARDS
    assert [path for path in made if path.name not in names.get(path.parent, ())] == []


async def test_blobs_added_side_by_side_reach_the_disk_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And who finds nothing left to bring there has the blob as safe as who brought it."""
    synced: list[int] = []
    monkeypatch.setattr(DiskFiles, "sync", lambda _, digests: synced.append(len(digests)))
    directory = make_directory(tmp_path / "blocks")
    disk = Disk(directory)
    roots = [Cid.of_raw(b"%d" % number) for number in range(5)]
    images: list[tuple[list[Cid], Mapping[str, bytes]]] = []
    with installed(disk, monkeypatch):
        async with await BlockStore.open(directory, max_bytes=1000) as store:
            added: list[Cid] = []
            settled: list[Cid] = []
            all_are_added = trio.Event()

            async def put(root: Cid) -> None:
                async with store.draft() as draft:
                    await store.add(draft, [(root, b"%d" % roots.index(root))])
                    added.append(root)
                    if len(added) == len(roots):
                        all_are_added.set()
                    await all_are_added.wait()
                    await store.settle(draft, Claim(root=root), size_bytes=1)
                    settled.append(root)
                    images.append((list(settled), disk.after_a_loss_of_power()))

            async with trio.open_nursery() as nursery:
                for root in roots:
                    nursery.start_soon(put, root)
            await store.sync()
    assert synced == [len(roots)]
    for number, (safe, image) in enumerate(images):
        left = left_of(directory, image, tmp_path / str(number))
        async with await BlockStore.open(left, max_bytes=1000) as store:
            statuses = [await store.status(root) for root in safe]
            assert [status is not None and status.is_complete for status in statuses] == [True] * len(safe)


async def test_a_loss_of_power_at_any_sync_or_reply_leaves_no_root_complete_whose_blocks_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_directory(tmp_path / "blocks")
    disk = Disk(directory)
    safe: set[str] = set()  # files of blocks that reached the disk
    complete: set[Cid] = set()
    pinned: set[Cid] = set()
    moments: list[tuple[Mapping[str, bytes], dict[Path, bytes], set[Cid], set[Cid]]] = []

    def sync(_files: DiskFiles, digests: Collection[bytes]) -> None:
        safe.update(digest.hex() for digest in digests)

    def note_moment() -> None:
        blocks = {
            path.relative_to(directory): path.read_bytes() if path.name in safe else b""
            for path in directory.glob("??/*")
        }
        moments.append((disk.after_a_loss_of_power(), blocks, set(complete), set(pinned)))

    monkeypatch.setattr(DiskFiles, "sync", sync)
    with installed(disk, monkeypatch):
        async with await BlockStore.open(directory, max_bytes=100_000) as store:
            disk.on_sync = note_moment

            async def put(number: int) -> None:
                data = [b"%d, %d" % (number, at) for at in range(3)]
                root = Cid.of_raw(data[0])
                async with store.draft() as draft:
                    for each in data:
                        await store.add(draft, [(Cid.of_raw(each), each)])
                    await store.settle(draft, Claim(root=root), size_bytes=12)
                complete.add(root)
                note_moment()
                if number % 2:
                    await store.claim(Claim(root=root, label=b"pin"), size_bytes=12, is_synced=True)
                    pinned.add(root)
                    note_moment()

            async def bring(number: int) -> None:
                data = b"brought %d" % number
                root = Cid.of_raw(data)
                await store.claim(Claim(root=root, owner=b"publisher"), size_bytes=9)
                await store.add(root, [(root, data)])
                await store.complete(root)
                complete.add(root)
                note_moment()

            for number in range(2):
                await put(number)
                await bring(number)
            async with trio.open_nursery() as nursery:
                for number in range(2, 6):
                    nursery.start_soon(put, number)
                    nursery.start_soon(bring, number)
        disk.on_sync = lambda: None
    assert len(complete) == 12
    for number, (image, blocks, are_complete, are_pinned) in enumerate(moments):
        left = tmp_path / str(number)
        (left / "incoming").mkdir(parents=True)
        for path, content in blocks.items():
            (left / path).parent.mkdir(exist_ok=True)
            (left / path).write_bytes(content)
        for name, content in image.items():
            (left / name).write_bytes(content)
        async with await BlockStore.open(left, max_bytes=100_000) as store:
            said = {status.root for status in await store.roots() if status.is_complete}
            assert are_complete <= said
            assert None not in await store.read(list(said), verify=True)
            for root in are_pinned:
                assert Claim(root=root, label=b"pin") in await store.claims(root)


def directories_below(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_dir()]


def left_of(directory: Path, image: Mapping[str, bytes], left: Path) -> Path:
    """A directory with the blocks of a store and what is left of its index."""
    shutil.copytree(directory, left, ignore=shutil.ignore_patterns(f"{INDEX_FILE}*"))
    for name, content in image.items():
        if name.startswith(INDEX_FILE):
            (left / name).write_bytes(content)
    return left
