"""Every bound of a round bounds what it is there for. Most are lowered here, so that a small store shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from types import ModuleType

import pytest

from prime_dht.entries.entry import Entry
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.parameters import PARAMETERS
from prime_dht.partition.slices import layout_at
from prime_dht.partition.symbols import Code
from prime_dht.sync import exchange, finding, follow, lead
from prime_dht.sync.actions import Action, Ending, Event, Fate, FetchEntries, FetchOps, Judged, Misconduct, Rest
from prime_dht.sync.limits import MAX_MESSAGE_BYTES, MAX_QUESTIONS, TURN_BYTES
from prime_dht.sync.messages import (
    WANT_BYTES,
    Acceptance,
    AskCells,
    AskChecksums,
    AskIds,
    AskSymbols,
    IdsTold,
    Message,
    Open,
    Question,
    SymbolsTold,
    Turn,
)
from prime_dht.sync.round import Round
from prime_dht.testing.sync_pair import CIRCLE, NOW_US, YEAR_US, Base, Party, Ran, Side, run_round, unsigned_entry

BASE = Base(3000)
FIRST = Turn(acceptance=Acceptance(arc=CIRCLE, held=CIRCLE))
ONE_SECTOR = ArcSet.of_sectors([7], sector_bits=9)
SALTED = AskSymbols(arcs=ONE_SECTOR, start=0, stop=8, code=Code(bytes(16)))
BEYOND_THOSE_KEPT = AskSymbols(arcs=ONE_SECTOR, start=0, stop=Party().partition.sketches.m + 1)
LAYOUT, LATER = (layout_at(NOW_US + ticks * PARAMETERS.unit_us, PARAMETERS) for ticks in (0, 1))
ALL_IDS = AskIds(first=0, last=511, created_us=range(NOW_US + 1))


def entries(count: int, *, seed: int = 0, value: bytes = b"value") -> list[Entry]:
    rng = Random(seed)
    return [
        unsigned_entry(b"%d/%d" % (seed, number), NOW_US - rng.randrange(YEAR_US), value=value)
        for number in range(count)
    ]


class Watched(Party):
    """A party that remembers what its store was asked for since it last spoke."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.asked: list[Action] = []

    def carry_out(self, action: Action) -> Event:
        self.asked.append(action)
        return super().carry_out(action)


def replies(party: Party, *turns: Turn) -> Iterator[Turn]:
    """What a follower says to each of a leader's turns."""
    side = Side(party, Round.initiate(party.node(), nonce=1, rng=Random(2)))
    side.run()
    for turn in turns:
        side.inbox.append(turn)
        (reply,) = side.run()
        assert isinstance(reply, Turn)
        yield reply


def asked(party: Party, *questions: Question) -> Turn:
    """What a follower says to some questions."""
    (reply,) = replies(party, replace(FIRST, questions=questions))
    return reply


def wanted(some: list[Entry]) -> Turn:
    return replace(FIRST, wants=tuple(entry.op_id[:WANT_BYTES] for entry in some))


def turns_of(ran: Ran, *, by_initiator: bool) -> list[Turn]:
    return [sent.message for sent in ran.sent if sent.by_initiator is by_initiator and isinstance(sent.message, Turn)]


Lower = Callable[[ModuleType, str, int], None]


@pytest.fixture
def lower(monkeypatch: pytest.MonkeyPatch) -> Lower:
    """Sets a bound as a module has it."""
    return monkeypatch.setattr


# A follower.


def test_a_follower_answers_as_much_as_fits_into_a_turn_and_fills_the_rest_with_entries() -> None:
    party = Party(BASE)
    some = entries(1000, value=bytes(1000))
    party.put(some)
    large = AskSymbols(arcs=CIRCLE, start=0, stop=128, parts=180)
    (reply,) = replies(party, replace(wanted(some), questions=(large, large, large)))
    (answer,) = reply.answers
    assert isinstance(answer, SymbolsTold)
    assert len(answer.data) == large.answer_bytes > TURN_BYTES / 2
    assert 0 < len(reply.entries) < len(some)
    assert len(party.codec.encode(reply)) <= TURN_BYTES < MAX_MESSAGE_BYTES


@pytest.mark.parametrize(("question", "read_each"), [(ALL_IDS, 3000), (SALTED, 1), (BEYOND_THOSE_KEPT, 1)])
def test_a_follower_reads_only_so_many_ops_in_a_turn(question: Question, read_each: int, lower: Lower) -> None:
    lower(follow, "MAX_MADE", 3 * read_each)
    assert len(asked(Party(BASE), *[question] * 10).answers) <= 3


def test_a_follower_tells_ids_page_by_page(lower: Lower) -> None:
    lower(follow, "IDS_PER_ANSWER", 500)
    lower(follow, "OPS_PER_FETCH", 100)
    (answer,) = asked(Party(BASE), ALL_IDS).answers
    assert isinstance(answer, IdsTold)
    assert len(answer.ids) == 500
    assert answer.upto is not None


