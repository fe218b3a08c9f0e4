"""The side that follows: it answers questions, stores what it is sent, and sends what is wanted of it.

Between turns it remembers nothing but what it still has to send. Every question tells all that is needed to answer it,
and what answering may cost is bounded, in a turn and in the round: the ops that are read, and the *work* beside that,
in steps of some 20 µs.
"""

from __future__ import annotations

from typing import assert_never

from prime_dht.errors import ValidationError
from prime_dht.partition.location import sector_locations
from prime_dht.partition.offer import OpQuery, Version
from prime_dht.partition.sketch import MAX_SYMBOLS, SYMBOL_BYTES
from prime_dht.partition.snapshot import TAIL_UNITS
from prime_dht.partition.symbols import ID_BYTES
from prime_dht.sync.actions import Misconduct
from prime_dht.sync.exchange import (
    Exchange,
    Misbehaved,
    Steps,
    cut_id,
    fetch_ops,
    receive_turn,
    rest,
)
from prime_dht.sync.limits import (
    IDS_PER_ANSWER,
    MAX_ANSWER_BYTES,
    MAX_MADE,
    MAX_QUESTIONS,
    MAX_READINGS,
    MAX_TELLINGS,
    MAX_TURNS,
    MAX_WANTED,
    MAX_WORK,
    OPS_PER_FETCH,
    SYMBOLS_AS_CELLS,
    WORK_UNTIL_REST,
)
from prime_dht.sync.messages import (
    Answer,
    AskCells,
    AskChecksums,
    AskIds,
    AskSymbols,
    CellsTold,
    ChecksumsTold,
    IdCursor,
    IdsTold,
    Question,
    SymbolsTold,
    Turn,
    Verdict,
    check_question,
)

CELL_BYTES = 16
"""At most what a cell takes in an answer, mostly."""

CHECKSUM_BYTES = 4

_SYMBOLS_PER_STEP, _CELLS_PER_STEP, _SECTORS_PER_STEP = 4096, 16, 16

_MAX_CELLS = MAX_ANSWER_BYTES // CELL_BYTES
_LAST_TAIL = b"\xff" * (32 - ID_BYTES)


def version_of(cursor: IdCursor | None) -> Version | None:
    """A version that comes behind all ops whose id begins like the cursor's, and before all that follow."""
    return None if cursor is None else (cursor.created_at_us, cursor.op_id + _LAST_TAIL)


def locations_of(question: AskIds, sector_bits: int) -> range:
    """The locations [start, stop) that ids are asked of."""
    first, last = (sector_locations(sector, sector_bits=sector_bits) for sector in (question.first, question.last))
    return range(first.start, last.stop)


def follow(exchange: Exchange, turn: Turn, *, dry_run: bool) -> Steps[Verdict]:
    """Follow a round to its end, beginning with the leader's first turn; returns what the leader found."""
    follower = _Follower(exchange)
    for _ in range(MAX_TURNS):
        says_what_a_follower_says = turn.answers or turn.more or turn.declined or turn.vanished is not None
        if says_what_a_follower_says or (turn.verdict and turn.questions):
            raise Misbehaved(Misconduct.OUT_OF_TURN, "a leader does not answer, and does not ask when it is done")
        if dry_run and (turn.entries or turn.wants):
            raise Misbehaved(Misconduct.OUT_OF_TURN, "entries in a dry run")
        if len(turn.questions) > MAX_QUESTIONS or len(exchange.outgoing) + len(turn.wants) > MAX_WANTED:
            raise Misbehaved(Misconduct.OVERSIZE, "too many questions, or too much wanted at once")
        owes = bool(turn.questions or turn.wants or exchange.has_more)
        arrived = exchange.checked(turn.entries)
        if turn.verdict and not owes:
            yield from exchange.store(arrived)
            return turn.verdict
        wants = [op_id for op_id in turn.wants if op_id not in exchange.view.declined_wants]
        exchange.outgoing.extend(wants)
        answers = yield from follower.answer(turn.questions)
        used_bytes = sum(map(_cost_bytes, answers))
        room_bytes = exchange.turn_bytes - used_bytes
        entries = yield from exchange.gather(room_bytes, is_alone=not answers)
        vanished = exchange.lacking | exchange.withheld
        declined, exchange.held_back = len(turn.wants) - len(wants) + exchange.held_back, 0
        reply = Turn(
            answers=tuple(answers),
            entries=entries,
            more=exchange.has_more,
            declined=declined,
            vanished=vanished if vanished else None,
        )
        yield from exchange.send_and_store(reply, arrived)
        if turn.verdict and not reply.more:
            return turn.verdict
        turn = yield from receive_turn()
    raise Misbehaved(Misconduct.ENDLESS, f"a leader that is not done after {MAX_TURNS} turns")


