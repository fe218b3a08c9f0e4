"""The driver of a lookup, over a neighbourhood that answers when the test says so."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import cast

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from prime_dht.errors import QueryError, RemoteProtocolError
from prime_dht.events import LookupProgress
from prime_dht.ids import KadKey, PeerId
from prime_dht.kad.contact import Contact
from prime_dht.kad.lookup import Action, Lookup, LookupConfig, LookupResult, Outcome
from prime_dht.net.network import OnOutcome
from prime_dht.node.clock import SystemClock
from prime_dht.node.feed import Feed
from prime_dht.node.lookup_run import LookupRun, Take, Task, Until
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.wire.kad import Connection, FindNode, PeerRecord, Reply, Request

CONFIG = LookupConfig(k=3, alpha=3, slow_after_s=1.0, query_timeout_s=3.0, timeout_s=30.0)


def contact(distance: int) -> Contact:
    """A peer so far from the target, which is 0."""
    return Contact(peer=PeerId(distance.to_bytes(4, "big")), kad_key=KadKey(distance))


def naming(*distances: int, at: tuple[bytes, ...] = ()) -> Reply:
    return Reply(closer=tuple(PeerRecord(contact(one).peer, at, Connection.CONNECTED) for one in distances))


class Nearby:
    """A neighbourhood, and the table in it, of which a run needs little.

    Attributes:
        posted: the distances of those asked, in order, without those that have to be dialled.
        posted_at_s: when.
        steps: what the run did, in order.
        at_once: what those answer whose answer comes before ``post`` returns.
        dialled: those that have to be, and how.
    """

    def __init__(self) -> None:
        self.posted: list[int] = []
        self.posted_at_s: list[float] = []
        self.steps: list[str] = []
        self.at_once: dict[int, Reply] = {}
        self.dialled: dict[int, Callable[[Callable[[], None]], Task]] = {}
        self.failures: list[tuple[int, str]] = []
        self._then: defaultdict[int, list[OnOutcome]] = defaultdict(list)
        self.table = self

    def answer(self, distance: int, outcome: Reply | QueryError | RemoteProtocolError, *, query: int = -1) -> None:
        """Answer a peer's last query, or another of them."""
        self._then[distance][query](outcome)

    def post(self, contact: Contact, _request: Request, then: OnOutcome, *, now_s: float) -> bool:
        if contact.kad_key in self.dialled:
            return False
        self.steps.append(f"post {contact.kad_key}")
        self.posted.append(contact.kad_key)
        self.posted_at_s.append(trio.current_time())
        self._then[contact.kad_key].append(then)
        if contact.kad_key in self.at_once:
            then(self.at_once[contact.kad_key])
        return True

    async def ask(self, contact: Contact, _request: Request, *, on_turn: Callable[[], None]) -> Reply:
        await self.dialled[contact.kad_key](on_turn)()
        return Reply()

    def heard_of(self, records: Iterable[PeerRecord], *, now_s: float) -> list[Contact]:
        return [replace(self.contact(record.peer), addresses=record.addresses) for record in records]

    def contact(self, peer: PeerId) -> Contact:
        return contact(int.from_bytes(peer, "big"))

    def get(self, _peer: PeerId) -> Contact | None:
        return None

    def looked_up(self, _target: KadKey, _at_s: float) -> None:
        self.steps.append("looked up")

    def failed(self, peer: PeerId, reason: str, *, asked_at_s: float) -> None:
        self.failures.append((int.from_bytes(peer, "big"), reason))


def lookup_of(*seeds: int, config: LookupConfig = CONFIG, kind: type[Lookup] = Lookup) -> Lookup:
    return kind(KadKey(0), map(contact, seeds), local=KadKey(1 << 40), config=config, now_s=trio.current_time())


async def run(
    nearby: Nearby,
    lookup: Lookup,
    *,
    take: Take = lambda *_: None,
    until: Until = lambda: False,
    feed: Feed | None = None,
) -> LookupResult:
    neighbourhood = cast("Neighbourhood", nearby)
    request = FindNode(b"x")
    return await LookupRun(
        lookup, request, neighbourhood, SystemClock(), feed or Feed(), take=take, until=until
    ).result()


