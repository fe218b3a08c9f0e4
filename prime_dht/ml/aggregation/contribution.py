"""Contributions: what members send to be aggregated, and which of them can be.

A *contribution* is one member's tensors for a round, and the weight it claims for them: how many examples it trained
on. Before anything is computed each is screened against the spec of what is trained. What does not fit it, is not
finite, or lies beyond the range of float32 is rejected, with the reason; a single NaN would otherwise be in every
average. Screening needs no other contribution, so whoever has the same contributions rejects the same of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId
from prime_dht.ml.tensors import Spec, Tensors, as_tensors, check_finite, check_is_spec, check_spec
from prime_dht.quantities import number_of

MAX_WEIGHT = 1 << 53
"""Up to here every whole number is exact in float64."""

_MAX_MAGNITUDE = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One member's tensors, and the weight it claims for them."""

    member: PeerId
    tensors: Tensors
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Screened:
    """Contributions that can be aggregated, in the order of members, and for each rejected member the reason."""

    accepted: tuple[Contribution, ...]
    rejected: Mapping[PeerId, str]


def screen(contributions: Iterable[Contribution], spec: Spec) -> Screened:
    """Tell the contributions that can be aggregated from those that cannot.

    Raises:
        ValidationError: ``spec`` is none, or has a tensor that is not floating, of which there is no average.
    """
    check_is_spec(spec)
    for name, one in spec.items():
        if not one.is_floating:
            raise ValidationError(f"the tensor {name!r} is {one}; only floating tensors can be aggregated")
    ordered = sorted(contributions, key=lambda contribution: contribution.member)
    counts = Counter(contribution.member for contribution in ordered)
    accepted, rejected = [], {}
    for contribution in ordered:
        try:
            if counts[contribution.member] > 1:
                raise ValidationError(f"it contributed {counts[contribution.member]} times")
            contribution = replace(contribution, tensors=as_tensors(contribution.tensors))
            _check(contribution, spec)
            accepted.append(contribution)
        except ValidationError as error:
            rejected[contribution.member] = str(error)
    return Screened(tuple(accepted), rejected)


def _check(contribution: Contribution, spec: Spec) -> None:
    weight = number_of("its weight", contribution.weight)
    if not 0 < weight <= MAX_WEIGHT:
        raise ValidationError(f"its weight is above 0 and at most 2**53, not {weight!r}")
    check_spec(contribution.tensors, spec)
    check_bounded(contribution.tensors)


def check_bounded(tensors: Tensors) -> None:
    """Check that tensors are finite, and in the range of float32.

    Raises:
        ValidationError: one is not.
    """
    check_finite(tensors)
    for name, tensor in tensors.items():
        # Squares of what float32 can hold add up in float64 without overflow, whatever the number of elements.
        if tensor.dtype == np.float64 and np.any(np.abs(tensor) > _MAX_MAGNITUDE):
            raise ValidationError(f"the tensor {name!r} holds values beyond the range of float32")
