"""Sync as a task of a node: rounds that it begins with one partner after the other, and rounds that peers begin.

When, with whom and how often is for :mod:`prime_dht.sync.schedule` to say. Here it is told who there is: **partners**
are the peers that sync within this node's arc, and the nearest beyond, as there may be too few.

**Pace.** A round every two minutes keeps replicas equal that hear of nearly every put anyway. While there are sectors
that this node should hold and does not, because it joined or its arc grew, the next one begins within seconds.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from random import Random
from typing import TYPE_CHECKING

import trio

from prime_dht.entries.lifetime import retire_before_us
from prime_dht.errors import PrimeDHTError
from prime_dht.events import SyncFinished
from prime_dht.ids import US_PER_S, PeerId, short
from prime_dht.kad.replicas import syncs
from prime_dht.net.network import Conversation
from prime_dht.node.clock import Clock
from prime_dht.node.feed import Feed
from prime_dht.node.held import HeldSectors
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.node.replica import Replica
from prime_dht.node.rounds import Rounds, SyncReport, Traffic
from prime_dht.partition.arcs import ArcSet
from prime_dht.sync.actions import Ending, Outcome
from prime_dht.sync.messages import Foreign, Refusal
from prime_dht.sync.schedule import Candidate, Pace, Result, Schedule

if TYPE_CHECKING:
    from trio_typing import TaskStatus

logger = logging.getLogger(__name__)

EAGER_INTERVAL_S = 2.0
EAGER_GROWTH = 1.25
"""The factor by which the interval of a node that has yet to catch up becomes longer with each round."""

MAX_EAGER_INTERVAL_S = 120.0
LOOK_EVERY_S = 5.0
"""How often a node that holds its arc looks whether it still does: it may have met others, or its arc has grown."""

JITTER = 0.2
"""Of an interval, at most, by which a wait is longer."""

ARCS_NOTED = 1000
"""Partners whose arcs are remembered."""


class Syncing:
    """See the module.

    Args:
        replication: r.
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
    ) -> None:
        self._rounds = rounds
        self._held = held
        self._replica = replica
        self._neighbourhood = neighbourhood
        self._clock = clock
        self._feed = feed
        self._rng = rng
        self._replication = replication
        self._arcs: OrderedDict[PeerId, ArcSet] = OrderedDict()
        self._schedule: Schedule | None = None

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Begin rounds until cancelled, if this node is a server."""
        schedule = self._scheduled()
        task_status.started()
        if not self._neighbourhood.is_server:
            return
        eager_s, arc = EAGER_INTERVAL_S, self._held.arc
        while True:
            wait_s = max(schedule.due_us - self._now_us(), 0) / US_PER_S
            if not self._held.arc - self._held.held:
                eager_s = EAGER_INTERVAL_S
                if wait_s > LOOK_EVERY_S:
                    await trio.sleep(LOOK_EVERY_S)
                    continue
            else:
                wait_s = min(wait_s, eager_s * (1 + JITTER * self._rng.random()))
            await trio.sleep(wait_s)
            # Ever less often, should nobody be able to tell what is missing; and anew when the arc has grown.
            has_grown = bool(self._held.arc - arc)
            eager_s = EAGER_INTERVAL_S if has_grown else min(EAGER_GROWTH * eager_s, MAX_EAGER_INTERVAL_S)
            arc = self._held.arc
            self._held.retire(retire_before_us(self._clock.now_us(), self._replica.parameters.unit_us))
            await self._begin_one(schedule)

    async def _begin_one(self, schedule: Schedule) -> None:
        """Carry out a round with the partner whose turn it is, if there is one."""
        schedule.due_us = min(schedule.due_us, self._now_us())
        nonce = self._rng.getrandbits(32)
        partners = () if self._replica.partition is None else self._partners()
        peer = schedule.initiate(partners, arc=self._held.arc, nonce=nonce, now_us=self._now_us(), rng=self._rng)
        if peer is None:
            return
        result = Result.FAILED
        try:
            report = await self._round(peer, nonce, dry_run=False)
            result = _result_of(report.outcome)
        except PrimeDHTError as error:
            logger.debug("no round with peer %s: %s", short(peer), error)
        finally:
            schedule.end(peer, is_ours=True, result=result, now_us=self._now_us())

    async def sync_with(self, peer: PeerId, *, dry_run: bool = False) -> SyncReport:
        """One round with a peer, now, whatever the schedule says.

        Args:
            dry_run: only compare.

        Raises:
            QueryError: it cannot be reached or does not sync, or this node has not read its store yet.
        """
        await self._replica.wait_until_ready()
        return await self._round(peer, self._rng.getrandbits(32), dry_run=dry_run)

    async def accept(self, conversation: Conversation) -> None:
        """Take part in a round that a peer begins, or refuse.

        Raises:
            QueryError: the peer goes away, or this node has not read its store yet.
            RemoteProtocolError: the peer does not begin with an opening.
        """
        peer, traffic, schedule = conversation.peer, Traffic(), self._scheduled()
        opening = await self._rounds.read_opening(conversation, traffic)
        if isinstance(opening, Foreign):
            await self._rounds.accept(opening, conversation, traffic)
            return
        accepted = schedule.accept(peer, nonce=opening.nonce, now_us=self._now_us())
        if isinstance(accepted, Refusal):
            await self._rounds.refuse(accepted, conversation)
            return
        result = Result.FAILED
        try:
            report = await self._rounds.accept(opening, conversation, traffic)
            result = _result_of(report.outcome)
        finally:
            schedule.end(peer, is_ours=False, result=result, now_us=self._now_us())
        self._ended(report, is_begun_here=False)

    async def _round(self, peer: PeerId, nonce: int, *, dry_run: bool) -> SyncReport:
        report = await self._rounds.initiate(peer, nonce=nonce, partner_arc=self._arcs.get(peer), dry_run=dry_run)
        self._ended(report, is_begun_here=True)
        return report

    def _ended(self, report: SyncReport, *, is_begun_here: bool) -> None:
        outcome = report.outcome
        if outcome.partner_arc is not None:
            self._arcs[report.peer] = outcome.partner_arc
            self._arcs.move_to_end(report.peer)
            if len(self._arcs) > ARCS_NOTED:
                self._arcs.popitem(last=False)
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

    def _partners(self) -> list[Candidate]:
        """Those with whom this node can have something in common.

        Whose arc is not known is taken to overlap: one of them may be the only one that has what is missing here.
        """
        table, arc = self._neighbourhood.table, self._neighbourhood.target_arc().arc
        nearest = table.find_closest(self._neighbourhood.local, 2 * self._replication, where=syncs)
        within = (contact for contact in table if contact.syncs and arc.covers(contact.kad_key))
        ours = self._held.arc
        peers = dict.fromkeys(contact.peer for contact in (*nearest, *within))
        return [Candidate(peer=peer, arc=self._arcs.get(peer, ours)) for peer in peers]

    def _scheduled(self) -> Schedule:
        """The schedule, which begins when this node does."""
        if self._schedule is None:
            self._schedule = Schedule(self._rounds.local, pace=Pace(), now_us=self._now_us(), rng=self._rng)
        return self._schedule

    def _now_us(self) -> int:
        return int(self._clock.monotonic_s() * US_PER_S)


def _result_of(outcome: Outcome) -> Result:
    is_crossed = outcome.refusal is not None and outcome.refusal.reason is Refusal.CROSSED
    return Result.FAILED if outcome.ending in (Ending.FAILED, Ending.REFUSED) and not is_crossed else Result.DONE
