"""Fetch plans, one situation each, in virtual time."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import pytest

from prime_dht.blobs.actions import Ask, Cancel, DropProvider, Failed, FindProviders, Finished, Look, Refused, Store
from prime_dht.blobs.cid import Cid, Codec
from prime_dht.blobs.plan import MAX_REMEMBERED, FetchLimits, FetchPlan
from prime_dht.blobs.searches import NEEDED_PAUSE_US
from prime_dht.blobs.unixfs import Link, encode_node
from prime_dht.blobs.walk import Piece, Walk
from prime_dht.ids import US_PER_S, PeerId, peer_text
from prime_dht.node.blobs.destination import ToldWalk
from prime_dht.testing.blob_fetch import HONEST, FetchWorld, Temper, blocks_of

CHUNK_BYTES = 400
SLOW = Temper(block_us=US_PER_S)
ANNE, BOB, CARL, DORA = (PeerId(name) for name in (b"anne", b"bob", b"carl", b"dora"))


def chunk(index: int) -> bytes:
    return index.to_bytes(4, "big") * (CHUNK_BYTES // 4)


def world_of(
    providers: Mapping[PeerId, Temper],
    *,
    chunks: int = 100,
    links_per_node: int = 16,
    store: dict[Cid, bytes] | None = None,
    limits: FetchLimits | None = None,
) -> FetchWorld:
    """A blob of some chunks, and a plan that knows the providers."""
    root, blocks = blocks_of(map(chunk, range(chunks)), links_per_node)
    plan = FetchPlan(Walk(root), now_us=0, limits=limits)
    for peer in providers:
        plan.on_provider(peer)
    return FetchWorld(plan, blocks, providers, Random(1), store=store)


@pytest.mark.parametrize(
    ("temper", "reason"),
    [
        (Temper(lies=1.0), "sent other bytes"),
        (Temper(is_silent=1.0), "stalled"),
        (Temper(lacks=1.0), "lacks what it announced"),
    ],
)
def test_a_provider_that_does_not_keep_its_word_is_dropped_and_the_others_complete_the_fetch(
    temper: Temper, reason: str
) -> None:
    world = world_of({BOB: temper, ANNE: SLOW, CARL: SLOW})
    assert world.run() == Finished()
    assert world.store == world.blocks
    assert world.log.dropped.keys() == {BOB}
    assert reason in world.log.dropped[BOB].reason
    assert world.log.dropped[BOB].is_hostile is bool(temper.lies)


def test_a_provider_that_is_always_busy_keeps_nobody_else_waiting() -> None:
    limits = FetchLimits(max_providers=1)
    world = world_of({BOB: Temper(is_busy=1.0), ANNE: HONEST}, limits=limits)
    assert world.run() == Finished()
    assert world.log.asks[BOB] == [world.plan.root] * 8
    assert world.log.dropped.keys() == {BOB}


def test_who_refuses_several_blocks_at_once_has_refused_once() -> None:
    world = world_of({BOB: HONEST}, chunks=20, links_per_node=20)
    plan, root = world.plan, world.plan.root
    plan.on_provider(ANNE)
    leaves = [Cid.of_raw(chunk(index)) for index in range(20)]
    plan.next(0)
    plan.on_present(root, world.blocks[root], 0)
    plan.next(0)
    for leaf in leaves:
        plan.on_absent(leaf)
    asks = {action.provider: action.cids for action in plan.next(0) if isinstance(action, Ask)}
    assert len(asks[BOB]) >= 8
    plan.on_provider(CARL)  # who waits
    for leaf in asks[BOB]:
        plan.on_busy(BOB, [leaf], 0)
    assert not any(isinstance(action, DropProvider) for action in plan.next(0))


def test_a_busy_provider_is_asked_again_and_again_if_there_is_no_other() -> None:
    world = world_of({BOB: Temper(is_busy=1.0)})
    assert isinstance(world.run(), Failed)
    assert len(world.log.asks[BOB]) > 100
    assert not world.log.dropped


def test_blocks_are_looked_for_several_at_a_time() -> None:
    world = world_of({ANNE: SLOW}, links_per_node=100, limits=FetchLimits(max_blocks=20))
    assert world.run() == Finished()
    assert world.log.looks == 1 + 1 + (100 - 20) // 6 + 1  # the root; the first 20; 6 whenever 14 are left; the last 2


def test_a_provider_that_has_the_root_and_nothing_else_is_dropped_after_eight_misses() -> None:
    world = world_of({ANNE: HONEST}, chunks=16)
    plan, root = world.plan, world.plan.root
    plan.next(0)
    plan.on_absent(root)
    plan.next(0)
    plan.on_block(ANNE, root, world.blocks[root], 0)
    plan.next(0)
    leaves = [Cid.of_raw(chunk(index)) for index in range(9)]
    for leaf in leaves:
        plan.on_absent(leaf)
    plan.next(0)
    plan.on_not_have(ANNE, leaves[:8], 0)
    assert not any(isinstance(action, DropProvider) for action in plan.next(0))
    plan.on_not_have(ANNE, leaves[8:], 0)
    assert DropProvider(ANNE, "lacks what it announced", is_hostile=False) in plan.next(0)


def test_who_lied_is_never_asked_again_though_it_is_found_again() -> None:
    world = world_of({BOB: Temper(lies=1.0)})
    assert isinstance(world.run(), Failed)
    assert world.log.searches == 3
    assert world.log.asks == {BOB: [world.plan.root]}


def test_who_has_delivered_may_stall_once_and_again_after_delivering_but_not_twice_in_a_row() -> None:
    world = world_of({ANNE: HONEST}, chunks=2)
    plan, root, leaf = world.plan, world.plan.root, Cid.of_raw(chunk(0))
    silence_us = FetchLimits().silence_us
    plan.next(0)
    plan.on_absent(root)
    plan.next(0)
    plan.on_block(ANNE, root, world.blocks[root], 0)
    plan.next(0)
    for cid in (leaf, Cid.of_raw(chunk(1))):
        plan.on_absent(cid)
    plan.next(0)
    assert isinstance(plan.next(silence_us)[0], Cancel)
    [ask, *_] = plan.next(silence_us + US_PER_S)
    assert isinstance(ask, Ask)
    plan.on_block(ANNE, leaf, chunk(0), silence_us + US_PER_S)
    plan.next(silence_us + US_PER_S)
    assert isinstance(plan.next(2 * silence_us + US_PER_S)[0], Cancel)
    plan.next(2 * silence_us + 2 * US_PER_S)
    assert DropProvider(ANNE, "stalled", is_hostile=False) in plan.next(3 * silence_us + 2 * US_PER_S)


def test_who_is_slow_has_not_stalled_as_long_as_the_block_goes_on_coming() -> None:
    world = world_of({ANNE: HONEST}, chunks=1)
    plan, root = world.plan, world.plan.root
    silence_us = FetchLimits().silence_us
    plan.next(0)
    plan.on_absent(root)
    plan.next(0)
    for halves in range(1, 7):
        plan.on_part(ANNE, halves * silence_us // 2)
        plan.on_part(BOB, halves * silence_us // 2)  # who is no provider
        assert plan.next(halves * silence_us // 2)[:-1] == ([FindProviders()] if halves == 1 else [])
    assert plan.progress.fetched_parts == 6
    plan.on_block(ANNE, root, world.blocks[root], 3 * silence_us + 1)
    assert plan.next(3 * silence_us + 1)[:-1] == [Store(root, world.blocks[root])]


def test_what_was_asked_of_a_provider_that_disappears_is_asked_of_another_at_once() -> None:
    world = world_of({ANNE: HONEST, BOB: HONEST}, chunks=20)
    assert world.run(until=lambda: len(world.open_asks(BOB)) > 5) is None
    asked_of_bob = world.open_asks(BOB)
    world.plan.on_gone(BOB, "connection lost")
    [*actions, _] = world.plan.next(world.now_us)
    asked = {cid for action in actions if isinstance(action, Ask) and action.provider == ANNE for cid in action.cids}
    assert asked_of_bob <= asked


def test_a_provider_that_comes_later_gets_its_share() -> None:
    world = world_of({ANNE: HONEST}, chunks=1000)
    world.providers[BOB] = HONEST
    world.after(US_PER_S, lambda: world.plan.on_provider(BOB))
    assert world.run() == Finished()
    assert len(world.log.asks[BOB]) > 300


def test_without_any_provider_the_error_names_the_blob_and_what_was_tried() -> None:
    world = world_of({})
    end = world.run()
    assert isinstance(end, Failed)
    assert f"blob {world.plan.root}" in end.reason
    assert "no provider was found, in 3 searches" in end.reason
    assert world.log.searches == 3
    assert world.now_us >= 2 * NEEDED_PAUSE_US


def test_when_all_providers_failed_the_error_says_how_each_did() -> None:
    world = world_of({ANNE: Temper(lies=1.0), BOB: Temper(is_silent=1.0), CARL: Temper(lacks=1.0)})
    end = world.run()
    assert isinstance(end, Failed)
    for peer, why in ((ANNE, "sent other bytes"), (BOB, "stalled"), (CARL, "lacks what it announced")):
        assert f"{peer_text(peer)} {why}" in end.reason


def test_a_provider_that_says_only_that_it_is_busy_is_asked_again_until_patience_ends() -> None:
    world = world_of({ANNE: Temper(is_busy=1.0)}, limits=FetchLimits(patience_us=10 * US_PER_S))
    end = world.run()
    assert isinstance(end, Failed)
    assert "got no block for 10 s" in end.reason
    assert 10 <= len(world.log.asks[ANNE]) <= 20


def test_a_fetch_that_was_broken_off_at_half_is_resumed_and_no_block_is_fetched_twice() -> None:
    first = world_of({ANNE: HONEST})
    assert first.run(until=lambda: len(first.store) == 50) is None
    second = world_of({ANNE: HONEST}, store=first.store)
    assert second.run() == Finished()
    assert set(first.log.stored) & set(second.log.stored) == set()
    assert len(first.log.stored) + len(second.log.stored) == len(second.blocks)


def test_a_blob_that_is_all_there_is_asked_of_nobody() -> None:
    world = world_of({ANNE: HONEST}, store=dict(world_of({}).blocks))
    assert world.run() == Finished()
    assert world.log.asks == {}


def test_a_node_that_is_damaged_in_the_store_is_fetched() -> None:
    world = world_of({ANNE: HONEST}, chunks=3)
    world.run(until=lambda: bool(world.log.looked_for))
    world.plan.on_present(world.plan.root, b"damaged", world.now_us)
    assert any(isinstance(action, Ask) for action in world.plan.next(world.now_us))


def test_nodes_come_before_leaves_and_leaves_in_the_order_of_the_content() -> None:
    limits = FetchLimits(max_blocks=40)
    world = world_of({ANNE: HONEST}, chunks=200, limits=limits)
    world.run()
    leaves = {Cid.of_raw(chunk(index)): index for index in range(200)}
    nodes_asked = leaves_asked = 0
    for cid in world.log.asks[ANNE]:
        if cid.codec is Codec.DAG_PB:
            nodes_asked += 1
        else:
            assert abs(leaves[cid] - leaves_asked) < 40
            assert nodes_asked >= min(2 + leaves[cid] // 16 + 1, 14), "the next node was asked for before"
            leaves_asked += 1


def test_three_providers_take_a_third_of_the_time_of_one() -> None:
    times_us = []
    for providers in ([ANNE], [ANNE, BOB, CARL]):
        world = world_of(dict.fromkeys(providers, HONEST), chunks=3000)
        assert world.run() == Finished()
        times_us.append(world.now_us)
    assert times_us[1] < 0.4 * times_us[0]


def test_who_is_faster_is_asked_for_more() -> None:
    world = world_of({ANNE: Temper(block_us=10_000), BOB: Temper(block_us=40_000)}, chunks=2000)
    assert world.run() == Finished()
    share = len(world.log.asks[ANNE]) / len(world.log.asks[BOB])
    assert 3 <= share <= 5
    assert world.now_us < 1.1 * 2126 / (1 / 10_000 + 1 / 40_000)


def test_the_last_blocks_of_a_slow_provider_are_asked_of_an_idle_one_too() -> None:
    world = world_of({ANNE: HONEST, BOB: Temper(block_us=12 * US_PER_S)})
    assert world.run() == Finished()
    assert world.log.asked_twice
    assert BOB not in world.log.dropped
    assert world.now_us < 12 * US_PER_S


def test_when_a_block_that_two_were_asked_for_has_come_it_is_cancelled_at_the_other() -> None:
    leaf = Cid.of_raw(b"leaf")
    plan = FetchPlan(Walk(leaf, size=4), now_us=0)
    for peer in (ANNE, BOB):
        plan.on_provider(peer)
    plan.next(0)
    plan.on_absent(leaf)
    assert plan.next(0)[:-1] == [Ask(ANNE, (leaf,))]
    assert plan.next(US_PER_S // 2 - 1)[:-1] == []
    assert plan.next(US_PER_S // 2)[:-1] == [Ask(BOB, (leaf,))]
    plan.on_block(BOB, leaf, b"leaf", US_PER_S)
    assert plan.next(US_PER_S)[:-1] == [Cancel(ANNE, (leaf,)), Store(leaf, b"leaf")]
    plan.on_block(ANNE, leaf, b"leaf", US_PER_S)
    plan.on_stored(leaf, US_PER_S)
    assert plan.next(US_PER_S) == [Finished()]


def test_a_second_provider_is_not_asked_for_what_it_lacks() -> None:
    world = world_of({ANNE: HONEST}, chunks=2)
    plan, root, leaf = world.plan, world.plan.root, Cid.of_raw(chunk(0))
    plan.next(0)
    plan.on_absent(root)
    plan.next(0)
    plan.on_block(ANNE, root, world.blocks[root], 0)
    plan.next(0)
    plan.on_present(Cid.of_raw(chunk(1)), None, 0)
    plan.on_stored(root, 0)
    plan.on_absent(leaf)
    plan.next(0)
    plan.on_not_have(ANNE, [leaf], 0)
    plan.on_provider(BOB)
    assert plan.next(0)[:-1] == [Ask(BOB, (leaf,))]
    assert plan.next(US_PER_S - 1)[:-1] == []


def test_providers_that_are_all_quick_are_asked_for_nothing_twice() -> None:
    world = world_of(dict.fromkeys((ANNE, BOB, CARL), HONEST))
    world.run()
    assert world.log.asked_twice == []
    assert world.log.sent_bytes == sum(map(len, world.blocks.values()))


def test_what_is_under_way_is_bounded_in_blocks_and_bytes() -> None:
    for limits, most in ((FetchLimits(max_blocks=10), 10 + 4), (FetchLimits(max_bytes=20 * CHUNK_BYTES), 20 + 4)):
        world = world_of({ANNE: Temper(round_trip_us=US_PER_S)}, chunks=500, links_per_node=500, limits=limits)
        assert world.run() == Finished()
        assert world.log.most_under_way <= most


def test_a_block_that_is_in_the_blob_many_times_is_under_way_as_often_as_was_told() -> None:
    leaf = chunk(0)
    root, blocks = blocks_of([leaf] * 500, links_per_node=5)
    for limits in (FetchLimits(max_blocks=10), FetchLimits(max_bytes=10 * CHUNK_BYTES)):
        told: list[Piece] = []
        plan = FetchPlan(ToldWalk(root, told.append, size=None, start=0, stop=None), now_us=0, limits=limits)
        most_ahead = 0
        for _ in range(1000):
            *actions, last = plan.next(0)
            if isinstance(last, Finished):
                break
            most_ahead = max(most_ahead, len(told) - plan.progress.settled_bytes // CHUNK_BYTES)
            for cid in (cid for action in actions if isinstance(action, Look) for cid in action.cids):
                if cid.codec is Codec.DAG_PB:
                    plan.on_present(cid, blocks[cid], 0)
            if not actions:  # the leaf is the last to come, each time
                plan.on_present(Cid.of_raw(leaf), None, 0)
        assert isinstance(last, Finished)
        assert plan.progress.settled_bytes == len(leaf) * len(told) == len(leaf) * 500
        assert most_ahead <= 10


def test_a_provider_that_announces_itself_again_may_have_what_it_lacked() -> None:
    world = world_of({ANNE: HONEST}, chunks=2)
    plan, root, leaf = world.plan, world.plan.root, Cid.of_raw(chunk(0))
    plan.next(0)
    plan.on_absent(root)
    plan.next(0)
    plan.on_block(ANNE, root, world.blocks[root], 0)
    plan.next(0)
    plan.on_absent(leaf)
    plan.next(0)
    plan.on_not_have(ANNE, [leaf], 0)
    assert plan.next(0)[:-1] == [FindProviders()]
    plan.on_provider(ANNE)
    assert plan.next(0)[:-1] == [Ask(ANNE, (leaf,))]


def test_one_that_was_dropped_may_have_what_it_lacked_when_it_is_found_again() -> None:
    root = Cid.of_raw(b"root")
    plan = FetchPlan(Walk(root, size=4), now_us=0)
    plan.on_provider(ANNE)
    plan.next(0)
    plan.on_absent(root)
    plan.next(0)
    plan.on_not_have(ANNE, [root], 0)
    assert plan.next(0)[0] == DropProvider(ANNE, "lacks what it announced", is_hostile=False)
    plan.on_provider(ANNE)
    assert plan.next(0)[:-1] == [Ask(ANNE, (root,))]


def test_who_is_busy_with_what_was_cancelled_is_asked_for_more_at_once() -> None:
    leaf = Cid.of_raw(b"leaf")
    plan = FetchPlan(Walk(leaf, size=4), now_us=0)
    plan.on_provider(ANNE)
    plan.next(0)
    plan.on_busy(ANNE, [leaf], 0)
    plan.on_absent(leaf)
    assert plan.next(0)[:-1] == [Ask(ANNE, (leaf,))]
    plan.on_busy(ANNE, [leaf], 0)
    assert plan.next(0)[:-1] == []


def test_a_provider_that_left_before_its_turn_is_not_asked() -> None:
    plan = FetchPlan(Walk(Cid.of_raw(b"")), now_us=0)
    plan.on_provider(ANNE)
    plan.on_gone(ANNE, "connection lost")
    plan.next(0)
    plan.on_absent(Cid.of_raw(b""))
    assert plan.next(0)[:-1] == [FindProviders()]


def test_of_those_that_wait_whoever_left_before_goes_last() -> None:
    plan = FetchPlan(Walk(Cid.of_raw(b"")), now_us=0, limits=FetchLimits(max_providers=1))
    plan.on_provider(ANNE)
    plan.next(0)
    plan.on_gone(ANNE, "connection lost")
    plan.on_provider(ANNE)
    plan.on_provider(BOB)
    plan.on_absent(Cid.of_raw(b""))
    assert plan.next(0)[:-1] == [Ask(BOB, (Cid.of_raw(b""),))]


def test_so_many_wait_and_whoever_has_waited_longest_makes_room() -> None:
    leaf = Cid.of_raw(b"leaf")
    plan = FetchPlan(Walk(leaf, size=4), now_us=0)
    for index in range(MAX_REMEMBERED + 1):
        plan.on_provider(PeerId(index.to_bytes(2, "big")))
    plan.next(0)
    plan.on_absent(leaf)
    assert plan.next(0)[:-1] == [Ask(PeerId((1).to_bytes(2, "big")), (leaf,))]


def test_more_providers_than_are_asked_at_a_time_wait() -> None:
    silent = Temper(is_silent=1.0)
    limits = FetchLimits(max_providers=2)
    world = world_of({ANNE: silent, BOB: silent, CARL: silent, DORA: HONEST}, limits=limits)
    assert world.run() == Finished()
    assert world.log.searches == 1, "there is one soon in any case"


def test_a_leaf_whose_size_is_a_lie_is_refused_and_not_stored() -> None:
    leaf = b"four"
    lie = encode_node([Link(cid=Cid.of_raw(leaf), size=5, tsize=4)])
    root = Cid.of_dag_pb(lie)
    plan = FetchPlan(Walk(root, size=5), now_us=0)
    plan.on_provider(ANNE)
    world = FetchWorld(plan, {root: lie, Cid.of_raw(leaf): leaf}, {ANNE: HONEST}, Random(1))
    end = world.run()
    assert isinstance(end, Refused)
    assert "4 bytes where the DAG says 5" in end.reason
    assert world.log.stored == [root]


def test_a_block_of_two_sizes_is_refused() -> None:
    leaf = Cid.of_raw(b"four")
    lie = encode_node([Link(cid=leaf, size=4, tsize=4), Link(cid=leaf, size=5, tsize=4)])
    root = Cid.of_dag_pb(lie)
    plan = FetchPlan(Walk(root), now_us=0)
    plan.on_provider(ANNE)
    world = FetchWorld(plan, {root: lie, leaf: b"four"}, {ANNE: HONEST}, Random(1))
    assert world.run() == Refused(f"blob {root} says two sizes of block {leaf}")


def test_a_root_that_is_no_node_or_has_another_size_is_refused() -> None:
    junk = b"no node at all"
    for block, reason in ((junk, "not a node"), (encode_node([Link(cid=Cid.of_raw(b""), size=9, tsize=9)]), "9 bytes")):
        root = Cid.of_dag_pb(block)
        plan = FetchPlan(Walk(root, size=8), now_us=0)
        plan.on_provider(ANNE)
        end = FetchWorld(plan, {root: block}, {ANNE: HONEST}, Random(1)).run()
        assert isinstance(end, Refused)
        assert reason in end.reason


def test_what_is_reported_out_of_place_changes_nothing() -> None:
    world = world_of({ANNE: HONEST}, chunks=3)
    plan, root = world.plan, world.plan.root
    [look, _] = plan.next(0)
    assert look == Look((root,))
    stranger = Cid.of_raw(b"not in this blob")
    plan.on_block(ANNE, stranger, b"not in this blob", 0)
    plan.on_block(BOB, root, world.blocks[root], 0)
    plan.on_not_have(BOB, [root], 0)
    plan.on_not_have(ANNE, [root], 0)
    plan.on_busy(BOB, [root], 0)
    plan.on_gone(BOB, "unknown")
    plan.on_present(stranger, None, 0)
    plan.on_absent(stranger)
    plan.on_stored(root, 0)
    [_] = plan.next(0)
    plan.on_absent(root)
    [ask, _] = plan.next(0)
    assert ask == Ask(ANNE, (root,))
    assert plan.progress.settled_bytes == plan.progress.fetched_blocks == 0


def test_wrong_bytes_that_come_late_drop_the_provider_too() -> None:
    world = world_of({ANNE: HONEST}, chunks=3)
    plan, root = world.plan, world.plan.root
    plan.next(0)
    plan.on_absent(root)
    plan.next(0)
    plan.on_busy(ANNE, [root], 0)
    plan.on_false_block(ANNE, root)
    [drop, search, _] = plan.next(0)
    assert isinstance(drop, DropProvider)
    assert search == FindProviders()
