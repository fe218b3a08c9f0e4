"""Peers that were named and never answer: they hold up a lookup for a while, and hide nobody."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from prime_dht.ids import KadKey, PeerId
from prime_dht.kad.hearsay import DOUBTED_AT_ONCE, REMEMBERED_AT_MOST, REMEMBERED_FOR_S, Hearsay, Memory
from prime_dht.kad.lookup import Action, Finished, Lookup, LookupConfig, Outcome, Query, WaitUntil
from prime_dht.testing.tiny import tiny_contact

LOCAL = KadKey(255)
TARGET = KadKey(0)
"""With target 0 a contact's key is its distance."""

LIAR, HONEST, FAR = 100, 110, 120
INVENTED = range(1, 41)
"""Whom the liar names: nearer than anybody, and nobody is there."""

CONFIG = LookupConfig(k=3, alpha=3, slow_after_s=1.0, silent_after_s=2.0, query_timeout_s=10.0, timeout_s=1000.0)


def lookup_among_liars(*seeds: int, config: LookupConfig = CONFIG, doubted: Iterable[int] = ()) -> Lookup:
    known = {PeerId(bytes([key])): config.max_silent for key in doubted}
    return Lookup(TARGET, map(tiny_contact, seeds), local=LOCAL, config=config, now_s=0.0, against=known)


def asked(actions: Iterable[Action]) -> list[int]:
    return [action.contact.kad_key for action in actions if isinstance(action, Query)]


def run(
    lookup: Lookup, answers: dict[int, list[int]], *, late_s: dict[int, float] | None = None
) -> tuple[list[tuple[float, int]], Finished]:
    """Let the peers answer that are in ``answers``, with those they name; when each was asked, and the end.

    Args:
        late_s: who does not answer at once, but so many seconds after it was asked.
    """
    asked_at_s: list[tuple[float, int]] = []
    coming: list[tuple[float, int]] = []
    now_s = 0.0
    while True:
        actions = lookup.next(now_s)
        if isinstance(actions[-1], Finished):
            return asked_at_s, actions[-1]
        asked_at_s += [(now_s, key) for key in asked(actions)]
        coming += [(now_s + (late_s or {}).get(key, 0.0), key) for key in asked(actions) if key in answers]
        assert isinstance(actions[-1], WaitUntil)
        now_s = min([actions[-1].at_s, *(at_s for at_s, _ in coming)])
        for _, key in [one for one in coming if one[0] == now_s]:
            lookup.on_reply(tiny_contact(key), map(tiny_contact, answers[key]), now_s)
        coming = [one for one in coming if one[0] > now_s]


def test_who_is_known_is_asked_before_most_of_what_a_liar_invents() -> None:
    lookup = lookup_among_liars(LIAR, 200, 210, config=replace(CONFIG, alpha=1))
    asked_at_s, _ = run(lookup, {LIAR: [*INVENTED], 200: [], 210: []})
    order = [key for _, key in asked_at_s]
    assert order.index(210) <= 10, "six that are silent are enough, and one or two were asked meanwhile"


def test_a_liar_holds_up_a_lookup_for_seconds_and_the_end_is_as_if_it_had_named_nobody() -> None:
    _, end = run(lookup_among_liars(LIAR, 200, 210, 220), {LIAR: [*INVENTED], 200: [], 210: [], 220: []})
    assert end.result.outcome is Outcome.CONVERGED
    assert [contact.kad_key for contact in end.result.closest] == [LIAR, 200, 210]
    assert end.result.ended_at_s <= 15.0, "it would be 80 s if the next waited for those that are silent"


def test_what_is_in_doubt_is_asked_in_the_end_many_at_a_time_so_that_nobody_who_is_there_is_missed() -> None:
    answers: dict[int, list[int]] = {HONEST: [*INVENTED], 200: [], 210: [], 40: []}
    asked_at_s, end = run(lookup_among_liars(HONEST, 200, 210), answers)
    assert [contact.kad_key for contact in end.result.closest] == [40, HONEST, 200]
    assert {key for _, key in asked_at_s} >= {*INVENTED}
    last_waves = [at_s for at_s, key in asked_at_s if key > 6 and key in INVENTED]
    assert max(map(last_waves.count, last_waves)) == DOUBTED_AT_ONCE


