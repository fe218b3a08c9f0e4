"""Reading the difference of two sets from the difference of their sketches.

**Peeling.** A symbol is *pure* if it counts 1 or -1 and its checksum is that of its id: then it holds just that id,
which only we have (1) or only they have (-1). All pure symbols of one moment are a *wave*. Their ids are taken out of
all symbols they are in, which may make others pure: the next wave. If in the end all symbols are empty, the ids found
are the difference. If pure symbols run out before, there were too few symbols.

Two ids that are in the same of the first symbols cannot be told apart by these, and 64 symbols of ten differences fail
for that about four times in 10,000: one pair of ids in so many is such a one,

>>> from prime_dht.partition.symbols import densities
>>> density = densities(64)
>>> round(float(1 / np.prod(density**2 + (1 - density) ** 2)))
109352

so there must always be another way. Who wants to make such a pair has one after some 400 tries, by the birthday rule.
A salted code tears it apart.

**Hostile symbols.** A peer may send any bytes, and whoever publishes may choose ids for their symbols. Therefore:

- An id is read only once. One id planted into a symbol twice would otherwise be read, put back, and read for ever.
- There are never more ids than symbols.
- Only if all symbols are empty in the end there is a result: sets whose sketches differ in just these symbols.

So the work is bounded by the number of symbols, n, with about 2 ln(n) of them to change for each id. Waves are taken in
one order, that of the symbols, so that the same symbols always give the same result.

**What it proves.** Nothing about the other side: a peer can send the symbols of any set. But our ids must be here and
theirs must not: :func:`prove`. That shows lies, and the one symbol in 2**32 that holds several ids and seems pure. Ids
of theirs are claims until the entries have come.

>>> ids = np.arange(96, dtype=np.uint8).reshape(3, 32)
>>> difference = Sketch.of(ids[:2], 8).subtract(Sketch.of(ids[1:], 8))
>>> decoded = decode(difference)
>>> decoded == Decoded(ours=(ids[0, :16].tobytes(),), theirs=(ids[2, :16].tobytes(),))
True
>>> decode(difference.prefix(1))
Undecoded(estimate=0)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prime_dht.partition.estimate import difference_size
from prime_dht.partition.planes import Planes
from prime_dht.partition.sketch import Sketch
from prime_dht.partition.symbols import (
    Code,
    Indices,
    checksum_of,
    checksums_of,
    id_of,
    indices,
    indices_of_many,
)

_TOGETHER_FROM = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """The ids, 16 bytes each, in ascending order, that only we have and that only they have."""

    ours: tuple[bytes, ...]
    theirs: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Undecoded:
    """The symbols do not tell the difference; about how many ids there seem to be in it."""

    estimate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Disproved:
    """What was decoded is not the difference: ids said to be only ours are not here, or only theirs are here."""

    absent: tuple[bytes, ...]
    present: tuple[bytes, ...]


Wave = dict[tuple[int, int], int]
"""Ids, by their halves, with their signs."""


def decode(difference: Sketch, *, together_from: int = _TOGETHER_FROM) -> Decoded | Undecoded:
    """Read a difference: ours minus theirs.

    Args:
        together_from: waves of so many ids are peeled together, smaller ones id by id; only the time depends on it.
    """
    found = _peel(difference, together_from)
    if found is None:
        return Undecoded(estimate=difference_size(difference))
    ids = sorted((id_of(*halves), sign) for halves, sign in found.items())
    return Decoded(
        ours=tuple(op_id for op_id, sign in ids if sign > 0), theirs=tuple(op_id for op_id, sign in ids if sign < 0)
    )


def prove(decoded: Decoded, is_here: Callable[[bytes], bool]) -> Decoded | Disproved:
    """The same, if all of ours are here and none of theirs are.

    Args:
        is_here: whether the set that our sketch was made of has an op whose id begins with these 16 bytes.
    """
    absent = tuple(op_id for op_id in decoded.ours if not is_here(op_id))
    present = tuple(op_id for op_id in decoded.theirs if is_here(op_id))
    return Disproved(absent=absent, present=present) if absent or present else decoded


def _peel(difference: Sketch, together_from: int) -> Wave | None:
    """All ids, or None where the symbols do not tell."""
    planes, code, n = Planes.unpacked(difference.symbols), difference.code, len(difference)
    lows, highs, _, counts = planes.views
    found: Wave = {}
    touched = set(range(n)) if n < together_from else np.arange(n)
    while pure := _pure_one_by_one(planes, code, touched) if isinstance(touched, set) else _pure(planes, code, touched):
        wave = {(lows[place], highs[place]): counts[place] for place in pure}
        if len(found) + len(wave) > n or not found.keys().isdisjoint(wave):
            return None
        found |= wave
        touched = (_take_one_by_one if len(wave) < together_from else _take)(planes, code, wave)
    return None if planes.block.any() else found


def _pure_one_by_one(planes: Planes, code: Code, places: set[int]) -> list[int]:
    """Which of these symbols are pure."""
    lows, highs, checksums, counts = planes.views
    return [
        place
        for place in sorted(places)
        if counts[place] in (1, -1) and checksums[place] == checksum_of(code.seed_of(lows[place], highs[place]))
    ]


def _pure(planes: Planes, code: Code, places: Indices) -> list[int]:
    """Which of these symbols are pure."""
    places = places[np.abs(planes.count[places]) == 1]
    checksums = checksums_of(code.seeds_of(planes.low[places], planes.high[places]))
    return [int(place) for place in places[checksums == planes.checksum[places]]]


def _take_one_by_one(planes: Planes, code: Code, wave: Wave) -> set[int]:
    """Take ids out of the symbols they are in; returns which these were."""
    touched: set[int] = set()
    for (low, high), sign in wave.items():
        seed = code.seed_of(low, high)
        places = indices(seed, planes.n)
        planes.add(low, high, checksum_of(seed), places, -sign)
        touched.update(places)
    return touched


def _take(planes: Planes, code: Code, wave: Wave) -> Indices:
    """Take ids out of the symbols they are in; returns which these were."""
    low = np.array([low for low, _ in wave], np.uint64)
    high = np.array([high for _, high in wave], np.uint64)
    sign = -np.array(list(wave.values()), np.int32)
    seeds = code.seeds_of(low, high)
    checksums = checksums_of(seeds)
    touched = np.zeros(planes.n, np.bool_)
    for which, index in indices_of_many(seeds, planes.n):
        planes.add_many(low[which], high[which], checksums[which], index, sign[which])
        touched[index] = True
    return np.flatnonzero(touched)
