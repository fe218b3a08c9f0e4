from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from random import Random

import pytest

from prime_dht.errors import ConfigError
from prime_dht.ids import KadKey, PeerId
from prime_dht.kad.contact import MAX_ADDRESSES, Contact
from prime_dht.kad.lookup import (
    Action,
    Finished,
    Lookup,
    LookupConfig,
    LookupResult,
    Outcome,
    Query,
    WaitUntil,
    anyone,
)
from prime_dht.kad.routing_table import RoutingTable
from prime_dht.testing.tiny import TINY_BITS, tiny_contact

LOCAL = KadKey(255)
TARGET = KadKey(0)
"""With target 0 a contact's key is its distance."""

SMALL = LookupConfig(k=3, alpha=2, slow_after_s=1.0, query_timeout_s=5.0, timeout_s=30.0)


def contacts(*keys: int) -> list[Contact]:
    return [tiny_contact(key) for key in keys]


def lookup_of(
    *seeds: int,
    config: LookupConfig = SMALL,
    now_s: float = 0.0,
    target: KadKey = TARGET,
    eligible: Callable[[Contact], bool] = anyone,
) -> Lookup:
    return Lookup(target, contacts(*seeds), local=LOCAL, config=config, now_s=now_s, eligible=eligible)


def asked(actions: Iterable[Action]) -> list[int]:
    """The keys of the peers to ask now."""
    return [action.contact.kad_key for action in actions if isinstance(action, Query)]


def result_of(actions: list[Action]) -> LookupResult:
    match actions:
        case [Finished(result)]:
            return result
        case _:
            raise AssertionError(f"still running: {actions}")


def reply(lookup: Lookup, key: int, *closer: int, now_s: float = 0.0) -> None:
    lookup.on_reply(tiny_contact(key), contacts(*closer), now_s)


def keys(result: LookupResult) -> list[int]:
    return [contact.kad_key for contact in result.closest]


def test_it_asks_the_nearest_first_with_at_most_alpha_in_flight() -> None:
    """Scenario 6."""
    lookup = lookup_of(40, 10, 30, 20)
    actions = lookup.next(0.0)
    assert asked(actions) == [10, 20]
    assert actions[0] == Query(tiny_contact(10), deadline_s=5.0)
    assert actions[-1] == WaitUntil(1.0)
    assert lookup.next(0.5) == [WaitUntil(1.0)]


def test_each_answer_makes_room_for_the_next_query_at_once() -> None:
    lookup = lookup_of(10, 20, 30)
    lookup.next(0.0)
    reply(lookup, 20, 5)
    assert asked(lookup.next(0.1)) == [5], "10 has not answered; there are no rounds"


def test_it_converges_when_the_k_closest_seen_have_answered() -> None:
    """Scenario 6: sorted, unique, and no query spent on what cannot be among the k closest."""
    lookup = lookup_of(30, 20, 10, 40)
    assert asked(lookup.next(0.0)) == [10, 20]
    reply(lookup, 10, 20, 30, 5, 5)
    assert asked(lookup.next(0.1)) == [5]
    reply(lookup, 20, 10, 30)
    assert asked(lookup.next(0.2)) == []
    reply(lookup, 5, 10, 20, 30)
    result = result_of(lookup.next(0.3))
    assert result.outcome is Outcome.CONVERGED
    assert keys(result) == [5, 10, 20]
    assert len(result.path) == 3
    assert (result.started_at_s, result.ended_at_s) == (0.0, 0.3)


def test_it_waits_for_a_closer_peer_that_has_not_answered() -> None:
    lookup = lookup_of(10, 20, 30, config=replace(SMALL, alpha=3))
    lookup.next(0.0)
    reply(lookup, 20)
    reply(lookup, 30)
    assert lookup.next(0.1) == [WaitUntil(1.0)]
    reply(lookup, 10)
    assert keys(result_of(lookup.next(0.2))) == [10, 20, 30]


def test_a_result_is_short_only_if_every_peer_heard_of_was_asked() -> None:
    """Scenario 6."""
    lookup = lookup_of(10)
    lookup.next(0.0)
    reply(lookup, 10, 20)
    assert asked(lookup.next(0.1)) == [20]
    lookup.on_failure(PeerId(b"\x14"), "refused")
    result = result_of(lookup.next(0.2))
    assert result.outcome is Outcome.EXHAUSTED
    assert keys(result) == [10]


def test_with_nobody_to_ask_it_ends_at_once() -> None:
    assert result_of(lookup_of().next(0.0)).outcome is Outcome.EXHAUSTED


