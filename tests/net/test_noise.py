"""The Noise transport phase over socket pairs: both ends ours, or one of them py-libp2p's."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator

import pytest
import trio
from libp2p.abc import IRawConnection
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID, Transport
from libp2p.security.secure_session import SecureSession
from noise.connection import NoiseConnection
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.net.noise import (
    CIPHERS_KEPT,
    MAX_PLAINTEXT_BYTES,
    OUTGOING_HARD_BYTES,
    OUTGOING_SOFT_BYTES,
    SEND_STALL_S,
    CipherState,
    FastNoise,
    FastNoiseSession,
    security_options,
)

RawPair = tuple[RawConnection, RawConnection]
FastPair = tuple[FastNoiseSession, FastNoiseSession]


@pytest.fixture
async def raw_pair() -> AsyncIterator[RawPair]:
    """Both ends of a connection, the dialer's first."""
    left, right = trio.socket.socketpair()
    with left, right:
        yield (
            RawConnection(TrioTCPStream(trio.SocketStream(left)), True),
            RawConnection(TrioTCPStream(trio.SocketStream(right)), False),
        )


async def handshake(
    dialer: IRawConnection,
    listener: IRawConnection,
    dialer_class: type[Transport] = FastNoise,
    listener_class: type[Transport] = FastNoise,
) -> tuple[SecureSession, SecureSession]:
    keys = create_new_key_pair(), create_new_key_pair()
    sessions: dict[bool, SecureSession] = {}

    async def secure(transport: Transport, conn: IRawConnection, peer: ID | None) -> None:
        session = await (transport.secure_outbound(conn, peer) if peer else transport.secure_inbound(conn))
        assert isinstance(session, SecureSession)
        sessions[session.is_initiator] = session

    async with trio.open_nursery() as nursery:
        ends = zip((dialer, listener), (dialer_class, listener_class), keys, strict=True)
        for (conn, transport_class, key_pair), peer in zip(
            ends, (ID.from_pubkey(keys[1].public_key), None), strict=True
        ):
            transport = transport_class(key_pair, noise_privkey=create_noise_key_pair().private_key)
            nursery.start_soon(secure, transport, conn, peer)
    return sessions[True], sessions[False]


@pytest.fixture
async def fast_pair(raw_pair: RawPair) -> FastPair:
    dialer, listener = await handshake(*raw_pair)
    assert isinstance(dialer, FastNoiseSession)
    assert isinstance(listener, FastNoiseSession)
    return dialer, listener


def below(session: FastNoiseSession) -> trio.SocketStream:
    """What is below a session, to send what the session never would."""
    return trio.SocketStream(session._socket)


@pytest.mark.usefixtures("uncollected")
async def test_nothing_of_the_handshake_is_kept(fast_pair: FastPair) -> None:
    assert all(isinstance(session.conn, RawConnection) for session in fast_pair)
    assert not [each for each in gc.get_objects() if isinstance(each, NoiseConnection)]  # nor a copy of the keys


