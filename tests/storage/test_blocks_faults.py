"""A crash, a loss of power, a full disk or a decaying one does nothing to a block store that it does not notice."""

from __future__ import annotations

import errno
import gc
import os
import resource
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trio

from prime_dht.blobs.cid import Cid
from prime_dht.errors import StorageError
from prime_dht.storage import blocks
from prime_dht.storage.blocks import INDEX_FILE, BlockStore, Claim
from prime_dht.storage.blocks_files import DiskFiles
from prime_dht.storage.blocks_survey import check_index
from prime_dht.storage.blocks_syncing import LEAST_BYTES
from prime_dht.testing.processes import running_warm

ADDING = Path(__file__).with_name("add_until_killed.py")
KILLS = 8
BLOCKS = [bytes([number]) * 1000 for number in range(6)]
CIDS = [Cid.of_raw(data) for data in BLOCKS]
PAIRS = list(zip(CIDS, BLOCKS, strict=True))
ROOT = Cid.of_dag_pb(b"root")
CLAIM = Claim(root=ROOT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "blocks"


async def open_store(path: Path) -> BlockStore:
    return await BlockStore.open(path, max_bytes=1 << 30)


async def fill(path: Path) -> None:
    async with await open_store(path) as store:
        await store.claim(CLAIM, size_bytes=6000)
        await store.add(ROOT, PAIRS)
        await store.complete(ROOT)


def files(path: Path) -> set[str]:
    """The names of all files that hold blocks, in whatever directory."""
    return {file.name for file in path.rglob("*") if file.is_file() and not file.name.startswith(INDEX_FILE)}


def file_of(path: Path, cid: Cid) -> Path:
    return path / cid.digest.hex()[:2] / cid.digest.hex()


def index_of(path: Path) -> dict[Path, bytes]:
    """The files of the index, and what they hold."""
    return {file: file.read_bytes() for file in path.glob(f"{INDEX_FILE}*")}


class Crash(BaseException):
    """The process dies here: nothing after this point happens, and the store is opened anew."""


async def crash(store: BlockStore) -> None:
    """Let go of a store as the death of its process does."""
    store._resources.close()


# The death of the process


def added_until_killed(path: Path) -> list[Cid]:
    """Start a process that adds blocks, and kill it; returns those that it says were added."""
    with running_warm(str(ADDING), str(path)) as adding:
        added = [adding.line() for _ in range(5)]
        ended = adding.stop(signal.SIGKILL)
    assert ended.status == -signal.SIGKILL, ended.err
    return [Cid.from_text(line) for line in (*added, *ended.out.decode().split())]


async def test_what_was_added_survives_sigkill_and_nothing_is_left_over(path: Path) -> None:
    added = [cid for _ in range(KILLS) for cid in added_until_killed(path)]
    async with await open_store(path) as store:
        assert all(data is not None for data in await store.read(added, verify=True))
        stats = await store.stats()
        assert len(files(path)) == stats.blocks
        assert len(added) <= stats.blocks <= len(added) + KILLS
        (status,) = await store.roots()
        assert status.present_blocks == stats.blocks


@pytest.mark.parametrize("written", [0, 2, 6])
async def test_a_death_in_the_middle_of_an_add_leaves_nothing_of_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    store = await open_store(path)
    await store.claim(CLAIM, size_bytes=6000)
    write = DiskFiles.write
    calls: list[bytes] = []

    def die(files: DiskFiles, digest: bytes, data: bytes) -> None:
        calls.append(digest)
        if len(calls) <= written:
            write(files, digest, data)
        if len(calls) >= min(written + 1, 6):
            (path / "incoming" / digest.hex()).write_bytes(data[:10])
            monkeypatch.setattr(DiskFiles, "remove", lambda *_: None)  # nobody is left to do it
            raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(DiskFiles, "write", die)
        patched.setattr(DiskFiles, "remove", DiskFiles.remove)
        with pytest.raises(Crash):
            await store.add(ROOT, PAIRS)
    assert files(path)
    await crash(store)
    async with await open_store(path) as store:
        assert await store.present(CIDS) == set()
        assert files(path) == set()


async def test_a_death_in_the_middle_of_collecting_leaves_nothing_over(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(path)
    store = await open_store(path)
    await store.release(CLAIM)

    def die(_self: DiskFiles, _digest: bytes) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(DiskFiles, "remove", die)
        with pytest.raises(Crash):
            await store.collect()
    assert files(path)
    await crash(store)
    async with await open_store(path) as store:
        assert files(path) == set()
        assert (await store.stats()).blocks == 0


async def test_a_draft_whose_process_died_is_garbage(path: Path) -> None:
    store = await open_store(path)
    async with store.draft() as draft:
        await store.add(draft, PAIRS)
        store._is_open = False  # nobody is left to drop it
    await crash(store)
    async with await open_store(path) as store:
        assert (await store.collect()).blocks == 6
        assert files(path) == set()


# The loss of power


async def test_blocks_that_had_not_reached_the_disk_are_checked_and_damaged_ones_forgotten(path: Path) -> None:
    store = await open_store(path)
    await store.claim(CLAIM, size_bytes=6000)
    await store.add(ROOT, PAIRS)
    await crash(store)
    file_of(path, CIDS[0]).write_bytes(b"")
    file_of(path, CIDS[1]).write_bytes(bytes(1000)[:-1] + b"x")
    file_of(path, CIDS[2]).unlink()
    async with await open_store(path) as store:
        assert await store.present(CIDS) == set(CIDS[3:])
        assert (await store.stats()).bytes == 3000
        status = await store.status(ROOT)
        assert status is not None
        assert (status.present_blocks, status.is_complete) == (3, False)
        assert len(files(path)) == 3


async def test_a_complete_root_has_reached_the_disk_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    store = await open_store(path)
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    await store.claim(CLAIM, size_bytes=6000)
    await store.add(ROOT, PAIRS)
    assert synced == []
    await store.complete(ROOT)
    inodes = {file_of(path, cid).stat().st_ino for cid in CIDS}
    assert inodes | {file_of(path, cid).parent.stat().st_ino for cid in CIDS} == set(synced)
    await store.aclose()
    assert len(synced) == len(set(synced)), "no file is synced twice"


async def test_a_block_that_goes_and_comes_again_while_others_reach_the_disk_has_not_reached_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[list[bytes]] = []

    async def come_again() -> None:
        await store.collect()
        await store.claim(CLAIM, size_bytes=1000)
        await store.add(ROOT, PAIRS[:1])

    def sync(_files: DiskFiles, digests: list[bytes]) -> None:
        rounds.append(digests)
        if len(rounds) == 1:
            trio.from_thread.run(come_again)

    monkeypatch.setattr(DiskFiles, "sync", sync)
    async with await open_store(path) as store:
        async with store.draft() as draft:
            await store.add(draft, PAIRS[:1])
        await store.sync()
        await store.complete(ROOT)
    assert rounds == [[CIDS[0].digest], [CIDS[0].digest]]


async def test_after_so_many_bytes_whoever_adds_brings_them_to_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "SYNC_FROM_BYTES", 3 * LEAST_BYTES)
    rounds: list[int] = []
    monkeypatch.setattr(DiskFiles, "sync", lambda _self, digests: rounds.append(len(digests)))
    async with await open_store(path) as store:
        await store.claim(CLAIM, size_bytes=6000)
        for pair in PAIRS:
            await store.add(ROOT, [pair])
    assert rounds == [3, 3]


async def test_when_the_latest_of_the_index_is_lost_with_the_power_its_files_go_too(path: Path) -> None:
    store = await open_store(path)
    await store.claim(CLAIM, size_bytes=6000)
    await store.add(ROOT, PAIRS[:2])
    before = index_of(path)
    await store.add(ROOT, PAIRS[2:])
    await crash(store)
    for file, data in before.items():
        file.write_bytes(data)
    async with await open_store(path) as store:
        assert await store.present(CIDS) == set(CIDS[:2])
        assert await store.read(CIDS, verify=True) == [*BLOCKS[:2], None, None, None, None]
        assert files(path) == {cid.digest.hex() for cid in CIDS[:2]}


async def test_after_a_crash_files_that_are_missing_are_blocks_that_are_not_there(path: Path) -> None:
    await fill(path)
    store = await open_store(path)
    file_of(path, CIDS[4]).unlink()
    await crash(store)
    async with await open_store(path) as store:
        assert await store.present(CIDS) == set(CIDS) - {CIDS[4]}
        (status,) = await store.roots()
        assert (status.present_bytes, status.is_complete) == (5000, False)


# The disk


async def test_a_full_disk_is_a_clear_error_and_loses_nothing(path: Path) -> None:
    large = bytes(1 << 20)
    async with await open_store(path) as store:
        await store.claim(CLAIM, size_bytes=6000)
        await store.add(ROOT, PAIRS[:3])
        with files_of_at_most(500_000), pytest.raises(StorageError, match="File too large"):
            await store.add(ROOT, [*PAIRS[3:], (Cid.of_raw(large), large)])
        assert await store.present([*CIDS, Cid.of_raw(large)]) == set(CIDS[:3])
        assert len(files(path)) == 3
        assert (await store.stats()).bytes == 3000
        await store.add(ROOT, [*PAIRS[3:], (Cid.of_raw(large), large)])
        assert await store.read(CIDS, verify=True) == BLOCKS


async def test_blocks_that_cannot_get_their_names_are_not_there(path: Path) -> None:
    async with await open_store(path) as store:
        await store.claim(CLAIM, size_bytes=6000)
        shard = file_of(path, CIDS[3]).parent
        shard.rmdir()
        with pytest.raises(StorageError, match="No such file or directory"):
            await store.add(ROOT, PAIRS)
        assert await store.present(CIDS) == set()
        assert files(path) == set()
        shard.mkdir()
        await store.add(ROOT, PAIRS)
        assert await store.read(CIDS, verify=True) == BLOCKS
        assert (await store.stats()).bytes == 6000


async def test_files_that_cannot_be_removed_are_when_the_store_is_opened_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(path)

    def fail(_self: DiskFiles, _digest: bytes) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async with await open_store(path) as store:
        await store.release(CLAIM)
        with monkeypatch.context() as patched:
            patched.setattr(DiskFiles, "remove", fail)
            with pytest.raises(StorageError, match="Input/output error"):
                await store.collect()
        assert await store.present(CIDS) == set()
        assert (await store.stats()).bytes == 0
    assert len(files(path)) == 6
    await (await open_store(path)).aclose()
    assert files(path) == set()


async def test_a_damaged_block_is_found_by_verifying_and_makes_its_root_partial(path: Path) -> None:
    await fill(path)
    file_of(path, CIDS[2]).write_bytes(b"decayed")
    async with await open_store(path) as store:
        assert (await store.read(CIDS[2:3])) == [b"decayed"]
        assert await store.read(CIDS[1:4], verify=True) == [BLOCKS[1], None, BLOCKS[3]]
        assert await store.present(CIDS) == set(CIDS) - {CIDS[2]}
        status = await store.status(ROOT)
        assert status is not None
        assert (status.present_bytes, status.is_complete) == (5000, False)
        assert (await store.stats()).bytes == 5000
        assert not file_of(path, CIDS[2]).exists()
        await store.add(ROOT, PAIRS[2:3])
        assert await store.read(CIDS, verify=True) == BLOCKS


async def test_a_block_whose_file_is_gone_is_not_there(path: Path) -> None:
    await fill(path)
    file_of(path, CIDS[0]).unlink()
    async with await open_store(path) as store:
        assert await store.read(CIDS[:1]) == [None]
        assert CIDS[0] not in await store.present(CIDS)


# Opening


def test_reading_leaves_no_file_open(tmp_path: Path) -> None:
    files = DiskFiles(tmp_path)
    digest = bytes(32)
    free = lowest_free_descriptor()
    assert files.read(digest) is None
    files.write(digest, b"block")
    assert files.read(digest) == b"block"
    assert lowest_free_descriptor() == free


async def test_what_was_stored_is_there_when_the_store_is_opened_again(path: Path) -> None:
    await fill(path)
    async with await open_store(path) as store:
        assert await store.read(CIDS, verify=True) == BLOCKS
        assert await store.claims(ROOT) == [CLAIM]
        (status,) = await store.roots()
        assert (status.present_bytes, status.is_complete) == (6000, True)
        assert (await store.stats()).bytes == 6000


async def test_only_after_a_crash_all_files_are_looked_at(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []

    def look_at(_self: DiskFiles, first: int) -> set[bytes]:
        looked_at.append(first)
        return set()

    monkeypatch.setattr(DiskFiles, "digests", look_at)
    await (await open_store(path)).aclose()
    await crash(await open_store(path))
    assert looked_at == []
    await (await open_store(path)).aclose()
    assert looked_at == list(range(256))


async def test_who_closes_it_and_is_cancelled_has_closed_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await open_store(path)
    await store.claim(CLAIM, size_bytes=6000)
    await store.add(ROOT, PAIRS)
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.aclose()
    monkeypatch.setattr(DiskFiles, "digests", None)  # which asks for the names of files, after a crash
    async with await open_store(path) as store:
        assert await store.read(CIDS) == BLOCKS


async def test_one_process_has_it_open_at_a_time(path: Path) -> None:
    async with await open_store(path):
        with pytest.raises(StorageError, match="another process has it open"):
            await open_store(path)
    await (await open_store(path)).aclose()


async def test_an_index_of_another_version_is_refused_and_left_as_it_is(path: Path) -> None:
    await fill(path)
    index = path / INDEX_FILE
    changed = bytearray(index.read_bytes())
    changed[60:64] = (99).to_bytes(4, "big")  # where SQLite keeps user_version
    index.write_bytes(changed)
    with pytest.raises(StorageError, match="not of version 1"):
        await open_store(path)
    assert index.read_bytes() == changed


async def test_a_damaged_index_is_an_error_and_not_an_empty_store(path: Path) -> None:
    await fill(path)
    (path / INDEX_FILE).write_bytes(b"this is no database, whatever it says" * 100)
    with pytest.raises(StorageError, match="not a database: put a backup of its directory in place") as raised:
        await open_store(path)
    assert str(raised.value).startswith(f"{path / INDEX_FILE}: ")
    assert len(files(path)) == 6


def remove(index: Path) -> None:
    index.unlink()


def empty(index: Path) -> None:
    index.write_bytes(b"")


def put_an_empty_database_there(index: Path) -> None:
    index.unlink()
    with closing(sqlite3.connect(index)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")


@pytest.mark.parametrize("damage", [remove, empty, put_an_empty_database_there])
async def test_an_index_that_is_gone_is_an_error_while_there_are_blocks(
    path: Path, damage: Callable[[Path], None]
) -> None:
    await fill(path)
    damage(path / INDEX_FILE)
    before = index_of(path)
    for _ in range(2):
        with pytest.raises(StorageError, match="gone or empty, while blocks are there: put a backup") as raised:
            await open_store(path)
        assert str(raised.value).startswith(f"{path / INDEX_FILE}: ")
        assert check_index(path) == [str(raised.value)]
    assert index_of(path) | {path / f"{INDEX_FILE}.lock": b""} == before
    assert len(files(path)) == 6


async def test_where_there_are_no_blocks_an_index_is_made_anew(path: Path) -> None:
    await (await open_store(path)).aclose()
    (path / INDEX_FILE).write_bytes(b"")
    assert check_index(path) == []
    async with await open_store(path) as store:
        assert await store.roots() == []


async def test_files_that_are_not_ours_are_let_alone(path: Path) -> None:
    await fill(path)
    (path / "incoming" / "notes.txt").write_text("mine")
    (path / "incoming" / ("zz" * 32)).write_text("mine")
    await (await open_store(path)).aclose()
    assert {"notes.txt", "zz" * 32} <= files(path)


async def test_only_its_owner_may_look_into_it(path: Path) -> None:
    await fill(path)
    assert os.stat(path).st_mode & 0o777 == 0o700


def lowest_free_descriptor() -> int:
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What the kernel says when a file may not grow stands for what it says of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


async def test_a_store_in_memory_that_nobody_closes_leaves_nothing_open() -> None:
    store = BlockStore.in_memory(max_bytes=1000)
    await store.claim(CLAIM, size_bytes=1)
    connection = store._index._connection
    del store
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")