def test_a_late_answer_counts_while_the_lookup_runs() -> None:
    """Scenario 7: 10 had failed by its deadline, and answers after all."""
    lookup = lookup_of(10, 20)
    lookup.next(0.0)
    reply(lookup, 20, 30)
    assert asked(lookup.next(4.0)) == [30]
    assert lookup.next(5.0) == [WaitUntil(6.0)], "30 is slow now, and silent then"
    reply(lookup, 10, 8, now_s=6.0)
    assert asked(lookup.next(6.0)) == [8]
    reply(lookup, 8)
    result = result_of(lookup.next(7.0))
    assert keys(result) == [8, 10, 20]
    assert [hop.failure for hop in result.path] == ["", "", "", ""]


def test_an_answer_after_the_end_changes_nothing() -> None:
    """Scenario 7."""
    lookup = lookup_of(10)
    lookup.next(0.0)
    ended = result_of(lookup.next(5.0))
    reply(lookup, 10, 1, 2, 3, now_s=6.0)
    assert lookup.next(6.0) == [Finished(ended)]
    assert keys(ended) == []


def test_when_all_fail_it_ends_and_says_so() -> None:
    """Scenario 8."""
    lookup = lookup_of(10, 20, 30)
    failed = 0
    while queries := asked(lookup.next(0.0)):
        for key in queries:
            lookup.on_failure(PeerId(bytes([key])), "connection refused")
            failed += 1
    result = result_of(lookup.next(0.0))
    assert failed == 3
    assert result.outcome is Outcome.EXHAUSTED
    assert result.closest == ()
    assert [hop.failure for hop in result.path] == ["connection refused"] * 3


def test_a_stalled_lookup_widens() -> None:
    """Scenario 9: slow queries stop counting for alpha, up to alpha + k in flight, and still count when they answer."""
    lookup = lookup_of(10, 20, 30, 40, 50, 60, 70)
    assert asked(lookup.next(0.0)) == [10, 20]
    assert asked(lookup.next(0.9)) == []
    assert asked(lookup.next(1.0)) == [30, 40]
    assert asked(lookup.next(2.0)) == [50], "2 + 3 may be in flight"
    assert lookup.next(3.0) == [WaitUntil(5.0)]
    reply(lookup, 10, now_s=4.0)
    assert asked(lookup.next(4.0)) == [60]
    assert asked(lookup.next(5.0)) == [70], "20 failed by its deadline, and 60 has become slow"
    for key in (30, 40):
        reply(lookup, key, now_s=5.5)
    assert keys(result_of(lookup.next(5.5))) == [10, 30, 40]


@pytest.mark.parametrize("alpha", [1, 2, 3])
def test_the_order_of_answers_does_not_change_what_an_honest_graph_yields(alpha: int) -> None:
    """Scenario 10, as far as it goes with one path: any width and any order find the same peers."""
    tables = {key: RoutingTable(KadKey(key), 3, bits=TINY_BITS) for key in range(1, 255)}
    for table in tables.values():
        for key in tables:
            table.seen(tiny_contact(key), 0.0)
    found = []
    for seed in range(20):
        rng = Random(seed)
        lookup = lookup_of(*rng.sample(range(1, 255), 4), config=replace(SMALL, alpha=alpha))
        in_flight: list[int] = []
        while True:
            actions = lookup.next(0.0)
            if isinstance(actions[0], Finished):
                found.append(keys(actions[0].result))
                break
            in_flight += asked(actions)
            answering = in_flight.pop(rng.randrange(len(in_flight)))
            lookup.on_reply(tiny_contact(answering), tables[answering].find_closest(TARGET), 0.0)
    assert found == [[1, 2, 3]] * 20


def test_a_failure_cannot_overwrite_a_success() -> None:
    """Scenario 11."""
    lookup = lookup_of(10)
    lookup.next(0.0)
    reply(lookup, 10)
    lookup.on_failure(PeerId(b"\x0a"), "connection lost")
    assert keys(result_of(lookup.next(0.1))) == [10]


def test_fast_answers_from_far_away_cannot_end_a_lookup_while_closer_peers_have_yet_to_answer() -> None:
    """Scenario 12, as far as it goes with one path: speed buys nothing, closeness would."""
    lookup = lookup_of(10, 100, 101, 102, config=replace(SMALL, alpha=3))
    assert asked(lookup.next(0.0)) == [10, 100, 101]
    reply(lookup, 100, 101, 102, 103)
    reply(lookup, 101, 100, 102, 103)
    lookup.next(0.0)
    reply(lookup, 10, 5, 6, now_s=0.9)
    assert asked(lookup.next(0.9)) == [5, 6]
    reply(lookup, 5, now_s=1.0)
    reply(lookup, 6, now_s=1.0)
    assert keys(result_of(lookup.next(1.0))) == [5, 6, 10]


