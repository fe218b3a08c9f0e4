"""Aggregates equal what the papers say, computed slowly; their bits are the same everywhere; bad members do little."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId
from prime_dht.ml.aggregation import (
    CenteredClipping,
    Contribution,
    CoordinateMedian,
    FederatedAverage,
    GeometricMedian,
    Krum,
    MultiKrum,
    Rule,
    TrimmedMean,
    aggregate,
)
from prime_dht.ml.aggregation.stack import CHUNK, fold, in_order
from prime_dht.ml.tensors import BFLOAT16, Spec, Tensors, spec_of
from prime_dht.ml.weights import to_safetensors

Vector = list[float]

RULES: tuple[Rule, ...] = (
    FederatedAverage(),
    CoordinateMedian(),
    TrimmedMean(),
    Krum(),
    MultiKrum(),
    GeometricMedian(),
    CenteredClipping(radius=2.0, steps=3),
)
ROBUST = RULES[1:]


def member(number: int) -> PeerId:
    return PeerId(number.to_bytes(4, "big"))


def contributions_of(vectors: Sequence[Sequence[float]], weights: Sequence[float] | None = None) -> list[Contribution]:
    """One contribution of a float64 vector for each member, split into two tensors."""
    return [
        Contribution(
            member=member(i),
            tensors={"b": np.array(vector[:1], np.float64), "a": np.array(vector[1:], np.float64)},
            weight=1.0 if weights is None else weights[i],
        )
        for i, vector in enumerate(vectors)
    ]


def aggregated(contributions: Sequence[Contribution], rule: Rule, bad: int) -> Vector:
    tensors = aggregate(contributions, spec_of(contributions[0].tensors), rule, bad=bad).tensors
    return [*tensors["b"].tolist(), *tensors["a"].tolist()]


# The rules as the papers write them, one number after the other.


def norm(vector: Vector) -> float:
    return math.sqrt(sum(x * x for x in vector))


def minus(a: Vector, b: Vector) -> Vector:
    return [x - y for x, y in zip(a, b, strict=True)]


def slow_mean(vectors: list[Vector], weights: list[float]) -> Vector:
    return [
        sum(w * x for w, x in zip(weights, column, strict=True)) / sum(weights) for column in zip(*vectors, strict=True)
    ]


def slow_median(vectors: list[Vector]) -> Vector:
    ordered = [sorted(column) for column in zip(*vectors, strict=True)]
    n = len(vectors)
    return [(column[(n - 1) // 2] + column[n // 2]) / 2 for column in ordered]


def slow_trimmed_mean(vectors: list[Vector], bad: int) -> Vector:
    kept = [sorted(column)[bad : len(vectors) - bad] for column in zip(*vectors, strict=True)]
    return [sum(column) / len(column) for column in kept]


def slow_krum(vectors: list[Vector], bad: int, keep: int) -> Vector:
    n = len(vectors)
    scores = []
    for i in range(n):
        distances = sorted(norm(minus(vectors[i], vectors[j])) ** 2 for j in range(n) if j != i)
        scores.append((sum(distances[: n - bad - 2]), i))
    return slow_mean([vectors[i] for _, i in sorted(scores)[:keep]], [1.0] * keep)


def slow_clipping(vectors: list[Vector], radius: float, steps: int, start: Vector) -> Vector:
    centre = start
    for _ in range(steps):
        moves = []
        for vector in vectors:
            step = minus(vector, centre)
            clip = min(1.0, radius / norm(step)) if norm(step) else 1.0
            moves.append([x * clip for x in step])
        centre = [x + move for x, move in zip(centre, slow_mean(moves, [1.0] * len(moves)), strict=True)]
    return centre


def objective(vectors: list[Vector], centre: Vector) -> float:
    return sum(norm(minus(vector, centre)) for vector in vectors)


def slow_geometric_median(vectors: list[Vector]) -> Vector:
    centre = slow_mean(vectors, [1.0] * len(vectors))
    for _ in range(2000):
        centre = slow_mean(vectors, [1 / max(1e-9, norm(minus(vector, centre))) for vector in vectors])
    return centre


def close(found: Vector, expected: Vector) -> bool:
    return np.allclose(found, expected, rtol=1e-9, atol=1e-9)


vectors_strategy = st.integers(1, 9).flatmap(
    lambda n: st.integers(1, 6).flatmap(
        lambda d: st.lists(st.lists(st.integers(-1000, 1000).map(lambda x: x / 8), min_size=d, max_size=d),
                           min_size=n, max_size=n)
    )
)  # fmt: skip
slowly = settings(derandomize=True, deadline=None, max_examples=60)


@slowly
@given(vectors_strategy, st.lists(st.integers(1, 500), min_size=9, max_size=9))
def test_the_federated_average_is_the_weighted_mean(vectors: list[Vector], weights: list[int]) -> None:
    chosen = [float(weight) for weight in weights[: len(vectors)]]
    found = aggregated(contributions_of(vectors, chosen), FederatedAverage(), 0)
    assert close(found, slow_mean(vectors, chosen))


@slowly
@given(vectors_strategy)
def test_the_median_and_the_trimmed_mean_are_those_of_every_coordinate(vectors: list[Vector]) -> None:
    contributions = contributions_of(vectors)
    assert close(aggregated(contributions, CoordinateMedian(), 0), slow_median(vectors))
    for bad in range((len(vectors) + 1) // 2):
        assert close(aggregated(contributions, TrimmedMean(), bad), slow_trimmed_mean(vectors, bad))


@slowly
@given(vectors_strategy)
def test_krum_and_multi_krum_choose_as_the_paper_does(vectors: list[Vector]) -> None:
    contributions, n = contributions_of(vectors), len(vectors)
    for bad in range((n - 3) // 2 + 1):
        assert close(aggregated(contributions, Krum(), bad), slow_krum(vectors, bad, 1))
        assert close(aggregated(contributions, MultiKrum(), bad), slow_krum(vectors, bad, n - bad - 2))
        assert close(aggregated(contributions, MultiKrum(keep=1), bad), slow_krum(vectors, bad, 1))


def test_of_equal_scores_krum_prefers_the_first_members() -> None:
    contributions = contributions_of([[1.0, 2.0]] * 50)
    spec = spec_of(contributions[0].tensors)
    assert aggregate(contributions, spec, Krum(), bad=3).used == (member(0),)
    assert aggregate(contributions, spec, MultiKrum(keep=3), bad=3).used == (member(0), member(1), member(2))


@slowly
@given(vectors_strategy, st.integers(1, 4), st.sampled_from([0.5, 10.0, 1e6]))
def test_centred_clipping_takes_the_steps_of_the_paper(vectors: list[Vector], steps: int, radius: float) -> None:
    contributions = contributions_of(vectors)
    zero = [0.0] * len(vectors[0])
    found = aggregated(contributions, CenteredClipping(radius=radius, steps=steps), 0)
    assert close(found, slow_clipping(vectors, radius, steps, zero))
    first = contributions[0].tensors
    found = aggregated(contributions, CenteredClipping(radius=radius, steps=steps, start=first), 0)
    assert close(found, slow_clipping(vectors, radius, steps, vectors[0]))


@settings(derandomize=True, deadline=None, max_examples=15)
@given(vectors_strategy)
@example([[0.0, 0.0], [0.0, 0.125], [0.25, -0.125]])  # the coordinate median lies on the first, the centre does not
def test_nothing_has_a_lesser_sum_of_distances_than_the_geometric_median(vectors: list[Vector]) -> None:
    found = aggregated(contributions_of(vectors), GeometricMedian(), 0)
    best = objective(vectors, slow_geometric_median(vectors))
    assert objective(vectors, found) <= best * (1 + 1e-4) + 1e-4


def random_contributions(n: int, dtype: npt.DTypeLike, seed: int = 0) -> list[Contribution]:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"w": (CHUNK + 5,), "m": (7, 9), "s": (), "e": (0, 3)}
    return [
        Contribution(
            member=member(i),
            tensors={name: np.asarray(rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()},
            weight=float(rng.integers(1, 100)),
        )
        for i in range(n)
    ]


def bits(tensors: Tensors) -> dict[str, bytes]:
    return {name: tensors[name].tobytes() for name in sorted(tensors)}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BFLOAT16])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_order_of_contributions_and_of_names_changes_no_bit(rule: Rule, dtype: npt.DTypeLike) -> None:
    contributions = random_contributions(7, dtype)
    spec = spec_of(contributions[0].tensors)
    expected = aggregate(contributions, spec, rule, bad=0)
    assert spec_of(expected.tensors) == spec
    for seed in range(3):
        shuffled_spec = {name: spec[name] for name in random.Random(seed).sample(sorted(spec), len(spec))}
        shuffled = [
            Contribution(
                member=one.member,
                tensors={name: one.tensors[name] for name in random.Random(seed).sample(sorted(spec), len(spec))},
                weight=one.weight,
            )
            for one in random.Random(seed).sample(contributions, len(contributions))
        ]
        found = aggregate(shuffled, shuffled_spec, rule, bad=0)
        assert list(found.tensors) == sorted(spec)
        assert bits(found.tensors) == bits(expected.tensors)
        assert found.used == expected.used


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_zeros_of_either_sign_and_the_layout_in_memory_change_no_bit(rule: Rule) -> None:
    plain = [Contribution(member=member(i), tensors={"w": np.zeros((3, 4), np.float32)}) for i in range(5)]
    odd = [Contribution(member=one.member, tensors={"w": -np.zeros((4, 3), np.float32).T}) for one in plain]
    spec = spec_of(plain[0].tensors)
    assert bits(aggregate(plain, spec, rule, bad=0).tensors) == bits(aggregate(odd, spec, rule, bad=0).tensors)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_same_from_all_is_the_aggregate_to_the_bit(rule: Rule, dtype: npt.DTypeLike) -> None:
    tensors = {"w": np.random.default_rng(1).standard_normal(100).astype(dtype)}
    contributions = [Contribution(member=member(i), tensors=tensors) for i in range(6)]
    if rule.name == "centered-clipping":
        rule = CenteredClipping(radius=1.0, start=tensors)
    assert bits(aggregate(contributions, spec_of(tensors), rule, bad=0).tensors) == bits(tensors)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16])
def test_two_bytes_are_rounded_to_by_way_of_float32(dtype: npt.DTypeLike) -> None:
    low, high = np.array(1, dtype), np.nextafter(np.array(1, dtype), np.array(2, dtype))
    # Their mean lies so little above the middle of the two that it is the middle in float32, and that goes to even.
    contributions = [
        Contribution(member=member(0), tensors={"w": low}, weight=2.0**19 - 1),
        Contribution(member=member(1), tensors={"w": high}, weight=2.0**19 + 1),
    ]
    found = aggregate(contributions, spec_of({"w": low}), FederatedAverage(), bad=0)
    assert found.tensors["w"] == low


def told_contributions() -> list[Contribution]:
    """Contributions of numbers that no library makes up: two chunks and a bit of float32, some bfloat16, and -0.0."""
    rng = random.Random(8)
    told = []
    for i in range(9):
        w = np.array([rng.uniform(-1, 1) * 2.0 ** rng.randrange(-60, 20) for _ in range(2 * CHUNK + 3)], np.float32)
        b = np.array([rng.uniform(-1, 1) for _ in range(30)] + [-0.0], np.float32).astype(BFLOAT16)
        told.append(Contribution(member=member(i), tensors={"w": w, "b": b}, weight=float(rng.randrange(1, 1000))))
    return told


# Written down, so that a library, a version of Python or a processor that changes a bit of an aggregate fails here.
DIGESTS = {
    "federated-average": "a1226f9bf0de991b",
    "median": "780cdbca0905160b",
    "trimmed-mean": "e2864d43dd86ca77",
    "krum": "6855483f3f68548d",
    "multi-krum": "2b4f765ef5111a52",
    "geometric-median": "6d9e318150974eab",
    "centered-clipping": "84a74dc4be168fe3",
}


def test_aggregates_have_the_bits_that_are_written_down() -> None:
    contributions = told_contributions()
    spec = spec_of(contributions[0].tensors)
    found = {}
    for rule in RULES:
        tensors = aggregate(contributions, spec, rule, bad=min(2, rule.stands(9))).tensors
        found[rule.name] = hashlib.sha256(to_safetensors(tensors)).hexdigest()[:16]
    assert found == DIGESTS


ATTACKS: dict[str, Callable[[npt.NDArray[np.float64], random.Random], npt.NDArray[np.float64]]] = {
    "sign-flipped": lambda honest, _: -10.0 * honest,
    "scaled": lambda honest, _: 100.0 * honest,
    "enormous": lambda honest, _: np.full_like(honest, 3e38),
    "random": lambda honest, rng: np.array([rng.gauss(0, 50) for _ in honest]),
}


def attacked(attack: str, n: int, bad: int, seed: int) -> tuple[list[Contribution], npt.NDArray[np.float64]]:
    """n contributions, the first ``bad`` of them bad, and the good ones as rows."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal(40)
    good = truth + 0.3 * rng.standard_normal((n - bad, 40))
    evil = [ATTACKS[attack](good.mean(axis=0), random.Random(seed + i)) for i in range(bad)]
    return contributions_of([one.tolist() for one in [*evil, *good]]), good


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("rule", ROBUST, ids=lambda rule: rule.name)
def test_as_many_bad_members_as_a_rule_stands_move_it_within_its_bound(rule: Rule, attack: str) -> None:
    n = 11
    bad = rule.stands(n)
    for seed in range(5):
        contributions, good = attacked(attack, n, bad, seed)
        mean, spread = good.mean(axis=0), np.linalg.norm(good - good.mean(axis=0), axis=1).max()
        if isinstance(rule, CenteredClipping):
            start = contributions_of([good[0].tolist()])[0].tensors
            rule = CenteredClipping(radius=float(spread), steps=3, start=start)
        found = np.array(aggregated(contributions, rule, bad))
        match rule:
            case CoordinateMedian() | TrimmedMean():
                assert (good.min(axis=0) <= found).all()
                assert (found <= good.max(axis=0)).all()
            case GeometricMedian():
                assert np.linalg.norm(found - mean) <= 2 * (n - bad) / (n - 2 * bad) * spread
            case Krum() | MultiKrum():
                assert np.linalg.norm(found - mean) <= spread * (1 + 1e-9)
            case CenteredClipping():
                assert np.linalg.norm(found - good[0]) <= 3 * spread
            case _:
                raise AssertionError(rule)


