"""The authoring rule: created_at and retain_until along one slot."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.entries.lifetime import SHORT_LIVED_US
from prime_dht.entries.slot import EntryTimes, brought_back, next_entry_times, tombstone_times
from prime_dht.errors import ValidationError
from prime_dht.ids import TimestampUs

MAX_TTL_US = 1_000


def times(created: int, expires: int, retain: int) -> EntryTimes:
    return EntryTimes(
        created_at_us=TimestampUs(created), expires_at_us=TimestampUs(expires), retain_until_us=TimestampUs(retain)
    )


def test_the_first_entry_is_created_now_and_retained_until_it_expires() -> None:
    assert next_entry_times(100, None, ttl_us=50, max_ttl_us=MAX_TTL_US) == times(100, 150, 150)
    assert next_entry_times(100, None, expires_at_us=150, max_ttl_us=MAX_TTL_US) == times(100, 150, 150)


def test_an_entry_inherits_the_longer_retention_of_the_one_before() -> None:
    assert next_entry_times(100, times(90, 500, 500), ttl_us=50, max_ttl_us=MAX_TTL_US) == times(100, 150, 500)
    assert next_entry_times(100, times(90, 120, 120), ttl_us=50, max_ttl_us=MAX_TTL_US) == times(100, 150, 150)


def test_a_clock_that_stepped_back_cannot_make_a_put_lose() -> None:
    assert next_entry_times(10, times(90, 95, 95), ttl_us=50, max_ttl_us=MAX_TTL_US) == times(91, 141, 141)
    assert next_entry_times(90, times(90, 95, 95), ttl_us=50, max_ttl_us=MAX_TTL_US) == times(91, 141, 141)


def test_a_ttl_may_be_as_long_as_the_network_allows_and_no_longer() -> None:
    assert next_entry_times(0, None, ttl_us=MAX_TTL_US, max_ttl_us=MAX_TTL_US) == times(0, MAX_TTL_US, MAX_TTL_US)
    with pytest.raises(ValidationError, match="max_ttl"):
        next_entry_times(0, None, ttl_us=MAX_TTL_US + 1, max_ttl_us=MAX_TTL_US)
    with pytest.raises(ValidationError, match="max_ttl"):
        next_entry_times(7, None, expires_at_us=8 + MAX_TTL_US, max_ttl_us=MAX_TTL_US)


@pytest.mark.parametrize(("ttl_us", "expires_at_us"), [(0, None), (-1, None), (None, 100), (None, 99)])
def test_an_entry_must_expire_later_than_it_is_created(ttl_us: int | None, expires_at_us: int | None) -> None:
    with pytest.raises(ValidationError, match="later than it is created"):
        next_entry_times(100, None, ttl_us=ttl_us, expires_at_us=expires_at_us, max_ttl_us=MAX_TTL_US)


@pytest.mark.parametrize(("ttl_us", "expires_at_us"), [(None, None), (1, 101)])
def test_a_life_is_given_in_one_way(ttl_us: int | None, expires_at_us: int | None) -> None:
    with pytest.raises(ValidationError, match="either a ttl or the time of expiry"):
        next_entry_times(100, None, ttl_us=ttl_us, expires_at_us=expires_at_us, max_ttl_us=MAX_TTL_US)


def test_a_tombstone_lives_as_long_as_what_it_hides() -> None:
    assert tombstone_times(100, times(90, 120, 500), max_ttl_us=MAX_TTL_US) == times(100, 500, 500)


def test_a_tombstone_of_a_writer_that_forgot_hides_whatever_it_could_have_written() -> None:
    assert tombstone_times(100, None, max_ttl_us=MAX_TTL_US) == times(100, 100 + MAX_TTL_US, 100 + MAX_TTL_US)


def test_a_tombstone_over_what_has_retired_is_still_an_entry() -> None:
    assert tombstone_times(600, times(90, 120, 500), max_ttl_us=MAX_TTL_US) == times(600, 601, 601)


DAY_US = 86_400_000_000


def is_retained_as_an_op(written: EntryTimes) -> bool:
    return written.retain_until_us - written.created_at_us >= SHORT_LIVED_US


@pytest.mark.parametrize("left_us", [SHORT_LIVED_US, SHORT_LIVED_US - 1, 1])
def test_what_follows_an_op_that_is_retained_is_an_op_however_short_its_life_is(left_us: int) -> None:
    op = times(0, SHORT_LIVED_US, SHORT_LIVED_US)
    now_us = SHORT_LIVED_US - left_us
    put = next_entry_times(max(1, now_us), op, ttl_us=20, max_ttl_us=DAY_US)
    deleted = tombstone_times(max(1, now_us), op, max_ttl_us=DAY_US)
    assert put.expires_at_us == put.created_at_us + 20
    assert deleted.expires_at_us == deleted.retain_until_us
    for written in (put, deleted):
        assert is_retained_as_an_op(written)
        again = next_entry_times(written.created_at_us, written, ttl_us=20, max_ttl_us=DAY_US)
        assert is_retained_as_an_op(again), "what it follows may still be read where this one was missed"


def test_what_follows_no_op_or_one_that_has_ended_is_short_lived_as_it_says() -> None:
    ended = times(0, SHORT_LIVED_US, SHORT_LIVED_US)
    assert next_entry_times(SHORT_LIVED_US, ended, ttl_us=20, max_ttl_us=DAY_US).retain_until_us == SHORT_LIVED_US + 20
    heartbeat = times(0, SHORT_LIVED_US - 1, SHORT_LIVED_US - 1)
    assert next_entry_times(10, heartbeat, ttl_us=20, max_ttl_us=DAY_US).retain_until_us == SHORT_LIVED_US - 1
    assert tombstone_times(10, heartbeat, max_ttl_us=DAY_US).retain_until_us == SHORT_LIVED_US - 1


def test_a_tombstone_expires_with_its_capability_and_hides_as_long_as_it_must() -> None:
    op = times(0, SHORT_LIVED_US, SHORT_LIVED_US + 50)
    end_us = SHORT_LIVED_US + 10
    assert tombstone_times(100, op, max_ttl_us=DAY_US, expires_by_us=end_us) == times(100, end_us, SHORT_LIVED_US + 100)
    assert tombstone_times(100, None, max_ttl_us=DAY_US, expires_by_us=110) == times(100, 110, 100 + SHORT_LIVED_US)
    assert tombstone_times(100, None, max_ttl_us=DAY_US, expires_by_us=DAY_US) == times(100, DAY_US, DAY_US)


@pytest.mark.parametrize("end_us", [50, 100, 101])
def test_a_tombstone_whose_capability_has_ended_is_still_an_entry(end_us: int) -> None:
    previous = times(0, 40, 500)
    assert tombstone_times(100, previous, max_ttl_us=MAX_TTL_US, expires_by_us=end_us) == times(100, 101, 500)


def test_what_follows_a_write_by_a_clock_that_was_far_ahead_can_begin_anew() -> None:
    far = times(90_000, 90_100, 90_900)
    anew = brought_back(far, 100, clock_skew_us=10, max_ttl_us=MAX_TTL_US)
    written = next_entry_times(100, anew, ttl_us=50, max_ttl_us=MAX_TTL_US)
    assert written == times(100, 150, 1_100), "retained as long as any entry may be, and no longer"
    assert tombstone_times(100, anew, max_ttl_us=MAX_TTL_US) == times(100, 1_100, 1_100)


@pytest.mark.parametrize("created_us", [90, 100, 110])
def test_what_was_written_about_now_is_followed_as_ever(created_us: int) -> None:
    last = times(created_us, 150, 200)
    assert brought_back(last, 100, clock_skew_us=10, max_ttl_us=MAX_TTL_US) == last


writes = st.lists(st.tuples(st.integers(0, 5_000), st.one_of(st.none(), st.integers(1, MAX_TTL_US))), max_size=30)


@given(writes)
@settings(derandomize=True, deadline=None)
def test_along_a_slot_times_never_fall_and_retention_stays_bounded(clock_and_ttl: list[tuple[int, int | None]]) -> None:
    previous: EntryTimes | None = None
    for now_us, ttl_us in clock_and_ttl:
        if ttl_us is None:
            written = tombstone_times(now_us, previous, max_ttl_us=MAX_TTL_US)
        else:
            written = next_entry_times(now_us, previous, ttl_us=ttl_us, max_ttl_us=MAX_TTL_US)
        assert written.created_at_us >= now_us
        assert written.created_at_us < written.expires_at_us <= written.retain_until_us
        assert written.retain_until_us - written.created_at_us <= MAX_TTL_US
        if previous is not None:
            assert written.created_at_us > previous.created_at_us
            assert written.retain_until_us >= previous.retain_until_us
        previous = written
