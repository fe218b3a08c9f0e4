from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.errors import ConfigError
from prime_dht.ids import KadKey, PeerId
from prime_dht.kad.contact import Contact
from prime_dht.kad.keyspace import common_prefix_length
from prime_dht.kad.routing_table import Added, CheckFirst, Refreshed, Refusal, Rejected, RoutingTable, Waiting
from prime_dht.testing.tiny import TINY_BITS, tiny_contact

LOCAL = KadKey(0b0000_0000)
OLDEST, SECOND, NEWCOMER, LATER = (tiny_contact(key) for key in (0b1000_0001, 0b1000_0010, 0b1000_0011, 0b1000_0100))
"""Four contacts of bucket 0."""


def tiny_table(k: int = 2, *, fresh_s: float = 60.0, stale_s: float = 2580.0, max_per_subnet: int = 3) -> RoutingTable:
    return RoutingTable(LOCAL, k, bits=TINY_BITS, fresh_s=fresh_s, stale_s=stale_s, max_per_subnet=max_per_subnet)


def full_bucket() -> RoutingTable:
    """Bucket 0 holds OLDEST, seen at 0 s, and SECOND, seen at 1 s."""
    table = tiny_table()
    assert table.seen(OLDEST, 0.0) == Added()
    assert table.seen(SECOND, 1.0) == Added()
    return table


def peers(table: RoutingTable) -> set[PeerId]:
    return {contact.peer for contact in table}


@given(st.sets(st.integers(0, 255)), st.integers(0, 255), st.integers(0, 255), st.integers(0, 40))
@settings(derandomize=True, deadline=None)
def test_find_closest_is_the_head_of_a_brute_force_sort(keys: set[int], local: int, target: int, n: int) -> None:
    """Scenario 3."""
    table = RoutingTable(KadKey(local), 4, bits=TINY_BITS)
    for key in sorted(keys):
        table.seen(tiny_contact(key), 0.0)
    brute_force = sorted(table, key=lambda contact: contact.kad_key ^ target)
    assert table.find_closest(KadKey(target), n) == brute_force[:n]
    assert table.find_closest(KadKey(target)) == brute_force[:4]
    even = [contact for contact in brute_force if contact.kad_key % 2 == 0]
    assert table.find_closest(KadKey(target), n, where=lambda contact: contact.kad_key % 2 == 0) == even[:n]


@given(st.lists(st.integers(0, 255)), st.integers(0, 255))
@settings(derandomize=True, deadline=None)
def test_buckets_hold_at_most_k_contacts_of_their_range_each_once(keys: list[int], local: int) -> None:
    table = RoutingTable(KadKey(local), 3, bits=TINY_BITS)
    for key in keys:
        table.seen(tiny_contact(key), 0.0)
    sizes = table.bucket_sizes()
    assert sizes == [
        min(3, len({key for key in keys if common_prefix_length(KadKey(key), KadKey(local), bits=TINY_BITS) == index}))
        for index in range(TINY_BITS)
    ]
    assert sum(sizes) == len(table) == len(peers(table))


def test_a_newcomer_to_a_full_bucket_waits_until_the_least_recently_seen_fails_its_check() -> None:
    """Scenario 4: the newcomer replaces the one that fails."""
    table = full_bucket()
    assert table.seen(NEWCOMER, 100.0) == CheckFirst(OLDEST)
    assert table.get(NEWCOMER.peer) is None
    assert table.remove(OLDEST.peer) == NEWCOMER
    assert peers(table) == {SECOND.peer, NEWCOMER.peer}


def test_a_contact_that_passes_its_check_keeps_its_place() -> None:
    """Scenario 4: one that returns keeps its place, and the next newcomer's check is the next oldest's."""
    table = full_bucket()
    assert table.seen(NEWCOMER, 100.0) == CheckFirst(OLDEST)
    assert table.seen(OLDEST, 101.0) == Refreshed()
    assert peers(table) == {OLDEST.peer, SECOND.peer}
    assert table.seen(LATER, 102.0) == CheckFirst(SECOND)


def test_a_flood_of_newcomers_causes_one_check() -> None:
    table = full_bucket()
    assert table.seen(NEWCOMER, 100.0) == CheckFirst(OLDEST)
    assert [table.seen(tiny_contact(key), 100.0) for key in range(0b1000_0100, 0b1001_0000)] == [Waiting()] * 12
    assert table.seen(NEWCOMER, 160.0) == CheckFirst(OLDEST), "a check that brought no word is asked for again"


def test_contacts_seen_just_now_are_not_checked() -> None:
    table = full_bucket()
    assert table.seen(NEWCOMER, 59.0) == Waiting()


def test_the_most_recently_seen_newcomer_moves_up_and_the_cache_is_bounded() -> None:
    table = full_bucket()
    for key in range(0b1000_0011, 0b1001_0000):
        table.seen(tiny_contact(key), 2.0)
    table.seen(tiny_contact(0b1000_1110), 3.0)
    promoted = [table.remove(peer) for peer in (OLDEST.peer, SECOND.peer, PeerId(b"\x8e"), PeerId(b"\x8f"))]
    assert promoted == [tiny_contact(0b1000_1110), tiny_contact(0b1000_1111), None, None]
    assert len(table) == 0


