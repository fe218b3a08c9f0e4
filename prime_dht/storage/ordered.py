"""A dictionary that can be walked in the order of its keys, from any of them on.

The order is kept beside it by bisection, which costs a new key one move of an array of pointers.

>>> ports = Ordered[int, str]()
>>> for port, name in ((443, "https"), (22, "ssh"), (80, "http")):
...     ports.put(port, name)
>>> list(ports.behind(22)), ports.count(22, 443), ports.ends(range(30, 500))
([80, 443], 2, (80, 443))
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from itertools import islice
from typing import Generic, TypeVar

K = TypeVar("K", bound="bytes | int | tuple[bytes, bytes] | tuple[bytes, bytes, bytes] | tuple[int, bytes]")
V = TypeVar("V")


class Ordered(Generic[K, V]):
    """See the module. ``values`` is the dictionary, to be read only."""

    __slots__ = ("_order", "values")

    def __init__(self) -> None:
        self.values: dict[K, V] = {}
        self._order: list[K] = []

    def put(self, key: K, value: V) -> None:
        if key not in self.values:
            insort(self._order, key)
        self.values[key] = value

    def remove(self, key: K) -> None:
        del self.values[key]
        del self._order[bisect_left(self._order, key)]

    def behind(self, key: K | None) -> Iterator[K]:
        """The keys greater than ``key``, or all of them, in order."""
        return islice(self._order, 0 if key is None else bisect_right(self._order, key), None)

    def count(self, start: K, stop: K) -> int:
        """How many keys there are in [start, stop)."""
        return bisect_left(self._order, stop) - bisect_left(self._order, start)

    def ends(self: Ordered[int, V], keys: range) -> tuple[int, int] | None:
        """The least and the greatest key in [start, stop), if there is any; of keys that are numbers."""
        first, end = bisect_left(self._order, keys.start), bisect_left(self._order, keys.stop)
        return (self._order[first], self._order[end - 1]) if first < end else None
