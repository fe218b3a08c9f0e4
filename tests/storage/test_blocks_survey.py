"""A block store is looked through beside the node that has it open, and nothing of it changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from prime_dht.blobs.cid import Cid
from prime_dht.errors import StorageError
from prime_dht.storage.blocks import INDEX_FILE, BlockStore, Claim
from prime_dht.storage.blocks_survey import check_index, survey_blocks
from prime_dht.storage.sqlite import SQLiteBackend
from prime_dht.testing.storage_samples import NOW_US, make_entry

DATA = b"a block"
ROOT = Cid.of_raw(DATA)
ENTRY = make_entry(b"value", created_at_us=NOW_US, expires_at_us=NOW_US + 10**9, retain_until_us=NOW_US + 10**9)
PIN = Claim(root=ROOT, label=b"pin")
FOR_ENTRY = Claim(root=ROOT, owner=ENTRY.publisher, label=ENTRY.op_id)


async def test_roots_come_with_their_claims_and_entries_while_the_store_is_open_and_after(tmp_path: Path) -> None:
    store, directory = tmp_path / "store.sqlite", tmp_path / "blocks"
    async with await SQLiteBackend.open(store) as entries, await BlockStore.open(directory, max_bytes=100) as blocks:
        await entries.put_entries([ENTRY], now_us=NOW_US)
        for claim in (PIN, FOR_ENTRY):
            await blocks.claim(claim, size_bytes=len(DATA))
        await blocks.add(ROOT, [(ROOT, DATA)])
        (partial,) = survey_blocks(directory, store, now_us=NOW_US)
        assert partial.status == await blocks.status(ROOT)
        assert (partial.status.present_bytes, partial.status.is_complete) == (len(DATA), False)
        await blocks.complete(ROOT)
        (kept,) = survey_blocks(directory, store, now_us=NOW_US)
        assert kept.status.is_complete
        assert set(kept.claims) == {PIN, FOR_ENTRY}
        assert [entry.op_id for entry in kept.entries] == [ENTRY.op_id]
        await blocks.sync()  # it can be written still
    assert survey_blocks(directory, store, now_us=NOW_US) == [kept]


async def test_without_entries_beside_it_only_the_claims_are_known(tmp_path: Path) -> None:
    async with await BlockStore.open(tmp_path, max_bytes=100) as blocks:
        await blocks.claim(FOR_ENTRY, size_bytes=len(DATA))
    for store in (None, tmp_path / "none.sqlite"):
        (kept,) = survey_blocks(tmp_path, store, now_us=NOW_US)
        assert (kept.claims, kept.entries) == ((FOR_ENTRY,), ())
    assert not (tmp_path / "none.sqlite").exists()


async def test_there_may_be_more_roots_than_a_page_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prime_dht.storage.blocks_survey.ROOTS_IN_PAGE", 2)
    roots = {Cid.of_raw(bytes((number,))) for number in range(5)}
    async with await BlockStore.open(tmp_path, max_bytes=100) as blocks:
        for root in roots:
            await blocks.claim(Claim(root=root), size_bytes=1)
    assert {kept.status.root for kept in survey_blocks(tmp_path, None, now_us=NOW_US)} == roots


def test_where_there_is_no_store_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there are no blobs"):
        survey_blocks(tmp_path, None, now_us=NOW_US)
    assert check_index(tmp_path) == check_index(tmp_path / "none") == []
    assert list(tmp_path.iterdir()) == []


async def test_an_index_that_was_emptied_or_removed_is_left_as_it_is(tmp_path: Path) -> None:
    async with await BlockStore.open(tmp_path, max_bytes=100) as blocks:
        await blocks.claim(PIN, size_bytes=len(DATA))
        await blocks.add(ROOT, [(ROOT, DATA)])
    index = tmp_path / INDEX_FILE
    index.write_bytes(b"")
    with pytest.raises(StorageError, match="gone or empty, while blocks are there"):
        survey_blocks(tmp_path, None, now_us=NOW_US)
    assert index.read_bytes() == b""
    index.unlink()
    with pytest.raises(StorageError, match="gone or empty, while blocks are there"):
        survey_blocks(tmp_path, None, now_us=NOW_US)
    assert not index.exists()
