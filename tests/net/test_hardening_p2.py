"""P2: in py-libp2p 0.8.1, cancelling a task that writes cuts a Noise frame in two, and the connection is lost.

The peer does not read at first, so the writer blocks half way through its frame; there it is cancelled. When
``test_a_stock_connection_does_not`` fails, py-libp2p has mended this, and our own session is there for speed alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from libp2p.abc import ISecureConn
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport
from noise.exceptions import NoiseInvalidMessage
from trio.testing import wait_all_tasks_blocked

from prime_dht.net.noise import FastNoise

SocketPair = tuple[trio.socket.SocketType, trio.socket.SocketType]

BULK = bytes(range(256)) * 16_384
NEXT = b"next" * 50_000


@pytest.fixture
async def socket_pair() -> AsyncIterator[SocketPair]:
    left, right = trio.socket.socketpair()
    with left, right:
        yield left, right


async def sessions(transport_class: type[Transport], socket_pair: SocketPair) -> tuple[ISecureConn, ISecureConn]:
    left, right = socket_pair
    dialer_keys, listener_keys = create_new_key_pair(), create_new_key_pair()
    accepted: list[ISecureConn] = []

    async def accept() -> None:
        transport = transport_class(listener_keys, noise_privkey=create_noise_key_pair().private_key)
        raw = RawConnection(TrioTCPStream(trio.SocketStream(right)), False)
        accepted.append(await transport.secure_inbound(raw))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        transport = transport_class(dialer_keys, noise_privkey=create_noise_key_pair().private_key)
        raw = RawConnection(TrioTCPStream(trio.SocketStream(left)), True)
        dialed = await transport.secure_outbound(raw, ID.from_pubkey(listener_keys.public_key))
    return dialed, accepted[0]


async def write_cancelled_half_way(conn: ISecureConn) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(conn.write, BULK)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def read_through(conn: ISecureConn, ending: bytes) -> bytes:
    data = bytearray()
    while not data.endswith(ending):
        data += await conn.read()
    return bytes(data)


async def test_our_connection_survives_a_cancelled_write(socket_pair: SocketPair, nursery: trio.Nursery) -> None:
    dialer, listener = await sessions(FastNoise, socket_pair)
    for _ in range(3):
        await write_cancelled_half_way(dialer)
    nursery.start_soon(dialer.write, NEXT)
    received = (await read_through(listener, NEXT)).removesuffix(NEXT)
    assert 0 < len(received) < len(BULK)
    assert BULK.startswith(received), "whole frames of the first write, which left no room for the others"


async def test_a_stock_connection_does_not(socket_pair: SocketPair, nursery: trio.Nursery) -> None:
    dialer, listener = await sessions(Transport, socket_pair)
    await write_cancelled_half_way(dialer)
    nursery.start_soon(dialer.write, NEXT)
    with pytest.raises(NoiseInvalidMessage):
        await read_through(listener, NEXT)
