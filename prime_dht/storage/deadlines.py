"""What falls due when, earliest first, for stores whose things come, move and go before their time.

A *thing* falls due at the time its owner says when asked. The owner tells when a thing is new or has moved, never when
one is gone: an item that its owner no longer confirms is skipped when it surfaces, and all such are swept out before
they outnumber the owner's things. So a thing that is rewritten for ever costs no more memory than one that is not, and
where none is rewritten nothing is swept.

>>> due_at = {"a": 10, "b": 20}
>>> deadlines = Deadlines(due_at.get, due_at.__len__)
>>> for thing, at_us in due_at.items():
...     deadlines.add(at_us, thing)
>>> due_at["a"] = 30
>>> deadlines.add(30, "a")
>>> [due_at.pop(thing) for thing in deadlines.due(before_us=31, limit=10)]
[20, 30]
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

SWEEP_FROM = 64


class Deadlines(Generic[T]):
    """See the module.

    Args:
        due_at: the owner says when a thing falls due, or ``None`` if it does not.
        count: and how many things it has, whether they fall due or not.
    """

    def __init__(self, due_at: Callable[[T], int | None], count: Callable[[], int]) -> None:
        self._due_at = due_at
        self._count = count
        self._heap: list[tuple[int, T]] = []
        self._sweep_at = SWEEP_FROM

    def __len__(self) -> int:
        """The number of items, some of the past: at most twice the most things there ever were, or ``SWEEP_FROM``."""
        return len(self._heap)

    def add(self, at_us: int, thing: T) -> None:
        """Take note that ``thing`` falls due at ``at_us``, as the owner will say before the next thing is added."""
        if len(self._heap) >= self._sweep_at:
            self._sweep_at = max(SWEEP_FROM, 2 * self._count())
            if len(self._heap) >= self._sweep_at:
                self._heap = list({item for item in self._heap if self._due_at(item[1]) == item[0]})
                heapq.heapify(self._heap)
        heapq.heappush(self._heap, (at_us, thing))

    def due(self, before_us: int, limit: int) -> Iterator[T]:
        """Take at most ``limit`` things due before ``before_us``; each must be dealt with before the next is taken."""
        while limit > 0 and self._heap and self._heap[0][0] < before_us:
            at_us, thing = heapq.heappop(self._heap)
            if self._due_at(thing) == at_us:
                limit -= 1
                yield thing
