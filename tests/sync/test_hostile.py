"""Peers that break the rules: the round ends, the peer is charged, and nothing of what it sent is stored.

An honest node plays each role against a script. Numbers in comments are the scenarios of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import TypeVar

import numpy as np
import pytest

from prime_dht.entries.codec import Undecodable
from prime_dht.entries.entry import Entry
from prime_dht.errors import LocalProtocolError
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.cells import Cell
from prime_dht.partition.combined import Combined
from prime_dht.partition.sketch import MAX_SYMBOLS, SYMBOL_BYTES, Sketch
from prime_dht.partition.slices import layout_at
from prime_dht.partition.symbols import Code
from prime_dht.sync.actions import (
    Charge,
    Closed,
    Ending,
    EntriesStored,
    Event,
    Fate,
    Finish,
    Judged,
    Misconduct,
    OpsFound,
    Receive,
    Send,
    TimedOut,
    Unreadable,
)
from prime_dht.sync.limits import MAX_MADE, MAX_QUESTIONS, MAX_READINGS, MAX_TURNS, MAX_WANTED
from prime_dht.sync.messages import (
    Acceptance,
    Answer,
    AskCells,
    AskChecksums,
    AskIds,
    AskSymbols,
    CellsTold,
    ChecksumsTold,
    IdCursor,
    IdsTold,
    Message,
    Open,
    Question,
    Refusal,
    Refuse,
    SymbolsTold,
    Turn,
    Verdict,
)
from prime_dht.sync.round import Round
from prime_dht.testing.sync_pair import CIRCLE, NETWORK, NOW_US, Base, Party, Side, run_round, unsigned_entry

NOTHING = ArcSet.empty(sector_bits=9)
HALF = ArcSet.of_prefix(0, 1, sector_bits=9)
ONE_SECTOR, TWO_SECTORS = (ArcSet.of_sectors(sectors, sector_bits=9) for sectors in ([7], [7, 8]))
DONE = Verdict(only_leader=0, only_follower=0, left=NOTHING)
ACCEPTED = Acceptance(arc=CIRCLE, held=CIRCLE)
FIRST = Turn(acceptance=ACCEPTED)
LAYOUT = Party().partition.layout
FULL_SLICES = tuple(range(0, 100 * NETWORK.parameters.full_units, NETWORK.parameters.full_units))
BASE = Base(3000)

M = TypeVar("M", Open, Turn)
Heard = Message | TimedOut | Closed | Unreadable


def some(count: int, *, seed: int = 0, days_ago: int = 1) -> list[Entry]:
    return [
        unsigned_entry(b"%d/%d" % (seed, number), NOW_US - days_ago * 86_400_000_000 - number)
        for number in range(count)
    ]


def play(party: Party, begun: Round, script: Sequence[Heard]) -> Side:
    """Run a round in which the peer says just this."""
    side = Side(party, begun)
    side.run()
    for heard in script:
        if side.outcome is not None:
            break
        side.inbox.append(heard)
        side.run()
    return side


def initiating(script: Sequence[Heard], party: Party | None = None) -> Side:
    party = party or Party(BASE)
    return play(party, Round.initiate(party.node(), nonce=1, rng=Random(2)), script)


def accepting(opened: Open, script: Sequence[Heard], party: Party) -> Side:
    return play(party, Round.accept(party.node(), opened, rng=Random(2)), script)


def opening(party: Party, **changes: object) -> Open:
    """How a party opens a round."""
    action = Round.initiate(party.node(), nonce=1, rng=Random(2)).step(None)
    assert isinstance(action, Send)
    assert isinstance(action.message, Open)
    return replace(action.message, **changes)  # type: ignore[arg-type]


def charged(side: Side, misconduct: Misconduct, *, before: frozenset[bytes] = frozenset()) -> bool:
    """Whether the round is over, the peer charged with this, and nothing stored."""
    assert side.outcome is not None
    assert side.outcome.ending is Ending.FAILED
    assert side.outcome.equal is None
    assert side.party.op_ids == before
    return side.charges == [misconduct]


# Silence.


@pytest.mark.parametrize("heard", [TimedOut(), Unreadable("garbage")])
@pytest.mark.parametrize("earlier", [[], [replace(FIRST, questions=(AskChecksums(CIRCLE),))]])
def test_silence_and_garbage_are_charged_at_every_stage_of_a_follower(heard: Heard, earlier: list[Heard]) -> None:
    misconduct = Misconduct.SILENT if isinstance(heard, TimedOut) else Misconduct.MALFORMED
    assert charged(initiating([*earlier, heard]), misconduct)


def test_a_leader_charges_silence() -> None:
    party = Party(BASE)
    differing = Party(BASE)
    differing.put(some(400))
    side = accepting(opening(differing), [TimedOut()], party)
    assert charged(side, Misconduct.SILENT)


def test_a_peer_that_reads_nothing_is_charged() -> None:
    begun = Round.initiate(Party(BASE).node(), nonce=1, rng=Random(2))
    assert isinstance(begun.step(None), Send)
    charge = begun.step(TimedOut())
    assert isinstance(charge, Charge)
    assert charge.misconduct is Misconduct.SILENT
    finish = begun.step(None)
    assert isinstance(finish, Finish)
    assert (finish.outcome.ending, finish.outcome.misconduct) == (Ending.FAILED, Misconduct.SILENT)


def test_a_stream_that_closes_ends_the_round_without_a_charge() -> None:
    side = initiating([Closed()])
    assert side.outcome is not None
    assert (side.outcome.ending, side.charges) == (Ending.FAILED, [])


# The wrong stage.


@pytest.mark.parametrize(
    "heard",
    [
        opening(Party(BASE)),
        Turn(),
        Turn(verdict=DONE),
        replace(FIRST, acceptance=Acceptance(arc=HALF, held=HALF)),
        replace(FIRST, answers=(ChecksumsTold(b""),)),
        replace(FIRST, more=True),
        replace(FIRST, vanished=HALF),
        replace(FIRST, questions=(AskChecksums(CIRCLE),), verdict=DONE),
        replace(FIRST, acceptance=Acceptance(arc=HALF, held=HALF, digest=opening(Party(BASE)).digest)),
        replace(FIRST, acceptance=replace(ACCEPTED, digest=opening(Party(BASE)).digest), verdict=DONE),
    ],
)
def test_an_initiator_charges_what_does_not_answer_an_opening(heard: Message) -> None:  # 44
    assert charged(initiating([heard]), Misconduct.OUT_OF_TURN)


@pytest.mark.parametrize(
    "heard",
    [
        FIRST,
        Refuse(Refusal.BUSY),
        opening(Party(BASE)),
        Turn(answers=(SymbolsTold(b""),)),
    ],
)
def test_a_follower_charges_what_no_leader_says(heard: Message) -> None:  # 44
    first = replace(FIRST, questions=(AskChecksums(CIRCLE),))
    assert charged(initiating([first, heard]), Misconduct.OUT_OF_TURN)
    assert charged(accepting(opening(Party(BASE)), [heard], Party(BASE, arc=HALF)), Misconduct.OUT_OF_TURN)


@pytest.mark.parametrize(
    "heard",
    [
        FIRST,
        Refuse(Refusal.BUSY),
        Turn(),
        Turn(verdict=DONE),
        Turn(questions=(AskChecksums(CIRCLE),)),
        Turn(wants=(bytes(8),)),
        Turn(answers=(ChecksumsTold(b""),) * 9),
        Turn(answers=(IdsTold(()),)),
    ],
)
def test_a_leader_charges_what_no_follower_says(heard: Message) -> None:  # 44
    differing = Party(BASE)
    differing.put(some(30))
    assert charged(accepting(opening(differing), [heard], Party(BASE)), Misconduct.OUT_OF_TURN)


def test_a_dry_run_takes_no_entries() -> None:
    party = Party(BASE)
    begun = Round.initiate(party.node(), nonce=1, rng=Random(2), dry_run=True)
    assert charged(play(party, begun, [replace(FIRST, entries=tuple(some(1)))]), Misconduct.OUT_OF_TURN)


# Entries.


@pytest.mark.parametrize(
    ("entries", "misconduct"),
    [
        ([*some(3), Undecodable("no entry")], Misconduct.BAD_ENTRIES),
        (
            [
                *some(3),
                replace(
                    some(1)[0],
                    header=replace(some(1)[0].header, retain_until_us=some(1)[0].header.created_at_us + 1),  # type: ignore[arg-type]
                ),
            ],
            Misconduct.UNWANTED,
        ),
    ],
    ids=["undecodable", "no op"],
)
def test_of_a_message_with_one_impossible_entry_none_is_stored(
    entries: list[Entry | Undecodable], misconduct: Misconduct
) -> None:
    assert charged(initiating([replace(FIRST, entries=tuple(entries), verdict=DONE)]), misconduct)


def test_entries_outside_the_common_arc_are_unwanted() -> None:
    party = Party(BASE, arc=HALF)
    first = replace(FIRST, entries=tuple(some(50)), verdict=DONE)
    assert charged(initiating([first], party), Misconduct.UNWANTED)


def test_a_leader_takes_only_what_it_wanted() -> None:
    differing, party = Party(BASE), Party(BASE)
    differing.put(some(3))
    side = accepting(opening(differing), [Turn(entries=tuple(some(3, seed=9)))], party)
    assert charged(side, Misconduct.UNWANTED)


def test_an_entry_that_was_wanted_comes_once() -> None:
    differing, party = Party(BASE), Party(BASE)
    differing.put(some(3))
    said = Turn(entries=(some(3)[0],) * 3, more=True)
    side = accepting(opening(differing), [said] * 1000, party)
    assert side.charges == [Misconduct.UNWANTED]
    assert len(party.op_ids) == 1


def test_entries_that_no_honest_node_passes_on_are_charged_and_the_round_ends() -> None:
    party = Party(BASE)
    party.judge = lambda entry: Judged(Fate.BLAMED, "bad signature")
    side = initiating([replace(FIRST, entries=tuple(some(2)), verdict=DONE)], party)
    assert charged(side, Misconduct.BAD_ENTRIES)


# Questions.


@pytest.mark.parametrize(
    ("question", "misconduct"),
    [
        (AskSymbols(arcs=CIRCLE, start=32, stop=129), Misconduct.OVERSIZE),
        (AskSymbols(arcs=CIRCLE, start=0, stop=1, code=Code(bytes(16))), Misconduct.OVERSIZE),
        (AskSymbols(arcs=TWO_SECTORS, start=32, stop=129), Misconduct.OVERSIZE),
        (AskSymbols(arcs=TWO_SECTORS, start=0, stop=1, parts=2, code=Code(bytes(16))), Misconduct.OVERSIZE),
        (AskSymbols(arcs=CIRCLE, start=0, stop=128, parts=512), Misconduct.OVERSIZE),
        (AskSymbols(arcs=ONE_SECTOR, start=0, stop=MAX_SYMBOLS + 1), Misconduct.OVERSIZE),
        (AskSymbols(arcs=ONE_SECTOR, start=5, stop=5), Misconduct.MALFORMED),
        (AskSymbols(arcs=ONE_SECTOR, start=0, stop=9, parts=2), Misconduct.MALFORMED),
        (AskSymbols(arcs=ONE_SECTOR, start=0, stop=9, known=10), Misconduct.MALFORMED),
        (AskChecksums(NOTHING), Misconduct.MALFORMED),
        (AskCells(LAYOUT, CIRCLE), Misconduct.OVERSIZE),
        (AskCells(LAYOUT, CIRCLE, FULL_SLICES), Misconduct.OVERSIZE),
        (AskCells(LAYOUT, ONE_SECTOR, (FULL_SLICES[0],) * 2), Misconduct.MALFORMED),
        (AskCells(LAYOUT, ONE_SECTOR, FULL_SLICES[1::-1]), Misconduct.MALFORMED),
        (AskCells(LAYOUT, ONE_SECTOR, (FULL_SLICES[0] + 1,)), Misconduct.MALFORMED),
        (AskCells(layout_at(1, NETWORK.parameters), ONE_SECTOR), Misconduct.OUT_OF_TURN),
        (AskCells(layout_at(2 * NOW_US, NETWORK.parameters), ONE_SECTOR), Misconduct.OUT_OF_TURN),
        (AskIds(first=3, last=2, created_us=range(9)), Misconduct.MALFORMED),
        (AskIds(first=0, last=512, created_us=range(9)), Misconduct.MALFORMED),
        (AskIds(first=0, last=0, created_us=range(0)), Misconduct.MALFORMED),
    ],
)
def test_a_question_that_cannot_be_asked_is_charged(question: Question, misconduct: Misconduct) -> None:
    assert charged(initiating([replace(FIRST, questions=(question,))]), misconduct)


@pytest.mark.parametrize(
    "question",
    [
        AskSymbols(arcs=CIRCLE, start=0, stop=9),
        AskChecksums(CIRCLE),
        AskCells(LAYOUT, CIRCLE, (0,)),
        AskIds(first=0, last=511, created_us=range(9)),
    ],
)
def test_questions_about_other_sectors_are_charged(question: Question) -> None:
    first = replace(FIRST, questions=(question,))
    assert charged(initiating([first], Party(BASE, arc=HALF)), Misconduct.OUT_OF_TURN)


def test_too_many_questions_or_wants_are_charged() -> None:
    many = (AskChecksums(ONE_SECTOR),) * (MAX_QUESTIONS + 1)
    assert charged(initiating([replace(FIRST, questions=many)]), Misconduct.OVERSIZE)
    wants = tuple(number.to_bytes(8, "big") for number in range(MAX_WANTED + 1))
    assert charged(initiating([replace(FIRST, wants=wants)]), Misconduct.OVERSIZE)


def test_wanting_what_is_not_there_yields_nothing() -> None:
    side = initiating([replace(FIRST, wants=tuple(number.to_bytes(8, "big") for number in range(100)), verdict=DONE)])
    assert side.outcome is not None
    assert side.outcome.entries_sent == 0
    assert side.charges == []


def test_a_leader_that_asks_for_ever_is_charged() -> None:
    asking = Turn(questions=(AskChecksums(ONE_SECTOR),))
    side = initiating([replace(FIRST, questions=asking.questions), *[asking] * MAX_TURNS])
    assert charged(side, Misconduct.ENDLESS)


def test_a_leader_that_has_the_same_ops_read_again_and_again_is_charged() -> None:
    asking = Turn(questions=(AskIds(first=0, last=511, created_us=range(NOW_US)),))
    turns = (MAX_MADE + MAX_READINGS * len(BASE.ids)) // len(BASE.ids)
    honest = initiating([replace(FIRST, questions=asking.questions), *[asking] * (turns - 1)])
    assert honest.outcome is None
    endless = initiating([replace(FIRST, questions=asking.questions), *[asking] * (turns + 1)])
    assert charged(endless, Misconduct.ENDLESS)


# Answers.


def answered(make: Callable[[Question], Answer], *, differing: int, days_ago: int = 1, turns: int = 60) -> Side:
    """A leader whose follower answers each question with what ``make`` gives."""
    other, party = Party(BASE), Party(BASE)
    other.put(some(differing, days_ago=days_ago))
    side = Side(party, Round.accept(party.node(), opening(other), rng=Random(2)))
    for _ in range(turns):
        for message in side.run():
            assert isinstance(message, Turn)
            side.inbox.append(Turn(answers=tuple(make(question) for question in message.questions[:1])))
        if side.outcome is not None:
            break
    return side


def noise(question: Question) -> Answer:
    """An answer of the right form, and no truth in it."""
    rng = np.random.default_rng(1)
    match question:
        case AskSymbols():
            return SymbolsTold(rng.bytes(question.answer_bytes))
        case AskChecksums(arcs):
            return ChecksumsTold(rng.bytes(4 * len(arcs)))
        case AskCells(arcs=arcs, slices=slices):
            start = slices[0] if slices else 0
            return CellsTold({Cell(sector, start): Combined(rng.bytes(8).ljust(32, b"\0"), 5) for sector in arcs})
        case AskIds():
            return IdsTold((rng.bytes(16),))


@pytest.mark.parametrize("differing", [40, 200, 1400])
@pytest.mark.parametrize("days_ago", [0, 300])
def test_answers_without_truth_come_to_an_end_and_change_nothing(differing: int, days_ago: int) -> None:
    side = answered(noise, differing=differing, days_ago=days_ago, turns=3000)
    assert side.outcome is not None
    assert side.outcome.ending in (Ending.PARTIAL, Ending.FAILED)
    assert not side.party.op_ids


@pytest.mark.parametrize("wrong", [SymbolsTold(bytes(SYMBOL_BYTES)), ChecksumsTold(bytes(3))])
def test_answers_of_the_wrong_size_are_charged(wrong: Answer) -> None:
    def make(question: Question) -> Answer:
        is_meant = isinstance(question, AskSymbols) is isinstance(wrong, SymbolsTold)
        return wrong if is_meant else noise(question)

    assert charged(answered(make, differing=1000, days_ago=300), Misconduct.MALFORMED)


def test_cells_that_were_not_asked_for_are_charged() -> None:
    def make(question: Question) -> Answer:
        assert isinstance(question, AskCells)
        return CellsTold({Cell(511, 12345): Combined(bytes(32), 1)})

    assert charged(answered(make, differing=1400, days_ago=0), Misconduct.MALFORMED)


def test_pages_of_ids_that_lead_nowhere_are_charged() -> None:
    def make(question: Question) -> Answer:
        assert isinstance(question, AskIds)
        return IdsTold((bytes(16),), IdCursor(5, bytes(16)))

    assert charged(answered(make, differing=5000), Misconduct.LIED)


def test_symbols_of_a_set_that_cannot_be_are_a_lie() -> None:
    party = Party(BASE)
    honest = opening(party)
    here = next(iter(BASE.ids))
    # The peer claims to have twice what both have: decoded, it is only theirs, and it is here.
    ids = np.frombuffer(here * 2, np.uint8).reshape(1, 32)
    none = Sketch.of(np.empty((0, 32), np.uint8), 32)
    more = honest.digest.sketch.subtract(none.subtract(Sketch.of(ids, 32)))
    lying = replace(honest, digest=replace(honest.digest, sketch=more))
    assert charged(accepting(lying, [], party), Misconduct.LIED)


def test_a_peer_that_claims_ids_and_does_not_send_them_leaves_the_sectors_unsettled() -> None:
    other, party = Party(BASE), Party(BASE)
    other.put(some(5))
    side = accepting(opening(other), [Turn()], party)
    assert side.outcome is not None
    assert side.outcome.ending is Ending.PARTIAL
    assert side.outcome.equal == NOTHING


def test_after_any_of_this_an_honest_round_goes_well() -> None:
    party, honest = Party(BASE), Party(BASE)
    honest.put(some(100))
    initiating([Turn()], party)
    ran = run_round(party, honest)
    assert party.op_ids == honest.op_ids
    assert [str(outcome) for outcome in ran.outcomes] == ["equal", "equal"]


# This node's own code.


def test_a_round_that_is_over_takes_no_more() -> None:
    begun = Round.initiate(Party().node(), nonce=1, rng=Random(2))
    begun.step(None)
    begun.step(None)
    assert isinstance(begun.step(Refuse(Refusal.BUSY)), Finish)
    with pytest.raises(LocalProtocolError, match="over"):
        begun.step(None)


@pytest.mark.parametrize("event", [OpsFound(frozenset()), EntriesStored(()), None])
def test_the_wrong_event_is_a_mistake_of_whoever_runs_the_round(event: Event) -> None:
    begun = Round.initiate(Party().node(), nonce=1, rng=Random(2))
    begun.step(None)
    assert begun.step(None) == Receive()
    with pytest.raises(LocalProtocolError, match="waits for a message"):
        begun.step(event)


def test_an_initiator_does_not_lead_where_the_clocks_are_too_far_apart() -> None:
    far = Party(BASE, now_us=NOW_US + 3 * NETWORK.parameters.unit_us, arc=HALF)
    side = initiating([Turn(acceptance=Acceptance(arc=HALF, held=HALF, digest=far.node().view.digest(HALF)))])
    assert side.outcome is not None
    assert side.outcome.refusal == Refuse(Refusal.CLOCKS)


def test_what_a_follower_leaves_unanswered_is_asked_again() -> None:
    """A follower answers as much as fits into a turn; here one question at a time."""
    other, party = Party(BASE), Party(BASE)
    other.put(some(800, days_ago=300))
    follower = Side(other, Round.initiate(other.node(), nonce=1, rng=Random(2)))
    leader = Side(party, Round.accept(party.node(), _only(follower.run(), Open), rng=Random(2)))
    asked = 0
    said = leader.run()
    while leader.outcome is None:
        turn = _only(said, Turn)
        asked += len(turn.questions)
        follower.inbox.append(replace(turn, questions=turn.questions[:1]))
        leader.inbox.extend(follower.run())
        said = leader.run()
    assert party.op_ids == other.op_ids
    assert asked > 1


def _only(messages: list[Message], kind: type[M]) -> M:
    (message,) = messages
    assert isinstance(message, kind)
    return message
