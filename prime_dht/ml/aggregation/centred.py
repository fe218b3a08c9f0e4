"""Rules that look for a centre: the geometric median, and centred clipping.

Both go step by step, and the centre is at each step a weighted sum of the contributions. So nothing is kept between
steps but the weights; a step reads all contributions once, makes the centre chunk by chunk, and learns the distances
from it. The same number of steps is done everywhere, for the arithmetic is the same everywhere.

What a member claims as its weight is not looked at: to a liar it would be a lever.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import ClassVar

import numpy as np

from prime_dht.errors import ValidationError
from prime_dht.ml.aggregation.contribution import check_bounded
from prime_dht.ml.aggregation.rule import Combined, Pool, Rule, whole
from prime_dht.ml.aggregation.stack import Floats, Rows, Stack, middle, squared, weighted_sum
from prime_dht.ml.tensors import Spec, Tensors, as_tensors, check_spec
from prime_dht.quantities import number_of


@dataclass(frozen=True, slots=True)
class GeometricMedian(Rule):
    """The point from which the sum of the distances to all contributions is least. It stands fewer than half.

    Found by the smoothed Weiszfeld algorithm of Pillutla, Kakade & Harchaoui 2019, algorithm 2 (arXiv 1912.13445): in
    each step the weight of a contribution is 1 over its distance, which counts as no less than ``smoothing``. Within
    the distance c (max‖x - mean‖ + smoothing / 4) of the mean of the good contributions x, with
    c = 2 (n - bad) / (n - 2 bad). So let ``smoothing`` be far below the distances between good contributions: among
    those that are nearer to each other than that, a bad one as near counts as one of them.

    Deliberate difference: it begins at the coordinate median, not at the mean, which a bad member can put so far away
    that few steps do not lead back. It ends when a step changes no weight by more than a hundred-thousandth of it,
    or after 256: where the coordinate median lies on a contribution that is not the centre, many lead away from it.
    """

    name: ClassVar[str] = "geometric-median"
    smoothing: float = 1e-6

    _MOST_STEPS: ClassVar[int] = 256
    _STILL: ClassVar[float] = 1e-5

    def __post_init__(self) -> None:
        object.__setattr__(self, "smoothing", float(number_of("the smoothing of the geometric median", self.smoothing)))
        if not (math.isfinite(self.smoothing) and self.smoothing > 0):
            raise ValidationError(f"the smoothing of the geometric median is above 0, not {self.smoothing!r}")

    def stands(self, n: int) -> int:
        return (n - 1) // 2

    def combine(self, pool: Pool) -> Combined:
        stack = pool.stack()
        weights = self._weights(_distances(stack, middle))
        for _ in range(self._MOST_STEPS):
            before, weights = weights, self._weights(_distances(stack, _blend(weights)))
            if all(abs(one - other) <= self._STILL * other for one, other in zip(before, weights, strict=True)):
                break
        return Combined(stack.combine(_blend(weights)), range(pool.n))

    def _weights(self, distances: Sequence[float]) -> list[float]:
        inverse = [1.0 / max(self.smoothing, distance) for distance in distances]
        whole = fsum(inverse)
        return [weight / whole for weight in inverse]


@dataclass(frozen=True, slots=True)
class CenteredClipping(Rule):
    """A start, moved by the mean of what leads from it to the contributions, each clipped to the length ``radius``.

    Karimireddy, He & Jaggi 2021, algorithm 2 (arXiv 2012.10333): v ← v + mean((x - v) min(1, radius / ‖x - v‖)). Begin
    with the aggregate of the round before, or, for gradients, with zero, which is meant when no start is given. In one
    step a bad member moves the centre by radius / n, so it stands fewer than half; the paper proves convergence for a
    tenth.
    """

    name: ClassVar[str] = "centered-clipping"
    radius: float
    steps: int = 1
    start: Tensors | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", float(number_of("the radius of centred clipping", self.radius)))
        object.__setattr__(self, "steps", whole("the number of steps of centred clipping", self.steps))
        if not (math.isfinite(self.radius) and self.radius > 0):
            raise ValidationError(f"the radius of centred clipping is above 0, not {self.radius!r}")
        if not 1 <= self.steps <= 100:
            raise ValidationError(f"centred clipping takes 1 to 100 steps, not {self.steps!r}")

    def stands(self, n: int) -> int:
        return (n - 1) // 2

    def combine(self, pool: Pool) -> Combined:
        n = pool.n
        # The start is one more row, the last, so that the centre is a weighted sum of rows from the first step on.
        stack = pool.stack(self._start(pool.spec))
        weights = [0.0] * n + [1.0]
        for _ in range(self.steps):
            distances = _distances(stack, _blend(weights))[:n]
            kept = [1.0 if distance <= self.radius else self.radius / distance for distance in distances]
            stays = 1.0 - fsum(kept) / n
            weights = [weight * stays + more / n for weight, more in zip(weights, [*kept, 0.0], strict=True)]
        return Combined(stack.combine(_blend(weights)), range(n))

    def _start(self, spec: Spec) -> Tensors:
        if self.start is None:
            return {name: np.broadcast_to(np.zeros((), one.dtype), one.shape) for name, one in spec.items()}
        start = as_tensors(self.start)
        check_spec(start, spec)
        check_bounded(start)
        return start


def _blend(weights: Sequence[float]) -> Callable[[Rows], Floats]:
    return lambda rows: weighted_sum(rows, weights)


def _distances(stack: Stack, centre: Callable[[Rows], Floats]) -> list[float]:
    """The Euclidean distance of every row from a centre."""
    squares = stack.total(lambda rows: squared(np.subtract(rows, centre(rows), dtype=np.float64)))
    return [math.sqrt(one) for one in squares.tolist()]
