"""Which connections are closed because nobody uses them, and that nobody misses them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from random import Random
from typing import Any

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from trio.testing import MockClock

from prime_dht import DhtConfig, NodeConfig, PrimeDHT
from prime_dht.errors import ConfigError
from prime_dht.ids import PeerId
from prime_dht.net.hardening.parts import parts_of
from prime_dht.net.host import HostSettings, open_host
from prime_dht.net.identity import new_identity
from prime_dht.net.overlay import Overlay
from prime_dht.net.rpc_server import ServerLimits
from prime_dht.testing.swarm import VirtualClock
from prime_dht.wire.kad import Ping, Reply, Request

SILENCE = TProtocol("/test/silence")
GRACE_S = 60.0
STREAMS_END_S = ServerLimits().idle_timeout_s
"""After so long the streams over which nothing is asked any more have ended."""


@pytest.fixture
def patient_clock(mock_clock: MockClock) -> MockClock:
    """A clock that jumps to the next deadline when nothing has happened, not even on a socket, for a little while."""
    mock_clock.autojump_threshold = 0.02
    return mock_clock


def settings(**options: Any) -> HostSettings:
    return HostSettings(key_pair=new_identity(), listen=("/ip4/127.0.0.1/tcp/0",), idle_connection_s=GRACE_S, **options)


async def keep_open(_stream: INetStream) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def star(rays: int, *, low_water: int, fast_transport: bool = True) -> AsyncIterator[list[BasicHost]]:
    """A host, then those that it connected to, one a second."""
    async with AsyncExitStack() as stack:
        options = [settings(low_water_connections=low_water, fast_transport=fast_transport)]
        options += [settings(fast_transport=fast_transport) for _ in range(rays)]
        hosts = [parts_of(await stack.enter_async_context(open_host(each)))[0] for each in options]
        for host in hosts[1:]:
            host.set_stream_handler(SILENCE, keep_open)
            await hosts[0].connect(PeerInfo(host.get_id(), host.get_addrs()))
            await trio.sleep(1)
        yield hosts


def connected(host: BasicHost) -> set[ID]:
    return set(host.get_network().get_connections_map())


def ids(hosts: list[BasicHost]) -> set[ID]:
    return {host.get_id() for host in hosts}


@pytest.mark.parametrize("fast_transport", [True, False])
async def test_beyond_the_low_water_mark_those_idle_for_longest_are_closed_at_both_ends(
    fast_transport: bool, patient_clock: MockClock
) -> None:
    async with star(5, low_water=2, fast_transport=fast_transport) as (hub, *rays):
        await trio.sleep(GRACE_S - 10)
        assert connected(hub) == ids(rays)
        await trio.sleep(GRACE_S)
        assert connected(hub) == ids(rays[3:])
        assert [len(connected(ray)) for ray in rays] == [0, 0, 0, 1, 1]


async def test_as_many_as_the_low_water_mark_stay_for_ever(patient_clock: MockClock) -> None:
    async with star(3, low_water=3) as (hub, *rays):
        await trio.sleep(10 * GRACE_S)
        assert connected(hub) == ids(rays)


async def test_a_connection_is_idle_only_since_its_last_stream_ended(patient_clock: MockClock) -> None:
    async with star(3, low_water=1) as (hub, *rays):
        stream = await hub.new_stream(rays[0].get_id(), [SILENCE])
        await trio.sleep(3 * GRACE_S)
        assert connected(hub) == ids(rays[:1]), "a stream may be silent for as long as it likes"
        await hub.connect(PeerInfo(rays[1].get_id(), rays[1].get_addrs()))
        await trio.sleep(GRACE_S / 2)
        await stream.reset()
        await trio.sleep(GRACE_S)
        assert connected(hub) == ids(rays[:1])


async def test_who_is_protected_stays_connected(patient_clock: MockClock) -> None:
    async with star(3, low_water=0) as (hub, *rays):
        parts_of(hub)[1].tag_store.protect(rays[1].get_id(), "test")
        await trio.sleep(2 * GRACE_S)
        assert connected(hub) == ids(rays[1:2])


async def test_one_that_takes_long_to_close_keeps_none_of_the_others(
    patient_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with star(3, low_water=1) as (hub, *rays):
        (slow,) = parts_of(hub)[1].get_connections(rays[0].get_id())
        close, at_last = slow.muxed_conn.close, trio.Event()

        async def close_at_last() -> None:
            await at_last.wait()
            await close()

        monkeypatch.setattr(slow.muxed_conn, "close", close_at_last)
        await trio.sleep(2 * GRACE_S)
        assert connected(hub) == ids([rays[0], rays[2]]), "one that is being closed is not the one that stays"
        await hub.connect(PeerInfo(rays[1].get_id(), rays[1].get_addrs()))
        await trio.sleep(2 * GRACE_S)
        assert connected(hub) == ids(rays[:2])
        at_last.set()
        await trio.sleep(1)
        assert connected(hub) == ids(rays[1:2])


def test_the_marks_are_checked() -> None:
    with pytest.raises(ConfigError, match="low_water_connections must be at least 0, not -1"):
        settings(low_water_connections=-1)
    with pytest.raises(ConfigError, match="idle_connection_s must be positive, not 0"):
        HostSettings(key_pair=new_identity(), idle_connection_s=0)
    with pytest.raises(ConfigError, match="low_water_connections must be at least 0, not -1"):
        NodeConfig(low_water_connections=-1)


@asynccontextmanager
async def two_overlays(*, answer_after_s: float = 0.0) -> AsyncIterator[tuple[Overlay, Overlay, BasicHost]]:
    """Two that keep no idle connection, of which the first knows the second, and the second's host."""

    async def answer(peer: PeerId, _request: Request) -> Reply:
        await trio.sleep(answer_after_s)
        return Reply(next_cursor=peer)

    async with (
        open_host(settings(low_water_connections=0)) as one_host,
        open_host(settings(low_water_connections=0)) as other_host,
        trio.open_nursery() as nursery,
    ):
        one, other = (Overlay(host, DhtConfig(), answer) for host in (one_host, other_host))
        for overlay in (one, other):
            await nursery.start(overlay.run)
            overlay.mount(as_server=True)
        one.learn_addresses(other.local, other.own_addresses(), source="manual")
        yield one, other, parts_of(other_host)[0]
        nursery.cancel_scope.cancel()


