"""What a round asks of whoever runs it, what it is told in return, and how it ends.

A :class:`~prime_dht.sync.round.Round` does nothing itself. It says one *action* at a time, and is given the *event*
that is the result:

==========================  ==========================================  ======================
action                      what to do                                  event
==========================  ==========================================  ======================
:class:`Send`               send a message                              None, :class:`TimedOut`,
                                                                        :class:`TimeUp`,
                                                                        :class:`Closed`
:class:`Receive`            wait for the peer's next message            a message,
                                                                        :class:`TimedOut`,
                                                                        :class:`TimeUp`,
                                                                        :class:`Closed`,
                                                                        :class:`Unreadable`
:class:`FetchOps`           read ops of an arc and a time from a store  :class:`OpsFetched`
:class:`FindOps`            see which of some ops the store has         :class:`OpsFound`
:class:`FetchEntries`       read entries                                :class:`EntriesFetched`
:class:`StoreEntries`       judge entries and store them                :class:`EntriesStored`
:class:`Rest`               let others come to their turn               None
:class:`Charge`             note that the peer misbehaved               None
:class:`Finish`             close the stream; there is no more          –
==========================  ==========================================  ======================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from prime_dht.entries.entry import Entry
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.offer import OpQuery, Version
from prime_dht.sync.messages import Message, Refuse


@dataclass(frozen=True, slots=True)
class Send:
    message: Message


@dataclass(frozen=True, slots=True)
class Receive:
    """Wait, not longer than the deadline of a stage."""


@dataclass(frozen=True, slots=True)
class FetchOps:
    """The first ``limit`` ops of an arc and an interval, in the order of their versions, behind ``after``."""

    query: OpQuery


@dataclass(frozen=True, slots=True)
class FindOps:
    """Of these ids, cut to 16 bytes, those whose ops the store has."""

    ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class FetchEntries:
    """The entries whose op ids begin with these bytes, 8 or 16 of them; those not there are left out."""

    ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class StoreEntries:
    """Judge and join these entries into the store: newest wins, slot by slot. Nothing about them was verified."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Rest:
    """Let others come to their turn: the round has been at work for some milliseconds, and is to go on with it."""


class Misconduct(Enum):
    """What a peer is charged with."""

    MALFORMED = "sent what is no message"
    OUT_OF_TURN = "sent a message that had no place there"
    OVERSIZE = "sent or asked for more than it may"
    ENDLESS = "came to no end"
    LIED = "told what cannot be true"
    UNWANTED = "sent entries that nobody asked for"
    BAD_ENTRIES = "sent entries that no honest node passes on"
    SILENT = "did not answer in time"


@dataclass(frozen=True, slots=True)
class Charge:
    misconduct: Misconduct
    text: str


class Ending(Enum):
    """How a round ended."""

    EQUAL = "equal"
    """All that the partner had in the common sectors is here, or was declined."""

    PARTIAL = "partial"
    """Some sectors are left, or entries of theirs could not be taken yet, or the time was up."""

    COMPARED = "compared"
    """It was a dry run."""

    REFUSED = "refused"
    """One side did not take part."""

    FAILED = "failed"
    """The peer misbehaved, fell silent or went away. What was stored until then stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a round.

    Attributes:
        ending: how it ended.
        led: whether this side led.
        common: the sectors that both store; None if it did not come so far.
        equal: sectors in which all that the partner had is here now, or was declined.
        partner_arc, partner_held: what the partner stores and holds, as it says.
        only_ours, only_theirs: how many ops only one side had.
        entries_sent, entries_received: how many entries went each way.
        stored: how many of those received were new here.
        superseded: how many were older than what stands in their slots.
        declined: how many were refused for good, by reason.
        postponed: how many could not be taken yet, by reason.
        refusal: why, and in which words, one side did not take part.
        misconduct: what the partner was charged with.
    """

    ending: Ending
    led: bool = False
    common: ArcSet | None = None
    equal: ArcSet | None = None
    partner_arc: ArcSet | None = None
    partner_held: ArcSet | None = None
    only_ours: int = 0
    only_theirs: int = 0
    entries_sent: int = 0
    entries_received: int = 0
    stored: int = 0
    superseded: int = 0
    declined: Mapping[str, int] = field(default_factory=dict)
    postponed: Mapping[str, int] = field(default_factory=dict)
    refusal: Refuse | None = None
    misconduct: Misconduct | None = None

    @property
    def left(self) -> ArcSet | None:
        """The sectors that the next round has to go on with."""
        return self.common - self.equal if self.common is not None and self.equal is not None else None

    def __str__(self) -> str:
        """``equal``, ``equal-declined(n)``, ``partial(sectors left)`` and so on."""
        if self.ending is Ending.EQUAL and self.declined:
            return f"equal-declined({sum(self.declined.values())})"
        if self.ending is Ending.PARTIAL:
            return f"partial({len(self.left or ())})"
        if self.ending is Ending.REFUSED and self.refusal is not None:
            return f"refused({self.refusal.reason.value})"
        return str(self.ending.value)


@dataclass(frozen=True, slots=True)
class Finish:
    outcome: Outcome


Action = Send | Receive | FetchOps | FindOps | FetchEntries | StoreEntries | Rest | Charge | Finish


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The peer said nothing, or took nothing, until the deadline."""


@dataclass(frozen=True, slots=True)
class TimeUp:
    """The round has lasted as long as one may, and it is not that the peer was silent."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The stream is gone."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What came is no message, or one too long; ``text`` says how."""

    text: str


@dataclass(frozen=True, slots=True)
class OpsFetched:
    """(``created_at_us``, op id of 32 bytes) of each; all there are if fewer than the limit."""

    versions: tuple[Version, ...]


@dataclass(frozen=True, slots=True)
class OpsFound:
    """Those of the ids that are there, cut to 16 bytes."""

    ids: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class EntriesFetched:
    entries: tuple[Entry, ...]


class Fate(Enum):
    """What became of an entry that was to be stored."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    SUPERSEDED = "superseded"
    DECLINED = "declined"
    """Refused validly: against this node's policy or limits, retired, or dated so far ahead that all refuse it now."""

    POSTPONED = "postponed"
    """Not now: dated ahead of this node's clock, or no room."""

    BLAMED = "blamed"
    """No honest node passes such an entry on: malformed, or badly signed."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The fate of one entry.

    Attributes:
        reason: why, if it was refused in any way.
        is_noted: whether one that was refused is remembered (:mod:`prime_dht.sync.declined`), so that it does not come
            again in the next round.
        displaced: the id of the op whose place one took that was stored.
    """

    fate: Fate
    reason: str = ""
    is_noted: bool = False
    displaced: bytes | None = None


@dataclass(frozen=True, slots=True)
class EntriesStored:
    """One for each entry, in order. What had been declined before may be declined again at no cost."""

    fates: tuple[Judged, ...]


Event = (
    Message | TimedOut | TimeUp | Closed | Unreadable | OpsFetched | OpsFound | EntriesFetched | EntriesStored | None
)
