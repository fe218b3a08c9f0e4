"""What a replica sent of a key's entries: whether an honest one could have, and what of it this node takes.

A page is judged as a store judges what is put to it (:mod:`prime_dht.entries.admission`). What this node does not take
is mostly as good as nothing. But a value that is there, and only dated too far ahead of this node's clock or above its
limits, is *declined*: who looks for it must not be told that there is nothing.

A page may have thousands of entries, and most of the time goes into verifying their signatures. So it is judged in
turns, and others have theirs between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import trio

from prime_dht.entries.access import shares_slots
from prime_dht.entries.admission import AdmissionRules, Admitted, Deferred, Reason, Refused, admit
from prime_dht.entries.codec import decode_entry_set
from prime_dht.entries.entry import Entry
from prime_dht.entries.envelope import VerifiedEnvelopes
from prime_dht.entries.join import KeyState
from prime_dht.entries.limits import MAX_ENTRY_BYTES
from prime_dht.entries.signing import verify_signature
from prime_dht.errors import RemoteProtocolError, ValidationError
from prime_dht.ids import US_PER_S, Key
from prime_dht.node.clock import Clock
from prime_dht.node.server import ENTRIES_PER_TURN, MAX_REPLY_VALUE_BYTES
from prime_dht.quantities import duration_text
from prime_dht.storage.paging import Place, decode_cursor, encode_cursor
from prime_dht.wire.kad import BatchReply, Reply, SlotQuery

FULL_PAGE_BYTES = MAX_REPLY_VALUE_BYTES - MAX_ENTRY_BYTES
"""An honest replica's page has more than these, unless it is the last: the next entry would not have fitted."""

MAX_ENTRIES_PER_PAGE = 8192
"""An honest replica's page is bounded by its bytes alone, and the smallest tombstone takes some 160 of them."""

_SLOTS_BYTES = 4


class Declined(NamedTuple):
    """A live entry that this node does not take, for a reason of its own."""

    entry: Entry
    reason: str


@dataclass(frozen=True, slots=True)
class Judged:
    """Entries of one replica: those admitted, and those declined."""

    admitted: Sequence[Entry]
    declined: Sequence[Declined] = ()

    def __add__(self, other: Judged) -> Judged:
        return Judged((*self.admitted, *other.admitted), (*self.declined, *other.declined))


class Sent(NamedTuple):
    """What a replica sent, before its entries are judged."""

    entries: Sequence[Entry]
    held: bool
    not_held: bool = False
    end: Place | None = None
    next_cursor: bytes = b""

    @property
    def is_short(self) -> bool:
        """Whether it can be judged in one turn."""
        return len(self.entries) <= ENTRIES_PER_TURN


@dataclass(frozen=True, slots=True)
class Page:
    """A replica's answer: what it named, whether it holds the sector, and where it ended if that is not all.

    Attributes:
        held: it said that it does; it need not, where it names something.
        not_held: it said that it does not.
    """

    judged: Judged
    held: bool
    not_held: bool
    end: Place | None
    next_cursor: bytes


@dataclass(frozen=True, slots=True)
class Bookmark:
    """How far a reader of all slots has come.

    Attributes:
        cursor: behind which place to go on, for replicas.
        slots: how many slots of the key it has passed; in a group's key, of the publisher at that place.
    """

    cursor: bytes = b""
    slots: int = 0

    @classmethod
    def decode(cls, raw: bytes) -> Bookmark:
        """Read what :meth:`encode` made; empty is the beginning.

        Raises:
            ValidationError: it is none.
        """
        slots, cursor = raw[:_SLOTS_BYTES], raw[_SLOTS_BYTES:]
        if raw and decode_cursor(cursor) is None:
            raise ValidationError("the cursor is none that a page ended with")
        return cls(cursor, int.from_bytes(slots, "big"))

    def encode(self) -> bytes:
        """As bytes that a caller passes on."""
        return self.slots.to_bytes(_SLOTS_BYTES, "big") + self.cursor

    def moved_to(self, end: Place, key: Key, state: KeyState) -> Bookmark:
        """It behind a page that ends at a place; ``state`` is what replicas named from here on."""
        passed = [slot for slot in state if (slot.publisher, slot.subkey) <= end]
        before = self.slots
        if not shares_slots(key):
            passed = [slot for slot in passed if slot.publisher == end[0]]
            behind = decode_cursor(self.cursor)
            before = self.slots if behind is not None and behind[0] == end[0] else 0
        return Bookmark(encode_cursor(*end), before + len(passed))


