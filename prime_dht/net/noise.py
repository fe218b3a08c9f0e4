"""The Noise transport phase, made synchronous.

py-libp2p performs the handshake (libp2p's Noise specification, pattern XX); then :class:`FastNoiseSession` takes over
the two cipher states and the socket. After the handshake a connection is, in each direction, a sequence of *frames*:
a length in two bytes, big-endian, and a Noise transport message of that many bytes, which is at most 65,519 bytes of
plaintext and a 16-byte tag. The n-th frame is sealed with nonce n, so a frame that is lost, doubled or cut in two ruins
all that follow.

Invariants:

- **A frame is sealed and queued in one synchronous step.** No cancellation can fall between taking a nonce and handing
  over the whole frame, which is what breaks py-libp2p's own session when a writer is cancelled half way.
- **The outgoing buffer is bounded.** It holds what the kernel would not take. Writers wait in ``backpressure`` above
  ``OUTGOING_SOFT_BYTES``; frames that cannot wait (replies of a muxer's read loop) may pass that mark, but a peer that
  lets the buffer reach ``OUTGOING_HARD_BYTES``, or takes nothing for ``SEND_STALL_S``, loses the connection.
- **Nothing unauthenticated comes out.** A frame that fails authentication ends the connection.
- **One task reads, any number write.** Whatever ends the session wakes all of them with ``ConnectionClosedError``.

Where the connection below is not a plain TCP socket of trio's (a WebSocket, a circuit, a private network's), the
handshake's own session is returned unchanged. Nothing can be lost at the take-over: py-libp2p's handshake reads exactly
its messages' bytes from the socket, and no more.

Sources: Noise Protocol Framework revision 34, sections 5.1 and 13; libp2p specs, ``noise/README.md``, "Wire Format".
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections import deque
from functools import cached_property
from typing import ClassVar, cast
from weakref import ref

import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from libp2p.abc import IRawConnection, ISecureConn
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.custom_types import TSecurityOptions
from libp2p.io.abc import EncryptedMsgReadWriter
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.io import NoiseTransportReadWriter
from libp2p.security.noise.messages import NoiseExtensions, NoiseHandshakePayload
from libp2p.security.noise.patterns import IPattern, PatternXX
from libp2p.security.noise.transport import PROTOCOL_ID, Transport
from libp2p.security.secure_session import SecureSession
from noise.backends.default.keypairs import KeyPair25519
from noise.connection import NoiseConnection

MAX_PLAINTEXT_BYTES = 65535 - 16
"""The most that one frame can carry."""

OUTGOING_SOFT_BYTES = 256 << 10
"""From here on, writers wait."""

OUTGOING_HARD_BYTES = 1 << 20
"""Beyond this the connection is closed: the peer makes us answer and does not read the answers."""

CIPHERS_KEPT = 512
"""Ciphers that are ready for use in a process: those of 256 connections, a megabyte."""

SEND_STALL_S = 30.0
"""How long the kernel may take nothing while something is to be sent."""

_RECEIVE_BYTES = 128 << 10
_LENGTH_BYTES = 2
_MAX_NONCE = 2**64 - 1  # reserved, so never used


def security_options(key_pair: KeyPair) -> TSecurityOptions:
    """What a host offers to secure its connections: Noise and nothing else, for the identity ``key_pair``."""
    return {PROTOCOL_ID: FastNoise(key_pair, noise_privkey=create_new_key_pair().private_key)}


class FastNoise(Transport):
    """py-libp2p's Noise, whose handshakes end in a :class:`FastNoiseSession` wherever that is possible."""

    @cached_property
    def _own_part(self) -> _OwnPart:
        pattern = super().get_pattern()
        assert isinstance(pattern, PatternXX)
        return _OwnPart(pattern)

    def get_pattern(self) -> IPattern:
        return _Handshake(self._own_part)

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        return _take_over(await super().secure_inbound(conn))

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:
        return _take_over(await super().secure_outbound(conn, peer_id))


class _OwnPart:
    """What this host contributes to each of its handshakes: always the same key pair, and payload with its signature.

    py-libp2p derives and signs both anew each time, which is a sixth of a handshake's work.
    """

    def __init__(self, pattern: PatternXX) -> None:
        self.pattern = pattern
        self.payload = pattern.make_handshake_payload()
        self.key_pair = KeyPair25519.from_private_bytes(pattern.noise_static_key.to_bytes())


