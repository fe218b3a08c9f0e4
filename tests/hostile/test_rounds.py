"""Peers that misuse rounds of sync, against whole nodes in virtual time.

Whatever a rogue does: the round ends, in bounded time; the node stores nothing of it that is not valid; other rounds go
on meanwhile; and a rogue is charged, and left alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from random import Random

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from trio.testing import MockClock

from prime_dht.background import background_nursery
from prime_dht.entries.entry import Entry
from prime_dht.errors import LocalProtocolError, QueryError
from prime_dht.events import SyncFinished
from prime_dht.ids import US_PER_S, PeerId
from prime_dht.net.identity import peer_id_of
from prime_dht.net.network import Conversation
from prime_dht.node.core import Node
from prime_dht.node.feed import Subscription
from prime_dht.node.rounds import MAX_ROUND_S, OPENING_TIMEOUT_S, STAGE_TIMEOUT_S, WAIT_S
from prime_dht.partition.arcs import ArcSet
from prime_dht.sync.actions import Ending
from prime_dht.sync.limits import MAX_MESSAGE_BYTES
from prime_dht.sync.messages import Acceptance, AskChecksums, Message, Refusal, Refuse, Turn, Verdict
from prime_dht.sync.schedule import Candidate, Pace
from prime_dht.testing.hostile_rounds import Rogue, drained, noise, signed_entries
from prime_dht.testing.memory_network import MemoryNetwork
from prime_dht.testing.swarm import Swarm, open_swarm
from prime_dht.wire.kad import Reply, Request

SHARED = 600
"""Ops that node and rogues have in common."""

CIRCLE = ArcSet.full(sector_bits=9)
NOTHING = ArcSet.empty(sector_bits=9)
ACCEPTED = Acceptance(arc=CIRCLE, held=CIRCLE)
DONE = Verdict(only_leader=0, only_follower=0, left=NOTHING)

Behaviour = Callable[[Rogue, Conversation], Awaitable[None]]


def peer(number: int) -> PeerId:
    return peer_id_of(create_new_key_pair((b"rogue %d" % number).ljust(32)))


async def serves_nothing_else(_peer: PeerId, _request: Request) -> Reply:
    raise LocalProtocolError("rogues speak of sync alone")


@dataclass(slots=True, kw_only=True)
class Scene:
    """A node that is attacked, and an honest one."""

    swarm: Swarm
    node: Node
    honest: Node
    shared: list[Entry]
    nursery: trio.Nursery
    rogues: int = 0

    @property
    def now_us(self) -> int:
        return self.swarm.machine_of(self.node).clock.now_us()

    @property
    def offences(self) -> int:
        return self.node._network.counters().offences

    async def stored(self) -> set[bytes]:
        page = await self.swarm.machine_of(self.node).disc.scan_ops()
        return {op_id.tobytes() for op_id in page.op_ids}

    async def rogue(self, *, new: int = 0) -> tuple[Rogue, MemoryNetwork]:
        """A rogue of its own identity that has what the node has, and some ops that nobody else has."""
        self.rogues += 1
        network = self.swarm.world.network(peer(self.rogues), serves_nothing_else)
        await self.nursery.start(network.run)
        network.mount(as_server=True)
        network.learn_addresses(self.node.peer_id, [self.swarm.world.address_of(self.node.peer_id)], source="manual")
        self.node._network.learn_addresses(network.local, network.own_addresses(), source="manual")
        own = signed_entries(new, now_us=self.now_us, name=f"rogue {self.rogues}")
        return Rogue(now_us=self.now_us, entries=[*self.shared, *own], seed=self.rogues), network

    async def begun_by_rogue(self, behaviour: Behaviour, *, new: int = 0) -> Rogue:
        """A rogue begins a round, does as it likes, and then waits until the node has ended it."""
        rogue, network = await self.rogue(new=new)
        async with network.converse(self.node.peer_id, timeout_s=5) as conversation:
            await behaviour(rogue, conversation)
            await drained(conversation)
        return rogue

    async def begun_by_node(self, behaviour: Behaviour, *, new: int = 0) -> tuple[Rogue, Ending]:
        """The node begins a round with a rogue that does as it likes; how it ends for the node."""
        rogue, network = await self.rogue(new=new)

        async def take_part(conversation: Conversation) -> None:
            await behaviour(rogue, conversation)
            await drained(conversation)

        network.serve_sync(take_part)
        report = await self.node.sync(network.local)
        return rogue, report.outcome.ending

    async def is_synced_with(self) -> bool:
        """Whether an honest round with the node goes as it should."""
        return (await self.honest.sync(self.node.peer_id)).outcome.ending is Ending.EQUAL


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    async with open_swarm(seed=1, size=2) as swarm, background_nursery() as nursery:
        node, honest = swarm.nodes
        made = Scene(swarm=swarm, node=node, honest=honest, shared=[], nursery=nursery)
        made.shared = signed_entries(SHARED, now_us=made.now_us, name="shared")
        await made.begun_by_rogue(begin)
        assert await made.is_synced_with()
        assert len(await made.stored()) == SHARED
        yield made


async def begin(rogue: Rogue, conversation: Conversation) -> None:
    await rogue.begin(conversation)


# What is said.


def say(*messages: Message) -> Behaviour:
    return lambda rogue, conversation: rogue.say(conversation, *messages)


def send(body: bytes) -> Behaviour:
    return lambda _, conversation: conversation.send(body)


def open_and(behaviour: Behaviour) -> Behaviour:
    """Open a round, hear the first turn of the node, who leads, and then do something else."""

    async def both(rogue: Rogue, conversation: Conversation) -> None:
        await rogue.say(conversation, rogue.opening())
        assert isinstance(await rogue.hear(conversation), Turn)
        await behaviour(rogue, conversation)

    return both


async def open_twice(rogue: Rogue, conversation: Conversation) -> None:
    await rogue.say(conversation, rogue.opening(), rogue.opening())


async def push_forgeries(rogue: Rogue, conversation: Conversation) -> None:
    """Entries whose last byte, one of the signature's, is another."""
    made = signed_entries(3, now_us=rogue.party.now_us, name="forged")
    forged = [replace(entry, envelope=entry.envelope[:-1] + bytes([entry.envelope[-1] ^ 1])) for entry in made]
    await rogue.say(conversation, Turn(acceptance=ACCEPTED, entries=tuple(forged), verdict=DONE))


