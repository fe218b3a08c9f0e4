"""The stack: n members' tensors of one spec, one above the other, and arithmetic on it that is the same everywhere.

Members agree on an aggregate by its CID, so whoever computes it from the same contributions must get the same bits, on
any machine and with any version of numpy. Therefore:

- Only operations that IEEE 754 rounds in one way: addition, subtraction, multiplication, division, square root, minimum
  and maximum, elementwise, one numpy call each, so that none is fused with another. No BLAS, whose kernels sum in an
  order of the processor's; no ``np.sum``, whose order follows the width of its vectors; no Python ``sum`` of floats,
  which rounds otherwise since 3.12 (``math.fsum`` is exact everywhere); no powers or other functions of libm.
- What rounds is done in float64. Rows come in float32 where that holds them exactly, since to read and to compare them
  takes half the time then: whoever computes with them asks for float64.
- Sums over members run in the order of members. Sums over elements run along a tree that is a part of the definition:
  tensors in the order of names, each in chunks of :data:`CHUNK` elements, each chunk folded (:func:`fold`), and
  the sums of chunks added one after the other.
- No element is -0.0, which sorts before or behind 0.0 as it happens: adding 0.0 makes it 0.0.
- An aggregate is rounded to the dtypes of the spec at the very end.

It holds on 64-bit machines while subnormal numbers are not flushed to zero (a processor flag that some libraries set).

A chunk of each member is in memory at a time, 64 or 128 KiB, and for intermediate values up to 128 KiB for each member
once or twice, however large the tensors are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from prime_dht.ml.tensors import Array, Spec, Tensors

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.floating]
"""Of the shape (n, m): a row for each member, of float32 or float64."""

CHUNK = 1 << 14
"""Elements. Another number gives other roundings: every member of a round must use the same."""


class Stack:
    """n members' tensors of one spec, with no element that is not finite.

    Attributes:
        n: how many members.
    """

    def __init__(self, members: Sequence[Tensors], spec: Spec) -> None:
        self.n = len(members)
        self._spec = spec
        self._flat = {name: [tensors[name].reshape(-1) for tensors in members] for name in sorted(spec)}

    def combine(self, combined: Callable[[Rows], Floats]) -> dict[str, Array]:
        """The tensors that come of applying ``combined`` to every chunk: from the shape (n, m) to (m,)."""
        tensors = {name: np.empty(self._spec[name].size, self._spec[name].dtype) for name in self._flat}
        for name, start, rows in self._chunks():
            tensor, values = tensors[name], combined(rows)
            # To two bytes by way of float32, which a library may do by itself or not: so the result is the same.
            rounded = values.astype(np.float32) if tensor.itemsize == 2 else values
            tensor[start : start + len(values)] = rounded.astype(tensor.dtype)
        return {name: tensor.reshape(self._spec[name].shape) for name, tensor in tensors.items()}

    def total(self, summands: Callable[[Rows], Floats]) -> Floats:
        """The sum over all elements of what ``summands`` makes of every chunk: of (n, m) any shape (..., m)."""
        total: Floats | None = None
        for _, _, rows in self._chunks():
            part = fold(summands(rows))
            total = part if total is None else total + part
        return fold(summands(np.zeros((self.n, 0)))) if total is None else total

    def _chunks(self) -> Iterator[tuple[str, int, Rows]]:
        for name, flat in self._flat.items():
            exact = np.float64 if self._spec[name].dtype == np.float64 else np.float32
            for start in range(0, self._spec[name].size, CHUNK):
                parts = [one[start : start + CHUNK] for one in flat]
                rows = np.empty((self.n, len(parts[0])), exact)
                for row, part in zip(rows, parts, strict=True):
                    row[:] = part
                rows += 0.0
                yield name, start, rows


def fold(values: Floats) -> Floats:
    """The sums along the last axis, which are folded until one element is left: the second half is added to the first.

    >>> fold(np.array([1.0, 2.0, 3.0, 4.0, 5.0])).item()  # ((1 + 4) + 3) + (2 + 5)
    15.0
    """
    if not values.shape[-1]:
        return np.zeros(values.shape[:-1])
    while (length := values.shape[-1]) > 1:
        half, pairs = (length + 1) // 2, length // 2
        # Into new memory: rows folded in place lie as far apart as ever, and push each other out of the cache.
        folded = np.empty((*values.shape[:-1], half))
        np.add(values[..., :pairs], values[..., half:], out=folded[..., :pairs])
        folded[..., pairs:] = values[..., pairs:half]
        values = folded
    sums: Floats = values[..., 0]
    return sums


def squared(values: Floats) -> Floats:
    """The squares of values, in their place: where they come from nobody needs them."""
    return np.square(values, out=values)


def weighted_sum(rows: Rows | Sequence[Rows], weights: Sequence[float]) -> Floats:
    """The sum of rows times weights, in the order of rows: from the shape (n, m) to (m,)."""
    total: Floats = np.multiply(rows[0], weights[0], dtype=np.float64)
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        total += np.multiply(row, weight, dtype=np.float64)
    return total


def in_order(rows: Rows) -> list[Rows]:
    """Every column sorted: of (n, m) as many rows. They are exchanged whole, several times as fast as np.sort."""
    ordered, spare = list(rows.copy()), np.empty_like(rows[0])
    for low, high in _exchanges(len(rows)):
        one, other = ordered[low], ordered[high]
        np.minimum(one, other, out=spare)
        np.maximum(one, other, out=other)
        ordered[low], spare = spare, one
    return ordered


def middle(rows: Rows) -> Floats:
    """The median of every column, for an even number the mean of the two in the middle: from (n, m) to (m,)."""
    ordered, n = in_order(rows), len(rows)
    median: Floats = np.add(ordered[(n - 1) // 2], ordered[n // 2], dtype=np.float64) / 2.0
    return median


@lru_cache(maxsize=64)
def _exchanges(n: int) -> tuple[tuple[int, int], ...]:
    """The exchanges that sort n rows: odd-even merges (Batcher 1968), which need O(n log² n) for any n.

    >>> _exchanges(4)
    ((0, 1), (2, 3), (0, 2), (1, 3), (1, 2))
    """
    exchanges = []
    size = 1
    while size < n:
        step = size
        while step:
            for base in range(step % size, n - step, 2 * step):
                for low in range(base, base + min(step, n - base - step)):
                    if low // (2 * size) == (low + step) // (2 * size):
                        exchanges.append((low, low + step))
            step //= 2
        size *= 2
    return tuple(exchanges)