class _Follower:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._view = exchange.view
        self._left = 0  # ops that may still be read, in this turn
        self._left_in_round = MAX_MADE + MAX_READINGS * exchange.view.op_count(exchange.common)
        cells_each = exchange.view.cells.column_count + SYMBOLS_AS_CELLS
        self._work_left_in_round = MAX_WORK + MAX_TELLINGS * len(exchange.common) * cells_each

    def answer(self, questions: tuple[Question, ...]) -> Steps[list[Answer]]:
        """Answers to the first questions, as many as fit into a turn."""
        self._left, room_bytes = MAX_MADE, self._exchange.turn_bytes
        for question in questions:
            self._check(question)
        answers: list[Answer] = []
        used_bytes = work = work_at_rest = 0
        for question in questions:
            if self._left_in_round < 0 or self._work_left_in_round < 0:
                raise Misbehaved(Misconduct.ENDLESS, "a leader that asks for the same again and again")
            if answers and (used_bytes + most_bytes(question) > room_bytes or self._left <= 0 or work >= MAX_WORK):
                break
            if work - work_at_rest >= WORK_UNTIL_REST:
                work_at_rest = work
                yield from rest()
            answer = yield from self._answer(question)
            used_bytes += _cost_bytes(answer)
            answers.append(answer)
            took = self._work_of(question, answer)
            work += took
            self._work_left_in_round -= took
        return answers

    def _work_of(self, question: Question, answer: Answer) -> int:
        """What answering has cost beside the ops that were read."""
        match question:
            case AskSymbols(arcs=arcs, stop=stop, parts=parts):
                return parts + len(arcs) * stop // _SYMBOLS_PER_STEP
            case AskChecksums():
                return 1
            case AskCells(layout, _, slices):
                columns = self._view.cells.column_count
                told = len(answer.cells) if isinstance(answer, CellsTold) else 0
                moved = columns if layout != self._view.layout else 0
                return (len(slices) or columns) + moved + told // _CELLS_PER_STEP + 1
            case AskIds(first=first, last=last):
                return 1 + (last - first) // _SECTORS_PER_STEP
            case never:
                assert_never(never)

    def _answer(self, question: Question) -> Steps[Answer]:
        match question:
            case AskSymbols():
                return (yield from self._symbols(question))
            case AskChecksums(arcs):
                return ChecksumsTold(self._view.checksums(arcs))
            case AskCells(layout, arcs, slices):
                return CellsTold(self._view.cells_at(layout, arcs, slices))
            case AskIds():
                return (yield from self._ids(question))
            case never:
                assert_never(never)

    def _symbols(self, question: AskSymbols) -> Steps[SymbolsTold]:
        told: list[bytes] = []
        is_made = bool(question.code.salt) or question.stop > self._view.symbols.m
        if is_made:
            self._spend(self._view.op_count(question.arcs))
        for part in question.split():
            sketch = yield from self._exchange.sketch(part, question.stop, question.code)
            if sketch is None:
                return SymbolsTold(b"")
            told.append(sketch.encode(question.start))
        told[-1] = told[-1][question.known * SYMBOL_BYTES :]
        return SymbolsTold(b"".join(told))

    def _ids(self, question: AskIds) -> Steps[IdsTold]:
        locations = locations_of(question, self._exchange.common.sector_bits)
        after = version_of(question.after)
        stored: list[Version] = []
        upto: Version | None = after
        while len(stored) < IDS_PER_ANSWER:
            page = yield from fetch_ops(OpQuery(locations, question.created_us, upto, OPS_PER_FETCH))
            stored += page
            upto = page[-1] if len(page) == OPS_PER_FETCH else None
            if upto is None:
                break
        versions = self._view.page(stored, locations, question.created_us, after, upto)
        self._spend(max(len(stored), len(versions)))
        if len(versions) > IDS_PER_ANSWER:  # with those that the store does not have
            versions = versions[:IDS_PER_ANSWER]
            upto = versions[-1]
        cursor = None if upto is None else IdCursor(upto[0], cut_id(upto[1]))
        return IdsTold(tuple(cut_id(op_id) for _, op_id in versions), cursor)

    def _spend(self, ops: int) -> None:
        """Note that ops are read."""
        self._left -= ops
        self._left_in_round -= ops

    def _check(self, question: Question) -> None:
        """Check that a question can be asked here, and that the answer is not too large."""
        common = self._exchange.common
        try:
            check_question(question, common.sector_bits)
        except ValidationError as error:
            raise Misbehaved(Misconduct.MALFORMED, str(error)) from error
        match question:
            case AskSymbols(arcs=arcs, stop=stop):
                is_made = bool(question.code.salt) or stop > self._view.symbols.m
                too_much = stop > MAX_SYMBOLS or (is_made and len(arcs) > 1)
                too_much = too_much or question.answer_bytes > MAX_ANSWER_BYTES
            case AskChecksums(arcs):
                too_much = False
            case AskCells(layout, arcs, slices):
                ticks = layout.tail_start - self._view.layout.tail_start
                if layout.since_us < self._view.layout.since_us or ticks > TAIL_UNITS:
                    raise Misbehaved(Misconduct.OUT_OF_TURN, "cells of a layout that is not the round's")
                too_much = len(arcs) > 1 and (not slices or len(arcs) * len(slices) > _MAX_CELLS)
            case AskIds(first=first, last=last):
                too_much = False
                if not all(sector in common for sector in range(first, last + 1)):
                    raise Misbehaved(Misconduct.OUT_OF_TURN, "ids of sectors that the round is not about")
                return
            case never:
                assert_never(never)
        if arcs - common:
            raise Misbehaved(Misconduct.OUT_OF_TURN, "a question about sectors that the round is not about")
        if too_much:
            raise Misbehaved(Misconduct.OVERSIZE, "a question whose answer is too large")


def most_bytes(question: Question) -> int:
    """About what the answer takes, at most: of ids mostly much less."""
    match question:
        case AskSymbols():
            return question.answer_bytes
        case AskChecksums(arcs):
            return CHECKSUM_BYTES * len(arcs)
        case AskCells(_, arcs, slices):
            return CELL_BYTES * len(arcs) * (len(slices) or 128)
        case AskIds():
            return ID_BYTES * IDS_PER_ANSWER
        case never:
            assert_never(never)


def _cost_bytes(answer: Answer) -> int:
    match answer:
        case SymbolsTold(data) | ChecksumsTold(data):
            return len(data)
        case CellsTold(cells):
            return CELL_BYTES * len(cells)
        case IdsTold(ids):
            return ID_BYTES * len(ids)
        case never:
            assert_never(never)
