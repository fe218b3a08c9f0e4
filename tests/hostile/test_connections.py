"""A connection whose bytes were damaged, on the way or by its peer: it goes on or ends, and takes nothing with it."""

from __future__ import annotations

from contextlib import suppress
from random import Random

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.abc import ISecureConn
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from trio.testing import wait_all_tasks_blocked

from prime_dht.net.identity import new_identity
from prime_dht.net.noise import FastNoise, FastNoiseSession
from prime_dht.net.yamux import FastYamux
from prime_dht.net.yamux.connection import MAX_BUFFERED_BYTES, SPARE_WINDOW_BYTES
from prime_dht.net.yamux.frames import ACK, DATA, FIN, GO_AWAY, NORMAL, PING, RST, SYN, WINDOW_UPDATE, encode
from prime_dht.testing.hostile import damaged
from prime_dht.testing.memory_conn import memory_conns

PEER = ID(b"\x00\x01\x00")
FRAMES = (
    encode(WINDOW_UPDATE, SYN, 1, 0),
    encode(DATA, SYN, 3, 5) + b"hello",
    encode(DATA, 0, 1, 300) + bytes(300),
    encode(DATA, FIN, 3, 0),
    encode(WINDOW_UPDATE, 0, 1, 70_000),
    encode(WINDOW_UPDATE, RST, 1, 0),
    encode(WINDOW_UPDATE, ACK, 2, 0),
    encode(DATA, 0, 2, 3) + b"abc",
    encode(PING, SYN, 0, 7),
    encode(PING, ACK, 0, 7),
    encode(GO_AWAY, 0, 0, NORMAL),
)
PLAINTEXTS = [b"first", bytes(1000), b"last"]
conversations = st.lists(st.sampled_from(FRAMES), min_size=1, max_size=12).map(b"".join)
fuzz = settings(derandomize=True, deadline=None, max_examples=200)


@fuzz
@given(st.lists(st.builds(damaged, conversations, st.randoms(use_true_random=False)), min_size=1, max_size=4))
def test_a_muxer_takes_any_frames_holds_little_and_ends_cleanly(chunks: list[bytes]) -> None:
    async def converse() -> None:
        peer, listener = memory_conns()
        muxer = FastYamux(listener, PEER, max_inbound_streams=4, max_outbound_streams=4)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(muxer.start)
            await wait_all_tasks_blocked()
            await muxer.open_stream()
            for chunk in chunks:
                if not peer.is_lost:
                    peer.send_now(chunk)
                    await wait_all_tasks_blocked()
                assert muxer.stream_count <= 5
                assert muxer._buffered_bytes <= MAX_BUFFERED_BYTES
            await muxer.close()
        assert muxer.is_closed
        assert muxer.stream_count == 0
        assert (muxer._free_inbound, muxer._buffered_bytes, muxer._spare_window_bytes) == (4, 0, SPARE_WINDOW_BYTES)

    trio.run(converse)


def raw(sock: trio.socket.SocketType, *, is_initiator: bool) -> RawConnection:
    return RawConnection(TrioTCPStream(trio.SocketStream(sock)), is_initiator)


async def handshake(dialer: trio.socket.SocketType, listener: trio.socket.SocketType) -> list[FastNoiseSession]:
    """Sessions on two sockets, of which what one sends the other receives."""
    transports = [FastNoise(new_identity(), noise_privkey=create_noise_key_pair().private_key) for _ in range(2)]
    sessions: dict[bool, ISecureConn] = {}

    async def dial() -> None:
        sessions[True] = await transports[0].secure_outbound(raw(dialer, is_initiator=True), transports[1].local_peer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        sessions[False] = await transports[1].secure_inbound(raw(listener, is_initiator=False))
    ends = [sessions[True], sessions[False]]
    return [end for end in ends if isinstance(end, FastNoiseSession)]


async def forward(source: trio.socket.SocketType, sink: trio.socket.SocketType) -> None:
    while data := await source.recv(65536):
        await sink.send(data)


async def test_a_session_gives_out_what_was_sealed_in_its_order_and_ends_at_the_first_byte_that_was_not() -> None:
    rng = Random(1)
    for _ in range(50):
        dialer_end, dialer_side = trio.socket.socketpair()
        listener_side, listener_end = trio.socket.socketpair()
        with dialer_end, dialer_side, listener_side, listener_end:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(forward, listener_side, dialer_side)
                async with trio.open_nursery() as in_between:
                    in_between.start_soon(forward, dialer_side, listener_side)
                    dialer, listener = await handshake(dialer_end, listener_end)
                    in_between.cancel_scope.cancel()
                for plaintext in PLAINTEXTS:
                    dialer.send_now(plaintext)
                await listener_side.send(damaged(await dialer_side.recv(65536), rng))
                listener_side.shutdown(trio.socket.SHUT_WR)
                got: list[bytes] = []
                with suppress(ConnectionClosedError):
                    while True:
                        got += await listener.read_some()
                assert got == PLAINTEXTS[: len(got)]
                nursery.cancel_scope.cancel()
