"""Two parties that run a round between them, in memory, with every byte counted.

Most ops of a large store are the same on both sides, and never leave it: these are rows of numpy arrays
(:class:`Base`), shared by both parties. Only those that differ are entries.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from random import Random
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from prime_dht.entries.codec import encode_entry_set, inline
from prime_dht.entries.entry import Entry, EntryHeader, Slot
from prime_dht.errors import RemoteProtocolError
from prime_dht.ids import Key, OpId, PeerId, TimestampUs, kad_key
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.location import location_of_key
from prime_dht.partition.offer import OpQuery, Version
from prime_dht.partition.parameters import PARAMETERS
from prime_dht.partition.partition import Partition
from prime_dht.partition.symbols import ID_BYTES
from prime_dht.sync.actions import (
    Action,
    Charge,
    Closed,
    EntriesFetched,
    EntriesStored,
    Event,
    Fate,
    FetchEntries,
    FetchOps,
    FindOps,
    Finish,
    Judged,
    Misconduct,
    OpsFetched,
    OpsFound,
    Outcome,
    Receive,
    Rest,
    Send,
    StoreEntries,
    TimedOut,
    TimeUp,
    Unreadable,
)
from prime_dht.sync.declined import Declined, DeclinedOp
from prime_dht.sync.limits import TURN_BYTES
from prime_dht.sync.messages import WANT_BYTES, Foreign, Message, Network, Open, Turn
from prime_dht.sync.round import Participant, Round
from prime_dht.sync.view import View
from prime_dht.wire.frames import encode_frame
from prime_dht.wire.sync import SyncCodec

NOW_US = 1_800_000_001_000_000
YEAR_US = 365 * 86_400 * 1_000_000
DAY_US = 86_400 * 1_000_000
NETWORK = Network(network_id="main", parameters=PARAMETERS, max_ttl_us=YEAR_US)
CIRCLE = ArcSet.full(sector_bits=PARAMETERS.sector_bits)


def unsigned_entry(key: bytes, created_at_us: int, *, value: bytes = b"value", writer: bytes = b"writer") -> Entry:
    """An entry that nobody signed, for rounds between values that are never decoded."""
    header = EntryHeader(
        network_id=NETWORK.network_id,
        key=Key(b"/prime/" + key),
        created_at_us=TimestampUs(created_at_us),
        expires_at_us=TimestampUs(created_at_us + YEAR_US),
        retain_until_us=TimestampUs(created_at_us + YEAR_US),
        content=inline(value),
    )
    op_id = OpId(sha256(b"%b %b %d %b" % (writer, key, created_at_us, value)).digest())
    return Entry(header=header, publisher=PeerId(writer), op_id=op_id, envelope=bytes(160), value=value)


def location_of(entry: Entry) -> int:
    return location_of_key(kad_key(entry.header.key))


class Base:
    """Ops that all parties have: op ids of shape (n, 32), locations and times of shape (n,)."""

    def __init__(self, n: int, *, seed: int = 0, now_us: int = NOW_US, network: Network = NETWORK) -> None:
        rng = np.random.default_rng(seed)
        created_at_us = np.sort(now_us - rng.integers(0, YEAR_US, n))
        self.created_at_us: NDArray[np.int64] = created_at_us
        self.op_ids: NDArray[np.uint8] = rng.integers(0, 256, (n, 32), dtype=np.uint8)
        self.locations: NDArray[np.uint32] = rng.integers(0, 1 << 32, n, dtype=np.uint32)
        self.ids = frozenset(op_id[:ID_BYTES].tobytes() for op_id in self.op_ids)
        self.partition = Partition(network.parameters, now_us=now_us)
        if n:
            self.partition.insert_batch(self.op_ids, self.locations, created_at_us)

    def partition_copy(self, now_us: int) -> Partition:
        copied = Partition(self.partition.parameters, now_us=now_us)
        copied.cells = self.partition.cells.copy()
        copied.sketches = self.partition.sketches.copy()
        copied.advance(now_us)
        return copied

    def query(self, query: OpQuery) -> list[Version]:
        first, last = np.searchsorted(self.created_at_us, [query.created_us.start, query.created_us.stop])
        if query.after is not None:
            first = max(first, np.searchsorted(self.created_at_us, query.after[0]))
        locations = self.locations[first:last]
        rows = first + np.flatnonzero((locations >= query.locations.start) & (locations < query.locations.stop))
        versions: list[Version] = []
        for row in rows[: query.limit + 1].tolist():
            version = (int(self.created_at_us[row]), self.op_ids[row].tobytes())
            if query.after is None or version > query.after:
                versions.append(version)
        return versions


NO_BASE = Base(0)


@dataclass(eq=False)
class Party:
    """One node: a store in memory, its partition, and what it declined.

    Attributes:
        judge: what becomes of an entry before it comes to the store; None: the store decides.
        codec: of the network it believes to be in.
    """

    base: Base = field(default_factory=lambda: NO_BASE)
    now_us: int = NOW_US
    network: Network = NETWORK
    arc: ArcSet = CIRCLE
    held: ArcSet | None = None
    judge: Callable[[Entry], Judged | None] = field(default=lambda _: None)
    declined: Declined = field(default_factory=Declined)

    def __post_init__(self) -> None:
        self.entries: dict[Slot, Entry] = {}
        self.by_id: dict[bytes, Entry] = {}
        self.by_want: dict[bytes, dict[bytes, Entry]] = {}
        self.codec = SyncCodec(self.network)
        self.partition = self.base.partition_copy(self.now_us)
        self.view: View | None = None

    def put(self, entries: Iterable[Entry]) -> list[Judged]:
        return [self._put(entry) for entry in entries]

    def _put(self, entry: Entry) -> Judged:
        judged = self.judge(entry)
        if judged is not None:
            if judged.fate is Fate.DECLINED:
                op = DeclinedOp(
                    op_id=entry.op_id,
                    location=location_of(entry),
                    created_at_us=entry.header.created_at_us,
                    retain_until_us=entry.header.retain_until_us,
                )
                return replace(judged, is_noted=self.declined.add(op))
            return judged
        standing = self.entries.get(entry.slot)
        if standing is not None and standing.version >= entry.version:
            return Judged(Fate.DUPLICATE if standing.op_id == entry.op_id else Fate.SUPERSEDED)
        if standing is not None:
            self.remove(standing)
        self.declined.discard(entry.op_id)
        self.entries[entry.slot] = entry
        self.by_id[entry.op_id[:ID_BYTES]] = entry
        self.by_want.setdefault(entry.op_id[:WANT_BYTES], {})[entry.op_id] = entry
        self.partition.insert(entry.op_id, location_of(entry), entry.header.created_at_us)
        if self.view is not None:
            self.view.inserted(entry.op_id)
        return Judged(Fate.STORED, displaced=None if standing is None else standing.op_id)

    def remove(self, entry: Entry) -> None:
        del self.entries[entry.slot], self.by_id[entry.op_id[:ID_BYTES]]
        del self.by_want[entry.op_id[:WANT_BYTES]][entry.op_id]
        self.partition.remove(entry.op_id, location_of(entry), entry.header.created_at_us)
        if self.view is not None:
            self.view.removed(entry.op_id, location_of(entry), entry.header.created_at_us)

    @property
    def op_ids(self) -> frozenset[bytes]:
        return frozenset(entry.op_id for entry in self.entries.values())

    def node(self) -> Participant:
        self.view = View.of(self.partition, self.declined)
        held = self.arc if self.held is None else self.held
        return Participant(network=self.network, arc=self.arc, held=held, view=self.view)

    def carry_out(self, action: Action) -> Event:
        """Do what concerns the store."""
        match action:
            case FetchOps(query):
                own = (
                    (entry.header.created_at_us, bytes(entry.op_id))
                    for entry in self.entries.values()
                    if location_of(entry) in query.locations and entry.header.created_at_us in query.created_us
                )
                behind = (version for version in own if query.after is None or version > query.after)
                return OpsFetched(tuple(sorted([*behind, *self.base.query(query)])[: query.limit]))
            case FindOps(ids):
                return OpsFound(frozenset(op_id for op_id in ids if op_id in self.by_id or op_id in self.base.ids))
            case FetchEntries(ids):
                if ids and len(ids[0]) == ID_BYTES:
                    return EntriesFetched(tuple(self.by_id[op_id] for op_id in ids if op_id in self.by_id))
                found: list[Entry] = []
                for want in ids:
                    found += self.by_want.get(want, {}).values()
                return EntriesFetched(tuple(found))
            case StoreEntries(entries):
                return EntriesStored(tuple(self.put(entries)))
            case Rest():
                return None
            case Send() | Receive() | Charge() | Finish():
                raise AssertionError("no concern of the store's")
            case never:
                assert_never(never)


@dataclass(frozen=True, slots=True)
class Sent:
    """A message on the stream: by the initiator or not, and the bytes of its frame and of the entries in it."""

    by_initiator: bool
    message: Message
    frame_bytes: int
    entry_bytes: int


class Side:
    """A round, and what it has been sent."""

    def __init__(self, party: Party, round_: Round | None = None) -> None:
        self.party = party
        self.round = round_
        self.inbox: deque[Message | Foreign | TimedOut | TimeUp | Unreadable | Closed] = deque()
        self.outcome: Outcome | None = None
        self.charges: list[Misconduct] = []
        self._event: Event = None
        self._waits = False

    def run(self) -> list[Message]:
        """Go on until it waits for a message or is over; returns what it sent."""
        sent: list[Message] = []
        while self.outcome is None and self.round is not None:
            if self._waits:
                if not self.inbox:
                    break
                event = self.inbox.popleft()
                assert not isinstance(event, Foreign)
                self._event, self._waits = event, False
            action = self.round.step(self._event)
            self._event = None
            match action:
                case Send(message):
                    sent.append(message)
                case Receive():
                    self._waits = True
                case Charge(misconduct):
                    self.charges.append(misconduct)
                case Finish(outcome):
                    self.outcome = outcome
                    self.party.view = None
                case _:
                    self._event = self.party.carry_out(action)
        return sent


@dataclass
class Ran:
    """What became of a round: how it ended for both, and all that was sent."""

    initiator: Side
    responder: Side
    sent: list[Sent]

    @property
    def outcomes(self) -> tuple[Outcome, Outcome]:
        assert self.initiator.outcome is not None
        assert self.responder.outcome is not None
        return self.initiator.outcome, self.responder.outcome

    @property
    def total_bytes(self) -> int:
        return sum(sent.frame_bytes for sent in self.sent)

    @property
    def overhead_bytes(self) -> int:
        """All bytes but those of the entries, which are those of the sets that they travel in."""
        return self.total_bytes - sum(sent.entry_bytes for sent in self.sent)

    @property
    def message_count(self) -> int:
        return len(self.sent)


def run_round(
    initiator: Party,
    responder: Party,
    *,
    seed: int = 1,
    dry_run: bool = False,
    partner_arc: ArcSet | None = None,
    is_wired: bool = False,
    turn_bytes: int = TURN_BYTES,
    between: Callable[[int, Message], None] = lambda _, __: None,
) -> Ran:
    """A whole round.

    Args:
        is_wired: whether messages are decoded from their bytes; then all entries must be signed.
        turn_bytes: what either side puts into one turn.
        between: called with each message and its number, from 0, before the other side gets it.
    """
    rng = Random(seed)  # noqa: S311 - a simulation, nothing secret
    start = Round.initiate(
        initiator.node(), nonce=rng.getrandbits(32), rng=rng, partner_arc=partner_arc, dry_run=dry_run
    )
    start.limit_turns(turn_bytes)
    one, other = Side(initiator, start), Side(responder)
    sent: list[Sent] = []
    speaker, hearer = one, other
    while True:
        messages = speaker.run()
        for message in messages:
            body = speaker.party.codec.encode(message)
            entries = message.entries if isinstance(message, Turn) else ()
            entry_bytes = len(encode_entry_set(entry for entry in entries if isinstance(entry, Entry)))
            sent.append(Sent(speaker is one, message, len(encode_frame(body)), entry_bytes))
            between(len(sent) - 1, message)
            hearer.inbox.append(_heard(hearer.party, message, body, is_wired=is_wired))
        if hearer.outcome is None and not messages:
            hearer.inbox.append(Closed())
        if hearer.round is None:
            opened = hearer.inbox.popleft()
            assert isinstance(opened, Open | Foreign)
            hearer.round = Round.accept(hearer.party.node(), opened, rng=rng)
            hearer.round.limit_turns(turn_bytes)
        speaker, hearer = hearer, speaker
        if one.outcome is not None and other.outcome is not None:
            return Ran(one, other, sent)


def _heard(party: Party, message: Message, body: bytes, *, is_wired: bool) -> Message | Foreign | Unreadable:
    if not is_wired and not isinstance(message, Open):
        return message
    try:
        return party.codec.decode(body)
    except RemoteProtocolError as error:
        return Unreadable(str(error))
