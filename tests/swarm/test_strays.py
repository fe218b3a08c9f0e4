"""What nodes store outside their arcs comes to those who should have it, and is dropped only then."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from prime_dht.config import DhtConfig, Mode
from prime_dht.entries.entry import Entry
from prime_dht.events import EntriesHandedOn
from prime_dht.ids import OpId, wire_key
from prime_dht.node import handing_on, strays
from prime_dht.node.batches import BATCH_ENTRIES
from prime_dht.node.core import Node
from prime_dht.node.maintenance import HAND_ON_EVERY_S
from prime_dht.partition.arcs import ArcSet
from prime_dht.storage.base import EntryQuery, Gone
from prime_dht.storage.capacity import location_of
from prime_dht.testing.hostile_rounds import signed_entries
from prime_dht.testing.memory_network import Lie
from prime_dht.testing.swarm import Machine, Swarm, open_swarm
from prime_dht.wire.kad import PutValue, Request, decode_reply, encode_reply

R = 3
TTL_S = 12 * 3600.0
REFRESH_S = 600.0
CONFIG = DhtConfig(k_bucket_size=8, refresh_interval=REFRESH_S)
PASS_S = 1.2 * HAND_ON_EVERY_S + 5
"""Within this time each node begins a pass, and ends it if it has few strays."""


async def stored_on(machine: Machine, key: str) -> Entry | None:
    page = await machine.disc.get_entries(EntryQuery(key=wire_key(key)), now_us=0)
    return page.entries[0] if page.entries else None


async def holders(swarm: Swarm, key: str) -> set[Node]:
    return {node for node in swarm.nodes if await stored_on(swarm.machine_of(node), key) is not None}


def is_outside(node: Node, key: str) -> bool:
    return not node._syncing._held.arc.covers(location_of(wire_key(key)))


class Misplaced:
    """A swarm in which one node alone stores an entry, which lies outside its arc: somebody put it by a stale table.

    Attributes:
        replicas: those who should have it.
    """

    def __init__(self, swarm: Swarm, holder: Node, key: str, entry: Entry) -> None:
        self.swarm = swarm
        self.holder = holder
        self.key = key
        self.entry = entry
        self.replicas = swarm.closest_to(key, R)

    async def is_kept(self) -> bool:
        return await stored_on(self.swarm.machine_of(self.holder), self.key) == self.entry

    async def has_arrived(self) -> bool:
        """Whether the replicas that run have it, to the byte, and its first holder has dropped it."""
        running = self.swarm.closest_to(self.key, R)
        stored = [await stored_on(self.swarm.machine_of(node), self.key) for node in running]
        return stored == [self.entry] * R and not await self.is_kept()


@asynccontextmanager
async def misplaced() -> AsyncIterator[Misplaced]:
    async with open_swarm(seed=5, size=12, config=CONFIG) as swarm:
        await trio.sleep(10)
        holder = swarm.nodes[4]
        key = next(key for key in (f"key {number}" for number in range(100)) if is_outside(holder, key))
        receipt = await holder.put(key, b"value", ttl=TTL_S)
        entry = await stored_on(swarm.machine_of(swarm.closest_to(key, 1)[0]), key)
        assert entry is not None
        for node in swarm.nodes:
            await node._replica.remove_ops([receipt.op_id])
        await holder._replica.put_entries([entry], now_us=swarm.machine_of(holder).clock.now_us())
        assert await holders(swarm, key) == {holder}
        yield Misplaced(swarm, holder, key, entry)


async def test_what_was_put_by_a_stale_table_comes_to_its_replicas_as_it_is_and_is_dropped(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Also what the node published itself, as here."""
    caplog.set_level(logging.INFO)
    async with misplaced() as case:
        with case.holder.subscribe() as events:
            await trio.sleep(PASS_S)
        assert await case.has_arrived()
        told = [event async for event in events if isinstance(event, EntriesHandedOn)]
        assert told == [EntriesHandedOn(dropped=1, kept=0)]
        assert "handed 1 entries on to their replicas and dropped them" in caplog.text
        assert case.holder._replica.partition is not None
        puts = case.swarm.world.requests["PutValue"]
        await trio.sleep(10 * PASS_S)
        assert case.swarm.world.requests["PutValue"] == puts


async def test_what_a_replica_has_no_room_for_stays_until_it_has(autojump_clock: MockClock) -> None:
    async with misplaced() as case:
        capacity = case.swarm.machine_of(case.replicas[0]).disc.capacity
        capacity.limits = replace(CONFIG.limits, max_store_bytes=1)
        await trio.sleep(10 * PASS_S)
        assert await case.is_kept()
        assert await holders(case.swarm, case.key) >= set(case.replicas[1:])
        capacity.limits = CONFIG.limits
        await trio.sleep(30 * 60)
        assert await case.has_arrived()


def acknowledge_nothing(request: Request, answer: bytes) -> bytes:
    if not isinstance(request, PutValue):
        return answer
    return encode_reply(request, decode_reply(request, answer)._replace(statuses=()))


def say_that_it_is_no_replica(request: Request, answer: bytes) -> bytes:
    if not isinstance(request, PutValue):
        return answer
    return encode_reply(request, decode_reply(request, answer)._replace(replicates=False))