def test_a_dead_peer_is_never_in_a_result() -> None:
    """Scenarios 14, 32: one that hangs was heard of and asked, and that is all."""
    lookup = lookup_of(10, 20)
    lookup.next(0.0)
    reply(lookup, 20, 10, 30)
    lookup.next(0.1)
    reply(lookup, 30, 10)
    lookup.next(1.0)
    result = result_of(lookup.next(5.0))
    assert keys(result) == [20, 30]
    assert [(hop.contact.kad_key, hop.failure) for hop in result.path if hop.failure] == [
        (10, "no answer before the deadline")
    ]


def test_it_returns_k_peers_however_few_of_them_will_be_replicas() -> None:
    """Scenario 18."""
    lookup = lookup_of(*range(1, 9), config=replace(SMALL, k=5, alpha=5))
    for key in asked(lookup.next(0.0)):
        reply(lookup, key)
    assert keys(result_of(lookup.next(0.1))) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("now_s", [-1e18, 1e18, float(2**63), 1e308])
def test_extreme_times_do_not_overflow(now_s: float) -> None:
    """Scenario 21."""
    lookup = lookup_of(10, 20, now_s=now_s, config=replace(SMALL, timeout_s=float("inf")))
    for _ in range(10):
        if isinstance(lookup.next(now_s)[0], Finished):
            break
        for key in (10, 20):
            reply(lookup, key, now_s=now_s)
    assert keys(result_of(lookup.next(now_s))) == [10, 20]


def test_addresses_from_several_peers_are_tried_together_and_bounded() -> None:
    """Scenario 22: whoever names a peer first, with a bad address, does not keep it from being found."""
    lookup = lookup_of(10, 20, config=replace(SMALL, k=4))
    lookup.next(0.0)
    liar = [tiny_contact(5, addresses=tuple(b"bad %d" % number for number in range(100)))]
    honest = [tiny_contact(5, addresses=(b"good",))]
    lookup.on_reply(tiny_contact(10), liar, 0.0)
    lookup.on_reply(tiny_contact(20), honest, 0.0)
    query = lookup.next(0.0)[0]
    assert isinstance(query, Query)
    assert b"good" in query.contact.addresses
    assert len(query.contact.addresses) <= MAX_ADDRESSES


def test_a_value_is_found_along_a_chain_in_which_each_knows_only_the_next() -> None:
    """Scenario 25: the caller sees the value in the fourth peer's reply and has enough."""
    chain = [40, 30, 20, 10]
    lookup = lookup_of(chain[0])
    for key, following in zip(chain, [*chain[1:], None], strict=True):
        assert asked(lookup.next(0.0)) == [key]
        reply(lookup, key, *([] if following is None else [following]), now_s=float(key))
    result = lookup.finish(41.0)
    assert result.outcome is Outcome.ENOUGH
    assert [(hop.contact.kad_key, hop.told_by, hop.depth) for hop in result.path] == [
        (40, None, 1),
        (30, PeerId(bytes([40])), 2),
        (20, PeerId(bytes([30])), 3),
        (10, PeerId(bytes([20])), 4),
    ]
    assert lookup.next(42.0) == [Finished(result)]


def test_a_caller_can_widen_a_lookup_that_began_narrow_but_not_beyond_k() -> None:
    lookup = lookup_of(10, 20, 30, 40, config=replace(SMALL, alpha=1))
    assert asked(lookup.next(0.0)) == [10]
    lookup.widen(10)
    assert asked(lookup.next(0.0)) == [20, 30]
    lookup.widen(1)
    lookup.on_failure(PeerId(bytes([10])), "refused")
    assert asked(lookup.next(0.0)) == [40], "it never narrows"


def test_finish_after_the_end_returns_the_standing_result() -> None:
    lookup = lookup_of()
    ended = result_of(lookup.next(0.0))
    assert lookup.finish(1.0) is ended


def test_a_peer_with_a_bad_address_fails_before_its_deadline() -> None:
    """Scenario 30: the reported failure frees its place at once."""
    lookup = lookup_of(10, 20, 30)
    assert asked(lookup.next(0.0)) == [10, 20]
    lookup.on_failure(PeerId(b"\x0a"), "bad address")
    assert asked(lookup.next(0.1)) == [30]