def distances(result: LookupResult) -> list[int]:
    return [contact.kad_key for contact in result.closest]


async def in_order(*steps: Callable[[], None]) -> None:
    """Take each step when all tasks wait again."""
    for step in steps:
        await wait_all_tasks_blocked()
        step()


class CountSteps(trio.abc.Instrument):
    """Counts how often a task runs on."""

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self._task = task
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self._task


async def test_the_task_is_woken_once_however_many_answers_come(autojump_clock: MockClock) -> None:
    nearby = Nearby()
    steps = CountSteps(trio.lowlevel.current_task())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_order, *(partial(nearby.answer, one, Reply()) for one in (10, 30, 20)))
        trio.lowlevel.add_instrument(steps)
        result = await run(nearby, lookup_of(10, 20, 30))
        trio.lowlevel.remove_instrument(steps)
    assert (distances(result), steps.count) == ([10, 20, 30], 1)
    assert trio.current_time() == 0, "it does not wake at its time only"


async def test_who_an_answer_names_is_asked_before_the_answer_is_dealt_with(autojump_clock: MockClock) -> None:
    nearby = Nearby()

    def name_another() -> None:
        nearby.answer(10, naming(5))
        assert nearby.posted == [10, 20, 30, 5]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_order, name_another, *(partial(nearby.answer, one, Reply()) for one in (20, 5)))
        result = await run(nearby, lookup_of(10, 20, 30))
    assert distances(result) == [5, 10, 20]


async def test_a_chain_of_a_thousand_answers_at_once_is_followed_without_recursion() -> None:
    nearby = Nearby()
    nearby.at_once = {one: naming(one - 1) for one in range(2, 1001)} | {1: Reply()}
    result = await run(nearby, lookup_of(1000, config=replace(CONFIG, k=1, alpha=1, max_queries=1000)))
    assert distances(result) == [1]
    assert nearby.posted == list(range(1000, 0, -1))


async def test_the_lookup_is_asked_for_more_when_all_is_sent_that_it_wanted_before() -> None:
    nearby = Nearby()
    nearby.at_once = {one: Reply() for one in (10, 20, 30)}

    class Watched(Lookup):
        def next(self, now_s: float) -> list[Action]:
            nearby.steps.append("next")
            return super().next(now_s)

    await run(nearby, lookup_of(10, 20, 30, kind=Watched))
    assert nearby.steps == ["next", "post 10", "post 20", "post 30", "next", "looked up"]


async def test_an_answer_at_once_that_is_enough_spares_the_rest() -> None:
    nearby = Nearby()
    nearby.at_once = {one: Reply() for one in (10, 20, 30)}
    result = await run(nearby, lookup_of(10, 20, 30), until=lambda: True)
    assert (result.outcome, nearby.posted) == (Outcome.ENOUGH, [10])


@pytest.mark.parametrize("seeds", [(), (10,)])
async def test_a_lookup_with_nothing_to_wait_for_lets_others_have_their_turn(seeds: tuple[int, ...]) -> None:
    nearby = Nearby()
    nearby.at_once = {10: Reply()}
    with assert_checkpoints():
        result = await run(nearby, lookup_of(*seeds))
    assert distances(result) == list(seeds)


class Mistake(Exception):
    pass


def make_a_mistake(*_: object) -> bool:
    raise Mistake


class MistakenLookup(Lookup):
    """Makes one when it is asked for the second time."""

    is_asked_again = False

    def next(self, now_s: float) -> list[Action]:
        if self.is_asked_again:
            raise Mistake
        self.is_asked_again = True
        return super().next(now_s)


def take_mistakenly(_contact: Contact, _reply: Reply) -> None:
    raise Mistake