def test_on_a_slow_path_those_in_doubt_are_waited_for_as_long_as_others_before_the_lookup_ends() -> None:
    answers: dict[int, list[int]] = {HONEST: [*range(1, 11)], 200: [], 210: []} | {key: [] for key in range(1, 11)}
    lookup = lookup_among_liars(HONEST, 200, 210, config=replace(CONFIG, k=6))
    _, end = run(lookup, answers, late_s=dict.fromkeys(range(1, 11), 9.0))
    assert end.result.outcome is Outcome.CONVERGED
    assert [contact.kad_key for contact in end.result.closest] == [1, 2, 3, 4, 5, 6]
    assert all(hop.answered_at_s for hop in end.result.path if hop.contact.kad_key <= 6)


def test_contacts_of_the_own_table_are_not_in_doubt_whoever_names_them_as_well() -> None:
    answers: dict[int, list[int]] = {LIAR: [200, 210, *INVENTED], 200: [], 210: []}
    asked_at_s, _ = run(lookup_among_liars(LIAR, 200, 210, config=replace(CONFIG, alpha=1)), answers)
    order = [key for _, key in asked_at_s]
    assert order.index(210) <= 10


def test_whom_somebody_else_has_named_too_is_not_in_doubt() -> None:
    answers: dict[int, list[int]] = {LIAR: [*INVENTED], HONEST: [40], FAR: [], 40: []}
    asked_at_s, _ = run(lookup_among_liars(LIAR, HONEST, FAR), answers)
    when = {key: at_s for at_s, key in asked_at_s}
    assert when[40] <= 3.0
    assert when[39] >= when[40]
    assert when[39] > 3.0


def test_whoever_also_names_those_that_answer_is_believed() -> None:
    answers: dict[int, list[int]] = {HONEST: [*range(1, 21)], 200: [], 210: []} | {key: [] for key in range(2, 21, 2)}
    config = replace(CONFIG, k=6, alpha=1, max_silent=2)
    asked_at_s, _ = run(lookup_among_liars(HONEST, 200, 210, config=config), answers)
    assert [key for _, key in asked_at_s] == [HONEST, *range(1, 13)], "as many as it takes, nearest first"


def test_a_late_answer_counts_as_any_other_and_whoever_names_one_that_is_silent_already_is_charged_for_it() -> None:
    a, b, liar, other = (PeerId(name) for name in (b"a", b"b", b"liar", b"other"))
    hearsay = Hearsay(max_silent=1)
    hearsay.named(a, liar)
    hearsay.named(b, liar)
    hearsay.silent(a)
    assert hearsay.doubted == {liar}
    hearsay.answered(a)
    hearsay.silent(b)
    assert hearsay.doubted == set(), "one of two is silent"
    hearsay.named(b, other)
    assert hearsay.doubted == {other}


def test_of_one_that_is_forgotten_it_is_forgotten_who_named_it() -> None:
    a, b, liar, honest = (PeerId(name) for name in (b"a", b"b", b"liar", b"honest"))
    hearsay = Hearsay(max_silent=1)
    hearsay.named(a, honest)
    hearsay.forget(a)
    hearsay.named(a, liar)
    hearsay.named(b, liar)
    hearsay.silent(b)
    assert hearsay.is_doubted(a)


def test_a_query_that_could_not_be_sent_is_held_against_nobody() -> None:
    lookup = lookup_among_liars(LIAR, 200, 210)
    lookup.next(0.0)
    lookup.on_reply(tiny_contact(LIAR), map(tiny_contact, range(1, 9)), 0.0)
    for expected in range(1, 8):  # 200 and 210 are in flight
        assert asked(lookup.next(0.0)) == [expected]
        lookup.on_held_up(tiny_contact(expected).peer)
        lookup.on_failure(tiny_contact(expected).peer, "no turn to dial")
    assert asked(lookup.next(0.0)) == [8]


