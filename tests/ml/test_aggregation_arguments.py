"""What rules of aggregation are told besides contributions: how many are bad, and their own parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import numpy as np
import pytest

from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId
from prime_dht.ml.aggregation import (
    CenteredClipping,
    Contribution,
    FederatedAverage,
    GeometricMedian,
    MultiKrum,
    TrimmedMean,
    aggregate,
)
from prime_dht.ml.tensors import Spec, spec_of

THREE = [Contribution(member=PeerId(b"%d" % number), tensors={"w": np.zeros(2)}) for number in range(3)]
SPEC = spec_of(THREE[0].tensors)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MultiKrum(keep=0),
        lambda: GeometricMedian(smoothing=0.0),
        lambda: CenteredClipping(radius=math.nan),
        lambda: CenteredClipping(radius=-1.0),
        lambda: CenteredClipping(radius=1.0, steps=0),
        lambda: MultiKrum(keep=cast("int", 2.0)),
        lambda: GeometricMedian(smoothing=cast("float", "small")),
        lambda: CenteredClipping(radius=cast("float", None)),
        lambda: CenteredClipping(radius=1.0, steps=cast("int", 2.5)),
        lambda: aggregate(THREE, SPEC, FederatedAverage(), bad=-1),
        lambda: aggregate(THREE, SPEC, TrimmedMean(), bad=cast("int", 1.0)),
        lambda: aggregate(THREE, cast("Spec", THREE[0].tensors), TrimmedMean(), bad=1),
    ],
)
def test_a_parameter_without_sense_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValidationError):
        make()


def test_a_parameter_of_numpy_is_as_good_as_one_of_python() -> None:
    one, two = cast("int", np.int64(1)), cast("float", np.float64(2.0))
    for rule, same in (
        (MultiKrum(keep=one), MultiKrum(keep=1)),
        (GeometricMedian(smoothing=two), GeometricMedian(smoothing=2)),
        (CenteredClipping(radius=two, steps=one), CenteredClipping(radius=2)),
    ):
        assert repr(rule) == repr(same)
