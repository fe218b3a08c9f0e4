"""How far a transfer is, as a person sees it; and that nobody else does."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, redirect_stderr, suppress

import pytest
import trio
from trio.testing import MockClock

from prime_dht.cli.progress import DRAWN_EVERY_S, ProgressLine, progress_lines

MB = 1_000_000


OpenTerminal = Callable[[], AbstractContextManager[Callable[[], list[str]]]]


async def transfer(*, is_silent: bool = False) -> None:
    """Ten megabytes in four seconds, in two parts."""
    async with progress_lines(is_silent=is_silent) as moved:
        moved("fetching", 0, 10 * MB)
        await trio.sleep(2)
        moved("fetching", 4 * MB, 10 * MB)
        await trio.sleep(2)
        moved("fetching", 10 * MB, 10 * MB)


async def test_a_terminal_sees_one_line_that_is_drawn_again_in_its_place(
    open_terminal: OpenTerminal, autojump_clock: MockClock
) -> None:
    with open_terminal() as shown:
        await transfer()
        drawn = shown()
    assert len(drawn) == round(4 / DRAWN_EVERY_S)
    assert all(drawing.endswith("\x1b[K") for drawing in drawn[:-1]), "what is left of a longer one goes"
    assert drawn[0].startswith("fetching  [----------]  0%  0 B of 10.0 MB  0 B/s")
    assert drawn[-2].startswith("fetching  [####------]  40%  4.0 MB of 10.0 MB")
    assert drawn[-1] == "fetching  100%  10.0 MB of 10.0 MB  10.0 MB in 4 s, 2.5 MB/s\x1b[K\n"


async def test_what_comes_next_has_a_line_of_its_own(open_terminal: OpenTerminal, autojump_clock: MockClock) -> None:
    with open_terminal() as shown:
        async with progress_lines(is_silent=False) as moved:
            moved("storing", MB, MB)
            await trio.sleep(1)
            moved("spreading", 0, MB)
        assert [drawing for drawing in shown() if drawing.endswith("\n")] == [
            "storing  100%  1.0 MB of 1.0 MB  0 B in 1 s, 0 B/s\x1b[K\n",
            "spreading  0%  0 B of 1.0 MB  0 B in 0 s, 0 B/s\x1b[K\n",
        ]


async def test_a_line_is_no_wider_than_the_terminal(open_terminal: OpenTerminal, autojump_clock: MockClock) -> None:
    with open_terminal() as shown:
        async with progress_lines(is_silent=False) as moved:
            moved("fetching " * 10, 0, MB)
            await trio.sleep(1)
        assert {len(drawing.removesuffix("\n").removesuffix("\x1b[K")) for drawing in shown()} == {69}


async def fail_on_the_way() -> None:
    async with progress_lines(is_silent=False) as moved:
        moved("fetching", 3 * MB, None)
        await trio.sleep(1)
        raise OSError("disk")


async def test_what_fails_leaves_a_line_that_says_how_far_it_came(
    open_terminal: OpenTerminal, autojump_clock: MockClock
) -> None:
    with open_terminal() as shown:
        with pytest.raises(OSError, match="disk"):
            await fail_on_the_way()
        assert shown()[-1] == "fetching  3.0 MB  0 B in 1 s, 0 B/s\x1b[K\n"


async def test_where_nothing_moved_nothing_is_shown(open_terminal: OpenTerminal, autojump_clock: MockClock) -> None:
    with open_terminal() as shown:
        async with progress_lines(is_silent=False):
            await trio.sleep(1)
        assert shown() == []


async def test_a_transfer_goes_on_when_its_terminal_is_gone(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = os.openpty()
    stderr = os.fdopen(theirs, "w")
    with redirect_stderr(stderr):
        async with progress_lines(is_silent=False) as moved:
            moved("fetching", 0, MB)
            await trio.sleep(1)
            os.close(ours)
            await trio.sleep(1)
            moved("fetching", MB, MB)
    with suppress(OSError):  # it still has what it could not write
        stderr.close()


async def test_who_wants_it_silent_sees_nothing(open_terminal: OpenTerminal, autojump_clock: MockClock) -> None:
    with open_terminal() as shown:
        await transfer(is_silent=True)
        assert shown() == []


async def test_a_terminal_that_cannot_write_over_a_line_gets_nothing(
    open_terminal: OpenTerminal, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with open_terminal() as shown:
        await transfer()
        assert shown() == []


async def test_a_file_gets_nothing(autojump_clock: MockClock) -> None:
    with redirect_stderr(io.StringIO()) as stderr:
        await transfer()
    assert stderr.getvalue() == ""


def test_what_was_there_before_is_done_but_was_not_fast() -> None:
    line = ProgressLine("fetching", now_s=100)
    line.moved(900 * MB, 1000 * MB)
    line.moved(910 * MB, 1000 * MB)
    assert line.text(101) == "fetching  [#########-]  91%  910.0 MB of 1.0 GB  10.0 MB/s  9 s left"


def test_of_nothing_all_is_done() -> None:
    line = ProgressLine("fetching", now_s=0)
    line.moved(0, 0)
    assert line.text(1) == "fetching  [##########]  100%  0 B of 0 B  0 B/s"