@pytest.mark.parametrize("scale", [1e-12, 1e-7, 1e-6])
def test_members_nearer_to_each_other_than_the_smoothing_are_moved_by_a_part_of_that(scale: float) -> None:
    for seed, far in enumerate([1e-7, 1e-6, 1e-3, 1.0]):
        good = scale * np.random.default_rng(seed).standard_normal((6, 40))
        mean, spread = good.mean(axis=0), np.linalg.norm(good - good.mean(axis=0), axis=1).max()
        contributions = contributions_of([(mean + far * np.eye(40)[0]).tolist()] * 5 + good.tolist())
        moved = np.linalg.norm(np.array(aggregated(contributions, GeometricMedian(), 5)) - mean)
        assert moved <= 2 * 6 / (11 - 2 * 5) * (spread + GeometricMedian().smoothing / 4)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_numpy_is_told_to_do_about_small_numbers_changes_nothing(rule: Rule) -> None:
    spec = spec_of({"w": np.zeros(50, np.float32)})
    small = np.random.default_rng(0).standard_normal((7, 50)) * 1e-40
    contributions = [
        Contribution(member=member(i), tensors={"w": row.astype(np.float32)}) for i, row in enumerate(small)
    ]
    found = aggregate(contributions, spec, rule, bad=0).tensors["w"]
    with np.errstate(all="raise"):
        assert aggregate(contributions, spec, rule, bad=0).tensors["w"].tobytes() == found.tobytes()


