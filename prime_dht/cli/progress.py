"""How far a transfer is: a line on standard error, drawn again and again in its place, for a person at a terminal.

    fetching  [####------]  45%  483.2 MB of 1.1 GB  87.2 MB/s  7 s left

Whoever transfers says what has moved, as often as it likes; a task draws, so that a transfer that stands still is seen
to. When it has ended a line stays that says what it took. Pipes, files, ``--quiet`` and ``--json`` get nothing, nor do
terminals that cannot go back to the beginning of a line (``TERM=dumb``).
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import click

from prime_dht.cli.render import amount, cut, span

DRAWN_EVERY_S = 0.2

RATE_OVER_S = 5.0
"""The rate that is shown is that of so many seconds: long enough to be read, short enough to show a stall."""

BAR_CHARS = 10

Moved = Callable[[str, int, int | None], None]
"""Told what is being done, how many bytes of it are, and of how many, if that is known."""

quiet = click.option("-q", "--quiet", is_flag=True, help="Show no progress, on a terminal either.")


class ProgressLine:
    """What the line says, and when. Times are seconds of one monotonic clock.

    It begins with its first :meth:`moved`. What is done already at that, by a transfer that goes on where another was
    broken off, counts as done, but not for the rate.

    >>> line = ProgressLine("fetching", now_s=0)
    >>> line.moved(500_000_000, 1_000_000_000)
    >>> line.moved(750_000_000, 1_000_000_000)
    >>> line.text(2.5)
    'fetching  [#######---]  75%  750.0 MB of 1.0 GB  100.0 MB/s  2 s left'
    >>> line.text(10)
    'fetching  [#######---]  75%  750.0 MB of 1.0 GB  0 B/s'
    >>> line.moved(1_000_000_000, 1_000_000_000)
    >>> line.last_text(20)
    'fetching  100%  1.0 GB of 1.0 GB  500.0 MB in 20 s, 25.0 MB/s'
    """

    def __init__(self, label: str, *, now_s: float) -> None:
        self.label = label
        self._began_s = now_s
        self._began_with = self._done = 0
        self._total: int | None = None
        self._seen: deque[tuple[float, int]] = deque()

    def moved(self, done_bytes: int, total_bytes: int | None) -> None:
        """So many bytes are done, of so many."""
        if not self._seen:
            self._began_with = done_bytes
            self._seen.append((self._began_s, done_bytes))
        self._done, self._total = done_bytes, total_bytes

    def text(self, now_s: float) -> str:
        """While it goes on."""
        rate = self._rate(now_s)
        parts = [self.label, *self._share(with_bar=True), f"{amount(rate)}/s"]
        if rate and self._total is not None and self._done < self._total:
            parts.append(f"{span((self._total - self._done) / rate)} left")
        return "  ".join(parts)

    def last_text(self, now_s: float) -> str:
        """When it has ended, whether or not all is done."""
        took_s, brought = now_s - self._began_s, self._done - self._began_with
        rate = int(brought / took_s) if took_s else 0
        took = f"{amount(brought)} in {span(took_s)}, {amount(rate)}/s"
        return "  ".join((self.label, *self._share(with_bar=False), took))

    def _share(self, *, with_bar: bool) -> list[str]:
        if self._total is None:
            return [amount(self._done)]
        bar, percent = bar_of(self._done, self._total)
        return [*([bar] if with_bar else []), percent, f"{amount(self._done)} of {amount(self._total)}"]

    def _rate(self, now_s: float) -> int:
        """Bytes per second lately."""
        self._seen.append((now_s, self._done))
        while len(self._seen) > 2 and self._seen[1][0] <= now_s - RATE_OVER_S:
            self._seen.popleft()
        began_s, began_with = self._seen[0]
        return int((self._done - began_with) / (now_s - began_s)) if now_s > began_s else 0


def bar_of(done: int, total: int) -> tuple[str, str]:
    """A share as a picture, and as a number.

    >>> bar_of(3, 8), bar_of(0, 0)
    (('[###-------]', '37%'), ('[##########]', '100%'))
    """
    share = min(done / total, 1.0) if total else 1.0
    filled = int(BAR_CHARS * share)
    return f"[{'#' * filled}{'-' * (BAR_CHARS - filled)}]", f"{int(100 * share)}%"


class _Lines:
    """One line after the other, for what is done one after the other."""

    def __init__(self) -> None:
        self._line: ProgressLine | None = None

    def moved(self, label: str, done_bytes: int, total_bytes: int | None) -> None:
        import trio

        if self._line is None or self._line.label != label:
            self.end()
            self._line = ProgressLine(label, now_s=trio.current_time())
        self._line.moved(done_bytes, total_bytes)

    async def draw(self) -> None:
        import trio

        while True:
            await trio.sleep(DRAWN_EVERY_S)
            if self._line is not None:
                draw(self._line.text(trio.current_time()))

    def end(self) -> None:
        import trio

        if self._line is not None:
            draw(self._line.last_text(trio.current_time()), end="\n")


@asynccontextmanager
async def progress_lines(*, is_silent: bool) -> AsyncIterator[Moved]:
    """What shows progress while the block runs: on standard error if that is a terminal, else nowhere."""
    if is_silent or not can_draw():
        yield lambda _label, _done, _total: None
        return
    from prime_dht.background import background_nursery

    lines = _Lines()
    try:
        async with background_nursery() as nursery:
            nursery.start_soon(lines.draw)
            yield lines.moved
    finally:
        lines.end()


def can_draw() -> bool:
    """Whether standard error is a terminal where one line can take the place of another."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def draw(text: str, end: str = "") -> None:
    """Put the line where the last one is; what is too long for the terminal would not be written over."""
    with suppress(OSError):  # the terminal is gone, and the transfer goes on without
        width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        sys.stderr.write(f"\r{cut(text, max(width - 1, 1))}\x1b[K{end}")
        sys.stderr.flush()
