from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.ids import KadKey
from prime_dht.kad.contact import Contact
from prime_dht.kad.keyspace import Prefix
from prime_dht.kad.lookup import LookupResult, Outcome
from prime_dht.kad.replicas import TargetArc, answered_keys, choose_replicas, known_region, quorum, target_arc
from prime_dht.testing.tiny import TINY_BITS, tiny_contact

LOCAL = KadKey(0b1011_0000)
EVERY_KEY = [KadKey(key) for key in range(256)]
some_keys = st.sets(st.integers(0, 255))


def first_bits(length: int) -> Prefix:
    return Prefix.of(LOCAL, length, bits=TINY_BITS)


def test_replicas_are_the_closest_servers_that_sync() -> None:
    contacts = [tiny_contact(1, syncs=False), tiny_contact(4), tiny_contact(2), tiny_contact(8)]
    assert choose_replicas(KadKey(0), contacts, 2) == [tiny_contact(2), tiny_contact(4)]


def test_this_node_is_a_replica_only_in_server_mode() -> None:
    contacts = [tiny_contact(4), tiny_contact(8)]
    assert choose_replicas(KadKey(0), contacts, 2, own=tiny_contact(1)) == [tiny_contact(1), tiny_contact(4)]
    assert choose_replicas(KadKey(0), contacts, 2) == contacts


@pytest.mark.parametrize(
    ("replication", "servers", "needed"), [(3, 20, 2), (3, 2, 2), (3, 1, 1), (3, 0, 0), (1, 9, 1), (4, 9, 3), (5, 9, 3)]
)
def test_a_quorum_is_a_majority_of_the_replicas_capped_by_the_servers_known(
    replication: int, servers: int, needed: int
) -> None:
    assert quorum(replication, servers) == needed


def test_the_target_arc_is_as_deep_as_the_buckets_hold_r_servers_that_sync() -> None:
    bucket_0 = [tiny_contact(key) for key in (1, 2, 3)]
    bucket_1 = [tiny_contact(0b1100_0000 + key) for key in (1, 2, 3)]
    bucket_2 = [tiny_contact(0b1001_0000), tiny_contact(0b1000_0000), tiny_contact(0b1000_0001, syncs=False)]
    bucket_3 = [tiny_contact(0b1010_0000 + key) for key in (1, 2, 3)]
    everyone = [*bucket_0, *bucket_1, *bucket_2, *bucket_3]
    assert target_arc(LOCAL, everyone, 3, bits=TINY_BITS) == first_bits(2)
    assert target_arc(LOCAL, everyone, 2, bits=TINY_BITS) == first_bits(4)
    assert target_arc(LOCAL, bucket_1, 3, bits=TINY_BITS) == first_bits(0)


@given(some_keys, st.integers(0, 255), st.integers(1, 5))
@settings(derandomize=True, deadline=None)
def test_outside_the_target_arc_r_servers_are_closer_than_this_node(keys: set[int], local: int, r: int) -> None:
    contacts = [tiny_contact(key, syncs=key % 5 != 0) for key in keys]
    arc = target_arc(KadKey(local), contacts, r, bits=TINY_BITS)
    assert arc.covers(KadKey(local))
    for key in EVERY_KEY:
        if not arc.covers(key):
            closer = [contact for contact in contacts if contact.syncs and contact.kad_key ^ key < local ^ key]
            assert len(closer) >= r


def test_with_every_point_taken_the_arc_ends_where_buckets_are_too_small() -> None:
    contacts = [tiny_contact(key) for key in EVERY_KEY]
    assert target_arc(LOCAL, contacts, 3, bits=TINY_BITS) == first_bits(6)
    assert target_arc(LOCAL, contacts, 1, bits=TINY_BITS) == first_bits(8)


def test_the_target_arc_grows_at_once() -> None:
    arc = TargetArc(first_bits(4), refresh_interval_s=3600.0)
    assert arc.update(first_bits(2), 0.0) == first_bits(2)
    assert arc.arc == first_bits(2)


