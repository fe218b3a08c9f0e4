"""What both sides of a round do alike: hear the peer, read the store, send entries, take entries.

Everything here that takes several actions is a generator (:data:`Steps`): it yields an action, is resumed with its
event, and returns what it was for. So the course of a round can be read from top to bottom.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar, assert_never

from prime_dht.entries.codec import Undecodable
from prime_dht.entries.entry import Entry
from prime_dht.entries.lifetime import is_op
from prime_dht.entries.limits import MAX_ENTRY_BYTES
from prime_dht.errors import LocalProtocolError, PrimeDHTError, RemoteProtocolError
from prime_dht.ids import kad_key
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.location import location_of_key, sector_locations, sector_of
from prime_dht.partition.offer import OpQuery, Version
from prime_dht.partition.sketch import Sketch
from prime_dht.partition.slices import END_OF_TIME_US
from prime_dht.partition.symbols import ID_BYTES, Code
from prime_dht.sync.actions import (
    Action,
    Closed,
    EntriesFetched,
    EntriesStored,
    Event,
    Fate,
    FetchEntries,
    FetchOps,
    FindOps,
    Misconduct,
    OpsFetched,
    OpsFound,
    Receive,
    Rest,
    Send,
    StoreEntries,
    TimedOut,
    TimeUp,
    Unreadable,
)
from prime_dht.sync.limits import (
    MAX_CHANGES,
    MAX_ENTRIES,
    MAX_POSTPONED_BYTES,
    MAX_SECTOR_OPS,
    OPS_PER_FETCH,
    TURN_BYTES,
)
from prime_dht.sync.messages import WANT_BYTES, Message, Open, Refuse, Turn
from prime_dht.sync.view import View, ids_array

T = TypeVar("T")
Steps = Generator[Action, Event, T]

ALWAYS = range(END_OF_TIME_US)

ENTRY_FRAMING_BYTES = 16
"""At most what an entry takes in a message beside its envelope and value."""

_MOST_FETCHED = 256  # entries at a time, which are all held
_TYPICAL_BYTES = 8192  # of an entry, before anything is known of their sizes


class Misbehaved(RemoteProtocolError):
    """The peer is to be charged, and the round is over."""

    def __init__(self, misconduct: Misconduct, text: str) -> None:
        super().__init__(text)
        self.misconduct = misconduct


class Gone(RemoteProtocolError):
    """The peer closed the stream before the round was over."""


class Unfinished(PrimeDHTError):
    """The round ends here, and nobody is to blame: the rest is for another."""


@dataclass(slots=True)
class Tally:
    """What has been done so far; see :class:`~prime_dht.sync.actions.Outcome`."""

    only_ours: int = 0
    only_theirs: int = 0
    sent: int = 0
    received: int = 0
    stored: int = 0
    superseded: int = 0
    declined: Counter[str] = field(default_factory=Counter)
    postponed: Counter[str] = field(default_factory=Counter)


def send(message: Message) -> Steps[None]:
    match (yield Send(message)):
        case TimedOut():
            raise Misbehaved(Misconduct.SILENT, "the peer reads nothing")
        case TimeUp():
            raise Unfinished
        case Closed():
            raise Gone("the peer went away")


def receive() -> Steps[Message]:
    """The peer's next message."""
    match (yield Receive()):
        case Open() | Refuse() | Turn() as message:
            return message
        case TimedOut():
            raise Misbehaved(Misconduct.SILENT, "the peer fell silent")
        case TimeUp():
            raise Unfinished
        case Unreadable(text):
            raise Misbehaved(Misconduct.MALFORMED, text)
        case Closed():
            raise Gone("the peer went away")
        case other:
            raise LocalProtocolError(f"a round that waits for a message is given {type(other).__name__}")


def receive_turn() -> Steps[Turn]:
    """The peer's next turn, but not the first of a responder."""
    message = yield from receive()
    if not isinstance(message, Turn) or message.acceptance is not None:
        raise Misbehaved(Misconduct.OUT_OF_TURN, f"{type(message).__name__} in the middle of a round")
    return message


def fetch_ops(query: OpQuery) -> Steps[tuple[Version, ...]]:
    event = yield FetchOps(query)
    if not isinstance(event, OpsFetched):
        raise LocalProtocolError(f"ops are asked for, and {type(event).__name__} comes")
    return event.versions


def rest() -> Steps[None]:
    if (event := (yield Rest())) is not None:
        raise LocalProtocolError(f"nothing was asked for, and {type(event).__name__} comes")