def test_a_newcomer_that_fails_while_it_waits_never_moves_up() -> None:
    table = full_bucket()
    table.seen(NEWCOMER, 2.0)
    assert table.remove(NEWCOMER.peer) is None
    assert table.remove(OLDEST.peer) is None
    assert peers(table) == {SECOND.peer}


def test_a_bucket_has_room_until_it_is_full_and_where_this_node_lies_there_is_none() -> None:
    table = RoutingTable(KadKey(0), 2, bits=TINY_BITS)
    for key in (0b1000_0001, 0b1000_0010):
        assert table.has_room(KadKey(0b1000_0000))
        table.seen(tiny_contact(key), 0.0)
    assert not table.has_room(KadKey(0b1000_0000))
    assert table.has_room(KadKey(0b0100_0000))
    assert not table.has_room(KadKey(0))


def test_self_is_never_in_the_table() -> None:
    """Scenario 5."""
    table = tiny_table()
    assert table.seen(tiny_contact(LOCAL), 0.0) == Rejected(Refusal.SELF)
    assert len(table) == 0


def test_only_remove_takes_a_contact_out() -> None:
    """Scenarios 14, 33: a failed query evicts. Silence, which is all the table notices of a disconnect, does not."""
    table = full_bucket()
    for now_s in (1e3, 1e6, 1e9):
        table.checks_due(now_s)
        table.buckets_due(now_s)
        table.seen(NEWCOMER, now_s)
    assert peers(table) == {OLDEST.peer, SECOND.peer}
    table.remove(SECOND.peer)
    assert SECOND.peer not in {contact.peer for contact in table.find_closest(SECOND.kad_key, 10)}


def test_a_peer_that_turned_to_client_mode_leaves_and_may_return_as_a_server() -> None:
    """Scenario 23: the caller removes it when identify no longer lists the protocol, on a live connection."""
    table = tiny_table()
    table.seen(OLDEST, 0.0)
    table.remove(OLDEST.peer)
    assert table.get(OLDEST.peer) is None
    assert table.seen(OLDEST, 1.0) == Added()


def test_removing_a_stranger_changes_nothing() -> None:
    table = full_bucket()
    assert table.remove(NEWCOMER.peer) is None
    assert len(table) == 2


def test_seeing_a_contact_again_replaces_what_is_known_of_it() -> None:
    table = full_bucket()
    moved = tiny_contact(OLDEST.kad_key, addresses=(b"new",), syncs=False)
    assert table.seen(moved, 2.0) == Refreshed()
    assert table.get(OLDEST.peer) == moved


def crowd(count: int, subnet: bytes = b"\x08\x08", *, start: int = 0b1000_0000) -> list[Contact]:
    return [tiny_contact(start + index, subnets=(subnet,)) for index in range(count)]


def test_a_small_swarm_may_share_a_subnet() -> None:
    table = tiny_table(k=20)
    assert {type(table.seen(contact, 0.0)) for contact in crowd(19)} == {Added}


def test_a_swarm_is_small_no_more_once_the_table_holds_k_contacts() -> None:
    table = tiny_table(k=20)
    *first, last = crowd(20)
    elsewhere = tiny_contact(0b0100_0000, subnets=last.subnets)
    assert {type(table.seen(contact, 0.0)) for contact in first} == {Added}
    assert table.seen(last, 0.0) == Added()
    assert table.seen(elsewhere, 0.0) == Rejected(Refusal.CROWDED_SUBNET)


def test_contacts_without_a_subnet_are_never_crowded() -> None:
    table = tiny_table(k=20)
    for key in range(1, 256):
        assert table.seen(tiny_contact(key), 0.0) in (Added(), Waiting())


def test_at_most_two_contacts_of_a_subnet_share_a_bucket_and_three_the_table() -> None:
    """Scenario 34."""
    table = tiny_table(k=4)
    for key in (0b0100_0001, 0b0100_0010, 0b0100_0011, 0b0100_0100):
        table.seen(tiny_contact(key), 0.0)
    refused = Rejected(Refusal.CROWDED_SUBNET)
    assert [table.seen(contact, 0.0) for contact in crowd(3)] == [Added(), Added(), refused]
    near = crowd(2, start=0b0010_0000)
    assert [table.seen(contact, 0.0) for contact in near] == [Added(), refused]
    assert table.seen(tiny_contact(0b1000_1000, subnets=(b"\x09\x09",)), 0.0) == Added()


def test_a_place_freed_goes_to_a_newcomer_whose_subnet_has_room() -> None:
    """Scenario 34: the limits hold when a newcomer moves up as well."""
    table = tiny_table(k=3)
    first, second, third = crowd(3)
    other, plain, roomy = tiny_contact(0b1000_1000), tiny_contact(0b1000_1001), tiny_contact(0b1000_1010)
    for contact in (*map(tiny_contact, (0b0100_0000, 0b0100_0001, 0b0100_0010)), first, other, plain):
        assert table.seen(contact, 0.0) == Added()
    assert [table.seen(contact, 1.0) for contact in (roomy, second, third)] == [Waiting()] * 3
    assert table.remove(other.peer) == third
    assert table.remove(plain.peer) == roomy, "second was seen later, but would be the third of its subnet"


