"""A block that turns out to be damaged or gone is forgotten: alone, in full, and not behind the back of a fetch."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prime_dht.blobs.cid import Cid
from prime_dht.errors import StorageError
from prime_dht.storage.blocks import INDEX_FILE, BlockStore, Claim
from prime_dht.storage.blocks_index import BlockIndex
from prime_dht.storage.blocks_status import BlockStats

BLOCKS = [bytes([number]) * 1000 for number in range(3)]
CIDS = [Cid.of_raw(data) for data in BLOCKS]
PAIRS = list(zip(CIDS, BLOCKS, strict=True))
ROOT = Cid.of_dag_pb(b"root")
CLAIM = Claim(root=ROOT)
MAX_BYTES = 1 << 20
ALL = BlockStats(blocks=3, bytes=3000, max_bytes=MAX_BYTES)
TWO = BlockStats(blocks=2, bytes=2000, max_bytes=MAX_BYTES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "blocks"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[BlockStore]:
    async with await open_store(path) as store:
        yield store


async def open_store(path: Path) -> BlockStore:
    return await BlockStore.open(path, max_bytes=MAX_BYTES)


def file_of(path: Path, cid: Cid) -> Path:
    return path / cid.digest.hex()[:2] / cid.digest.hex()


def make_unreadable(file: Path) -> None:
    """For a directory the system says that it cannot be read, as it does for a file on a bad sector."""
    file.unlink()
    file.mkdir()


async def fill(store: BlockStore) -> None:
    await store.claim(CLAIM, size_bytes=3000)
    await store.add(ROOT, PAIRS)
    await store.complete(ROOT)


async def crash(store: BlockStore) -> None:
    """Let go of a store as the death of its process does."""
    store._resources.close()


async def is_complete(store: BlockStore) -> bool:
    status = await store.status(ROOT)
    assert status is not None
    return status.is_complete


# While others are brought


async def test_a_root_that_lost_a_block_while_the_rest_came_is_complete_only_when_that_came_again(
    path: Path, store: BlockStore
) -> None:
    await store.claim(CLAIM, size_bytes=3000)
    await store.add(ROOT, PAIRS[:2])
    file_of(path, CIDS[0]).write_bytes(b"decayed")
    assert await store.read(CIDS[:2], verify=True) == [None, BLOCKS[1]]
    await store.add(ROOT, PAIRS[2:])
    with pytest.raises(StorageError, match="1 of its blocks turned out to be damaged or gone"):
        await store.complete(ROOT)
    assert not await is_complete(store)
    assert await store.adopt(ROOT, CIDS) == set(CIDS[1:])
    await store.add(ROOT, PAIRS[:1])
    await store.complete(ROOT)
    assert await is_complete(store)
    assert await store.read(CIDS, verify=True) == BLOCKS


async def test_a_draft_that_lost_a_block_is_not_settled(path: Path, store: BlockStore) -> None:
    async with store.draft() as draft:
        await store.add(draft, PAIRS[:2])
        file_of(path, CIDS[1]).unlink()
        assert await store.read(CIDS[1:2]) == [None]
        await store.add(draft, PAIRS[2:])
        with pytest.raises(StorageError, match="1 of its blocks turned out to be damaged or gone"):
            await store.settle(draft, CLAIM, size_bytes=3000)
        assert await store.status(ROOT) is None
        await store.add(draft, PAIRS)
        await store.settle(draft, CLAIM, size_bytes=3000)
    assert await is_complete(store)
    assert await store.read(CIDS, verify=True) == BLOCKS


async def test_what_another_root_lost_holds_up_none(path: Path, store: BlockStore) -> None:
    other = Claim(root=Cid.of_dag_pb(b"another root"))
    await fill(store)
    await store.claim(other, size_bytes=1000)
    await store.add(other.root, PAIRS[:1])
    file_of(path, CIDS[2]).unlink()
    assert await store.read(CIDS[2:]) == [None]
    await store.complete(other.root)
    with pytest.raises(StorageError, match="1 of its blocks"):
        await store.complete(ROOT)


async def test_a_root_that_is_claimed_anew_has_lost_nothing(path: Path, store: BlockStore) -> None:
    await fill(store)
    file_of(path, CIDS[0]).unlink()
    assert await store.read(CIDS[:1]) == [None]
    await store.release(CLAIM)
    await store.collect()
    assert store._index._number("SELECT count(*) FROM lost") == 0, "nobody asks for it any more"
    await fill(store)
    assert await is_complete(store)


# A disk that fails


async def test_a_block_that_cannot_be_forgotten_is_there_and_counted(path: Path, store: BlockStore) -> None:
    await fill(store)
    file_of(path, CIDS[0]).write_bytes(b"decayed")
    with full_disk(path):
        for _ in range(3):
            with pytest.raises(StorageError, match="disk I/O error"):
                await store.read(CIDS, verify=True)
    assert await store.stats() == ALL
    assert file_of(path, CIDS[0]).exists()
    assert await store.read(CIDS, verify=True) == [None, *BLOCKS[1:]]
    assert await store.stats() == TWO
    assert not file_of(path, CIDS[0]).exists()


@pytest.mark.parametrize("verify", [True, False])
async def test_a_block_that_cannot_be_read_is_forgotten_and_the_others_are_read(
    path: Path, store: BlockStore, verify: bool
) -> None:
    await fill(store)
    make_unreadable(file_of(path, CIDS[1]))
    assert await store.read(CIDS, verify=verify) == [BLOCKS[0], None, BLOCKS[2]]
    assert await store.present(CIDS) == {CIDS[0], CIDS[2]}
    assert await store.stats() == TWO
    assert not await is_complete(store)


async def test_a_block_of_which_only_the_beginning_can_be_read_is_not_there(
    path: Path, store: BlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(store)
    broken, read = file_of(path, CIDS[1]).stat().st_ino, os.read

    def fail_behind_a_sector(descriptor: int, size: int) -> bytes:
        if os.fstat(descriptor).st_ino != broken:
            return read(descriptor, size)
        if os.lseek(descriptor, 0, os.SEEK_CUR) >= 512:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor, 512)

    with monkeypatch.context() as patched:
        patched.setattr(os, "read", fail_behind_a_sector)
        assert await store.read(CIDS) == [BLOCKS[0], None, BLOCKS[2]]
    assert await store.stats() == TWO
    assert not await is_complete(store)


async def test_a_block_that_cannot_be_read_keeps_no_store_from_opening_after_a_crash(path: Path) -> None:
    store = await open_store(path)
    await store.claim(CLAIM, size_bytes=3000)
    await store.add(ROOT, PAIRS)
    await crash(store)
    make_unreadable(file_of(path, CIDS[1]))
    for _ in range(2):  # what cannot be removed is tried again
        async with await open_store(path) as store:
            assert await store.stats() == TWO
            assert await store.read(CIDS, verify=True) == [BLOCKS[0], None, BLOCKS[2]]
    file_of(path, CIDS[1]).rmdir()
    file_of(path, CIDS[1]).write_bytes(b"can be removed")
    await (await open_store(path)).aclose()
    assert not file_of(path, CIDS[1]).exists()


@pytest.mark.parametrize(("number", "is_damage"), [(errno.EIO, True), (errno.ENOMEM, False)])
async def test_only_an_error_of_its_file_costs_a_block(
    path: Path, store: BlockStore, monkeypatch: pytest.MonkeyPatch, number: int, is_damage: bool
) -> None:
    await fill(store)
    broken, read = file_of(path, CIDS[1]).stat().st_ino, os.read

    def fail(descriptor: int, size: int) -> bytes:
        if os.fstat(descriptor).st_ino == broken:
            raise OSError(number, os.strerror(number))
        return read(descriptor, size)

    with monkeypatch.context() as patched:
        patched.setattr(os, "read", fail)
        if is_damage:
            assert await store.read(CIDS, verify=True) == [BLOCKS[0], None, BLOCKS[2]]
        else:
            with pytest.raises(StorageError, match="Cannot allocate memory"):
                await store.read(CIDS, verify=True)
    assert await store.stats() == (TWO if is_damage else ALL)


async def test_a_disk_that_fails_altogether_loses_no_block(
    path: Path, store: BlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(store)

    def fail(_descriptor: int, _size: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with full_disk(path), monkeypatch.context() as patched:
        patched.setattr(os, "read", fail)
        with pytest.raises(StorageError, match="disk I/O error"):
            await store.read(CIDS)
    assert await store.read(CIDS, verify=True) == BLOCKS
    assert await is_complete(store)


async def test_when_a_recovery_fails_what_was_to_be_forgotten_is_still_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(path)
    await store.claim(CLAIM, size_bytes=3000)
    await store.add(ROOT, PAIRS)
    await crash(store)
    file_of(path, CIDS[0]).write_bytes(b"decayed")

    def fail(_index: BlockIndex, _digests: list[bytes]) -> list[int]:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(BlockIndex, "forget", fail)
        with pytest.raises(StorageError, match="disk I/O error"):
            await open_store(path)
    assert file_of(path, CIDS[0]).exists()
    async with await open_store(path) as store:
        assert await store.present(CIDS) == set(CIDS[1:])
    assert not file_of(path, CIDS[0]).exists()


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """The journal of the index cannot grow; what the kernel says then stands for what it says of a disk that fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((path / f"{INDEX_FILE}-wal").stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
