"""Blobs from plain code: added, fetched, streamed, kept."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from prime_dht import BlobError, BlockingDHT, LocalProtocolError, ValidationError
from prime_dht.blobs.cid import Cid
from prime_dht.blocking import node_thread
from prime_dht.node.blobs.progress import BlobProgress
from prime_dht.testing.storage_samples import NOW_US

CONTENT = NOW_US.to_bytes(8, "big") * 400_000
NOBODYS = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"


@pytest.fixture(scope="module")
def cid(dht: BlockingDHT, tmp_path_factory: pytest.TempPathFactory) -> Cid:
    """Of a blob that a file was."""
    path = tmp_path_factory.mktemp("blobs") / "weights.bin"
    path.write_bytes(CONTENT)
    told: list[BlobProgress] = []
    receipt = dht.blobs.add(path, progress=told.append)
    assert receipt.acknowledged
    assert receipt.blob is not None
    assert told[-1].replicas_held >= receipt.needed
    return Cid.from_bytes(receipt.blob.cid)


def test_a_blob_is_fetched_whole_in_part_or_to_a_file(dht: BlockingDHT, cid: Cid, tmp_path: Path) -> None:
    assert dht.blobs.fetch(cid) == CONTENT
    future = dht.blobs.fetch(cid, start=5, stop=2_000_000, wait=False)
    assert future.result() == CONTENT[5:2_000_000]
    assert dht.blobs.fetch(str(cid), to=tmp_path / "again.bin") == b""
    assert (tmp_path / "again.bin").read_bytes() == CONTENT


def test_a_stream_yields_it_piece_by_piece_and_may_be_left_early(dht: BlockingDHT, cid: Cid) -> None:
    with dht.blobs.stream(cid) as pieces:
        assert b"".join(pieces) == CONTENT
    with dht.blobs.stream(cid, start=7) as pieces:
        assert next(pieces) == CONTENT[7:][: 1 << 20][: (1 << 20) - 7]


def test_streams_that_are_open_keep_no_other_call_from_its_place(
    dht: BlockingDHT, cid: Cid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_thread, "CALLS_AT_ONCE", 5)
    with ExitStack() as stack:
        streams = [stack.enter_context(dht.blobs.stream(cid, timeout=60)) for _ in range(5)]
        assert len(dht.peers(timeout=60)) == 3
        assert [b"".join(pieces) for pieces in streams] == [CONTENT] * 5


def test_a_blob_that_is_larger_than_was_to_be_taken_is_not(dht: BlockingDHT, cid: Cid, tmp_path: Path) -> None:
    most = len(CONTENT) - 1
    with pytest.raises(ValidationError, match="at most 3,199,999 were to be taken"):
        dht.blobs.fetch(cid, to=tmp_path / "out", max_bytes=most)
    with pytest.raises(ValidationError, match="at most"):
        dht.blobs.pin(cid, max_bytes=most)
    with dht.blobs.stream(cid, max_bytes=most) as pieces, pytest.raises(ValidationError, match="at most"):
        next(pieces)
    assert dht.blobs.fetch(cid, max_bytes=most + 1) == CONTENT
    assert dht.blobs.kept() == []
    assert not (tmp_path / "out").exists()


def test_what_goes_wrong_with_a_stream_is_raised_from_the_loop(dht: BlockingDHT) -> None:
    with dht.blobs.stream("no cid") as pieces, pytest.raises(ValidationError):
        next(pieces)
    with dht.blobs.stream(NOBODYS) as pieces, pytest.raises(BlobError):
        next(pieces)


def test_a_stream_that_was_left_says_where_its_pieces_are_read(dht: BlockingDHT, cid: Cid) -> None:
    with dht.blobs.stream(cid) as pieces:
        next(pieces)
    with pytest.raises(LocalProtocolError, match="within its with block"):
        next(pieces)


def test_what_is_pinned_is_kept_until_it_is_unpinned(dht: BlockingDHT, cid: Cid) -> None:
    dht.blobs.pin(cid)
    assert [(blob.cid, blob.is_pinned) for blob in dht.blobs.kept()] == [(cid, True)]
    assert dht.blobs.unpin(cid)
    assert not dht.blobs.unpin(cid)
    dht.blobs.gc()
    assert dht.blobs.kept() == []
