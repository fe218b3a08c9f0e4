"""Where a peer is looked for that several peers name, some of which lie."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from prime_dht.ids import KadKey, PeerId
from prime_dht.kad.contact import Contact
from prime_dht.kad.lookup import Action, Finished, Lookup, LookupConfig, Query
from prime_dht.testing.tiny import tiny_contact

CONFIG = LookupConfig(k=4, alpha=1, slow_after_s=1.0, query_timeout_s=5.0)
PLACES = 16
"""Addresses of a peer that an address book takes, by its default."""

LIAR, OTHER_LIAR, HONEST = 10, 20, 30


def lookup_of(*seeds: int) -> Lookup:
    return Lookup(KadKey(0), [tiny_contact(key) for key in seeds], local=KadKey(255), config=CONFIG, now_s=0.0)


def asked(actions: Sequence[Action]) -> Contact:
    return next(action.contact for action in actions if isinstance(action, Query))


def lies(liar: int, number: int = 0) -> Contact:
    return tiny_contact(5, addresses=tuple(b"%d: %d.%d" % (liar, number, each) for each in range(8)))


def answers(lookup: Lookup, key: int, *named: Contact) -> None:
    assert asked(lookup.next(0.0)).peer == PeerId(bytes([key]))
    lookup.on_reply(tiny_contact(key), named, 0.0)


def test_two_that_name_a_peer_first_with_many_addresses_leave_a_place_for_what_another_says() -> None:
    lookup = Lookup(
        KadKey(0),
        [tiny_contact(key) for key in (LIAR, OTHER_LIAR, HONEST)],
        local=KadKey(255),
        config=LookupConfig(k=4, alpha=3),
        now_s=0.0,
    )
    lookup.next(0.0)
    lookup.on_reply(tiny_contact(LIAR), [lies(LIAR, number) for number in range(20)], 0.0)
    lookup.on_reply(tiny_contact(OTHER_LIAR), [lies(OTHER_LIAR)], 0.0)
    lookup.on_reply(tiny_contact(HONEST), [tiny_contact(5, addresses=(b"true",))], 0.0)
    assert b"true" in asked(lookup.next(0.0)).addresses[:PLACES]


@pytest.mark.parametrize("fails_first", [True, False])
def test_a_peer_that_failed_where_a_liar_said_it_is_is_asked_again_where_another_says(*, fails_first: bool) -> None:
    peer = PeerId(bytes([5]))
    lookup = lookup_of(LIAR, HONEST)
    answers(lookup, LIAR, lies(LIAR))
    assert asked(lookup.next(0.0)).peer == peer
    if fails_first:
        lookup.on_failure(peer, "nobody is there")
        answers(lookup, HONEST, tiny_contact(5, addresses=(b"true",)))
    else:
        assert asked(lookup.next(1.0)).peer == PeerId(bytes([HONEST])), "for the first is slow"
        lookup.on_reply(tiny_contact(HONEST), [tiny_contact(5, addresses=(b"true",))], 1.0)
        lookup.on_failure(peer, "nobody is there")
    again = asked(lookup.next(1.0))
    assert again.peer == peer
    assert b"true" in again.addresses
    assert lookup.hop(peer).failure == ""
    lookup.on_reply(tiny_contact(5), [], 1.0)
    finished = lookup.next(1.0)[-1]
    assert isinstance(finished, Finished)
    assert [contact.peer[0] for contact in finished.result.closest] == [5, LIAR, HONEST]
    assert [hop.contact.peer[0] for hop in finished.result.path] == [LIAR, 5, HONEST]


def test_a_peer_that_failed_twice_is_asked_no_more_whatever_else_is_said() -> None:
    peer = PeerId(bytes([5]))
    lookup = lookup_of(LIAR, OTHER_LIAR, HONEST)
    for teller in (LIAR, OTHER_LIAR):
        answers(lookup, teller, lies(teller))
        assert asked(lookup.next(0.0)).peer == peer
        lookup.on_failure(peer, "nobody is there")
    answers(lookup, HONEST, lies(HONEST))
    finished = lookup.next(0.0)[-1]
    assert isinstance(finished, Finished)
    assert [hop.failure for hop in finished.result.path if hop.contact.peer == peer] == ["nobody is there"]


@pytest.mark.parametrize("is_asked_again", [True, False])
def test_a_peer_that_answers_late_counts_whether_or_not_it_was_asked_again_meanwhile(*, is_asked_again: bool) -> None:
    peer = PeerId(bytes([5]))
    lookup = lookup_of(LIAR, HONEST)
    answers(lookup, LIAR, lies(LIAR))
    assert asked(lookup.next(0.0)).peer == peer
    assert asked(lookup.next(1.0)).peer == PeerId(bytes([HONEST])), "for the first is slow"
    lookup.on_failure(peer, "nobody is there")
    lookup.on_reply(tiny_contact(HONEST), [tiny_contact(5, addresses=(b"true",))], 1.0)
    if is_asked_again:
        assert asked(lookup.next(1.0)).peer == peer
    lookup.on_reply(tiny_contact(5), [], 1.0)
    lookup.on_failure(peer, "nobody is there either")
    finished = lookup.next(1.0)[-1]
    assert isinstance(finished, Finished)
    assert [contact.peer[0] for contact in finished.result.closest] == [5, LIAR, HONEST]
    assert [hop.failure for hop in finished.result.path] == ["", "", ""]


def test_a_peer_that_failed_where_all_said_that_it_is_is_not_asked_again() -> None:
    peer = PeerId(bytes([5]))
    lookup = Lookup(
        KadKey(0),
        [tiny_contact(key) for key in (LIAR, OTHER_LIAR)],
        local=KadKey(255),
        config=LookupConfig(k=4, alpha=2),
        now_s=0.0,
    )
    lookup.next(0.0)
    for teller in (LIAR, OTHER_LIAR):
        lookup.on_reply(tiny_contact(teller), [lies(teller)], 0.0)
    assert asked(lookup.next(0.0)).peer == peer
    lookup.on_failure(peer, "nobody is there")
    assert isinstance(lookup.next(0.0)[-1], Finished)


def test_a_peer_that_waits_to_be_asked_again_is_not_forgotten_for_others() -> None:
    far = PeerId(bytes([200]))
    config = LookupConfig(k=4, alpha=1, max_queries=4)
    lookup = Lookup(KadKey(0), [tiny_contact(1), tiny_contact(2)], local=KadKey(255), config=config, now_s=0.0)
    answers(lookup, 1, tiny_contact(200, addresses=(b"false",)))
    assert asked(lookup.next(0.0)).peer == PeerId(bytes([2]))
    assert asked(lookup.next(1.0)).peer == far, "for the one before is slow"
    lookup.on_failure(far, "nobody is there")
    others = [tiny_contact(key) for key in range(100, 106)]
    lookup.on_reply(tiny_contact(2), [tiny_contact(200, addresses=(b"true",)), *others], 1.0)
    assert lookup.hop(far).failure == "nobody is there"