@pytest.mark.parametrize("listener_class", [FastNoise, Transport], ids=["fast listener", "stock listener"])
@pytest.mark.parametrize("dialer_class", [FastNoise, Transport], ids=["fast dialer", "stock dialer"])
async def test_every_size_passes_between_our_sessions_and_stock_ones(
    raw_pair: RawPair, dialer_class: type[Transport], listener_class: type[Transport], nursery: trio.Nursery
) -> None:
    ends = await handshake(*raw_pair, dialer_class, listener_class)
    for sender, receiver in (ends, ends[::-1]):
        for size in (1, 12, MAX_PLAINTEXT_BYTES, MAX_PLAINTEXT_BYTES + 1, 300_000):
            data = bytes(range(251)) * (size // 251 + 1)
            nursery.start_soon(sender.write, data[:size])
            assert await receiver.read(size) == data[:size]


async def test_frames_that_follow_the_handshake_in_one_segment_are_not_lost(raw_pair: RawPair) -> None:
    class LastMessageHeld(RawConnection):
        """Sends the handshake's last message only together with what is written next."""

        held: bytes | None = None
        writes = 0

        async def write(self, data: bytes) -> None:
            self.writes += 1
            if self.writes == 2:
                self.held = data
                return
            await super().write((self.held or b"") + data)
            self.held = b""

    dialer_raw, listener_raw = raw_pair
    held = LastMessageHeld(dialer_raw.stream, True)
    listener: list[SecureSession] = []
    dialer_keys, listener_keys = create_new_key_pair(), create_new_key_pair()

    async def listen() -> None:
        transport = FastNoise(listener_keys, noise_privkey=create_noise_key_pair().private_key)
        session = await transport.secure_inbound(listener_raw)
        assert isinstance(session, FastNoiseSession)
        listener.append(session)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        transport = Transport(dialer_keys, noise_privkey=create_noise_key_pair().private_key)
        dialer = await transport.secure_outbound(held, ID.from_pubkey(listener_keys.public_key))
        await dialer.write(b"first")
    await dialer.write(b"second")
    assert await listener[0].read(11) == b"firstsecond"


async def test_a_connection_that_is_no_plain_tcp_socket_keeps_the_stock_session(raw_pair: RawPair) -> None:
    class Wrapped(RawConnection):
        pass

    dialer_raw, listener_raw = raw_pair
    dialer, listener = await handshake(Wrapped(dialer_raw.stream, True), listener_raw)
    assert type(dialer) is SecureSession
    assert type(listener) is FastNoiseSession
    await dialer.write(b"ping")
    assert await listener.read(4) == b"ping"


async def test_a_host_is_offered_noise_and_nothing_else() -> None:
    options = security_options(create_new_key_pair())
    assert list(options) == [PROTOCOL_ID]
    assert isinstance(options[PROTOCOL_ID], FastNoise)


async def test_one_receive_brings_all_frames_that_are_there(fast_pair: FastPair) -> None:
    dialer, listener = fast_pair
    for message in (b"one", b"two", b"three"):
        dialer.send_now(message)
    assert await listener.read_some() == [b"one", b"two", b"three"]


async def test_read_takes_exactly_what_is_asked_for_and_leaves_the_rest_to_read_some(fast_pair: FastPair) -> None:
    dialer, listener = fast_pair
    dialer.send_now(b"/yamux/1.0.0")
    dialer.send_now(b"rest")
    assert await listener.read(0) == b""
    assert await listener.read(7) == b"/yamux/"
    assert await listener.read() == b"1.0.0rest"
    dialer.send_now(b"abcdef")
    assert await listener.read(2) == b"ab"
    assert await listener.read_some() == [b"cdef"]


async def test_a_cancelled_read_loses_nothing(fast_pair: FastPair) -> None:
    dialer, listener = fast_pair
    dialer.send_now(b"half")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.read, 8)
            await wait_all_tasks_blocked()
            scope.cancel()
    dialer.send_now(b"half")
    assert await listener.read(8) == b"halfhalf"


async def test_a_frame_that_arrives_byte_by_byte_is_whole(fast_pair: FastPair) -> None:
    dialer, listener = fast_pair
    sealed = dialer._seal(b"in small pieces")
    for byte in sealed:
        await below(dialer).send_all(bytes([byte]))
        await wait_all_tasks_blocked()
    assert await listener.read_some() == [b"in small pieces"]


@pytest.mark.parametrize("forged", [b"\x00\x14" + bytes(20), b"\x00\x00", b"\x00\x0f" + bytes(15)])
async def test_a_forged_frame_ends_the_connection(fast_pair: FastPair, forged: bytes) -> None:
    dialer, listener = fast_pair
    await below(dialer).send_all(forged)
    for _ in range(2):
        with pytest.raises(ConnectionClosedError):
            await listener.read_some()
    with pytest.raises(ConnectionClosedError):
        listener.send_now(b"x")
    with pytest.raises(ConnectionClosedError):
        await dialer.read_some()


async def test_a_replayed_frame_ends_the_connection(fast_pair: FastPair) -> None:
    dialer, listener = fast_pair
    sealed = dialer._seal(b"pay 1")
    await below(dialer).send_all(sealed)
    assert await listener.read_some() == [b"pay 1"]
    await below(dialer).send_all(sealed)
    with pytest.raises(ConnectionClosedError, match="authentication"):
        await listener.read_some()


@pytest.mark.parametrize(("last", "reason"), [(b"", "closed the connection$"), (b"\x01\x00\xff", "within a frame")])
async def test_the_end_of_the_connection_is_told_from_a_cut_frame(
    fast_pair: FastPair, last: bytes, reason: str
) -> None:
    dialer, listener = fast_pair
    await below(dialer).send_all(last)
    await dialer.close()
    with pytest.raises(ConnectionClosedError, match=reason):
        await listener.read_some()