@pytest.mark.parametrize(
    "drive",
    [
        lambda nearby: run(nearby, lookup_of(10, 20, 30, 40), take=take_mistakenly),
        lambda nearby: run(nearby, lookup_of(10, 20, 30, 40), until=make_a_mistake),
        lambda nearby: run(nearby, lookup_of(10, 20, 30, 40, kind=MistakenLookup)),
    ],
    ids=["take", "until", "next"],
)
@pytest.mark.parametrize("has_to_dial", [False, True])
async def test_a_mistake_is_raised_to_who_awaits_the_result_and_not_to_who_brings_the_answer(
    drive: Callable[[Nearby], Awaitable[LookupResult]], has_to_dial: bool, autojump_clock: MockClock
) -> None:
    nearby = Nearby()
    if has_to_dial:
        nearby.dialled[30] = lambda _on_turn: trio.sleep_forever

    def answer() -> None:
        nearby.answer(10, naming(5))
        nearby.answer(20, naming(6))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_order, answer)
        with pytest.raises(Mistake):
            await drive(nearby)
    assert nearby.posted == ([10, 20] if has_to_dial else [10, 20, 30])


async def test_a_mistake_after_the_rest_of_a_reply_is_raised_as_it_is(autojump_clock: MockClock) -> None:
    nearby = Nearby()
    nearby.at_once = {10: Reply()}
    with pytest.raises(Mistake):
        await run(nearby, lookup_of(10), take=lambda *_: trio.lowlevel.checkpoint, until=make_a_mistake)


async def test_a_peer_whose_reply_breaks_the_protocol_has_failed(autojump_clock: MockClock) -> None:
    nearby = Nearby()
    nearby.at_once = {10: naming(5), 20: Reply(), 30: Reply()}

    def take(contact: Contact, _reply: Reply) -> None:
        if contact.kad_key == 10:
            raise RemoteProtocolError("nonsense")

    result = await run(nearby, lookup_of(10, 20, 30), take=take)
    assert distances(result) == [20, 30]
    assert nearby.failures == [(10, "nonsense")]


@pytest.mark.parametrize("has_to_dial", [False, True])
async def test_what_answers_while_the_run_is_cancelled_has_nothing_sent(
    has_to_dial: bool, autojump_clock: MockClock
) -> None:
    nearby = Nearby()
    if has_to_dial:
        nearby.dialled[30] = lambda _on_turn: trio.sleep_forever
    scope = trio.CancelScope()

    def cancel_and_answer() -> None:
        scope.cancel()
        nearby.answer(10, naming(5))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_order, cancel_and_answer)
        with scope:
            await run(nearby, lookup_of(10, 20, 30))
    assert scope.cancelled_caught
    nearby.answer(20, naming(6))
    assert not {5, 6} & set(nearby.posted)


async def test_a_run_that_is_cancelled_once_its_task_was_woken_sends_nothing(autojump_clock: MockClock) -> None:
    nearby = Nearby()
    turns: list[Callable[[], None]] = []

    def dial(on_turn: Callable[[], None]) -> Task:
        turns.append(on_turn)
        return trio.sleep_forever

    nearby.dialled[20] = dial
    scope = trio.CancelScope()

    def wake_and_answer_and_cancel() -> None:
        turns[0]()
        nearby.answer(10, naming(5))
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_order, wake_and_answer_and_cancel)
        with scope:
            await run(nearby, lookup_of(10, 20, 30))
    assert scope.cancelled_caught
    assert nearby.posted == [10, 30]


async def test_a_run_that_is_cancelled_before_it_begins_sends_nothing() -> None:
    nearby = Nearby()
    with trio.CancelScope() as scope:
        scope.cancel()
        await run(nearby, lookup_of(10, 20))
    assert nearby.posted == []


async def test_the_time_of_a_query_that_was_held_up_begins_with_its_turn(autojump_clock: MockClock) -> None:
    """The task sleeps until the lookup's end then; it has to wake for the query's."""
    nearby = Nearby()
    nearby.at_once = {20: Reply()}

    def dial(on_turn: Callable[[], None]) -> Task:
        async def have_a_turn_and_be_silent() -> None:
            await trio.sleep(5)
            on_turn()
            await trio.sleep_forever()

        return have_a_turn_and_be_silent

    nearby.dialled[10] = dial
    result = await run(nearby, lookup_of(10, 20))
    assert (distances(result), result.ended_at_s) == ([20], 8.0)
    assert nearby.failures == [(10, "no answer before the deadline")]


