"""Walks: every leaf in order, any part of a blob, and nothing that breaks the rules."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.blobs.build import BlobBuilder
from prime_dht.blobs.chunking import FixedChunker
from prime_dht.blobs.cid import Cid, Codec
from prime_dht.blobs.unixfs import MAX_BLOCK_BYTES, MAX_LINKS, Link, encode_node
from prime_dht.blobs.walk import FREE_LEAVES, MAX_DEPTH, Piece, Walk
from prime_dht.errors import BlobError, ValidationError
from prime_dht.testing.blob_fetch import blocks_of

Blocks = dict[Cid, bytes]


def read(walk: Walk, blocks: Blocks) -> bytes:
    """Everything that is walked."""
    return b"".join(bytes(walk.part(leaf, blocks[leaf.cid])) for leaf in leaves_of(walk, blocks))


def leaves_of(walk: Walk, blocks: Blocks) -> list[Piece]:
    leaves: list[Piece] = []
    while not walk.done:
        for cid in walk.wanted():
            walk.give(cid, blocks[cid])
        while leaf := walk.next_leaf():
            leaves.append(leaf)
    return leaves


def node(*children: tuple[Cid, int]) -> tuple[Cid, bytes]:
    """A node that says so much of each child's size."""
    block = encode_node([Link(cid=cid, size=size, tsize=0) for cid, size in children])
    return Cid.of_dag_pb(block), block


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=6), min_size=1, max_size=50),
    links_per_node=st.integers(2, 6),
    start=st.integers(0, 320),
    length=st.none() | st.integers(0, 320),
    knows_size=st.booleans(),
)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_any_part_of_a_blob_is_read_as_it_is_from_no_more_leaves_than_it_touches(
    chunks: list[bytes], links_per_node: int, start: int, length: int | None, knows_size: bool
) -> None:
    content = b"".join(chunks)
    root, blocks = blocks_of(chunks, links_per_node)
    stop = None if length is None else start + length
    size = len(content) if knows_size else None
    assert read(Walk(root, size=size, start=start, stop=stop), blocks) == content[start:stop]
    touched = leaves_of(Walk(root, size=size, start=start, stop=stop), blocks)
    assert all(leaf.start < (len(content) if stop is None else stop) and start < leaf.stop for leaf in touched)
    assert all(one.stop == other.start for one, other in pairwise(touched))


@pytest.mark.parametrize(
    ("start", "stop"), [(0, None), (0, 0), (0, 1), (2, 5), (5, 5), (5, 2), (3, 99), (6, 9), (7, 9)]
)
def test_a_part_has_as_many_bytes_as_there_are_and_may_have_none(start: int, stop: int | None) -> None:
    root, blocks = blocks_of([b"ab", b"cd", b"ef"], 2)
    walk = Walk(root, size=6, start=start, stop=stop)
    assert walk.part_bytes == len(b"abcdef"[start:stop])
    assert read(walk, blocks) == b"abcdef"[start:stop]
    later = Walk(root, start=start, stop=stop)
    assert later.part_bytes is None
    assert len(read(later, blocks)) == later.part_bytes


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (-1, 2), (0, -1)])
def test_bytes_count_from_the_start_of_a_blob(start: int, stop: int | None) -> None:
    with pytest.raises(ValidationError, match="count from 0"):
        Walk(Cid.of_raw(b"ab"), size=2, start=start, stop=stop)


@given(
    chunks=st.lists(st.sampled_from([b"a", b"bb", b"ccc"]), min_size=1, max_size=60),
    links_per_node=st.integers(2, 5),
    knows_size=st.booleans(),
)
@settings(derandomize=True, deadline=None, max_examples=200)
def test_who_wants_each_block_once_is_told_of_every_block_and_no_node_is_wanted_twice(
    chunks: list[bytes], links_per_node: int, knows_size: bool
) -> None:
    root, blocks = blocks_of(chunks, links_per_node)
    size = sum(map(len, chunks))
    walk = Walk(root, size=size if knows_size else None, each_once=True)
    told: list[Piece] = []
    given_nodes: list[Cid] = []
    while not walk.done:
        if wanted := walk.wanted():
            walk.give(wanted[0], blocks[wanted[0]])
            given_nodes.append(wanted[0])
        while leaf := walk.next_leaf():
            told.append(leaf)
    assert {leaf.cid for leaf in told} | set(given_nodes) == set(blocks)
    assert len(set(given_nodes)) == len(given_nodes)
    assert sum(leaf.size for leaf in told) + walk.repeated_bytes == size


