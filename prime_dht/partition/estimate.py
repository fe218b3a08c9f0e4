"""How many ids differ, guessed from the counts of too few symbols to decode.

Let a difference have ``d`` ids, and symbol ``i`` the density ``p``. Its count ``c`` sums a +1 or -1 for each id that is
in it, so for ``i > 0``, given the count ``c0`` of symbol 0, which holds all of them, ``c`` has the mean ``c0 * p`` and
the variance ``d * p * (1 - p)``. So each symbol by itself estimates ``d``, as ``(c - c0 * p)**2 / (p * (1 - p))``; we
take the mean of these, and ``|c0|`` if that is more, which ``d`` cannot be below. Of 32 symbols this is within a factor
of 0.6 to 1.5, mostly. It needs the exact densities: with the paper's approximation and ``c0`` of 100,000 it would be
many times too large.

Counts travel modulo 2**16, so when one side lacks more than 32,767 ids the guess is wrong, and far too large. And a
peer may have sent anything: bound what follows from it.
"""

from __future__ import annotations

import numpy as np

from prime_dht.partition.sketch import Sketch
from prime_dht.partition.symbols import densities


def difference_size(difference: Sketch) -> int:
    """About how many ids are in a difference (:meth:`~prime_dht.partition.sketch.Sketch.subtract`); not negative.

    >>> from hashlib import sha256
    >>> op_ids = b"".join(sha256(b"%d" % number).digest() for number in range(1000))
    >>> ids = np.frombuffer(op_ids, np.uint8).reshape(1000, 32)
    >>> difference_size(Sketch.of(ids[:700], 32).subtract(Sketch.of(ids[700:], 32)))
    779
    """
    counts = difference.symbols["count"].astype(np.float64)
    least = abs(float(counts[0]))
    if len(counts) == 1:
        return round(least)
    p = densities(len(counts))[1:]
    each = (counts[1:] - counts[0] * p) ** 2 / (p * (1 - p))
    return round(max(least, float(each.mean())))