def test_a_lookup_that_begins_with_a_doubted_teller_asks_last_of_whom_it_alone_tells() -> None:
    answers: dict[int, list[int]] = {LIAR: [*INVENTED], 200: [], 210: [], 220: []}
    _, first = run(lookup_among_liars(LIAR, 200, 210, 220), answers)
    assert first.result.against[PeerId(bytes([LIAR]))] == len(INVENTED)
    asked_at_s, second = run(lookup_among_liars(LIAR, 200, 210, 220, doubted=[LIAR]), answers)
    assert [key for _, key in asked_at_s][:3] == [LIAR, 200, 210]
    assert {key for _, key in asked_at_s} >= {*INVENTED}
    assert second.result.ended_at_s <= 4.0, "two waves of twenty, until they are silent"
    assert second.result.closest == first.result.closest
    assert second.result.against[PeerId(bytes([LIAR]))] >= 0, "nothing speaks for it"


def test_who_was_doubted_is_believed_again_when_one_that_it_names_answers() -> None:
    answers: dict[int, list[int]] = {HONEST: [40], 200: [], 210: [], 40: []}
    _, end = run(lookup_among_liars(HONEST, 200, 210, doubted=[HONEST, LIAR]), answers)
    assert [contact.kad_key for contact in end.result.closest] == [40, HONEST, 200]
    assert end.result.against == {PeerId(bytes([HONEST])): -1}


@pytest.mark.parametrize("is_doubted", [False, True])
def test_who_failed_is_asked_again_where_another_says_it_is_even_one_that_is_doubted(*, is_doubted: bool) -> None:
    config = replace(CONFIG, k=5, max_silent=2)
    lookup = lookup_among_liars(LIAR, FAR, config=config, doubted=[FAR] if is_doubted else [])
    lookup.next(0.0)
    lookup.on_reply(tiny_contact(LIAR), [tiny_contact(key, addresses=(b"false",)) for key in (1, 2)], 0.0)
    assert asked(lookup.next(0.0)) == [1, 2]
    for key in (1, 2):
        lookup.on_failure(tiny_contact(key).peer, "nobody is there")
    lookup.on_reply(tiny_contact(FAR), [tiny_contact(1, addresses=(b"elsewhere",))], 0.0)
    assert asked(lookup.next(0.0)) == [1]


def test_one_that_is_silent_when_a_lookup_has_enough_counts_against_nobody() -> None:
    lookup = lookup_among_liars(HONEST, 200)
    lookup.next(0.0)
    lookup.on_reply(tiny_contact(HONEST), [tiny_contact(1)], 0.0)
    lookup.next(0.0)
    lookup.next(3.0)
    assert lookup.finish(3.0).against == {PeerId(bytes([HONEST])): 0}


def test_what_counts_against_a_teller_adds_up_over_lookups_until_one_that_it_names_answers() -> None:
    memory, liar = Memory(max_silent=2), PeerId(b"liar")
    for count in (1, 2, 2):
        memory.learn({liar: 1}, 0.0)
        assert memory.now(1.0) == {liar: count}
    memory.learn({liar: -1}, 2.0)
    assert memory.now(3.0) == {liar: 1}
    memory.learn({liar: -8}, 4.0)
    assert memory.now(5.0) == {}


def test_what_a_lookup_began_with_stays_as_it_was_and_is_not_made_anew_while_nothing_changes() -> None:
    memory, liar, honest = Memory(max_silent=2), PeerId(b"liar"), PeerId(b"honest")
    memory.learn({liar: 2}, 0.0)
    before = memory.now(1.0)
    memory.learn({liar: 1, honest: -3}, 2.0)
    assert memory.now(3.0) is before, "each put and get asks"
    memory.learn({liar: -1}, 4.0)
    assert (before, memory.now(5.0)) == ({liar: 2}, {liar: 1})


def test_what_counts_against_tellers_is_remembered_for_a_while_and_of_so_many_at_most() -> None:
    memory, liar = Memory(max_silent=2), PeerId(b"liar")
    memory.learn({liar: 5}, 0.0)
    memory.learn({liar: 1}, 100.0)
    assert memory.now(REMEMBERED_FOR_S - 1.0) == {liar: 2}
    assert memory.now(REMEMBERED_FOR_S) == {}
    others = [PeerId(b"%d" % number) for number in range(REMEMBERED_AT_MOST)]
    for peer in (liar, *others):
        memory.learn({peer: 1}, 1000.0)
    assert memory.now(1001.0) == dict.fromkeys(others, 1)