def test_a_contact_that_moves_into_a_crowded_subnet_loses_its_place_to_one_that_waits() -> None:
    """Scenario 34."""
    table = tiny_table(k=3)
    first, second, mover, newcomer = (tiny_contact(key) for key in (0b0100_0001, 0b0100_0010, 0b0100_0011, 0b0100_0100))
    third_of_subnet = tiny_contact(0b0010_0000, subnets=(b"\x08\x08",))
    for contact in (first, second, mover, *crowd(2), third_of_subnet):
        assert table.seen(contact, 0.0) == Added()
    assert table.seen(newcomer, 1.0) == Waiting()
    moved = tiny_contact(mover.kad_key, subnets=(b"\x08\x08",))
    assert table.seen(moved, 2.0) == Rejected(Refusal.CROWDED_SUBNET, left=True, successor=newcomer)
    assert table.get(mover.peer) is None
    assert table.get(newcomer.peer) == newcomer
    assert table.remove(mover.peer) is None


def test_when_a_contact_is_rejected_a_free_place_goes_to_one_that_waits_and_fits_by_now() -> None:
    table = tiny_table(k=3)
    leaver, *others = (tiny_contact(key) for key in (0b1000_1000, 0b1000_1001, 0b1000_1010))
    *near, gone = crowd(2, start=0b0100_0000) + crowd(1, start=0b0010_0000)
    elsewhere = [*crowd(1, b"\x09\x09", start=0b0101_0000), *crowd(2, b"\x09\x09", start=0b0011_0000)]
    (waiting,), (rejected,) = crowd(1), crowd(1, b"\x09\x09", start=0b1001_0000)
    for contact in (leaver, *others):
        assert table.seen(contact, 0.0) == Added()
    assert table.seen(waiting, 1.0) == Waiting()
    for contact in (*near, gone, *elsewhere):
        assert table.seen(contact, 1.0) == Added()
    assert table.remove(leaver.peer) is None, "its subnet has three places elsewhere"
    assert table.remove(gone.peer) is None
    assert table.seen(rejected, 2.0) == Rejected(Refusal.CROWDED_SUBNET, successor=waiting)


def test_contacts_unseen_for_long_are_due_for_a_check_once() -> None:
    table = tiny_table(stale_s=1000.0)
    table.seen(OLDEST, 0.0)
    table.seen(SECOND, 1.0)
    assert table.checks_due(999.0) == []
    assert table.checks_due(1000.0) == [OLDEST]
    assert table.checks_due(1000.5) == []
    assert table.checks_due(1001.0) == [SECOND]
    assert table.checks_due(1060.0) == [OLDEST]
    table.seen(OLDEST, 1061.0)
    assert table.checks_due(1500.0) == [SECOND]


def test_buckets_are_due_as_far_as_the_deepest_contact_until_a_lookup_falls_into_them() -> None:
    table = tiny_table()
    assert table.buckets_due(0.0) == []
    table.seen(tiny_contact(0b0010_0000), 0.0)
    assert table.buckets_due(0.0) == [0, 1, 2]
    table.looked_up(KadKey(0b0111_0000), 10.0)
    assert table.buckets_due(3609.0) == [0, 2]
    assert table.buckets_due(3610.0) == [0, 1, 2]


@given(st.integers(0, 255), st.integers(0, 7), st.integers())
@settings(derandomize=True, deadline=None)
def test_a_random_target_lies_in_the_range_of_its_bucket(local: int, index: int, seed: int) -> None:
    table = RoutingTable(KadKey(local), bits=TINY_BITS)
    target = table.random_target(index, Random(seed))
    assert common_prefix_length(target, KadKey(local), bits=TINY_BITS) == index


@pytest.mark.parametrize("now_s", [0.0, -1e18, 1e18, float(2**63), 1e308])
def test_extreme_times_do_not_overflow(now_s: float) -> None:
    """Scenario 21."""
    table = full_bucket()
    table.seen(NEWCOMER, now_s)
    table.checks_due(now_s)
    table.looked_up(NEWCOMER.kad_key, now_s)
    assert table.buckets_due(now_s) == []
    assert peers(table) == {OLDEST.peer, SECOND.peer}


def test_a_table_that_could_hold_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        RoutingTable(LOCAL, 0)
    with pytest.raises(ConfigError, match="8 bits"):
        RoutingTable(KadKey(256), bits=TINY_BITS)


def test_contacts_are_counted_up_to_as_many_as_matter() -> None:
    table = tiny_table(k=4)
    for key in range(1, 16):
        table.seen(tiny_contact(key), 0.0)
    odd = [contact for contact in table if contact.kad_key % 2]
    assert len(odd) > 3
    assert [table.count(lambda contact: contact.kad_key % 2 == 1, at_most=n) for n in (0, 3, 100)] == [0, 3, len(odd)]
