"""What becomes of a node when its machine sleeps, its address changes or its clock jumps: it recovers by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from multiaddr import Multiaddr
from trio.testing import MockClock

from prime_dht.config import DhtConfig
from prime_dht.errors import QueryError
from prime_dht.ids import KAD_KEY_BITS, US_PER_S, PeerId, TimestampUs, kad_key
from prime_dht.net.address_book import BookSettings
from prime_dht.node import maintenance
from prime_dht.node.core import Node
from prime_dht.node.maintenance import REJOIN_WANTED_S, REMEMBER_EVERY_S, SETTLE_AFTER_S
from prime_dht.node.replica import LOOK_EVERY_S
from prime_dht.node.syncing import MAX_PAUSE_S
from prime_dht.storage.base import KnownPeer
from prime_dht.testing.swarm import Swarm, open_swarm

HOUR_S = 3600


def known(node: Node) -> set[PeerId]:
    return {status.peer for status in node.peers()}


def all_know_all(swarm: Swarm) -> bool:
    everybody = {node.peer_id for node in swarm.nodes}
    return all(known(node) == everybody - {node.peer_id} for node in swarm.nodes)


async def share_held(node: Node) -> float:
    """How much of its arc a node holds."""
    holding = (await node.health()).holding
    assert holding is not None
    return holding.held / holding.sectors


async def test_a_machine_that_slept_for_hours_is_back_minutes_after_it_wakes(autojump_clock: MockClock) -> None:
    """Also the first of the swarm, whom nobody told of a bootstrap peer: it remembers those it knew."""
    for sleeper in (0, 3):
        async with open_swarm(seed=1, size=6) as swarm:
            node = swarm.nodes[sleeper]
            await node.put("k", b"value")
            await trio.sleep(2 * REMEMBER_EVERY_S)
            swarm.world.silence(node.peer_id)
            await trio.sleep(3 * HOUR_S)
            assert known(node) == set()
            assert all(node.peer_id not in known(other) for other in swarm.nodes)
            swarm.world.unsilence(node.peer_id)
            await trio.sleep(180)
            assert all_know_all(swarm)
            assert await node.get("k", latest=True) is not None


async def test_a_node_that_dies_moments_after_it_joined_remembers_whom_it_met(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        node = await swarm.join()
        await trio.sleep(4 * SETTLE_AFTER_S)
        remembered = await swarm.machine_of(node).disc.peers(limit=100)
        assert {one.peer for one in remembered} == known(node)
        assert len(remembered) == 6


async def test_who_wakes_asks_its_peers_so_that_those_who_missed_it_meet_it_again(autojump_clock: MockClock) -> None:
    """Its own clock stood still, so it missed nobody: it is its calendar that tells."""
    async with open_swarm(seed=1, size=6) as swarm:
        node = swarm.nodes[3]
        await trio.sleep(120)
        for other in swarm.nodes:
            if other is not node:
                other._neighbourhood.failed(node.peer_id, "it slept")
        swarm.machine_of(node).clock.set_by_us += 8 * HOUR_S * US_PER_S
        await trio.sleep(120)
        assert all_know_all(swarm)


async def test_a_client_that_was_cut_off_for_long_is_back_as_soon_as_its_owner_wants_something(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        await swarm.nodes[0].put("k", b"value")
        client = await swarm.join_client()
        others = [node.peer_id for node in swarm.nodes if node is not client]
        swarm.world.partition(others, [client.peer_id])
        while client.peers():
            with pytest.raises(QueryError):
                await client.get("k", latest=True)
            await trio.sleep(1)
        await trio.sleep(1200)
        network = swarm.network_of(client)
        asked = network.sent.total()
        for _ in range(1000):
            with pytest.raises(QueryError):
                await client.get("k", latest=True)
            await trio.sleep(0.1)
        assert network.sent.total() - asked <= 100 / REJOIN_WANTED_S * len(others), "wanting much is no reason to hurry"
        asked = network.sent.total()
        while network.sent.total() == asked:  # noqa: ASYNC110 - until it tries by itself, which it does each minute
            await trio.sleep(1)
        await trio.sleep(client.config.rpc_timeout_s + REJOIN_WANTED_S)
        swarm.world.heal()
        with pytest.raises(QueryError):
            await client.get("k", latest=True)
        await trio.sleep(1)
        assert await client.get("k", latest=True) is not None


async def test_while_servers_are_restarted_one_after_the_other_a_client_s_puts_are_acknowledged(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        servers = list(swarm.nodes)
        client = await swarm.join_client()
        for number, server in enumerate(servers):
            machine = await swarm.stop(server)
            receipt = await client.put(f"{number} without one", b"value")
            assert receipt.acknowledged
            await trio.sleep(2)
            await swarm.start(machine, via=[other for other in servers if other is not server])
            await trio.sleep(5)
            receipt = await client.put(f"{number} with all", b"value")
            assert receipt.acknowledged
            assert len(receipt.stored_by) >= 3
        for number in range(len(servers)):
            assert await client.get(f"{number} without one", latest=True) is not None


async def test_a_node_whose_address_changes_is_known_at_the_new_one_minutes_later(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        node, other = swarm.nodes[2], swarm.nodes[4]
        await trio.sleep(120)
        swarm.world.move(node.peer_id)
        await trio.sleep(240)
        assert all_know_all(swarm)
        for each in swarm.nodes:
            each_network = swarm.network_of(each)
            if each is not node:
                assert swarm.world.address_of(node.peer_id) in each_network.addresses_of(node.peer_id)
        newcomer = await swarm.join(via=other)
        await newcomer.find_closest("k")
        assert node.peer_id in known(newcomer)
        assert len((await newcomer.put("k", b"value", replication=7)).stored_by) == 7


async def test_nodes_restarted_on_other_ports_in_turn_know_each_other_a_moment_later(autojump_clock: MockClock) -> None:
    """Nobody failed to reach them where they were: that they dialled tells."""
    async with open_swarm(seed=1, size=3) as swarm:
        first = swarm.nodes[0]
        for node in swarm.nodes[1:]:
            await first.put("k", b"before")  # it has just heard from them
            machine = await swarm.stop(node)
            swarm.world.move(machine.peer)
            await swarm.start(machine)
        await trio.sleep(8)
        assert all_know_all(swarm)
        for node in swarm.nodes:
            for other in swarm.nodes:
                here = swarm.world.address_of(other.peer_id)
                assert node is other or swarm.network_of(node).addresses_of(other.peer_id)[0] == here
        client = await swarm.join_client(via=first)
        assert len((await client.put("k", b"value")).stored_by) == 3
        await swarm.stop(first)
        reader = await swarm.join_client(via=swarm.nodes[0])
        found = await reader.get("k")
        assert found is not None
        assert found.value == b"value"


async def test_a_node_that_nobody_can_reach_where_it_was_is_found_when_somebody_asks_for_it(
    autojump_clock: MockClock,
) -> None:
    """At once: whoever fails to reach it leaves it out, and it is heard from at its next check."""
    async with open_swarm(seed=1, size=6) as swarm:
        node = swarm.nodes[2]
        await trio.sleep(120)
        swarm.world.move(node.peer_id)
        for other in swarm.nodes:
            await other.put(f"key of {other.peer_id.hex()}", b"value")
        await trio.sleep(240)
        assert all_know_all(swarm)


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
async def test_a_clock_that_jumps_an_hour_and_is_set_right_again_costs_a_node_nothing(
    jump_s: int, autojump_clock: MockClock
) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        node, other = swarm.nodes[2], swarm.nodes[4]
        await node.put("k", b"before")
        clock = swarm.machine_of(node).clock
        clock.set_by_us += jump_s * US_PER_S
        await trio.sleep(2 * REMEMBER_EVERY_S)
        assert all_know_all(swarm)
        assert (await other.put("another's", b"value")).acknowledged
        clock.set_by_us -= jump_s * US_PER_S
        await trio.sleep(2 * REMEMBER_EVERY_S)
        assert all_know_all(swarm)
        assert (await node.put("new", b"after")).acknowledged
        for key, value in (("k", b"before"), ("another's", b"value"), ("new", b"after")):
            for reader in (node, other):
                found = await reader.get(key, latest=True)
                assert found is not None
                assert found.value == value


@pytest.mark.parametrize("jump_s", [6 * HOUR_S, -6 * HOUR_S])
async def test_whose_clock_is_wrong_speaks_for_nothing_and_soon_for_everything_when_it_is_right_again(
    jump_s: int, autojump_clock: MockClock
) -> None:
    """What others have retires there too early, or is not taken: its finding nothing is no absence."""
    async with open_swarm(seed=1, size=6) as swarm:
        node = swarm.nodes[2]
        clock = swarm.machine_of(node).clock
        await trio.sleep(REMEMBER_EVERY_S)
        assert await share_held(node) == 1.0
        clock.set_by_us += jump_s * US_PER_S
        await trio.sleep(2 * LOOK_EVERY_S)
        assert await share_held(node) == 0.0
        await trio.sleep(4 * HOUR_S)
        assert await share_held(node) == 0.0
        clock.set_by_us -= jump_s * US_PER_S
        await trio.sleep(2 * LOOK_EVERY_S + MAX_PAUSE_S)
        assert await share_held(node) == 1.0


@pytest.mark.parametrize("distance", [5, 0])
async def test_a_put_by_a_clock_an_hour_fast_is_refused_with_the_reason_and_does_not_hold_up_its_slot(
    distance: int, autojump_clock: MockClock
) -> None:
    """Of a node that is no replica of the key, and of one that has stored what the others refused."""
    async with open_swarm(seed=1, size=6) as swarm:
        node = swarm.closest_to("k", 6)[distance]
        clock = swarm.machine_of(node).clock
        clock.set_by_us += HOUR_S * US_PER_S
        if distance:
            with pytest.raises(QueryError, match="dated too far in the future"):
                await node.put("k", b"of the future")
        else:
            refused = await node.put("k", b"of the future")
            assert not refused.acknowledged
            assert {why for _, why in refused.refused} == {"dated too far in the future"}
        clock.set_by_us -= HOUR_S * US_PER_S
        for value in (b"now", b"again"):
            (receipt,) = await node.put_many({"k": value})
            assert receipt.acknowledged
            for reader in (node, swarm.closest_to("k", 6)[4]):
                found = await reader.get("k", latest=True)
                assert found is not None
                assert found.value == value
        assert (await node.delete("k")).acknowledged
        assert await swarm.closest_to("k", 6)[4].get("k", latest=True) is None
        last = await node.put("k", b"last")
        clock.set_by_us -= US_PER_S
        assert (await node.put("k", b"and back a little")).created_at_us == last.created_at_us + 1


async def test_a_clock_that_is_set_back_an_hour_costs_no_slot_its_order(autojump_clock: MockClock) -> None:
    """The entry is dated ahead for the writer alone: the others take it, so it is not signed once more."""
    async with open_swarm(seed=1, size=6) as swarm:
        node = swarm.closest_to("k", 6)[5]
        last = await node.put("k", b"value")
        swarm.machine_of(node).clock.set_by_us -= HOUR_S * US_PER_S
        for receipt in (await node.put("k", b"next"), *await node.put_many({"k": b"and next"})):
            assert receipt.acknowledged
            assert not receipt.superseded
            assert receipt.created_at_us == last.created_at_us + 1
            last = receipt


async def test_peers_that_were_not_heard_from_for_long_are_forgotten(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert maintenance.FORGET_AFTER_S == 7 * 86_400
    monkeypatch.setattr(maintenance, "FORGET_AFTER_S", 6.0 * HOUR_S)
    async with open_swarm(seed=1, size=3) as swarm:
        node, gone = swarm.nodes[0], swarm.nodes[1]
        disc = swarm.machine_of(node).disc
        await trio.sleep(2 * REMEMBER_EVERY_S)
        await swarm.stop(gone)
        await trio.sleep(5 * HOUR_S)
        assert gone.peer_id in {peer.peer for peer in await disc.peers()}
        await trio.sleep(2 * HOUR_S)
        assert gone.peer_id not in {peer.peer for peer in await disc.peers()}
        assert swarm.nodes[1].peer_id in {peer.peer for peer in await disc.peers()}


async def test_a_peer_is_remembered_with_when_it_was_first_and_last_heard_from(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        node, other = swarm.nodes
        (met,) = node.peers()
        assert met.source == "identify", "the other came to it"
        await trio.sleep(2 * HOUR_S)
        (status,) = node.peers()
        assert met.first_seen_us == status.first_seen_us
        assert met.last_seen_us is not None
        assert status.last_seen_us is not None
        assert status.last_seen_us > met.last_seen_us
        machine = await swarm.stop(node)
        (kept,) = await machine.disc.peers()
        assert (kept.first_seen_us, kept.source) == (met.first_seen_us, met.source)
        await trio.sleep(HOUR_S)
        node = await swarm.start(machine)
        await node.bootstrap()
        (again,) = node.peers()
        assert again.first_seen_us == met.first_seen_us
        assert (again.source, again.peer) == (met.source, other.peer_id)


async def test_what_a_peer_says_of_itself_is_not_undone_by_what_is_remembered_of_it(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        node, other = swarm.nodes
        network, disc = swarm.network_of(node), swarm.machine_of(node).disc
        await trio.sleep(2 * REMEMBER_EVERY_S)
        (kept,) = await disc.peers()
        assert kept.source == "identify"
        before = Multiaddr("/ip4/9.9.9.9/tcp/9").to_bytes()
        await disc.put_peers([replace(kept, addresses=(before,))])
        (at_hand,) = network.addresses_of(other.peer_id)
        await node.bootstrap()
        assert network.addresses_of(other.peer_id) == (at_hand, before)


async def test_a_name_that_others_told_of_does_not_come_back_as_the_word_of_whoever_named_the_peer_first(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        node, other = swarm.nodes
        network, disc = swarm.network_of(other), swarm.machine_of(other).disc
        ip, hearsay, own = (
            Multiaddr(f"/{host}/tcp/9").to_bytes() for host in ("ip4/9.9.9.9", "dns4/theirs.example", "dns4/box.lan")
        )
        network.learn_addresses(node.peer_id, (ip, hearsay), source="kad")
        network.learn_addresses(node.peer_id, (own,), source="manual")
        assert hearsay in network.addresses_of(node.peer_id)
        await trio.sleep(2 * REMEMBER_EVERY_S)
        (kept,) = await disc.peers()
        assert kept.source == "bootstrap"
        assert {ip, own} <= set(kept.addresses)
        assert hearsay not in kept.addresses


async def test_who_is_remembered_and_would_get_no_place_is_not_asked_each_minute(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=12, config=DhtConfig(k_bucket_size=3)) as swarm:
        node = swarm.nodes[0]
        machines = iter(swarm.machine, None)
        machine = next(one for one in machines if (kad_key(one.peer) ^ kad_key(node.peer_id)) >> (KAD_KEY_BITS - 1))
        newcomer = await swarm.start(machine)
        address, now_us = swarm.world.address_of(newcomer.peer_id), machine.clock.now_us()
        remembered = KnownPeer(
            peer=newcomer.peer_id, addresses=(address,), source="kad", first_seen_us=now_us, last_seen_us=now_us
        )
        await swarm.machine_of(node).disc.put_peers([remembered])
        await trio.sleep(HOUR_S / 4)
        assert known(newcomer) == set()


async def test_who_was_told_of_more_peers_than_it_notes_still_goes_where_its_owner_said(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1) as swarm:
        machine = swarm.machine()
        node = await swarm.start(via=[machine.peer])
        await trio.sleep(3)
        network = swarm.network_of(node)
        for number in range(BookSettings().max_peers + 1):
            other = PeerId(b"\x12\x20" + number.to_bytes(32, "big"))
            network.learn_addresses(other, [swarm.world.address_of(node.peer_id)], source="kad")
        assert not network.addresses_of(machine.peer)
        await swarm.start(machine)
        await trio.sleep(120)
        assert [status.peer for status in node.peers()] == [machine.peer]


async def test_those_seen_while_the_clock_was_ahead_keep_nobody_from_being_remembered(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "REMEMBERED_PEERS", 3)
    async with open_swarm(seed=1) as swarm:
        machine = swarm.machine()
        ahead_us = TimestampUs(machine.clock.now_us() + 24 * HOUR_S * US_PER_S)
        dead = [PeerId(b"\x00\x02%02d" % number) for number in range(3)]
        await machine.disc.put_peers(
            [
                KnownPeer(
                    peer=peer,
                    addresses=(swarm.world.address_of(peer),),
                    source="kad",
                    first_seen_us=ahead_us,
                    last_seen_us=ahead_us,
                )
                for peer in dead
            ]
        )
        others = [await swarm.start() for _ in range(3)]
        node = await swarm.start(machine, via=others)
        await node.bootstrap()
        await trio.sleep(2 * REMEMBER_EVERY_S)
        assert {one.peer for one in await machine.disc.peers(limit=100)} == known(node)
