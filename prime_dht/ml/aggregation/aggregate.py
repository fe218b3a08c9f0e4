"""One round's aggregate: contributions are screened, and a rule makes one of those that are left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId
from prime_dht.ml.aggregation.contribution import Contribution, screen
from prime_dht.ml.aggregation.rule import Pool, Rule, whole
from prime_dht.ml.tensors import Array, Spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """What became of contributions.

    Attributes:
        tensors: the aggregate, of the spec asked for.
        used: the members whose contributions went into it, in order; those that Krum did not choose are neither here
            nor rejected.
        rejected: the members whose contributions could not be aggregated, each with the reason.
    """

    tensors: dict[str, Array]
    used: tuple[PeerId, ...]
    rejected: Mapping[PeerId, str]


def aggregate(contributions: Iterable[Contribution], spec: Spec, rule: Rule, *, bad: int) -> Aggregate:
    """Aggregate contributions of which at most ``bad`` are bad; the same bits in whatever order they come.

    A rejected contribution is a bad one, so of the others that many fewer are.

    Raises:
        ValidationError: ``bad`` is negative or no whole number, the rule does not stand so many of so few, none is
            left, or a tensor of ``spec`` is not floating.
    """
    bad = whole("the number of bad members", bad)
    if bad < 0:
        raise ValidationError(f"there cannot be {bad} bad members")
    # Whatever the caller has numpy do: small numbers underflow as a matter of course, and a peer chooses the numbers.
    with np.errstate(all="ignore"):
        return _aggregate(contributions, spec, rule, bad)


def _aggregate(contributions: Iterable[Contribution], spec: Spec, rule: Rule, bad: int) -> Aggregate:
    screened = screen(contributions, spec)
    n, left = len(screened.accepted), max(0, bad - len(screened.rejected))
    if left > (most := rule.stands(n)):
        reasons = "; ".join(sorted(set(screened.rejected.values()))[:3])
        raise ValidationError(
            f"{rule.name} of {n} contributions "
            + (f"stands at most {most} bad members, not {left}" if most >= 0 else "is not defined: there are too few")
            + (f" ({len(screened.rejected)} were rejected: {reasons})" if reasons else "")
        )
    combined = rule.combine(Pool(screened.accepted, spec, left))
    return Aggregate(
        tensors=combined.tensors,
        used=tuple(screened.accepted[place].member for place in combined.used),
        rejected=screened.rejected,
    )
