"""P4, P5, P13, A5: dials."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.host.basic_host import BasicHost
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr
from trio.testing import MockClock

from prime_dht.net.hardening.outbound import NO_NODE, RaceSettings, knock, race_addresses
from prime_dht.net.hardening.parts import parts_of

OpenHost = Callable[..., AbstractAsyncContextManager[BasicHost]]

REFUSED = Multiaddr("/ip4/127.0.0.1/tcp/1")
"""Nobody listens on port 1 of a machine that runs tests."""


def target(server: BasicHost) -> PeerInfo:
    return PeerInfo(server.get_id(), server.get_transport_addrs())


def stranger() -> ID:
    return ID.from_pubkey(create_new_key_pair().public_key)


async def dial_s(client: BasicHost, server: BasicHost) -> float:
    """By a clock that moves only when everybody waits for it: the time that is spent waiting."""
    start = trio.current_time()
    await client.connect(target(server))
    return trio.current_time() - start


async def test_a_stock_host_waits_a_quarter_second_after_it_has_connected(
    stock: OpenHost, ours: OpenHost, patient_clock: MockClock
) -> None:
    async with stock() as client, ours() as server:
        assert await dial_s(client, server) >= 0.25


async def test_ours_has_connected_when_it_has_connected(ours: OpenHost, patient_clock: MockClock) -> None:
    async with ours() as client, ours() as server:
        assert await dial_s(client, server) == 0


async def test_a_stock_host_does_not_try_a_second_address_of_a_kind(
    stock: OpenHost, ours: OpenHost, patient_clock: MockClock
) -> None:
    async with stock() as client, ours() as server:
        with pytest.raises(SwarmException):
            await client.connect(PeerInfo(server.get_id(), [REFUSED, *server.get_transport_addrs()]))


async def test_ours_tries_every_address(ours: OpenHost, silent_server: Multiaddr, patient_clock: MockClock) -> None:
    async with ours() as client, ours() as server:
        start = trio.current_time()
        await client.connect(PeerInfo(server.get_id(), [REFUSED, silent_server, *server.get_transport_addrs()]))
        assert trio.current_time() - start == RaceSettings().stagger_s
        assert client.is_peer_connected(server.get_id())


async def fail_then_connect(client: BasicHost, server: BasicHost) -> None:
    with pytest.raises(SwarmException):
        await client.connect(PeerInfo(server.get_id(), [REFUSED]))
    client.get_peerstore().clear_addrs(server.get_id())
    await client.connect(target(server))


async def test_a_stock_host_refuses_a_peer_whose_address_was_wrong_before(
    stock: OpenHost, ours: OpenHost, patient_clock: MockClock
) -> None:
    async with stock() as client, ours() as server:
        with pytest.raises(SwarmException, match="negative cache"):
            await fail_then_connect(client, server)


async def test_ours_connects_to_a_peer_whose_address_was_wrong_before(ours: OpenHost, patient_clock: MockClock) -> None:
    async with ours() as client, ours() as server:
        await fail_then_connect(client, server)


async def test_a_stock_host_dials_itself(stock: OpenHost) -> None:
    with trio.fail_after(30):
        async with stock() as host:
            await host.connect(target(host))
            assert host.is_peer_connected(host.get_id())


async def test_ours_does_not_dial_itself(ours: OpenHost) -> None:
    async with ours() as host:
        with pytest.raises(SwarmException, match="does not dial itself"):
            await host.connect(target(host))


async def test_a_server_that_falls_silent_holds_a_stock_host_for_ever(
    stock: OpenHost, silent_server: Multiaddr, patient_clock: MockClock
) -> None:
    async with stock() as client:
        with trio.move_on_after(100) as for_ever:
            await client.connect(PeerInfo(stranger(), [silent_server]))
        assert for_ever.cancelled_caught


async def test_a_server_that_falls_silent_costs_ours_one_timeout(
    ours: OpenHost, silent_server: Multiaddr, patient_clock: MockClock
) -> None:
    async with ours() as client:
        start = trio.current_time()
        with pytest.raises(SwarmException, match="no answer within 5 s"):
            await client.connect(PeerInfo(stranger(), [silent_server]))
        assert trio.current_time() - start == 5


async def test_dials_to_one_peer_at_the_same_time_make_one_connection(ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with ours() as client, ours() as server:
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(client.connect, target(server))
            assert len(parts_of(client)[1].get_connections()) == 1


async def test_who_has_no_address_cannot_be_reached(ours: OpenHost) -> None:
    async with ours() as client:
        with pytest.raises(SwarmException, match="no address is known"):
            await parts_of(client)[1].dial_peer(stranger())


async def test_a_race_says_how_each_address_failed(
    ours: OpenHost, silent_server: Multiaddr, patient_clock: MockClock
) -> None:
    async with ours() as client, ours() as other:
        wrong = other.get_transport_addrs()[0]
        addresses = [REFUSED, silent_server, wrong]
        result = await race_addresses(parts_of(client)[1].dial_addr, stranger(), addresses, RaceSettings())
        assert result.winner is None
        reasons = {failure.address: failure.reason for failure in result.failures}
        assert "Connection refused" in reasons[REFUSED]
        assert reasons[silent_server] == "no answer within 5 s"
        assert "another peer answers there: " in reasons[wrong]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.0 400 Bad request\r\n\r\n<!DOCTYPE HTML>" + b"x" * 100, NO_NODE),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", NO_NODE),
        (b"\x13/multistream/1.0.0\n\x03na\n", "protocols not supported"),
        (b"", "Connection closed"),
    ],
)
async def test_what_answers_and_is_no_libp2p_node_is_called_so(ours: OpenHost, answer: bytes, reason: str) -> None:
    async def speak_otherwise(stream: trio.SocketStream) -> None:
        await stream.receive_some(100)
        await stream.send_all(answer)
        await stream.send_eof()
        with suppress(trio.BrokenResourceError):
            await stream.receive_some(1)  # until the client hangs up

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = Multiaddr(f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}")
    async with ours() as client, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, speak_otherwise, [listener])
        result = await race_addresses(parts_of(client)[1].dial_addr, stranger(), [address], RaceSettings())
        nursery.cancel_scope.cancel()
    assert [failure.reason[: len(reason)] for failure in result.failures] == [reason]


async def test_a_race_ends_when_its_time_is_up(
    ours: OpenHost, silent_server: Multiaddr, patient_clock: MockClock
) -> None:
    async with ours() as client:
        settings = RaceSettings(total_timeout_s=1.0)
        start = trio.current_time()
        result = await race_addresses(parts_of(client)[1].dial_addr, stranger(), [silent_server], settings)
        assert trio.current_time() - start == 1.0
        assert [failure.reason for failure in result.failures] == ["not done within 1 s"]


class FakeConnection:
    def __init__(self) -> None:
        self.is_closed = False

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()
        self.is_closed = True


async def test_of_two_that_win_at_once_one_is_kept_and_the_other_is_closed(
    ours: OpenHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[FakeConnection] = []
    start = trio.Event()

    async def dial_addr(address: Multiaddr, peer_id: ID) -> FakeConnection:
        connection = FakeConnection()
        made.append(connection)
        if len(made) == 2:
            start.set()
        with trio.CancelScope() as scope:
            scope.shield = True
            await start.wait()
        return connection

    async with ours(listen=()) as client:
        swarm = parts_of(client)[1]
        monkeypatch.setattr(swarm, "dial_addr", dial_addr)
        addresses = [Multiaddr("/ip4/127.0.0.1/tcp/1"), Multiaddr("/ip4/127.0.0.1/tcp/2")]
        result = await race_addresses(swarm.dial_addr, stranger(), addresses, RaceSettings(stagger_s=0))
    assert result.winner is not None
    assert sorted(connection.is_closed for connection in made) == [False, True]
    assert not result.winner[1].is_closed


async def test_a_knock_leaves_nothing_open_that_who_is_cancelled_meanwhile_would_have_to_close(ours: OpenHost) -> None:
    async with ours() as client, ours() as server:
        knocked = await knock(parts_of(client)[1], server.get_transport_addrs()[0], server.get_id())
        assert isinstance(knocked, RawConnection)
        assert isinstance(knocked.stream, TrioTCPStream)
        assert isinstance(knocked.stream.stream, trio.SocketStream)
        assert knocked.stream.stream.socket.fileno() < 0
        assert not client.get_network().get_connections()
