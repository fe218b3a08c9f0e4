"""The driver of :class:`prime_dht.kad.lookup.Lookup`: does what the machine says, and tells it what comes of it.

**Who does what.** Most queries go over a stream that is open: they are *posted*, and the task that reads the stream
calls back with the answer. In that call the answer is taken in, the lookup is told of it, and it *advances*: what it
wants to send now is posted. The task that awaits the result sleeps meanwhile, and is woken only when

- the lookup is over, or
- there are tasks to start: for queries that cannot be posted, as a peer has to be dialled, say, and for what is left
  to be done of a reply; or
- the lookup has to be asked earlier than the task would wake by itself. (Where it may be asked later than before, the
  task wakes at the old time, advances in vain, and sleeps on.)

A nursery costs as much as a query, so there is none before a task has to be started, and most lookups need none.

**Invariants.**

- While the task is up, or about to be, it alone advances; who brings an answer then only tells the lookup. It is about
  to be from the moment it is woken, its time is up, or it is cancelled: so once it is cancelled nothing is sent.
- The lookup is asked for more only when all that it said before is done. If a query is answered before ``post``
  returns, advancing goes round once more; it does not recurse, and goes round once for a query at most.
- A reply of which something is left to do is reported when that is done, and no reply is reported twice.
- When :meth:`LookupRun.result` has returned or raised, nothing that still comes is taken in.
- What ``take``, ``until`` or the lookup raise by mistake is raised by :meth:`LookupRun.result`: who brings an answer
  serves others as well.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import assert_never

import trio

from prime_dht.errors import QueryError, RefusedError, RemoteProtocolError, UnsentError
from prime_dht.events import LookupProgress
from prime_dht.ids import PeerId
from prime_dht.kad.contact import Contact
from prime_dht.kad.lookup import Finished, Lookup, LookupResult, Query, WaitUntil
from prime_dht.node.clock import Clock
from prime_dht.node.feed import Feed
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.wire.kad import Reply, Request

Task = Callable[[], Awaitable[None]]
"""The work of a task beside the lookup's own."""

Take = Callable[[Contact, Reply], Task | None]
"""Takes a peer's reply in; returns what is to be done for the rest of it, if it is not all.

Raises RemoteProtocolError, and so may that, if it is no reply to what was asked. The peer has failed then. What is to
be done for the rest may raise QueryError as well.
"""

Until = Callable[[], bool]
"""Whether the replies taken in are all it takes."""

_Outcome = Reply | QueryError | RemoteProtocolError


