"""One Yamux stream.

A stream has two *halves*, what we read and what we write; each is open, then closed (a FIN passed) or reset (either
end gave up, or the connection was lost). The stream has *ended* when neither half is open. A half that was closed stays
closed: what the peer sent before its FIN can be read even if a RST follows, as in go-yamux. Without a FIN, a RST drops
what was not read; the loss of the connection does not, but its reader then gets a reset and no end of file.

Flow control: a *window* is how many bytes an end may still send. Ours grows by the credit that the peer gives. The
peer's shrinks with what arrives and is restored, in one WINDOW_UPDATE, once half of it was read; it then also doubles,
up to ``MAX_WINDOW_BYTES`` and as far as the connection has window to spare. So a peer can make us hold no more than the
window of each stream, and a stream that nobody reads holds 256 KiB at most.

Every effect of a method happens synchronously, before its first checkpoint or after its last: ``close`` and ``reset``
work in a cancelled scope too, a cancelled ``read`` loses nothing, and a cancelled ``write`` has sent whole frames, a
prefix of the data. Whoever cancels it in the middle of a message resets the stream; others are not affected. Waits have
no time limit of their own: give them one with a cancel scope.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, assert_never

import trio
from libp2p.abc import IMuxedStream
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset

from prime_dht.errors import RemoteProtocolError
from prime_dht.net.noise import MAX_PLAINTEXT_BYTES
from prime_dht.net.yamux.frames import DATA, FIN, HEADER_BYTES, INITIAL_WINDOW_BYTES, RST, WINDOW_UPDATE, encode

if TYPE_CHECKING:
    from prime_dht.net.yamux.connection import FastYamux

MAX_WINDOW_BYTES = 4 << 20
"""How far a stream's receive window grows."""

MAX_PAYLOAD_BYTES = MAX_PLAINTEXT_BYTES - HEADER_BYTES
"""The payload of the largest frame that fits in one Noise frame: 65,507 bytes."""

PIECE_BYTES = 64 << 10
"""Unread data is kept in pieces of at most this size, or of one payload. Small payloads share a piece, or each would
cost many times its size; one long buffer would be moved, page by page, whenever it grows: half the CPU of bulk."""


Receiver = Callable[[bytes | memoryview], bool]
"""Is handed what arrives on a stream, in order, and says whether it wants more. It does not wait, and keeps no view."""


class Half(Enum):
    """What has become of one direction of a stream."""

    OPEN = "open"
    CLOSED = "closed"
    RESET = "reset"


class _Waiting(list[trio.lowlevel.Task]):
    """Tasks that wait for the same. A trio ``ParkingLot`` does more, and with one task in it takes half a kilobyte."""

    __slots__ = ()

    async def wait(self) -> None:
        """Until woken."""
        task = trio.lowlevel.current_task()

        def give_up(_: object) -> trio.lowlevel.Abort:
            self.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        self.append(task)
        await trio.lowlevel.wait_task_rescheduled(give_up)

    def wake(self) -> None:
        for task in self:
            trio.lowlevel.reschedule(task)
        self.clear()