@pytest.mark.parametrize("lie", [acknowledge_nothing, say_that_it_is_no_replica])
async def test_what_is_not_acknowledged_as_by_a_replica_stays(lie: Lie, autojump_clock: MockClock) -> None:
    async with misplaced() as case:
        case.swarm.world.lie(case.replicas[1].peer_id, lie)
        await trio.sleep(3 * PASS_S)
        assert await holders(case.swarm, case.key) >= {case.holder, *case.replicas}


async def test_what_the_arc_grows_by_while_it_is_given_away_stays(autojump_clock: MockClock) -> None:
    async with misplaced() as case:
        held = case.holder._syncing._held

        def answer_late(request: Request, answer: bytes) -> bytes:
            if isinstance(request, PutValue):
                held.arc = ArcSet.full(sector_bits=CONFIG.sector_bits)
            return answer

        case.swarm.world.lie(case.replicas[0].peer_id, answer_late)
        await trio.sleep(PASS_S)
        assert await holders(case.swarm, case.key) >= {case.holder, *case.replicas}


async def strays_of(case: Misplaced) -> int:
    """Have the holder store some batches of what lies outside its arc; how many entries that are, with the first."""
    now_us = case.swarm.machine_of(case.holder).clock.now_us()
    arc = case.holder._syncing._held.arc
    made = [one for one in signed_entries(400, now_us=now_us) if not arc.covers(location_of(one.header.key))]
    assert len(made) > 2 * BATCH_ENTRIES
    await case.holder._replica.put_entries(made, now_us=now_us)
    return len(made) + 1


async def handed_on(case: Misplaced) -> EntriesHandedOn:
    """What came of the holder's next pass."""
    with case.holder.subscribe() as events:
        await trio.sleep(2 * PASS_S)
    told, *_ = [event async for event in events if isinstance(event, EntriesHandedOn)]
    return told


async def test_between_batches_puts_and_gets_have_their_turn(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause_s = 5.0
    monkeypatch.setattr(handing_on, "PAUSE_S", pause_s)
    async with misplaced() as case:
        count, put_at_s = await strays_of(case), list[float]()

        def note(request: Request, answer: bytes) -> bytes:
            if isinstance(request, PutValue):
                put_at_s.append(trio.current_time())
            return answer

        for node in case.swarm.nodes:
            case.swarm.world.lie(node.peer_id, note)
        assert await handed_on(case) == EntriesHandedOn(dropped=count, kept=0)
        assert max(put_at_s) - min(put_at_s) > count // BATCH_ENTRIES * pause_s


async def test_a_pass_ends_where_hardly_anybody_takes_anything(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strays, "MAX_PASSED_OVER", R)
    async with misplaced() as case:
        count = await strays_of(case)
        for node in case.swarm.nodes:
            case.swarm.world.lie(node.peer_id, acknowledge_nothing)
        told = await handed_on(case)
        assert told.dropped == 0
        assert 0 < told.kept < count


async def test_where_a_replica_does_not_answer_it_stays_until_the_next_closest_has_it(
    autojump_clock: MockClock,
) -> None:
    async with misplaced() as case:
        silent = case.replicas[0]
        case.swarm.world.silence(silent.peer_id)
        await trio.sleep(30 * 60)
        assert not await case.is_kept()
        assert len(await holders(case.swarm, case.key) - {silent}) >= R


async def test_who_dies_between_the_acknowledgements_and_the_drop_hands_it_on_once_more(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(op_ids: Sequence[OpId]) -> list[Gone]:
        await trio.sleep_forever()
        raise AssertionError

    async with misplaced() as case:
        monkeypatch.setattr(case.holder._replica, "remove_ops", die)
        await trio.sleep(PASS_S)
        assert await holders(case.swarm, case.key) >= {case.holder, *case.replicas}
        machine = await case.swarm.stop(case.holder)
        await case.swarm.start(machine, via=[case.swarm.nodes[0]])
        await trio.sleep(60 + PASS_S)
        assert await case.has_arrived()


async def test_a_node_that_is_a_client_now_drops_nothing(autojump_clock: MockClock) -> None:
    async with misplaced() as case:
        machine = await case.swarm.stop(case.holder)
        client = await case.swarm.start(machine, via=[case.swarm.nodes[0]], config=replace(CONFIG, mode=Mode.CLIENT))
        await client.bootstrap()
        await trio.sleep(3 * PASS_S)
        assert await case.is_kept()


async def test_after_a_swarm_has_tripled_each_entry_is_on_its_closest_and_old_holders_have_dropped_theirs(
    autojump_clock: MockClock,
) -> None:
    keys = [f"key {number}" for number in range(40)]
    async with open_swarm(seed=1, size=8, config=CONFIG) as swarm:
        for number, key in enumerate(keys):
            await swarm.nodes[number % 8].put(key, b"value", ttl=TTL_S)
        for _ in range(16):
            await swarm.join()
        await trio.sleep(REFRESH_S + 2 * PASS_S)
        for key in keys:
            found_at = await holders(swarm, key)
            assert set(swarm.closest_to(key, R)) <= found_at
            assert [node for node in found_at if is_outside(node, key)] == []
        for number, key in enumerate(keys):
            found = await swarm.nodes[number % 24].get(key, latest=True)
            assert found is not None
            assert found.value == b"value"
