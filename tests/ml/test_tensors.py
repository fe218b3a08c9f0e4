"""Tensors are normalised once, and whatever does not fit is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from prime_dht.errors import ValidationError
from prime_dht.ml.tensors import (
    BFLOAT16,
    DTYPES,
    TensorSpec,
    Weights,
    as_tensors,
    check_finite,
    check_spec,
    read_spec,
    size_bytes_of,
    spec_of,
)


def test_scalars_lists_and_foreign_byte_orders_become_tensors() -> None:
    big = np.array([1.0, 2.0], ">f4")
    tensors = as_tensors({"scalar": 1.5, "list": [1, 2], "big": big, "across": np.arange(6).reshape(2, 3).T})
    assert tensors["scalar"].shape == ()
    assert tensors["big"].dtype == np.dtype("<f4")
    assert tensors["big"].tobytes() == b"\0\0\x80\x3f\0\0\0\x40"
    assert tensors["across"].tobytes() == np.array([0, 3, 1, 4, 2, 5]).tobytes()


@pytest.mark.parametrize(
    "array", [np.array(["text"]), np.array([object()]), np.array([1j]), np.zeros(2, np.longdouble)]
)
def test_an_array_that_is_no_tensor_is_named(array: object) -> None:
    with pytest.raises(ValidationError, match="tensor 'layer' is of dtype"):
        as_tensors({"layer": array})  # type: ignore[dict-item]


def test_the_spec_of_what_becomes_tensors_is_that_of_the_tensors() -> None:
    given: dict[str, Any] = {
        "scalar": 1.5,
        "list": [1, 2],
        "big": np.array([1.0, 2.0], ">f4"),
        "across": np.zeros((2, 3)).T,
    }
    assert spec_of(given) == spec_of(as_tensors(given))


def test_what_are_no_arrays_is_named() -> None:
    with pytest.raises(ValidationError, match="the tensor 'layer' is no array"):
        as_tensors({"layer": [[1], [2, 3]]})
    for use in (as_tensors, spec_of):
        with pytest.raises(ValidationError, match="tensors are names and arrays, such as a dict or a torch state dict"):
            use([1, 2])  # type: ignore[arg-type]


@pytest.mark.parametrize("use", [as_tensors, spec_of])
def test_what_a_mask_hides_is_not_taken_for_numbers(use: Callable[[Weights], object]) -> None:
    with pytest.raises(ValidationError, match="the tensor 'layer' is masked"):
        use({"layer": np.ma.array([1.0, 2.0], mask=[False, True])})
    records: Any = np.ma.array([(1, 2)], dtype=[("a", int), ("b", int)], mask=[(True, False)])
    with pytest.raises(ValidationError, match="the tensor 'layer' is of dtype"):
        use({"layer": records})
    nothing_hidden = np.ma.array([1.0, 2.0], mask=False)
    assert use({"layer": nothing_hidden}) is not None
    assert type(as_tensors({"layer": nothing_hidden})["layer"]) is np.ndarray


@pytest.mark.parametrize("name", ["", "x" * 1025, "\ud800"])
def test_a_name_is_valid_text_of_some_length(name: str) -> None:
    with pytest.raises(ValidationError, match="a tensor's name is"):
        as_tensors({name: 1.0})


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({"w": np.zeros((2, 3), np.float32)}, "'b' is missing"),
        ({"w": np.zeros((3, 2), np.float32), "b": np.zeros(3)}, r"'w' is float32 \(3, 2\), not float32 \(2, 3\)"),
        ({"w": np.zeros((2, 3), np.float64), "b": np.zeros(3)}, r"'w' is float64 \(2, 3\), not float32 \(2, 3\)"),
        ({"w": np.zeros((2, 3), np.float32), "b": np.zeros(3), "c": np.zeros(1)}, "should be no tensor 'c'"),
    ],
)
def test_what_does_not_fit_a_spec_is_named(tensors: dict[str, np.ndarray], complaint: str) -> None:
    spec = spec_of({"w": np.zeros((2, 3), np.float32), "b": np.zeros(3)})
    with pytest.raises(ValidationError, match=complaint):
        check_spec(tensors, spec)


def test_values_that_are_not_finite_are_counted_in_every_floating_dtype() -> None:
    for dtype in (np.float16, BFLOAT16, np.float32, np.float64):
        check_finite({"w": np.ones(4, dtype)})
        with pytest.raises(ValidationError, match="'w' holds 2 values that are not finite, of 4"):
            check_finite({"w": np.array([1, np.nan, 2, -np.inf]).astype(dtype)})
    check_finite({"mask": np.ones(3, np.bool_), "steps": np.array(7)})


def test_a_spec_knows_the_memory_its_tensors_take() -> None:
    tensors = as_tensors({name: np.zeros((2, 0, 3) if name == "U8" else (2, 3), d) for name, d in DTYPES.items()})
    assert size_bytes_of(spec_of(tensors)) == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize(
    ("code", "shape"),
    [
        ("F31", [1]),
        (7, [1]),
        (["F32"], [1]),
        ("F32", 3),
        ("F32", [-1]),
        ("F32", [True]),
        ("F32", [1.0]),
        ("F32", [1] * 33),
        ("F32", [1 << 49]),
        ("F32", [0, 1 << 30, 1 << 30]),
    ],
)
def test_a_spec_that_no_tensor_has_is_refused(code: object, shape: object) -> None:
    with pytest.raises(ValidationError, match="'w'"):
        read_spec("w", code, shape)


def test_a_spec_is_read_from_its_names() -> None:
    assert read_spec("w", "BF16", [2, 0]) == TensorSpec(BFLOAT16, (2, 0))
