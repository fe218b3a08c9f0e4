"""A1, A2: who gets a place among the inbound connections."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress

import pytest
import trio
import trio.testing
from libp2p.host.basic_host import BasicHost
from libp2p.host.ping import ID as PING
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.config import ConnectionConfig
from libp2p.network.exceptions import SwarmException
from libp2p.peer.peerinfo import PeerInfo

from prime_dht.net.hardening import inbound
from prime_dht.net.hardening.parts import parts_of

OpenHost = Callable[..., AbstractAsyncContextManager[BasicHost]]

THREE_INBOUND = ConnectionConfig(max_connections=3, min_connections=0, low_watermark=0, high_watermark=3)


async def come_and_go(client: BasicHost, server: BasicHost) -> None:
    await client.connect(PeerInfo(server.get_id(), server.get_transport_addrs()))
    await client.disconnect(server.get_id())
    while server.is_peer_connected(client.get_id()):
        await trio.lowlevel.checkpoint()


async def test_a_stock_host_accepts_only_so_many_connections_in_its_life(stock: OpenHost, ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with ours() as client, stock(connection_config=THREE_INBOUND) as server:
            for _ in range(3):
                await come_and_go(client, server)
            with pytest.raises(SwarmException):
                await come_and_go(client, server)


async def test_ours_accepts_connections_as_long_as_it_lives(ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with ours() as client, ours(max_connections=3) as server:
            for _ in range(10):
                await come_and_go(client, server)


async def say_nothing(server: BasicHost, count: int, stack: AsyncExitStack) -> None:
    (address,) = server.get_transport_addrs()
    for _ in range(count):
        stream = await trio.open_tcp_stream("127.0.0.1", int(address.value_for_protocol("tcp")))
        await stack.enter_async_context(stream)
        # The server says its line first: once it is here, the connection has been accepted.
        await stream.receive_some(1)


async def test_silent_connections_keep_everybody_out_of_a_stock_host(stock: OpenHost, ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with (
            ours() as client,
            stock(connection_config=THREE_INBOUND) as server,
            AsyncExitStack() as stack,
        ):
            await say_nothing(server, 3, stack)
            with pytest.raises(SwarmException):
                await come_and_go(client, server)


async def test_silent_connections_keep_nobody_out_of_ours(ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with ours() as client, ours(max_connections=3) as server, AsyncExitStack() as stack:
            await say_nothing(server, 20, stack)
            await come_and_go(client, server)


async def test_more_half_open_connections_than_allowed_are_closed(ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with ours(max_half_open=2) as server, AsyncExitStack() as stack:
            await say_nothing(server, 2, stack)
            (address,) = server.get_transport_addrs()
            async with await trio.open_tcp_stream("127.0.0.1", int(address.value_for_protocol("tcp"))) as third:
                assert await third.receive_some(1) == b""


async def test_a_quarter_of_the_connections_is_kept_for_dialling_out(ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(ours(max_connections=4))
            clients = [await stack.enter_async_context(ours()) for _ in range(4)]
            target = PeerInfo(server.get_id(), server.get_transport_addrs())
            for client in clients[:3]:
                await client.connect(target)
            with pytest.raises(SwarmException):
                await clients[3].connect(target)
            await server.connect(PeerInfo(clients[3].get_id(), clients[3].get_transport_addrs()))


async def test_connections_that_are_all_half_open_at_once_cannot_together_pass_the_limit(ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with (
            ours(max_connections_per_peer=20) as client,
            ours(max_connections=8, max_connections_per_peer=20) as server,
        ):
            swarm = parts_of(client)[1]

            async def dial() -> None:
                with suppress(SwarmException):  # by when the client learns that it was refused is chance
                    await swarm.dial_addr(server.get_transport_addrs()[0], server.get_id())

            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(dial)
            while len(swarm.get_connections()) != len(server.get_network().get_connections()):
                await trio.lowlevel.checkpoint()
            assert len(swarm.get_connections()) == 6


def coming_from(monkeypatch: pytest.MonkeyPatch, *sources: str) -> None:
    """Have a host take each connection that it gets for one from the next of these addresses."""
    rest = iter(sources)
    monkeypatch.setattr(inbound, "source_of", lambda _ip: next(rest))


async def come(client: BasicHost, server: BasicHost) -> None:
    """Connect, and end the streams on which hosts ask each other who they are."""
    await client.connect(PeerInfo(server.get_id(), server.get_transport_addrs()))
    while server.get_id() not in client._identified_peers or client.get_id() not in server._identified_peers:
        await trio.lowlevel.checkpoint()
    (connection,) = server.get_network().connections[client.get_id()]
    while connection.get_streams():
        await trio.lowlevel.checkpoint()


async def test_whoever_took_all_places_from_one_address_gives_one_to_a_newcomer_from_another(
    ours: OpenHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    coming_from(monkeypatch, "192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.1")
    with trio.fail_after(30):
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(ours(max_connections=4))
            clients = [await stack.enter_async_context(ours()) for _ in range(5)]
            target = PeerInfo(server.get_id(), server.get_transport_addrs())
            for client in clients[:3]:
                await come(client, server)
            await clients[3].connect(target)
            while clients[2].get_network().get_connections():
                await trio.lowlevel.checkpoint()
            with pytest.raises(SwarmException):
                await clients[4].connect(target)
            for kept in (0, 1, 3):
                assert clients[kept].get_network().get_connections()


async def test_who_began_a_handshake_first_from_where_most_did_makes_way_for_a_newcomer_from_elsewhere(
    ours: OpenHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    coming_from(monkeypatch, "192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2")
    with trio.fail_after(30):
        async with ours() as client, ours(max_half_open=3) as server, AsyncExitStack() as stack:
            await say_nothing(server, 3, stack)
            await come_and_go(client, server)


async def test_who_is_protected_or_has_a_stream_open_makes_no_way_while_another_from_there_can(
    ours: OpenHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    coming_from(monkeypatch, *["192.0.2.1"] * 3, "192.0.2.2")
    with trio.fail_after(30):
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(ours(max_connections=4))
            clients = [await stack.enter_async_context(ours()) for _ in range(4)]
            target = PeerInfo(server.get_id(), server.get_transport_addrs())
            parts_of(server)[1].tag_store.protect(clients[2].get_id(), "test")
            for client in clients[:3]:
                await come(client, server)
            await clients[1].new_stream(server.get_id(), [PING])
            await clients[3].connect(target)
            while clients[0].get_network().get_connections():
                await trio.lowlevel.checkpoint()
            for kept in (1, 2, 3):
                assert clients[kept].get_network().get_connections()


async def test_one_that_makes_way_is_closed_to_the_end_though_the_newcomer_has_to_make_way_itself_meanwhile(
    ours: OpenHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    coming_from(monkeypatch, *["192.0.2.1"] * 3, *["192.0.2.2"] * 3, "192.0.2.3")
    with trio.fail_after(30):
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(ours(max_connections=4))
            clients = [await stack.enter_async_context(ours()) for _ in range(7)]
            connections = server.get_network().get_connections
            for client in clients[:3]:
                await come(client, server)
            (newest,) = server.get_network().connections[clients[2].get_id()]
            is_closing, may_close = trio.Event(), trio.Event()
            stock_close = newest.muxed_conn.close

            async def close_slowly() -> None:
                is_closing.set()
                await may_close.wait()
                await stock_close()

            monkeypatch.setattr(newest.muxed_conn, "close", close_slowly)
            target = PeerInfo(server.get_id(), server.get_transport_addrs())
            await clients[3].connect(target)  # which has shaken hands, and waits there for its place
            await is_closing.wait()
            for client in clients[:2]:
                await client.disconnect(server.get_id())
            while len(connections()) > 1:
                await trio.lowlevel.checkpoint()
            for client in clients[4:6]:
                await come(client, server)
                await client.new_stream(server.get_id(), [PING])
            with suppress(SwarmException):  # for the one that is being closed still has its place
                await clients[6].connect(target)
            while clients[3].get_network().get_connections():
                await trio.lowlevel.checkpoint()
            may_close.set()
            while len(connections()) > 3 or clients[2].get_network().get_connections():
                await trio.lowlevel.checkpoint()
            assert not server.is_peer_connected(clients[3].get_id())


async def test_who_only_knocks_displaces_nobody_who_is_in(ours: OpenHost, monkeypatch: pytest.MonkeyPatch) -> None:
    coming_from(monkeypatch, *["192.0.2.1"] * 3, "192.0.2.2", "192.0.2.3", "192.0.2.4")
    with trio.fail_after(30):
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(ours(max_connections=4))
            clients = [await stack.enter_async_context(ours()) for _ in range(4)]
            for client in clients[:3]:
                await come(client, server)
            await say_nothing(server, 2, stack)
            assert len(server.get_network().get_connections()) == 3
            await clients[3].connect(PeerInfo(server.get_id(), server.get_transport_addrs()))
            while clients[2].get_network().get_connections():
                await trio.lowlevel.checkpoint()


async def test_of_who_finds_no_place_when_it_has_shaken_hands_nothing_is_left(
    ours: OpenHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbound.Admission, "establish", lambda *_: None)
    with trio.fail_after(30):
        async with ours() as client, ours() as server:
            with suppress(SwarmException):
                await client.connect(PeerInfo(server.get_id(), server.get_transport_addrs()))
            swarm = parts_of(server)[1]
            manager = swarm._resource_manager
            assert manager is not None
            while client.get_network().get_connections() or swarm._inbound_limiter.borrowed_tokens:
                await trio.lowlevel.checkpoint()
            assert manager._current_connections == 0
            assert not swarm.get_connections()


async def test_silent_connections_from_as_many_addresses_as_there_are_places_keep_nobody_out_once_they_had_their_time(
    ours: OpenHost, monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock
) -> None:
    coming_from(monkeypatch, *(f"192.0.2.{number}" for number in range(1, 6)))
    async with ours(max_half_open=3) as server, AsyncExitStack() as stack:
        await say_nothing(server, 3, stack)
        (address,) = server.get_transport_addrs()
        for wait_s, is_let_in in ((0.0, False), (inbound.FAIR_HANDSHAKE_S, True)):
            mock_clock.jump(wait_s)
            async with await trio.open_tcp_stream("127.0.0.1", int(address.value_for_protocol("tcp"))) as stream:
                assert bool(await stream.receive_some(1)) is is_let_in


async def test_handshakes_begin_at_a_pace_after_a_burst_and_who_gives_up_waiting_has_taken_no_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pace, began_s = inbound.HandshakePace(), list[float]()

    async def shake_hands() -> None:
        await pace.turn()
        began_s.append(trio.current_time())

    async def give_up() -> None:
        with trio.move_on_after(0.001):
            await pace.turn()

    start_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(inbound.HANDSHAKES_AT_ONCE):
            nursery.start_soon(shake_hands)
    assert set(began_s) == {start_s}
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(give_up)
    async with trio.open_nursery() as nursery:
        for _ in range(inbound.HANDSHAKES_PER_S):
            nursery.start_soon(shake_hands)
    assert trio.current_time() - start_s == pytest.approx(1.0, abs=0.05)


async def test_connections_from_outside_wait_for_their_turns_and_those_of_this_machine_do_not(
    ours: OpenHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    coming_from(monkeypatch, "192.0.2.1", "192.0.2.2")
    turns: list[None] = []

    async def turn(_: inbound.HandshakePace) -> None:
        turns.append(None)
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(inbound.HandshakePace, "turn", turn)
    with trio.fail_after(30):
        async with ours() as client, ours() as server:
            await come_and_go(client, server)
            await come_and_go(client, server)
            assert len(turns) == 2
            monkeypatch.setattr(inbound, "source_of", lambda _ip: None)
            await come_and_go(client, server)
            assert len(turns) == 2


async def test_a_newcomer_gets_a_place_where_this_host_has_made_more_connections_than_are_kept_for_it(
    ours: OpenHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    coming_from(monkeypatch, "192.0.2.1", "192.0.2.1", "192.0.2.2")
    with trio.fail_after(30):
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(ours(max_connections=4))
            others = [await stack.enter_async_context(ours()) for _ in range(5)]
            for other in others[:2]:
                with monkeypatch.context() as unpatched:
                    unpatched.setattr(inbound, "source_of", lambda _ip: None)
                    await server.connect(PeerInfo(other.get_id(), other.get_transport_addrs()))
            for other in others[2:]:
                await come(other, server)
            while others[3].get_network().get_connections():
                await trio.lowlevel.checkpoint()
            for kept in (0, 1, 2, 4):
                assert others[kept].get_network().get_connections()


@pytest.mark.parametrize("listen", ["/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0"])
async def test_one_address_gets_so_many_places_of_a_host(
    listen: str, ours: OpenHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbound, "source_of", lambda ip: ip)
    with trio.fail_after(30):
        async with ours() as one, ours() as other, ours(listen=(listen,), max_inbound_per_address=1) as server:
            target = PeerInfo(server.get_id(), server.get_transport_addrs())
            await one.connect(target)
            with pytest.raises(SwarmException):
                await other.connect(target)


async def test_a_second_connection_of_a_peer_gives_its_place_back_though_the_first_stays(ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with ours() as client, ours(max_connections=4) as server:
            swarm, connections = parts_of(client)[1], server.get_network().get_connections
            await swarm.dial_addr(server.get_transport_addrs()[0], server.get_id())
            for _ in range(4):
                second = await swarm.dial_addr(server.get_transport_addrs()[0], server.get_id())
                while len(connections()) < 2:
                    await trio.lowlevel.checkpoint()
                await second.close()
                while len(connections()) > 1:
                    await trio.lowlevel.checkpoint()


class Unwelcome(ReadWriteCloser):
    """A connection of a transport that does not close what its handler leaves open."""

    def __init__(self) -> None:
        self.is_closed = False

    async def read(self, n: int | None = None) -> bytes:
        raise AssertionError("nobody reads from it")

    async def write(self, data: bytes) -> None:
        raise AssertionError("nobody writes to it")

    async def close(self) -> None:
        self.is_closed = True

    def get_remote_address(self) -> tuple[str, int]:
        return ("192.0.2.1", 4001)


async def test_a_connection_that_is_refused_is_closed(ours: OpenHost) -> None:
    async with ours() as server:
        swarm = parts_of(server)[1]
        swarm.connection_gate.add_to_deny_list("192.0.2.1")
        stream = Unwelcome()
        await swarm._handle_inbound_connection(stream, server.get_transport_addrs()[0])
        assert stream.is_closed


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\xff" * 4096,
        b"\x04\xff\xfe\xfa\n",
        b"\x13/multistream/1.0.0\n\x07/noise\n" + b"\xff\xff" + b"\x00" * 65535,
        b"\x13/multistream/1.0.0\n\x07/noise\n" + b"\x00\x20" + b"\x09" * 32 + b"\x00\x30" + b"\x01" * 48,
        b"\x13/multistream/1.0.0\n\x03ls\n" * 100,
    ],
)
async def test_ours_outlives_garbage_on_a_fresh_connection(ours: OpenHost, garbage: bytes) -> None:
    with trio.fail_after(30):
        async with ours() as client, ours() as server:
            (address,) = server.get_transport_addrs()
            async with await trio.open_tcp_stream("127.0.0.1", int(address.value_for_protocol("tcp"))) as stream:
                await stream.send_all(garbage)
                await stream.send_eof()
                try:
                    while await stream.receive_some(65536):
                        pass
                except trio.BrokenResourceError:
                    pass
            await come_and_go(client, server)