class _Handshake(PatternXX):
    """py-libp2p's handshake, with an own part that was made before."""

    def __init__(self, own: _OwnPart) -> None:
        stock = own.pattern
        super().__init__(stock.local_peer, stock.libp2p_privkey, stock.noise_static_key, stock.early_data)
        self._own = own

    def create_noise_state(self, prologue: bytes | None = None) -> NoiseConnection:
        state = NoiseConnection.from_name(self.protocol_name)
        state.noise_protocol.keypairs["s"] = self._own.key_pair
        if prologue is not None:
            state.set_prologue(prologue)
        return state

    def make_handshake_payload(self, extensions: NoiseExtensions | None = None) -> NoiseHandshakePayload:
        return self._own.payload if extensions is None else super().make_handshake_payload(extensions)


class CipherState:
    """One direction's key, and the nonce that the next frame has.

    The cipher made of a key takes 2 kB, and making it as long as sealing a short frame. So only the ``CIPHERS_KEPT``
    made last in the process are kept, whichever connections they are of; another is made again when there is need.

    Args:
        key: 32 bytes.
        nonce: of the first frame to be sealed or opened.
    """

    __slots__ = ("__weakref__", "_cipher", "_key", "_nonce")

    _encode_nonce = struct.Struct("<4xQ").pack
    _kept: ClassVar[deque[ref[CipherState]]] = deque()

    def __init__(self, key: bytes, nonce: int = 0) -> None:
        self._key = key
        self._cipher: ChaCha20Poly1305 | None = None
        self._nonce = nonce

    def seal(self, plaintext: bytes | memoryview) -> bytes:
        """Encrypt the next frame's payload.

        Raises:
            ConnectionClosedError: all nonces are used up.
        """
        return (self._cipher or self._make_cipher()).encrypt(self._next_nonce(), plaintext, None)

    def open(self, ciphertext: memoryview) -> bytes:
        """Decrypt the next frame's payload.

        Raises:
            ConnectionClosedError: it is not what the peer sealed as its next frame, or all nonces are used up.
        """
        try:
            return (self._cipher or self._make_cipher()).decrypt(self._next_nonce(), ciphertext, None)
        except InvalidTag as error:
            raise _closed("a Noise frame failed authentication") from error

    def _make_cipher(self) -> ChaCha20Poly1305:
        self._cipher = cipher = ChaCha20Poly1305(self._key)
        self._kept.append(ref(self))
        while len(self._kept) > CIPHERS_KEPT:
            oldest = self._kept.popleft()()
            if oldest is not None:
                oldest._cipher = None
        return cipher

    def _next_nonce(self) -> bytes:
        nonce = self._nonce
        if nonce >= _MAX_NONCE:
            raise _closed("the Noise nonces are used up")
        self._nonce = nonce + 1
        return self._encode_nonce(nonce)