def test_peers_that_are_not_eligible_are_asked_and_believed_but_not_returned() -> None:
    """Only peers that sync are replicas; whether one does can come to light when it answers."""
    lookup = lookup_of(10, 20, 30, eligible=lambda contact: contact.syncs, config=replace(SMALL, k=2, alpha=2))
    assert asked(lookup.next(0.0)) == [10, 20]
    lookup.on_reply(tiny_contact(10, syncs=False), contacts(5), 0.0)
    assert asked(lookup.next(0.1)) == [5]
    reply(lookup, 5)
    assert lookup.next(0.2) == [WaitUntil(1.0)], "two answered, but only one of them counts"
    reply(lookup, 20)
    result = result_of(lookup.next(0.3))
    assert result.outcome is Outcome.CONVERGED
    assert keys(result) == [5, 20]


def test_the_exact_target_is_asked_and_reported_though_it_is_not_eligible() -> None:
    """Scenario 31."""
    lookup = lookup_of(10, target=KadKey(7), eligible=lambda contact: contact.syncs)
    lookup.next(0.0)
    reply(lookup, 10, 7)
    assert asked(lookup.next(0.0)) == [7]
    lookup.on_reply(tiny_contact(7, syncs=False), [], 0.0)
    result = result_of(lookup.next(0.0))
    assert keys(result) == [10]
    assert result.path[-1].distance == 0
    assert result.path[-1].answered_at_s == 0.0


def test_a_reply_cannot_fill_the_lookup_with_one_subnet_but_can_name_the_target() -> None:
    """Scenarios 31, 34."""
    lookup = lookup_of(100, 110, 120, target=KadKey(4), config=replace(SMALL, k=3, max_per_subnet=2))
    lookup.next(0.0)
    crowd = [tiny_contact(key, subnets=(b"\x08\x08",)) for key in (100, 0, 1, 2, 3, 4)]
    lookup.on_reply(tiny_contact(100), crowd, 0.0)
    queried: list[int] = []
    while queries := asked(lookup.next(0.0)):
        queried += queries
        for key in queries:
            lookup.on_failure(PeerId(bytes([key])), "")
    assert sorted(queried) == [0, 1, 4, 120]


def test_in_a_small_swarm_a_reply_may_name_peers_of_one_subnet() -> None:
    lookup = lookup_of(100, config=replace(SMALL, max_per_subnet=1))
    lookup.next(0.0)
    crowd = [tiny_contact(key, subnets=(b"\x08\x08",)) for key in (1, 2, 3)]
    lookup.on_reply(tiny_contact(100), crowd, 0.0)
    assert asked(lookup.next(0.0)) == [1, 2]


def test_a_hop_says_how_many_peers_were_named_and_how_its_query_stands() -> None:
    lookup = lookup_of(100, 110, config=replace(SMALL, max_closer=2))
    lookup.next(0.0)
    reply(lookup, 100, 1, 2, 3, now_s=0.5)
    lookup.on_failure(tiny_contact(110).peer, "refused")
    answered, failed = (lookup.hop(tiny_contact(key).peer) for key in (100, 110))
    assert (answered.heard_of, answered.answered_at_s, answered.failure) == (2, 0.5, "")
    assert (failed.heard_of, failed.answered_at_s, failed.failure) == (0, None, "refused")
    lookup.next(0.5)
    named = lookup.hop(tiny_contact(1).peer)
    assert (named.told_by, named.depth, named.asked_at_s) == (tiny_contact(100).peer, 2, 0.5)


def test_an_endless_reply_is_read_only_so_far() -> None:
    lookup = lookup_of(200, config=replace(SMALL, k=100, alpha=100, max_closer=4))
    lookup.next(0.0)
    reply(lookup, 200, *range(1, 100))
    assert asked(lookup.next(0.0)) == [1, 2, 3, 4]


def test_liars_who_always_know_somebody_closer_are_asked_only_so_often() -> None:
    lookup = lookup_of(254, config=replace(SMALL, k=1, alpha=1, max_queries=10))
    for key in range(254, 244, -1):
        assert asked(lookup.next(0.0)) == [key]
        reply(lookup, key, key - 1)
    result = result_of(lookup.next(0.0))
    assert result.outcome is Outcome.QUERY_LIMIT
    assert keys(result) == [245]


