"""Notifications and connection tasks, as py-libp2p's swarm has them and as ours."""

from __future__ import annotations

import gc
import logging
from collections import Counter
from weakref import ref

import pytest
import trio
import trio.testing
from libp2p.abc import INetConn, INetStream, INetwork, INotifee
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.host.ping import ID as PING
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.swarm import Swarm
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr

from prime_dht.net.hardening.parts import parts_of
from prime_dht.net.host import HostSettings, listen_addresses, open_host
from prime_dht.net.identity import new_identity
from prime_dht.net.yamux import FastYamux

FAILING = TProtocol("/test/failing")


def settings(*, fast_transport: bool = True) -> HostSettings:
    return HostSettings(key_pair=new_identity(), listen=("/ip4/127.0.0.1/tcp/0",), fast_transport=fast_transport)


class Listener(INotifee):
    """Notes what it is told, and in which task; may fail at it."""

    def __init__(self, *, fails: bool = False) -> None:
        self.told: list[str] = []
        self.tasks: set[trio.lowlevel.Task] = set()
        self._fails = fails

    def _note(self, event: str) -> None:
        self.told.append(event)
        self.tasks.add(trio.lowlevel.current_task())
        if self._fails:
            raise ValueError(event)

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        self._note("opened_stream")

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None:
        self._note("closed_stream")

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        self._note("connected")

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        self._note("disconnected")

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None: ...
    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None: ...


async def live_once(client: BasicHost, server: BasicHost) -> None:
    """A connection with a stream, from the first notification to the last."""
    await client.connect(info_from_p2p_addr(listen_addresses(server)[0]))
    stream = await client.new_stream(server.get_id(), [PING])
    await stream.reset()
    await client.disconnect(server.get_id())


@pytest.mark.parametrize("fast_transport", [True, False], ids=["light", "stock"])
async def test_notifees_are_told_the_same_in_the_same_order_and_one_that_fails_harms_nobody(
    fast_transport: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.fail_after(30), caplog.at_level(logging.CRITICAL):
        async with (
            open_host(settings(fast_transport=fast_transport)) as client,
            open_host(settings()) as server,
        ):
            failing, listening = Listener(fails=True), Listener()
            for notifee in (failing, listening):
                client.get_network().register_notifee(notifee)
            # An identify, which opens and closes a stream at a time of its own, would mix with the events.
            parts_of(client)[0]._identified_peers[server.get_id()] = "before"
            await live_once(parts_of(client)[0], parts_of(server)[0])
            assert listening.told == ["connected", "opened_stream", "closed_stream", "disconnected"]
            assert failing.told == listening.told


@pytest.mark.parametrize(("fast_transport", "is_light"), [(True, True), (False, False)], ids=["light", "stock"])
async def test_a_light_swarm_tells_in_the_task_that_causes_it(fast_transport: bool, is_light: bool) -> None:
    with trio.fail_after(30):
        async with (
            open_host(settings(fast_transport=fast_transport)) as client,
            open_host(settings()) as server,
        ):
            listening = Listener()
            client.get_network().register_notifee(listening)
            await client.connect(info_from_p2p_addr(listen_addresses(server)[0]))
            stream = await client.new_stream(server.get_id(), [PING])
            assert (trio.lowlevel.current_task() in listening.tasks) is is_light
            await stream.reset()


def managed_tasks(swarm: Swarm) -> int:
    return swarm.manager.stats.tasks.total_count


@pytest.mark.parametrize(("fast_transport", "is_light"), [(True, True), (False, False)], ids=["light", "stock"])
async def test_a_connection_of_a_light_swarm_adds_no_task_to_the_service_manager(
    fast_transport: bool, is_light: bool
) -> None:
    with trio.fail_after(30):
        async with (
            open_host(settings(fast_transport=fast_transport)) as client,
            open_host(settings()) as server,
        ):
            swarm = parts_of(client)[1]
            before = managed_tasks(swarm)
            await client.connect(info_from_p2p_addr(listen_addresses(server)[0]))
            assert (managed_tasks(swarm) == before) is is_light


async def test_an_idle_connection_takes_a_task_at_each_end_and_the_one_that_accepted_it() -> None:
    with trio.fail_after(30):
        async with open_host(settings()) as client, open_host(settings()) as server:
            await trio.testing.wait_all_tasks_blocked()
            before = trio.lowlevel.current_statistics().tasks_living
            await parts_of(client)[1].dial_addr(listen_addresses(server)[0], server.get_id())
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert trio.lowlevel.current_statistics().tasks_living - before == 3


def living(*kinds: type[object]) -> Counter[str]:
    gc.collect()
    return Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, kinds))