class FastNoiseSession(SecureSession):
    """One secured TCP connection: synchronous sending, and reading of all that one ``recv`` brings.

    A muxer uses ``send_now``, ``backpressure``, ``room_bytes`` and ``read_some``, and ``flush`` when not all could be
    sent. Without one (muxer negotiation, py-libp2p's own Yamux) ``read``, ``write`` and ``close`` do what they do in
    the base class, except that a cancelled ``write`` leaves the connection intact: the rest of its frame leaves with
    the next write.

    Args:
        handshaken: the session that py-libp2p's handshake made; it must not be used again.
        below: what the handshake went over; closing it closes the socket.
        sock: the connection's socket, which this session alone reads and writes from now on.
        sending: seals what we send.
        receiving: opens what the peer sends.
    """

    def __init__(
        self,
        handshaken: SecureSession,
        below: IRawConnection,
        sock: trio.socket.SocketType,
        *,
        sending: CipherState,
        receiving: CipherState,
    ) -> None:
        super().__init__(
            local_peer=handshaken.local_peer,
            local_private_key=handshaken.local_private_key,
            remote_peer=handshaken.remote_peer,
            remote_permanent_pubkey=handshaken.remote_permanent_pubkey,
            is_initiator=handshaken.is_initiator,
            conn=cast(EncryptedMsgReadWriter, below),  # of which the base class uses what any connection has
        )
        self._socket = sock
        self._sending = sending
        self._receiving = receiving
        self._is_dead = False
        self._outgoing = bytearray()  # sealed frames that the kernel has not taken
        self._ciphertext = b""  # the beginning of a frame whose rest is to come
        self._plaintext = bytearray()  # opened, and not yet read by `read`

    # Most connections never need these two, of half a kilobyte.

    @cached_property
    def _flushing(self) -> trio.Lock:
        """Trio lets only one task wait for a socket to become writable."""
        return trio.Lock()

    @cached_property
    def _writers(self) -> trio.lowlevel.ParkingLot:
        """Those who wait for room in the outgoing buffer."""
        return trio.lowlevel.ParkingLot()

    # Sending

    @property
    def room_bytes(self) -> int:
        """How much the outgoing buffer is below its soft bound; 0 or less means that writers have to wait."""
        return OUTGOING_SOFT_BYTES - len(self._outgoing)

    def send_now(self, data: bytes | memoryview) -> bool:
        """Seal ``data`` and give it to the kernel, or else to the outgoing buffer, at once and whole.

        Returns:
            whether the kernel has taken all there was to send; if not, somebody has to ``flush``.

        Raises:
            ConnectionClosedError: the connection is closed, broke, or is closed now because the peer does not read.
        """
        if self._is_dead:
            raise _closed("the connection is closed")
        if len(self._outgoing) + len(data) > OUTGOING_HARD_BYTES:
            raise self._end("the peer does not read what it makes us send")
        try:
            packet = self._seal(data)
        except ConnectionClosedError as error:
            raise self._end(str(error)) from error
        taken = 0 if self._outgoing else self._offer(packet)
        if taken == len(packet):
            return True
        self._outgoing += memoryview(packet)[taken:]
        return False

    async def backpressure(self) -> None:
        """Wait until there is room in the outgoing buffer. Returns at once, without a checkpoint, when there is.

        Raises:
            ConnectionClosedError: the connection is closed, or broke meanwhile.
        """
        while not self._is_dead and self.room_bytes <= 0:
            await self._writers.park()
        if self._is_dead:
            raise _closed("the connection is closed")

    async def flush(self) -> None:
        """Wait until the kernel has taken everything.

        Raises:
            ConnectionClosedError: the connection is closed, broke, or stalled for ``SEND_STALL_S``.
        """
        if self._outgoing:
            async with self._flushing:
                await self._give_to_kernel()
        else:
            await trio.lowlevel.checkpoint()
        if self._is_dead:
            raise _closed("the connection is closed")

    async def write(self, data: bytes) -> None:
        """Send ``data`` and wait until the kernel has taken it. Cancellation never cuts a frame.

        Raises:
            ConnectionClosedError: the connection is closed, broke, or stalled.
        """
        rest = memoryview(data)
        while rest:
            if self._outgoing:  # of a write that was cancelled; waiting first keeps any number of those from piling up
                await self.flush()
            self.send_now(rest[:MAX_PLAINTEXT_BYTES])
            rest = rest[MAX_PLAINTEXT_BYTES:]
        await self.flush()

    def _seal(self, data: bytes | memoryview) -> bytes:
        if len(data) > MAX_PLAINTEXT_BYTES:
            view = memoryview(data)
            starts = range(0, len(view), MAX_PLAINTEXT_BYTES)
            return b"".join([self._seal(view[start : start + MAX_PLAINTEXT_BYTES]) for start in starts])
        ciphertext = self._sending.seal(data)
        return len(ciphertext).to_bytes(_LENGTH_BYTES, "big") + ciphertext

    def _offer(self, packet: bytes | bytearray) -> int:
        """How many bytes of ``packet`` the kernel took."""
        try:
            # trio's sockets have no synchronous send. (POSIX alone writes to a socket so; trio made it non-blocking.)
            return os.write(self._socket.fileno(), packet)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._end(f"sending failed: {error}") from error

    async def _give_to_kernel(self) -> None:
        while self._outgoing:
            with trio.move_on_after(SEND_STALL_S) as stall:
                await self._until_writable()
            if stall.cancelled_caught:
                raise self._end("the peer takes no data")
            del self._outgoing[: self._offer(self._outgoing)]
            # One writer for each frame there is room for, since waking all of them for one place would cost as many
            # reschedules. One that does not write after all holds up no other: an empty buffer wakes the rest.
            if self.room_bytes > 0:
                wake = self.room_bytes // MAX_PLAINTEXT_BYTES + 1 if self._outgoing else len(self._writers)
                self._writers.unpark(count=wake)

    async def _until_writable(self) -> None:
        if self._socket.fileno() < 0:
            raise self._end("the connection is closed")
        try:
            await self._socket.wait_writable()
        except trio.ClosedResourceError as error:
            raise self._end("the connection is closed") from error

    # Reading

    async def read_some(self) -> list[bytes]:
        """What the peer sent, as the payloads of all frames that one ``recv`` completes; never an empty list.

        Raises:
            ConnectionClosedError: the connection ended, broke, or carried a frame that failed authentication.
        """
        if self._plaintext:
            early = bytes(self._plaintext)
            self._plaintext.clear()
            return [early]
        while True:
            if frames := await self._receive_frames():
                return frames

    async def read(self, n: int | None = None) -> bytes:
        """Exactly ``n`` bytes; or, for ``None``, whatever there is, at least one byte.

        Raises:
            ConnectionClosedError: as for ``read_some``.
        """
        if n == 0:
            return b""
        await trio.lowlevel.checkpoint_if_cancelled()
        while len(self._plaintext) < (n or 1):
            self._plaintext += b"".join(await self._receive_frames())
        data = bytes(self._plaintext if n is None else self._plaintext[:n])
        del self._plaintext[: len(data)]
        return data

    async def _receive_frames(self) -> list[bytes]:
        if self._is_dead:
            raise _closed("the connection is closed")
        try:
            received = await self._receive()
        except (OSError, trio.ClosedResourceError) as error:
            raise self._end(f"receiving failed: {error}") from error
        if not received:
            raise self._end("the peer closed the connection" + (" within a frame" if self._ciphertext else ""))
        try:
            return self._open_frames(self._ciphertext + received if self._ciphertext else received)
        except ConnectionClosedError as error:
            raise self._end(str(error)) from error

    async def _receive(self) -> bytes:
        # Not the socket's recv, which tries before it waits: what was there has mostly been read, so that is in vain.
        while (descriptor := self._socket.fileno()) >= 0:
            await trio.lowlevel.wait_readable(descriptor)
            try:
                # Asked for anew: if the socket was closed meanwhile, the number may be another's by now.
                return os.read(self._socket.fileno(), _RECEIVE_BYTES)
            except BlockingIOError:
                continue
        raise trio.ClosedResourceError("the socket is closed")

    def _open_frames(self, data: bytes) -> list[bytes]:
        view = memoryview(data)
        frames: list[bytes] = []
        start, size = 0, len(data)
        while start + _LENGTH_BYTES <= size:
            body = start + _LENGTH_BYTES
            end = body + int.from_bytes(view[start:body], "big")
            if end > size:
                break
            frames.append(self._receiving.open(view[body:end]))
            start = end
        self._ciphertext = data[start:]
        return frames

    # The end

    async def close(self) -> None:
        """Close the socket. What the kernel has not taken yet is dropped: ``flush`` first where that matters."""
        self._release_waiters()
        await super().close()

    def _end(self, reason: str) -> ConnectionClosedError:
        """End the session and return the error that says why."""
        self._release_waiters()
        with contextlib.suppress(OSError):
            # A reader that waits for a silent peer learns of the end as well. Closing the socket is the owner's part.
            self._socket.shutdown(socket.SHUT_RDWR)
        return _closed(reason)

    def _release_waiters(self) -> None:
        self._is_dead = True
        self._outgoing.clear()
        self._writers.unpark_all()