@pytest.mark.parametrize("attack", ATTACKS)
def test_one_bad_member_moves_the_mean_anywhere(attack: str) -> None:
    contributions, good = attacked(attack, 11, 1, 0)
    found = np.array(aggregated(contributions, FederatedAverage(), 0))
    spread = np.linalg.norm(good - good.mean(axis=0), axis=1).max()
    assert np.linalg.norm(found - good.mean(axis=0)) > 2 * spread


@pytest.mark.parametrize("rule", ROBUST, ids=lambda rule: rule.name)
def test_what_a_member_claims_as_its_weight_is_no_lever_on_a_robust_rule(rule: Rule) -> None:
    contributions, _ = attacked("random", 7, 1, 0)
    claimed = [
        Contribution(member=one.member, tensors=one.tensors, weight=1e15 if i == 0 else 1.0)
        for i, one in enumerate(contributions)
    ]
    assert aggregated(claimed, rule, 1) == aggregated(contributions, rule, 1)


@pytest.mark.parametrize(
    ("rule", "n", "stands"),
    [
        (FederatedAverage(), 9, 0),
        (CoordinateMedian(), 4, 1),
        (TrimmedMean(), 5, 2),
        (Krum(), 8, 2),
        (Krum(), 3, 0),
        (MultiKrum(), 9, 3),
        (MultiKrum(keep=5), 9, 2),
        (GeometricMedian(), 5, 2),
        (CenteredClipping(radius=1.0), 6, 2),
    ],
)
def test_a_rule_refuses_more_bad_members_than_it_stands(rule: Rule, n: int, stands: int) -> None:
    contributions = contributions_of([[float(i), 1.0] for i in range(n)])
    aggregated(contributions, rule, stands)
    with pytest.raises(ValidationError, match=f"{rule.name} of {n} contributions stands at most {stands} bad members"):
        aggregated(contributions, rule, stands + 1)


