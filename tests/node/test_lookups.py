"""Lookups whose requests are posted: what is still answered when a lookup is over harms nobody."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.errors import QueryError
from prime_dht.ids import PeerId
from prime_dht.kad.contact import Contact
from prime_dht.net.network import OnOutcome
from prime_dht.node.core import Node
from prime_dht.node.lookup_run import Task
from prime_dht.testing.swarm import open_swarm
from prime_dht.wire.kad import FindNode, PeerRecord, Reply, Request


def hold_posts(node: Node, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Contact, OnOutcome]]:
    """From here on a node's posts are answered by whoever has this list."""
    held: list[tuple[Contact, OnOutcome]] = []

    def post(contact: Contact, _request: Request, then: OnOutcome, *, now_s: float) -> bool:
        held.append((contact, then))
        return True

    monkeypatch.setattr(node._neighbourhood, "post", post)
    return held


async def test_a_reply_that_comes_when_its_lookup_was_cancelled_is_taken_by_nobody(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        node = swarm.nodes[0]
        held = hold_posts(node, monkeypatch)
        taken: list[Contact] = []

        async def rest() -> None:
            raise AssertionError("it was waited for")

        def take(contact: Contact, _reply: Reply) -> Task:
            taken.append(contact)
            return rest

        with trio.move_on_after(0.5):
            await node._explorer.run(node._explorer.lookup(node._neighbourhood.local), FindNode(b"x"), take=take)
        assert held
        for _, then in held:
            then(Reply(replicates=True))
            then(QueryError("lost"))
        assert taken == []


async def test_a_reply_that_comes_when_its_lookup_has_ended_changes_nothing_of_the_result(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        node = swarm.nodes[0]
        held = hold_posts(node, monkeypatch)
        taken: list[Contact] = []

        async def answer_first() -> None:
            await wait_all_tasks_blocked()
            held[0][1](Reply(replicates=True))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_first)
            result = await node._explorer.run(
                node._explorer.lookup(node._neighbourhood.local),
                FindNode(b"x"),
                take=lambda contact, _reply: taken.append(contact),
                until=lambda: bool(taken),
            )
        answered = [contact.peer for contact in result.closest]
        assert answered == [held[0][0].peer]
        for _, then in held[1:]:
            then(Reply(replicates=True))
        assert [contact.peer for contact in taken] == answered
        assert [contact.peer for contact in result.closest] == answered


class CountSpawned(trio.abc.Instrument):
    """Counts the tasks that are started."""

    def __init__(self) -> None:
        self.count = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


async def test_a_lookup_whose_requests_can_all_be_posted_starts_no_task(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        node = swarm.nodes[0]

        def post(_contact: Contact, _request: Request, then: OnOutcome, *, now_s: float) -> bool:
            then(Reply(replicates=True))
            return True

        monkeypatch.setattr(node._neighbourhood, "post", post)
        spawned = CountSpawned()
        trio.lowlevel.add_instrument(spawned)
        result = await node._explorer.run(node._explorer.lookup(node._neighbourhood.local), FindNode(b"x"))
        trio.lowlevel.remove_instrument(spawned)
        assert (len(result.closest), spawned.count) == (5, 0)


async def test_the_rest_of_a_reply_holds_up_no_other_reply_and_counts_when_it_is_done(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        node = swarm.nodes[0]
        held = hold_posts(node, monkeypatch)
        others_answered = trio.Event()
        done: list[Contact] = []

        def take(contact: Contact, _reply: Reply) -> Task | None:
            async def rest() -> None:
                await others_answered.wait()
                done.append(contact)

            return rest if contact is held[0][0] else None

        async def answer_each() -> None:
            answered = 0
            while answered < 5:
                await wait_all_tasks_blocked()
                for _, then in held[answered:]:
                    then(Reply(replicates=True))
                    answered += 1
            others_answered.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_each)
            result = await node._explorer.run(
                node._explorer.lookup(node._neighbourhood.local), FindNode(b"x"), take=take
            )
        assert [contact.peer for contact in done] == [held[0][0].peer]
        assert len(result.closest) == 5


async def test_whoever_named_peers_that_do_not_answer_holds_up_the_next_lookup_for_less_long(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        node, liar = swarm.nodes[0], swarm.nodes[1].peer_id
        invented = [PeerRecord(PeerId(b"\x12\x20" + bytes([number]) * 32)) for number in range(20)]

        def post(contact: Contact, _request: Request, then: OnOutcome, *, now_s: float) -> bool:
            if contact.peer not in {record.peer for record in invented}:
                then(Reply(closer=tuple(invented) if contact.peer == liar else (), replicates=True))
            return True

        monkeypatch.setattr(node._neighbourhood, "post", post)
        monkeypatch.setattr(node._neighbourhood, "failed", lambda *_, **__: None)  # else these are left alone
        took_s = []
        for _ in range(2):
            result = await node._explorer.run(node._explorer.lookup(node._neighbourhood.local), FindNode(b"x"))
            assert len(result.closest) == 5
            took_s.append(result.ended_at_s - result.started_at_s)
        assert took_s == pytest.approx([7.0, 2.0])
