"""Arc sets. Numbers in names are those of the reference's scenarios."""

from __future__ import annotations

from operator import and_, or_, sub

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.errors import ValidationError
from prime_dht.partition.arcs import Arc, ArcSet

END = 2**32 - 1
HALF = 2**31
WHOLE_CIRCLE = Arc(0, END)
EMPTY, FULL = ArcSet.empty(sector_bits=9), ArcSet.full(sector_bits=9)

arc_sets = st.integers(0, 2**512 - 1).map(lambda bits: ArcSet(bits, 9))


def sectors(first: int, last: int) -> Arc:
    """The arc from one sector to another, both included."""
    return Arc(first << 23, ((last + 1) << 23) - 1)


def of(*arcs: Arc) -> ArcSet:
    return ArcSet.of(arcs, sector_bits=9)


def test_19_no_arc_makes_an_empty_set() -> None:
    assert of() == EMPTY
    assert len(EMPTY) == 0
    assert not EMPTY


def test_19_the_whole_circle_is_512_sectors() -> None:
    assert of(WHOLE_CIRCLE) == FULL
    assert len(FULL) == 512


def test_19_two_halves_are_the_whole() -> None:
    assert of(Arc(0, HALF - 1), Arc(HALF, END)) == FULL


def test_19_sectors_that_arcs_share_count_once() -> None:
    assert list(of(sectors(0, 2), sectors(1, 3))) == [0, 1, 2, 3]


def test_19_an_arc_wraps_around() -> None:
    assert list(of(sectors(510, 2))) == [0, 1, 2, 510, 511]


def test_19_an_arc_that_wraps_around_may_overlap_another() -> None:
    assert list(of(sectors(510, 2), sectors(2, 3))) == [0, 1, 2, 3, 510, 511]


@pytest.mark.parametrize("arc", [Arc(1, 2**23 - 1), Arc(0, 2**23), Arc(0, 50), Arc(1, 0), Arc(0, 2**32)])
def test_20_an_arc_that_does_not_begin_and_end_where_sectors_do_is_an_error(arc: Arc) -> None:
    with pytest.raises(ValidationError):
        of(arc)


def test_20_a_valid_arc_does_not_excuse_an_invalid_one() -> None:
    with pytest.raises(ValidationError, match="begin and end"):
        of(sectors(0, 1), Arc(0, 50))


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        (of(sectors(0, 1)), of(sectors(2, 3)), []),
        (of(sectors(0, 2)), of(sectors(2, 4)), [2]),
        (of(sectors(500, 4)), of(sectors(2, 510)), [2, 3, 4, *range(500, 511)]),
        (FULL, FULL, list(range(512))),
        (EMPTY, FULL, []),
    ],
    ids=["disjoint", "by one", "by many", "full and full", "empty and full"],
)
def test_21_intersections(one: ArcSet, other: ArcSet, common: list[int]) -> None:
    assert list(one & other) == list(other & one) == common


@pytest.mark.parametrize("arcs", [EMPTY, FULL, of(sectors(1, 1), sectors(33, 34), sectors(511, 511))])
def test_22_what_was_encoded_is_decoded(arcs: ArcSet) -> None:
    assert ArcSet.decode(arcs.encode(), sector_bits=9) == arcs


def test_22_sector_s_is_bit_s_mod_32_of_the_little_endian_word_s_div_32() -> None:
    words = np.frombuffer(of(sectors(1, 1), sectors(33, 34), sectors(511, 511)).encode(), "<u4")
    assert words.tolist() == [2, 0b110, *[0] * 13, 1 << 31]


@pytest.mark.parametrize("size", [0, 63, 65, 512])
def test_22_bytes_of_another_length_are_no_arc_set(size: int) -> None:
    with pytest.raises(ValidationError, match="64 bytes"):
        ArcSet.decode(bytes(size), sector_bits=9)


def test_23_an_empty_set_has_no_arcs() -> None:
    assert EMPTY.arcs() == []