def find_ops(ids: Iterable[bytes]) -> Steps[frozenset[bytes]]:
    """Which of the ids, cut to 16 bytes, the store has."""
    found: set[bytes] = set()
    for some in batched_tuples(ids, OPS_PER_FETCH):
        event = yield FindOps(some)
        if not isinstance(event, OpsFound):
            raise LocalProtocolError(f"ids are asked for, and {type(event).__name__} comes")
        found |= event.ids
    return frozenset(found)


def batched_tuples(items: Iterable[bytes], size: int) -> Iterable[tuple[bytes, ...]]:
    iterator = iter(items)
    while some := tuple(islice(iterator, size)):
        yield some


class Exchange:
    """The entries that go both ways, and the ops read for them.

    Args:
        view: what this side has.
        common: the sectors the round is about.
        latest_us: what is dated later is not sent.

    Attributes:
        turn_bytes: what a turn may take for entries, or answers behind the first, to be put into it.
        tally: what has been done so far.
        unsettled: sectors in which some entry could not be taken yet, in this round or one before.
        withheld: sectors of entries too large to be sent.
        held_back: how many ops that were to be sent are dated too late for that; of a follower, since it said so.
        outgoing: ids of ops that are to be sent.
    """

    def __init__(
        self, view: View, common: ArcSet, *, latest_us: int = END_OF_TIME_US, turn_bytes: int = TURN_BYTES
    ) -> None:
        self.view = view
        self.common = common
        self.turn_bytes = turn_bytes
        self.tally = Tally()
        self.unsettled = view.put_off & common
        self.withheld = ArcSet.empty(sector_bits=common.sector_bits)
        self.held_back = 0
        self.outgoing: deque[bytes] = deque()
        self._latest_us = latest_us
        self._lacking = self.withheld
        self._ready: deque[Entry] = deque()
        self._mean_bytes = float(_TYPICAL_BYTES)
        self._postponed_bytes = 0
        self._displaced: set[bytes] = set()  # how the ids of ops begin that gave way to what came; not of all, if many

    @property
    def lacking(self) -> ArcSet:
        """Sectors of ops that went, without giving way to what the peer sent, before they were sent.

        The peer may lack both them and what came instead. Where not all that went is remembered, that may be anywhere.
        """
        return self._lacking if self.view.knows_all_gone else self.common

    @property
    def has_more(self) -> bool:
        """Whether there are entries still to be sent."""
        return bool(self.outgoing or self._ready)

    def gather(self, room_bytes: int, *, is_alone: bool) -> Steps[tuple[Entry, ...]]:
        """The next entries to send, as many as there is room for; at least one, if the turn holds nothing else."""
        chosen: list[Entry] = []
        while len(chosen) < MAX_ENTRIES:
            if not self._ready:
                if not self.outgoing:
                    break
                yield from self._fetch(room_bytes)
                continue
            size_bytes = self._ready[0].size_bytes + ENTRY_FRAMING_BYTES
            if size_bytes > room_bytes and (chosen or not is_alone):
                break
            room_bytes -= size_bytes
            chosen.append(self._ready.popleft())
        self.tally.sent += len(chosen)
        return tuple(chosen)

    def checked(self, entries: Sequence[Entry | Undecodable]) -> tuple[Entry, ...]:
        """What the peer sent, if there is nothing among it that should not be.

        Raises:
            Misbehaved: there is.
        """
        return tuple(self._check(entry) for entry in entries)

    def store(self, entries: tuple[Entry, ...]) -> Steps[None]:
        """Store what was checked.

        Raises:
            Misbehaved: of some that were stored, the store says that no honest node would have passed them on.
            Unfinished: too much could not be taken yet for it to be worth the rest.
        """
        if not entries:
            return
        event = yield StoreEntries(entries)
        if not isinstance(event, EntriesStored) or len(event.fates) != len(entries):
            raise LocalProtocolError("there is one fate for each entry that is to be stored")
        tally, blamed = self.tally, ""
        tally.received += len(entries)
        for entry, judged in zip(entries, event.fates, strict=True):
            match judged.fate:
                case Fate.STORED:
                    tally.stored += 1
                    if judged.displaced is not None and len(self._displaced) < MAX_CHANGES:
                        self._displaced.add(judged.displaced[:WANT_BYTES])
                case Fate.DUPLICATE:
                    pass
                case Fate.SUPERSEDED:
                    tally.superseded += 1
                case Fate.DECLINED:
                    tally.declined[judged.reason] += 1
                    self._postponed_bytes += 0 if judged.is_noted else entry.size_bytes
                case Fate.POSTPONED:
                    tally.postponed[judged.reason] += 1
                    self.unsettled |= self._arcs_of(entry)
                    self._postponed_bytes += 0 if judged.is_noted else entry.size_bytes
                case Fate.BLAMED:
                    blamed = judged.reason
                case never:
                    assert_never(never)
        if blamed:
            raise Misbehaved(Misconduct.BAD_ENTRIES, blamed)
        if self._postponed_bytes > MAX_POSTPONED_BYTES:
            raise Unfinished

    def send_and_store(self, message: Message, entries: tuple[Entry, ...]) -> Steps[None]:
        """Send a message, and store what came before it while the other side makes its next one ready.

        What came is stored too if the message cannot be sent.
        """
        try:
            yield from send(message)
        except (Gone, Misbehaved, Unfinished):
            yield from self.store(entries)
            raise
        yield from self.store(entries)

    def sector_ids(self, sector: int) -> Steps[list[bytes] | None]:
        """All op ids of a sector, as the view has them; None if there are too many to hold."""
        locations = sector_locations(sector, sector_bits=self.common.sector_bits)
        stored: list[bytes] = []
        after: Version | None = None
        while True:
            page = yield from fetch_ops(OpQuery(locations, ALWAYS, after, OPS_PER_FETCH))
            stored += (op_id for _, op_id in page)
            if len(page) < OPS_PER_FETCH:
                return self.view.ids_of_sector(sector, stored)
            if len(stored) > MAX_SECTOR_OPS:
                return None
            after = page[-1]

    def sketch(self, arcs: ArcSet, count: int, code: Code) -> Steps[Sketch | None]:
        """The first symbols of some sectors; of one sector, if they are not among those that are kept.

        None if that sector has too many ops.
        """
        if not code.salt and count <= self.view.symbols.m:
            return self.view.sketch(arcs, count)
        (sector,) = arcs
        ids = yield from self.sector_ids(sector)
        return None if ids is None else Sketch.of(ids_array(ids), count, code)

    def _fetch(self, room_bytes: int) -> Steps[None]:
        """Read so many entries as may fit, going by the sizes of those before."""
        count = max(1, min(_MOST_FETCHED, int(room_bytes / self._mean_bytes)))
        ids = tuple(self.outgoing.popleft() for _ in range(min(count, len(self.outgoing))))
        event = yield FetchEntries(ids)
        if not isinstance(event, EntriesFetched):
            raise LocalProtocolError(f"entries are asked for, and {type(event).__name__} comes")
        for entry in event.entries:
            if entry.header.created_at_us > self._latest_us:
                self.held_back += 1
            elif entry.size_bytes <= MAX_ENTRY_BYTES:
                self._ready.append(entry)
            else:
                self.withheld |= self._arcs_of(entry)
        if event.entries:
            total = sum(entry.size_bytes + ENTRY_FRAMING_BYTES for entry in event.entries)
            self._mean_bytes = (self._mean_bytes + total / len(event.entries)) / 2
        here = {entry.op_id[:WANT_BYTES] for entry in event.entries}
        # Not by their number: entries that begin alike come together.
        self._note_lacking({op_id[:WANT_BYTES] for op_id in ids} - here - self._displaced)

    def _note_lacking(self, vanished: Iterable[bytes]) -> None:
        sectors = {self.view.sector_of_gone(op_id) for op_id in vanished}
        if None in sectors:
            self._lacking = self.common
        else:
            known = (sector for sector in sectors if sector is not None)
            self._lacking |= ArcSet.of_sectors(known, sector_bits=self.common.sector_bits)

    def _check(self, entry: Entry | Undecodable) -> Entry:
        if isinstance(entry, Undecodable):
            raise Misbehaved(Misconduct.BAD_ENTRIES, entry.reason)
        if not is_op(entry) or not self.common.covers(_location_of(entry)):
            raise Misbehaved(Misconduct.UNWANTED, "an entry that the round is not about")
        return entry

    def _arcs_of(self, entry: Entry) -> ArcSet:
        bits = self.common.sector_bits
        return ArcSet.of_sectors([sector_of(_location_of(entry), sector_bits=bits)], sector_bits=bits)


def cut_id(op_id: bytes) -> bytes:
    """What travels of an op id."""
    return op_id[:ID_BYTES]


def _location_of(entry: Entry) -> int:
    return location_of_key(kad_key(entry.header.key))