async def test_a_query_sent_while_the_task_sleeps_longer_is_slow_in_time(autojump_clock: MockClock) -> None:
    nearby = Nearby()
    config = replace(CONFIG, alpha=1, query_timeout_s=10.0)

    async def answer_at_2_5() -> None:
        await trio.sleep(2.5)
        nearby.answer(20, naming(30, 40))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_at_2_5)
        with trio.move_on_at(4):
            await run(nearby, lookup_of(10, 20, config=config))
    assert list(zip(nearby.posted, nearby.posted_at_s, strict=True)) == [(10, 0.0), (20, 1.0), (30, 2.5), (40, 3.5)]


async def test_the_rest_of_a_reply_begins_when_the_reply_comes(autojump_clock: MockClock) -> None:
    nearby = Nearby()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_order, partial(nearby.answer, 10, Reply()))
        result = await run(nearby, lookup_of(10), take=lambda *_: partial(trio.sleep, 0.5))
    assert (distances(result), result.ended_at_s) == ([10], 0.5)


async def test_a_reply_is_reported_once_when_the_rest_of_it_is_done(autojump_clock: MockClock) -> None:
    nearby = Nearby()
    nearby.at_once = {10: Reply(), 20: Reply()}
    feed = Feed()
    seen: list[tuple[int, float, str]] = []

    def take(contact: Contact, _reply: Reply) -> Task | None:
        async def lose() -> None:
            await trio.sleep(2)
            raise QueryError("lost")

        return partial(trio.sleep, 1) if contact.kad_key == 10 else lose

    async with trio.open_nursery() as nursery:
        with feed.subscribe() as events:

            async def watch() -> None:
                async for event in events:
                    assert isinstance(event, LookupProgress)
                    seen.append((event.distance, trio.current_time(), event.failure))

            nursery.start_soon(watch)
            result = await run(nearby, lookup_of(10, 20, config=replace(CONFIG, timeout_s=9.0)), take=take, feed=feed)
    assert seen == [(10, 1.0, ""), (20, 2.0, "lost")]
    assert distances(result) == [10]


async def test_the_rest_of_a_reply_that_ends_after_the_lookup_is_not_reported(autojump_clock: MockClock) -> None:
    nearby = Nearby()
    nearby.at_once = {10: Reply()}
    reported: list[int] = []

    async def rest() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)

    def take(contact: Contact, _reply: Reply) -> Task | None:
        return rest if contact.kad_key == 10 else None

    def until() -> bool:
        reported.append(1)
        return True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_order, partial(nearby.answer, 20, Reply()))
        result = await run(nearby, lookup_of(10, 20), take=take, until=until)
    assert (distances(result), reported) == ([20], [1])


@pytest.mark.parametrize("outcome", [QueryError("nobody is there"), naming(4)], ids=["fails", "answers"])
async def test_of_a_peer_that_is_asked_again_elsewhere_the_first_answer_counts_and_no_failure_of_the_earlier_query(
    outcome: Reply | QueryError, autojump_clock: MockClock
) -> None:
    nearby = Nearby()
    nearby.at_once = {30: Reply()}
    feed = Feed()
    taken: list[int] = []
    seen: list[tuple[int, str]] = []

    async def answer() -> None:
        await wait_all_tasks_blocked()
        nearby.answer(10, naming(5, at=(b"false",)))
        nearby.answer(20, naming(5, at=(b"true",)))
        await trio.sleep(3.5)
        assert nearby.posted == [10, 20, 30, 5, 5]
        nearby.answer(5, outcome, query=0)
        nearby.answer(5, naming(4))
        nearby.answer(4, Reply())

    async with trio.open_nursery() as nursery:
        with feed.subscribe() as events:

            async def watch() -> None:
                async for event in events:
                    assert isinstance(event, LookupProgress)
                    seen.append((event.distance, event.failure))

            nursery.start_soon(watch)
            nursery.start_soon(answer)
            result = await run(
                nearby, lookup_of(10, 20, 30), take=lambda contact, _: taken.append(contact.kad_key), feed=feed
            )
    assert distances(result) == [4, 5, 10]
    assert taken == [30, 10, 20, 5, 4]
    assert seen == [(one, "") for one in taken]
    assert nearby.failures == []
