"""How much each of a few fetches may have under way, out of what all of them together may.

It is rare that more than one runs, and the more is under way the less often one step of a fetch waits for another. So
each gets half of what those before it left, but the least share at least, and with that all of them have room.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Shares:
    """Divides something, such as bytes, among those who come and go.

    Args:
        whole: of which all of them together get no more.
        most: may have a share at a time.
    """

    def __init__(self, whole: int, *, most: int) -> None:
        self._left = whole
        self._least = whole >> (most - 1)

    @contextmanager
    def share(self) -> Iterator[int]:
        """A share, for as long as the block lasts."""
        share = max(self._left // 2, self._least)
        self._left -= share
        try:
            yield share
        finally:
            self._left += share
