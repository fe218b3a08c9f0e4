"""Krum and multi-Krum: take the contributions that have the nearest neighbours.

Blanchard, El Mhamdi, Guerraoui & Stainer 2017, section 4 (arXiv 1703.02757). The *score* of a contribution is the sum
of its squared distances to the n - bad - 2 nearest others. A bad contribution with a good score lies among good ones.

Both need n ≥ 2 bad + 3. Of equal scores, the member that comes first in order is the better. Multi-Krum takes at most
n - bad - 2, as El Mhamdi et al. 2018 require (arXiv 1802.07927); the paper lets it take any number.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import fsum
from typing import ClassVar

import numpy as np

from prime_dht.errors import ValidationError
from prime_dht.ml.aggregation.rule import Combined, Pool, Rule, whole
from prime_dht.ml.aggregation.stack import Floats, Rows, Stack, fold, squared, weighted_sum


@dataclass(frozen=True, slots=True)
class MultiKrum(Rule):
    """The mean of the ``keep`` contributions with the least scores, by default n - bad - 2. It stands (n - 3) / 2."""

    name: ClassVar[str] = "multi-krum"
    keep: int | None = None

    def __post_init__(self) -> None:
        if self.keep is None:
            return
        object.__setattr__(self, "keep", whole("how many multi-Krum keeps", self.keep))
        if self.keep < 1:
            raise ValidationError(f"multi-Krum keeps at least one contribution, not {self.keep}")

    def stands(self, n: int) -> int:
        most = (n - 3) // 2
        return most if self.keep is None else min(most, n - 2 - self.keep)

    def combine(self, pool: Pool) -> Combined:
        stack, neighbours = pool.stack(), pool.n - pool.bad - 2
        keep = neighbours if self.keep is None else self.keep
        score = scores(squared_distances(stack), neighbours)
        used = sorted(sorted(range(pool.n), key=score.__getitem__)[:keep])
        return Combined(stack.combine(lambda rows: weighted_sum(rows[used], [1.0] * keep) / keep), used)


@dataclass(frozen=True, slots=True)
class Krum(Rule):
    """The one contribution with the least score, as it is. It stands (n - 3) / 2."""

    name: ClassVar[str] = "krum"

    def stands(self, n: int) -> int:
        return (n - 3) // 2

    def combine(self, pool: Pool) -> Combined:
        return MultiKrum(keep=1).combine(pool)


def squared_distances(stack: Stack) -> Floats:
    """The squared Euclidean distance of every two members, shape (n, n).

    From differences, not from inner products: of two points far from the origin and near each other those keep nothing.
    """
    upper = np.triu_indices(stack.n, k=1)

    def chunk(rows: Rows) -> Floats:
        wide = rows.astype(np.float64, copy=False)
        # Folded row by row, for all differences at once would take n/2 times the memory of the rows themselves.
        parts = [fold(squared(wide[i + 1 :] - wide[i])) for i in range(stack.n)]
        return np.concatenate(parts)[:, np.newaxis]

    distances = np.zeros((stack.n, stack.n))
    distances[upper] = stack.total(chunk)
    return distances + distances.T


def scores(distances: Floats, neighbours: int) -> list[float]:
    """For each member the sum of its squared distances to so many nearest others."""
    return [fsum(sorted(np.delete(row, i).tolist())[:neighbours]) for i, row in enumerate(distances)]
