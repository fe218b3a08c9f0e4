"""Nodes: one encoding for each, and nothing else is read."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.bitswap.dag_pb import decode_dag_pb

from prime_dht.blobs.cid import Cid, Codec
from prime_dht.blobs.unixfs import MAX_BLOCK_BYTES, MAX_LINKS, Link, Node, decode_node, encode_node
from prime_dht.errors import BlobError

CIDS = st.builds(Cid, st.sampled_from(Codec), st.binary(min_size=32, max_size=32))
LINKS = st.builds(Link, cid=CIDS, size=st.integers(1, 1 << 50), tsize=st.integers(0, 1 << 50))
ONE = Link(cid=Cid.of_raw(b"one"), size=3, tsize=3)
BLOCK = encode_node([ONE, ONE])


@given(links=st.lists(LINKS, min_size=1, max_size=12))
@settings(derandomize=True, deadline=None)
def test_a_node_is_read_back_and_others_read_the_same(links: list[Link]) -> None:
    block = encode_node(links)
    assert decode_node(block) == Node(tuple(links))
    theirs, data = decode_dag_pb(block)
    assert [(link.cid, link.name, link.size) for link in theirs] == [(bytes(one.cid), "", one.tsize) for one in links]
    assert data is not None
    assert (data.type, data.data, data.filesize) == ("file", b"", decode_node(block).size)
    assert data.blocksizes == [link.size for link in links]


@given(block=st.binary(max_size=200))
@settings(derandomize=True, deadline=None)
def test_any_bytes_are_a_node_or_refused(block: bytes) -> None:
    try:
        node = decode_node(block)
    except BlobError:
        return
    assert encode_node(node.links) == block


@given(
    links=st.lists(LINKS, min_size=1, max_size=3),
    at=st.floats(0, 1),
    change=st.sampled_from(["set", "cut", "drop", "insert", "double"]),
    byte=st.integers(0, 255),
)
@settings(derandomize=True, deadline=None, max_examples=500)
def test_a_changed_node_is_another_node_or_refused(links: list[Link], at: float, change: str, byte: int) -> None:
    block = encode_node(links)
    i = int(at * (len(block) - 1))
    changed = {
        "set": block[:i] + bytes((byte,)) + block[i + 1 :],
        "cut": block[:i],
        "drop": block[:i] + block[i + 1 :],
        "insert": block[:i] + bytes((byte,)) + block[i:],
        "double": block + block[i:],
    }[change]
    try:
        node = decode_node(changed)
    except BlobError:
        return
    assert encode_node(node.links) == changed


def test_the_widest_node_is_read_and_a_wider_one_refused() -> None:
    assert len(decode_node(encode_node([ONE] * MAX_LINKS)).links) == MAX_LINKS
    with pytest.raises(BlobError, match="more than 1024 links"):
        decode_node(encode_node([ONE] * (MAX_LINKS + 1)))


def test_a_million_links_are_refused_at_the_door() -> None:
    link = BLOCK[: BLOCK.index(b"\x0a\x08\x08\x02") // 2]
    block = link * 1_000_000
    assert BLOCK.startswith(2 * link)
    assert len(block) > MAX_BLOCK_BYTES
    with pytest.raises(BlobError, match="at most 2097152"):
        decode_node(block)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (b"", "not a node"),
        (b"\x0a\x02\x08\x01", "no links"),  # an empty directory
        (b"\x0a\x04\x08\x02\x18\x00", "no links"),  # an empty file
        (encode_node([Link(cid=ONE.cid, size=0, tsize=0)]), "a link to nothing"),
        (BLOCK.replace(b"\x12\x00\x18", b"\x12\x01a\x18"), "not a node"),  # names
        (BLOCK.replace(b"\x08\x02\x18\x06", b"\x08\x02\x18\x07"), "something other"),  # a sum that is none
        (BLOCK.replace(b"\x08\x02\x18\x06", b"\x08\x01\x18\x06"), "something other"),  # a directory
        (BLOCK + b"\x00", "something other"),
        (BLOCK[:-2], "not a node"),  # a size less than links
        (BLOCK[:-1] + b"\xff" * 10, "more than 9 bytes"),
        (BLOCK[:-1] + b"\x83\x00", "something other"),  # a number that is not written the short way
    ],
)
def test_what_is_no_plain_node_is_refused_with_the_reason(block: bytes, reason: str) -> None:
    with pytest.raises(BlobError, match=reason):
        decode_node(block)


def test_numbers_have_63_bits_as_a_database_can_say_no_more() -> None:
    largest = Link(cid=ONE.cid, size=(1 << 63) - 1, tsize=(1 << 63) - 1)
    assert decode_node(encode_node([largest])).links == (largest,)
    for size, tsize in ((1 << 63, 1), (1, 1 << 63), (1 << 64, 1)):
        with pytest.raises(BlobError, match=r"more than 63 bits|more than 9 bytes"):
            decode_node(encode_node([Link(cid=ONE.cid, size=size, tsize=tsize)]))
    with pytest.raises(BlobError, match="more than 63 bits"):  # together they are too many
        decode_node(encode_node([largest, ONE]))


@pytest.mark.parametrize(
    ("number", "written"),
    [(1, "01"), (127, "7f"), (128, "8001"), (16_383, "ff7f"), (16_384, "808001"), ((1 << 63) - 1, "ff" * 8 + "7f")],
)
def test_a_number_is_written_the_short_way_as_everybody_writes_it(number: int, written: str) -> None:
    block = encode_node([Link(cid=ONE.cid, size=number, tsize=number)])
    assert block.endswith(bytes.fromhex(f"080218{written}20{written}"))
    assert bytes(ONE.cid) + bytes.fromhex(f"120018{written}") in block
