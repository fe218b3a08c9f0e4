"""Fetch plans that ask only as many providers as make them faster, in virtual time.

The blobs are small, so what is fast is set to be little: a block here counts as 16 KiB, and 64 in a second are fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.blobs import breadth
from prime_dht.blobs.actions import Action, Ask, Cancel, Finished, WaitUntil
from prime_dht.blobs.plan import FetchLimits, FetchPlan
from prime_dht.blobs.walk import Walk
from prime_dht.ids import US_PER_S, PeerId
from prime_dht.testing.blob_fetch import FetchWorld, Temper, blocks_of

ANNE, BOB, CARL, DORA = (PeerId(name) for name in (b"anne", b"bob", b"carl", b"dora"))
THREE = (ANNE, BOB, CARL)
QUICK = Temper(block_us=2_500)
READER_BLOCK_US = 3_000


@pytest.fixture(autouse=True)
def _little_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breadth, "FAST_BYTES_PER_S", 1 << 20)


def world_of(
    providers: Mapping[PeerId, Temper], *, chunks: int, reader_block_us: int = 0, max_blocks: int = 32
) -> FetchWorld:
    root, blocks = blocks_of((index.to_bytes(4, "big") * 50 for index in range(chunks)), 174)
    plan = FetchPlan(Walk(root), now_us=0, limits=FetchLimits(max_blocks=max_blocks))
    for peer in providers:
        plan.on_provider(peer)
    return FetchWorld(plan, blocks, providers, Random(1), reader_block_us=reader_block_us)


def narrow_world(max_blocks: int = 32) -> FetchWorld:
    """A fetch that asks only one of three."""
    providers = dict.fromkeys(THREE, QUICK)
    world = world_of(providers, chunks=1500, reader_block_us=READER_BLOCK_US, max_blocks=max_blocks)
    assert world.run(until=lambda: world.now_us > US_PER_S and len(asked(world)) == 1) is None
    return world


def asked(world: FetchWorld) -> list[PeerId]:
    """Who has something to deliver."""
    return [peer for peer in world.providers if world.open_asks(peer)]


def time_us(
    providers: Mapping[PeerId, Temper],
    *,
    chunks: int,
    reader_block_us: int = 0,
    prepare: Callable[[FetchWorld], None] = lambda _: None,
) -> tuple[int, int]:
    """How long the fetch takes, and how long it would with all providers all the time."""
    times_us = []
    for first_wait_us in (breadth.FIRST_WAIT_US, 3600 * US_PER_S):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(breadth, "FIRST_WAIT_US", first_wait_us)
            world = world_of(providers, chunks=chunks, reader_block_us=reader_block_us)
        prepare(world)
        assert world.run() == Finished()
        times_us.append(world.now_us)
    return times_us[0], times_us[1]


def test_a_reader_that_is_the_limit_itself_asks_one_provider_and_is_as_fast() -> None:
    providers = dict.fromkeys(THREE, QUICK)
    world = world_of(providers, chunks=2000, reader_block_us=READER_BLOCK_US)
    assert world.run() == Finished()
    most, *others = sorted((len(cids) for cids in world.log.asks.values()), reverse=True)
    assert most > 1800
    assert all(count < 100 for count in others)
    narrow_us, wide_us = time_us(providers, chunks=2000, reader_block_us=READER_BLOCK_US)
    assert narrow_us < 1.01 * wide_us


@pytest.mark.parametrize("count", [2, 3, 8])
def test_providers_that_are_the_limit_are_all_asked_and_little_time_is_lost(count: int) -> None:
    providers = {PeerId(bytes([index])): Temper(block_us=10_000) for index in range(count)}
    world = world_of(providers, chunks=500 * count)
    assert world.run() == Finished()
    assert min(map(len, world.log.asks.values())) > 400
    narrow_us, wide_us = time_us(providers, chunks=500 * count)
    assert narrow_us < 1.04 * wide_us


def test_of_very_different_providers_those_that_matter_are_asked_and_little_time_is_lost() -> None:
    for second_block_us in (12_000, 40_000, 400_000):
        blocks_us = {ANNE: 5_000, BOB: second_block_us, CARL: 200_000}
        providers = {peer: Temper(block_us=block_us) for peer, block_us in blocks_us.items()}
        narrow_us, wide_us = time_us(providers, chunks=1500)
        assert narrow_us < 1.06 * wide_us


def test_when_the_one_in_use_becomes_slow_the_others_are_asked_again() -> None:
    def slow_down(world: FetchWorld) -> None:
        def slow() -> None:
            world.providers[max(world.log.asks, key=lambda peer: len(world.log.asks[peer]))] = Temper(block_us=200_000)

        world.after(2 * US_PER_S, slow)

    providers = dict.fromkeys(THREE, QUICK)
    narrow_us, wide_us = time_us(providers, chunks=1500, reader_block_us=READER_BLOCK_US, prepare=slow_down)
    assert narrow_us < wide_us + 5 * US_PER_S // 4


def test_what_was_asked_of_the_one_in_use_is_asked_of_others_at_once_when_it_disappears() -> None:
    world = narrow_world()
    [peer] = asked(world)
    blocks = world.open_asks(peer)
    world.plan.on_gone(peer, "connection lost")
    actions = world.plan.next(world.now_us)
    asks = [action for action in actions if isinstance(action, Ask)]
    assert {ask.provider for ask in asks} == world.providers.keys() - {peer}
    assert blocks <= {cid for ask in asks for cid in ask.cids}


def test_a_block_that_the_one_in_use_lacks_is_asked_of_others_at_once() -> None:
    world = narrow_world()
    [peer] = asked(world)
    lacked = next(iter(world.open_asks(peer)))
    world.plan.on_not_have(peer, [lacked], world.now_us)
    actions = world.plan.next(world.now_us)
    [ask] = [action for action in actions if isinstance(action, Ask) and lacked in action.cids]
    assert ask.provider != peer


def test_a_block_that_one_of_two_in_use_lacks_waits_for_the_other_and_brings_back_nobody() -> None:
    providers = dict.fromkeys((*THREE, DORA), Temper(block_us=10_000))
    world = world_of(providers, chunks=3000, reader_block_us=5_000, max_blocks=512)
    assert world.run(until=lambda: world.now_us > 3 * US_PER_S and len(asked(world)) == 2) is None
    peer, other = asked(world)
    assert not world.plan._providers[other].has_room(world.now_us)
    lacked = next(iter(world.open_asks(peer)))
    world.plan.on_not_have(peer, [lacked], world.now_us)
    [*actions, _] = world.plan.next(world.now_us)
    asks = [action for action in actions if isinstance(action, Ask)]
    assert {ask.provider for ask in asks} == {peer}
    assert lacked not in {cid for ask in asks for cid in ask.cids}


def test_when_the_one_in_use_falls_silent_the_fetch_goes_on_after_half_a_second() -> None:
    world = narrow_world()
    [peer] = asked(world)
    world.providers[peer] = Temper(is_silent=1.0)
    stored = len(world.store)
    began_us = world.now_us
    assert world.run(until=lambda: len(world.store) > stored + 300) is None
    assert world.now_us < began_us + (32 + 300) * READER_BLOCK_US + 3 * US_PER_S // 4


def test_what_waits_for_a_silent_one_in_use_is_asked_of_the_others_before_a_tenth_of_a_second_has_passed() -> None:
    world = narrow_world(max_blocks=512)
    [peer] = asked(world)
    [*actions, wait] = world.plan.next(world.now_us)
    assert actions == []
    assert isinstance(wait, WaitUntil)
    assert wait.at_us < world.now_us + US_PER_S // 10
    asks = [action for action in world.plan.next(wait.at_us) if isinstance(action, Ask)]
    assert asks
    assert peer not in {ask.provider for ask in asks}


def test_of_one_in_use_that_fell_silent_no_more_than_a_block_is_expected() -> None:
    world = narrow_world()
    [peer] = asked(world)
    waited_for = world.open_asks(peer)
    assert len(waited_for) > 10
    [*_, wait] = world.plan.next(world.now_us)
    assert isinstance(wait, WaitUntil)
    actions = world.plan.next(wait.at_us)
    [cancel] = [action for action in actions if isinstance(action, Cancel)]
    assert cancel.provider == peer
    assert len(waited_for - set(cancel.cids)) == 1
    asks = [action for action in actions if isinstance(action, Ask)]
    assert {cid for ask in asks for cid in ask.cids} == set(cancel.cids)
    assert {ask.provider for ask in asks} == world.providers.keys() - {peer}


def test_one_in_use_that_goes_on_delivering_keeps_what_it_was_asked_for_when_the_others_come_back() -> None:
    world = narrow_world()
    [peer] = asked(world)
    world.providers[peer] = Temper(block_us=20_000)
    cancelled: list[Cancel] = []
    plan_next = world.plan.next

    def noted(now_us: int) -> list[Action]:
        actions = plan_next(now_us)
        cancelled.extend(action for action in actions if isinstance(action, Cancel))
        return actions

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.plan, "next", noted)
        assert world.run(until=lambda: len(asked(world)) == 3) is None
    assert cancelled == []


def test_who_goes_on_delivering_is_left_to_it_though_others_are_idle() -> None:
    world = world_of(dict.fromkeys(THREE, QUICK), chunks=500, reader_block_us=10_000, max_blocks=64)
    assert world.run(until=lambda: len(world.store) > 400) is None
    assert len(asked(world)) == 1
    assert world.log.asked_twice == []


def test_the_last_blocks_are_asked_of_one_that_is_not_in_use_too() -> None:
    world = narrow_world()
    [peer] = asked(world)
    assert world.run(until=lambda: len(world.store) + 48 > len(world.blocks)) is None
    world.providers[peer] = Temper(block_us=80_000)
    began_us = world.now_us
    assert world.run() == Finished()
    assert world.log.asked_twice
    assert world.now_us < began_us + 3 * US_PER_S // 2


@given(
    rng=st.randoms(use_true_random=False),
    block_us=st.lists(st.sampled_from([100, 1_000, 10_000, 30_000]), min_size=2, max_size=8),
    failing=st.sampled_from([Temper(lacks=0.1), Temper(is_silent=0.02), Temper(is_busy=0.1), Temper(leaves=0.05)]),
    reader_block_us=st.sampled_from([0, 1_000, 5_000]),
)
@settings(derandomize=True, deadline=None, max_examples=40)
def test_a_fetch_completes_however_often_the_providers_in_use_change(
    rng: Random, block_us: list[int], failing: Temper, reader_block_us: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("FAST_BYTES_PER_S", 1),
            ("PERIOD_US", 5_000),
            ("FIRST_WAIT_US", 5_000),
            ("WAIT_FACTOR", 1),
        ):
            patch.setattr(breadth, name, value)
        root, blocks = blocks_of((index.to_bytes(4, "big") * 50 for index in range(200)), 20)
        plan = FetchPlan(Walk(root), now_us=0, limits=FetchLimits(max_blocks=32))
        providers = {PeerId(bytes([index])): Temper(block_us=each) for index, each in enumerate(block_us)}
        providers[ANNE] = failing
        for peer in providers:
            plan.on_provider(peer)
        world = FetchWorld(plan, blocks, providers, rng, reader_block_us=reader_block_us)
        assert world.run() == Finished()
    assert world.store == blocks
