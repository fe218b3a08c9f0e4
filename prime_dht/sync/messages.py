"""What the two sides of a round say to each other, as values; :mod:`prime_dht.wire.sync` turns them into bytes.

A round is a conversation in turns: one side speaks, then the other. The *initiator* begins with :class:`Open`. The
*responder* answers with :class:`Refuse`, which ends it, or with its first :class:`Turn`, which holds an
:class:`Acceptance`. From then on one side *leads*: it compares, asks, and says what it wants. The other *follows*: it
answers. The responder leads, since the symbols it needs came with the opening, unless the opening told of other sectors
than the two have in common: then the acceptance tells of the right ones, and the initiator leads.

Ids of ops are cut to their first 16 bytes, as in sketches (:mod:`prime_dht.partition.symbols`). Those that are wanted,
which need only be told from others that the follower has, are cut to 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from prime_dht.entries.codec import Undecodable
from prime_dht.entries.entry import Entry
from prime_dht.errors import ValidationError
from prime_dht.ids import US_PER_S
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.cells import Cell
from prime_dht.partition.combined import HASH_BYTES, Combined
from prime_dht.partition.parameters import PartitionParameters
from prime_dht.partition.sketch import SYMBOL_BYTES, Sketch
from prime_dht.partition.slices import Layout
from prime_dht.partition.snapshot import MinimalSnapshot
from prime_dht.partition.symbols import PLAIN, Code
from prime_dht.quantities import duration_text

PROTOCOL_VERSION = 1

CUT_HASH_BYTES = 8
"""What travels of a combined hash. XOR of cut hashes is the cut XOR, so they combine, and move on, like whole ones."""

WANT_BYTES = 8
"""What travels of an id that is wanted. Where several begin alike, all of their entries are sent."""


def cut(combined: Combined) -> Combined:
    """A combined hash as it travels: of its hash the first 8 bytes."""
    return Combined(combined.hash[:CUT_HASH_BYTES].ljust(HASH_BYTES, b"\0"), combined.count)


def cut_top(combined: Combined) -> Combined:
    """A top hash as it travels: cut, and without its count."""
    return Combined(cut(combined).hash, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What two nodes must have in common to understand each other. It is compared before anything else.

    Attributes:
        network_id: that of the entries.
        parameters: those of the partition.
        max_ttl_us: how long entries live at most: what one takes for an op, another must not refuse for its length.
        version: of this protocol.
    """

    network_id: str
    parameters: PartitionParameters
    max_ttl_us: int
    version: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """All that is told of some sectors before a question is asked.

    Attributes:
        tops: the minimal snapshot, with top hashes cut (:func:`cut_top`).
        op_count: how many ops there are.
        sketch: their first symbols.
    """

    tops: MinimalSnapshot
    op_count: int
    sketch: Sketch

    @property
    def arcs(self) -> ArcSet:
        """The sectors it tells of."""
        return self.tops.arcs


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One symbol of a sector by a code nobody could foresee: it shows a difference that was made to cancel itself."""

    sector: int
    sketch: Sketch


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """The initiator wants a round.

    Attributes:
        network: its own.
        arc: the sectors it stores, or wants to.
        held: those of them that it holds.
        digest: of what it takes for the common sectors; these are among those of ``arc``.
        nonce: which of two rounds that cross goes on (:func:`prime_dht.sync.schedule.survives`); below 2**32.
        dry_run: only compare.
        probe: sometimes there.
    """

    network: Network
    arc: ArcSet
    held: ArcSet
    digest: Digest
    nonce: int
    dry_run: bool = False
    probe: Probe | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """An opening from another network, of which nothing else is read: what follows may mean something else there."""

    version: int
    network_id: str
    unit_us: int
    factor: int
    sector_bits: int
    max_ttl_us: int


class Refusal(Enum):
    """Why a responder does not take part."""

    BUSY = "busy"
    TOO_OFTEN = "too many rounds in a short time"
    CROSSED = "our round to you goes on instead"
    NETWORK = "another network"
    PARAMETERS = "other network parameters"
    VERSION = "another version of the protocol"
    NO_COMMON_ARC = "no sector in common"
    CLOCKS = "the clocks are too far apart"
    NOT_READY = "not ready"


MISMATCHES = frozenset({Refusal.NETWORK, Refusal.PARAMETERS, Refusal.VERSION})
"""What two nodes differ in for as long as nobody configures one of them otherwise."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The responder does not take part; for a mismatch, ``text`` says what it has, and what the initiator has."""

    reason: Refusal
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """The responder takes part.

    Attributes:
        arc, held: as in :class:`Open`.
        digest: of the common sectors, if the opening told of others; then the initiator leads.
    """

    arc: ArcSet
    held: ArcSet
    digest: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AskSymbols:
    """The symbols [start, stop) of each of ``parts`` parts of some sectors.

    Part i of p is what lies in [i·n // p, (i + 1)·n // p) of the n sectors in ascending order. Symbols of a salted
    code, or beyond those that are kept per sector, are asked for only of a single sector.

    Whoever has the first symbols of all the sectors together can work out those of the last part from the others'. So
    of the last part ``known`` symbols less are told, those from ``start`` on.
    """

    arcs: ArcSet
    start: int
    stop: int
    parts: int = 1
    known: int = 0
    code: Code = PLAIN

    @property
    def answer_bytes(self) -> int:
        """What the answer takes, exactly."""
        return (self.parts * (self.stop - self.start) - self.known) * SYMBOL_BYTES

    def split(self) -> list[ArcSet]:
        """The parts."""
        sectors, n = list(self.arcs), len(self.arcs)
        bounds = [i * n // self.parts for i in range(self.parts + 1)]
        return [
            ArcSet.of_sectors(sectors[first:last], sector_bits=self.arcs.sector_bits)
            for first, last in pairwise(bounds)
        ]


@dataclass(frozen=True, slots=True)
class AskChecksums:
    """The XOR of the checksums of each of some sectors."""

    arcs: ArcSet


@dataclass(frozen=True, slots=True)
class AskCells:
    """The combined hashes of the cells of some sectors, in some slices of a layout, which begin at these units.

    They are in the order of time. No slices: in all.
    """

    layout: Layout
    arcs: ArcSet
    slices: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class IdCursor:
    """A place in the order of ops: (``created_at_us``, the first 16 bytes of the id)."""

    created_at_us: int
    op_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AskIds:
    """The ids of the ops in some adjacent sectors and an interval of time.

    Attributes:
        first, last: the sectors, both included.
        created_us: the interval [start, stop).
        after: only those behind this place.
    """

    first: int
    last: int
    created_us: range
    after: IdCursor | None = None


Question = AskSymbols | AskChecksums | AskCells | AskIds


@dataclass(frozen=True, slots=True)
class SymbolsTold:
    """The symbols, part by part; or nothing, if making them would take too many ops."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ChecksumsTold:
    """32 bits each, little-endian, in the order of sectors."""

    data: bytes


@dataclass(frozen=True, slots=True)
class CellsTold:
    """The cells that hold an op, with their combined hashes, cut."""

    cells: Mapping[Cell, Combined]


@dataclass(frozen=True, slots=True)
class IdsTold:
    """The ids in the order of (``created_at``, id), and, if there are more, the place of the last."""

    ids: tuple[bytes, ...]
    upto: IdCursor | None = None


Answer = SymbolsTold | ChecksumsTold | CellsTold | IdsTold


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the leader found, when it has no more questions and nothing more to send or to want.

    Attributes:
        only_leader, only_follower: how many ops only one of them had.
        left: sectors that were not compared to the end, or have an entry that is too large to be sent.
    """

    only_leader: int
    only_follower: int
    left: ArcSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """All that a side says before the other speaks.

    Attributes:
        acceptance: in the responder's first turn, and only there.
        questions: the leader's.
        answers: the follower's, to the questions of the turn before, in order; at least one if there were any. What is
            not answered can be asked again.
        entries: that the other side lacks.
        wants: the leader's: ids of ops that it lacks, 8 bytes each.
        more: the follower's: of what was wanted, more is to come.
        declined: the follower's: so many of what was wanted it does not have, because it declined them itself, or does
            not send, because they are dated so far ahead that nobody takes them now.
        verdict: the leader's, in its last turn. What it wants may still come, and if ``more`` does, it repeats this.
        vanished: the follower's: sectors of ops that were wanted in this round and are not sent: they are too large, or
            went before, without giving way to what the leader sent. None: there are none, or it does not say.
    """

    acceptance: Acceptance | None = None
    questions: tuple[Question, ...] = ()
    answers: tuple[Answer, ...] = ()
    entries: tuple[Entry | Undecodable, ...] = ()
    wants: tuple[bytes, ...] = ()
    more: bool = False
    declined: int = 0
    verdict: Verdict | None = None
    vanished: ArcSet | None = None


Message = Open | Refuse | Turn


def mismatch(ours: Network, theirs: Foreign) -> Refuse:
    """Why two nodes cannot take part in a round: all that this one has and they have not.

    >>> ours = Network(network_id="main", parameters=PartitionParameters(), max_ttl_us=86_400_000_000)
    >>> theirs = Foreign(
    ...     version=1, network_id="main", unit_us=60_000_000, factor=9, sector_bits=12, max_ttl_us=86_400_000_000
    ... )
    >>> mismatch(ours, theirs).text
    'unit 15m, not 1m; sector_bits 9, not 12'
    """
    if theirs.version != ours.version:
        return Refuse(Refusal.VERSION, f"version {ours.version}, not {theirs.version}")
    if theirs.network_id != ours.network_id:
        return Refuse(Refusal.NETWORK, f"network {ours.network_id!r}, not {theirs.network_id!r}")
    here = ours.parameters
    pairs = {
        "unit": (_duration(here.unit_us), _duration(theirs.unit_us)),
        "factor": (str(here.factor), str(theirs.factor)),
        "sector_bits": (str(here.sector_bits), str(theirs.sector_bits)),
        "max_ttl": (_duration(ours.max_ttl_us), _duration(theirs.max_ttl_us)),
    }
    differing = (f"{name} {ours}, not {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs)
    return Refuse(Refusal.PARAMETERS, "; ".join(differing))


def _duration(time_us: int) -> str:
    return duration_text(time_us / US_PER_S)


def check_question(question: Question, sector_bits: int) -> None:
    """Check that a question is one that can be asked, whoever asked it.

    Raises:
        ValidationError: it is not.
    """
    match question:
        case AskSymbols(arcs=arcs, start=start, stop=stop, parts=parts, known=known):
            if not (0 <= start < stop and 0 <= known <= stop - start and 1 <= parts <= len(arcs)):
                raise ValidationError("symbols are asked for from one on, of parts that have a sector each")
        case AskChecksums(arcs):
            _check_sectors(arcs)
        case AskCells(layout, arcs, slices):
            _check_sectors(arcs)
            if any(one >= other for one, other in pairwise(slices)):
                raise ValidationError("slices are asked for in their order, each once")
            if not layout.has_slices_at(slices):
                raise ValidationError("no slice of the layout begins there")
        case AskIds(first=first, last=last, created_us=created_us):
            if not (0 <= first <= last < 1 << sector_bits and created_us):
                raise ValidationError("ids are asked for of one sector at least and some time")


def _check_sectors(arcs: ArcSet) -> None:
    if not arcs:
        raise ValidationError("a question is about one sector at least")
