"""A peer that a lookup has heard of, and how asking it goes: a candidate of :mod:`prime_dht.kad.lookup`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum, auto

from prime_dht.ids import PeerId
from prime_dht.kad.contact import Contact, in_turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One query of a lookup.

    Attributes:
        told_by: who named the peer first; ``None`` if this node's own table did.
        depth: 1 for a peer of the own table, otherwise one more than the teller's.
        distance: from the peer to the target.
        answered_at_s: ``None`` if it has not answered.
        heard_of: how many peers it named, as far as they were looked at.
        failure: why it failed; empty if it answered or was still in flight at the end.
    """

    contact: Contact
    told_by: PeerId | None
    depth: int
    distance: int
    asked_at_s: float
    answered_at_s: float | None
    heard_of: int
    failure: str


class State(Enum):
    """Where a candidate stands; see :mod:`prime_dht.kad.lookup`."""

    HEARD = auto()
    ASKED = auto()
    HELD_UP = auto()
    SLOW = auto()
    ANSWERED = auto()
    FAILED = auto()


@dataclass(slots=True)
class Candidate:
    """One of a lookup. Those fields that :class:`Hop` has as well mean the same here.

    Attributes:
        last_teller: who named it last, and not as it was known; at first, who named it first.
        tellers: how many those are.
        has_moved: whether it was named at another address since it was asked.
        has_chance: whether it is to be asked once more if it fails and has moved.
    """

    contact: Contact
    distance: int
    told_by: PeerId | None
    depth: int
    state: State = State.HEARD
    asked_at_s: float = -math.inf
    answered_at_s: float | None = None
    heard_of: int = 0
    failure: str = ""
    last_teller: PeerId | None = None
    tellers: int = 1
    has_moved: bool = False
    has_chance: bool = True

    @property
    def was_asked(self) -> bool:
        return self.asked_at_s != -math.inf

    @property
    def is_awaited(self) -> bool:
        """Whether its answer counts: it was asked, be it long ago, and has not answered."""
        return self.state is not State.ANSWERED and self.asked_at_s != -math.inf

    def hear_more(self, told: tuple[bytes, ...], told_by: PeerId | None) -> None:
        """Somebody else names it. Who named it first must not decide alone where it is looked for."""
        addresses = in_turns(self.contact.addresses, told, tellers=self.tellers)
        self.has_moved = self.was_asked and (self.has_moved or not set(addresses) <= set(self.contact.addresses))
        self.contact = replace(self.contact, addresses=addresses)
        self.last_teller = told_by
        self.tellers += 1
        self._take_chance()

    def fail(self, reason: str) -> None:
        self.state = State.FAILED
        self.failure = reason
        self._take_chance()

    def _take_chance(self) -> None:
        if self.state is State.FAILED and self.has_moved and self.has_chance:
            self.state, self.has_chance = State.HEARD, False

    def hop(self) -> Hop:
        return Hop(
            contact=self.contact,
            told_by=self.told_by,
            depth=self.depth,
            distance=self.distance,
            asked_at_s=self.asked_at_s,
            answered_at_s=self.answered_at_s,
            heard_of=self.heard_of,
            failure=self.failure,
        )