class LookupRun:
    """One lookup under way.

    Args:
        request: what each peer is asked.
        take: is given each reply before the lookup is.
        until: is asked after each reply whether to end the lookup.
    """

    def __init__(
        self,
        lookup: Lookup,
        request: Request,
        neighbourhood: Neighbourhood,
        clock: Clock,
        feed: Feed,
        *,
        take: Take,
        until: Until,
    ) -> None:
        self._lookup = lookup
        self._request = request
        self._neighbourhood = neighbourhood
        self._clock = clock
        self._feed = feed
        self._take = take
        self._until = until
        self._to_start: list[Task] = []
        self._blameless: set[PeerId] = set()
        self._asked: dict[PeerId, Contact] = {}  # who has not answered, as known when it was asked last
        self._is_advancing = False
        self._has_news = True  # the lookup has not been asked since it was told something, or time passed
        self._due_at_s = -math.inf  # when the lookup has to be asked at the latest
        self._sleeper: trio.lowlevel.Task | None = None  # the task that awaits the result, unless it is about to wake
        self._wakes_at_s = -math.inf
        self._is_over = False
        self._result: LookupResult | None = None
        self._mistake: Exception | None = None

    async def result(self) -> LookupResult:
        """Run the lookup to its end. Await it once."""
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            now_s = self._clock.monotonic_s()
            self._advance(now_s)
            if self._is_over:
                await trio.lowlevel.checkpoint()  # nothing was waited for
            await self._sleep_until_due(now_s)
            if self._to_start:
                async with trio.open_nursery() as nursery:
                    while not self._is_over:
                        for task in self._to_start:
                            nursery.start_soon(task)
                        self._to_start.clear()
                        await self._sleep_until_due(self._clock.monotonic_s())
                    nursery.cancel_scope.cancel()
        finally:
            self._is_over = True  # if it was cancelled as well: what was posted is answered all the same
        if self._mistake is not None:
            raise self._mistake
        assert self._result is not None
        self._learn_from(self._result)
        return self._result

    # The task

    async def _sleep_until_due(self, now_s: float) -> None:
        """Until the lookup is over, or there are tasks to start."""
        while not self._is_over and not self._to_start:
            self._wakes_at_s = self._due_at_s
            left_s = self._due_at_s - now_s  # first: a sum of both clocks would round it away
            with trio.CancelScope(deadline=trio.current_time() + left_s):
                self._sleeper = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._disturbed)
            await trio.lowlevel.checkpoint_if_cancelled()  # it may have been since it was woken
            self._has_news = True
            now_s = self._clock.monotonic_s()
            self._advance(now_s)

    def _disturbed(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        """Its time is up, or the task was cancelled."""
        self._sleeper = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake(self) -> None:
        if self._sleeper is not None:
            trio.lowlevel.reschedule(self._sleeper)
            self._sleeper = None

    # What the lookup says

    def _advance(self, now_s: float) -> None:
        """Do what the lookup says; if that brings news at once, do what it says then."""
        self._is_advancing = True
        while self._has_news and not self._is_over:
            self._has_news = False
            for action in self._lookup.next(now_s):
                match action:
                    case Query(contact):
                        if not self._is_over:  # since the query before this one was answered at once
                            self._send(contact, now_s)
                    case WaitUntil(at_s):
                        self._due_at_s = at_s
                    case Finished(result):
                        self._end(result)
                    case _:
                        assert_never(action)
        self._is_advancing = False

    def _send(self, contact: Contact, now_s: float) -> None:
        self._asked[contact.peer] = contact
        then = partial(self._heard, self._take_in, contact)
        if not self._neighbourhood.post(contact, self._request, then, now_s=now_s):
            self._lookup.on_held_up(contact.peer)
            self._to_start.append(partial(self._query, contact))

    def _end(self, result: LookupResult) -> None:
        self._result = result
        self._is_over = True

    # What comes of it

    def _heard(self, react: Callable[[Contact, _Outcome], None], contact: Contact, outcome: _Outcome) -> None:
        """React to what came of a query, and wake the task if need be. Raises nothing: see the module."""
        if self._is_over:
            return
        try:
            react(contact, outcome)
        except Exception as mistake:  # noqa: BLE001 - raised in the task that awaits the result
            self._mistake = mistake
            self._is_over = True
        if self._is_over or self._to_start or self._due_at_s < self._wakes_at_s:
            self._wake()

    def _take_in(self, contact: Contact, outcome: _Outcome) -> None:
        if isinstance(outcome, Reply):
            if contact.peer not in self._asked:
                return  # asked twice, it has answered once
            try:
                rest = self._take(contact, outcome)
            except RemoteProtocolError as error:
                outcome = error
            else:
                if rest is not None:
                    self._to_start.append(partial(self._do_rest, contact, outcome, rest))
                    return
        self._report(contact, outcome)

    def _report(self, contact: Contact, outcome: _Outcome) -> None:
        """Tell the lookup what came of a query, and have it advance if this is the moment."""
        now_s = self._clock.monotonic_s()
        if isinstance(outcome, Reply):
            self._asked.pop(contact.peer, None)
            closer = self._neighbourhood.heard_of(outcome.closer, now_s=now_s)
            known = self._neighbourhood.table.get(contact.peer)  # if it has a place, its answer was noted there
            self._lookup.on_reply(known or self._neighbourhood.contact(contact.peer), closer, now_s)
            if self._until():
                self._end(self._lookup.finish(now_s))
        elif self._asked.get(contact.peer) is not contact:
            return  # it has been asked again since, at other addresses, or has answered
        else:
            if isinstance(outcome, UnsentError | RefusedError):
                self._blameless.add(contact.peer)
            self._lookup.on_failure(contact.peer, str(outcome))
        if self._feed.is_heard:
            self._publish(contact.peer, now_s)
        self._has_news = True
        if self._sleeper is not None and not self._is_advancing:
            self._advance(now_s)

    def _sent(self, peer: PeerId) -> None:
        """A query that was held up has its turn: its time begins anew."""
        self._lookup.on_sent(peer, self._clock.monotonic_s())
        self._wake()

    # The tasks beside it

    async def _query(self, contact: Contact) -> None:
        try:
            outcome: _Outcome = await self._neighbourhood.ask(
                contact, self._request, on_turn=partial(self._sent, contact.peer)
            )
        except (QueryError, RemoteProtocolError) as error:
            outcome = error
        self._heard(self._take_in, contact, outcome)

    async def _do_rest(self, contact: Contact, reply: Reply, rest: Task) -> None:
        outcome: _Outcome = reply
        try:
            await rest()
        except (QueryError, RemoteProtocolError) as error:
            outcome = error
        self._heard(self._report, contact, outcome)

    # Whom it concerns

    def _publish(self, peer: PeerId, now_s: float) -> None:
        hop = self._lookup.hop(peer)
        self._feed.publish(
            LookupProgress(
                target=self._lookup.target,
                peer=peer,
                told_by=hop.told_by,
                depth=hop.depth,
                distance=hop.distance,
                elapsed_s=now_s - hop.asked_at_s,
                heard_of=hop.heard_of,
                failure=hop.failure,
            )
        )

    def _learn_from(self, result: LookupResult) -> None:
        """Note which bucket was refreshed, and who failed.

        That includes peers that let the lookup's deadline for them pass, though the call itself had not ended yet.
        """
        self._neighbourhood.table.looked_up(result.target, result.ended_at_s)
        for hop in result.path:
            if hop.failure and hop.contact.peer not in self._blameless:
                self._neighbourhood.failed(hop.contact.peer, hop.failure, asked_at_s=hop.asked_at_s)
