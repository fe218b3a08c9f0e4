"""A dictionary that can be walked in the order of its keys, from any of them on.

The keys are kept beside it. New ones are put behind the others, and take their places when the order is asked for: few
by bisection, each of which costs one move of an array of pointers, and many by sorting.

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

FEW = 32
"""So many new keys take their places one by one: of a thousand that are in order and of a million, that is cheaper."""


class Ordered(Generic[K, V]):
    """See the module. ``values`` is the dictionary, to be read only."""

    __slots__ = ("_in_order", "_keys", "values")

    def __init__(self) -> None:
        self.values: dict[K, V] = {}
        self._keys: list[K] = []
        self._in_order = 0  # so many of the keys, the first, are in order

    def put(self, key: K, value: V) -> None:
        if key not in self.values:
            self._keys.append(key)
        self.values[key] = value

    def remove(self, key: K) -> None:
        del self.values[key]
        keys = self._ordered()
        del keys[bisect_left(keys, key)]
        self._in_order = len(keys)

    def behind(self, key: K | None) -> Iterator[K]:
        """The keys greater than ``key``, or all of them, in order."""
        keys = self._ordered()
        return islice(keys, 0 if key is None else bisect_right(keys, key), None)

    def count(self, start: K, stop: K) -> int:
        """How many keys there are in [start, stop)."""
        keys = self._ordered()
        return bisect_left(keys, stop) - bisect_left(keys, start)

    def ends(self: Ordered[int, V], keys: range) -> tuple[int, int] | None:
        """The least and the greatest key in [start, stop), if there is any; of keys that are numbers."""
        ordered = self._ordered()
        first, end = bisect_left(ordered, keys.start), bisect_left(ordered, keys.stop)
        return (ordered[first], ordered[end - 1]) if first < end else None

    def _ordered(self) -> list[K]:
        keys = self._keys
        if self._in_order < len(keys):
            new = keys[self._in_order :]
            if len(new) <= FEW:
                del keys[self._in_order :]
                for key in new:
                    insort(keys, key)
            else:
                keys.sort()
            self._in_order = len(keys)
        return keys
