"""Reading and writing a round's key, through a client that does as it is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair

from prime_dht import (
    BlobError,
    BlockingDHT,
    Found,
    FoundPage,
    PrimeDHTError,
    PutReceipt,
    QueryError,
    ValidationError,
    connect,
)
from prime_dht.entries import BlobRef, grant
from prime_dht.ids import US_PER_S, Key, OpId, PeerId, TimestampUs, wire_key
from prime_dht.ml.agreement.codec import MAX_COMMIT_BYTES
from prime_dht.ml.rounds.board import FETCHED_OF_EACH, HELD_OF_EACH_BYTES, MAX_PAGES, Board
from prime_dht.ml.rounds.posts import COMMIT, Post, round_key
from prime_dht.net.identity import peer_id_of

KEY = round_key(bytes(32), 7)
ROOT = create_new_key_pair(bytes(32))
MEMBER = peer_id_of(create_new_key_pair(bytes(31) + b"\x01"))


def capability(*, ends_in_s: float) -> bytes:
    ends_us = int((time.time() + ends_in_s) * US_PER_S)
    return grant(ROOT.private_key, member=MEMBER, expires_at_us=ends_us, network_id="prime")


def found(number: int, value: bytes = b"", *, subkey: bytes = COMMIT, blob_bytes: int | None = None) -> Found:
    return Found(
        key=KEY,
        subkey=subkey,
        value=value,
        blob=None if blob_bytes is None else BlobRef(b"cid %d" % number, blob_bytes, "size-1048576"),
        publisher=MEMBER,
        op_id=OpId(bytes([number]) * 32),
        created_at_us=TimestampUs(0),
        expires_at_us=TimestampUs(1),
        content_type="",
        metadata={},
        envelope=b"envelope %d" % number,
        answered=2,
    )


class Client:
    """Has what it is given, and keeps what it is asked."""

    def __init__(self, *entries: Found) -> None:
        self.entries = entries
        self.fetched: list[bytes] = []
        self.there: set[bytes] = set()
        self.failure: PrimeDHTError = BlobError("nobody has it")
        self.put_with: dict[str, Any] = {}
        self.stored_by = 2
        self.fails = False
        self.fetch_takes_s = 0.0

    @property
    def blobs(self) -> Client:
        return self

    def fetch(self, one: Found, *, timeout: float) -> bytes:
        assert one.blob is not None
        self.fetched.append(one.blob.cid)
        if one.blob.cid not in self.there:
            raise self.failure
        if self.fetch_takes_s > timeout:
            raise QueryError(f"not done within {timeout:g} s")
        return b"value of " + one.blob.cid

    def pages(self, key: Key, *, timeout: float) -> Iterator[FoundPage]:
        if self.fails:
            raise QueryError("nobody could be asked")
        for one in self.entries:
            yield FoundPage((one,))

    def put(self, key: Key, value: bytes, **settings: Any) -> PutReceipt:
        if self.fails:
            raise QueryError("no replica took it")
        self.put_with = settings
        return PutReceipt(
            key=key,
            subkey=settings["subkey"],
            op_id=OpId(bytes(32)),
            created_at_us=TimestampUs(0),
            expires_at_us=TimestampUs(1),
            stored_by=(PeerId(b"peer"),) * self.stored_by,
            wanted=3,
            needed=2,
        )


def board(client: Client, *, ends_in_s: float = 3600, ttl_s: float = 600) -> Board:
    return Board(cast("BlockingDHT", client), KEY, capability=capability(ends_in_s=ends_in_s), ttl_s=ttl_s)


def read(one: Board, *, needs: bool = True) -> list[bytes | None]:
    posts = one.read(lambda publisher, subkey: needs, timeout_s=1)
    assert posts is not None
    return [post.value for post in posts]


def test_what_is_read_has_what_a_statement_is_made_of() -> None:
    client = Client(found(1, b"value"), found(2, b"ballast", subkey=b"other"))
    posts = board(client).read(lambda _, subkey: subkey == COMMIT, timeout_s=1)
    assert posts == [
        Post(publisher=MEMBER, subkey=COMMIT, value=b"value", envelope=b"envelope 1"),
        Post(publisher=MEMBER, subkey=b"other", value=None, envelope=b"envelope 2"),
    ]


def test_while_nobody_can_be_asked_nothing_is_read_and_nothing_put() -> None:
    client = Client()
    client.fails = True
    one = board(client)
    assert one.read(lambda *_: True, timeout_s=1) is None
    assert one.trouble == "nobody could be asked"
    assert not one.put(COMMIT, b"", timeout_s=1)
    assert one.trouble == "no replica took it"


def test_a_blob_is_fetched_once_and_only_if_it_is_needed_and_not_too_large() -> None:
    client = Client(found(1, blob_bytes=100_000), found(2, blob_bytes=MAX_COMMIT_BYTES + 1))
    client.there = {b"cid 1", b"cid 2"}
    one = board(client)
    assert read(one, needs=False) == [None, None]
    assert client.fetched == []
    assert read(one) == read(one) == [b"value of cid 1", None]
    assert client.fetched == [b"cid 1"]


def test_a_blob_that_did_not_come_is_tried_again_later_behind_the_others() -> None:
    client = Client(found(1, blob_bytes=100_000), found(2, blob_bytes=100_000))
    one = board(client)
    read(one)
    assert read(one) == [None, None]
    assert client.fetched == [b"cid 1", b"cid 2"]
    client.entries = (*client.entries, found(3, blob_bytes=100_000))
    client.there = {b"cid 3", b"cid 2"}
    assert read(one) == [None, b"value of cid 2", b"value of cid 3"]
    assert client.fetched[2:] == [b"cid 3", b"cid 1", b"cid 2"]


def test_who_names_other_blobs_that_are_not_there_at_each_read_keeps_nobody_else_waiting() -> None:
    other = replace(found(100, blob_bytes=100_000), publisher=PeerId(b"other"))
    client = Client()
    one = board(client)
    for number in (1, 3, 5):
        client.entries = (found(number, blob_bytes=100_000), found(number + 1, blob_bytes=100_000), other)
        read(one)
    assert client.fetched == [b"cid %d" % number for number in (1, 2, 100, 3, 4, 100, 5, 6)]


def test_a_blob_that_comes_slowly_has_more_time_at_each_try() -> None:
    client = Client(found(1, blob_bytes=MAX_COMMIT_BYTES))
    client.there, client.fetch_takes_s = {b"cid 1"}, 6.5
    one = board(client)
    assert b"value of cid 1" in [read(one)[0] for _ in range(2**7)]


def test_a_blob_under_a_name_that_is_no_cid_is_as_if_it_did_not_come() -> None:
    client = Client(found(1, blob_bytes=100_000), found(2, blob_bytes=100_000))
    client.failure, client.there = ValidationError("not the CID of a blob's block"), {b"cid 2"}
    assert read(board(client)) == [None, b"value of cid 2"]


def test_a_blob_of_another_size_than_its_entry_says_is_not_held(swarm: tuple[str, ...]) -> None:
    with connect(swarm[0]) as client:
        large = client.blobs.add(bytes(MAX_COMMIT_BYTES + 1)).blob
        assert large is not None
        client.put("board:lies", replace(large, size=10))
        client.put("board:lies", large, subkey=b"no lie")
        one = Board(client, wire_key("board:lies"), capability=b"", ttl_s=600)
        posts = one.read(lambda *_: True, timeout_s=60)
    assert posts is not None
    assert [(post.subkey, post.value) for post in posts] == [(b"", None), (b"no lie", None)]


def test_what_somebody_withholds_is_tried_ever_more_seldom() -> None:
    client = Client(found(1, blob_bytes=100_000))
    one = board(client)
    tried_by_read = []
    for _ in range(16):
        read(one)
        tried_by_read.append(len(client.fetched))
    assert tried_by_read == [1] * 2 + [2] * 4 + [3] * 8 + [4] * 2
    client.there = {b"cid 1"}
    for _ in range(32):
        read(one)
    assert read(one) == [b"value of cid 1"]


def test_of_each_publisher_so_many_blobs_are_looked_for_and_so_many_bytes_held() -> None:
    many = [found(number, blob_bytes=100_000) for number in range(FETCHED_OF_EACH + 1)]
    other = replace(found(100, blob_bytes=100_000), publisher=PeerId(b"other"))
    client = Client(*many, other)
    read(board(client))
    assert client.fetched == [one.blob.cid for one in (*many[:-1], other) if one.blob is not None]
    large = [found(number, blob_bytes=MAX_COMMIT_BYTES) for number in range(3)]
    client = Client(*large)
    read(board(client))
    assert len(client.fetched) * MAX_COMMIT_BYTES == HELD_OF_EACH_BYTES


def test_pages_without_end_are_read_to_a_bound() -> None:
    assert len(read(board(Client(*[found(1)] * (MAX_PAGES + 1))))) == MAX_PAGES


def test_a_put_counts_if_it_is_acknowledged() -> None:
    client = Client()
    one = board(client)
    assert one.put(COMMIT, b"", timeout_s=1)
    client.stored_by = 1
    assert not one.put(COMMIT, b"", timeout_s=1)
    assert one.trouble == "stored by 1 of 3 replicas"


@pytest.mark.parametrize(("ends_in_s", "lives_s"), [(3600, 600), (300, 300)])
def test_what_is_put_does_not_outlive_the_capability(ends_in_s: float, lives_s: float) -> None:
    client = Client()
    began_s = time.time()
    board(client, ends_in_s=ends_in_s, ttl_s=600).put(COMMIT, b"", timeout_s=1)
    assert began_s + lives_s - 1 < client.put_with["expires_at"] <= time.time() + lives_s


def test_with_a_capability_that_has_ended_nothing_is_put() -> None:
    with pytest.raises(ValidationError, match="the capability has ended"):
        board(Client(), ends_in_s=-1).put(COMMIT, b"", timeout_s=1)