def test_a_few_blocks_that_stand_for_endlessly_many_are_soon_walked_by_who_wants_each_once() -> None:
    leaf = bytes(257)
    cid, size = Cid.of_raw(leaf), len(leaf)
    blocks: Blocks = {cid: leaf}
    for _ in range(3):
        (cid, block), size = node(*[(cid, size)] * 1024), size * 1024
        blocks[cid] = block
    assert size > 1 << 37
    walk = Walk(cid, size=size, each_once=True)
    assert [leaf.cid for leaf in leaves_of(walk, blocks)] == [Cid.of_raw(leaf)]
    assert walk.repeated_bytes == size - len(leaf)


def test_a_node_that_comes_again_with_another_size_is_refused_though_it_was_walked() -> None:
    child, block = node((Cid.of_raw(b"ab"), 2))
    root, top = node((child, 2), (child, 3))
    with pytest.raises(BlobError, match="2 bytes where 3 were said"):
        leaves_of(Walk(root, size=5, each_once=True), {root: top, child: block})


def test_of_very_many_nodes_those_that_were_walked_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prime_dht.blobs.walk.MAX_REMEMBERED", 3)
    children = [node((Cid.of_raw(bytes([index])), 1)) for index in range(3)]
    first, second, third = (cid for cid, _ in children)
    tops = [node((third, 1), (second, 1)), node((third, 1), (first, 1))]
    root, block = node((first, 1), (second, 1), (third, 1), *((cid, 2) for cid, _ in tops))
    walk = Walk(root, size=7, each_once=True)
    told = leaves_of(walk, dict([*children, *tops, (root, block)]))
    assert [leaf.start for leaf in told] == [0, 1, 2, 6], "the first was forgotten, and told again"
    assert sum(leaf.size for leaf in told) + walk.repeated_bytes == 7


def test_empty_content_is_one_empty_leaf() -> None:
    root, blocks = blocks_of([b""], 2)
    assert leaves_of(Walk(root), blocks) == leaves_of(Walk(root, size=0), blocks) == [Piece(root, 0, 0)]


def test_nodes_are_wanted_in_order_and_at_most_two_ahead_on_each_level() -> None:
    root, blocks = blocks_of((index.to_bytes(2, "big") * 200 for index in range(81)), 3)
    walk = Walk(root)
    given_nodes = 0
    most_wanted = 0
    while not walk.done:
        if wanted := walk.wanted():
            most_wanted = max(most_wanted, len(wanted))
            walk.give(wanted[0], blocks[wanted[0]])
            given_nodes += 1
        while walk.next_leaf():
            pass
    assert given_nodes == 1 + 3 + 9 + 27
    assert most_wanted <= 2 * 3


def test_what_is_not_wanted_is_ignored() -> None:
    root, blocks = blocks_of([b"one", b"two"], 2)
    walk = Walk(root)
    walk.give(Cid.of_raw(b"one"), b"one")
    assert walk.wanted() == (root,)
    assert walk.next_leaf() is None
    walk.give(root, blocks[root])
    walk.give(root, b"again")
    assert walk.wanted() == ()


def test_a_chain_of_nodes_is_refused_where_it_is_too_deep() -> None:
    leaf = b"the end"
    blocks = {Cid.of_raw(leaf): leaf}
    top = Cid.of_raw(leaf)
    for _ in range(MAX_DEPTH):
        top, block = node((top, len(leaf)))
        blocks[top] = block
    assert read(Walk(top), blocks) == leaf
    top, block = node((top, len(leaf)))
    with pytest.raises(BlobError, match="more than 8 levels"):
        read(Walk(top), {**blocks, top: block})


