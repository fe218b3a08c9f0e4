"""Rules that look at every coordinate for itself: the median and the trimmed mean.

Yin, Chen, Ramchandran & Bartlett 2018, definitions 1 and 2 (arXiv 1803.01498). With fewer bad members than good ones,
every coordinate of the aggregate lies between two values of good members, whatever the bad ones send. What a member
claims as its weight is not looked at: to a liar it would be a lever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prime_dht.ml.aggregation.rule import Combined, Pool, Rule
from prime_dht.ml.aggregation.stack import Floats, Rows, in_order, middle, weighted_sum


@dataclass(frozen=True, slots=True)
class CoordinateMedian(Rule):
    """The median of every coordinate. It stands fewer than half: bad < n / 2."""

    name: ClassVar[str] = "median"

    def stands(self, n: int) -> int:
        return (n - 1) // 2

    def combine(self, pool: Pool) -> Combined:
        return Combined(pool.stack().combine(middle), range(pool.n))


@dataclass(frozen=True, slots=True)
class TrimmedMean(Rule):
    """The mean of every coordinate without its ``bad`` least and ``bad`` greatest values. It stands bad < n / 2.

    With none bad it is the mean; with as many as it stands, the median.
    """

    name: ClassVar[str] = "trimmed-mean"

    def stands(self, n: int) -> int:
        return (n - 1) // 2

    def combine(self, pool: Pool) -> Combined:
        first, kept = pool.bad, pool.n - 2 * pool.bad

        def trimmed(rows: Rows) -> Floats:
            return weighted_sum(in_order(rows)[first : first + kept], [1.0] * kept) / kept

        return Combined(pool.stack().combine(trimmed), range(pool.n))
