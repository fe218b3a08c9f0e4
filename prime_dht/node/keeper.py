"""Keeping entries alive: what was put with ``keep=True`` is signed and put again before it expires.

Each renewal is a new entry of the same slot, two thirds into the life of the one before, so that one missed turn (a
lost network, a suspended machine) can be made good before readers notice. What is due is due by the calendar; when that
is set back, all is renewed at once: what was signed, or put off, by a clock that was ahead would be due long after
others see it expire.

Any other write of the slot by this node ends that: whoever puts or deletes calls :meth:`Keeper.let_go` *before* it
signs. A renewal that has begun is then signed already, or waits for the writer's lock in front of that write, so it is
the older of the two and cannot undo it.

A put may wait long for its replicas, and is kept only when it has ended. So it takes a *place* before it begins, which
any write of the slot takes away: what the place was for is the older of the two, and is not kept. A put that has much
to do before it signs calls :meth:`Keeper.signs` then: it is newer than what was written meanwhile.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import trio

from prime_dht.errors import PrimeDHTError, ValidationError
from prime_dht.ids import US_PER_S, Key
from prime_dht.node.clock import Clock, Jumps
from prime_dht.node.results import PutReceipt
from prime_dht.node.writer import Statement, Writer

if TYPE_CHECKING:
    from trio_typing import TaskStatus

logger = logging.getLogger(__name__)

MAX_KEPT = 10_000
RENEW_AFTER = 2 / 3
"""Of an entry's life."""

RETRY_S = 30.0
"""After a renewal that failed; less if the entry would expire before."""

LOOK_AT_CLOCK_S = 60.0
"""What is due is due by the calendar, whose clock may be set; so it is looked at again at least this often."""

SET_BACK_US = 10 * US_PER_S
"""By so much a calendar falls behind only if somebody sets it."""

RENEWALS_AT_ONCE = 16
"""One that waits for a dead replica holds up no others."""


_Slot = tuple[Key, bytes]
"""Key and subkey: all slots here are this node's."""


class Place:
    """Of an entry that is to be kept once it has been put."""


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    statement: Statement
    replication: int | None


@dataclass(frozen=True, order=True, slots=True)
class _Turn:
    due_us: int
    slot: _Slot
    expires_at_us: int = field(compare=False)


class Keeper:
    """Renews entries until told to let go, or until the node stops."""

    def __init__(self, writer: Writer, clock: Clock) -> None:
        self._writer = writer
        self._clock = clock
        self._kept: dict[_Slot, _Kept] = {}
        self._places: dict[_Slot, Place] = {}
        self._turns: list[_Turn] = []
        self._jumps = Jumps(clock)
        self._changed = trio.Event()

    def check_room(self, statement: Statement) -> None:
        """Check that what is about to be put can be kept.

        Raises:
            ValidationError: it has no ttl to renew it by, or too many are kept.
        """
        if statement.expires_at_s is not None:
            raise ValidationError("keep renews an entry by its ttl; with expires_at there is nothing to renew")
        slot = (statement.key, statement.subkey)
        if len(self._kept) + len(self._places) >= MAX_KEPT and slot not in self._kept and slot not in self._places:
            raise ValidationError(f"a node keeps at most {MAX_KEPT} entries alive")

    @contextmanager
    def place_for(self, statement: Statement) -> Iterator[Place]:
        """The place of what is put within the block, and then kept; to be taken right behind :meth:`let_go`."""
        slot = (statement.key, statement.subkey)
        place = self._places[slot] = Place()
        try:
            yield place
        finally:
            if self._places.get(slot) is place:
                del self._places[slot]

    def keep(self, place: Place, statement: Statement, replication: int | None, receipt: PutReceipt) -> None:
        """Renew what was put, from now on, unless its slot was written meanwhile."""
        slot = (statement.key, statement.subkey)
        if self._places.get(slot) is place:
            self._kept[slot] = _Kept(statement, replication)
            self._schedule(self._turn_after(receipt, slot))

    def signs(self, statement: Statement, place: Place | None) -> None:
        """What took its place long ago, if it is to be kept, is signed only now: nothing older is renewed."""
        self.let_go(statement.key, statement.subkey)
        if place is not None:
            self._places[statement.key, statement.subkey] = place

    def let_go(self, key: Key, subkey: bytes) -> None:
        """Renew it no longer, nor what is being put there now."""
        self._places.pop((key, subkey), None)
        if self._kept.pop((key, subkey), None) is not None:
            self._turns = [turn for turn in self._turns if turn.slot in self._kept]
            heapq.heapify(self._turns)

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Renew until cancelled."""
        at_once = trio.Semaphore(RENEWALS_AT_ONCE)
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                wait_s = LOOK_AT_CLOCK_S
                self._look_at_clock()
                if self._turns:
                    wait_s = min(wait_s, (self._turns[0].due_us - self._clock.now_us()) / US_PER_S)
                if wait_s > 0:
                    with trio.move_on_after(wait_s):
                        await self._changed.wait()
                    self._changed = trio.Event()
                    continue
                await at_once.acquire()
                # The first in turn may be another by now, or none.
                if self._turns and self._turns[0].due_us <= self._clock.now_us():
                    nursery.start_soon(self._renew, heapq.heappop(self._turns), at_once)
                else:
                    at_once.release()

    async def _renew(self, turn: _Turn, place: trio.Semaphore) -> None:
        kept = self._kept.get(turn.slot)
        try:
            if kept is None:
                return
            receipt = await self._writer.put(kept.statement, replication=kept.replication)
        except PrimeDHTError as error:
            left_s = max(1.0, (turn.expires_at_us - self._clock.now_us()) / US_PER_S / 2)
            retry_s = min(RETRY_S, left_s)
            logger.warning("an entry could not be renewed: %s; trying again in %g s", error, retry_s)
            next_turn = _Turn(self._clock.now_us() + int(retry_s * US_PER_S), turn.slot, turn.expires_at_us)
        else:
            next_turn = self._turn_after(receipt, turn.slot)
        finally:
            place.release()
        if self._kept.get(turn.slot) is kept:
            self._schedule(next_turn)

    def _schedule(self, turn: _Turn) -> None:
        heapq.heappush(self._turns, turn)
        self._changed.set()

    def _turn_after(self, receipt: PutReceipt, slot: _Slot) -> _Turn:
        life_us = receipt.expires_at_us - receipt.created_at_us
        # The calendar may have been set back while the put was under way.
        since_us = min(receipt.created_at_us, self._clock.now_us())
        return _Turn(since_us + int(life_us * RENEW_AFTER), slot, receipt.expires_at_us)

    def _look_at_clock(self) -> None:
        """Make everything due if the calendar was set back."""
        if self._jumps.since_last_us() < -SET_BACK_US:
            now_us = self._clock.now_us()
            self._turns = [replace(turn, due_us=min(turn.due_us, now_us)) for turn in self._turns]
            heapq.heapify(self._turns)