def test_a_few_blocks_that_stand_for_endless_content_are_refused_by_the_size_that_was_told() -> None:
    leaf = b"x"
    blocks = {Cid.of_raw(leaf): leaf}
    top, size = Cid.of_raw(leaf), 1
    for _ in range(4):
        top, block = node(*[(top, size)] * MAX_LINKS)
        blocks[top] = block
        size *= MAX_LINKS
    assert len(blocks) == 5
    with pytest.raises(BlobError, match=f"has {size} bytes where 1000000 were said"):
        read(Walk(top, size=1_000_000), blocks)


def test_a_million_tiny_leaves_are_refused_after_a_few_thousand() -> None:
    leaf = b"x"
    blocks = {Cid.of_raw(leaf): leaf}
    middle, block = node(*[(Cid.of_raw(leaf), 1)] * MAX_LINKS)
    blocks[middle] = block
    top, block = node(*[(middle, MAX_LINKS)] * MAX_LINKS)
    blocks[top] = block
    walk = Walk(top, size=MAX_LINKS**2)
    leaves = 0
    with pytest.raises(BlobError, match="too many leaves"):  # noqa: PT012
        while True:
            for cid in walk.wanted():
                walk.give(cid, blocks[cid])
            while walk.next_leaf():
                leaves += 1
    assert leaves == FREE_LEAVES + MAX_LINKS**2 // 256


def test_a_leaf_has_two_mebibytes_at_most() -> None:
    leaf = Cid.of_raw(b"leaf")
    top, block = node((leaf, MAX_BLOCK_BYTES))
    walk = Walk(top)
    walk.give(top, block)
    assert walk.next_leaf() == Piece(leaf, 0, MAX_BLOCK_BYTES)
    top, block = node((leaf, MAX_BLOCK_BYTES + 1))
    walk = Walk(top)
    walk.give(top, block)
    with pytest.raises(BlobError, match="has a leaf of 2097153 bytes"):
        walk.next_leaf()


def test_a_parent_that_lies_of_a_node_is_refused() -> None:
    leaf = b"four"
    child, child_block = node((Cid.of_raw(leaf), 4))
    top, top_block = node((child, 5))
    with pytest.raises(BlobError, match="has 4 bytes where 5 were said"):
        read(Walk(top), {top: top_block, child: child_block, Cid.of_raw(leaf): leaf})


def test_a_parent_that_lies_of_a_leaf_is_refused() -> None:
    leaf = b"four"
    top, block = node((Cid.of_raw(leaf), 5))
    with pytest.raises(BlobError, match="has 4 bytes where the DAG says 5"):
        read(Walk(top), {top: block, Cid.of_raw(leaf): leaf})


def test_leaves_larger_than_a_block_are_refused_before_they_are_fetched() -> None:
    raw = Cid.of_raw(b"whatever")
    top, block = node((raw, (2 << 20) + 1))
    walk = Walk(top)
    walk.give(top, block)
    with pytest.raises(BlobError, match="a leaf of 2097153 bytes"):
        walk.next_leaf()
    with pytest.raises(BlobError, match="a leaf of 2097153 bytes"):
        Walk(raw, size=(2 << 20) + 1)


def test_a_builder_returns_every_node_behind_its_children() -> None:
    builder = BlobBuilder(FixedChunker())
    known: set[Cid] = set()
    pieces = (bytes([index]) * (1 << 20) for index in range(5))
    for blocks in [*map(builder.feed, pieces), builder.finish()]:
        for block in blocks:
            if block.cid.codec is Codec.DAG_PB:
                walk = Walk(block.cid)
                walk.give(block.cid, block.data)
                assert {leaf.cid for leaf in iter(walk.next_leaf, None)} <= known
            known.add(block.cid)
    assert builder.root == block.cid
    assert builder.size == 5 << 20


def test_nothing_at_all_is_no_dag() -> None:
    with pytest.raises(BlobError, match="at least one leaf"):
        blocks_of([], 2)