def test_it_shrinks_after_a_whole_interval_to_the_largest_that_was_observed() -> None:
    arc = TargetArc(first_bits(1), refresh_interval_s=3600.0)
    assert arc.update(first_bits(4), 1000.0) == first_bits(1)
    assert arc.update(first_bits(3), 2000.0) == first_bits(1)
    assert arc.update(first_bits(5), 4599.0) == first_bits(1)
    assert arc.update(first_bits(5), 4600.0) == first_bits(3)
    assert arc.update(first_bits(5), 4601.0) == first_bits(3)
    assert arc.update(first_bits(5), 8201.0) == first_bits(5)


def test_an_arc_that_grows_back_starts_the_interval_again() -> None:
    arc = TargetArc(first_bits(1), refresh_interval_s=3600.0)
    arc.update(first_bits(4), 0.0)
    arc.update(first_bits(1), 3000.0)
    assert arc.update(first_bits(4), 3600.0) == first_bits(1)
    assert arc.update(first_bits(4), 7199.0) == first_bits(1)
    assert arc.update(first_bits(4), 7200.0) == first_bits(4)


def lookup_result(target: int, servers: list[Contact], k: int) -> LookupResult:
    """What a lookup returns that misses nobody."""
    return LookupResult(
        target=KadKey(target),
        outcome=Outcome.CONVERGED if len(servers) >= k else Outcome.EXHAUSTED,
        closest=tuple(sorted(servers, key=lambda server: server.kad_key ^ target)[:k]),
        path=(),
        started_at_s=0.0,
        ended_at_s=1.0,
    )


@given(some_keys, st.integers(0, 255), st.integers(1, 8), st.integers(1, 4))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_a_result_holds_the_r_closest_to_every_key_it_answers(keys: set[int], target: int, k: int, r: int) -> None:
    servers = [tiny_contact(key) for key in keys]
    r = min(r, k)
    result = lookup_result(target, servers, k)
    answered = answered_keys(EVERY_KEY, result, r, bits=TINY_BITS)
    assert target in answered
    for key in answered:
        assert choose_replicas(key, result.closest, r) == choose_replicas(key, servers, r)


def test_one_lookup_answers_its_whole_neighbourhood() -> None:
    servers = [tiny_contact(key) for key in range(0, 256, 8)]
    result = lookup_result(0b0100_0001, servers, 6)
    assert [server.kad_key for server in result.closest] == [0x40, 0x48, 0x50, 0x58, 0x60, 0x68]
    assert known_region(result, bits=TINY_BITS) == Prefix(value=0b010, length=3, bits=TINY_BITS)
    assert answered_keys(EVERY_KEY, result, 3, bits=TINY_BITS) == EVERY_KEY[0x40:0x60]


def test_a_neighbourhood_with_just_as_many_servers_as_replicas_is_answered_and_one_with_fewer_is_not() -> None:
    result = lookup_result(0b0100_0001, [tiny_contact(key) for key in range(0, 256, 8)], 6)
    assert [server.kad_key for server in result.closest if server.kad_key < 0x60] == [0x40, 0x48, 0x50, 0x58]
    assert answered_keys(EVERY_KEY, result, 4, bits=TINY_BITS) == EVERY_KEY[0x40:0x60]
    assert answered_keys(EVERY_KEY, result, 5, bits=TINY_BITS) == [0b0100_0001]


def test_in_a_small_swarm_one_lookup_answers_every_key() -> None:
    result = lookup_result(7, [tiny_contact(key) for key in (3, 100, 200)], 20)
    assert answered_keys(EVERY_KEY, result, 3, bits=TINY_BITS) == EVERY_KEY


@pytest.mark.parametrize("servers", [[], [3], [3, 200]])
def test_so_it_does_where_there_are_fewer_servers_than_replicas_wanted(servers: list[int]) -> None:
    result = lookup_result(7, [tiny_contact(key) for key in servers], 20)
    assert answered_keys(EVERY_KEY, result, 3, bits=TINY_BITS) == EVERY_KEY


@pytest.mark.parametrize("outcome", [Outcome.ENOUGH, Outcome.DEADLINE, Outcome.QUERY_LIMIT])
def test_a_lookup_cut_short_answers_only_its_target(outcome: Outcome) -> None:
    cut_short = LookupResult(
        target=KadKey(7),
        outcome=outcome,
        closest=tuple(tiny_contact(key) for key in (1, 2, 3)),
        path=(),
        started_at_s=0.0,
        ended_at_s=1.0,
    )
    assert answered_keys(EVERY_KEY, cut_short, 1, bits=TINY_BITS) == [7]