async def test_writers_wait_while_the_peer_does_not_read_and_nothing_is_lost(
    fast_pair: FastPair, nursery: trio.Nursery
) -> None:
    dialer, listener = fast_pair
    most = 0

    async def write(number: int) -> None:
        nonlocal most
        for _ in range(40):
            await dialer.backpressure()
            if not dialer.send_now(bytes([number]) * 50_000):
                nursery.start_soon(dialer.flush)
            most = max(most, OUTGOING_SOFT_BYTES - dialer.room_bytes)

    async with trio.open_nursery() as writers:
        for number in range(10):
            writers.start_soon(write, number)
        await wait_all_tasks_blocked()
        assert dialer.room_bytes <= 0
        received = await listener.read(10 * 40 * 50_000)
    assert most <= OUTGOING_SOFT_BYTES + MAX_PLAINTEXT_BYTES
    assert [received.count(number) for number in range(10)] == [40 * 50_000] * 10


def fill(session: FastNoiseSession) -> None:
    """Send until the kernel takes no more."""
    while session.room_bytes > 0:
        session.send_now(bytes(MAX_PLAINTEXT_BYTES))


async def test_a_peer_that_makes_us_answer_and_does_not_read_is_cut_off(
    fast_pair: FastPair, nursery: trio.Nursery
) -> None:
    dialer, _ = fast_pair
    ended: list[str] = []

    async def read() -> None:
        try:
            await dialer.read_some()
        except ConnectionClosedError:
            ended.append("the reader of a silent peer")

    nursery.start_soon(read)
    fill(dialer)
    while OUTGOING_SOFT_BYTES - dialer.room_bytes < OUTGOING_HARD_BYTES - 1000:
        dialer.send_now(bytes(12))
    with pytest.raises(ConnectionClosedError, match="does not read"):
        dialer.send_now(bytes(1000))
    assert dialer.room_bytes == OUTGOING_SOFT_BYTES, "what cannot be sent is not kept"
    await wait_all_tasks_blocked()
    assert ended


async def test_a_peer_that_takes_nothing_for_long_is_cut_off(
    fast_pair: FastPair, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    dialer, _ = fast_pair
    fill(dialer)
    started = trio.current_time()

    async def wait_for_room() -> None:
        with pytest.raises(ConnectionClosedError):
            await dialer.backpressure()

    nursery.start_soon(wait_for_room)
    with pytest.raises(ConnectionClosedError, match="takes no data"):
        await dialer.flush()
    assert trio.current_time() - started == SEND_STALL_S


async def test_closing_wakes_readers_and_writers(fast_pair: FastPair) -> None:
    dialer, _ = fast_pair
    woken: list[str] = []

    async def expect_end(name: str) -> None:
        try:
            await getattr(dialer, name)()
        except ConnectionClosedError:
            woken.append(name)

    async with trio.open_nursery() as nursery:
        fill(dialer)
        for name in ("read_some", "backpressure", "flush"):
            nursery.start_soon(expect_end, name)
        await wait_all_tasks_blocked()
        await dialer.close()
    assert sorted(woken) == ["backpressure", "flush", "read_some"]
    with pytest.raises(ConnectionClosedError):
        dialer.send_now(b"x")
    with pytest.raises(ConnectionClosedError):
        await dialer.write(b"x")


def test_of_many_directions_only_those_that_came_into_use_last_have_a_cipher_ready_and_all_go_on() -> None:
    ends = [(CipherState(bytes([number % 256] * 32)), CipherState(bytes([number % 256] * 32))) for number in range(300)]
    for word in (b"first", b"second"):
        for sealing, opening in ends:
            assert opening.open(memoryview(sealing.seal(word))) == word
    ready = [state._cipher is not None for end in ends for state in end]
    assert ready == [False] * (len(ready) - CIPHERS_KEPT) + [True] * CIPHERS_KEPT


def test_a_cipher_that_is_ready_stays_while_no_other_is_made() -> None:
    state = CipherState(bytes(32))
    state.seal(b"first")
    ready = state._cipher
    state.seal(b"second")
    assert ready is not None
    assert state._cipher is ready


def test_the_last_nonce_is_never_used() -> None:
    sealing, opening = (CipherState(bytes(32), 2**64 - 2) for _ in range(2))
    assert opening.open(memoryview(sealing.seal(memoryview(b"the last")))) == b"the last"
    with pytest.raises(ConnectionClosedError, match="used up"):
        sealing.seal(memoryview(b"one too many"))
    with pytest.raises(ConnectionClosedError, match="used up"):
        opening.open(memoryview(bytes(16)))
