"""Join order, restarts and half the nodes dying change nothing but latency."""

from __future__ import annotations

from random import Random

import pytest
import trio
from trio.testing import MockClock

from prime_dht.config import DhtConfig
from prime_dht.errors import QueryError
from prime_dht.ids import wire_key
from prime_dht.testing.swarm import open_swarm
from prime_dht.wire.kad import Request, decode_reply, encode_reply


async def test_with_half_the_nodes_dead_whatever_has_a_live_replica_is_read(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=3, size=20) as swarm:
        keys = [f"key {number}" for number in range(60)]
        for key in keys:
            await swarm.nodes[0].put(key, key.encode())
        for node in Random(3).sample(swarm.nodes, 12):
            await swarm.stop(node)
        # Sync has given some keys more replicas than they were put to.
        left = {key for node in swarm.nodes for key in await swarm.machine_of(node).disc.keys()}
        readable = [key for key in keys if wire_key(key) in left]
        assert len(readable) < len(keys), "with these seeds some lost all replicas"
        for reader in (swarm.nodes[0], swarm.nodes[-1]):
            for key in readable:
                found = await reader.get(key, latest=True)
                assert found is not None
                assert found.value == key.encode()
            doubted = 0
            for key in set(keys) - set(readable):
                try:
                    assert await reader.get(key, latest=True) is None
                except QueryError:  # most of its replicas do not answer: so it cannot tell
                    doubted += 1
            assert doubted > 0


@pytest.mark.parametrize("silent", [False, True])
async def test_with_half_the_nodes_dead_puts_go_to_the_closest_that_live(
    silent: bool, autojump_clock: MockClock
) -> None:
    """Whether the dead refuse a dial or answer nothing at all."""
    async with open_swarm(seed=3, size=20) as swarm:
        for node in Random(3).sample(swarm.nodes, 10):
            if silent:
                swarm.world.silence(node.peer_id)
                swarm.nodes.remove(node)
            else:
                await swarm.stop(node)
        for number, writer in enumerate(swarm.nodes):
            receipt = await writer.put(f"key {number}", b"value")
            closest = {server.peer_id for server in swarm.closest_to(f"key {number}", 3)}
            assert set(receipt.stored_by) == closest
            assert receipt.acknowledged


async def test_a_silent_replica_costs_gets_a_step_and_one_put_its_deadline(
    autojump_clock: MockClock,
) -> None:
    config = DhtConfig(rpc_timeout_s=10.0)
    async with open_swarm(seed=1, size=20, config=config) as swarm:
        client = await swarm.join_client()
        await client.put("k", b"value")
        swarm.world.silence(swarm.closest_to("k", 1)[0].peer_id)

        began_s = trio.current_time()
        assert await client.get("k", latest=True) is not None
        assert trio.current_time() - began_s < 0.5

        began_s = trio.current_time()
        receipt = await client.put("k", b"again")
        assert len(receipt.stored_by) == 3
        assert len(receipt.failed) == 1
        assert 10.0 <= trio.current_time() - began_s < 11.0

        began_s = trio.current_time()
        assert len((await client.put("k", b"again")).stored_by) == 3
        assert trio.current_time() - began_s < 1.0


async def test_a_replica_that_hangs_costs_one_get_of_what_is_not_there_its_deadline(autojump_clock: MockClock) -> None:
    config = DhtConfig(rpc_timeout_s=10.0)
    async with open_swarm(seed=3, size=6, config=config) as swarm:
        client = await swarm.join_client()
        (hanging,) = swarm.closest_to("absent 0", 1)
        swarm.world.silence(hanging.peer_id)
        absent = [key for key in map("absent {}".format, range(40)) if hanging in swarm.closest_to(key, 3)]
        assert await client.get(absent[0]) is None
        for key in absent[1:10]:
            began_s = trio.current_time()
            assert await client.get(key) is None
            assert trio.current_time() - began_s < 3.0


async def test_a_lookup_waits_three_seconds_for_the_silent_not_ten(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=40) as swarm:
        for node in swarm.nodes[10:14]:
            swarm.world.silence(node.peer_id)
        began_s = trio.current_time()
        result = await swarm.nodes[5].find_closest("k")
        assert len(result.closest) == 20
        assert trio.current_time() - began_s < 5.0

        began_s = trio.current_time()
        assert (await swarm.nodes[5].find_closest("k")).closest == result.closest
        assert trio.current_time() - began_s < 1.0, "the silent are known now"


