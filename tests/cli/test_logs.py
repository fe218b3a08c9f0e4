"""Logs for people are lines; for programs, JSON objects. What a peer has a say in cannot harm a terminal."""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from prime_dht.cli.logs import JsonLine, OneLine, log_to_stderr


def record(message: str, *values: object, fails: bool = False, **fields: object) -> logging.LogRecord:
    exc_info = None
    if fails:
        try:
            raise ValueError("bad\nvalue")
        except ValueError:
            exc_info = sys.exc_info()
    made = logging.LogRecord("prime_dht.x", logging.ERROR, __file__, 1, message, values, exc_info)
    made.created = 1_700_000_000.25
    vars(made).update(fields)
    return made


def test_a_log_record_is_one_line_that_says_what_went_wrong() -> None:
    line = OneLine(traces=False).format(record("failed\nfor %s", "peer", fails=True))
    assert line.endswith("ERROR   failed for peer: ValueError('bad\\nvalue')")
    assert "\n" not in line


def test_only_a_terminal_s_log_does_without_the_day(
    open_terminal: Callable[[], AbstractContextManager[Callable[[], list[str]]]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    time = r"\d\d:\d\d:\d\d WARNING it\s*"
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log_to_stderr(logging.WARNING, verbose=0)
    logging.getLogger("prime_dht.x").warning("it")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d " + time, capsys.readouterr().err)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with open_terminal():
        terminal = sys.stderr
        log_to_stderr(logging.WARNING, verbose=0)
        (handler,) = logging.getLogger().handlers
        assert isinstance(handler, logging.StreamHandler)
        assert handler.stream is terminal
        assert re.fullmatch(time, handler.format(record("it")).replace("ERROR  ", "WARNING"))


def test_a_log_record_has_its_traceback_for_those_who_ask() -> None:
    assert "Traceback" in OneLine(traces=True).format(record("failed", fails=True))


@pytest.mark.parametrize("traces", [False, True])
def test_what_a_peer_said_is_escaped_in_a_line_for_people(traces: bool) -> None:
    assert OneLine(traces=traces).format(record("%s", "\x1b[2J\ngone")).endswith(r"\x1b[2J gone")


def test_what_a_peer_said_is_escaped_in_a_traceback() -> None:
    try:
        raise ValueError("\x1b[2J gone")
    except ValueError:
        failed = record("failed")
        failed.exc_info = sys.exc_info()
    assert OneLine(traces=True).format(failed).endswith("\nValueError: \\x1b[2J gone")


def test_a_log_record_for_programs_is_a_json_object_with_its_fields() -> None:
    line = JsonLine(traces=False).format(record("left:\n%s", "\x1b[2J", peer="12D3Koo", known=3, level="mine"))
    assert "\n" not in line
    assert "\x1b" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250000+00:00",
        "level": "ERROR",
        "logger": "prime_dht.x",
        "message": "left:\n\x1b[2J",
        "peer": "12D3Koo",
        "known": 3,
    }


def test_a_log_record_for_programs_says_what_went_wrong_and_where_if_asked() -> None:
    failed = record("failed", fails=True)
    brief, full = (json.loads(JsonLine(traces=traces).format(failed)) for traces in (False, True))
    assert brief["error"] == "ValueError('bad\\nvalue')"
    assert "traceback" not in brief
    assert full["traceback"].startswith("Traceback")


def test_a_field_that_json_does_not_know_is_text() -> None:
    assert json.loads(JsonLine(traces=False).format(record("x", peer=b"\xff")))["peer"] == "b'\\xff'"


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("as_json", [False, True])
def test_a_warning_is_what_it_says_without_the_code_that_says_so(
    as_json: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log_to_stderr(logging.WARNING, verbose=0, as_json=as_json)
    warnings.warn("it may be lost", UserWarning, stacklevel=1)
    line = capsys.readouterr().err
    if as_json:
        assert json.loads(line)["message"] == "it may be lost"
    else:
        assert line.endswith(" WARNING it may be lost\n")
