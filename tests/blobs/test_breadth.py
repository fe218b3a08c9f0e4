"""How many providers are in use, as the rate of all and of fewer says; in virtual time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from prime_dht.blobs.breadth import FAST_BYTES_PER_S, FIRST_WAIT_US, MAX_LAG_US, TRUSTED_US, WAIT_FACTOR, Breadth
from prime_dht.blobs.cid import Cid
from prime_dht.blobs.provider import MIN_COUNTED_BYTES, Provider
from prime_dht.ids import US_PER_S, PeerId

TICK_US = 5_000
MB = 1_000_000
READER = 400 * MB


class Fetch:
    """A fetch from some providers, of which the first is the fastest. ``rate`` tells what any number of them bring."""

    def __init__(self, providers: int, rate: Callable[[int], float]) -> None:
        self.now_us = 0
        self.breadth = Breadth(0)
        self.providers = {PeerId(bytes([index])): Provider(PeerId(bytes([index]))) for index in range(providers)}
        for index, provider in enumerate(self.providers.values()):
            provider.ask(Cid.of_raw(b""), MB, now_us=0)
            provider.hear(100_000 * (index + 1), MB)
            provider.take_back(Cid.of_raw(b""))
        self.rate = rate
        self.came_bytes = 0

    @property
    def in_use(self) -> list[int]:
        return [provider.peer[0] for provider in self.breadth.in_use(self.providers)]

    def tick(self) -> None:
        self.now_us += TICK_US
        block_bytes = int(self.rate(len(self.in_use)) * TICK_US / US_PER_S)
        if block_bytes:
            self.breadth.hear(block_bytes)
            self.came_bytes += block_bytes
        self.breadth.step(self.providers, self.now_us)

    def run(self, duration_us: int) -> list[list[int]]:
        """Which were in use, each time that it changed."""
        seen = [self.in_use]
        for _ in range(duration_us // TICK_US):
            self.tick()
            if self.in_use != seen[-1]:
                seen.append(self.in_use)
        return seen


def limited_by_reader(_: int) -> float:
    return READER


def each(rate: int) -> Callable[[int], float]:
    return lambda in_use: in_use * rate


def narrow_fetch() -> Fetch:
    """One that has just found out that one of three is enough."""
    fetch = Fetch(3, limited_by_reader)
    assert fetch.run(FIRST_WAIT_US) == [[0, 1, 2], [0]]
    return fetch


def test_a_reader_that_is_the_limit_asks_half_as_many_each_time_until_the_fastest_is_left() -> None:
    fetch = Fetch(9, limited_by_reader)
    assert fetch.run(4 * FIRST_WAIT_US) == [list(range(9)), [0, 1, 2, 3], [0, 1], [0]]
    assert fetch.run(TRUSTED_US // 2) == [[0]]


def test_half_of_the_providers_are_kept_where_a_quarter_is_not_enough() -> None:
    fetch = Fetch(8, lambda in_use: min(in_use * READER / 4, READER))
    assert fetch.run(4 * FIRST_WAIT_US) == [list(range(8)), [0, 1, 2, 3], [0, 1], [0, 1, 2, 3]]


def test_providers_that_are_all_needed_stay_in_use_but_for_a_hundredth_of_the_time() -> None:
    for providers in (2, 3, 8):
        fetch = Fetch(providers, each(100 * MB))
        fetch.run(60 * US_PER_S)
        assert fetch.came_bytes > 0.99 * 60 * providers * 100 * MB


def test_a_step_that_is_taken_back_costs_little_and_is_not_repeated_soon() -> None:
    fetch = Fetch(3, each(100 * MB))
    [_, narrow, wide] = fetch.run(FIRST_WAIT_US * WAIT_FACTOR)
    assert (narrow, wide) == ([0], [0, 1, 2])
    assert fetch.came_bytes > 300 * MB * (fetch.now_us - 0.08 * US_PER_S) / US_PER_S


def test_slow_links_are_all_used_all_the_time() -> None:
    for rate in (10 * MB, FAST_BYTES_PER_S // 3 - MB):
        assert Fetch(3, each(rate)).run(20 * US_PER_S) == [[0, 1, 2]]


def test_nothing_is_tried_while_the_rate_is_still_growing() -> None:
    fetch = Fetch(2, lambda in_use: in_use * 50 * MB * 2 ** (fetch.now_us / US_PER_S * 2))
    assert fetch.run(3 * US_PER_S) == [[0, 1]]


def test_fewer_are_enough_if_they_reach_nearly_the_rate_of_all() -> None:
    assert Fetch(2, lambda in_use: READER if in_use > 1 else 0.96 * READER).run(4 * US_PER_S) == [[0, 1], [0]]
    assert Fetch(2, lambda in_use: READER if in_use > 1 else 0.9 * READER).run(2 * US_PER_S) == [[0, 1], [0], [0, 1]]


@pytest.mark.parametrize(("pause_us", "in_use"), [(40_000, [0]), (70_000, [0, 1, 2])])
def test_a_short_pause_says_nothing_and_a_longer_one_brings_back_the_others(pause_us: int, in_use: list[int]) -> None:
    fetch = narrow_fetch()
    fetch.run(US_PER_S)
    fetch.rate = lambda _: 0
    fetch.run(pause_us)
    assert fetch.in_use == in_use


def test_pauses_do_not_add_up_where_the_fetch_catches_up() -> None:
    fetch = narrow_fetch()
    for _ in range(10):
        fetch.rate = lambda _: 0
        fetch.run(40_000)
        fetch.rate = lambda _: 1.5 * READER
        fetch.run(100_000)
    assert fetch.in_use == [0]


def test_what_comes_in_a_burst_is_no_credit_for_a_pause() -> None:
    fetch = narrow_fetch()
    fetch.rate = lambda _: 10 * READER
    fetch.run(US_PER_S)
    fetch.rate = lambda _: 0
    fetch.run(70_000)
    assert fetch.in_use == [0, 1, 2]


def test_it_says_when_to_look_again_at_who_fell_silent() -> None:
    fetch = Fetch(3, limited_by_reader)
    fetch.tick()
    assert fetch.breadth.lags_at_us == 0
    fetch = narrow_fetch()
    lags_at_us = fetch.breadth.lags_at_us
    assert MAX_LAG_US < lags_at_us - fetch.now_us < 1.1 * MAX_LAG_US
    fetch.breadth.step(fetch.providers, lags_at_us - 2)
    assert fetch.in_use == [0]
    fetch.breadth.step(fetch.providers, lags_at_us)
    assert fetch.in_use == [0, 1, 2]


def test_a_provider_that_becomes_slow_much_later_gets_help() -> None:
    fetch = narrow_fetch()
    fetch.run(4 * US_PER_S)
    fetch.rate = lambda in_use: READER if in_use > 1 else READER / 10
    fetch.run(100_000)
    assert fetch.in_use == [0, 1, 2]


def test_all_are_in_use_at_once_when_the_one_in_use_is_gone_or_rests() -> None:
    fetch = narrow_fetch()
    fetch.providers[PeerId(b"\0")].rest(fetch.now_us + TICK_US + 1)
    fetch.tick()
    assert fetch.in_use == [0, 1, 2]
    fetch = narrow_fetch()
    del fetch.providers[PeerId(b"\0")]
    fetch.tick()
    assert fetch.in_use == [1, 2]


def test_so_they_are_when_it_is_held_up() -> None:
    fetch = narrow_fetch()
    fetch.providers[PeerId(b"\0")].is_held_up = True
    fetch.tick()
    assert len(fetch.in_use) == len(fetch.providers)


def test_one_that_is_not_in_use_may_go() -> None:
    fetch = narrow_fetch()
    del fetch.providers[PeerId(b"\1")]
    fetch.tick()
    assert fetch.in_use == [0]


def test_all_are_in_use_when_told_so_and_measured_before_the_next_step() -> None:
    fetch = narrow_fetch()
    assert fetch.breadth.use_all(fetch.now_us)
    assert fetch.in_use == [0, 1, 2]
    assert not fetch.breadth.use_all(fetch.now_us)
    assert fetch.run(FIRST_WAIT_US - TICK_US) == [[0, 1, 2]]
    assert fetch.run(TICK_US) == [[0, 1, 2], [0]]


def test_of_the_rate_of_all_only_what_came_since_they_are_in_use_again_counts() -> None:
    fetch = narrow_fetch()
    fetch.breadth.hear(10 * READER)
    fetch.breadth.use_all(fetch.now_us)
    for elapsed_us, in_use in ((300_000, [0, 1, 2]), (200_000, [0, 1, 2]), (50_000, [0])):  # two periods need 550 ms
        fetch.now_us += elapsed_us
        fetch.breadth.hear(READER * elapsed_us // US_PER_S)
        fetch.breadth.step(fetch.providers, fetch.now_us)
        assert fetch.in_use == in_use
    assert fetch.run(US_PER_S) == [[0]]


def test_after_a_while_all_are_measured_anew() -> None:
    fetch = narrow_fetch()
    fetch.run(TRUSTED_US - TICK_US)
    assert fetch.in_use == [0]
    fetch.rate = each(READER)  # whatever limited the reader is over
    fetch.tick()
    assert fetch.in_use == [0, 1, 2]
    fetch.run(FIRST_WAIT_US + 100_000)
    assert fetch.in_use == [0, 1, 2]


def test_who_was_right_for_a_while_waits_less_for_the_next_step() -> None:
    fetch = Fetch(2, each(100 * MB))
    fetch.run(US_PER_S)
    assert fetch.in_use == [0, 1]
    fetch.rate = limited_by_reader
    fetch.run(WAIT_FACTOR * FIRST_WAIT_US)
    assert fetch.in_use == [0]
    fetch.run(TRUSTED_US)
    assert fetch.in_use == [0, 1]
    fetch.run(FIRST_WAIT_US)
    assert fetch.in_use == [0]


def test_a_block_counts_as_one_of_a_least_size() -> None:
    fetch = Fetch(2, lambda _: 1)
    for _ in range(2 * FIRST_WAIT_US // TICK_US):
        for _ in range(FAST_BYTES_PER_S * TICK_US // US_PER_S // MIN_COUNTED_BYTES + 1):
            fetch.breadth.hear(1)
        fetch.tick()
    assert fetch.in_use == [0]


def test_one_provider_is_always_in_use() -> None:
    assert Fetch(1, limited_by_reader).run(20 * US_PER_S) == [[0]]
    assert Fetch(0, limited_by_reader).run(20 * US_PER_S) == [[]]