class FastYamuxStream(IMuxedStream):
    """A stream as protocol handlers see it, with py-libp2p's interface and exceptions.

    Any number of tasks may read and write, though the pieces they get or send then interleave.
    """

    def __init__(self, connection: FastYamux, stream_id: int) -> None:
        self.muxed_conn = connection
        self.stream_id = stream_id
        self._connection = connection
        self._reading = Half.OPEN
        self._writing = Half.OPEN
        self._reset_reason = ""
        self._arrived: list[bytearray] = []  # what was not read, in a few pieces (PIECE_BYTES), none of them empty
        self._buffered_bytes = 0
        self._window_bytes = INITIAL_WINDOW_BYTES  # the size to which the peer's window is restored
        self._receive_window = INITIAL_WINDOW_BYTES  # what the peer may still send
        self._send_window = INITIAL_WINDOW_BYTES  # what we may still send
        self._uncredited_bytes = 0  # read, and not yet given back to the peer as credit
        self._receiver: Receiver | None = None  # while a task waits in `receive`
        self._receiver_error: Exception | None = None
        self._readers = _Waiting()
        self._writers = _Waiting()

    @property
    def is_closed(self) -> bool:
        """Whether the stream has ended; what arrived before can still be read."""
        return self._reading is not Half.OPEN and self._writing is not Half.OPEN

    @property
    def is_reset(self) -> bool:
        """Whether what the peer sent was cut short."""
        return self._reading is Half.RESET

    @property
    def buffered_bytes(self) -> int:
        """What has arrived and was not read."""
        return self._buffered_bytes

    @property
    def borrowed_window_bytes(self) -> int:
        """By how much the receive window has grown, out of what the connection has to spare."""
        return self._window_bytes - INITIAL_WINDOW_BYTES

    # Reading

    async def read(self, n: int | None = None) -> bytes:
        """What has arrived, at most ``n`` bytes (``None`` or -1: all of it); waits while that is nothing.

        Raises:
            MuxedStreamEOF: the peer has closed its half, and all of it was read.
            MuxedStreamReset: either end reset the stream, or the connection was lost.
        """
        if n == 0 or self._arrived:
            await trio.lowlevel.checkpoint()
        if n == 0:
            return b""
        while not self._arrived:
            self._check_readable()
            await self._readers.wait()
        return self._take(self._buffered_bytes if n is None or n < 0 else n)

    async def receive(self, receiver: Receiver) -> None:
        """Hand what arrives to ``receiver``, until it wants no more; what comes behind that stays unread.

        While this waits, the connection's read loop calls the receiver, so that no task is woken for what it takes.
        Only one task at a time may wait here, and none in ``read`` meanwhile.

        Raises:
            MuxedStreamEOF: the peer has closed its half, and all of it was handed over.
            MuxedStreamReset: either end reset the stream, or the connection was lost.
            Exception: what the receiver raised.
        """
        if self._arrived:
            await trio.lowlevel.checkpoint()
        while True:
            while self._arrived:
                if not receiver(self._take(PIECE_BYTES)):
                    return
            self._check_readable()
            self._receiver = receiver
            try:
                await self._readers.wait()
            finally:
                has_enough, self._receiver = self._receiver is None, None
            if self._receiver_error is not None:
                error, self._receiver_error = self._receiver_error, None
                raise error
            if has_enough:
                return

    def _check_readable(self) -> None:
        match self._reading:
            case Half.OPEN:
                return
            case Half.CLOSED:
                raise MuxedStreamEOF("the peer closed the stream")
            case Half.RESET:
                raise MuxedStreamReset(self._reset_reason)
            case _:
                assert_never(self._reading)

    def _take(self, n: int) -> bytes:
        pieces: list[bytearray] = []
        while n and self._arrived:
            piece = self._arrived[0]
            if len(piece) > n:
                pieces.append(piece[:n])
                del piece[:n]
                break
            pieces.append(self._arrived.pop(0))
            n -= len(piece)
        data = b"".join(pieces)
        self._buffered_bytes -= len(data)
        if not self.is_closed:
            self._connection.release(len(data))
        if self._reading is Half.OPEN:
            self._give_credit(len(data))
        return data

    def _give_credit(self, read_bytes: int) -> None:
        self._uncredited_bytes += read_bytes
        if self._uncredited_bytes * 2 < self._window_bytes:
            return
        growth = self._connection.spare_window(min(self._window_bytes, MAX_WINDOW_BYTES - self._window_bytes))
        credit = self._uncredited_bytes + growth
        self._window_bytes += growth
        self._receive_window += credit
        self._uncredited_bytes = 0
        self._connection.send(encode(WINDOW_UPDATE, 0, self.stream_id, credit))

    # Writing

    def write_now(self, data: bytes) -> bool:
        """Send ``data`` as one frame, synchronously; ``False``, with nothing sent, if that has to wait or needs more.

        Raises:
            MuxedStreamClosed: our half is closed.
            MuxedStreamReset: either end reset the stream, or the connection was lost.
        """
        self._check_writable()
        if len(data) > min(self._send_window, MAX_PAYLOAD_BYTES) or not self._connection.has_room:
            return False
        self._send_piece(data)
        return True

    async def write(self, data: bytes | memoryview) -> None:
        """Send ``data``, waiting for credit and for the connection as often as that is needed.

        Raises:
            MuxedStreamClosed: our half is closed, or was closed meanwhile.
            MuxedStreamReset: either end reset the stream, or the connection was lost.
        """
        self._check_writable()
        rest = memoryview(data)
        while rest:
            await trio.lowlevel.checkpoint_if_cancelled()
            await self._until_sendable()
            piece = rest[: min(self._send_window, MAX_PAYLOAD_BYTES)]
            self._send_piece(piece)
            rest = rest[len(piece) :]
            # Sent is sent: a cancellation is taken before the next piece, and so never when nothing is left to send.
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def _until_sendable(self) -> None:
        while True:
            self._check_writable()
            if not self._send_window:
                await self._writers.wait()
            elif not self._connection.has_room:
                await self._connection.backpressure()
            else:
                return

    def _check_writable(self) -> None:
        match self._writing:
            case Half.OPEN:
                return
            case Half.CLOSED:
                raise MuxedStreamClosed("the stream is closed for writing")
            case Half.RESET:
                raise MuxedStreamReset(self._reset_reason)
            case _:
                assert_never(self._writing)

    def _send_piece(self, piece: bytes | memoryview) -> None:
        self._send_window -= len(piece)
        self._connection.send(b"".join((encode(DATA, 0, self.stream_id, len(piece)), piece)))

    # The end

    async def close_write(self) -> None:
        """Close our half (FIN). The peer may go on, and be read, for as long as it likes."""
        self._finish_writing()
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """Close our half, and say that no more is expected from the peer.

        What it still sends can be read, as with py-libp2p's own muxer. But the stream no longer counts against the
        connection's limits, and is reset when many others were closed since and the peer has not closed its half.
        """
        self._finish_writing()
        self._connection.linger(self)
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        """End both halves now (RST); what was not read is dropped."""
        self.abort("the stream was reset here")
        await trio.lowlevel.checkpoint()

    def abort(self, reason: str) -> None:
        """``reset``, synchronously; ``reason`` is what readers and writers are told."""
        self._reset_reason = reason
        if not self.is_closed:
            self._connection.send(encode(WINDOW_UPDATE, RST, self.stream_id, 0))
            self._connection.forget(self)
        self._reading = self._writing = Half.RESET
        self._drop_unread()
        self._wake()

    def _finish_writing(self) -> None:
        if self._writing is not Half.OPEN:
            return
        self._connection.send(encode(WINDOW_UPDATE, FIN, self.stream_id, 0))
        self._writing = Half.CLOSED
        self._wake()
        if self.is_closed:
            self._connection.forget(self)

    def _drop_unread(self) -> None:
        self._arrived.clear()
        self._buffered_bytes = 0

    def _wake(self) -> None:
        self._readers.wake()
        self._writers.wake()

    # What the connection passes on from the peer

    def feed_data(self, payload: memoryview) -> None:
        """Take what the peer sent. Data after its FIN is dropped, since py-libp2p's writers can race with its close.

        Raises:
            RemoteProtocolError: it is more than the peer's window.
        """
        if self._reading is not Half.OPEN:
            return
        if len(payload) > self._receive_window:
            raise RemoteProtocolError("a Yamux stream got more data than its window")
        if self._receiver is not None:
            self._receive_window -= len(payload)
            self._hand_over(payload, self._receiver)
            return
        self._buffered_bytes += len(payload)
        if not self._connection.hold(len(payload)):
            self._buffered_bytes -= len(payload)
            self.abort("too much unread data on the connection")
        if self.is_reset:  # it had to go
            return
        self._receive_window -= len(payload)
        if self._arrived and len(self._arrived[-1]) + len(payload) <= PIECE_BYTES:
            self._arrived[-1].extend(payload)
        elif payload:
            self._arrived.append(bytearray(payload))
        self._readers.wake()

    def _hand_over(self, payload: memoryview, receiver: Receiver) -> None:
        is_wanted = False
        try:
            is_wanted = receiver(payload)
        except Exception as error:  # noqa: BLE001 - raised in the task that receives; this one serves all streams
            self._receiver_error = error
        if not is_wanted:
            self._receiver = None
            self._readers.wake()
        if self._reading is Half.OPEN:
            self._give_credit(len(payload))

    def feed_credit(self, credit: int) -> None:
        """The peer takes ``credit`` bytes more."""
        self._send_window += credit
        self._writers.wake()

    def feed_fin(self) -> None:
        """The peer has closed its half."""
        if self._reading is not Half.OPEN:
            return
        self._reading = Half.CLOSED
        self._wake()
        if self.is_closed:
            self._connection.forget(self)

    def feed_reset(self) -> None:
        """The peer reset the stream."""
        if self.is_closed:
            return
        self._connection.forget(self)
        if self._reading is Half.OPEN:
            self._drop_unread()
        self._reset_open_halves("the peer reset the stream")

    def feed_lost(self) -> None:
        """The connection is lost. What arrived is kept: a reply and the peer's GO_AWAY may have come together."""
        self._connection.forget(self)
        self._reset_open_halves("the connection is closed")

    def _reset_open_halves(self, reason: str) -> None:
        self._reset_reason = reason
        if self._reading is Half.OPEN:
            self._reading = Half.RESET
        if self._writing is Half.OPEN:
            self._writing = Half.RESET
        self._wake()

    # The rest of py-libp2p's interface

    def set_deadline(self, ttl: int) -> None:
        """Yamux has no deadlines; use a cancel scope."""
        raise NotImplementedError("a Yamux stream has no deadline; use a trio cancel scope")

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._connection.get_remote_address()

    async def __aenter__(self) -> FastYamuxStream:
        return self