async def push_unasked(rogue: Rogue, conversation: Conversation) -> None:
    """Entries that are valid, and that the node, who leads, did not want."""
    entries = signed_entries(3, now_us=rogue.party.now_us, name="unasked")
    await rogue.say(conversation, Turn(entries=tuple(entries)))


async def promise_more(rogue: Rogue, conversation: Conversation) -> None:
    await rogue.say(conversation, rogue.opening())
    await rogue.answer(conversation, lambda _: Turn(more=True))


async def answer_noise(rogue: Rogue, conversation: Conversation) -> None:
    await rogue.say(conversation, rogue.opening())
    await rogue.answer(conversation, noise(Random(1)))


async def ask_for_ever(rogue: Rogue, conversation: Conversation) -> None:
    await ask(rogue, conversation, every_s=0)


async def ask_now_and_then(rogue: Rogue, conversation: Conversation) -> None:
    """Each message just before the node would have lost patience with it."""
    await ask(rogue, conversation, every_s=STAGE_TIMEOUT_S - 1)


async def ask(rogue: Rogue, conversation: Conversation, *, every_s: float) -> None:
    acceptance: Acceptance | None = ACCEPTED
    await rogue.hear(conversation)
    while True:
        await rogue.say(conversation, Turn(acceptance=acceptance, questions=(AskChecksums(CIRCLE),)))
        acceptance = None
        if await rogue.hear(conversation) is None:
            return
        await trio.sleep(every_s)


# Breaches that are seen at once.