@pytest.mark.parametrize(("rule", "n"), [(FederatedAverage(), 0), (CoordinateMedian(), 0), (Krum(), 2)])
def test_too_few_contributions_are_refused(rule: Rule, n: int) -> None:
    with pytest.raises(ValidationError, match=f"{rule.name} of {n} contributions is not defined"):
        aggregate(contributions_of([[1.0]] * n), spec_of({"b": np.zeros(1), "a": np.zeros(0)}), rule, bad=0)


SPEC: Spec = spec_of({"w": np.zeros(2)})
FAULTS: dict[str, tuple[Tensors, float, str]] = {
    "shape": ({"w": np.zeros(3)}, 1.0, "the tensor 'w' is float64 (3,), not float64 (2,)"),
    "dtype": ({"w": np.zeros(2, np.float32)}, 1.0, "the tensor 'w' is float32 (2,), not float64 (2,)"),
    "missing": ({}, 1.0, "the tensor 'w' is missing"),
    "more": ({"w": np.zeros(2), "v": np.zeros(2)}, 1.0, "there should be no tensor 'v'"),
    "NaN": ({"w": np.array([1, np.nan])}, 1.0, "the tensor 'w' holds 1 values that are not finite, of 2"),
    "infinity": ({"w": np.array([np.inf, 1])}, 1.0, "the tensor 'w' holds 1 values that are not finite, of 2"),
    "range": ({"w": np.array([1e39, 1])}, 1.0, "the tensor 'w' holds values beyond the range of float32"),
    "no weight": ({"w": np.zeros(2)}, 0.0, "its weight is above 0 and at most 2**53, not 0.0"),
    "NaN weight": ({"w": np.zeros(2)}, math.nan, "its weight is above 0 and at most 2**53, not nan"),
    "huge weight": ({"w": np.zeros(2)}, 1e300, "its weight is above 0 and at most 2**53, not 1e+300"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_aggregated_is_rejected_with_the_reason(fault: str) -> None:
    tensors, weight, reason = FAULTS[fault]
    good = [Contribution(member=member(i), tensors={"w": np.array([1.0, 2.0])}) for i in range(3)]
    faulty = Contribution(member=member(9), tensors=tensors, weight=weight)
    result = aggregate([*good, faulty], SPEC, CoordinateMedian(), bad=1)
    assert result.rejected == {member(9): reason}
    assert result.used == (member(0), member(1), member(2))
    assert result.tensors["w"].tolist() == [1.0, 2.0]


def test_a_member_that_contributes_twice_is_rejected() -> None:
    contributions = [Contribution(member=member(i % 3), tensors={"w": np.full(2, float(i))}) for i in range(4)]
    result = aggregate(contributions, SPEC, FederatedAverage(), bad=1)
    assert result.rejected == {member(0): "it contributed 2 times"}
    assert result.tensors["w"].tolist() == [1.5, 1.5]


def test_a_rejected_member_is_one_of_the_bad_ones() -> None:
    good = [Contribution(member=member(i), tensors={"w": np.array([1.0, 2.0])}) for i in range(3)]
    broken = [Contribution(member=member(7 + i), tensors={"w": np.full(2, np.nan)}) for i in range(2)]
    assert aggregate([*good, *broken], SPEC, Krum(), bad=2).tensors["w"].tolist() == [1.0, 2.0]
    with pytest.raises(ValidationError, match=r"stands at most 0 bad members, not 1 \(2 were rejected: the tensor 'w'"):
        aggregate([*good, *broken], SPEC, Krum(), bad=3)


def test_only_floating_tensors_can_be_aggregated() -> None:
    spec = spec_of({"steps": np.array(3)})
    with pytest.raises(ValidationError, match=r"'steps' is int64 \(\); only floating tensors"):
        aggregate([], spec, CoordinateMedian(), bad=0)


def test_the_start_of_clipping_fits_the_spec_and_is_finite() -> None:
    for start in ({"w": np.zeros(3)}, {"w": np.array([np.nan, 0.0])}, {"w": np.array([1e300, 0.0])}):
        with pytest.raises(ValidationError, match="'w'"):
            aggregate(
                [Contribution(member=member(1), tensors={"w": np.zeros(2)})],
                SPEC,
                CenteredClipping(radius=1.0, start=start),
                bad=0,
            )


def test_contributions_may_be_whatever_becomes_tensors_and_a_weight_that_is_no_number_is_rejected() -> None:
    given: list[Any] = [np.array([1.0, 2.0], ">f8"), [3.0, 6.0], np.array([np.nan, 0.0], ">f8")]
    contributions = [Contribution(member=member(number), tensors={"w": one}) for number, one in enumerate(given)]
    for number, weight in ((3, cast("float", "1")), (4, 10**400), (5, math.nan), (6, math.inf)):
        contributions.append(Contribution(member=member(number), tensors={"w": np.zeros(2)}, weight=weight))
    found = aggregate(contributions, SPEC, FederatedAverage(), bad=0)
    assert found.tensors["w"].tolist() == [2.0, 4.0]
    assert found.rejected.keys() == {member(number) for number in range(2, 7)}


def test_exchanges_sort_any_number_of_rows() -> None:
    rng = np.random.default_rng(2)
    for n in range(1, 40):
        rows = rng.integers(0, 5, (n, 300)).astype(np.float64)
        assert np.array_equal(in_order(rows), np.sort(rows, axis=0))


def test_folding_is_a_sum_along_the_tree_it_is_said_to_be() -> None:
    rng = random.Random(4)
    for length in [0, 1, 2, 3, 5, 8, 1000]:
        values = [rng.uniform(-1, 1) * 10 ** rng.randrange(-9, 9) for _ in range(length)]
        expected = list(values)
        while len(expected) > 1:
            half = (len(expected) + 1) // 2
            folded = expected[:half]
            for i, value in enumerate(expected[half:]):
                folded[i] += value
            expected = folded
        assert fold(np.array([values, values])).tolist() == (expected or [0.0]) * 2