def _closed(reason: str) -> ConnectionClosedError:
    return ConnectionClosedError(reason, transport="tcp")


def _take_over(session: ISecureConn) -> ISecureConn:
    """The same connection as a :class:`FastNoiseSession`, or as it is when it does not run on a TCP socket."""
    if not (isinstance(session, SecureSession) and isinstance(session.conn, NoiseTransportReadWriter)):
        return session
    raw = session.conn.read_writer.read_write_closer
    # The exact types: a subclass or a wrapper may transform the bytes on their way to the socket.
    if not (type(raw) is RawConnection and type(raw.stream) is TrioTCPStream):
        return session
    stream: object = raw.stream.stream  # py-libp2p wraps a stream of a listener that several transports share
    if not isinstance(stream, trio.SocketStream):
        return session
    state = session.conn.noise_state
    sending, receiving = state.noise_protocol.cipher_state_encrypt, state.noise_protocol.cipher_state_decrypt
    vars(state).pop("_next_fn", None)  # else it refers to itself: several kilobytes, and a second copy of the keys
    del raw.stream.read_lock, raw.stream.write_lock  # from here on it is only closed
    return FastNoiseSession(
        session,
        raw,
        stream.socket,
        sending=CipherState(sending.k, sending.n),
        receiving=CipherState(receiving.k, receiving.n),
    )