@pytest.mark.parametrize(
    "behaviour",
    [
        say(Turn()),
        say(Refuse(Refusal.BUSY)),
        send(b""),
        send(b"no message"),
        send(bytes(MAX_MESSAGE_BYTES + 1)),
        open_twice,
        open_and(say(Turn(acceptance=ACCEPTED))),
        open_and(say(Refuse(Refusal.BUSY))),
        open_and(say(Turn(questions=(AskChecksums(CIRCLE),)))),
        open_and(say(Turn(verdict=DONE))),
        open_and(send(b"no message")),
        open_and(send(bytes(MAX_MESSAGE_BYTES + 1))),
        open_and(push_unasked),
    ],
    ids=[
        *("a turn first", "a refusal first", "nothing at all", "garbage", "oversize", "two openings"),
        *("accepting oneself", "refusing late", "leading where the other leads", "a verdict on the other's behalf"),
        *("garbage later", "oversize later", "entries nobody asked for"),
    ],
)
async def test_who_begins_a_round_and_breaks_it_is_charged_and_changes_nothing(
    autojump_clock: MockClock, behaviour: Behaviour
) -> None:
    async with scene() as made:
        before = await made.stored()
        began_at_s = trio.current_time()
        await made.begun_by_rogue(behaviour, new=3)
        assert trio.current_time() - began_at_s < 5
        assert made.offences == 1
        assert await made.stored() == before
        assert await made.is_synced_with()


@pytest.mark.parametrize(
    "behaviour",
    [
        say(Turn()),
        say(Turn(acceptance=ACCEPTED, verdict=DONE, more=True)),
        send(b"no message"),
        send(bytes(MAX_MESSAGE_BYTES + 1)),
        say(Turn(acceptance=ACCEPTED, questions=(AskChecksums(CIRCLE),)), Refuse(Refusal.BUSY)),
        push_forgeries,
    ],
    ids=["no acceptance", "following and leading", "garbage", "oversize", "refusing late", "forgeries"],
)
async def test_who_is_asked_for_a_round_and_breaks_it_is_charged_and_changes_nothing(
    autojump_clock: MockClock, behaviour: Behaviour
) -> None:
    async with scene() as made:
        before = await made.stored()
        _, ending = await made.begun_by_node(behaviour)
        assert ending is Ending.FAILED
        assert made.offences == 1
        assert await made.stored() == before
        assert await made.is_synced_with()


async def test_ids_of_what_it_does_not_have_leave_the_sectors_open_and_change_nothing(
    autojump_clock: MockClock,
) -> None:
    async def claim(rogue: Rogue, conversation: Conversation) -> None:
        rogue.party.by_want.clear()  # so nothing is there of what its symbols tell of
        await rogue.begin(conversation)

    async with scene() as made:
        before = await made.stored()
        with made.node.subscribe() as events:
            await made.begun_by_rogue(claim, new=5)
            ended = await anext(events)
        assert isinstance(ended, SyncFinished)
        assert (ended.ending, ended.stored, ended.begun_here) == ("partial(512)", 0, False)
        assert await made.stored() == before
        assert await made.is_synced_with()


# Rounds that do not end by themselves.


@pytest.mark.parametrize("is_begun_by_node", [True, False])
async def test_at_whatever_stage_a_peer_falls_silent_the_round_ends_and_others_go_on_meanwhile(
    autojump_clock: MockClock, is_begun_by_node: bool
) -> None:
    async with scene() as made:
        for stage in count():
            is_silent = False

            async def fall_silent(rogue: Rogue, conversation: Conversation, stage: int = stage) -> None:
                nonlocal is_silent
                play = rogue.follow_suit if is_begun_by_node else rogue.begin
                await play(conversation, messages=stage)
                is_silent = rogue.owes_a_message
                if is_silent:
                    assert await made.is_synced_with()

            before, offences = await made.stored(), made.offences
            began_at_s = trio.current_time()
            if is_begun_by_node:
                rogue, _ = await made.begun_by_node(fall_silent, new=100)
            else:
                rogue = await made.begun_by_rogue(fall_silent, new=100)
            assert trio.current_time() - began_at_s < STAGE_TIMEOUT_S + 5
            assert before <= await made.stored() <= before | rogue.party.op_ids
            assert not made.node._syncing._scheduled().active
            if not is_silent:
                assert made.offences == offences
                break
            assert made.offences == offences + 1
        assert stage >= 3
        assert await made.is_synced_with()