async def test_after_the_connection_was_closed_the_next_request_goes_over_a_new_one(patient_clock: MockClock) -> None:
    async with two_overlays() as (one, other, _):
        for _ in range(3):
            assert (await one.call(other.local, Ping(), timeout_s=5)).next_cursor == one.local
            assert one.is_connected(other.local)
            await trio.sleep(STREAMS_END_S + 2 * GRACE_S)
            assert not one.is_connected(other.local)
            assert not other.is_connected(one.local)


async def test_a_request_under_way_is_not_cut(patient_clock: MockClock) -> None:
    async with two_overlays(answer_after_s=25) as (one, other, other_host):
        _, swarm = parts_of(other_host)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(one.call, other.local, Ping(), timeout_s=30))
            await trio.sleep(20)
            (connection,) = swarm.get_connections()
            assert connection.get_streams(), "so it is not idle"


async def test_a_stream_opened_at_the_moment_at_which_the_other_end_closes_is_opened_again(
    patient_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_overlays() as (one, other, other_host):
        await one.connect(other.local)
        open_stream, attempts = one._host.new_stream, 0

        async def open_too_late(peer_id: ID, protocols: Any) -> INetStream:
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                for connection in other_host.get_network().get_connections():
                    await connection.close()
            return await open_stream(peer_id, protocols)

        monkeypatch.setattr(one._host, "new_stream", open_too_late)
        assert (await one.call(other.local, Ping(), timeout_s=5)).next_cursor == one.local
        assert attempts == 2


async def test_a_swarm_falls_to_the_low_water_mark_and_stays_a_swarm(patient_clock: MockClock) -> None:
    """Nobody leaves a routing table because of it, and keeping the tables true makes no new connections."""
    async with AsyncExitStack() as stack:
        hosts: list[BasicHost] = []
        nodes: list[PrimeDHT] = []
        for number in range(4):
            host = await stack.enter_async_context(open_host(settings(low_water_connections=1)))
            hosts.append(parts_of(host)[0])
            peers = nodes[0].addresses() if nodes else []
            node = PrimeDHT(host, bootstrap_peers=peers, clock=VirtualClock(), rng=Random(number))
            nodes.append(await stack.enter_async_context(node))
            await nodes[-1].bootstrap()
        await trio.sleep(20)
        assert all(len(node.peers()) == 3 for node in nodes)
        for node in nodes:
            node._neighbourhood.strangers.clear()  # or it would look through one from time to time
        with trio.fail_after(3600):
            while max(len(connected(host)) for host in hosts) > 1:  # noqa: ASYNC110 (nobody says when)
                await trio.sleep(GRACE_S)
        sent = sum([(await node.stats()).requests_sent for node in nodes])
        await trio.sleep(4 * GRACE_S)
        assert sum([(await node.stats()).requests_sent for node in nodes]) - sent < 24, "each pair, each minute: 48"
        assert all(len(node.peers()) == 3 for node in nodes)
        rng = Random(1)
        for number in range(6):
            assert (await rng.choice(nodes).put(f"key {number}", b"value")).acknowledged
            assert await rng.choice(nodes).get(f"key {number}", latest=True) is not None
