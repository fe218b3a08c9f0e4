"""Rules: how many members' tensors become one. What they have in common, and the mean.

``n`` is the number of contributions, and ``bad`` how many of them may be anything at all: broken, or made by someone
who knows all the others. A rule *stands* a number of bad members when, whatever they send, the aggregate stays within a
bound that depends on the good ones alone. Each rule says how many of n it stands, and refuses more.

A rule is a pure function of contributions in the order of members, to the bit (:mod:`~prime_dht.ml.aggregation.stack`).
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import ClassVar, SupportsIndex, cast

from prime_dht.errors import ValidationError
from prime_dht.ml.aggregation.contribution import Contribution
from prime_dht.ml.aggregation.stack import Stack, weighted_sum
from prime_dht.ml.tensors import Array, Spec, Tensors


@dataclass(frozen=True, slots=True)
class Pool:
    """Contributions that fit ``spec``, in the order of members, of which at most ``bad`` are bad."""

    contributions: Sequence[Contribution]
    spec: Spec
    bad: int

    @property
    def n(self) -> int:
        return len(self.contributions)

    def stack(self, *more: Tensors) -> Stack:
        """Their tensors, and more beneath them."""
        return Stack([*(contribution.tensors for contribution in self.contributions), *more], self.spec)


@dataclass(frozen=True, slots=True)
class Combined:
    """What a rule made of contributions, and the places among them of those that went into it."""

    tensors: dict[str, Array]
    used: Sequence[int]


def whole(what: str, given: object) -> int:
    """A whole number, numpy's too, as Python's own: members compare what a rule is shown as.

    Raises:
        ValidationError: it is none.
    """
    try:
        return operator.index(cast(SupportsIndex, given))
    except TypeError as error:
        raise ValidationError(f"{what} is a whole number, not {given!r}") from error


@dataclass(frozen=True, slots=True)
class Rule(ABC):
    """How contributions become one. The dataclass fields of a rule are its parameters."""

    name: ClassVar[str]

    @abstractmethod
    def stands(self, n: int) -> int:
        """The most bad members among n that it stands; negative if there are too few for it even if all are good."""

    @abstractmethod
    def combine(self, pool: Pool) -> Combined:
        """Combine the contributions of a pool that has no more bad ones than the rule stands."""


@dataclass(frozen=True, slots=True)
class FederatedAverage(Rule):
    """The mean, weighted by what members claim. It stands no bad member: one can move it anywhere.

    McMahan et al. 2017, algorithm 1 (arXiv 1602.05629): the sum over members of n_k / n times w_k.
    """

    name: ClassVar[str] = "federated-average"

    def stands(self, n: int) -> int:
        return 0 if n else -1

    def combine(self, pool: Pool) -> Combined:
        weights = [float(contribution.weight) for contribution in pool.contributions]
        whole = fsum(weights)
        return Combined(pool.stack().combine(lambda rows: weighted_sum(rows, weights) / whole), range(pool.n))
