"""What a leader has under way, tasks and sources (:mod:`prime_dht.sync.finding`), and what its questions cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.offer import Version
from prime_dht.partition.plan import symbols_for
from prime_dht.partition.sketch import SYMBOL_BYTES, Sketch
from prime_dht.sync.follow import CHECKSUM_BYTES, most_bytes
from prime_dht.sync.messages import AskCells, AskChecksums, AskIds, AskSymbols, Question

_LEAST_STEP = 16
"""By so many symbols a sketch is extended at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Sectors that are compared together, and the other side's symbols of them.

    Attributes:
        extensions, split, confined: as of a :class:`~prime_dht.partition.plan.Group`.
    """

    arcs: ArcSet
    theirs: Sketch
    extensions: int = 0
    split: bool = False
    confined: bool = False


@dataclass(frozen=True, slots=True)
class Extending:
    """More symbols of what was compared."""

    question: AskSymbols
    group: Compared


@dataclass(frozen=True, slots=True)
class Splitting:
    """Symbols of parts. A salted sector is a part too: of itself.

    Attributes:
        confined: whether all sectors are known to differ.
        whole: the symbols that are known of all parts together.
    """

    question: AskSymbols
    confined: bool
    whole: Sketch | None = None


@dataclass(frozen=True, slots=True)
class Confining:
    """The checksums of what was compared."""

    question: AskChecksums
    group: Compared


@dataclass(frozen=True, slots=True)
class Drilling:
    """Cells."""

    question: AskCells


@dataclass(frozen=True, slots=True)
class Listing:
    """Ids."""

    question: AskIds


Task = Extending | Splitting | Confining | Drilling | Listing


@dataclass(slots=True)
class Source:
    """Ops of ours to be merged with the ids of theirs, where a question asks, behind ``after`` and up to ``upto``."""

    question: AskIds
    after: Version | None
    upto: Version | None
    theirs: set[bytes]


def cheap_extension(group: Compared, estimate: int, *, m: int) -> int | None:
    """To how many symbols to extend, where that costs less than the sectors' checksums: then it is tried first."""
    told, wanted = len(group.theirs), symbols_for(estimate)
    stop = min(m, max(wanted, told + max(_LEAST_STEP, told // 4)))
    is_cheap = (stop - told) * SYMBOL_BYTES < CHECKSUM_BYTES * len(group.arcs)
    return stop if len(group.arcs) > 1 and wanted <= m and told < m and is_cheap else None


def splits_cheaply(group: Compared, estimate: int, *, m: int) -> bool:
    """Whether splitting in two, of which one can be worked out, costs less than the sectors' checksums."""
    symbols = symbols_for(-(-estimate // 2))
    told_bytes = (2 * symbols - min(symbols, len(group.theirs))) * SYMBOL_BYTES
    return symbols <= m and told_bytes < CHECKSUM_BYTES * len(group.arcs)


def parts_of(task: Splitting, data: bytes) -> list[Sketch]:
    """The symbols of each part."""
    question = task.question
    size = question.stop * SYMBOL_BYTES
    told = [data[i * size : (i + 1) * size] for i in range(question.parts)]
    if task.whole is not None:
        last = task.whole
        for part in told[:-1]:
            last = last.subtract(Sketch(part).prefix(len(last)))
        told[-1] = last.encode() + told[-1]
    return [Sketch(part, question.code) for part in told]


def runs(arcs: ArcSet) -> Iterator[tuple[int, int]]:
    """The first and the last of each run of adjacent sectors."""
    first = last = -1
    for sector in arcs:
        if sector != last + 1 or first < 0:
            if first >= 0:
                yield first, last
            first = sector
        last = sector
    if first >= 0:
        yield first, last


def expected_bytes(question: Question) -> int:
    """About what the answer takes: what a turn is filled with."""
    most = most_bytes(question)
    return most // 8 if isinstance(question, AskIds) else most
