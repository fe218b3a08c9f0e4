"""A lookup that begins with the few contacts that may be all it takes, and has others in reserve."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from prime_dht.ids import KadKey
from prime_dht.kad.contact import Contact
from prime_dht.kad.lookup import Action, Finished, Lookup, LookupConfig, Outcome, Query
from prime_dht.testing.tiny import tiny_contact

LOCAL = KadKey(255)
TARGET = KadKey(0)
"""With target 0 a contact's key is its distance."""

PAIR = LookupConfig(k=2, alpha=2, slow_after_s=1.0, query_timeout_s=5.0)


def contacts(*keys: int) -> list[Contact]:
    return [tiny_contact(key) for key in keys]


def asked(actions: Iterable[Action]) -> list[int]:
    """The keys of the peers to ask now."""
    return [action.contact.kad_key for action in actions if isinstance(action, Query)]


def reply(lookup: Lookup, key: int) -> None:
    lookup.on_reply(tiny_contact(key), (), 0.0)


def lookup_with_reserve(*seeds: int, reserve: Iterable[int]) -> tuple[Lookup, list[str]]:
    """A lookup for the 2 closest, with 2 in flight, and what it noted when it drew on its reserve."""
    drawn: list[str] = []

    def draw() -> list[Contact]:
        drawn.append("drawn")
        return contacts(*reserve)

    return Lookup(TARGET, contacts(*seeds), local=LOCAL, config=PAIR, now_s=0.0, reserve=draw), drawn


def test_a_lookup_that_its_seeds_are_enough_for_does_not_draw_on_its_reserve() -> None:
    lookup, drawn = lookup_with_reserve(10, 20, reserve=[10, 20, 30])
    assert asked(lookup.next(0.0)) == [10, 20]
    reply(lookup, 10)
    lookup.next(0.1)
    reply(lookup, 20)
    [end] = lookup.next(0.2)
    assert isinstance(end, Finished)
    assert end.result.outcome is Outcome.CONVERGED
    assert end.result.closest == tuple(contacts(10, 20))
    assert not drawn


def fail_10(lookup: Lookup) -> None:
    lookup.on_failure(tiny_contact(10).peer, "refused")


def keep_waiting_for_10(_lookup: Lookup) -> None:
    pass


@pytest.mark.parametrize("happen", [fail_10, keep_waiting_for_10])
def test_when_a_seed_fails_or_is_slow_the_lookup_goes_on_with_its_reserve(happen: Callable[[Lookup], None]) -> None:
    lookup, drawn = lookup_with_reserve(10, 20, reserve=[10, 20, 30, 40])
    lookup.next(0.0)
    reply(lookup, 20)
    happen(lookup)
    assert asked(lookup.next(1.0)) == [30]
    assert drawn == ["drawn"]


def test_too_few_seeds_are_made_up_for_from_the_reserve_at_once_and_only_once() -> None:
    lookup, drawn = lookup_with_reserve(20, reserve=[20, 10])
    assert asked(lookup.next(0.0)) == [20, 10]
    reply(lookup, 10)
    reply(lookup, 20)
    [end] = lookup.next(0.1)
    assert isinstance(end, Finished)
    assert drawn == ["drawn"]


def test_the_reserve_counts_as_known_before_closer_peers_are_believed() -> None:
    crowd = [replace(tiny_contact(key), subnets=(b"crowd",)) for key in (1, 2, 3, 4)]
    lookup, drawn = lookup_with_reserve(10, 20, reserve=[10, 20, 30])
    lookup.next(0.0)
    lookup.on_reply(tiny_contact(10), crowd, 0.1)
    assert drawn == ["drawn"]
    assert asked(lookup.next(0.1)) == [1], "20 is in flight"
    reply(lookup, 20)
    assert asked(lookup.next(0.2)) == [2]


def test_a_reserve_that_is_not_enough_either_is_drawn_on_once() -> None:
    lookup, drawn = lookup_with_reserve(20, reserve=[20])
    assert asked(lookup.next(0.0)) == [20]
    reply(lookup, 20)
    [end] = lookup.next(0.1)
    assert isinstance(end, Finished)
    assert end.result.outcome is Outcome.EXHAUSTED
    assert drawn == ["drawn"]


def test_while_as_many_are_asked_as_may_be_nobody_in_the_reserve_matters() -> None:
    lookup, drawn = lookup_with_reserve(10, reserve=[10, 20, 30])
    lookup.narrow(1)
    assert asked(lookup.next(0.0)) == [10]
    assert not drawn
    lookup.widen(2)
    assert asked(lookup.next(0.1)) == [20]
