"""When a fetch searches for more providers, and how often; in virtual time."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from prime_dht.blobs.actions import Failed, FindProviders, Finished
from prime_dht.blobs.plan import FetchLimits, FetchPlan
from prime_dht.blobs.searches import EARLY_US, FEW_PAUSE_US, LONGEST_PAUSE_US, NEEDED_PAUSE_US, Searches
from prime_dht.blobs.walk import Walk
from prime_dht.ids import US_PER_S, PeerId
from prime_dht.testing.blob_fetch import FetchWorld, Temper, blocks_of

ANNE, BOB, CARL = (PeerId(name) for name in (b"anne", b"bob", b"carl"))
CHUNK_BYTES = 200_000
BLOCK_US = 100_000
"""Two megabytes in a second."""

HONEST = Temper(block_us=BLOCK_US)


def world_of(*providers: PeerId, chunks: int = 300, known: int | None = None) -> FetchWorld:
    """A fetch that knows some providers of a blob; a search finds all."""
    root, blocks = blocks_of((index.to_bytes(4, "big") * (CHUNK_BYTES // 4) for index in range(chunks)), 174)
    plan = FetchPlan(Walk(root), now_us=0, limits=FetchLimits(max_bytes=8 << 20))
    for peer in providers[:known]:
        plan.on_provider(peer)
    return FetchWorld(plan, blocks, dict.fromkeys(providers, HONEST), Random(1))


def test_a_search_that_is_needed_begins_at_once_and_the_next_a_pause_after_its_end() -> None:
    searches = Searches(7)
    assert not searches.is_due(6, is_needed=True)
    assert searches.is_due(7, is_needed=True)
    searches.begin(is_needed=True)
    assert not searches.is_due(US_PER_S * 100, is_needed=True), "one at a time"
    searches.on_ended(100)
    assert not searches.is_due(100 + NEEDED_PAUSE_US - 1, is_needed=True)
    assert searches.is_due(100 + NEEDED_PAUSE_US, is_needed=True)
    assert searches.times_us == (100 + NEEDED_PAUSE_US, 100 + FEW_PAUSE_US)


def test_searches_are_in_vain_until_a_block_comes_and_only_those_that_were_needed() -> None:
    searches = Searches(0)
    for is_needed in (True, False, True):
        searches.begin(is_needed=is_needed)
        searches.on_ended(0)
    assert searches.in_vain == 2
    searches.on_block()
    assert searches.in_vain == 0


def test_the_pause_before_a_search_that_is_needed_doubles_up_to_the_longest_until_a_block_comes() -> None:
    searches = Searches(0)
    pauses_us = []
    for _ in range(12):
        searches.begin(is_needed=True)
        searches.on_ended(7)
        pauses_us.append(searches.times_us[0] - 7)
    assert pauses_us[:3] == [NEEDED_PAUSE_US, 2 * NEEDED_PAUSE_US, 4 * NEEDED_PAUSE_US]
    assert pauses_us[-2:] == [LONGEST_PAUSE_US, LONGEST_PAUSE_US]
    searches.on_block()
    assert searches.times_us[0] == 7 + NEEDED_PAUSE_US


def test_the_pause_before_a_search_because_of_few_doubles_up_to_the_longest() -> None:
    searches = Searches(0)
    assert searches.times_us[1] == EARLY_US
    pauses_us = []
    for _ in range(9):
        searches.begin(is_needed=False)
        searches.on_ended(0)
        pauses_us.append(searches.times_us[1])
    assert pauses_us[:3] == [FEW_PAUSE_US, 2 * FEW_PAUSE_US, 4 * FEW_PAUSE_US]
    assert pauses_us[-2:] == [LONGEST_PAUSE_US, LONGEST_PAUSE_US]


def test_a_fetch_that_takes_longer_than_a_second_finds_more_providers_than_it_was_told_of() -> None:
    world = world_of(ANNE, BOB, CARL, known=2)
    assert world.run() == Finished()
    assert world.log.searches == 1
    assert world.log.asks[CARL]


def test_a_short_fetch_searches_for_nobody() -> None:
    world = world_of(ANNE, chunks=5)
    assert world.run() == Finished()
    assert world.log.searches == 0


def test_a_fetch_that_waits_only_for_its_own_disk_searches_for_nobody() -> None:
    plan = FetchPlan(world_of().plan._walk, now_us=0)
    plan.on_provider(ANNE)
    plan.next(0)
    assert plan.next(60 * US_PER_S)[:-1] == []


def test_when_all_but_one_have_left_others_are_searched_for_though_the_one_has_everything() -> None:
    world = world_of(ANNE, BOB, CARL)
    assert world.run(until=lambda: world.now_us > 7 * US_PER_S) is None
    assert world.log.searches == 1, "the early one"
    world.providers.pop(CARL)  # who lied, say
    world.plan.on_gone(CARL, "left")
    [*actions, _] = world.plan.next(world.now_us)
    assert FindProviders() not in actions, "two are enough"
    world.plan.on_gone(BOB, "left")
    [*actions, _] = world.plan.next(world.now_us)
    assert FindProviders() in actions


def test_who_waits_for_a_place_is_not_searched_for() -> None:
    world = world_of(ANNE)
    assert world.run(until=lambda: world.now_us > 5 * US_PER_S) is None
    before = world.log.searches
    world.plan._limits = FetchLimits(max_providers=1)
    world.plan.on_provider(BOB)
    assert FindProviders() not in world.plan.next(20 * US_PER_S)
    world.plan.on_gone(BOB, "left")
    assert FindProviders() in world.plan.next(20 * US_PER_S)
    assert before == 1


def test_what_one_provider_brings_soon_is_left_to_it() -> None:
    world = world_of(ANNE, BOB, chunks=300)
    size_bytes = 300 * CHUNK_BYTES
    soon_bytes = 3 * CHUNK_BYTES * US_PER_S // BLOCK_US
    assert world.run(until=lambda: world.plan.progress.settled_bytes > size_bytes - soon_bytes) is None
    world.plan.on_gone(BOB, "left")
    del world.providers[BOB]
    assert world.run() == Finished()
    assert world.log.searches == 1, "the early one"


@pytest.mark.parametrize("chunks", [600, 2400])
def test_a_blob_that_only_one_provider_has_is_searched_for_less_and_less_often(chunks: int) -> None:
    world = world_of(ANNE, chunks=chunks)
    began_us: list[int] = []
    plan_next = world.plan.next

    def noted(now_us: int) -> list[object]:
        actions = plan_next(now_us)
        began_us.extend(now_us for action in actions if isinstance(action, FindProviders))
        return list(actions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.plan, "next", noted)
        assert world.run() == Finished()
    pauses_us = [after_us - before_us for before_us, after_us in pairwise(began_us)]
    assert began_us[0] == EARLY_US
    assert len(pauses_us) == (3 if chunks == 600 else 5)  # of 60 s, and of 240 s
    for doublings, pause_us in enumerate(pauses_us):
        assert 0 <= pause_us - FEW_PAUSE_US * 2**doublings < US_PER_S + BLOCK_US  # what a search takes, here


def test_searches_because_of_few_do_not_make_a_fetch_fail_sooner() -> None:
    world = world_of(ANNE)
    assert world.run(until=lambda: world.now_us > 40 * US_PER_S or len(world.store) > 150) is None
    assert world.log.searches == 2
    before = world.log.searches
    world.plan.on_gone(ANNE, "left")
    world.providers.clear()
    end = world.run()
    assert isinstance(end, Failed)
    needed = FetchLimits().max_searches_midway
    assert f"in {needed} searches" in end.reason
    assert world.log.searches == before + needed


def test_when_nobody_ever_had_the_blob_that_is_soon_said() -> None:
    world = world_of()
    assert isinstance(world.run(), Failed)
    assert world.now_us < 10 * US_PER_S


@pytest.mark.parametrize("away_s", [3, 25])
def test_a_provider_that_is_away_for_a_moment_ends_no_fetch_to_which_it_has_brought_a_block(away_s: int) -> None:
    world = world_of(ANNE, chunks=20)
    assert world.run(until=lambda: len(world.store) > 5) is None
    world.plan.on_gone(ANNE, "its connection was lost")
    world.providers.clear()
    world.after(away_s * US_PER_S, lambda: world.providers.update({ANNE: HONEST}))
    assert world.run() == Finished()


def test_a_provider_that_is_away_for_a_moment_again_and_again_ends_no_fetch_either() -> None:
    world = world_of(ANNE, chunks=20)
    for brought in (5, 10, 15):
        assert world.run(until=lambda: len(world.store) > brought) is None  # noqa: B023 - it is done at once
        world.plan.on_gone(ANNE, "its connection was lost")
        world.providers.clear()
        world.after(25 * US_PER_S, lambda: world.providers.update({ANNE: HONEST}))
    assert world.run() == Finished()


def test_whoever_is_found_by_the_last_search_is_of_use() -> None:
    world = world_of()
    limits = FetchLimits()
    assert world.run(until=lambda: world.log.searches == limits.max_searches) is None
    world.providers[ANNE] = HONEST
    assert world.run() == Finished()