def test_of_too_many_peers_the_farthest_are_forgotten() -> None:
    lookup = lookup_of(200, config=replace(SMALL, max_queries=3))
    lookup.next(0.0)
    reply(lookup, 200, 50, 60, 70, 40, 30)
    assert set(lookup._known) == {PeerId(bytes([key])) for key in (30, 40, 50, 200)}, "a bound shows nowhere else"
    assert asked(lookup.next(0.0)) == [30, 40]
    reply(lookup, 30, 70)
    lookup.on_failure(PeerId(bytes([40])), "")
    result = result_of(lookup.next(0.0))
    assert result.outcome is Outcome.QUERY_LIMIT, "not exhausted: 60 and 70 were never asked"
    assert keys(result) == [30, 200]


def test_a_query_that_is_held_up_here_keeps_its_place_and_neither_becomes_slow_nor_fails_until_it_is_sent() -> None:
    lookup = lookup_of(1, 2, 3, 4)
    assert asked(lookup.next(0.0)) == [1, 2]
    lookup.on_held_up(tiny_contact(1).peer)
    reply(lookup, 2)
    assert asked(lookup.next(0.0)) == [3]
    reply(lookup, 3)
    assert lookup.next(0.0) == [WaitUntil(1.0)]
    assert lookup.next(20.0) == [WaitUntil(SMALL.timeout_s)], "4 is asked only if 1 fails"
    lookup.on_sent(tiny_contact(1).peer, 20.0)
    assert lookup.next(20.0) == [WaitUntil(21.0)]
    actions = lookup.next(21.0)
    assert (asked(actions), actions[-1]) == ([4], WaitUntil(22.0))
    reply(lookup, 4, now_s=21.0)
    lookup.on_failure(tiny_contact(1).peer, "silent")
    result = result_of(lookup.next(21.0))
    assert keys(result) == [2, 3, 4]


def test_those_that_can_be_asked_at_once_do_not_wait_for_those_that_are_held_up() -> None:
    lookup = lookup_of(1, 2, 3, 4)
    assert asked(lookup.next(0.0)) == [1, 2]
    for key in (1, 2):
        lookup.on_held_up(tiny_contact(key).peer)
    assert lookup.next(0.5) == [WaitUntil(1.0)]
    assert asked(lookup.next(1.0)) == [3]
    reply(lookup, 3, now_s=1.0)
    assert lookup.next(1.0) == [WaitUntil(SMALL.timeout_s)]
    lookup.on_sent(tiny_contact(3).peer, 2.0)  # of one that is not held up it is ignored
    reply(lookup, 1, now_s=2.0)
    lookup.on_failure(tiny_contact(2).peer, "no turn")
    assert asked(lookup.next(2.0)) == [4]


def test_the_lookup_ends_at_its_deadline_with_what_has_answered() -> None:
    lookup = lookup_of(10, 20, config=replace(SMALL, timeout_s=4.0))
    assert lookup.next(0.0)[-1] == WaitUntil(1.0)
    reply(lookup, 20)
    assert lookup.next(1.0) == [WaitUntil(4.0)]
    result = result_of(lookup.next(4.0))
    assert result.outcome is Outcome.DEADLINE
    assert keys(result) == [20]


def test_an_answer_from_a_peer_that_was_not_asked_is_ignored() -> None:
    lookup = lookup_of(10, 20, 30)
    assert asked(lookup.next(0.0)) == [10, 20]
    reply(lookup, 30, 1, 2)
    reply(lookup, 99, 1, 2)
    reply(lookup, 10)
    assert asked(lookup.next(0.0)) == [30]


def test_a_second_answer_from_one_peer_is_ignored() -> None:
    lookup = lookup_of(10, 20)
    lookup.next(0.0)
    reply(lookup, 10)
    reply(lookup, 10, 1, 2)
    assert asked(lookup.next(0.0)) == []


def test_a_reply_that_names_this_node_is_not_believed() -> None:
    lookup = lookup_of(10, target=LOCAL)
    lookup.next(0.0)
    reply(lookup, 10, LOCAL)
    assert keys(result_of(lookup.next(0.0))) == [10]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: LookupConfig(alpha=0),
        lambda: LookupConfig(alpha=21),
        lambda: LookupConfig(slow_after_s=0.0),
        lambda: LookupConfig(slow_after_s=6.0),
        lambda: LookupConfig(timeout_s=0.0),
        lambda: LookupConfig(max_queries=0),
        lambda: LookupConfig(max_closer=0),
        lambda: LookupConfig(max_per_subnet=0),
    ],
)
def test_a_setting_out_of_range_is_refused(wrong: Callable[[], LookupConfig]) -> None:
    with pytest.raises(ConfigError):
        wrong()