class Pages:
    """Judges pages by a node's rules and the time."""

    def __init__(self, rules: AdmissionRules, verified: VerifiedEnvelopes, clock: Clock) -> None:
        self._rules = rules
        self._verified = verified
        self._clock = clock

    async def read(self, key: Key, query: SlotQuery, reply: Reply | BatchReply) -> Page:
        """Check and judge what a replica sent.

        Raises:
            RemoteProtocolError: it sent something that no honest replica holds.
        """
        return await self.judge_page(self.check(key, query, reply))

    def check(self, key: Key, query: SlotQuery, reply: Reply | BatchReply) -> Sent:
        """Check all of what a replica sent but the entries by themselves.

        Raises:
            RemoteProtocolError: no honest replica would send it.
        """
        if reply.record is None or not reply.record.value:
            return Sent((), reply.held)
        try:
            decoded = decode_entry_set(reply.record.value, max_entries=MAX_ENTRIES_PER_PAGE)
            behind = decode_cursor(query.cursor)
            end = decode_cursor(reply.next_cursor)
        except ValidationError as error:
            raise RemoteProtocolError(str(error)) from error
        entries = [candidate for candidate in decoded if isinstance(candidate, Entry)]
        if len(entries) < len(decoded):
            raise RemoteProtocolError("it holds something that is no entry")
        if any(entry.header.key != key for entry in entries):
            raise RemoteProtocolError("an entry of another key")
        places = [(entry.publisher, entry.header.subkey) for entry in entries]
        if end is not None and not places:
            raise RemoteProtocolError("a page without entries that is not the last")
        if behind is not None and any(place <= behind for place in places):
            raise RemoteProtocolError("entries of the page before")  # whoever reads on would go round for ever
        if end is not None and end != max(places):
            raise RemoteProtocolError("a cursor that is not where the page ends")
        # Of the newest a reader fetches MAX_PAGES at most; of all slots, as many as a replica makes up.
        if end is not None and not query.newest and sum(entry.size_bytes for entry in entries) <= FULL_PAGE_BYTES:
            raise RemoteProtocolError("a page that has room for more and is not the last")
        return Sent(entries, reply.held, reply.not_held, end, reply.next_cursor)

    async def judge_page(self, sent: Sent) -> Page:
        """What a replica sent, judged, in turns if it is long.

        Raises:
            RemoteProtocolError: it sent something that no honest replica holds.
        """
        return Page(await self.judge(sent.entries, of_peer=True), *sent[1:])

    def judge_short(self, sent: Sent) -> Page:
        """As :meth:`judge_page`, for what is short."""
        return Page(self._judge(sent.entries, of_peer=True), *sent[1:])

    async def judge(self, entries: Sequence[Entry], *, of_peer: bool = False) -> Judged:
        """Of what a replica holds, what this node would store itself; others have a turn now and then.

        Raises:
            RemoteProtocolError: a peer sent something that no honest replica holds.
        """
        admitted: list[Entry] = []
        declined: list[Declined] = []
        for start in range(0, len(entries), ENTRIES_PER_TURN):
            if start:
                await trio.lowlevel.checkpoint()
            part = self._judge(entries[start : start + ENTRIES_PER_TURN], of_peer=of_peer)
            admitted += part.admitted
            declined += part.declined
        return Judged(admitted, declined)

    def _judge(self, entries: Sequence[Entry], *, of_peer: bool) -> Judged:
        now_us = self._clock.now_us()
        admitted: list[Entry] = []
        declined: list[Declined] = []
        for entry in entries:
            match admit(entry, now_us=now_us, rules=self._rules, verified=self._verified):
                case Admitted(good):
                    admitted.append(good)
                case Refused(reason, text) as refused:
                    if of_peer and refused.blame:
                        raise RemoteProtocolError(f"{reason.value}: {text}")
                    is_over_limit = reason is Reason.OVER_LIMIT and entry.is_live(now_us)
                    if is_over_limit and verify_signature(entry, self._verified):  # limits are judged before that
                        declined.append(Declined(entry, text))
                case Deferred():
                    if entry.is_live(now_us):
                        declined.append(Declined(entry, _ahead(entry, now_us)))
        return Judged(admitted, declined)


def _ahead(entry: Entry, now_us: int) -> str:
    minutes = math.ceil((entry.header.created_at_us - now_us) / (60 * US_PER_S))
    return f"dated {duration_text(60.0 * minutes)} ahead of this node's clock"