def test_a_page_of_ids_is_no_longer_for_those_that_were_declined(lower: Lower) -> None:
    lower(follow, "IDS_PER_ANSWER", 100)
    lower(follow, "OPS_PER_FETCH", 100)
    party = Party(judge=lambda entry: Judged(Fate.DECLINED, "over limit"))
    told: set[bytes] = set()
    question: AskIds | None = ALL_IDS
    pages = 0
    party.put(declined := entries(250))
    party.judge = lambda _: None
    party.put(stored := entries(50, seed=1))
    while question is not None:
        (answer,) = asked(party, question).answers
        assert isinstance(answer, IdsTold)
        assert len(answer.ids) <= 100
        told.update(answer.ids)
        pages += 1
        question = None if answer.upto is None else replace(question, after=answer.upto)
    assert told == {entry.op_id[:16] for entry in (*declined, *stored)}
    assert pages <= 4


def test_of_a_sector_with_too_many_ops_no_symbols_are_made(lower: Lower) -> None:
    (told,) = asked(Party(BASE), SALTED).answers
    assert told != SymbolsTold(b"")
    lower(exchange, "MAX_SECTOR_OPS", 3)
    lower(exchange, "OPS_PER_FETCH", 2)
    (none,) = asked(Party(BASE), SALTED).answers
    assert none == SymbolsTold(b"")


SWAMP: dict[str, Question] = {
    "symbols": AskSymbols(arcs=CIRCLE, start=127, stop=128, parts=512),
    "cells": AskCells(LAYOUT, ONE_SECTOR),
    "cells of a later layout": AskCells(LATER, CIRCLE, (LATER.tail_start,)),
    "checksums": AskChecksums(CIRCLE),
    "ids": AskIds(first=0, last=511, created_us=range(1)),
}


@pytest.mark.parametrize("question", SWAMP.values(), ids=SWAMP)
def test_a_follower_does_only_so_much_work_in_a_turn_and_rests_meanwhile(question: Question, lower: Lower) -> None:
    once = Watched(BASE)
    assert len(asked(once, question).answers) == 1
    assert Rest() not in once.asked
    lower(follow, "MAX_WORK", 600)
    lower(follow, "WORK_UNTIL_REST", 100)
    party = Watched(BASE)
    answers = asked(party, *[question] * 512).answers
    assert 1 < len(answers) < 512 or isinstance(question, AskChecksums)
    assert 1 <= party.asked.count(Rest()) <= 7


def test_a_leader_that_has_the_same_told_again_and_again_is_charged(lower: Lower) -> None:
    lower(follow, "MAX_TELLINGS", 1)
    turn = replace(FIRST, questions=(SWAMP["symbols"],) * MAX_QUESTIONS)
    party = Party(BASE)
    side = Side(party, Round.initiate(party.node(), nonce=1, rng=Random(2)))
    side.run()
    for number in range(20):
        side.inbox.append(turn if not number else replace(turn, acceptance=None))
        side.run()
    assert side.charges == [Misconduct.ENDLESS]


@pytest.mark.parametrize("flights", [0, 12])
@pytest.mark.parametrize(("differing", "span_us"), [(1500, YEAR_US), (500, YEAR_US), (1500, 10**11)])
def test_no_honest_leader_comes_near_to_what_it_may_ask(
    differing: int, span_us: int, flights: int, lower: Lower
) -> None:
    lower(finding, "MAX_FLIGHTS", flights)
    lower(finding, "_FEW_OPS", 4)  # of more than that the cells are asked for first
    lower(follow, "MAX_TELLINGS", 1)  # an eighth
    base = Base(5000)
    one, other = Party(base), Party(base)
    rng = Random(1)
    one.put(unsigned_entry(b"%d" % n, NOW_US - rng.randrange(span_us)) for n in range(differing))
    ran = run_round(one, other, dry_run=True)
    assert ran.initiator.charges == ran.responder.charges == []
    assert ran.outcomes[1].only_theirs == differing


# Entries.


def test_a_turn_has_only_so_many_entries_and_says_that_there_are_more(lower: Lower) -> None:
    lower(exchange, "MAX_ENTRIES", 10)
    party, some = Party(BASE), entries(25)
    party.put(some)
    said = list(replies(party, wanted(some), Turn(), Turn()))
    assert [(len(turn.entries), turn.more) for turn in said] == [(10, True), (10, True), (5, False)]


@pytest.mark.parametrize(("turn_bytes", "answered"), [(5000, 2), (1000, 1)])
def test_answers_fill_a_turn_as_small_as_the_path_wants_it_but_one_is_always_told(
    turn_bytes: int, answered: int
) -> None:
    party = Party(BASE)
    side = Side(party, Round.initiate(party.node(), nonce=1, rng=Random(2)))
    side.run()
    assert side.round is not None
    side.round.limit_turns(turn_bytes)
    side.inbox.append(replace(FIRST, questions=(AskChecksums(CIRCLE),) * 5))
    (reply,) = side.run()
    assert isinstance(reply, Turn)
    assert len(reply.answers) == answered


