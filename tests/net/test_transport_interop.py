"""Our Noise session and Yamux against py-libp2p's own, between hosts on loopback TCP, in every combination."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p import new_host
from libp2p.abc import IHost, IMuxedConn, INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.stream.exceptions import StreamEOF, StreamError
from libp2p.network.stream.net_stream import NetStream
from libp2p.network.swarm import Swarm
from libp2p.peer.peerinfo import PeerInfo
from libp2p.security.noise.transport import PROTOCOL_ID, Transport
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from prime_dht.errors import ConfigError
from prime_dht.net.noise import FastNoiseSession, security_options
from prime_dht.net.yamux import FastYamux, use_fast_yamux
from prime_dht.net.yamux.frames import PING, SYN, encode

FAST, STOCK, FAST_NOISE, FAST_YAMUX = "fast", "stock", "fast noise, stock yamux", "stock noise, fast yamux"
MUXER = {FAST: FastYamux, STOCK: Yamux, FAST_NOISE: Yamux, FAST_YAMUX: Yamux}
COMBINATIONS = [
    (FAST, FAST),
    (FAST, STOCK),
    (STOCK, FAST),
    (FAST_NOISE, FAST),
    (FAST, FAST_NOISE),
    (FAST_NOISE, STOCK),
    (STOCK, FAST_NOISE),
    (FAST_YAMUX, FAST),
]

ECHO = TProtocol("/test/echo/1")
ANY_PORT = [Multiaddr("/ip4/127.0.0.1/tcp/0")]


@pytest.fixture(autouse=True)
def _no_dial_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libp2p.network.swarm._HAPPY_EYEBALLS_DELAY", 0)


async def read_all(stream: INetStream) -> bytes:
    data = bytearray()
    while True:
        try:
            data += await stream.read(1 << 16)
        except StreamEOF:
            return bytes(data)


async def echo(stream: INetStream) -> None:
    """Send back what comes, as it comes, until the peer closes or resets."""
    try:
        while True:
            await stream.write(await stream.read(1 << 16))
    except StreamEOF:
        await stream.close()
    except StreamError:
        await stream.reset()


@asynccontextmanager
async def running(kind: str) -> AsyncIterator[IHost]:
    keys = create_new_key_pair()
    stock = {PROTOCOL_ID: Transport(keys, noise_privkey=create_noise_key_pair().private_key)}
    host = new_host(
        key_pair=keys,
        listen_addrs=ANY_PORT,
        sec_opt=security_options(keys) if kind in (FAST, FAST_NOISE) else stock,
        connection_config=ConnectionConfig(low_watermark=0, min_connections=0),
        disable_identify_address_discovery=True,
    )
    if kind in (FAST, FAST_YAMUX):
        use_fast_yamux(host)
    host.set_stream_handler(ECHO, echo)
    async with host.run(listen_addrs=ANY_PORT):
        yield host


@asynccontextmanager
async def connected(dialer_kind: str, listener_kind: str) -> AsyncIterator[tuple[IHost, IHost]]:
    async with running(listener_kind) as listener, running(dialer_kind) as dialer:
        await dialer.connect(PeerInfo(listener.get_id(), listener.get_addrs()))
        for host, other, kind in ((dialer, listener, dialer_kind), (listener, dialer, listener_kind)):
            assert type(muxer(host, other)) is MUXER[kind]
        yield dialer, listener
        await dialer.disconnect(listener.get_id())  # py-libp2p's own muxer leaves its socket open when it is cancelled


def muxer(host: IHost, other: IHost) -> IMuxedConn:
    return host.get_network().get_connections(other.get_id())[0].muxed_conn


async def open_echo(dialer: IHost, listener: IHost) -> INetStream:
    return await dialer.new_stream(listener.get_id(), [ECHO])


async def call(dialer: IHost, listener: IHost, request: bytes) -> None:
    """One request on a stream of its own, half-closed when it is sent."""
    stream = await open_echo(dialer, listener)
    assert isinstance(stream, NetStream)
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.write(request)
            await stream.close_write()

        nursery.start_soon(send)
        assert await read_all(stream) == request
    await stream.close()


@pytest.mark.parametrize(("dialer_kind", "listener_kind"), COMBINATIONS)
async def test_streams_carry_messages_bulk_and_half_closes(dialer_kind: str, listener_kind: str) -> None:
    async with connected(dialer_kind, listener_kind) as (dialer, listener):
        stream = await open_echo(dialer, listener)
        for size in (1, 64, 4096):
            await stream.write(bytes(size))
            assert len(await stream.read(size)) == size
        await stream.reset()
        await call(dialer, listener, bytes(range(256)) * (8 << 12))
        await call(listener, dialer, b"the other way round")


@pytest.mark.parametrize(("dialer_kind", "listener_kind"), COMBINATIONS[:3])
async def test_two_hundred_streams_at_once(dialer_kind: str, listener_kind: str) -> None:
    async with connected(dialer_kind, listener_kind) as (dialer, listener), trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(call, dialer, listener, number.to_bytes(2, "big") * 500)


@pytest.mark.parametrize(("dialer_kind", "listener_kind"), [(FAST, FAST), (FAST, STOCK), (FAST_NOISE, FAST)])
async def test_four_hundred_cancelled_calls_leave_the_connection_healthy(dialer_kind: str, listener_kind: str) -> None:
    rng = random.Random(2)

    async def cancelled_call(ticks: int) -> None:
        stream = await open_echo(dialer, listener)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_after, scope, ticks)
                await stream.write(bytes(300_000))
                await read_all(stream)
        await stream.reset()

    async def cancel_after(scope: trio.CancelScope, ticks: int) -> None:
        for _ in range(ticks):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with connected(dialer_kind, listener_kind) as (dialer, listener):
        connection = muxer(dialer, listener)
        for _ in range(20):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(cancelled_call, rng.randrange(40))
        await call(dialer, listener, b"still fine")
        assert muxer(dialer, listener) is connection
        assert not connection.is_closed
        if isinstance(connection, FastYamux):
            assert connection.stream_count == 0


@pytest.mark.parametrize(("dialer_kind", "listener_kind"), COMBINATIONS[:3])
async def test_the_loss_of_the_connection_reaches_readers_at_the_other_end(
    dialer_kind: str, listener_kind: str
) -> None:
    ended = trio.Event()

    async with connected(dialer_kind, listener_kind) as (dialer, listener):

        async def read() -> None:
            stream = await open_echo(dialer, listener)
            reading.set()
            with pytest.raises((StreamEOF, StreamError)):
                await stream.read(1)
            ended.set()

        reading = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await reading.wait()
            await listener.get_network().close_peer(dialer.get_id())
        assert ended.is_set()


@asynccontextmanager
async def bare_session(host: IHost) -> AsyncIterator[FastNoiseSession]:
    """A peer of ``host`` that has negotiated Yamux and then speaks what the test makes it speak."""
    keys = create_new_key_pair()
    address = host.get_addrs()[0]
    tcp = await trio.open_tcp_stream(address.value_for_protocol("ip4"), int(address.value_for_protocol("tcp")))
    async with tcp:
        upgrader = _swarm(new_host(key_pair=keys, sec_opt=security_options(keys))).upgrader
        raw = RawConnection(TrioTCPStream(tcp), True)
        session = await upgrader.upgrade_security(raw, True, host.get_id())
        assert isinstance(session, FastNoiseSession)
        await upgrader.upgrade_connection(session, host.get_id())
        yield session


def _swarm(host: IHost) -> Swarm:
    network = host.get_network()
    assert isinstance(network, Swarm)
    return network


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n" * 1000, id="garbage"),
        pytest.param(encode(PING, SYN, 0, 1) * (1 << 20), id="pings without reading the answers"),
    ],
)
async def test_a_hostile_peer_is_cut_off_and_others_are_served(attack: bytes) -> None:
    async with running(FAST) as victim, running(FAST) as friend:
        async with bare_session(victim) as attacker:

            async def attack_for_ever() -> None:
                while True:
                    await attacker.write(attack)

            with pytest.raises(ConnectionClosedError):
                await attack_for_ever()
        await friend.connect(PeerInfo(victim.get_id(), victim.get_addrs()))
        await call(friend, victim, b"alive")


async def test_guards_on_the_negotiation_of_the_muxer_stay() -> None:
    host = new_host()
    guarded = _swarm(host).upgrader.muxer_multistream.multiselect
    use_fast_yamux(host)
    assert _swarm(host).upgrader.muxer_multistream.multiselect is guarded


def test_a_network_that_is_no_swarm_is_refused() -> None:
    class Network:
        pass

    class Host:
        def get_network(self) -> Network:
            return Network()

    with pytest.raises(ConfigError, match="Network, not py-libp2p's Swarm"):
        use_fast_yamux(Host())  # type: ignore[arg-type]
