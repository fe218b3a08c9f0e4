"""Who gets to know whom: joining, the routing table's guests, and those that are not let in."""

from __future__ import annotations

import math
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from prime_dht.config import DhtConfig, Mode
from prime_dht.errors import LocalProtocolError, QueryError, ValidationError
from prime_dht.events import PeerJoined, PeerLeft
from prime_dht.ids import PeerId, kad_key
from prime_dht.node import strangers
from prime_dht.node.core import Node
from prime_dht.node.maintenance import ALONE_AFTER_S, REJOIN_AT_MOST_S, REMEMBER_EVERY_S
from prime_dht.node.neighbourhood import PROBE_AGAIN_S
from prime_dht.testing.memory_network import MemoryNetwork
from prime_dht.testing.swarm import Machine, Swarm, open_swarm
from prime_dht.wire.kad import FindNode, Reply, Request


def known(node: Node) -> set[PeerId]:
    return {status.peer for status in node.peers()}


@pytest.mark.parametrize("size", [*range(2, 11), 15, 20])
async def test_after_bootstrap_two_to_twenty_nodes_all_know_each_other(size: int, autojump_clock: MockClock) -> None:
    """Scenario 13."""
    async with open_swarm(seed=size, size=size) as swarm:
        await trio.sleep(1)
        everybody = {node.peer_id for node in swarm.nodes}
        for node in swarm.nodes:
            assert known(node) == everybody - {node.peer_id}


