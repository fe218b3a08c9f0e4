"""Sync as a task of a node: rounds that it begins with one partner after the other, and rounds that peers begin.

When, with whom and how often is for :mod:`prime_dht.sync.schedule` to say. Here it is told who there is: **partners**
are the peers that sync within this node's arc, and the nearest beyond, as there may be too few.

**Pace.** A round every two minutes keeps replicas equal that hear of nearly every put anyway. While there are sectors
that this node should hold and does not, because it joined or its arc grew, one follows the other at once, each with the
partner that may settle the most of them; and ever later once nobody is known that may settle any. A partner that keeps
this node waiting does not keep the others from their turn.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, assert_never

import trio

from prime_dht.entries.lifetime import retire_before_us
from prime_dht.errors import PrimeDHTError, QueryError
from prime_dht.events import SyncFinished
from prime_dht.ids import US_PER_S, PeerId, short
from prime_dht.kad.replicas import syncs
from prime_dht.net.network import Conversation
from prime_dht.node.clock import Clock
from prime_dht.node.feed import Feed
from prime_dht.node.held import HeldSectors
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.node.replica import Replica
from prime_dht.node.results import Holding
from prime_dht.node.rounds import Rounds, SyncReport, Traffic
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.location import sector_of
from prime_dht.storage.capacity import location_of
from prime_dht.sync.actions import Ending, Misconduct, Outcome
from prime_dht.sync.messages import MISMATCHES, Open, Refusal
from prime_dht.sync.schedule import Accepted, Candidate, Pace, Result, Schedule

if TYPE_CHECKING:
    from trio_typing import TaskStatus

logger = logging.getLogger(__name__)

EAGER_PAUSE_S = 0.25
"""Between rounds while they settle missing sectors."""

FRUITLESS_PAUSE_S = 2.0
MAX_PAUSE_S = 120.0
"""After a round, or a turn without one, that settled nothing; doubled each time."""

JITTER = 1.0
"""Of a pause, at most, by which it is longer."""

LOOK_EVERY_S = 5.0
"""How often a node that holds its arc looks whether it still does: it may have met others, or its arc has grown."""

LOOK_FIRST_S = 0.5
"""How long after the first others have come it begins: by then it has met more, and its arc is no longer everything."""

FOREIGN_NOTED = 1000
"""Peers that cannot sync with this node, of which it was told."""


@dataclass(slots=True, eq=False)
class _Begun:
    """A round that this node began by its schedule: what went over its stream, how it went, whether it is over.

    Attributes:
        due_us: when the next was due then. Turns that pass while this one goes on put it off.
    """

    due_us: int
    traffic: Traffic = field(default_factory=Traffic)
    result: Result = Result.FAILED
    over: trio.Event = field(default_factory=trio.Event)


@dataclass(frozen=True, slots=True, eq=False)
class _Served:
    """A round that a peer began: what went over its stream, and what ends it when it is to give way."""

    traffic: Traffic
    scope: trio.CancelScope


class Syncing:
    """See the module.

    Args:
        replication: r.
        timeout_s: how long a round that somebody asks for waits for this node to have read its store.
        rng: for jitter, nonces and the choice between equals.
    """

    def __init__(
        self,
        rounds: Rounds,
        held: HeldSectors,
        replica: Replica,
        neighbourhood: Neighbourhood,
        clock: Clock,
        feed: Feed,
        rng: Random,
        replication: int,
        *,
        timeout_s: float,
    ) -> None:
        self._rounds = rounds
        self._held = held
        self._replica = replica
        self._neighbourhood = neighbourhood
        self._clock = clock
        self._feed = feed
        self._rng = rng
        self._replication = replication
        self._timeout_s = timeout_s
        self._foreign: set[PeerId] = set()
        self._pace = Pace()
        self._schedule: Schedule | None = None
        self._begun: dict[PeerId, _Begun] = {}
        self._served: dict[PeerId, _Served] = {}
        replica.tell_of_jumps(lambda: self._scheduled().forgive())  # with a clock that is wrong nobody has a round

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Begin rounds until cancelled, if this node is a server."""
        schedule = self._scheduled()
        task_status.started()
        if self._neighbourhood.is_server:
            async with trio.open_nursery() as nursery:
                await self._begin_rounds(schedule, nursery)

    async def _begin_rounds(self, schedule: Schedule, nursery: trio.Nursery) -> None:
        pause_s = EAGER_PAUSE_S
        while True:
            if not any(map(syncs, self._neighbourhood.table)) or not self._neighbourhood.has_looked_around:
                with trio.move_on_after(LOOK_EVERY_S):
                    await self._neighbourhood.arrival.wait()
                await trio.sleep(LOOK_FIRST_S)
                continue
            wait_s = max(schedule.due_us - self._now_us(), 0) / US_PER_S
            if not self._held.missing:
                pause_s = EAGER_PAUSE_S
                if wait_s > LOOK_EVERY_S:
                    await trio.sleep(LOOK_EVERY_S)
                    continue
            else:
                wait_s = min(wait_s, pause_s * (1 + JITTER * self._rng.random()))
            await trio.sleep(wait_s)
            self._retire_declined()
            if await self._begin_one(schedule, nursery):
                pause_s = EAGER_PAUSE_S
            elif self._begun:  # that is slow, and may tell yet what is missing
                pause_s = FRUITLESS_PAUSE_S
            else:  # ever less often, should nobody be able to tell what is missing
                pause_s = min(max(2 * pause_s, FRUITLESS_PAUSE_S), MAX_PAUSE_S)

    async def _begin_one(self, schedule: Schedule, nursery: trio.Nursery) -> bool:
        """Begin a round with the partner whose turn it is, if there is one, and wait for it to be over, or slow.

        Returns:
            whether it told what was missing.
        """
        schedule.due_us = min(schedule.due_us, self._now_us())
        nonce = self._rng.getrandbits(32)
        prospects = self._held.prospects()
        # A round that crossed another is no longer the schedule's, and may go on all the same.
        can_begin = self._replica.partition is not None and len(self._begun) < self._pace.max_begun
        peer = schedule.initiate(
            self._partners(prospects) if can_begin else (),
            arc=self._held.arc,
            nonce=nonce,
            now_us=self._now_us(),
            rng=self._rng,
            slow=[slow for slow, begun in self._begun.items() if begun.traffic.is_slow],
        )
        if peer is None:
            return False
        this = self._begun[peer] = _Begun(schedule.due_us)
        nursery.start_soon(self._carry_out, schedule, peer, nonce, this)
        while not this.over.is_set() and not this.traffic.is_slow:
            with trio.move_on_after(LOOK_EVERY_S):
                await this.over.wait()
        return this.result is Result.DONE and prospects.get(peer, 0) > 0

    async def _carry_out(self, schedule: Schedule, peer: PeerId, nonce: int, this: _Begun) -> None:
        """Carry out a round that the schedule has begun."""
        try:
            report = await self._round(peer, nonce, dry_run=False, traffic=this.traffic)
            this.result = _result_of(report.outcome)
            self._note_mismatch(report, who="it")
        except PrimeDHTError as error:
            logger.debug("no round with peer %s: %s", short(peer), error)
            self._neighbourhood.probe(peer)  # if it is gone, others have to take its place
        finally:
            schedule.end(peer, is_ours=True, result=this.result, now_us=self._now_us())
            schedule.due_us = min(schedule.due_us, this.due_us)
            del self._begun[peer]
            this.over.set()

    async def sync_with(self, peer: PeerId, *, dry_run: bool = False) -> SyncReport:
        """One round with a peer, now, whatever the schedule says.

        Args:
            dry_run: only compare.

        Raises:
            QueryError: it cannot be reached or does not sync, or this node cannot read its store in time.
        """
        await self._replica.wait_until_ready(self._timeout_s)
        return await self._round(peer, self._rng.getrandbits(32), dry_run=dry_run)

    async def holding_of(self, peer: PeerId) -> Holding:
        """How much of its arc a peer holds, as it says when a round begins: a dry one, about its own sector alone.

        Raises:
            QueryError: it cannot be reached, or takes part in no round now, or this node cannot read its store in time.
        """
        bits = self._replica.parameters.sector_bits
        own = ArcSet.of_sectors([sector_of(location_of(peer), sector_bits=bits)], sector_bits=bits)
        await self._replica.wait_until_ready(self._timeout_s)
        report = await self._rounds.initiate(peer, nonce=self._rng.getrandbits(32), arc=own, dry_run=True)
        outcome = report.outcome
        if outcome.partner_arc is None or outcome.partner_held is None:
            raise QueryError(f"peer {short(peer)} does not say what it holds: {outcome}")
        return Holding(sectors=len(outcome.partner_arc), held=len(outcome.partner_held & outcome.partner_arc))

    async def accept(self, conversation: Conversation) -> None:
        """Take part in a round that a peer begins, or refuse.

        Raises:
            QueryError: the peer goes away, or its round gives way to another.
            RemoteProtocolError: the peer does not begin with an opening.
        """
        peer, traffic, schedule = conversation.peer, Traffic(), self._scheduled()
        opening = await self._rounds.read_opening(conversation, traffic)
        nonce = opening.nonce if isinstance(opening, Open) else 0
        accepted: Accepted | Refusal = Refusal.NOT_READY
        if self._replica.partition is not None:
            stalled_us = {other: int(served.traffic.stalled_s * US_PER_S) for other, served in self._served.items()}
            accepted = schedule.accept(peer, nonce=nonce, stalled_us=stalled_us, now_us=self._now_us())
        if isinstance(accepted, Refusal):
            if accepted is Refusal.TOO_OFTEN and schedule.is_pestered_by(peer, now_us=self._now_us()):
                self._rounds.charge(peer)
            await self._rounds.refuse(accepted, conversation)
            return
        if accepted.instead_of is not None:
            self._served.pop(accepted.instead_of).scope.cancel()
        this = self._served[peer] = _Served(traffic, trio.CancelScope())
        result = Result.FAILED
        try:
            with this.scope:
                report = await self._rounds.accept(opening, conversation, traffic)
                result = _result_of(report.outcome)
        finally:
            if self._served.get(peer) is this:
                del self._served[peer]
                schedule.end(peer, is_ours=False, result=result, now_us=self._now_us())
        if this.scope.cancelled_caught:
            raise QueryError(f"the round of peer {short(peer)} stalled and gave way to another")
        self._note_mismatch(report, who="this node")
        self._ended(report, is_begun_here=False)

    async def _round(self, peer: PeerId, nonce: int, *, dry_run: bool, traffic: Traffic | None = None) -> SyncReport:
        self._retire_declined()
        arc = self._held.arc_of(peer)
        report = await self._rounds.initiate(peer, nonce=nonce, partner_arc=arc, dry_run=dry_run, traffic=traffic)
        self._ended(report, is_begun_here=True)
        return report

    def _retire_declined(self) -> None:
        self._held.retire(retire_before_us(self._clock.now_us(), self._replica.parameters.unit_us))

    def _ended(self, report: SyncReport, *, is_begun_here: bool) -> None:
        outcome = report.outcome
        self._neighbourhood.heard_from(report.peer)
        if outcome.refusal is not None and outcome.refusal.reason in MISMATCHES:
            self._neighbourhood.own_arc.compared(report.peer, is_foreign=True)
        elif outcome.equal is not None:
            self._neighbourhood.own_arc.compared(report.peer, is_foreign=False)
        self._held.round_ended(report.peer, outcome)
        self._feed.publish(
            SyncFinished(
                peer=report.peer,
                begun_here=is_begun_here,
                ending=str(outcome),
                stored=outcome.stored,
                sent=outcome.entries_sent,
                declined=sum(outcome.declined.values()),
                bytes_sent=report.traffic.bytes_sent,
                bytes_received=report.traffic.bytes_received,
                elapsed_s=report.seconds,
            )
        )

    def _note_mismatch(self, report: SyncReport, *, who: str) -> None:
        """Tell whoever runs this node of a peer of another network, once, and what ``who`` refused has."""
        peer, refusal = report.peer, report.outcome.refusal
        if refusal is None or refusal.reason not in MISMATCHES:
            return
        if peer not in self._foreign and len(self._foreign) < FOREIGN_NOTED:
            self._foreign.add(peer)
            logger.warning("no sync with peer %s, %s: %s has %s", short(peer), refusal.reason.value, who, refusal.text)

    def _partners(self, prospects: Mapping[PeerId, int]) -> list[Candidate]:
        """Those with whom this node can have something in common, or which may show it what it is to hold.

        Not those among them with whom it has begun a round that is still under way.

        Arcs are prefixes, so of two that overlap one is within the other. Who lies within our arc overlaps with it,
        then; and where ours is within a peer's, we lie within that, and the peer knows.
        """
        table, ours = self._neighbourhood.table, self._held.arc
        nearest = table.find_closest(self._neighbourhood.local, 2 * self._replication, where=syncs)
        within = [contact.peer for contact in table if contact.syncs and ours.covers(location_of(contact.peer))]
        arcs = {peer: self._held.arc_of(peer) for peer in (*(contact.peer for contact in nearest), *prospects)}
        arcs |= dict.fromkeys(within, ours)
        return [
            Candidate(peer=peer, arc=told, gain=prospects.get(peer, 0))
            for peer, told in arcs.items()
            if peer not in self._begun
        ]

    def _scheduled(self) -> Schedule:
        """The schedule, which begins when this node does."""
        if self._schedule is None:
            self._schedule = Schedule(self._rounds.local, pace=self._pace, now_us=self._now_us(), rng=self._rng)
        return self._schedule

    def _now_us(self) -> int:
        return int(self._clock.monotonic_s() * US_PER_S)


_RESULT_OF_REFUSAL = {
    **dict.fromkeys(MISMATCHES, Result.FOREIGN),
    Refusal.CROSSED: Result.DONE,
    Refusal.NO_COMMON_ARC: Result.DONE,
    Refusal.BUSY: Result.PUT_OFF,
    Refusal.NOT_READY: Result.PUT_OFF,
}
"""Of the rest the peer failed."""


def _result_of(outcome: Outcome) -> Result:
    match outcome.ending:
        case Ending.REFUSED:
            assert outcome.refusal is not None
            return _RESULT_OF_REFUSAL.get(outcome.refusal.reason, Result.FAILED)
        case Ending.FAILED if outcome.misconduct not in (None, Misconduct.SILENT):
            return Result.MISCONDUCT
        case Ending.FAILED:
            # What broke off while entries moved is to go on soon. Maybe the peer's time for a round was up; or the path
            # is slow, and each round would end like this one.
            if not (outcome.stored or outcome.entries_sent):
                return Result.FAILED
            return Result.PUT_OFF if outcome.misconduct is None else Result.STALLED
        case Ending.EQUAL | Ending.PARTIAL | Ending.COMPARED:
            return Result.DONE
        case never:
            assert_never(never)