@pytest.mark.parametrize(
    "arcs", [[WHOLE_CIRCLE], [Arc(0, HALF - 1), Arc(HALF, END)], [sectors(0, 300), sectors(200, 511)]]
)
def test_23_a_full_set_is_one_arc_whatever_it_was_made_of(arcs: list[Arc]) -> None:
    assert of(*arcs).arcs() == [WHOLE_CIRCLE]


def test_23_an_arc_and_the_one_around_from_its_end_are_the_whole_circle() -> None:
    assert of(sectors(3, 9), sectors(10, 2)).arcs() == [WHOLE_CIRCLE]
    assert of(sectors(10, 9)).arcs() == [WHOLE_CIRCLE]


def test_23_arcs_come_in_order() -> None:
    assert of(sectors(7, 8), sectors(1, 2)).arcs() == [sectors(1, 2), sectors(7, 8)]


def test_23_an_arc_that_wraps_around_is_split_at_0() -> None:
    assert of(sectors(510, 2)).arcs() == [sectors(0, 2), sectors(510, 511)]


def test_the_sectors_of_a_short_prefix_are_those_that_begin_with_it() -> None:
    assert ArcSet.of_prefix(0, 0, sector_bits=9) == FULL
    assert ArcSet.of_prefix(1, 1, sector_bits=9).arcs() == [Arc(HALF, END)]
    assert list(ArcSet.of_prefix(0b1000000110, 9 + 1, sector_bits=9)) == [0b100000011]
    assert list(ArcSet.of_prefix(0b100000011, 9, sector_bits=9)) == [0b100000011]


@pytest.mark.parametrize(("prefix", "length"), [(2, 1), (-1, 3), (0, -1)])
def test_a_prefix_has_no_more_bits_than_its_length(prefix: int, length: int) -> None:
    with pytest.raises(ValidationError):
        ArcSet.of_prefix(prefix, length, sector_bits=9)


def test_a_set_covers_the_locations_of_its_sectors() -> None:
    arcs = of(sectors(1, 1))
    assert [arcs.covers(location) for location in (2**23 - 1, 2**23, 2**24 - 1, 2**24)] == [False, True, True, False]
    assert 1 in arcs
    assert 2 not in arcs
    assert -1 not in arcs


@pytest.mark.parametrize("sector", [-1, 512])
def test_a_set_has_only_sectors_that_exist(sector: int) -> None:
    with pytest.raises(ValidationError):
        ArcSet.of_sectors([sector], sector_bits=9)


@pytest.mark.parametrize("bits", [-1, 1 << 512])
def test_a_set_has_no_more_bits_than_there_are_sectors(bits: int) -> None:
    with pytest.raises(ValidationError):
        ArcSet(bits, 9)


def test_sets_of_sectors_of_different_sizes_do_not_mix() -> None:
    for mixed in (and_, or_, sub):
        with pytest.raises(ValidationError, match="9 and 5"):
            mixed(FULL, ArcSet.full(sector_bits=5))


@settings(derandomize=True, deadline=None, max_examples=50)
@given(arc_sets, arc_sets)
def test_sets_behave_like_sets_of_numbers(one: ArcSet, other: ArcSet) -> None:
    assert set(one & other) == set(one) & set(other)
    assert set(one | other) == set(one) | set(other)
    assert set(one - other) == set(one) - set(other)
    assert of(*one.arcs()) == one
    assert ArcSet.of_sectors(one, sector_bits=9) == one


@settings(derandomize=True, deadline=None, max_examples=50)
@given(arc_sets | st.tuples(st.integers(0, 511), st.integers(0, 511)).map(lambda ends: of(sectors(*ends))))
def test_a_set_selects_its_sectors_from_an_array(arcs: ArcSet) -> None:
    numbers = np.arange(512)
    assert numbers[arcs.columns].tolist() == numbers[arcs.mask].tolist() == list(arcs)