async def test_a_node_whose_bootstrap_peer_is_down_keeps_trying_and_joins_when_it_appears(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_swarm(seed=1) as swarm:
        machine = swarm.machine()
        node = await swarm.start(via=[machine.peer])
        with pytest.raises(QueryError, match="no bootstrap peer answers"):
            await node.bootstrap()
        await trio.sleep(3600)
        sent = swarm.network_of(node).sent.total()
        assert 50 < sent < 70, "ever less often, but about once a minute"
        said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(said) == 6, "the first, and then ever less often"
        assert said[0].startswith("not joined: no bootstrap peer answers: ")
        assert said[0].endswith("refused; trying again in 1 s, then ever less often")
        await swarm.start(machine)
        await trio.sleep(120)
        assert known(node) == {machine.peer}


async def test_a_node_that_its_owner_has_join_between_two_tries_of_its_own_settles_as_well(
    autojump_clock: MockClock,
) -> None:
    """Until it has, its arc shrinks at once whenever somebody comes."""
    async with open_swarm(seed=1) as swarm:
        machine = swarm.machine()
        node = await swarm.start(via=[machine.peer])
        await trio.sleep(20)
        await swarm.start(machine)
        assert await node.bootstrap() == 1
        await trio.sleep(60)
        assert node._neighbourhood.own_arc.has_settled


async def test_a_node_that_has_been_alone_for_long_joins_whom_it_finds_at_once(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        node = await swarm.start()
        await trio.sleep(3600)
        found = swarm.nodes[3].peer_id
        node.peer_found(found, [swarm.world.address_of(found)], source="mdns")
        await trio.sleep(3)
        assert known(node) == {other.peer_id for other in swarm.nodes} - {node.peer_id}
        assert {status.peer: status.source for status in node.peers()}[found] == "mdns"


async def test_a_node_that_lost_everybody_joins_again(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        first, second = swarm.nodes
        machine = await swarm.stop(first)
        await second.put("k", b"")
        assert known(second) == set()
        await swarm.start(machine)
        await trio.sleep(400)
        assert known(second) == {first.peer_id}


async def test_a_node_that_restarts_joins_through_the_peers_it_remembers(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        first, last = swarm.nodes[0], swarm.nodes[-1]
        machine = await swarm.stop(last)
        await swarm.stop(first)
        node = await swarm.start(machine, via=[first.peer_id])
        assert await node.bootstrap() == 3


async def come_back_alone(swarm: Swarm) -> tuple[Node, Machine]:
    """The first of two comes back; and who has not, whom it remembers."""
    first, last = swarm.nodes
    await trio.sleep(2 * REMEMBER_EVERY_S)
    gone = await swarm.stop(last)
    return await swarm.start(await swarm.stop(first)), gone


async def test_who_comes_back_alone_knows_that_others_may_hold_what_it_does_not(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        node, gone = await come_back_alone(swarm)
        assert await node.bootstrap() == 0
        with pytest.raises(QueryError, match="not joined"):
            await node.get("k")
        assert not (await node.put("k", b"old")).acknowledged
        await trio.sleep(ALONE_AFTER_S / 2)
        await swarm.start(gone)
        await trio.sleep(120)
        assert (await node.put("k", b"new")).acknowledged
        found = await node.get("k", latest=True)
        assert found is not None
        assert found.value == b"new"
    said = [record.getMessage() for record in caplog.records if "not joined" in record.getMessage()]
    assert said[0].startswith("not joined: no remembered peer answers: ")


async def test_who_comes_back_alone_and_stays_alone_goes_on_as_the_first(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        node, _ = await come_back_alone(swarm)
        await trio.sleep(ALONE_AFTER_S - 1)
        assert not (await node.put("k", b"value")).acknowledged
        await trio.sleep(2 * REJOIN_AT_MOST_S)
        assert (await node.put("k", b"value")).acknowledged
        assert await node.get("other") is None


async def says(node: Node, key: str) -> str:
    """What a node answers of a key, which is its value if it has one."""
    try:
        found = await node.get(key, latest=True)
    except QueryError:
        return "cannot tell"
    return "nothing" if found is None else "value"


async def test_a_server_that_is_cut_off_does_not_say_that_there_is_nothing_nor_acknowledge_puts_alone(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=5, size=14) as swarm:
        keys = [f"key {number}" for number in range(30)]
        await swarm.nodes[0].put_many(dict.fromkeys(keys, b"value"), ttl=86400)
        await trio.sleep(120)
        node = swarm.nodes[7]
        swarm.world.partition([other.peer_id for other in swarm.nodes if other is not node], [node.peer_id])
        for wait_s in (1, 60, 60, 2 * ALONE_AFTER_S):
            await trio.sleep(wait_s)
            assert {await says(node, key) for key in keys} == {"value", "cannot tell"}
            assert None not in (await node.get_many(keys)).values()
            assert not (await node.put("new", b"value")).acknowledged
        swarm.world.heal()
        await trio.sleep(180)
        assert {await says(node, key) for key in keys} == {"value"}
        assert await says(node, "nobody's") == "nothing"
        assert (await node.put("new", b"value")).acknowledged


@pytest.mark.parametrize("place", [0, 1])
async def test_who_is_left_of_two_goes_on_alone_after_five_minutes_unless_the_other_comes_back(
    place: int, autojump_clock: MockClock
) -> None:
    """The first, which nobody gave a peer to join through, and the one that joined through it."""
    for comes_back in (False, True):
        async with open_swarm(seed=1, size=2) as swarm:
            node, other = swarm.nodes[place], swarm.nodes[1 - place]
            await node.put("k", b"value")
            await trio.sleep(30)
            gone = await swarm.stop(other)
            assert not (await node.put("k", b"newer")).acknowledged
            await trio.sleep(ALONE_AFTER_S - 1)
            assert not (await node.put("k", b"newer")).acknowledged
            assert await says(node, "k") == "value"
            assert await says(node, "nobody's") == "cannot tell"
            if comes_back:
                await swarm.start(gone, via=[node])
            await trio.sleep(2 * REJOIN_AT_MOST_S)
            assert (await node.put("k", b"newest")).acknowledged
            assert await says(node, "nobody's") == "nothing"
            assert len(known(node)) == comes_back


async def test_who_loses_the_last_peer_for_a_moment_has_joined_again_seconds_later(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        await trio.sleep(30)
        first, second = swarm.nodes
        second._neighbourhood.failed(first.peer_id, "slow")
        assert not (await second.put("k", b"value")).acknowledged
        await trio.sleep(1)
        assert await says(second, "nobody's") == "nothing"
        assert (await second.put("k", b"value")).acknowledged


async def test_who_was_joined_for_a_moment_only_is_missed_as_well(autojump_clock: MockClock) -> None:
    """Nobody has been remembered yet."""
    async with open_swarm(seed=1, size=1) as swarm:
        (node,) = swarm.nodes
        await swarm.stop(await swarm.join())
        assert not (await node.put("k", b"value")).acknowledged
        await trio.sleep(ALONE_AFTER_S - 1)
        assert not (await node.put("k", b"value")).acknowledged
        await trio.sleep(2 * REJOIN_AT_MOST_S)
        assert (await node.put("k", b"value")).acknowledged


async def test_who_joins_through_a_peer_that_is_gone_a_moment_later_has_not_joined(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1) as swarm, trio.open_nursery() as nursery:
        asked: list[Request] = []

        async def answer_once(_peer: PeerId, request: Request) -> Reply:
            asked.append(request)
            if len(asked) > 1:
                await trio.sleep_forever()
            return Reply(replicates=True)

        network = swarm.world.network(swarm.machine().peer, answer_once)
        await nursery.start(network.run)
        network.mount(as_server=True)
        node = await swarm.start(via=[network.local])
        with pytest.raises(QueryError, match="no bootstrap peer answers"):
            await node.bootstrap()
        assert await says(node, "k") == "cannot tell"
        assert not (await node.put("k", b"value")).acknowledged
        nursery.cancel_scope.cancel()


async def test_who_hears_from_the_last_peer_that_it_lost_joins_again_at_once(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        node, other = swarm.nodes
        await trio.sleep(30)
        gone = await swarm.stop(other)
        await node.put("k", b"value")
        await trio.sleep(ALONE_AFTER_S - 60)
        assert not node._neighbourhood.has_looked_around
        await swarm.start(gone, via=[node])
        await trio.sleep(5)
        assert node._neighbourhood.has_looked_around


async def test_a_client_whose_remembered_peers_are_silent_says_so(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        client = await swarm.join_client()
        await trio.sleep(2 * REMEMBER_EVERY_S)
        for node in swarm.nodes[:3]:
            await swarm.stop(node)
        back = await swarm.start(await swarm.stop(client), config=DhtConfig(mode=Mode.CLIENT))
        with pytest.raises(QueryError, match="no remembered peer answers"):
            await back.bootstrap()


async def test_two_calls_of_bootstrap_are_one_join(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=10) as swarm:
        node = await swarm.start(via=[swarm.nodes[0]])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.bootstrap)
            nursery.start_soon(node.bootstrap)
        assert swarm.network_of(node).sent == {"FindNode": 1 + 10}, "it met the first and looked up itself, once"


async def test_a_silent_bootstrap_peer_holds_up_no_join(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        silent = await swarm.join()
        swarm.world.silence(silent.peer_id)
        node = await swarm.start(via=[silent, swarm.nodes[0]])
        began_s = trio.current_time()
        await node.bootstrap()
        assert trio.current_time() - began_s < 8.0
        assert len(known(node)) == 5


async def test_a_client_is_in_nobodys_table_though_it_asks_all_the_time(autojump_clock: MockClock) -> None:
    """Scenario 23."""
    async with open_swarm(seed=1, size=5) as swarm:
        dialable = await swarm.start(swarm.machine(), via=[swarm.nodes[0]], config=DhtConfig(mode=Mode.CLIENT))
        hidden = await swarm.join_client()
        for client in (dialable, hidden):
            await client.bootstrap()
            for number in range(20):
                await client.put(f"key {number}", b"")
        await trio.sleep(600)
        for node in swarm.nodes[:5]:
            assert known(node) == {other.peer_id for other in swarm.nodes[:5]} - {node.peer_id}


async def test_a_peer_that_turns_to_client_mode_on_a_live_connection_leaves_the_tables(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        turned = swarm.nodes[2]
        network = swarm.network_of(turned)
        network.unmount()
        await trio.sleep(2 * 3600)
        assert network.is_running
        for node in swarm.nodes[:2]:
            assert turned.peer_id not in known(node)


async def test_a_disconnect_does_not_evict_and_a_failed_query_does(autojump_clock: MockClock) -> None:
    """Scenario 33."""
    async with open_swarm(seed=1, size=3) as swarm:
        node, peer = swarm.nodes[:2]
        network = swarm.network_of(node)
        with node.subscribe() as events:
            network.disconnect(peer.peer_id)
            swarm.network_of(peer).disconnect(node.peer_id)
            await trio.sleep(1)
            assert peer.peer_id in known(node)
            assert not network.is_connected(peer.peer_id)
            await node.find_closest("k")
            assert network.is_connected(peer.peer_id)
            await swarm.stop(peer)
            await node.find_closest("k")
        assert peer.peer_id not in known(node)
        left = [event for event in [one async for one in events] if isinstance(event, PeerLeft)]
        assert [event.peer for event in left] == [peer.peer_id]


async def start_stranger(swarm: Swarm, *, hangs: bool, nursery: trio.Nursery) -> MemoryNetwork:
    """A peer that is no node: it hangs, or answers every request with nothing."""

    async def answer(_peer: PeerId, _request: Request) -> Reply:
        if hangs:
            await trio.sleep_forever()
        return Reply()

    network = swarm.world.network(swarm.machine().peer, answer)
    await nursery.start(network.run)
    network.mount(as_server=True)
    return network


@pytest.mark.parametrize("hangs", [True, False])
async def test_hanging_and_empty_servers_are_not_admitted(hangs: bool, autojump_clock: MockClock) -> None:
    """Scenario 32."""
    async with open_swarm(seed=1, size=3) as swarm, trio.open_nursery() as nursery:
        network = await start_stranger(swarm, hangs=hangs, nursery=nursery)
        for node in swarm.nodes:
            network.learn_addresses(node.peer_id, [swarm.world.address_of(node.peer_id)], source="test")
            await network.call(node.peer_id, FindNode(network.local), timeout_s=5)
        await trio.sleep(300)
        for node in swarm.nodes:
            assert network.local not in known(node)
        nursery.cancel_scope.cancel()


async def test_a_stranger_that_fails_its_probe_is_not_probed_at_each_request(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm, trio.open_nursery() as nursery:
        (node,) = swarm.nodes
        stranger = await start_stranger(swarm, hangs=False, nursery=nursery)
        stranger.learn_addresses(node.peer_id, [swarm.world.address_of(node.peer_id)], source="test")
        for _ in range(100):
            await stranger.call(node.peer_id, FindNode(stranger.local), timeout_s=5)
        assert swarm.network_of(node).sent.total() == 1
        await trio.sleep(PROBE_AGAIN_S)
        await stranger.call(node.peer_id, FindNode(stranger.local), timeout_s=5)
        await trio.sleep(1)
        assert swarm.network_of(node).sent.total() == 2
        nursery.cancel_scope.cancel()


async def test_whoever_could_have_no_place_is_not_probed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers, "LOOK_AT_MOST_S", math.inf)
    monkeypatch.setattr(strangers, "UNVOUCHED_TIMES", math.inf)
    config = DhtConfig(k_bucket_size=2, alpha=2, replication_factor=2)
    async with open_swarm(seed=1, size=30, config=config) as swarm:
        await trio.sleep(120)
        asker = swarm.nodes[-1]  # the places in far buckets went to those who came first
        tables = {node: node._neighbourhood.table for node in swarm.nodes[:-1]}
        full = [
            node
            for node, table in tables.items()
            if table.get(asker.peer_id) is None and not table.has_room(kad_key(asker.peer_id))
        ]
        assert len(full) > 5
        sent = [swarm.network_of(node).sent.total() for node in full]
        for node in full:
            await asker.add_peer(swarm.address_of(node))
        await trio.sleep(1)
        assert [swarm.network_of(node).sent.total() for node in full] == sent


async def test_a_flood_of_strangers_makes_a_bounded_number_of_probes(autojump_clock: MockClock) -> None:
    """However many hang, sixteen are probed at a time, five seconds each, and an honest newcomer gets in."""
    async with open_swarm(seed=1, size=2) as swarm, trio.open_nursery() as nursery:
        node = swarm.nodes[0]
        before = swarm.network_of(node).sent.total()
        for _ in range(100):
            stranger = await start_stranger(swarm, hangs=True, nursery=nursery)
            stranger.learn_addresses(node.peer_id, [swarm.world.address_of(node.peer_id)], source="test")
            nursery.start_soon(partial(stranger.call, node.peer_id, FindNode(stranger.local), timeout_s=60))
        await trio.sleep(4)
        assert swarm.network_of(node).sent.total() - before == 16
        newcomer = await swarm.start(via=[swarm.nodes[1]])
        await newcomer.bootstrap()
        await trio.sleep(60)
        assert newcomer.peer_id in known(node)
        nursery.cancel_scope.cancel()


async def test_add_peer_takes_in_a_peer_by_its_address(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1) as swarm:
        one, other = await swarm.start(), await swarm.start()
        with one.subscribe() as events:
            assert await one.add_peer(swarm.address_of(other)) == other.peer_id
            event = await anext(events)
        assert event == PeerJoined(peer=other.peer_id, addresses=(swarm.address_of(other).split("/p2p/")[0],))
        assert [status.source for status in one.peers()] == ["manual"]
        await trio.sleep(1)
        assert known(other) == {one.peer_id}
        gone = swarm.machine()
        with pytest.raises(QueryError, match="refused"):
            await one.add_peer(swarm.address_of(gone.peer))
        for wrong in ("", "/ip4/10.0.0.1/tcp/1", "no address/p2p/nobody"):
            with pytest.raises(ValidationError):
                await one.add_peer(wrong)


async def test_a_node_is_used_while_it_runs_and_runs_once(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        (node,) = swarm.nodes
        with pytest.raises(LocalProtocolError, match="runs once"):
            async with node:
                pass
        await swarm.stop(node)
        for use in (
            node.put("k", b""),
            node.get("k"),
            node.delete("k"),
            node.bootstrap(),
            node.find_peer(node.peer_id),
        ):
            with pytest.raises(LocalProtocolError, match="not running"):
                await use
        with pytest.raises(LocalProtocolError, match="not running"):
            node.provide(b"\x12\x20" + bytes(32))
        with pytest.raises(LocalProtocolError, match="runs once"):
            async with node:
                pass


async def test_health_tells_of_peers_keys_buckets_and_the_arc(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=20) as swarm:
        await trio.sleep(1)
        node = swarm.nodes[0]
        await node.put("k", b"value", replication=20)
        health = await node.health()
        assert (health.mode, health.peers, health.keys, health.entries, health.healthy) == ("server", 19, 1, 1, True)
        assert sum(health.bucket_sizes) == 19
        assert health.target_arc is not None
        assert health.target_arc.first <= node._neighbourhood.local <= health.target_arc.last
        stats = await node.stats()
        assert stats.entries_stored == 1
        assert stats.requests_answered["FindNode"] > 0
        assert stats.offences == 0


async def test_a_node_that_has_not_joined_yet_takes_nothing_for_absent_nor_speaks_for_its_sectors(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        await swarm.nodes[0].put("k", b"value")
        late = swarm.machine()
        swarm.world.partition((), [late.peer])
        node = await swarm.start(late, via=[swarm.nodes[0]])
        with pytest.raises(QueryError, match="not joined"):
            await node.get("k")
        with pytest.raises(QueryError):
            await node.get_many(["k"])
        assert not node._reader._server.holds(node._key("k"))
        await node.put("own", b"value")
        assert await node.get("own") is not None
        swarm.world.heal()
        await trio.sleep(120)
        assert await node.get("k") is not None
