"""One round of sync at a time: what the state machine of :mod:`prime_dht.sync.round` asks for, done.

A round talks over a stream, reads this node's store and, entry by entry, judges what comes as a put would be judged
(:mod:`prime_dht.entries.admission`): newest wins, and what is refused is refused for its own reason. Whoever sends what
its publisher has not signed, or what no replica stores, is to blame. What is refused is remembered, so that it does not
come again (:mod:`prime_dht.sync.declined`), as far as replicas may have it for long.

**Deadlines.** A peer that falls silent, or crawls, holds up its own round and nothing else, and that not for long: each
message has a deadline, and so have all waits of a round together, which the more it has moved the more it may take.
Who keeps to these is not to blame for a slow path: a round that lasts too long all the same ends, and the next goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import assert_never

import trio

from prime_dht.entries.admission import AdmissionRules, Admitted, Deferred, Reason, Refused, admit
from prime_dht.entries.entry import Entry, Version
from prime_dht.entries.lifetime import is_retired
from prime_dht.entries.limits import is_about_store
from prime_dht.entries.signing import verify_signature
from prime_dht.errors import QueryError, RemoteProtocolError
from prime_dht.ids import OpId, PeerId, TimestampUs
from prime_dht.net.network import Conversation
from prime_dht.net.network import Network as Peers
from prime_dht.node.clock import Clock
from prime_dht.node.held import HeldSectors
from prime_dht.node.replica import Replica
from prime_dht.node.server import ENTRIES_PER_TURN, Server
from prime_dht.node.turn_sizes import TurnSizes
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.offer import OpQuery
from prime_dht.partition.snapshot import TAIL_UNITS
from prime_dht.partition.symbols import ID_BYTES
from prime_dht.storage.base import PutOutcome, PutResult, StorageBackend
from prime_dht.storage.capacity import location_of
from prime_dht.sync.actions import (
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
from prime_dht.sync.declined import DeclinedOp
from prime_dht.sync.messages import Foreign, Message, Network, Open, Refusal, Refuse, Turn
from prime_dht.sync.round import Participant, Round
from prime_dht.sync.view import View
from prime_dht.wire.frames import encode_varint
from prime_dht.wire.sync import SyncCodec

OPENING_TIMEOUT_S = 10.0
"""For the message that begins a round, of a kilobyte, to come once there is a stream."""

STREAM_TIMEOUT_S = 30.0
"""For a stream to be opened."""

STAGE_TIMEOUT_S = 50.0
"""For one message to be sent, or to come: a full turn at :data:`LEAST_BYTES_PER_S`."""

WAIT_S = 60.0
"""For all messages of a round together, before it has moved anything."""

LEAST_BYTES_PER_S = 16 << 10
"""For each second more that the waits of a round take, this much has to have gone over its stream."""

BRISK_BYTES_PER_S = 32 << 10
SLOW_AFTER_S = 60.0
"""Who was waited for so much longer than bytes at that rate account for is slow: others need not wait for it too."""

FEW_ANSWERS = 5
"""A round in earnest that moves little is over after about so many."""

MAX_ROUND_S = 600.0
"""For a round, whatever it has moved; then it waits for no message any more. What is left is for the next."""

_STORED_NOWHERE = frozenset({Reason.BAD_KEY, Reason.NOT_PERMITTED})
"""What all nodes refuse alike, from the entry alone. (One of another network may be in the store of a node that was
started again under the name of this one.)"""


@dataclass(slots=True)
class Traffic:
    """What went over a round's stream, in messages and bytes, frames included, and how long the peer was waited for.

    Attributes:
        waits_since_s: when the wait began that is under way, by trio's clock; ``None`` while this node is at work.
        turn_bytes, turn_began_s: of the last message sent, its size and when that began.

    >>> Traffic().patience_s, Traffic(waited_s=50.0).patience_s, Traffic(waited_s=50.0, bytes_sent=1 << 20).patience_s
    (50.0, 10.0, 50.0)
    >>> Traffic(waited_s=50.0).stalled_s, Traffic(waited_s=50.0, bytes_sent=1 << 20).stalled_s
    (10.0, -14.0)
    """

    messages_sent: int = 0
    messages_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    waited_s: float = 0.0
    waits_since_s: float | None = None
    turn_bytes: int = 0
    turn_began_s: float = 0.0

    @property
    def wait_s(self) -> float:
        """How long the wait takes until now that is under way."""
        return 0.0 if self.waits_since_s is None else trio.current_time() - self.waits_since_s

    @property
    def overdue_s(self) -> float:
        """How long the peer was waited for until now beyond what the bytes moved account for; less than 0 if not."""
        return self.waited_s + self.wait_s - (self.bytes_sent + self.bytes_received) / LEAST_BYTES_PER_S

    @property
    def stalled_s(self) -> float:
        """How much of that one answer takes: the one that is waited for now, or one of :data:`FEW_ANSWERS`.

        On a long path many short waits add up, and after many bytes a long wait may be for many more. But who answers
        again and again, each time just soon enough, moves nothing and is no better than one who says nothing.
        """
        return min(self.overdue_s, max(self.wait_s, self.overdue_s / FEW_ANSWERS))

    @property
    def is_slow(self) -> bool:
        """Whether the peer keeps this node waiting, though it may be in earnest."""
        brisk_s = (self.bytes_sent + self.bytes_received) / BRISK_BYTES_PER_S
        return self.waited_s + self.wait_s - brisk_s > SLOW_AFTER_S

    @property
    def patience_s(self) -> float:
        """How long the next wait may take."""
        return min(STAGE_TIMEOUT_S, max(0.0, WAIT_S - self.overdue_s))

    @contextmanager
    def wait(self) -> Iterator[None]:
        """A wait for the peer.

        Raises:
            trio.TooSlowError: it took too long.
        """
        patience_s, began_at_s = self.patience_s, trio.current_time()
        self.waits_since_s = began_at_s
        try:
            with trio.fail_after(patience_s):
                yield
        finally:
            self.waits_since_s = None
            self.waited_s += trio.current_time() - began_at_s


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """How a round went."""

    peer: PeerId
    outcome: Outcome
    traffic: Traffic
    seconds: float


class Rounds:
    """Carries out rounds, on whichever side.

    Args:
        rules: what entries are judged by; partners have to be of the same network.
        rng: must not be foreseeable: salts are drawn from it.
    """

    def __init__(
        self,
        peers: Peers,
        replica: Replica,
        held: HeldSectors,
        server: Server,
        storage: StorageBackend,
        rules: AdmissionRules,
        clock: Clock,
        rng: Random,
    ) -> None:
        self._peers = peers
        self._network = Network(
            network_id=rules.network_id, parameters=replica.parameters, max_ttl_us=rules.limits.max_ttl_us
        )
        self._codec = SyncCodec(self._network)
        self._replica = replica
        self._held = held
        self._server = server
        self._storage = storage
        self._rules = rules
        self._clock = clock
        self._rng = rng
        self._turn_sizes = TurnSizes()
        replica.keep_up(held.declined, held.unsure)

    @property
    def local(self) -> PeerId:
        """This node."""
        return self._peers.local

    async def initiate(
        self,
        peer: PeerId,
        *,
        nonce: int,
        arc: ArcSet | None = None,
        partner_arc: ArcSet | None = None,
        dry_run: bool = False,
        traffic: Traffic | None = None,
    ) -> SyncReport:
        """Begin a round with a peer.

        Args:
            nonce: decides which of two rounds goes on that cross; below 2**32.
            arc: what it is about, instead of all that this node is to store.
            partner_arc: as the peer said it last.
            dry_run: only compare.
            traffic: where it is noted what goes over the stream, for a look at it meanwhile.

        Raises:
            QueryError: the peer cannot be reached or does not sync, or this node has not read its store yet.
        """
        async with self._peers.converse(peer, timeout_s=STREAM_TIMEOUT_S) as conversation:
            with self._replica.view(self._held.declined) as view:
                if view is None:
                    raise QueryError("this node is still reading its store")
                arc = arc or self._held.arc
                node = self._participant(arc, view)
                started = Round.initiate(node, nonce=nonce, rng=self._rng, partner_arc=partner_arc, dry_run=dry_run)
                return await self._carry_out(started, conversation, traffic or Traffic())

    async def read_opening(self, conversation: Conversation, traffic: Traffic) -> Open | Foreign:
        """What a peer says that begins a round.

        Raises:
            QueryError: it goes away.
            RemoteProtocolError: it says something else, or nothing.
        """
        try:
            with trio.fail_after(OPENING_TIMEOUT_S):
                body = await conversation.receive()
        except trio.TooSlowError as error:
            raise RemoteProtocolError("the peer opened a stream and did not begin a round") from error
        if body is None:
            raise QueryError("the peer went away before its opening")
        traffic.messages_received += 1
        traffic.bytes_received += _framed_bytes(body)
        opening = self._codec.decode(body)
        if not isinstance(opening, Open | Foreign):
            raise RemoteProtocolError(f"a round begins with an opening, not with {type(opening).__name__}")
        return opening

    async def accept(self, opening: Open | Foreign, conversation: Conversation, traffic: Traffic) -> SyncReport:
        """Take part in a round that a peer began; the replica is ready."""
        with self._replica.view(self._held.declined) as view:
            assert view is not None
            started = Round.accept(self._participant(self._held.arc, view), opening, rng=self._rng)
            return await self._carry_out(started, conversation, traffic)

    def charge(self, peer: PeerId) -> None:
        """A peer broke the rules of rounds."""
        self._peers.charge(peer)

    async def refuse(self, reason: Refusal, conversation: Conversation) -> None:
        """Take no part in a round that a peer began.

        Raises:
            QueryError: the stream is gone.
        """
        with trio.move_on_after(STAGE_TIMEOUT_S):
            await conversation.send(self._codec.encode(Refuse(reason)))

    def _participant(self, arc: ArcSet, view: View) -> Participant:
        # What a partner may take, and what those may take with whom it may have a round.
        # The layout is later than a clock that was just set back, and it is what the partner compares.
        now_us = max(self._clock.now_us(), view.layout.since_us)
        latest_us = now_us + self._rules.limits.clock_skew_us + 2 * self._apart_us
        held = self._held.held & arc
        return Participant(network=self._network, arc=arc, held=held, view=view, latest_us=latest_us)

    @property
    def _apart_us(self) -> int:
        """The clocks of two nodes in a round are less than this apart."""
        return (TAIL_UNITS + 1) * self._rules.unit_us

    async def _carry_out(self, carried: Round, conversation: Conversation, traffic: Traffic) -> SyncReport:
        began_at_s = trio.current_time()
        event: Event = None
        while True:
            carried.limit_turns(self._turn_sizes.of(conversation.peer))
            action = carried.step(event)
            match action:
                case Send() | Receive():
                    event = TimeUp()
                    with trio.move_on_at(began_at_s + MAX_ROUND_S):
                        event = await self._talk(action, conversation, traffic)
                case FetchOps(query):
                    event = await self._fetch_ops(query)
                case FindOps(ids):
                    found = await self._storage.find_ops(ids)
                    await self._replica.caught_up()  # or the view does not know what the reading has seen
                    event = OpsFound(frozenset(op_id[:ID_BYTES] for op_id in found))
                case FetchEntries(ids):
                    event = await self._fetch_entries(ids)
                case StoreEntries(entries):
                    event = EntriesStored(await self._store(entries))
                case Rest():
                    await trio.lowlevel.checkpoint()
                    event = None
                case Charge():
                    self._peers.charge(conversation.peer)
                    event = None
                case Finish(outcome):
                    return SyncReport(
                        peer=conversation.peer,
                        outcome=outcome,
                        traffic=traffic,
                        seconds=trio.current_time() - began_at_s,
                    )
                case _:
                    assert_never(action)

    # Talking

    async def _talk(self, action: Send | Receive, conversation: Conversation, traffic: Traffic) -> Event:
        if isinstance(action, Send):
            event = await self._send(action.message, conversation, traffic)
        else:
            event = await self._receive(conversation, traffic)
        took_s = trio.current_time() - traffic.turn_began_s
        if isinstance(event, TimedOut | Closed):
            self._turn_sizes.unanswered(conversation.peer, traffic.turn_bytes, took_s)
        elif isinstance(event, Turn):
            self._turn_sizes.answered(conversation.peer, traffic.turn_bytes, took_s)
        return event

    async def _send(self, message: Message, conversation: Conversation, traffic: Traffic) -> Event:
        body = self._codec.encode(message)
        traffic.turn_bytes, traffic.turn_began_s = _framed_bytes(body), trio.current_time()
        try:
            with traffic.wait():
                await conversation.send(body)
        except trio.TooSlowError:
            return TimedOut()
        except QueryError:
            return Closed()
        traffic.messages_sent += 1
        traffic.bytes_sent += _framed_bytes(body)
        return None

    async def _receive(self, conversation: Conversation, traffic: Traffic) -> Event:
        try:
            with traffic.wait():
                body = await conversation.receive()
            if body is None:
                return Closed()
            message = self._codec.decode(body)
        except trio.TooSlowError:
            return TimedOut()
        except QueryError:
            return Closed()
        except RemoteProtocolError as error:
            return Unreadable(str(error))
        traffic.messages_received += 1
        traffic.bytes_received += _framed_bytes(body)
        return Unreadable("an opening in the middle of a round") if isinstance(message, Foreign) else message

    # The store

    async def _fetch_ops(self, query: OpQuery) -> OpsFetched:
        after = None if query.after is None else Version(TimestampUs(query.after[0]), OpId(query.after[1]))
        ops = await self._storage.ops(
            locations=query.locations, created_us=query.created_us, after=after, limit=query.limit
        )
        await self._replica.caught_up()
        return OpsFetched(tuple((op.created_at_us, op.op_id) for op in ops))

    async def _fetch_entries(self, ids: tuple[bytes, ...]) -> EntriesFetched:
        found = await self._storage.get_ops(await self._storage.find_ops(ids), now_us=self._clock.now_us())
        await self._replica.caught_up()
        places = {cut_id: place for place, cut_id in enumerate(ids)}
        lengths = {len(cut_id) for cut_id in ids}

        def place_of(entry: Entry) -> int:
            return min(places[entry.op_id[:length]] for length in lengths if entry.op_id[:length] in places)

        return EntriesFetched(tuple(sorted(found, key=place_of)))

    async def _store(self, entries: tuple[Entry, ...]) -> tuple[Judged, ...]:
        """Judge entries, and join those that may enter into the store."""
        now_us = self._clock.now_us()
        fates: list[Judged] = []
        admitted: list[tuple[int, Entry]] = []
        for number, entry in enumerate(entries, start=1):
            if number % ENTRIES_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
            verdict = admit(entry, now_us=now_us, rules=self._rules, verified=self._server.verified)
            match verdict:
                case Admitted(entry=judged):
                    admitted.append((len(fates), judged))
                    fates.append(Judged(Fate.STORED))
                case Deferred(until_us):
                    # Too far ahead for any node whose clock is near enough to this one's for a round: nobody takes it.
                    is_for_nobody = until_us > now_us + self._apart_us
                    fate = Fate.DECLINED if is_for_nobody else Fate.POSTPONED
                    fates.append(Judged(fate, "dated too far in the future"))
                case Refused():
                    fates.append(self._refused(entry, verdict, now_us))
                case _:
                    assert_never(verdict)
        joined = [entry for _, entry in admitted]
        results = await self._replica.put_entries(joined, now_us=now_us, is_by_sync=True)
        self._server.publish(joined, results)
        for (place, entry), result in zip(admitted, results, strict=True):
            fates[place] = self._put(entry, result, now_us)
        return tuple(fates)

    def _refused(self, entry: Entry, refused: Refused, now_us: int) -> Judged:
        """What becomes of an entry that is not admitted."""
        if refused.blame or refused.reason in _STORED_NOWHERE:
            return Judged(Fate.BLAMED, refused.reason.value)
        if not verify_signature(entry, self._server.verified):
            return Judged(Fate.BLAMED, Reason.BAD_SIGNATURE.value)
        if refused.reason is Reason.VALUE_MISSING:
            # Whoever sent it has dropped the value too early; from somebody else it may come whole.
            return Judged(Fate.POSTPONED, refused.reason.value)
        is_noted = self._may_last(entry, now_us) and self._held.decline(_declined(entry))
        return Judged(Fate.DECLINED, refused.reason.value, is_noted=is_noted)

    def _may_last(self, entry: Entry, now_us: int) -> bool:
        """Whether replicas may have an entry, for some time yet. By its dates, which somebody may have chosen freely.

        So what is remembered is dated within the life of an entry from now, and retires.
        """
        header, limits = entry.header, self._rules.limits
        is_dated_ahead = header.created_at_us > now_us + limits.clock_skew_us
        lives_too_long = header.retain_until_us - header.created_at_us > limits.max_ttl_us
        return not (is_dated_ahead or lives_too_long or is_retired(entry, now_us, self._rules.unit_us))

    def _put(self, entry: Entry, result: PutResult, now_us: int) -> Judged:
        """What became of an entry that was admitted."""
        match result.outcome:
            case PutOutcome.INSERTED:
                gone = result.displaced
                return Judged(Fate.STORED, displaced=None if gone is None or gone.op is None else gone.op_id)
            case PutOutcome.DUPLICATE:
                return Judged(Fate.DUPLICATE)
            case PutOutcome.SUPERSEDED:
                return Judged(Fate.SUPERSEDED)
            case PutOutcome.REFUSED:  # there is no room, and there may be some later
                is_noted = not is_about_store(result.reason) and self._held.put_off(_declined(entry), now_us=now_us)
                return Judged(Fate.POSTPONED, result.reason, is_noted=is_noted)
            case _:
                assert_never(result.outcome)


def _declined(entry: Entry) -> DeclinedOp:
    header = entry.header
    return DeclinedOp(
        op_id=entry.op_id,
        location=location_of(header.key),
        created_at_us=header.created_at_us,
        retain_until_us=header.retain_until_us,
    )


def _framed_bytes(body: bytes) -> int:
    return len(encode_varint(len(body))) + len(body)
