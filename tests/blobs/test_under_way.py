"""Blocks under way: in which order they are asked for, and what they count."""

from __future__ import annotations

from prime_dht.blobs.cid import Cid
from prime_dht.blobs.under_way import NODE_BYTES, State, UnderWay
from prime_dht.blobs.unixfs import MAX_BLOCK_BYTES
from prime_dht.ids import PeerId

ANNE, BOB = PeerId(b"anne"), PeerId(b"bob")
LEAVES = [Cid.of_raw(bytes((index,))) for index in range(3)]
NODE = Cid.of_dag_pb(b"node")


def test_nodes_are_asked_for_before_leaves_and_leaves_as_they_were_drawn() -> None:
    blocks = UnderWay()
    drawn = [blocks.draw(LEAVES[0], 1), blocks.draw(LEAVES[1], 1), blocks.draw(NODE, None), blocks.draw(LEAVES[2], 1)]
    for block in reversed(drawn):
        blocks.want(block)
    wanted = [block.cid for block in iter(blocks.take_wanted, None)]
    assert wanted == [NODE, *LEAVES]


def test_what_was_wanted_came_unasked_and_is_wanted_again_is_asked_for_once() -> None:
    blocks = UnderWay()
    first = blocks.draw(LEAVES[0], 1)
    blocks.want(first)
    blocks.store(first)
    blocks.settle(first)
    again = blocks.draw(LEAVES[0], 1)
    blocks.want(again)
    assert blocks.take_wanted() is again
    assert blocks.take_wanted() is None


def test_bytes_and_states_are_counted_until_a_block_is_settled() -> None:
    blocks = UnderWay()
    leaf, node, root = blocks.draw(LEAVES[0], 5), blocks.draw(NODE, None), blocks.draw(LEAVES[1], None)
    assert blocks.bytes == 5 + NODE_BYTES + MAX_BLOCK_BYTES
    blocks.want(leaf)
    blocks.ask(leaf, ANNE, 7)
    assert (blocks.count(State.ASKED), blocks.count(State.LOOKING), len(blocks)) == (1, 2, 3)
    for block in (leaf, node, root):
        blocks.settle(block)
    assert (blocks.bytes, blocks.count(*State), len(blocks)) == (0, 0, 0)


def test_the_first_is_the_one_that_was_drawn_before_all_others_that_are_not_settled() -> None:
    blocks = UnderWay()
    assert blocks.first() is None
    one, other = blocks.draw(LEAVES[1], 1), blocks.draw(LEAVES[0], 1)
    assert blocks.first() is one
    blocks.settle(one)
    assert blocks.first() is other


def test_a_block_is_wanted_again_when_nobody_is_left_who_was_asked() -> None:
    blocks = UnderWay()
    block = blocks.draw(LEAVES[0], 5)
    blocks.ask(block, ANNE, 0)
    blocks.ask(block, BOB, 0)
    blocks.release(block, ANNE)
    assert blocks.get(LEAVES[0], State.ASKED) is block
    blocks.release(block, ANNE)
    blocks.release(block, BOB)
    assert blocks.get(LEAVES[0], State.WANTED) is block


def test_the_blocks_that_one_provider_was_asked_for_are_told_from_the_last_backwards() -> None:
    blocks = UnderWay()
    for cid in LEAVES:
        blocks.ask(blocks.draw(cid, 1), ANNE, 0)
    middle = blocks.get(LEAVES[1])
    assert middle is not None
    blocks.ask(middle, BOB, 0)
    assert [block.cid for block in blocks.asked_of_one()] == [LEAVES[2], LEAVES[0]]
