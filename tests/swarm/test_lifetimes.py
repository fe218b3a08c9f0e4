"""Expiry, renewal, events and the cache, over hours of virtual time."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from prime_dht.config import DhtConfig
from prime_dht.entries.entry import Entry
from prime_dht.entries.limits import Limits
from prime_dht.errors import QueryError, ValidationError
from prime_dht.events import EntriesEvicted, EntriesExpired, EntryStored, Event, LookupProgress
from prime_dht.ids import US_PER_S, Key, kad_key, wire_key
from prime_dht.node import keeper
from prime_dht.node.core import Node
from prime_dht.node.feed import QUEUED_EVENTS
from prime_dht.storage.base import EntryQuery
from prime_dht.testing.swarm import EPOCH_US, Swarm, open_swarm


async def held(swarm: Swarm, node: Node, key: bytes = b"/prime/k") -> list[Entry]:
    """What is on a node's disc, expired or not, seen at a time long past so that nothing is hidden."""
    page = await swarm.machine_of(node).disc.get_entries(EntryQuery(key=Key(key), include_expired=True), now_us=0)
    return list(page.entries)


def place_among(swarm: Swarm, key: Key, node: Node) -> int:
    """How many nodes are closer to a key."""
    return sorted(swarm.nodes, key=lambda one: kad_key(one.peer_id) ^ kad_key(key)).index(node)


