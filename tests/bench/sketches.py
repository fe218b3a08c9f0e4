"""The sketches: what keeping them costs, what a round needs of them, and how many symbols a difference takes.

Ids are drawn evenly, as those of ops are. How many symbols are needed is known by trying: the shortest prefix that
decodes. Of many differences each takes 1.35 symbols, says the paper.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from statistics import median

import numpy as np
from numpy.typing import NDArray

from prime_dht.partition.decode import Decoded, decode
from prime_dht.partition.sketch import MAX_SYMBOLS, SectorSketches, Sketch
from prime_dht.partition.symbols import Code

from .measuring import percentile
from .tables import Row, Table
from .turns import Case, measure_in_turns, took_us

SECTORS = 512
BATCH = 512
LIMIT = 1.35
SALT = Code(bytes(range(16)))
TRIALS = {1: 300, 2: 300, 5: 300, 10: 300, 20: 200, 50: 100, 100: 100, 1000: 20, 10_000: 5}


def measure_sketches(*, quick: bool) -> list[Table]:
    """The tables of speed and of the symbols needed."""
    rng = np.random.default_rng(7)
    ops = 20_000 if quick else 1_000_000
    trials = {d: 2 for d in TRIALS if d <= 100} if quick else TRIALS
    return [
        Table(
            name="sketches",
            title=f"Sketches of {ops:,} ops in {SECTORS} sectors, the first 128 symbols of each",
            rows=_speed(_random_ids(rng, ops), 1 if quick else 9),
        ),
        Table(
            name="sketches_symbols",
            title="Coded symbols that a difference of so many ids takes, half of them on either side",
            rows=[_symbols(rng, d, count) for d, count in trials.items()],
        ),
    ]


def _random_ids(rng: np.random.Generator, n: int) -> NDArray[np.uint8]:
    return rng.integers(0, 256, (n, 32), np.uint8)


def _speed(ids: NDArray[np.uint8], rounds: int) -> list[Row]:
    sectors = np.arange(len(ids)) % SECTORS
    sketches = SectorSketches(SECTORS)
    load_us = took_us(lambda: sketches.insert_batch(ids, sectors))
    some, some_sectors = ids[:BATCH], sectors[:BATCH]
    singly = [(op_id.tobytes(), sector) for op_id, sector in zip(some, some_sectors.tolist(), strict=True)]
    everything = np.ones(SECTORS, np.bool_)
    difference = Sketch.of(ids[:500], 1500).subtract(Sketch.of(ids[500:1000], 1500))
    salted = Sketch.of(ids[:500], 1500, SALT).subtract(Sketch.of(ids[500:1000], 1500, SALT))

    def insert_singly() -> None:
        for op_id, sector in singly:
            sketches.insert(op_id, sector)

    def remove_singly() -> None:
        for op_id, sector in singly:
            sketches.remove(op_id, sector)

    cases = [
        Case("insert one", insert_singly, BATCH, 12.0),
        Case("remove one", remove_singly, BATCH, 12.0),
        Case(f"insert {BATCH}, per op", lambda: sketches.insert_batch(some, some_sectors), BATCH, 3.0),
        Case(f"remove {BATCH}, per op", lambda: sketches.remove_batch(some, some_sectors), BATCH, 3.0),
        Case("32 symbols of all sectors", lambda: sketches.sketch_of(everything, 32), 1, 150.0),
        Case("128 symbols of all sectors", lambda: sketches.sketch_of(everything, 128)),
        Case("copy", sketches.copy, 1, 150.0),
        Case("decode 1,000 differences", lambda: decode(difference), 1, 30_000.0),
        Case("decode 1,000 differences, salted", lambda: decode(salted)),
        Case("2,000 symbols of 2,000 ids", lambda: Sketch.of(ids[:2000], 2000)),
    ]
    return [
        *measure_in_turns(cases, rounds=rounds),
        {"operation": f"insert all {len(ids):,}", "took_us": load_us, "aim_us": 1.2e6},
    ]


def _symbols(rng: np.random.Generator, d: int, trials: int) -> Row:
    needed, decode_us = [], []
    for _ in range(trials):
        ids = _random_ids(rng, d)
        most = min(MAX_SYMBOLS, 2 * d + 1000)
        difference = Sketch.of(ids[: d // 2], most).subtract(Sketch.of(ids[d // 2 :], most))
        # More symbols never decode less, so the shortest prefix that decodes can be found by bisection.
        count = 1 + bisect_left(range(1, most), x=True, key=partial(_decodes, difference))
        needed.append(float(count))
        decode_us.append(took_us(partial(decode, difference.prefix(count))))
    return {
        "differences": d,
        "trials": trials,
        "symbols_p50": percentile(needed, 50),
        "symbols_p95": percentile(needed, 95),
        "per_difference_p50": percentile(needed, 50) / d,
        "per_difference_p95": percentile(needed, 95) / d,
        "limit": LIMIT,
        "decode_ms": median(decode_us) / 1e3,
    }


def _decodes(difference: Sketch, count: int) -> bool:
    return isinstance(decode(difference.prefix(count)), Decoded)
