"""P1, P8, A4, A7: what an inbound stream does to the host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.host.ping import ID as PING
from libp2p.host.ping import perform_ping_roundtrip
from libp2p.network.stream.exceptions import StreamEOF, StreamReset
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.utils import encode_delim
from trio.testing import MockClock

from prime_dht.net.hardening.limits import HostLimits
from prime_dht.net.hardening.parts import parts_of
from prime_dht.net.hardening.stream_guard import LINGER_S, StreamGuard
from prime_dht.net.yamux import FastYamuxStream

OpenHost = Callable[..., AbstractAsyncContextManager[BasicHost]]

FOR_EVER_S = 10 * LINGER_S
ECHO = TProtocol("/test/1.0.0")
NO_TEXT = encode_delim(b"/multistream/1.0.0") + encode_delim(b"\xff\xfe\xfa")


async def connect(client: BasicHost, server: BasicHost) -> None:
    await client.connect(PeerInfo(server.get_id(), server.get_transport_addrs()))


async def still_serves(server: BasicHost, client: BasicHost) -> bool:
    stream = await client.new_stream(server.get_id(), [PING])
    await perform_ping_roundtrip(stream)
    await stream.close()
    return True


async def read_to_the_end(stream: INetStream) -> None:
    while True:
        await stream.read(1024)


async def send_no_text(client: BasicHost, server: BasicHost) -> INetStream:
    await connect(client, server)
    stream = await client.get_network().new_stream(server.get_id())
    await stream.write(NO_TEXT)
    return stream


async def fail_on_request(stream: INetStream) -> None:
    await stream.read(1)
    raise ZeroDivisionError("a mistake in a handler")


async def request_failure(client: BasicHost, server: BasicHost) -> INetStream:
    server.set_stream_handler(ECHO, fail_on_request)
    await connect(client, server)
    stream = await client.new_stream(server.get_id(), [ECHO])
    await stream.write(b"x")
    return stream


Attack = Callable[[BasicHost, BasicHost], Awaitable[INetStream]]


async def attack_until_dead(stock: OpenHost, ours: OpenHost, attack: Attack) -> None:
    async with ours() as client, stock() as server:
        await attack(client, server)
        await parts_of(server)[1].get_manager().wait_finished()


@pytest.mark.parametrize(
    ("attack", "cause"), [(send_no_text, UnicodeDecodeError), (request_failure, ZeroDivisionError)]
)
async def test_an_exception_in_negotiation_or_handler_ends_a_stock_host(
    stock: OpenHost, ours: OpenHost, attack: Attack, cause: type[Exception]
) -> None:
    with trio.fail_after(30), pytest.raises(BaseExceptionGroup) as caught:
        await attack_until_dead(stock, ours, attack)
    assert caught.value.subgroup(cause) is not None


@pytest.mark.parametrize("attack", [send_no_text, request_failure])
async def test_an_exception_in_negotiation_or_handler_ends_one_stream_of_ours(ours: OpenHost, attack: Attack) -> None:
    with trio.fail_after(30):
        async with ours() as client, ours() as server:
            stream = await attack(client, server)
            with pytest.raises(StreamReset):
                await read_to_the_end(stream)
            assert await still_serves(server, client)


async def answer_and_return(stream: INetStream) -> None:
    await stream.write(b"answer")


async def test_a_handler_that_returns_leaves_the_peer_of_a_stock_host_reading_for_ever(
    stock: OpenHost, ours: OpenHost, patient_clock: MockClock
) -> None:
    async with ours() as client, stock() as server:
        server.set_stream_handler(ECHO, answer_and_return)
        await connect(client, server)
        stream = await client.new_stream(server.get_id(), [ECHO])
        assert await stream.read(6) == b"answer"
        with trio.move_on_after(FOR_EVER_S) as for_ever:
            await stream.read(1)
        assert for_ever.cancelled_caught


async def test_a_handler_that_returns_ends_the_stream_for_the_peer_of_ours(ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with ours() as client, ours() as server:
            server.set_stream_handler(ECHO, answer_and_return)
            await connect(client, server)
            stream = await client.new_stream(server.get_id(), [ECHO])
            assert await stream.read(6) == b"answer"
            with pytest.raises(StreamEOF):
                await stream.read(1)


@asynccontextmanager
async def hoarder(ours: OpenHost, server: BasicHost) -> AsyncIterator[None]:
    """A peer that is told that its stream is closed, and does not close its own end."""
    async with ours() as client:
        server.set_stream_handler(ECHO, lambda stream: stream.close())
        await connect(client, server)
        stream = await client.new_stream(server.get_id(), [ECHO])
        with pytest.raises(StreamEOF):
            await stream.read(1)
        yield


def muxer_to(server: BasicHost, peer_id: ID) -> Yamux:
    muxer = parts_of(server)[1].connections[peer_id][0].muxed_conn
    assert isinstance(muxer, Yamux)
    return muxer


async def test_a_stock_host_keeps_a_stream_whose_peer_does_not_close(
    stock: OpenHost, ours: OpenHost, patient_clock: MockClock
) -> None:
    async with stock() as server, hoarder(ours, server):
        muxer = muxer_to(server, server.get_connected_peers()[0])
        await trio.sleep(FOR_EVER_S)
        assert len(muxer.streams) == 1


async def test_ours_resets_a_stream_whose_peer_does_not_close(ours: OpenHost, patient_clock: MockClock) -> None:
    async with ours(fast_transport=False) as server, hoarder(ours, server):
        muxer = muxer_to(server, server.get_connected_peers()[0])
        await trio.sleep(2 * LINGER_S)
        assert not muxer.streams


async def hold(stream: INetStream) -> None:
    await stream.write(b"x")
    await trio.sleep_forever()


def stream_id(stream: INetStream) -> int:
    assert isinstance(stream, NetStream)
    assert isinstance(stream.muxed_stream, FastYamuxStream)
    return stream.muxed_stream.stream_id


async def held_streams(client: BasicHost, server: BasicHost, count: int) -> int:
    """How many of ``count`` streams opened one after the other the server serves."""
    held = 0
    for _ in range(count):
        stream = await client.get_network().new_stream(server.get_id())
        await stream.write(encode_delim(b"/multistream/1.0.0") + encode_delim(ECHO.encode()))
        try:
            while not (await stream.read(1024)).endswith(b"x"):
                pass
            held += 1
        except StreamReset:
            pass
    return held


async def test_a_stock_host_serves_any_number_of_streams_of_one_peer(stock: OpenHost, ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with ours() as client, stock() as server:
            server.set_stream_handler(ECHO, hold)
            await connect(client, server)
            assert await held_streams(client, server, 20) == 20
            await client.close()


async def test_ours_serves_as_many_streams_of_one_peer_as_it_says(ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with ours() as client, ours() as other, ours(max_inbound_streams_per_peer=3) as server:
            server.set_stream_handler(ECHO, hold)
            await connect(client, server)
            await connect(other, server)
            assert await held_streams(client, server, 20) == 3
            assert await held_streams(other, server, 1) == 1


async def test_ours_serves_as_many_streams_of_all_peers_as_it_says(ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with ours() as client, ours() as other, ours(max_inbound_streams=3) as server:
            server.set_stream_handler(ECHO, hold)
            await connect(client, server)
            await connect(other, server)
            while len(server._identified_peers) < 2 or len(client._identified_peers) + len(other._identified_peers) < 2:
                await trio.lowlevel.checkpoint()
            assert await held_streams(client, server, 2) == 2
            assert await held_streams(other, server, 2) == 1


async def test_who_has_all_streams_that_there_may_be_gives_up_its_newest_for_a_peer_that_has_few(
    ours: OpenHost,
) -> None:
    with trio.fail_after(30):
        async with ours() as client, ours() as other, ours(max_inbound_streams=6) as server:
            server.set_stream_handler(ECHO, hold)
            await connect(client, server)
            await connect(other, server)
            while len(server._identified_peers) < 2 or len(client._identified_peers) + len(other._identified_peers) < 2:
                await trio.lowlevel.checkpoint()
            assert await held_streams(client, server, 10) == 6
            (theirs,) = client.get_network().connections[server.get_id()]
            oldest_first = sorted(theirs.get_streams(), key=stream_id)
            assert await held_streams(other, server, 10) == 3
            for stream in oldest_first[3:6]:
                with pytest.raises(StreamReset):
                    await read_to_the_end(stream)
            assert await held_streams(client, server, 10) == 0


class FakeConn:
    def __init__(self, peer_id: ID) -> None:
        self.peer_id = peer_id


class FakeStream:
    def __init__(self, peer_id: ID) -> None:
        self.muxed_conn = FakeConn(peer_id)
        self.resets = 0

    def get_protocol(self) -> None:
        return None

    async def reset(self) -> None:
        self.resets += 1


def fake_stream(number: int) -> INetStream:
    return FakeStream(ID(number.to_bytes(32, "big")))  # type: ignore[return-value]


async def test_a_cancelled_handler_is_cancelled() -> None:
    async def wait(_: INetStream) -> None:
        await trio.sleep_forever()

    guard = StreamGuard(wait, HostLimits(), finish_streams=True)
    with trio.CancelScope() as scope:
        scope.cancel()
        await guard(fake_stream(1))
    assert scope.cancelled_caught


async def test_of_a_handler_that_fails_while_it_is_cancelled_only_the_failure_is_contained() -> None:
    async def fail_when_cancelled(_: INetStream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ZeroDivisionError

    guard = StreamGuard(fail_when_cancelled, HostLimits(), finish_streams=True)
    with trio.CancelScope() as scope:
        scope.cancel()
        await guard(fake_stream(1))
    assert scope.cancelled_caught