def test_entries_fill_a_turn_and_no_more() -> None:
    party, some = Party(BASE), entries(50, value=bytes(60_000))
    party.put(some)
    first, second, third, *rest = replies(party, wanted(some), *[Turn()] * 4)
    for turn in (first, second, third):
        assert TURN_BYTES - 70_000 < len(party.codec.encode(turn)) <= TURN_BYTES
    assert sum(len(turn.entries) for turn in (first, second, third, *rest)) == len(some)


def test_entries_are_read_a_few_at_a_time() -> None:
    party, some = Watched(BASE), entries(3000)
    party.put(some)
    (reply,) = replies(party, wanted(some))
    assert len(reply.entries) == len(some)
    read = [len(action.ids) for action in party.asked if isinstance(action, FetchEntries)]
    assert max(read) == 256


def test_an_entry_too_large_for_a_message_stays_a_difference(lower: Lower) -> None:
    lower(exchange, "MAX_ENTRY_BYTES", 1000)
    one, other = Party(BASE), Party(BASE)
    small, large = entries(1), entries(1, seed=1, value=bytes(1000))
    one.put([*small, *large])
    ran = run_round(one, other)
    assert other.op_ids == {small[0].op_id}
    assert all(outcome.ending is Ending.PARTIAL for outcome in ran.outcomes)


# A leader.


def test_a_leader_asks_only_so_many_questions_in_a_turn(lower: Lower) -> None:
    lower(finding, "MAX_QUESTIONS", 3)
    lower(finding, "MAX_FLIGHTS", 0)
    one, other = Party(BASE), Party(BASE)
    one.put(entries(200))
    ran = run_round(one, other)
    assert other.op_ids == one.op_ids
    assert max(len(turn.questions) for turn in turns_of(ran, by_initiator=False)) == 3


@pytest.mark.parametrize("most", [0, 1])
def test_a_leader_tries_symbols_only_so_many_times(most: int, lower: Lower) -> None:
    lower(finding, "MAX_FLIGHTS", most)
    one, other = Party(BASE), Party(BASE)
    one.put(entries(400))
    ran = run_round(one, other)
    assert other.op_ids == one.op_ids
    flights = [
        turn
        for turn in turns_of(ran, by_initiator=False)
        if any(isinstance(question, AskSymbols) for question in turn.questions)
    ]
    assert len(flights) == most


def test_a_leader_asks_for_no_larger_answer_than_a_follower_gives(lower: Lower) -> None:
    most_bytes = 6000
    lower(finding, "MAX_ANSWER_BYTES", most_bytes)
    lower(follow, "MAX_ANSWER_BYTES", most_bytes)
    one, other = Party(BASE), Party(BASE)
    one.put(entries(600))
    ran = run_round(one, other)
    assert other.op_ids == one.op_ids
    questions = [question for turn in turns_of(ran, by_initiator=False) for question in turn.questions]
    assert any(isinstance(question, AskSymbols) and question.parts > 1 for question in questions)


def test_a_leader_wants_only_so_much_and_asks_on_when_little_waits(lower: Lower) -> None:
    most_wanted, most_pending = 20, 30
    lower(lead, "MAX_WANTED", most_wanted)
    lower(follow, "MAX_WANTED", most_wanted)
    lower(finding, "MAX_PENDING_IDS", most_pending)
    lower(follow, "IDS_PER_ANSWER", 100)
    lower(follow, "OPS_PER_FETCH", 50)
    one, other = Party(), Party()
    one.put(entries(300))
    told = taken = sent = 0

    def watch(_: int, message: Message) -> None:
        nonlocal told, taken, sent
        if not isinstance(message, Turn):
            return
        told += sum(len(answer.ids) for answer in message.answers if isinstance(answer, IdsTold))
        sent += len(message.entries)
        if message.questions or message.wants or message.verdict:  # the leader's
            taken += len(message.wants)
            assert taken - sent <= most_wanted
            assert not message.questions or told - taken < most_pending

    ran = run_round(one, other, between=watch)
    assert other.op_ids == one.op_ids
    assert ran.outcomes[1].led
    assert told == 300


def test_a_leader_looks_for_more_to_send_when_little_waits(lower: Lower) -> None:
    lower(finding, "MAX_PENDING_IDS", 30)
    lower(finding, "OPS_PER_FETCH", 10)
    one, other = Party(), Watched()
    other.put(entries(300))
    (opened,) = Side(one, Round.initiate(one.node(), nonce=1, rng=Random(2))).run()
    assert isinstance(opened, Open)
    Side(other, Round.accept(other.node(), opened, rng=Random(2))).run()
    pages = [action for action in other.asked if isinstance(action, FetchOps)]
    assert len(pages) == 3


def test_a_follower_that_promises_more_for_ever_is_charged(lower: Lower) -> None:
    lower(lead, "MAX_TURNS", 50)
    one, other = Party(BASE), Party(BASE)
    one.put(entries(5))
    (opened,) = Side(one, Round.initiate(one.node(), nonce=1, rng=Random(2))).run()
    assert isinstance(opened, Open)
    side = Side(other, Round.accept(other.node(), opened, rng=Random(2)))
    for _ in range(60):
        side.run()
        side.inbox.append(Turn(more=True))
    assert side.charges == [Misconduct.ENDLESS]
