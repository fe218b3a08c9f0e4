"""Replicas repair themselves: by sync alone, without anybody putting anything again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
import trio
from trio.testing import MockClock

from prime_dht.errors import QueryError, StorageError
from prime_dht.events import SyncFinished
from prime_dht.ids import OpId, PeerId, kad_key, wire_key
from prime_dht.node.core import Node
from prime_dht.node.feed import Subscription
from prime_dht.node.replica import LOAD_AGAIN_S, MAX_UNITS_AHEAD
from prime_dht.node.syncing import MAX_PAUSE_S
from prime_dht.storage.base import EntryQuery, Gone, OpArrays
from prime_dht.storage.memory import MemoryBackend
from prime_dht.testing.storage_samples import make_entry
from prime_dht.testing.swarm import EPOCH_US, Swarm, open_swarm

R = 3
KEYS = [f"key {number}" for number in range(40)]
TTL_S = 6 * 3600.0


async def stores(swarm: Swarm, node: Node, key: str) -> bool:
    query = EntryQuery(key=node._key(key))
    page = await swarm.machine_of(node).disc.get_entries(query, now_us=0)
    return bool(page.entries)


async def holders(swarm: Swarm, key: str) -> set[PeerId]:
    return {node.peer_id for node in swarm.nodes if await stores(swarm, node, key)}


async def missing_at_the_closest(swarm: Swarm) -> list[str]:
    """The keys that one of the running servers that should store them does not."""
    return [key for key in KEYS if not {node.peer_id for node in swarm.closest_to(key, R)} <= await holders(swarm, key)]


async def test_two_nodes_with_different_entries_end_with_the_join(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        (one,) = swarm.nodes
        other = await swarm.start()
        for number, key in enumerate(KEYS):
            await (one, other)[number % 2].put(key, b"value", ttl=TTL_S)
        await one.put("both", b"older", ttl=TTL_S)
        await trio.sleep(1)
        await other.put("both", b"newer", ttl=TTL_S)
        assert [len(await holders(swarm, key)) for key in KEYS] == [1] * len(KEYS)
        await other.add_peer(swarm.address_of(one))
        await trio.sleep(10)
        assert [len(await holders(swarm, key)) for key in KEYS] == [2] * len(KEYS)
        discs = [swarm.machine_of(node).disc for node in (one, other)]
        ops = [await disc.ops(locations=range(1 << 32), created_us=range(1 << 62)) for disc in discs]
        assert ops[0] == ops[1]
        assert len(ops[0]) == len(KEYS) + 2  # each has its own slot under the key of both


async def test_a_joiner_stores_what_it_is_among_the_closest_to_with_nobody_putting_it_again(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=2, size=6) as swarm:
        for number, key in enumerate(KEYS):
            await swarm.nodes[number % 6].put(key, b"value", ttl=TTL_S)
        puts = swarm.world.requests["PutValue"]
        joiner = await swarm.join()
        due = [key for key in KEYS if joiner in swarm.closest_to(key, R)]
        assert len(due) > 10
        await trio.sleep(60)
        assert [key for key in due if not await stores(swarm, joiner, key)] == []
        assert swarm.world.requests["PutValue"] == puts
        for key in KEYS:
            assert await joiner.get(key, latest=True) is not None


async def test_when_all_holders_but_one_are_gone_others_take_their_place(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=3, size=12) as swarm:
        for number, key in enumerate(KEYS):
            await swarm.nodes[number % 12].put(key, b"value", ttl=TTL_S)
        for node in swarm.closest_to(KEYS[0], R - 1):
            await swarm.stop(node)
        assert await missing_at_the_closest(swarm)
        await trio.sleep(3600)
        assert await missing_at_the_closest(swarm) == []


async def test_a_silent_peer_does_not_keep_others_from_being_synced_with(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=4, size=8) as swarm:
        for node in swarm.nodes[1:4]:
            swarm.world.silence(node.peer_id)
        for key in KEYS:
            await swarm.nodes[0].put(key, b"value", ttl=TTL_S)
        joiner = await swarm.join(via=swarm.nodes[0])
        await trio.sleep(300)
        due = [key for key in KEYS if joiner in swarm.closest_to(key, R)]
        assert [key for key in due if not await stores(swarm, joiner, key)] == []


async def test_a_round_shows_that_a_partner_is_there(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=4, size=2) as swarm:
        one, other = swarm.nodes
        await trio.sleep(30)
        clock = swarm.machine_of(one).clock
        before_us = clock.now_us()
        await one.sync(other.peer_id)
        await trio.sleep(0.001)  # for it to be over at the other end as well
        for node in swarm.nodes:
            (partner,) = node.peers()
            assert partner.last_seen_us is not None
            assert before_us < partner.last_seen_us <= clock.now_us()


async def test_a_partner_that_is_gone_is_forgotten_when_a_round_with_it_fails(autojump_clock: MockClock) -> None:
    """So that others take its place; who is only not heard from is asked after minutes."""
    async with open_swarm(seed=4, size=2) as swarm:
        one, other = swarm.nodes
        await trio.sleep(30)
        await swarm.stop(other)
        with pytest.raises(QueryError):
            await one.sync(other.peer_id)
        assert len(one.peers()) == 1  # a round that somebody asked for by hand
        await trio.sleep(180)
        assert not one.peers()


async def test_a_node_has_rounds_with_those_in_its_arc_that_are_not_among_the_nearest_to_it(
    autojump_clock: MockClock,
) -> None:
    """Seven are in one half of the circle and two in the other, so that those seven store all there is."""
    async with open_swarm(seed=12, size=9) as swarm:
        node = swarm.nodes[0]
        others = {other.peer_id for other in swarm.nodes[1:]}
        far = {peer for peer in others if kad_key(peer) >> 255 != node._neighbourhood.local >> 255}
        assert len(far) == 2
        with node.subscribe() as events:
            await trio.sleep(1200)
        assert {event.peer async for event in so_far(events) if event.begun_here} & far


async def so_far(events: Subscription) -> AsyncIterator[SyncFinished]:
    """The rounds that have ended since the subscription began."""
    with trio.move_on_after(0.001):
        async for event in events:
            if isinstance(event, SyncFinished):
                yield event


class Slow(MemoryBackend):
    """A store that takes long to tell what it has."""

    async def scan_ops(self, *, after: bytes = b"", limit: int = 65_536) -> OpArrays:
        await trio.sleep(600)
        return await super().scan_ops(after=after, limit=limit)


async def test_who_is_long_in_reading_its_store_holds_that_against_nobody_and_then_catches_up(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        node = await swarm.start(swarm.machine(disc=Slow()), via=[swarm.nodes[0]])
        await node.bootstrap()
        await trio.sleep(590)
        assert not any(memory.failures for memory in node._syncing._scheduled()._memories.values())
        await trio.sleep(10 + MAX_PAUSE_S * 2)
        holding = (await node.health()).holding
        assert holding is not None
        assert holding.held == holding.sectors


class Forgetful(MemoryBackend):
    """A store that goes back to when it was empty, and says so to whoever changes it next."""

    has_forgotten = False

    async def forget(self) -> None:
        ops = await self.ops(locations=range(1 << 32), created_us=range(1 << 62))
        await super().remove_ops([op.op_id for op in ops])
        self.has_forgotten = True

    async def remove_ops(self, op_ids: Sequence[OpId]) -> list[Gone]:
        if self.has_forgotten:
            self.has_forgotten = False
            raise StorageError("it went back to an earlier state")
        return await super().remove_ops(op_ids)


async def test_what_a_store_lost_that_went_back_to_an_earlier_state_is_fetched_as_soon_as_it_is_known(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        (one,) = swarm.nodes
        disc = Forgetful()
        other = await swarm.start(swarm.machine(disc=disc), via=[one])
        await other.bootstrap()
        for key in KEYS:
            await one.put(key, b"value", ttl=TTL_S)
        await trio.sleep(150)
        await disc.forget()
        with pytest.raises(StorageError, match="earlier state"):
            await other._replica.remove_ops([])
        await trio.sleep(LOAD_AGAIN_S + 5)
        assert [len(await holders(swarm, key)) for key in KEYS] == [2] * len(KEYS)


class Unreadable(MemoryBackend):
    """A store whose ops cannot be read."""

    async def scan_ops(self, *, after: bytes = b"", limit: int = 65_536) -> OpArrays:
        raise StorageError("the disk is gone")


async def why_it_cannot_compare(swarm: Swarm, node: Node) -> list[str]:
    """What those that ask a node for a round with the first of a swarm are told, in time."""
    other = swarm.nodes[0]
    await node.add_peer(swarm.address_of(other))
    said = []
    for compare in (node.sync, node._syncing.holding_of):
        with pytest.raises(QueryError) as raised, trio.fail_after(node.config.operation_timeout_s + 1):
            await compare(other.peer_id)
        said.append(str(raised.value))
    return said


async def test_who_cannot_read_its_store_says_so_when_it_is_to_compare_and_does_not_wait_for_ever(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        node = await swarm.start(swarm.machine(disc=Unreadable()))
        for said in await why_it_cannot_compare(swarm, node):
            assert said == "this node cannot compare what it stores: its store failed: the disk is gone"


async def test_whose_clock_is_behind_says_so_when_it_is_to_compare_and_does_not_wait_for_ever(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        machine = swarm.machine()
        hours_us = [EPOCH_US - hours * 3_600_000_000 for hours in range(MAX_UNITS_AHEAD + 1)]
        entries = [
            make_entry(key=wire_key(str(at_us)), created_at_us=at_us, expires_at_us=EPOCH_US + 3_600_000_000)
            for at_us in hours_us
        ]
        await machine.disc.put_entries(entries, now_us=EPOCH_US)
        machine.clock.set_by_us = -EPOCH_US
        node = await swarm.start(machine)
        for said in await why_it_cannot_compare(swarm, node):
            assert "its clock says 1970-01-01T00:0" in said
        machine.clock.set_by_us = 0
        await trio.sleep(120)
        assert (await node.sync(swarm.nodes[0].peer_id, dry_run=True)).peer == swarm.nodes[0].peer_id
