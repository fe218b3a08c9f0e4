"""Locations and sectors. Numbers in names are those of the reference's scenarios."""

from __future__ import annotations

from itertools import pairwise

import pytest

from prime_dht.errors import ValidationError
from prime_dht.ids import KadKey, kad_key
from prime_dht.partition.location import folded_location, location_of_key, sector_locations, sector_of


def test_an_entry_lies_at_the_top_32_bits_of_its_key_s_kad_key() -> None:
    key = kad_key(b"/prime/model")
    assert location_of_key(key) == int.from_bytes(key.to_bytes(32, "big")[:4], "big")
    assert location_of_key(KadKey(2**256 - 1)) == 2**32 - 1


@pytest.mark.parametrize(
    ("op_id", "location"),
    [
        (b"hello", 1819043079),
        (b"1", 49),
        (b"asntoheunatoheuntahoeusth", 454101873),
        (b"\xff" * 6, 4294901760),
        (bytes([1, 2, 3, 230, 44, 77, 99, 82]), 3026210605),
        (bytes([42, 0, 0, 0, 99, 0, 0, 0]), 73),
        (b"", 0),
    ],
)
def test_an_op_id_folds_into_the_location_that_the_reference_gives_it(op_id: bytes, location: int) -> None:
    assert folded_location(op_id) == location


def test_15_the_512_sectors_tile_the_circle() -> None:
    sectors = [sector_locations(sector, sector_bits=9) for sector in range(512)]
    assert sectors[0] == range(2**23)
    assert sectors[-1] == range(2**32 - 2**23, 2**32)
    assert all(one.stop == following.start for one, following in pairwise(sectors))


@pytest.mark.parametrize("sector", [0, 1, 255, 511])
def test_15_a_sector_holds_its_first_and_its_last_location(sector: int) -> None:
    locations = sector_locations(sector, sector_bits=9)
    assert {sector_of(location, sector_bits=9) for location in (locations[0], locations[-1])} == {sector}


@pytest.mark.parametrize("location", [-1, 2**32])
def test_what_lies_outside_the_circle_has_no_sector(location: int) -> None:
    with pytest.raises(ValidationError):
        sector_of(location, sector_bits=9)
