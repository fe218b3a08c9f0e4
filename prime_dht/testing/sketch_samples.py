"""Op ids and sketches of their differences: what the tests of the sketches are made of."""

from __future__ import annotations

from random import Random

import numpy as np

from prime_dht.partition.sketch import Sketch
from prime_dht.partition.symbols import ID_BYTES, PLAIN, Code, Ids


def rows(*op_ids: bytes) -> Ids:
    """Ids as rows of an array."""
    return np.frombuffer(b"".join(op_ids), np.uint8).reshape(len(op_ids), -1 if op_ids else ID_BYTES)


def random_ids(rng: Random, n: int, id_bytes: int = ID_BYTES) -> Ids:
    """``n`` ids, as random as SHA-256 would make them."""
    return np.frombuffer(rng.randbytes(n * id_bytes), np.uint8).reshape(n, id_bytes)


def difference_of(ours: Ids, theirs: Ids, count: int, code: Code = PLAIN) -> Sketch:
    """The sketch of a difference."""
    return Sketch.of(ours, count, code).subtract(Sketch.of(theirs, count, code))
