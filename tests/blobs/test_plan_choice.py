"""Fetch plans that find out how fast a newcomer is, and do not wait for one that is silent; in virtual time.

The blobs are small: a block here counts as 16 KiB, of which a newcomer is taken to bring 128 in a second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.blobs.actions import Ask, Finished, Store, WaitUntil
from prime_dht.blobs.choice import MAX_TRIED, SECOND_AFTER_US, newcomers, second_for
from prime_dht.blobs.cid import Cid, Codec
from prime_dht.blobs.plan import FetchLimits, FetchPlan
from prime_dht.blobs.provider import Provider
from prime_dht.blobs.under_way import UnderWay
from prime_dht.blobs.walk import Walk
from prime_dht.ids import US_PER_S, PeerId
from prime_dht.testing.blob_fetch import FetchWorld, Temper, blocks_of

ANNE, BOB, CARL = (PeerId(name) for name in (b"anne", b"bob", b"carl"))
LATE_US = 100_000
SILENT = Temper(is_silent=1.0)
QUICK = Temper(block_us=500, round_trip_us=100)


def peers(count: int) -> list[PeerId]:
    return [PeerId(bytes([index])) for index in range(count)]


def world_of(late: Mapping[PeerId, Temper], *, chunks: int = 2000, max_blocks: int = 4) -> FetchWorld:
    """A fetch from one provider that is never asked for as much as it could be, and others that are found late."""
    root, blocks = blocks_of((index.to_bytes(4, "big") * 50 for index in range(chunks)), 174)
    plan = FetchPlan(Walk(root), now_us=0, limits=FetchLimits(max_blocks=max_blocks))
    plan.on_provider(ANNE)
    world = FetchWorld(plan, blocks, {ANNE: QUICK}, Random(1))

    def come() -> None:
        world.providers.update(late)
        for peer in late:
            plan.on_provider(peer)

    world.after(LATE_US, come)
    return world


class InOrder(FetchWorld):
    """A world whose reader takes the leaves in the order of the content: until its turn has come, each waits."""

    def __init__(self, world: FetchWorld, leaves: list[Cid]) -> None:
        self.__dict__.update(world.__dict__)
        self._leaves = deque(leaves)
        self._came: dict[Cid, bytes] = {}

    def _stored(self, cid: Cid, data: bytes) -> None:
        if cid.codec is Codec.DAG_PB:
            super()._stored(cid, data)
        self._came[cid] = data
        while self._leaves and self._leaves[0] in self._came:
            leaf = self._leaves.popleft()
            super()._stored(leaf, self._came.pop(leaf))


def asks(world: FetchWorld, peer: PeerId) -> int:
    return len(world.log.asks.get(peer, []))


@pytest.mark.parametrize(("block_us", "share"), [(100, 0.7), (500, 0.45)])
def test_a_provider_that_is_found_late_gets_the_share_that_its_speed_deserves_and_no_block_is_sent_twice(
    block_us: int, share: float
) -> None:
    world = world_of({BOB: Temper(block_us=block_us, round_trip_us=100)}, chunks=4000)
    assert world.run() == Finished()
    assert asks(world, BOB) > share * len(world.blocks)
    assert asks(world, ANNE) + asks(world, BOB) == len(world.blocks)
    assert world.log.sent_bytes == sum(map(len, world.blocks.values()))


def test_one_that_is_found_late_and_is_slow_brings_no_more_than_shows_it() -> None:
    world = world_of({BOB: Temper(block_us=20_000)})
    assert world.run() == Finished()
    assert 10 < asks(world, BOB) < 15  # 250 ms
    assert world.log.sent_bytes == sum(map(len, world.blocks.values()))


def test_nobody_is_tried_at_the_end_where_it_is_of_no_more_use() -> None:
    world = world_of({}, chunks=1001)
    world.providers[BOB] = SILENT
    assert world.run(until=lambda: len(world.log.looked_for) == len(world.blocks)) is None
    world.plan.on_provider(BOB)
    assert world.run() == Finished()
    assert asks(world, BOB) == 0


def test_many_that_are_found_late_and_are_silent_hold_up_no_more_than_so_many_blocks() -> None:
    world = world_of(dict.fromkeys(peers(20), SILENT), max_blocks=8)
    assert world.run(until=lambda: len(world.store) > 1500) is None
    assert sum(bool(world.open_asks(peer)) for peer in peers(20)) == MAX_TRIED
    assert world.log.dropped == {}


def test_when_silent_ones_hold_up_the_whole_fetch_the_first_block_is_asked_of_another_and_so_on() -> None:
    world = world_of(dict.fromkeys(peers(4), SILENT))  # four blocks may be under way
    assert world.run() == Finished()
    assert world.now_us < LATE_US + SECOND_AFTER_US + 2000 * (QUICK.block_us + 2 * QUICK.round_trip_us) + 3 * US_PER_S
    assert world.log.sent_bytes == sum(map(len, world.blocks.values()))


@pytest.mark.parametrize(("silent", "most_us"), [(1, 11 * SECOND_AFTER_US // 10), (20, 8 * SECOND_AFTER_US)])
def test_a_reader_in_order_waits_half_a_second_for_a_silent_newcomer_and_once_for_several(
    silent: int, most_us: int
) -> None:
    def took_us(late: Mapping[PeerId, Temper]) -> int:
        world = world_of(late)
        leaves = [cid for cid in world.blocks if cid.codec is Codec.RAW]
        in_order = InOrder(world, leaves)
        assert in_order.run() == Finished()
        assert in_order.log.sent_bytes == sum(map(len, world.blocks.values()))
        return in_order.now_us

    late = dict.fromkeys(peers(silent), SILENT)
    assert SECOND_AFTER_US // 2 < took_us(late) - took_us({}) < most_us


def test_while_the_reader_takes_its_time_nothing_is_asked_twice() -> None:
    """Whoever is asked answers all the time, only slowly: as many blocks as may be under way take it 0.8 s."""
    world = world_of({BOB: Temper(block_us=300_000)}, chunks=300, max_blocks=16)
    world.providers[ANNE] = Temper(block_us=50_000)
    assert world.run(until=lambda: len(world.store) > 250) is None
    assert world.log.asked_twice == []


def test_of_many_providers_over_one_slow_link_no_block_is_asked_twice_before_the_end() -> None:
    """Each of them takes as long for a block as all share the link; fewer blocks than providers may be under way."""
    world = world_of({}, chunks=200, max_blocks=16)
    for peer in (ANNE, *peers(19)):
        world.plan.on_provider(peer)
        world.providers[peer] = Temper(block_us=2 * US_PER_S)
    assert world.run(until=lambda: len(world.store) > 150) is None
    assert len(world.log.asked_twice) < 12, "at first nobody knows how fast they are"


def test_the_block_that_a_reader_waits_for_is_asked_of_a_second_provider_though_there_is_more_to_draw() -> None:
    world = world_of({}, chunks=10)
    plan, root = world.plan, world.plan.root
    plan.next(0)
    plan.on_present(root, world.blocks[root], 0)
    plan.on_provider(BOB)
    leaves = [Cid.of_raw(index.to_bytes(4, "big") * 50) for index in range(4)]
    plan.next(0)
    for leaf in leaves:
        plan.on_absent(leaf)
    [*asked, _] = plan.next(0)
    assert asked == [Ask(ANNE, (leaves[0], leaves[2])), Ask(BOB, (leaves[1], leaves[3]))]
    for leaf in (leaves[1], leaves[3]):
        plan.on_block(BOB, leaf, world.blocks[leaf], 1000)  # they are stored when the reader has had the first
    [*actions, wait] = plan.next(1000)
    assert [type(action) for action in actions] == [Store, Store]
    assert wait == WaitUntil(SECOND_AFTER_US)
    assert plan.next(SECOND_AFTER_US)[:-1] == [Ask(BOB, (leaves[0],))]


def provider_of(peer: PeerId, *, delivered: bool = False) -> Provider:
    provider = Provider(peer)
    provider.delivered = int(delivered)
    return provider


def test_newcomers_are_tried_one_block_each_and_a_few_at_a_time() -> None:
    providers = [Provider(peer) for peer in peers(MAX_TRIED + 2)]
    assert newcomers(providers, 0) == providers[:MAX_TRIED]
    providers[0].ask(Cid.of_raw(b""), 1, now_us=0)
    providers[1].rest(US_PER_S)
    assert newcomers(providers, 0) == providers[2 : MAX_TRIED + 1]


def test_who_was_measured_for_a_while_is_no_newcomer_and_never_becomes_one_again() -> None:
    provider = Provider(ANNE)
    for index in range(100):
        assert provider.is_new is (index < 5)
        provider.ask(Cid.of_raw(b""), 1 << 20, now_us=50_000 * index)
        provider.hear(50_000 * (index + 1), 1 << 20)
        provider.take_back(Cid.of_raw(b""))


def test_a_second_provider_is_idle_and_one_that_delivers_if_there_is_such_a_one() -> None:
    blocks = UnderWay()
    block = blocks.draw(Cid.of_raw(b""), 1)
    blocks.ask(block, ANNE, 0)
    anne, bob, carl = Provider(ANNE), Provider(BOB), provider_of(CARL, delivered=True)
    assert second_for(block, [anne], 0) is None
    assert second_for(block, [anne, bob, carl], 0) is carl
    assert second_for(block, [anne, bob, carl], US_PER_S) is carl, "however long ago it was asked for anything"
    carl.ask(Cid.of_raw(b"other"), 1, now_us=0)
    assert second_for(block, [anne, bob, carl], SECOND_AFTER_US - 1) is None, "it is active, and will be idle"
    assert second_for(block, [anne, bob, carl], SECOND_AFTER_US) is bob, "it has fallen silent"
    block.lacking.add(BOB)
    assert second_for(block, [anne, bob], 0) is None


@given(
    rng=st.randoms(use_true_random=False),
    block_us=st.lists(st.sampled_from([50, 500, 5_000]), min_size=1, max_size=8),
    come_at_us=st.lists(st.sampled_from([0, 10_000, 100_000, 500_000]), min_size=8, max_size=8),
    max_blocks=st.sampled_from([1, 4, 16, 64]),
    reader_block_us=st.sampled_from([0, 1_000]),
)
@settings(derandomize=True, deadline=None, max_examples=40)
def test_of_quick_providers_whenever_they_come_each_block_is_asked_once(
    rng: Random, block_us: list[int], come_at_us: list[int], max_blocks: int, reader_block_us: int
) -> None:
    root, blocks = blocks_of((index.to_bytes(4, "big") * 50 for index in range(300)), 50)
    plan = FetchPlan(Walk(root), now_us=0, limits=FetchLimits(max_blocks=max_blocks))
    providers = {peer: Temper(block_us=each) for peer, each in zip(peers(8), block_us, strict=False)}
    world = FetchWorld(plan, blocks, providers, rng, reader_block_us=reader_block_us)
    for peer, at_us in zip(providers, [0, *come_at_us], strict=False):
        world.after(at_us, lambda peer=peer: plan.on_provider(peer))  # type: ignore[misc]
    assert world.run() == Finished()
    assert sum(map(len, world.log.asks.values())) == len(blocks)
    assert world.log.sent_bytes == sum(map(len, blocks.values()))
