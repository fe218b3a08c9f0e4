from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.errors import ValidationError
from prime_dht.quantities import duration_text, number_of, parse_duration_s, parse_size_bytes, size_text


@settings(derandomize=True)
@given(st.floats(1e-4, 1e15) | st.integers(1, 1 << 40).map(float))
def test_a_duration_is_read_as_it_was_written(seconds: float) -> None:
    assert parse_duration_s(duration_text(seconds)) == seconds


@settings(derandomize=True)
@given(st.integers(0, 1 << 53))
def test_a_size_is_read_as_it_was_written(size_bytes: int) -> None:
    assert parse_size_bytes(size_text(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    ("given", "number"),
    [
        (np.float16(1.5), 1.5),
        (np.float32(2.5), 2.5),
        (np.float64(3.5), 3.5),
        (np.uint8(4), 4),
        (Fraction(1, 2), 0.5),
        (Decimal("2.5"), 2.5),
    ],
)
def test_a_number_is_one_of_pythons_own_whatever_it_was(given: object, number: float) -> None:
    assert (found := number_of("ttl", given)) == number
    assert type(found) is type(number)


@pytest.mark.parametrize("given", [Decimal("sNaN"), Fraction(10**400)], ids=["signals", "large"])
def test_a_number_that_no_float_can_hold_is_refused(given: object) -> None:
    with pytest.raises(ValidationError, match="ttl is a number that a float can hold"):
        number_of("ttl", given)


@pytest.mark.parametrize(
    "text", ["", "h", "1 hour", "-1", "1h30m", "0", "0s", "1" * 400, "nan", "inf", "1e3", "²", "1\n"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="is not a duration"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    "text", ["", "KiB", "64KB", "64k", "64kib", "-1", "0.3B", "1.0001KiB", "9" * 30, "1" * 400, "٣"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="is not a size"):
        parse_size_bytes(text)


def test_a_size_may_be_a_fraction_of_its_unit() -> None:
    assert parse_size_bytes("1.5GiB") == 3 << 29
