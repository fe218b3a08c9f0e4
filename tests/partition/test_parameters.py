"""Parameters of the partition. Numbers in names are those of the reference's scenarios."""

from __future__ import annotations

from typing import Any

import pytest

from prime_dht.errors import ConfigError
from prime_dht.partition.parameters import PARAMETERS, PartitionParameters, residual_us


@pytest.mark.parametrize(("power", "units"), [(0, 1), (1, 3), (2, 7), (5, 63), (53, 2**54 - 1)])
def test_1_slices_of_each_size_together_last_one_unit_less_than_the_next_size(power: int, units: int) -> None:
    assert residual_us(power, unit_us=900) == units * 900


@pytest.mark.parametrize("power", [-1, 54])
def test_1_sizes_beyond_53_powers_of_two_are_an_error(power: int) -> None:
    with pytest.raises(ConfigError, match="power"):
        residual_us(power, unit_us=1)


def test_2_with_a_factor_of_4_at_least_15_units_are_in_partial_slices() -> None:
    assert PartitionParameters(factor=4).min_recent_us == 15 * 15 * 60 * 1_000_000


def test_the_defaults_are_the_reference_s() -> None:
    assert PARAMETERS.unit_us == 900 * 1_000_000
    assert PARAMETERS.full_us == 460_800 * 1_000_000
    assert PARAMETERS.min_recent_us == 511 * PARAMETERS.unit_us
    assert PARAMETERS.sector_count == 512


@pytest.mark.parametrize(
    "wrong",
    [{"unit_us": 0}, {"unit_us": 2**63}, {"factor": 0}, {"factor": 54}, {"sector_bits": 4}, {"sector_bits": 13}],
)
def test_parameters_out_of_range_are_an_error_that_names_them(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PartitionParameters(**wrong)