async def test_a_value_expires_at_every_replica_and_its_header_later(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        reader = await swarm.join_client()
        await swarm.nodes[0].put("k", b"value", ttl=600)
        replicas = swarm.closest_to("k", 3)
        await trio.sleep(590)
        assert await reader.get("k", latest=True) is not None
        await trio.sleep(11)
        assert await reader.get("k", latest=True) is None
        assert len(await reader.get_all("k")) == 0
        await trio.sleep(120)
        for replica in replicas:
            (entry,) = await held(swarm, replica)
            assert entry.value is None, "the value is gone, the header stays until the tick after"
        await trio.sleep(1800)
        for replica in replicas:
            assert await held(swarm, replica) == []


@pytest.mark.parametrize("after_s", [290, 301, 599])
@pytest.mark.parametrize("value", [None, b"new"])
async def test_sync_brings_what_overwrote_an_entry_shortly_before_its_end_to_who_missed_it(
    value: bytes | None, after_s: float, autojump_clock: MockClock
) -> None:
    """A tombstone, or a value that itself lives for seconds: else sync would spread the older value from there."""
    async with open_swarm(seed=1, size=3) as swarm:
        writer, other, missing = swarm.nodes
        began_s = trio.current_time()
        await writer.put("k", b"old", ttl=600)
        await trio.sleep_until(began_s + after_s)
        swarm.world.partition([writer.peer_id, other.peer_id], [missing.peer_id])
        written = await (writer.delete("k") if value is None else writer.put("k", value, ttl=20))
        swarm.world.heal()
        await missing.add_peer(swarm.address_of(other))
        await missing.sync(other.peer_id)
        assert [entry.op_id for entry in await held(swarm, missing)] == [written.op_id]


async def test_who_starts_with_a_clock_that_is_ahead_for_a_moment_loses_nothing(autojump_clock: MockClock) -> None:
    """As some machines do, until they are told the time over the network."""
    async with open_swarm(seed=1, size=1) as swarm:
        await swarm.nodes[0].put("k", b"value", ttl=3600)
        machine = await swarm.stop(swarm.nodes[0])
        machine.clock.set_by_us = 9 * 3600 * US_PER_S
        node = await swarm.start(machine)
        await trio.sleep(20)
        machine.clock.set_by_us = 0
        await trio.sleep(150)
        assert await node.get("k") is not None
        assert (await node.put("k", b"newer", ttl=3600)).acknowledged


async def test_cleanup_expired_drops_now_and_says_what(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        (node,) = swarm.nodes
        for number in range(5):
            await node.put(f"key {number}", b"value", ttl=10)
        with node.subscribe() as events:
            await trio.sleep(11)
            expired = await node.cleanup_expired()
            assert (expired.values_dropped, expired.retired) == (5, ())
            assert await anext(events) == EntriesExpired(values_dropped=5, retired=0)
        assert await node.cleanup_expired() == type(expired)()


async def test_an_entry_may_end_at_a_time(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        (node,) = swarm.nodes
        end_s = EPOCH_US / 1e6 + 500
        receipt = await node.put("k", b"value", expires_at=end_s)
        assert receipt.expires_at_us == EPOCH_US + 500_000_000
        await trio.sleep(501 - trio.current_time())
        assert await node.get("k") is None
        with pytest.raises(ValidationError, match="not both"):
            await node.put("k", b"value", expires_at=end_s + 60, ttl=5.0)
        with pytest.raises(ValidationError, match="later than it is created"):
            await node.put("k", b"value", expires_at=end_s)


async def test_keep_renews_before_expiry_until_the_entry_is_deleted(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        writer = await swarm.join_client()
        reader = await swarm.join_client()
        first = await writer.put("k", b"value", ttl=60, keep=True)
        created_at_us = first.created_at_us
        for _ in range(30):
            await trio.sleep(20)
            found = await reader.get("k", latest=True)
            assert found is not None
            assert found.value == b"value"
            created_at_us = found.created_at_us
        assert created_at_us - first.created_at_us >= 540 * 1_000_000
        renewals = swarm.network_of(writer).sent["PutValue"] // 3
        assert 14 <= renewals <= 17, "two thirds into each life, in ten minutes"
        await writer.delete("k")
        sent = swarm.network_of(writer).sent["PutValue"]
        await trio.sleep(600)
        assert await reader.get("k", latest=True) is None
        assert swarm.network_of(writer).sent["PutValue"] == sent


@pytest.mark.parametrize("is_client", [True, False])
async def test_what_is_kept_is_renewed_though_the_clock_was_a_day_ahead_for_a_while(
    is_client: bool, autojump_clock: MockClock
) -> None:
    """What was due then was refused by all others, or stored by this node alone, with a date of tomorrow."""
    async with open_swarm(seed=1, size=6) as swarm:
        reader = await swarm.join_client()
        writer = await swarm.join_client() if is_client else swarm.closest_to("k", 1)[0]
        await writer.put("k", b"value", ttl=1800, keep=True)
        clock = swarm.machine_of(writer).clock
        clock.set_by_us = 86_400 * 1_000_000
        await trio.sleep(300)
        clock.set_by_us = 0
        for _ in range(12):
            await trio.sleep(600)
            others = await reader.get_all("k")
            assert [found.value for found in others] == [b"value"]


async def test_a_newer_put_is_not_undone_by_the_renewal_of_an_older_one(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        node = swarm.nodes[0]
        await node.put("k", b"kept", ttl=60, keep=True)
        await node.put("k", b"newer", ttl=3600)
        await trio.sleep(300)
        found = await node.get("k", latest=True)
        assert found is not None
        assert found.value == b"newer"
        await node.put("k", b"kept again", ttl=60, keep=True)
        await node.put_many({"k": b"of many"}, ttl=3600)
        await trio.sleep(300)
        found = await node.get("k", latest=True)
        assert found is not None
        assert found.value == b"of many"


@pytest.mark.parametrize("at_s", [39.9, 40.0, 40.01, 40.05, 40.1])
async def test_a_put_or_delete_that_races_a_renewal_wins(at_s: float, autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        writer = await swarm.join_client()
        began_s = trio.current_time()
        await writer.put("k", b"kept", ttl=60, keep=True)
        await writer.put("l", b"kept", ttl=60, keep=True)
        await trio.sleep_until(began_s + at_s)
        await writer.put("k", b"newer", ttl=3600)
        await writer.delete("l")
        await trio.sleep(600)
        found = await writer.get("k", latest=True)
        assert found is not None
        assert found.value == b"newer"
        assert await writer.get("l", latest=True) is None


@pytest.mark.parametrize("newer", ["put", "put_many", "delete", None])
async def test_what_is_written_while_a_put_waits_for_its_replicas_is_not_undone_by_keeping_that(
    newer: str | None, autojump_clock: MockClock
) -> None:
    async with open_swarm(seed=1, size=5) as swarm, trio.open_nursery() as nursery:
        node = swarm.nodes[0]
        slow = next(replica for replica in swarm.closest_to("k", 3) if replica is not node)
        swarm.world.silence(slow.peer_id)
        nursery.start_soon(partial(node.put, "k", b"kept", ttl=600, keep=True))
        await trio.sleep(1)
        match newer:
            case "put":
                await node.put("k", b"newer", ttl=3600)
            case "put_many":
                await node.put_many({"k": b"newer"}, ttl=3600)
            case "delete":
                await node.delete("k")
        swarm.world.unsilence(slow.peer_id)
        await trio.sleep(1200)
        found = await swarm.nodes[4].get("k", latest=True)
        said = None if found is None else found.value
        assert said == {None: b"kept", "delete": None}.get(newer, b"newer")


async def test_what_is_being_put_to_be_kept_has_a_place_until_it_is_given_up(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "MAX_KEPT", 1)
    async with open_swarm(seed=1, size=1) as swarm:
        (server,), client = list(swarm.nodes), await swarm.join_client()
        swarm.world.silence(server.peer_id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(client.put, "k", b"value", ttl=60, keep=True))
            await trio.sleep(1)
            with pytest.raises(ValidationError, match="at most 1 entries"):
                await client.put("l", b"value", ttl=60, keep=True)
            nursery.cancel_scope.cancel()
        swarm.world.unsilence(server.peer_id)
        await client.add_peer(swarm.address_of(server))
        await client.put("l", b"value", ttl=60, keep=True)
        await trio.sleep(600)
        assert await client.get("l", latest=True) is not None


async def test_a_renewal_that_fails_is_made_good_before_the_entry_expires(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        writer = await swarm.join_client()
        reader = await swarm.join_client()
        await writer.put("k", b"value", ttl=300, keep=True)
        swarm.world.silence(swarm.nodes[0].peer_id)
        await trio.sleep(230)
        swarm.world.unsilence(swarm.nodes[0].peer_id)
        await trio.sleep(100)
        found = await reader.get("k", latest=True)
        assert found is not None
        assert found.expires_at_us > EPOCH_US + 400_000_000


async def test_many_kept_entries_are_renewed_in_time_over_a_slow_network(autojump_clock: MockClock) -> None:
    """A hundred that are due at one time, each of them a round trip, within the twenty seconds left of their lives."""
    async with open_swarm(seed=1, size=5, round_trip_s=0.3) as swarm:
        writer = await swarm.join_client()
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(partial(writer.put, f"key {number}", b"value", ttl=60, keep=True))
        await trio.sleep(62)
        for number in range(100):
            assert await writer.get(f"key {number}", latest=True) is not None


async def test_what_cannot_be_renewed_cannot_be_kept(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        with pytest.raises(ValidationError, match="nothing to renew"):
            await swarm.nodes[0].put("k", b"", expires_at=EPOCH_US / 1e6 + 500, keep=True)
        assert await swarm.nodes[0].get("k") is None


async def test_events_tell_of_entries_and_lookups(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        one, other = swarm.nodes
        seen: list[Event] = []
        with other.subscribe() as events:
            receipt = await one.put("k", b"value", subkey=b"s")
            await other.find_closest("k")
            await swarm.stop(other)
            with trio.fail_after(60):
                seen = [event async for event in events]
        stored = [event for event in seen if isinstance(event, EntryStored)]
        assert [(event.key, event.subkey, event.op_id, event.tombstone) for event in stored] == [
            (b"/prime/k", b"s", receipt.op_id, False)
        ]
        (progress,) = [event for event in seen if isinstance(event, LookupProgress)]
        assert progress.peer == one.peer_id
        assert 0 < progress.elapsed_s < 1


async def test_a_slow_subscriber_loses_events_which_are_counted_and_its_node_is_unhealthy_as_long_as_it_subscribes(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        (node,) = swarm.nodes
        with node.subscribe() as slow:
            for number in range(QUEUED_EVENTS + 7):
                await node.put("k", b"%d" % number)
            assert slow.dropped == 7
            assert (await node.health()).warnings[-1] == "7 events were lost to subscribers that fell behind"
        assert not any("lost" in warning for warning in (await node.health()).warnings)
        assert (await node.stats()).events_dropped == 7


async def test_a_recent_answer_may_come_from_the_cache_and_latest_never_does(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        reader = await swarm.join_client()
        writer = await swarm.join_client()
        await writer.put("k", b"1")
        assert (found := await reader.get("k")) is not None
        assert found.answered == 2
        await writer.put("k", b"2")
        assert (found := await reader.get("k")) is not None
        assert (found.value, found.answered) == (b"1", 0)
        assert (found := await reader.get("k", quorum=1)) is not None
        assert found.value == b"2", "who asks for a quorum asks the replicas"
        assert (found := await reader.get("k")) is not None
        assert found.value == b"2", "what was remembered is known to be over"
        await writer.put("k", b"3")
        assert (found := await reader.get("k", latest=True)) is not None
        assert found.value == b"3"
        await writer.put("k", b"4")
        await trio.sleep(5)
        assert (found := await reader.get("k")) is not None
        assert found.value == b"4", "after cache_ttl_s it is asked for again"
        assert (await reader.stats()).cache_hits == 1


async def test_who_has_seen_that_a_value_is_deleted_does_not_see_it_again(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        reader, writer = await swarm.join_client(), await swarm.join_client()
        await writer.put("k", b"value")
        assert await reader.get("k") is not None
        await writer.delete("k")
        assert await reader.get("k", latest=True) is None
        assert await reader.get("k") is None


async def test_an_answer_of_fewer_replicas_than_the_quorum_is_for_who_asked_for_it_alone(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=8) as swarm:
        nearest, *others = swarm.closest_to("k", 8)
        writer, reader = others[-2:]
        await writer.put("k", b"old")
        swarm.world.partition([nearest.peer_id], [node.peer_id for node in others])
        assert (await writer.put("k", b"new")).acknowledged
        swarm.world.heal()
        found = [await reader.get("k", quorum=1), await reader.get("k"), await reader.get("k")]
        assert [(one.value, one.answered) for one in found if one] == [(b"old", 1), (b"new", 2), (b"new", 0)]


async def test_an_own_put_is_read_at_once_though_an_older_answer_was_on_its_way(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        node = await swarm.join_client()
        await node.put("k", b"old")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.get, "k")
            await trio.sleep(0.01)
            await node.put("k", b"new")
        assert (found := await node.get("k")) is not None
        assert found.value == b"new"
        await node.delete("k")
        assert await node.get("k") is None


async def test_a_cached_answer_ends_with_its_entry(autojump_clock: MockClock) -> None:
    config = DhtConfig(cache_ttl_s=3600.0)
    async with open_swarm(seed=1, size=3, config=config) as swarm:
        await swarm.nodes[0].put("k", b"value", ttl=60)
        assert await swarm.nodes[1].get("k") is not None
        await trio.sleep(61)
        assert await swarm.nodes[1].get("k") is None


async def test_short_lived_entries_are_put_and_read_as_usual(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        for beat in range(5):
            await swarm.nodes[0].put("heartbeat", b"%d" % beat, ttl=2)
            found = await swarm.nodes[1].get("heartbeat", latest=True)
            assert found is not None
            assert found.value == b"%d" % beat
            await trio.sleep(1)
        await trio.sleep(2)
        assert await swarm.nodes[1].get("heartbeat", latest=True) is None


async def test_a_full_store_evicts_what_lies_furthest_from_its_node_and_says_so(autojump_clock: MockClock) -> None:
    config = DhtConfig(limits=Limits(max_store_entries=10), replication_factor=1, refresh_interval=60.0)
    async with open_swarm(seed=1, size=40, config=config) as swarm:
        node, writers = swarm.nodes[0], swarm.nodes[1:]
        disc, place = swarm.machine_of(node).disc, kad_key(node.peer_id)
        await trio.sleep(300)  # by then the store knows the node's arc
        with node.subscribe() as events:
            everything = [wire_key(f"k{number}") for number in range(60)]
            for number, key in enumerate(everything):
                with suppress(QueryError):  # the last ones lie too far from every node
                    await writers[number % 30].put(key, b"value", replication=12)
            offered = [key for key in everything if place_among(swarm, key, node) < 12]
            await swarm.stop(node)
            evicted = [event.op_ids async for event in events if isinstance(event, EntriesEvicted)]
        assert evicted
        assert set(await disc.keys()) == set(sorted(offered, key=lambda key: kad_key(key) ^ place)[:10])
