"""The layout of time, and how it moves on. Numbers in names are those of the reference's scenarios."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.errors import LocalProtocolError, ValidationError
from prime_dht.partition.parameters import PARAMETERS, PartitionParameters
from prime_dht.partition.slices import (
    END_OF_TIME_US,
    Append,
    Layout,
    Merge,
    Promote,
    Step,
    layout_at,
    move,
    steps_between,
)

U = PARAMETERS.unit_us
S = 1_000_000
FULL = 512 * U
NOW = 1_800_000_001 * S
AD_2100 = 4_102_444_800 * S
TINY = PartitionParameters(unit_us=10, factor=3)


def by_the_rule(now_us: int, *, unit_us: int = U, factor: int = 9) -> list[range]:
    """The slices as the reference's rule says them, by durations: the disc as one slice, and the rings.

    The rule is for units of whole seconds.
    """
    full_us = 2**factor * unit_us
    recent_us = now_us - (2**factor - 1) * unit_us
    full_count = recent_us // S // (full_us // S) if recent_us > 0 else 0
    end_us = full_count * full_us
    slices = [range(end_us)]
    for power in range(factor - 1, -1, -1):
        size_us, residual_us = 2**power * unit_us, (2 ** (power + 1) - 1) * unit_us
        rest_us = now_us - end_us
        count = 2 if rest_us > residual_us + size_us else 1 if rest_us > size_us else 0
        for _ in range(count):
            slices.append(range(end_us, end_us + size_us))
            end_us += size_us
    return slices


def slices_of(layout: Layout) -> list[range]:
    """The same of a layout."""
    return [
        range(layout.disc_end * layout.parameters.unit_us),
        *(layout.slice_us(start) for start in layout.ring_starts),
    ]


def around_ticks(ticks: range) -> Iterator[int]:
    return (tick * U + offset for tick in ticks for offset in (-1, 0, 1))


def test_the_layout_is_that_of_the_rule_around_each_of_4096_ticks_from_the_epoch_on() -> None:
    for now_us in around_ticks(range(4096)):
        assert slices_of(layout_at(now_us, PARAMETERS)) == by_the_rule(now_us), now_us


def test_the_layout_is_that_of_the_rule_at_1000_instants_from_1970_to_2100() -> None:
    rng = Random(1970)
    for now_us in (rng.randrange(AD_2100) for _ in range(1000)):
        assert slices_of(layout_at(now_us, PARAMETERS)) == by_the_rule(now_us), now_us


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.integers(0, 2**63 - 1) | st.integers(0, 2**20).map(lambda tick: tick * 7 * S),
    st.sampled_from([-1, 0, 1]),
    st.sampled_from([1, 7, 900, 86_400]),
    st.integers(1, 53),
)
def test_the_layout_is_that_of_the_rule_for_any_unit_and_factor(
    near_us: int, offset_us: int, unit_s: int, factor: int
) -> None:
    now_us, unit_us = near_us + offset_us, unit_s * S
    layout = layout_at(now_us, PartitionParameters(unit_us=unit_us, factor=factor))
    assert slices_of(layout) == by_the_rule(now_us, unit_us=unit_us, factor=factor)


def test_3_at_the_epoch_and_before_there_are_no_slices() -> None:
    for now_us in (-5 * FULL, -1, 0, 1, U):
        layout = layout_at(now_us, PARAMETERS)
        assert (layout.full_count, layout.ring_sizes, layout.next_update_us) == (0, (), U)


def test_4_a_second_after_the_first_unit_there_is_one_slice_of_one_unit() -> None:
    layout = layout_at(U + S, PARAMETERS)
    assert (layout.full_count, layout.ring_sizes) == (0, (1,))
    assert layout.next_update_us == 2 * U


@pytest.mark.parametrize(
    ("recent_units", "sizes"),
    [
        (511, [256, 128, 64, 32, 16, 8, 4, 2, 1]),
        (511 + 256, [256, 256, 128, 64, 32, 16, 8, 4, 2, 1]),
        (2 * 511, [size for size in (256, 128, 64, 32, 16, 8, 4, 2, 1) for _ in range(2)]),
    ],
    ids=["all single", "one double", "all double"],
)
def test_5_there_are_one_or_two_slices_of_each_size(recent_units: int, sizes: list[int]) -> None:
    layout = layout_at(7 * FULL + recent_units * U + 1, PARAMETERS)
    assert (layout.full_count, list(layout.ring_sizes)) == (7, sizes)


def test_7_full_slices_are_counted_by_the_time_alone() -> None:
    assert layout_at(2 * FULL + 511 * U - 1, PARAMETERS).full_count == 1
    assert layout_at(2 * FULL + 511 * U, PARAMETERS).full_count == 2


def test_8_before_the_next_update_the_layout_stays_as_it_is() -> None:
    rng = Random(8)
    for now_us in (rng.randrange(AD_2100) for _ in range(100)):
        layout = layout_at(now_us, PARAMETERS)
        assert layout.since_us <= now_us <= layout.next_update_us
        for later_us in (now_us, layout.next_update_us - 1):
            assert layout_at(later_us, PARAMETERS) == layout
        assert layout_at(layout.next_update_us + 1, PARAMETERS) != layout


def test_9_a_unit_later_a_slice_is_appended() -> None:
    before = layout_at(NOW, PARAMETERS)
    after = layout_at(NOW + U, PARAMETERS)
    assert all_steps(before, after)[-1] == Append(before.tail_start)
    assert after.tail_start == before.tail_start + 1


def test_10_a_full_slice_is_made_of_the_first_two_partial_ones() -> None:
    before, after = layout_at(2 * FULL + 511 * U - 1, PARAMETERS), layout_at(2 * FULL + 511 * U + 1, PARAMETERS)
    assert before.ring_sizes[:2] == (256, 256)
    assert [step for step in all_steps(before, after) if isinstance(step, Promote)] == [Promote(512, 256)]


def test_10_one_update_may_bring_several_full_slices() -> None:
    steps = all_steps(layout_at(NOW, PARAMETERS), layout_at(NOW + 3 * FULL, PARAMETERS))
    start = layout_at(NOW, PARAMETERS).disc_end
    assert [step.start for step in steps if isinstance(step, Promote)] == [start, start + 512, start + 1024]


@pytest.mark.parametrize("unit", [-512, -1, 3, 511, 513, 512 + 1021 + 2])
def test_13_a_slice_that_there_is_not_is_an_error(unit: int) -> None:
    with pytest.raises(ValidationError, match="no slice"):
        layout_at(FULL + 2 * 511 * U + 1, PARAMETERS).slice_us(unit)


@pytest.mark.parametrize("units", [0, 1, 14, 15, 16, 40])
def test_a_layout_has_slices_at_the_units_at_which_one_begins_and_at_no_other(units: int) -> None:
    layout = layout_at(units * U + 1, PartitionParameters(unit_us=U, factor=3))
    full = range(0, layout.disc_end, 8)
    begins = {*full, *layout.ring_starts, layout.tail_start}
    assert layout.has_slices_at(begins)
    assert layout.has_slices_at([])
    for unit in range(-9, layout.tail_start + 9):
        assert layout.has_slices_at([unit]) is layout.has_slices_at([*begins, unit]) is (unit in begins)


def test_14_slices_are_contiguous_never_grow_and_no_more_than_two_are_equal() -> None:
    for now_us in around_ticks(range(2_000_000, 2_001_500)):
        layout = layout_at(now_us, PARAMETERS)
        rings = slices_of(layout)
        assert all(one.stop == following.start for one, following in pairwise(rings))
        assert all(one >= following for one, following in pairwise(layout.ring_sizes))
        assert max(Counter(layout.ring_sizes).values()) <= 2
        assert layout.slice_us(layout.tail_start) == range(rings[-1].stop, END_OF_TIME_US)
        assert 0 < now_us - rings[-1].stop <= U


def test_there_are_9_to_18_rings_and_13_and_a_half_on_average() -> None:
    counts = [len(layout_at(NOW + tick * U, PARAMETERS).ring_sizes) for tick in range(512)]
    assert (min(counts), max(counts)) == (9, 18)
    assert sum(counts) / 512 == pytest.approx(13.5, abs=0.05)


def all_steps(before: Layout, after: Layout) -> list[Step]:
    """The steps if every unit holds something."""
    return steps_between(before, after, range(after.tail_start))


def merged(steps: list[Step], layout: Layout) -> tuple[int, tuple[int, ...]]:
    """What steps make of a layout: the count of full slices, and the sizes of the rings."""
    full_count = layout.full_count
    rings = list(zip(layout.ring_starts, layout.ring_sizes, strict=True))
    for step in steps:
        match step:
            case Append(unit=unit):
                rings.append((unit, 1))
            case Merge(start=start, size=size):
                at = rings.index((start, size))
                assert rings[at + 1] == (start + size, size)
                rings[at : at + 2] = [(start, 2 * size)]
            case Promote(start=start, size=size):
                assert rings[:2] == [(start, size), (start + size, size)]
                del rings[:2]
                full_count += 1
    return full_count, tuple(size for _, size in rings)


def test_each_tick_appends_merges_equals_and_promotes_the_first_two_and_nothing_else() -> None:
    instants = list(around_ticks(range(4096)))
    for before_us, after_us in pairwise(instants):
        before, after = layout_at(before_us, PARAMETERS), layout_at(after_us, PARAMETERS)
        assert merged(all_steps(before, after), before) == (after.full_count, after.ring_sizes)


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 2000), st.integers(0, 2000))
def test_steps_lead_from_any_layout_to_any_later_one(now_us: int, later_us: int) -> None:
    before, after = layout_at(now_us, TINY), layout_at(now_us + later_us, TINY)
    assert merged(all_steps(before, after), before) == (after.full_count, after.ring_sizes)


def test_the_same_layout_takes_no_steps() -> None:
    assert all_steps(layout_at(NOW, PARAMETERS), layout_at(NOW + 1, PARAMETERS)) == []


def test_a_layout_does_not_move_backwards_nor_to_other_parameters() -> None:
    for later in (layout_at(NOW - U, PARAMETERS), layout_at(NOW, TINY)):
        with pytest.raises(LocalProtocolError):
            steps_between(layout_at(NOW, PARAMETERS), later, [])


@settings(derandomize=True, deadline=None)
@given(st.sets(st.integers(0, 399)), st.integers(0, 2000), st.integers(0, 2000))
def test_moving_what_is_kept_gives_what_would_be_kept_at_the_later_layout(
    units: set[int], now_us: int, later_us: int
) -> None:
    before, after = layout_at(now_us, TINY), layout_at(now_us + later_us, TINY)

    def kept_at(layout: Layout) -> dict[int, int]:
        """How many of the units lie in each slice."""
        slices = [range(start, start + 8) for start in range(0, layout.disc_end, 8)]
        slices += [
            range(start, start + size) for start, size in zip(layout.ring_starts, layout.ring_sizes, strict=True)
        ]
        slices += [range(unit, unit + 1) for unit in range(layout.tail_start, 400)]
        return {one.start: len(units & set(one)) for one in slices if units & set(one)}

    kept = kept_at(before)
    promoted = move(steps_between(before, after, kept), kept)
    assert kept == kept_at(after)
    assert sum(promoted) == len([unit for unit in units if before.disc_end <= unit < after.disc_end])


def test_a_clock_that_stood_at_1970_takes_no_more_steps_than_there_is_to_move() -> None:
    first, now = layout_at(0, PARAMETERS), layout_at(NOW, PARAMETERS)
    assert steps_between(first, now, []) == []
    kept = {0: 1, 3: 10, 2_000_000: 100}
    steps = steps_between(first, now, kept)
    assert len(steps) < 3 * (9 + 1)
    assert move(steps, kept) == [11]
    assert kept == {0: 11, 2_000_000: 100}


def test_the_layout_time_is_the_first_instant_of_a_layout() -> None:
    for now_us in around_ticks(range(1, 2000)):
        since_us = layout_at(now_us, PARAMETERS).since_us
        assert layout_at(since_us, PARAMETERS) == layout_at(now_us, PARAMETERS)
        assert since_us == 0 or layout_at(since_us - 1, PARAMETERS) != layout_at(now_us, PARAMETERS)


@settings(derandomize=True, deadline=None)
@given(st.integers(0, AD_2100))
def test_what_was_encoded_is_decoded(now_us: int) -> None:
    layout = layout_at(now_us, PARAMETERS)
    assert Layout.decode(layout.encode(), PARAMETERS) == layout


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        bytes(7),
        bytes(9),
        (NOW + 2).to_bytes(8, "big"),
        (1).to_bytes(8, "big"),
        layout_at(END_OF_TIME_US + NOW, PARAMETERS).encode(),
    ],
    ids=["nothing", "short", "long", "within a unit", "within the first unit", "after the end of time"],
)
def test_bytes_that_are_no_layout_time_are_refused(raw: bytes) -> None:
    with pytest.raises(ValidationError):
        Layout.decode(raw, PARAMETERS)
