"""Finding the difference: what a leader asks, and what it makes of the answers.

The digest of all common sectors comes first (:meth:`Finder.begin`). If its symbols decode, that is all. Else, by cost:

- one side has nothing, or about half of all differs: the ids of everything, page by page;
- only rings differ, in many ops: the cells of these rings, then the ids in the cells that differ;
- else symbols of ever smaller groups of sectors, as :mod:`prime_dht.partition.plan` says, down to single sectors, and
  from there, if symbols do not pay, cells and ids.

Cells and ids are the drill-down of disc and rings (:mod:`prime_dht.partition.compare`), in questions that stand alone:
a follower need not remember how far a round has come. Sectors' checksums stand for their top hashes, and before ids are
asked for, what the cells told is used: where the other side has nothing, all of ours is pushed.

**Tasks** are questions with what is to be done about their answers. **Sources** are intervals of which the other side's
ids are known, to be merged with ours, a page of the store at a time. While many ids wait to be transferred, nothing
more is asked or merged: a round that moves a million entries holds no more than one that moves some thousands.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import replace
from math import log
from typing import assert_never

from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.cells import Cell
from prime_dht.partition.combined import NOTHING, Combined
from prime_dht.partition.compare import DiscMismatch, RingMismatch, compare
from prime_dht.partition.decode import Decoded, Disproved, decode, prove
from prime_dht.partition.offer import OpQuery
from prime_dht.partition.plan import Confine, Extend, Group, Salt, SendIds, Split, next_step, rings_pay, symbols_for
from prime_dht.partition.sketch import SYMBOL_BYTES
from prime_dht.partition.symbols import SALT_BYTES, Code
from prime_dht.sync.actions import Misconduct
from prime_dht.sync.chance import Rng
from prime_dht.sync.exchange import ALWAYS, Exchange, Misbehaved, Steps, cut_id, fetch_ops, find_ops
from prime_dht.sync.follow import CELL_BYTES, locations_of, version_of
from prime_dht.sync.limits import (
    MAX_ANSWER_BYTES,
    MAX_FLIGHTS,
    MAX_PENDING_IDS,
    MAX_QUESTIONS,
    OPS_PER_FETCH,
    TURN_BYTES,
)
from prime_dht.sync.messages import (
    Answer,
    AskCells,
    AskChecksums,
    AskIds,
    AskSymbols,
    CellsTold,
    ChecksumsTold,
    Digest,
    IdsTold,
    Probe,
    Question,
    SymbolsTold,
)
from prime_dht.sync.tasks import (
    Compared,
    Confining,
    Drilling,
    Extending,
    Listing,
    Source,
    Splitting,
    Task,
    cheap_extension,
    expected_bytes,
    parts_of,
    runs,
    splits_cheaply,
)

_FEW_OPS = 256
"""Of a sector with so few ops, telling all ids costs no more than telling the cells first."""

_PATIENCE = 4
"""After so many flights little is left, and time matters more than bytes."""

_AT_ONCE_SYMBOLS = 256
"""For so many symbols a group is split into its single sectors then, instead of step by step."""

_SYMBOLS_EACH = 1.45
"""So many symbols for each op that differs nearly always decode. So if symbols do not, more differ."""

_CELL_COST, _OP_COST = 12, 25
"""Bytes: of a cell that is told, and what an op that differs costs more by symbols than by cells and ids."""

_FAR = 2.5
"""Two guesses that differ by more are not of the same thing: then the differences are not scattered."""


class Finder:
    """See the module. Found ids go to the exchange's ``outgoing``, if ours, and else to ``wanted``.

    Args:
        rng: for salts, and the order in which ids are queued.
        dry_run: count what is found, and queue nothing.

    Attributes:
        wanted: ids of ops that only the other side has.
        left: sectors that were not compared to the end.
    """

    def __init__(self, exchange: Exchange, *, rng: Rng, dry_run: bool) -> None:
        self.wanted: deque[bytes] = deque()
        self.left = ArcSet.empty(sector_bits=exchange.common.sector_bits)
        self._exchange = exchange
        self._view = exchange.view
        self._common = exchange.common
        self._layout = exchange.view.layout
        self._rng = rng
        self._dry_run = dry_run
        self._tasks: deque[Task] = deque()
        self._asked: deque[Task] = deque()
        self._sources: deque[Source] = deque()
        self._decoded: list[tuple[ArcSet, Decoded]] = []
        self._flights = 0

    @property
    def is_done(self) -> bool:
        """Whether all that differs has been found."""
        return not (self._asked or self._tasks or self._sources)

    def begin(self, theirs: Digest, probe: Probe | None) -> Steps[None]:
        """Compare the digests.

        Args:
            theirs: of the common sectors.
            probe: theirs, if there is one.
        """
        view, arcs = self._view, self._common
        self._layout = max(view.layout, theirs.tops.layout, key=lambda layout: layout.since_us)
        ours = view.digest(arcs)
        decoded, comparison = decode(ours.sketch.subtract(theirs.sketch)), compare(ours.tops, theirs.tops)
        if isinstance(decoded, Decoded):
            self._decoded.append((arcs, decoded))
            if decoded.ours or decoded.theirs:
                yield from self._settle_decoded()
            elif isinstance(comparison, DiscMismatch | RingMismatch):
                self._drill(arcs)  # somebody chose ops whose symbols cancel each other
            elif probe is not None:
                yield from self._compare_salted(probe)
            return
        estimate = max(decoded.estimate, abs(ours.op_count - theirs.op_count))
        if not theirs.op_count:
            self._push(arcs, ALWAYS)
        elif 2 * estimate >= max(ours.op_count, theirs.op_count):
            self._list(arcs, ALWAYS)
        elif isinstance(comparison, RingMismatch) and self._drilling_pays(estimate, comparison.rings):
            self._tasks.append(Drilling(AskCells(self._layout, arcs, comparison.rings)))
        else:
            self._plan(Compared(arcs=arcs, theirs=theirs.sketch), estimate)

    def questions(self) -> Steps[tuple[Question, ...]]:
        """The next questions, as many as the other side can answer in a turn."""
        yield from self._merge()
        if self._sources or self._pending >= MAX_PENDING_IDS:
            return ()
        room_bytes = TURN_BYTES
        while self._tasks and len(self._asked) < MAX_QUESTIONS:
            room_bytes -= expected_bytes(self._tasks[0].question)
            if room_bytes < 0 and self._asked:
                break
            self._asked.append(self._tasks.popleft())
        self._flights += any(isinstance(task.question, AskSymbols) for task in self._asked)
        return tuple(task.question for task in self._asked)

    def hear(self, answers: tuple[Answer, ...]) -> Steps[None]:
        """Take the answers to the first of the questions; the others are asked again.

        Raises:
            Misbehaved: these are not the answers.
        """
        if len(answers) > len(self._asked) or (self._asked and not answers):
            raise Misbehaved(Misconduct.OUT_OF_TURN, "a follower answers what it is asked")
        for answer in answers:
            yield from self._hear(self._asked.popleft(), answer)
        self._tasks.extendleft(reversed(self._asked))
        self._asked.clear()
        yield from self._settle_decoded()

    def give_up(self) -> None:
        """Leave the rest for another round."""
        self._tasks.clear()
        self._sources.clear()
        self.wanted.clear()
        self.left = self._common

    def _hear(self, task: Task, answer: Answer) -> Steps[None]:
        match task, answer:
            case Extending(question) | Splitting(question), SymbolsTold(data):
                if not data:
                    self._drill(question.arcs)
                elif len(data) != question.answer_bytes:
                    raise Misbehaved(Misconduct.MALFORMED, "another number of symbols than was asked for")
                elif isinstance(task, Extending):
                    yield from self._compare(replace(task.group, theirs=task.group.theirs.append(data)))
                else:
                    for part, theirs in zip(question.split(), parts_of(task, data), strict=True):
                        group = Compared(arcs=part, theirs=theirs, split=True, confined=task.confined)
                        yield from self._compare(group)
            case Confining(question, group), ChecksumsTold(data):
                yield from self._confine(question, group, data)
            case Drilling(question), CellsTold(cells):
                self._compare_cells(question, cells)
            case Listing(question), IdsTold():
                self._compare_ids(question, answer)
            case _:
                raise Misbehaved(Misconduct.OUT_OF_TURN, "an answer to another question")

    # Symbols.

    def _compare(self, group: Compared, guess: int | None = None) -> Steps[None]:
        """Decode the difference of a group, or plan what to ask next.

        Args:
            guess: how many ops differ, if they are scattered; better than what the symbols suggest, if near that.
        """
        ours = yield from self._exchange.sketch(group.arcs, len(group.theirs), group.theirs.code)
        if ours is None:
            self._drill(group.arcs)
            return
        decoded = decode(ours.subtract(group.theirs))
        if isinstance(decoded, Decoded):
            self._decoded.append((group.arcs, decoded))
        elif guess is not None and decoded.estimate / _FAR < guess < decoded.estimate * _FAR:
            self._plan(group, guess)
        else:
            self._plan(group, decoded.estimate)

    def _plan(self, group: Compared, estimate: int) -> None:
        if self._flights >= MAX_FLIGHTS:
            self._drill(group.arcs)
            return
        estimate = max(estimate, round(len(group.theirs) / _SYMBOLS_EACH))
        if self._flights >= _PATIENCE:
            alone = symbols_for(-(-2 * estimate // len(group.arcs)))
            if 1 < len(group.arcs) <= _AT_ONCE_SYMBOLS // alone:
                # Probably two ids that are in the same symbols. They are hardly in the same sector.
                self._split(group, len(group.arcs), alone)
                return
        code, m = group.theirs.code, self._view.symbols.m
        if (symbols := cheap_extension(group, estimate, m=m)) is not None:
            self._extend(group, symbols)
            return
        facts = Group(
            sectors=len(group.arcs),
            ops=self._view.op_count(group.arcs),
            symbols=len(group.theirs),
            extensions=group.extensions,
            split=group.split,
            confined=group.confined or splits_cheaply(group, estimate, m=m),
            salted=bool(code.salt),
        )
        match next_step(facts, estimate, m=m):
            case Extend(symbols=symbols):
                self._extend(group, symbols)
            case Confine():
                self._tasks.append(Confining(AskChecksums(group.arcs), group))
            case Split(groups=groups, symbols=symbols):
                self._split(group, groups, symbols)
            case Salt(symbols=symbols):
                salted = AskSymbols(arcs=group.arcs, start=0, stop=symbols, code=Code(self._rng.randbytes(SALT_BYTES)))
                self._tasks.append(Splitting(salted, confined=True))
            case SendIds():
                self._drill(group.arcs)
            case never:
                assert_never(never)

    def _extend(self, group: Compared, symbols: int) -> None:
        question = AskSymbols(arcs=group.arcs, start=len(group.theirs), stop=symbols, code=group.theirs.code)
        self._tasks.append(Extending(question, replace(group, extensions=group.extensions + 1)))

    def _split(self, group: Compared, groups: int, symbols: int) -> None:
        """Ask for the symbols of parts, in as many questions as keep each answer within its bound."""
        most = max(1, MAX_ANSWER_BYTES // (symbols * SYMBOL_BYTES))
        symbols = min(symbols, self._view.symbols.m)
        if groups <= most:
            known = min(symbols, len(group.theirs))
            question = AskSymbols(arcs=group.arcs, start=0, stop=symbols, parts=groups, known=known)
            self._tasks.append(Splitting(question, group.confined, group.theirs.prefix(known)))
            return
        for arcs in AskSymbols(arcs=group.arcs, start=0, stop=symbols, parts=-(-groups // most)).split():
            parts = min(len(arcs), -(-groups * len(arcs) // len(group.arcs)))
            self._tasks.append(Splitting(AskSymbols(arcs=arcs, start=0, stop=symbols, parts=parts), group.confined))

    def _confine(self, question: AskChecksums, group: Compared, data: bytes) -> Steps[None]:
        """Go on with the sectors whose checksums differ, with the symbols there are."""
        ours = self._view.checksums(question.arcs)
        if len(data) != len(ours):
            raise Misbehaved(Misconduct.MALFORMED, "another number of checksums than was asked for")
        differing = [s for i, s in enumerate(question.arcs) if ours[4 * i : 4 * i + 4] != data[4 * i : 4 * i + 4]]
        if not differing:
            self._drill(group.arcs)  # somebody chose ops for that
            return
        arcs = ArcSet.of_sectors(differing, sector_bits=self._common.sector_bits)
        # The other sectors add the same to both sides' symbols. So ours of them, and what theirs differ by, is theirs.
        outside = self._view.sketch(group.arcs - arcs, len(group.theirs))
        theirs = group.theirs.subtract(outside)
        n, k = len(group.arcs), len(differing)
        # So many scattered ops leave n - k of n sectors untouched.
        guess = round(-n * log(1 - k / n)) if k < n else None
        yield from self._compare(replace(group, arcs=arcs, theirs=theirs, confined=True, extensions=0), guess)

    def _compare_salted(self, probe: Probe) -> Steps[None]:
        """Compare the sector of a probe, which nothing else has shown to differ."""
        arcs = ArcSet.of_sectors([probe.sector], sector_bits=self._common.sector_bits)
        ours = yield from self._exchange.sketch(arcs, len(probe.sketch), probe.sketch.code)
        if ours is not None and ours != probe.sketch:
            yield from self._compare(Compared(arcs=arcs, theirs=probe.sketch, split=True, confined=True))

    def _settle_decoded(self) -> Steps[None]:
        """Prove what was decoded, and queue it."""
        claimed = [op_id for _, decoded in self._decoded for op_id in (*decoded.ours, *decoded.theirs)]
        here = yield from find_ops(claimed)
        view = self._view
        for arcs, decoded in self._decoded:
            proven = prove(decoded, lambda op_id: view.was_here(op_id, is_here=op_id in here))
            if isinstance(proven, Disproved):
                if view.is_exact:
                    raise Misbehaved(Misconduct.LIED, "symbols of a set that cannot be")
                self.left |= arcs
                self._exchange.unsettled |= arcs
                continue
            self._found(ours=proven.ours, theirs=proven.theirs)
        self._decoded.clear()

    # Cells and ids.

    def _drilling_pays(self, estimate: int, rings: tuple[int, ...]) -> bool:
        """Whether the cells of these rings, of which the other side tells those that hold an op, beat symbols."""
        held = Counter(cell.start for cell in self._view.cells_at(self._layout, self._common, rings))
        cells = sum(min(len(self._common), held[ring] + estimate) for ring in rings)
        is_small = len(self._common) * len(rings) * CELL_BYTES <= MAX_ANSWER_BYTES
        return is_small and rings_pay(estimate) and cells * _CELL_COST < estimate * _OP_COST

    def _drill(self, arcs: ArcSet) -> None:
        """Settle sectors without symbols, each by itself."""
        for sector in arcs:
            alone = ArcSet.of_sectors([sector], sector_bits=arcs.sector_bits)
            if self._view.op_count(alone) > _FEW_OPS:
                self._tasks.append(Drilling(AskCells(self._layout, alone)))
            else:
                self._list(alone, ALWAYS)

    def _compare_cells(self, question: AskCells, theirs: Mapping[Cell, Combined]) -> None:
        """List the cells that differ; push those of which the other side has nothing."""
        slices = question.slices or (*self._layout.ring_starts, self._layout.tail_start)
        full = range(0, 0 if question.slices else self._layout.disc_end, self._layout.parameters.full_units)
        if not all(c.sector in question.arcs and (c.start in slices or c.start in full) for c in theirs):
            raise Misbehaved(Misconduct.MALFORMED, "other cells than were asked for")
        ours = self._view.cells_at(self._layout, question.arcs, question.slices)
        differing = {cell for cell, _ in ours.items() ^ theirs.items()}
        told = {cell: max(ours.get(cell, NOTHING).count, theirs.get(cell, NOTHING).count) for cell in {*ours, *theirs}}
        if differing and 2 * sum(told[cell] for cell in differing) >= sum(told.values()):
            # Nearly everything differs: fewer, larger intervals are cheaper to ask for.
            starts = sorted({cell.start for cell in told})
            intervals = [self._layout.slice_us(start) for start in starts]
            if not question.slices:  # else what lies between them was not compared
                intervals = [range(intervals[0].start, intervals[-1].stop)]
            settle = self._list if theirs else self._push
            for created_us in intervals:
                settle(question.arcs, created_us)
            return
        for start in sorted({cell.start for cell in differing}):
            for settle, in_theirs in ((self._list, True), (self._push, False)):
                sectors = (cell.sector for cell in differing if cell.start == start and (cell in theirs) is in_theirs)
                arcs = ArcSet.of_sectors(sectors, sector_bits=self._common.sector_bits)
                settle(arcs, self._layout.slice_us(start))

    def _compare_ids(self, question: AskIds, told: IdsTold) -> None:
        """Merge a page of theirs with ours, and ask for the next."""
        upto = told.upto
        if upto is not None and question.after is not None and upto <= question.after:
            raise Misbehaved(Misconduct.LIED, "a page of ids that leads nowhere")
        self._sources.append(Source(question, version_of(question.after), version_of(upto), set(told.ids)))
        if upto is not None:
            self._tasks.appendleft(Listing(replace(question, after=upto)))

    def _list(self, arcs: ArcSet, created_us: range) -> None:
        self._tasks.extend(Listing(AskIds(first=first, last=last, created_us=created_us)) for first, last in runs(arcs))

    def _push(self, arcs: ArcSet, created_us: range) -> None:
        """Everything of ours there is what the other side lacks."""
        for first, last in runs(arcs):
            question = AskIds(first=first, last=last, created_us=created_us)
            self._sources.append(Source(question, None, None, set()))

    def _merge(self) -> Steps[None]:
        """Find what differs in the sources, page by page, while not too much waits to be transferred."""
        while self._sources and self._pending < MAX_PENDING_IDS:
            source = self._sources[0]
            created_us = source.question.created_us
            locations = locations_of(source.question, self._common.sector_bits)
            page = yield from fetch_ops(OpQuery(locations, created_us, source.after, OPS_PER_FETCH))
            is_last = len(page) < OPS_PER_FETCH or (source.upto is not None and page[-1] >= source.upto)
            upto = source.upto if is_last else page[-1]
            ours = self._view.page(page, locations, created_us, source.after, upto)
            new = [op_id for _, full_id in ours if (op_id := cut_id(full_id)) not in source.theirs]
            source.theirs.difference_update(cut_id(full_id) for _, full_id in ours)
            source.after = upto
            self._found(ours=tuple(new), theirs=())
            if is_last:
                self._sources.popleft()
                self._found(ours=(), theirs=tuple(sorted(source.theirs)))

    # What was found.

    @property
    def _pending(self) -> int:
        """How many ids wait to be transferred."""
        return len(self.wanted) + len(self._exchange.outgoing)

    def _found(self, *, ours: tuple[bytes, ...], theirs: tuple[bytes, ...]) -> None:
        """Queue ids that only one side has.

        In any order: were it the same in each round, one that ends early would always leave the same behind.
        """
        ours = tuple(op_id for op_id in ours if op_id not in self._view.declined)
        self._exchange.tally.only_ours += len(ours)
        self._exchange.tally.only_theirs += len(theirs)
        if self._dry_run:
            return
        for found, queue in ((ours, self._exchange.outgoing), (theirs, self.wanted)):
            order = list(found)
            self._rng.shuffle(order)
            queue.extend(order)