@pytest.mark.parametrize(
    ("behaviour", "is_begun_by_node", "most_s", "offences"),
    [
        (ask_for_ever, True, MAX_ROUND_S, 1),
        (ask_now_and_then, True, WAIT_S + 2, 1),
        (promise_more, False, WAIT_S + 2, 1),
        (answer_noise, False, WAIT_S + 2, 0),  # an honest peer too may no longer have what it told of
    ],
    ids=["asking for ever", "asking now and then", "promising more for ever", "answering noise"],
)
async def test_a_round_of_legal_messages_that_comes_to_no_end_is_ended_while_others_go_on(
    autojump_clock: MockClock, behaviour: Behaviour, is_begun_by_node: bool, most_s: float, offences: int
) -> None:
    async with scene() as made:
        before, began_at_s = await made.stored(), trio.current_time()
        begin = made.begun_by_node if is_begun_by_node else made.begun_by_rogue
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(begin, behaviour, new=200))
            await trio.sleep(1)
            assert await made.is_synced_with()
        assert trio.current_time() - began_at_s < most_s
        assert made.offences == offences
        assert await made.stored() == before
        assert not made.node._syncing._scheduled().active
        assert await made.is_synced_with()


async def test_a_long_transfer_over_a_slow_path_is_broken_off_without_blame_and_the_next_round_goes_on(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prime_dht.node.rounds.MAX_ROUND_S", 100.0)
    async with scene() as made:
        rogue, network = await made.rogue()
        rogue.party.put(signed_entries(90, now_us=made.now_us, name="large", value=bytes(48 << 10)))
        world, pair = made.swarm.world, (made.node.peer_id, network.local)

        async def take_part(conversation: Conversation) -> None:
            world.slow(network.local, 11 / world.one_way_s(*pair))
            await rogue.follow_suit(conversation)

        network.serve_sync(take_part)
        endings: list[str] = []
        while endings[-1:] != ["equal"]:
            before, began_at_s = len(await made.stored()), trio.current_time()
            world.slow(network.local, 1)
            endings.append(str((await made.node.sync(network.local)).outcome))
            assert trio.current_time() - began_at_s < 101
            assert len(await made.stored()) > before
        assert set(endings) == {"partial(512)", "equal"}
        assert made.offences == 0


async def test_whoever_opens_a_stream_and_begins_no_round_is_charged_soon(autojump_clock: MockClock) -> None:
    async def wait(_rogue: Rogue, _conversation: Conversation) -> None:
        assert await made.is_synced_with()

    async with scene() as made:
        began_at_s = trio.current_time()
        await made.begun_by_rogue(wait)
        assert OPENING_TIMEOUT_S <= trio.current_time() - began_at_s < OPENING_TIMEOUT_S + 1
        assert made.offences == 1


# Many rounds.


async def test_of_a_thousand_rounds_of_one_peer_sixteen_are_run_and_it_is_left_alone(autojump_clock: MockClock) -> None:
    async with scene() as made:
        rogue, network = await made.rogue()
        refused: Counter[Refusal] = Counter()
        turned_away = refused_at_first = 0
        with made.node.subscribe() as events:
            for number in range(1000):
                try:
                    async with network.converse(made.node.peer_id, timeout_s=5) as conversation:
                        await rogue.say(conversation, rogue.opening())
                        if isinstance(said := await rogue.hear(conversation), Refuse):
                            refused[said.reason] += 1
                except QueryError:
                    turned_away += 1
                    refused_at_first = refused_at_first or refused.total()
                if number % 100 == 0:
                    assert await made.is_synced_with()
            run = [event async for event in so_far(events) if event.peer == network.local]
        assert len(run) == Pace().burst
        assert set(refused) == {Refusal.TOO_OFTEN}
        assert refused_at_first > Pace().burst, "somebody may have begun some by hand: a few cost nothing"
        assert turned_away > 900


async def test_peers_that_fill_all_places_and_fall_silent_hold_up_no_round_of_the_node_or_of_others(
    autojump_clock: MockClock,
) -> None:
    async with scene() as made, trio.open_nursery() as nursery:
        most, answers = Pace().max_accepted, Counter[str]()

        async def fall_silent(rogue: Rogue, conversation: Conversation) -> None:
            await rogue.say(conversation, rogue.opening())
            said = await rogue.hear(conversation)
            answers[said.reason.name if isinstance(said, Refuse) else "ACCEPTED"] += 1

        for _ in range(100):
            nursery.start_soon(partial(made.begun_by_rogue, fall_silent, new=1))
        await trio.sleep(5)
        assert answers == {"ACCEPTED": most, "BUSY": 100 - most}
        assert await made.is_synced_with()  # one of the silent gives way, whom nobody charges
        assert (await made.node.sync(made.honest.peer_id)).outcome.ending is Ending.EQUAL
        await trio.sleep(STAGE_TIMEOUT_S)
        assert made.offences == most - 1
        assert await made.is_synced_with()


async def test_who_misbehaved_in_a_round_begins_none_for_half_an_hour_and_is_asked_for_none(
    autojump_clock: MockClock,
) -> None:
    async with scene() as made:
        rogue, network = await made.rogue(new=1)

        async def opened() -> Message | None:
            async with network.converse(made.node.peer_id, timeout_s=5) as conversation:
                await rogue.say(conversation, rogue.opening())
                return await rogue.hear(conversation)

        async with network.converse(made.node.peer_id, timeout_s=5) as conversation:
            await open_and(say(Turn(verdict=DONE)))(rogue, conversation)
            await drained(conversation)
        assert await opened() == Refuse(Refusal.TOO_OFTEN)
        schedule, now_us = made.node._syncing._scheduled(), made.node._syncing._now_us()
        schedule.due_us, candidates = now_us, [Candidate(peer=network.local, arc=CIRCLE)]
        assert schedule.initiate(candidates, arc=CIRCLE, nonce=1, now_us=now_us, rng=Random(1)) is None
        await trio.sleep(Pace().misconduct_backoff_us / US_PER_S)
        assert isinstance(await opened(), Turn)
        assert made.offences == 2


async def so_far(events: Subscription) -> AsyncIterator[SyncFinished]:
    """The rounds that have ended since the subscription began."""
    with trio.move_on_after(0.001):
        async for event in events:
            if isinstance(event, SyncFinished):
                yield event


# Crossing.


class SetNonce(Random):
    """Draws one number whenever it draws a nonce."""

    def __init__(self, nonce: int) -> None:
        super().__init__(1)
        self.nonce = nonce

    def getrandbits(self, k: int, /) -> int:
        return self.nonce if k == 32 else super().getrandbits(k)


@pytest.mark.parametrize("nonces", [(1, 2), (2, 1), (5, 5)])
async def test_of_two_rounds_that_cross_exactly_one_goes_on_and_both_have_what_either_had(
    autojump_clock: MockClock, nonces: tuple[int, int]
) -> None:
    async with scene() as made:
        nodes = (made.node, made.honest)
        for node, nonce in zip(nodes, nonces, strict=True):
            node._syncing._rng = SetNonce(nonce)
        for number, node in enumerate(nodes):
            await node._replica.put_entries(signed_entries(5, now_us=made.now_us, name=f"{number}"), now_us=made.now_us)
        with made.node.subscribe() as here, made.honest.subscribe() as there:
            async with trio.open_nursery() as nursery:
                for node in nodes:
                    nursery.start_soon(node._syncing._begin_one, node._syncing._scheduled(), nursery)
            ended = [[event async for event in so_far(events)] for events in (here, there)]
        winner = nonces.index(max(nonces)) if nonces[0] != nonces[1] else int(nodes[1].peer_id > nodes[0].peer_id)
        said = [{(event.begun_here, event.ending) for event in events} for events in ended]
        assert said[winner] == {(True, "equal")}
        assert said[1 - winner] == {(False, "equal"), (True, f"refused({Refusal.CROSSED.value})")}
        assert len(await made.stored()) == SHARED + 10
        assert not any(node._syncing._scheduled().active for node in nodes)
        assert made.offences == 0