async def test_an_idle_connection_has_nothing_for_those_who_wait_but_for_its_end_and_nothing_for_tasks() -> None:
    kinds = (trio.lowlevel.ParkingLot, trio.Lock, trio.Semaphore, trio.Event, trio.Nursery)
    with trio.fail_after(30):
        async with open_host(settings()) as client, open_host(settings()) as server:
            await trio.testing.wait_all_tasks_blocked()
            before = living(*kinds)
            await parts_of(client)[1].dial_addr(listen_addresses(server)[0], server.get_id())
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert living(*kinds) - before == {"Event": 2}, "one at each end"


@pytest.mark.usefixtures("uncollected")
async def test_a_connection_that_has_ended_leaves_memory_at_once_at_both_ends() -> None:
    with trio.fail_after(30):
        async with open_host(settings()) as client, open_host(settings()) as server:
            gone: list[ref[object]] = []
            await parts_of(client)[1].dial_addr(listen_addresses(server)[0], server.get_id())
            stream = await client.new_stream(server.get_id(), [PING])
            await stream.write(bytes(32))
            await stream.read(32)
            for host in (client, server):
                [connection] = host.get_network().get_connections()
                assert isinstance(connection, SwarmConn)
                assert isinstance(connection.muxed_conn, FastYamux)
                parts = (connection, connection._resource_scope, connection.muxed_conn)
                gone += map(ref, (*parts, connection.muxed_conn.secured_conn))
            del connection, parts, stream
            await client.disconnect(server.get_id())
            while parts_of(server)[1].get_connections():  # noqa: ASYNC110 (it has no event for that)
                await trio.sleep(0.01)
            await trio.testing.wait_all_tasks_blocked(0.2)  # py-libp2p lets 0.1 s pass
            assert [part() for part in gone] == [None] * 8


async def test_a_connection_whose_muxer_fails_as_nobody_expects_is_closed_and_gives_its_place_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_muxed: FastYamux, _frame: object) -> None:
        raise MemoryError

    with trio.fail_after(30):
        async with open_host(settings()) as client, open_host(settings()) as server:
            swarm = parts_of(server)[1]
            await parts_of(client)[1].dial_addr(listen_addresses(server)[0], server.get_id())
            while not (connections := swarm.get_connections()):  # noqa: ASYNC110 (it has no event for that)
                await trio.sleep(0.01)
            listener = Listener()
            swarm.register_notifee(listener)
            manager = swarm._resource_manager
            assert manager is not None
            assert manager._current_connections == 1
            monkeypatch.setattr(FastYamux, "_handle", fail)
            await client.disconnect(server.get_id())
            while "disconnected" not in listener.told:  # noqa: ASYNC110 (likewise)
                await trio.sleep(0.01)
            assert all(connection.is_closed for connection in connections)
            assert swarm.get_connections() == []
            assert manager._current_connections == 0


@pytest.mark.parametrize("fast_transport", [True, False])
async def test_a_stream_handler_that_fails_ends_its_stream_and_neither_its_connection_nor_its_host(
    *, fast_transport: bool
) -> None:
    async def fail(stream: INetStream) -> None:
        await stream.read(1)
        raise ValueError("hostile bytes")

    with trio.fail_after(30):
        async with open_host(settings(fast_transport=fast_transport)) as client, open_host(settings()) as server:
            server.get_mux().add_handler(FAILING, fail)
            await parts_of(client)[1].dial_addr(listen_addresses(server)[0], server.get_id())
            for _ in range(3):
                stream = await client.new_stream(server.get_id(), [FAILING])
                await stream.write(b"x")
            ping = await client.new_stream(server.get_id(), [PING])
            await ping.write(bytes(32))
            assert await ping.read(32) == bytes(32)


async def test_a_connection_whose_task_fails_ends_alone() -> None:
    with trio.fail_after(30):
        async with open_host(settings()) as client, open_host(settings()) as server, open_host(settings()) as other:
            swarm = parts_of(client)[1]

            async def fail() -> None:
                raise ValueError("a fault in a connection's task")

            swarm.manager.run_task(fail)
            await trio.testing.wait_all_tasks_blocked()
            for peer in (server, other):
                await live_once(parts_of(client)[0], parts_of(peer)[0])
