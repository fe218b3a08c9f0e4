"""What others wrote does nothing to a terminal but be seen."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.cli.ending import complain
from prime_dht.cli.render import milliseconds, moment, preview, span, table, visible

HOSTILE = "\x1b]0;title\x07\x1b[2J\r\n\t\x00\x7f\x9b31m\u202e\u2028\ufeff\ud800"


def test_nothing_of_a_hostile_text_reaches_the_terminal_as_it_is() -> None:
    assert visible(HOSTILE).isprintable()
    assert visible(HOSTILE.encode(errors="surrogatepass")).isprintable()


def test_a_complaint_that_quotes_a_peer_is_one_line_that_prints(capsys: pytest.CaptureFixture[str]) -> None:
    complain(f"no replica took the entry; a peer says: {HOSTILE}")
    line = capsys.readouterr().err
    assert line.endswith("\n")
    assert line[:-1].isprintable()


@settings(derandomize=True, deadline=None)
@given(st.one_of(st.text(), st.binary()))
def test_all_that_is_shown_prints_and_is_shown_the_same_again(given_: str | bytes) -> None:
    shown = visible(given_)
    assert shown.isprintable()
    assert visible(shown) == shown
    shown.encode()  # and can be written


def test_text_in_any_language_stays_as_it_is() -> None:
    assert visible("grüße, 世界 👋".encode()) == "grüße, 世界 👋"


@settings(derandomize=True, deadline=None)
@given(st.binary(max_size=100), st.integers(1, 50))
def test_a_preview_is_no_longer_than_its_bound(value: bytes, most_chars: int) -> None:
    assert len(preview(value, most_chars)) <= most_chars


def test_a_table_has_a_line_for_each_row_whatever_is_in_its_cells() -> None:
    shown = table(("name", "n"), [(HOSTILE, "1"), ("b", "200")], right=("n",)).split("\n")
    assert len(shown) == 3
    assert all(line.isprintable() for line in shown)
    assert {len(line) for line in shown} == {len(shown[0])}


def test_an_empty_table_is_its_heading() -> None:
    assert table(("name", "n"), []) == "name  n"


def test_lengths_of_time_have_at_most_two_units() -> None:
    assert [span(seconds) for seconds in (0, 59.4, 3599, 3601, 86_400, 90_061)] == [
        "0 s",
        "59 s",
        "59 min 59 s",
        "1 h",
        "1 d",
        "1 d 1 h",
    ]


def test_a_time_that_no_calendar_has_is_said_so() -> None:
    assert moment(2**64 - 1) == "after the year 9999"
    assert moment(0).startswith(("1970-01-01", "1969-12-31"))


def test_an_unknown_round_trip_is_a_dash() -> None:
    assert milliseconds(None) == "-"
    assert milliseconds(0.00049) == "0.5"
