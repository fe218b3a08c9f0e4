from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.ids import KAD_KEY_BITS, KadKey
from prime_dht.kad.keyspace import Prefix, bucket_range, closest, common_prefix_length, distance, random_key
from prime_dht.testing.tiny import TINY_BITS, tiny_contact

kad_keys = st.integers(0, 2**KAD_KEY_BITS - 1).map(KadKey)
tiny_keys = st.integers(0, 2**TINY_BITS - 1).map(KadKey)


@given(kad_keys, kad_keys, kad_keys)
@settings(derandomize=True, deadline=None)
def test_distance_is_a_metric(a: KadKey, b: KadKey, c: KadKey) -> None:
    """Scenario 1: identity, symmetry, triangle."""
    assert distance(a, a) == 0
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, b) == distance(b, a)
    assert distance(a, c) <= distance(a, b) + distance(b, c)


@given(tiny_keys, st.integers(0, 255))
@settings(derandomize=True, deadline=None)
def test_exactly_one_point_lies_at_each_distance(a: KadKey, d: int) -> None:
    """Scenario 1: the metric is unidirectional."""
    assert [b for b in range(256) if distance(a, KadKey(b)) == d] == [a ^ d]


@given(kad_keys, kad_keys, kad_keys)
@settings(derandomize=True, deadline=None)
def test_whoever_shares_more_bits_is_closer(a: KadKey, b: KadKey, target: KadKey) -> None:
    if common_prefix_length(a, target) > common_prefix_length(b, target):
        assert distance(a, target) < distance(b, target)


@given(kad_keys)
@settings(derandomize=True, deadline=None)
def test_the_256_bucket_ranges_and_the_key_itself_tile_the_keyspace(local: KadKey) -> None:
    """Scenario 2."""
    ranges = [bucket_range(local, index) for index in range(KAD_KEY_BITS)] + [range(local, local + 1)]
    ranges.sort(key=lambda keys: keys.start)
    assert ranges[0].start == 0
    assert ranges[-1].stop == 2**KAD_KEY_BITS
    assert all(left.stop == right.start for left, right in pairwise(ranges))


@given(tiny_keys)
@settings(derandomize=True, deadline=None)
def test_a_key_is_in_the_range_of_the_bucket_whose_index_is_their_common_prefix(local: KadKey) -> None:
    """Scenario 2, the other way round: in a keyspace small enough to try every key."""
    for index in range(TINY_BITS):
        in_range = set(bucket_range(local, index, bits=TINY_BITS))
        assert in_range == {
            key for key in range(256) if common_prefix_length(local, KadKey(key), bits=TINY_BITS) == index
        }


@given(st.sets(tiny_keys), tiny_keys, st.integers(0, 30))
@settings(derandomize=True, deadline=None)
def test_closest_is_the_head_of_a_brute_force_sort(keys: set[KadKey], target: KadKey, n: int) -> None:
    """Scenario 3."""
    contacts = [tiny_contact(key) for key in keys]
    brute_force = sorted(contacts, key=lambda contact: contact.kad_key ^ target)[:n]
    assert closest(contacts, target, n) == brute_force


@given(kad_keys, st.integers(0, KAD_KEY_BITS))
@settings(derandomize=True, deadline=None)
def test_a_prefix_covers_just_the_range_of_keys_that_share_it(key: KadKey, length: int) -> None:
    prefix = Prefix.of(key, length)
    first, last = KadKey(prefix.keys.start), KadKey(prefix.keys.stop - 1)
    assert prefix.covers(key)
    assert prefix.covers(first)
    assert prefix.covers(last)
    assert last - first + 1 == 2 ** (KAD_KEY_BITS - length)
    assert common_prefix_length(first, last) == length
    if first > 0:
        assert not prefix.covers(KadKey(first - 1))


@pytest.mark.parametrize("index", [0, 100, 255])
def test_a_random_key_falls_into_its_range(index: int) -> None:
    local = KadKey(3 << 200)
    keys = bucket_range(local, index)
    rng = Random(1)
    assert all(common_prefix_length(random_key(keys, rng), local) == index for _ in range(50))
