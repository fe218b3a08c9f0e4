"""Expiry, ticks and ops."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prime_dht.entries.codec import inline
from prime_dht.entries.entry import Entry, EntryHeader
from prime_dht.entries.lifetime import SHORT_LIVED_US, UNIT_US, as_of, is_op, is_retired, retire_before_us, tick_of
from prime_dht.ids import Key, OpId, PeerId, TimestampUs


def entry(created: int, expires: int, retain: int) -> Entry:
    header = EntryHeader(
        network_id="testnet",
        key=Key(b"/prime/x"),
        created_at_us=TimestampUs(created),
        expires_at_us=TimestampUs(expires),
        retain_until_us=TimestampUs(retain),
        content=inline(b"v"),
    )
    return Entry(header=header, publisher=PeerId(b"p"), op_id=OpId(bytes(32)), envelope=b"", value=b"v")


def test_the_unit_is_a_quarter_of_an_hour() -> None:
    assert UNIT_US == 900_000_000


@pytest.mark.parametrize(("now_us", "tick"), [(0, 0), (9, 0), (10, 1), (19, 1), (20, 2)])
def test_a_tick_is_half_open(now_us: int, tick: int) -> None:
    assert tick_of(now_us, 10) == tick
    assert retire_before_us(now_us, 10) == tick * 10


@pytest.mark.parametrize(
    ("retain", "now_us", "retired"),
    [
        (14, 14, False),
        (14, 19, False),  # past retain_until, but no tick yet
        (14, 20, True),
        (20, 20, False),  # the tick must come after retain_until
        (20, 29, False),
        (20, 30, True),
        (19, 20, True),
    ],
)
def test_an_entry_retires_at_the_first_tick_after_retain_until(retain: int, now_us: int, retired: bool) -> None:
    assert is_retired(entry(1, 2, retain), now_us, 10) is retired


def test_a_value_is_dropped_when_it_expires_and_the_header_stays() -> None:
    it = entry(1, 5, 9)
    assert as_of(it, 4) is it
    assert as_of(it, 5) == replace(it, value=None)


def test_entries_retained_for_less_than_five_minutes_are_no_ops() -> None:
    assert SHORT_LIVED_US == 300_000_000
    assert not is_op(entry(1, 2, SHORT_LIVED_US))
    assert is_op(entry(1, 2, SHORT_LIVED_US + 1))


def test_a_short_value_put_over_a_long_one_is_an_op_since_it_must_hide_the_long_one() -> None:
    assert is_op(entry(1, 2, 86_400_000_000))