async def test_nodes_that_restart_have_what_they_stored_and_are_found_again(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=2, size=5) as swarm:
        keys = [f"key {number}" for number in range(20)]
        for key in keys:
            await swarm.nodes[0].put(key, key.encode())
        machines = [await swarm.stop(node) for node in list(swarm.nodes)]
        first = await swarm.start(machines[0])
        for machine in machines[1:]:
            node = await swarm.start(machine, via=[first])
            await node.bootstrap()
        reader = await swarm.join_client()
        for key in keys:
            found = await reader.get(key)
            assert found is not None
            assert found.value == key.encode()


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_the_order_of_joining_changes_nothing(seed: int, autojump_clock: MockClock) -> None:
    """Each node joins through any that is there already; afterwards all place a key alike."""
    rng = Random(seed)
    async with open_swarm(seed=seed, size=1) as swarm:
        for _ in range(29):
            await swarm.join(via=rng.choice(swarm.nodes))
        for number in range(10):
            receipt = await rng.choice(swarm.nodes).put(f"key {number}", b"value")
            closest = {server.peer_id for server in swarm.closest_to(f"key {number}", 3)}
            assert set(receipt.stored_by) == closest
            assert await rng.choice(swarm.nodes).get(f"key {number}", latest=True) is not None


async def test_thirty_nodes_that_start_at_once_find_each_other(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        for _ in range(29):
            await swarm.start(via=[swarm.nodes[0]])
        async with trio.open_nursery() as nursery:
            for node in swarm.nodes[1:]:
                nursery.start_soon(node.bootstrap)
        await trio.sleep(1)
        for number in range(10):
            receipt = await swarm.nodes[number].put(f"key {number}", b"value")
            assert set(receipt.stored_by) == {server.peer_id for server in swarm.closest_to(f"key {number}", 3)}


async def test_whoever_is_cut_off_is_told_so_and_not_that_nothing_is_there(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        client = await swarm.join_client()
        await client.put("k", b"value")
        swarm.world.partition([node.peer_id for node in swarm.nodes if node is not client], [client.peer_id])
        with pytest.raises(QueryError):
            await client.get("k", latest=True)
        with pytest.raises(QueryError):
            await client.put("k", b"value")


async def test_a_put_that_is_cut_off_half_way_is_not_acknowledged(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        writer = swarm.closest_to("k", 1)[0]
        swarm.world.partition([node.peer_id for node in swarm.nodes if node is not writer], [writer.peer_id])
        receipt = await writer.put("k", b"value")
        assert receipt.stored_by == (writer.peer_id,)
        assert not receipt.acknowledged
        assert receipt.warning == "stored by 1 of 3 replicas"


async def test_a_read_brings_the_replica_that_missed_a_put_up_to_date(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        writer = swarm.closest_to("k", 4)[-1]
        missing = swarm.closest_to("k", 1)[0]
        swarm.world.silence(missing.peer_id)
        await writer.put("k", b"value")
        swarm.world.unsilence(missing.peer_id)
        await writer.add_peer(swarm.address_of(missing))
        disc = swarm.machine_of(missing).disc
        assert await disc.keys() == []
        assert await writer.get("k", quorum=3, latest=True) is not None
        await trio.sleep(1)
        assert await disc.keys() == [b"/prime/k"]


async def test_a_read_repairs_the_one_that_is_behind_and_nobody_else(autojump_clock: MockClock) -> None:
    """Who was asked for the newest entry had no reason to send older ones; that is not to lack them."""
    async with open_swarm(seed=1, size=3) as swarm:
        behind = swarm.nodes[1]
        client, one, other = [await swarm.join_client() for _ in range(3)]
        await one.put("k", b"older, of one publisher")
        await trio.sleep(1)
        swarm.world.silence(behind.peer_id)
        await other.put("k", b"newer, of another")
        swarm.world.unsilence(behind.peer_id)
        await client.add_peer(swarm.address_of(behind))
        before = swarm.world.requests.copy()
        assert await client.get("k", quorum=3, latest=True) is not None
        await trio.sleep(5)
        del swarm.world.requests["FindNode"]  # chores
        assert swarm.world.requests - before == {"GetValue": 3, "PutValue": 1}
        before = swarm.world.requests.copy()
        await client.get("k", quorum=3, latest=True)
        await client.get_all("k")
        await trio.sleep(5)
        del swarm.world.requests["FindNode"]
        assert set(swarm.world.requests - before) == {"GetValue"}


async def test_when_all_replicas_are_dead_the_writer_that_is_next_in_line_stores_itself(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        writer = swarm.closest_to("k", 4)[3]
        for replica in swarm.closest_to("k", 3):
            await swarm.stop(replica)
        receipt = await writer.put("k", b"value")
        assert receipt.stored_by == (writer.peer_id,)
        assert len(receipt.failed) == 3


async def test_who_holds_a_key_and_is_next_in_line_has_it_when_all_replicas_are_dead(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=3, size=4) as swarm:
        reader = swarm.closest_to("k", 4)[3]
        await swarm.nodes[0].put("k", b"value", replication=4)
        for replica in swarm.closest_to("k", 3):
            await swarm.stop(replica)
        found = await reader.get("k", latest=True)
        assert found is not None
        assert found.value == b"value"


async def test_a_replica_that_is_cut_off_does_not_take_its_own_word_for_absence(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        replica = swarm.closest_to("nobody's", 1)[0]
        swarm.world.silence(replica.peer_id)
        with pytest.raises(QueryError, match="2 of the 3 closest did not answer"):
            await replica.get("nobody's")


async def test_what_was_put_before_others_joined_is_found_though_they_are_closer(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        keys = [f"key {number}" for number in range(50)]
        await swarm.nodes[0].put_many({key: key.encode() for key in keys})
        for _ in range(15):
            await swarm.join()
        reader = swarm.nodes[-1]
        assert all(found and found.value for found in (await reader.get_many(keys)).values())
        for key in keys:
            assert await reader.get(key, latest=True) is not None


@pytest.mark.parametrize("cut_s", [430.0, 4 * 3600.0])
async def test_the_halves_of_a_network_that_was_cut_find_each_other_again_within_minutes(
    cut_s: float, autojump_clock: MockClock
) -> None:
    async with open_swarm(seed=1, size=10) as swarm:
        left, right = swarm.nodes[:5], swarm.nodes[5:]
        swarm.world.partition([node.peer_id for node in left], [node.peer_id for node in right])
        await trio.sleep(cut_s)
        for half in (left, right):
            for node in half:
                assert {status.peer for status in node.peers()} <= {other.peer_id for other in half}
        swarm.world.heal()
        await trio.sleep(180)
        receipt = await left[0].put("k", b"value")
        assert set(receipt.stored_by) == {server.peer_id for server in swarm.closest_to("k", 3)}
        assert all([await node.get("k", latest=True) for node in swarm.nodes])


async def test_who_reaches_one_of_three_is_sure_of_nothing_until_nobody_names_the_others(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        first, *others = swarm.nodes
        for node in others:
            await swarm.stop(node)
        client = await swarm.join_client(via=first)
        receipt = await client.put("k", b"value")
        assert (len(receipt.stored_by), receipt.needed, receipt.acknowledged) == (1, 2, False)
        with pytest.raises(QueryError, match="too few replicas to tell: 2 of the 3 closest did not answer"):
            await client.get("absent")
        with pytest.raises(QueryError, match="too few servers answered"):
            await client.get_many(["absent"])
        await trio.sleep(600)
        assert await client.get("absent") is None
        receipt = await client.put("k", b"value again")
        assert (len(receipt.stored_by), receipt.needed, receipt.acknowledged) == (1, 1, True)


async def test_a_server_that_is_lost_in_the_middle_of_a_put_counts_once(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        node, lost = swarm.nodes[:2]
        swarm.world.silence(lost.peer_id)
        receipt = await node.put("k", b"value", replication=10)
        assert (len(receipt.stored_by), receipt.needed, receipt.acknowledged) == (3, 4, False)
        receipt = await node.put("k", b"value", replication=10)
        assert (len(receipt.stored_by), receipt.needed) == (3, 4), "and for a moment after it"


async def test_peers_of_classical_kademlia_are_not_missed_as_replicas_when_they_fail(autojump_clock: MockClock) -> None:
    def classical(request: Request, answer: bytes) -> bytes:
        reply = decode_reply(request, answer)
        return encode_reply(request, reply._replace(replicates=False, statuses=(), held=False))

    async with open_swarm(seed=1, size=1) as swarm:
        (node,) = swarm.nodes
        for _ in range(4):
            machine = swarm.machine()
            swarm.world.lie(machine.peer, classical)
            foreign = await swarm.start(machine, via=[node])
            await foreign.bootstrap()
        assert len(node.peers()) == 4
        for lost in node.peers()[:3]:
            swarm.world.silence(lost.peer)
        receipt = await node.put("k", b"value")
        assert (len(receipt.stored_by), receipt.needed, receipt.acknowledged) == (1, 1, True)
        assert len(node.peers()) == 1
        assert await node.get("absent") is None
        assert await node.get_many(["absent"]) == {wire_key("absent"): None}
