"""Entries without their blobs, which nothing but the note in the store tells of after a restart."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from prime_dht.blobs.cid import Cid
from prime_dht.entries.entry import BlobRef, Entry
from prime_dht.entries.limits import Limits
from prime_dht.entries.signing import sign_entry
from prime_dht.errors import StorageError
from prime_dht.node.blobs.claims import BlobClaims, all_roots
from prime_dht.storage.blocks import BlockStore, Claim
from prime_dht.storage.blocks_status import ARE_UNKEPT
from prime_dht.storage.dump import export, import_
from prime_dht.storage.memory import MemoryBackend
from prime_dht.testing.serving import SetClock
from prime_dht.testing.storage_samples import NOW_US, WRITERS, make_entry

SMALL, LARGE = Cid.of_dag_pb(b"small"), Cid.of_dag_pb(b"large")
ROOM, MORE_ROOM = 1000, 10_000


def entry_of(root: Cid, *, size: int) -> Entry:
    header = make_entry(subkey=bytes(root)[-8:], expires_at_us=NOW_US + 3_600_000_000).header
    return sign_entry(replace(header, content=BlobRef(bytes(root), size, "size-1048576")), WRITERS[0], None)


def claims_of(storage: MemoryBackend, blocks: BlockStore) -> BlobClaims:
    """As after a start."""
    return BlobClaims(blocks, storage, Limits(), SetClock(NOW_US))


async def roots_of(blocks: BlockStore) -> set[Cid]:
    return {status.root for status in await all_roots(blocks)}


@pytest.mark.parametrize("is_given_up", [False, True])
async def test_what_there_was_no_room_for_is_kept_after_a_restart_with_more(is_given_up: bool) -> None:
    storage, blocks = MemoryBackend(), BlockStore.in_memory(max_bytes=ROOM)
    entries = [entry_of(SMALL, size=1), entry_of(LARGE, size=1 if is_given_up else ROOM + 1)]
    claims = claims_of(storage, blocks)
    await claims.claim(entries, is_by_put=False)
    await storage.put_entries(entries, now_us=NOW_US)
    if is_given_up:
        await claims.give_up(LARGE, "no room")
    assert await roots_of(blocks) == {SMALL}
    blocks.max_bytes = MORE_ROOM
    await claims_of(storage, blocks).load()
    assert await roots_of(blocks) == {SMALL, LARGE}
    assert await storage.get_meta(ARE_UNKEPT) == b"", "later starts need not go through all entries"


async def test_what_there_is_still_no_room_for_at_a_start_is_looked_for_at_the_next() -> None:
    storage, blocks = MemoryBackend(), BlockStore.in_memory(max_bytes=ROOM)
    entries = [entry_of(SMALL, size=1), entry_of(LARGE, size=ROOM + 1)]
    await claims_of(storage, blocks).claim(entries, is_by_put=False)
    await storage.put_entries(entries, now_us=NOW_US)
    await claims_of(storage, blocks).load()
    assert await roots_of(blocks) == {SMALL}
    blocks.max_bytes = MORE_ROOM
    await claims_of(storage, blocks).load()
    assert await roots_of(blocks) == {SMALL, LARGE}


class SlowToReply(MemoryBackend):
    """What is noted is stored at once; that it is, comes when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_reply = trio.Event()

    async def put_meta(self, name: str, value: bytes) -> None:
        await super().put_meta(name, value)
        await self.may_reply.wait()


async def test_one_that_comes_while_a_start_finds_none_is_noted_all_the_same() -> None:
    storage, blocks = SlowToReply(), BlockStore.in_memory(max_bytes=ROOM)
    await MemoryBackend.put_meta(storage, ARE_UNKEPT, b"1")
    claims = claims_of(storage, blocks)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(claims.load)
        await wait_all_tasks_blocked()
        assert await storage.get_meta(ARE_UNKEPT) == b""
        nursery.start_soon(partial(claims.claim, [entry_of(LARGE, size=ROOM + 1)], is_by_put=False))
        await wait_all_tasks_blocked()
        storage.may_reply.set()
    assert await storage.get_meta(ARE_UNKEPT) == b"1"


async def test_a_start_without_blobs_writes_nothing() -> None:
    storage = MemoryBackend()
    await storage.put_entries([make_entry(expires_at_us=NOW_US + 3_600_000_000)], now_us=NOW_US)
    await claims_of(storage, BlockStore.in_memory(max_bytes=ROOM)).load()
    assert await storage.meta_names() == []


async def test_a_put_that_is_refused_for_want_of_room_leaves_nothing_to_look_for() -> None:
    storage, blocks = MemoryBackend(), BlockStore.in_memory(max_bytes=ROOM)
    assert await claims_of(storage, blocks).claim([entry_of(LARGE, size=ROOM + 1)], is_by_put=True)
    assert await storage.get_meta(ARE_UNKEPT) is None


async def test_where_blocks_were_lost_a_start_that_ends_half_way_leaves_no_blob_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage, blocks = MemoryBackend(), BlockStore.in_memory(max_bytes=ROOM)
    await storage.put_entries([entry_of(SMALL, size=1), entry_of(LARGE, size=2)], now_us=NOW_US)
    claim = blocks.claim

    async def claim_and_die(each: Claim, **details: Any) -> None:
        await claim(each, **details)
        raise StorageError("the process was killed")

    with monkeypatch.context() as patched:
        patched.setattr(blocks, "claim", claim_and_die)
        with pytest.raises(StorageError):
            await claims_of(storage, blocks).load()
    assert len(await roots_of(blocks)) == 1
    await claims_of(storage, blocks).load()
    assert await roots_of(blocks) == {SMALL, LARGE}


async def test_what_is_imported_beside_blobs_that_are_kept_has_its_blobs_taken_up_at_the_next_start(
    tmp_path: Path,
) -> None:
    other, storage, blocks = MemoryBackend(), MemoryBackend(), BlockStore.in_memory(max_bytes=ROOM)
    kept, imported = entry_of(SMALL, size=1), entry_of(LARGE, size=2)
    await claims_of(storage, blocks).claim([kept], is_by_put=False)
    await storage.put_entries([kept], now_us=NOW_US)
    await other.put_entries([imported], now_us=NOW_US)
    await other.put_meta(ARE_UNKEPT, b"")  # it had its blob
    with (tmp_path / "dump").open("w+b") as file:
        await export(other, file, now_us=NOW_US)
        file.seek(0)
        await import_(storage, file, now_us=NOW_US)
    await claims_of(storage, blocks).load()
    assert await roots_of(blocks) == {SMALL, LARGE}
    assert not await storage.get_meta(ARE_UNKEPT), "later starts need not go through all entries"
