"""Frames over a libp2p stream, for either end of a request.

A :class:`FrameStream` reads whole frames from whatever pieces the muxer delivers (py-libp2p reads a varint byte by
byte, each a window update: P10 and P11 of ``net/hardening``) and writes whole frames. A write that is cancelled between
its bytes would leave the peer in the middle of a frame, so it resets the stream.

A reader may *take* frames synchronously as they come in. Over our own muxer the connection's read loop then hands them
over directly, and the reader's task sleeps until there is something that it has to wait for: a frame that is not taken
yet, one that comes in parts, a deadline, the end. Over any other muxer the reader's task itself offers each frame.

What large frames make this end hold is bounded by a :class:`FrameBudget` that several streams share. A stream reads on
in a large frame only when the budget has room for all of it, and the room is taken until the reader is done with the
frame. Frames up to :data:`SMALL_FRAME_BYTES` need none, so nobody's large frames hold up a small one.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable
from functools import partial

import trio
from libp2p.abc import INetStream
from libp2p.io.exceptions import IOException
from libp2p.network.stream.exceptions import StreamEOF, StreamError
from libp2p.network.stream.net_stream import NetStream
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError

from prime_dht.errors import QueryError
from prime_dht.net.yamux import FastYamuxStream, Receiver
from prime_dht.net.yamux.stream import MAX_PAYLOAD_BYTES
from prime_dht.wire.frames import MAX_FRAME_BYTES, FrameDecoder, encode_frame

SMALL_FRAME_BYTES = 64 << 10
"""Frames up to this size need no budget: a muxer's window holds that much anyway. A read brings no more either, so a
larger frame is seen coming before it is whole."""

CLOSE_TIMEOUT_S = 1.0
"""For sending the end of a stream; a peer that does not read is not waited for."""

_STREAM_LOST = (StreamError, MuxedStreamError, IOException, trio.BrokenResourceError, trio.ClosedResourceError, OSError)


class StreamLostError(QueryError):
    """The stream ended or broke under an exchange."""


class FrameBudget:
    """Bytes that large frames may take together.

    Args:
        total_bytes: over all streams that share this budget.
    """

    __slots__ = ("_free_bytes", "_waiting")

    def __init__(self, total_bytes: int) -> None:
        self._free_bytes = total_bytes
        self._waiting = trio.lowlevel.ParkingLot()

    async def take(self, size: int) -> None:
        """Set bytes aside, waiting until there are that many."""
        while size > self._free_bytes:
            await self._waiting.park()
        self._free_bytes -= size

    def give_back(self, size: int) -> None:
        self._free_bytes += size
        self._waiting.unpark_all()


Take = Callable[[bytes], bool]
"""Is offered a frame, and says whether it took it. It must not block."""


def _take_none(_frame: bytes) -> bool:
    return False


class FrameStream:
    """One libp2p stream as a sequence of frames in each direction. One task at a time may read, any number write.

    Args:
        stream: negotiated; this object closes or resets it.
        budget: shared by the streams whose large frames are to be bounded together.
        frame_timeout_s: seconds within which a frame must be whole once its first byte is here.
        max_frame_bytes: a frame that announces more is a breach of protocol.

    Attributes:
        broken: nothing more can be sent or received.
    """

    def __init__(
        self,
        stream: INetStream,
        *,
        budget: FrameBudget,
        frame_timeout_s: float = 10.0,
        max_frame_bytes: int = MAX_FRAME_BYTES,
    ) -> None:
        self._stream = stream
        # The state lock of py-libp2p's NetStream costs two reschedules a call; our muxer keeps its own state.
        muxed = stream.muxed_stream if isinstance(stream, NetStream) else None
        self._fast = muxed if isinstance(muxed, FastYamuxStream) else None
        self._decoder = FrameDecoder(max_frame_bytes)
        self._ready: deque[bytes] | None = None  # few streams ever need one, and it takes 760 bytes
        self._budget = budget
        self._under_way_bytes = 0  # of the large frame that is being read
        self._taken_bytes = 0  # of the budget: that frame's, and those of frames nobody is done with
        self._frame_timeout_s = frame_timeout_s
        self._heard_at_s = -math.inf  # since when nothing has come
        self._began_at_s = -math.inf  # when the frame that is under way began
        self._writing: trio.Lock | None = None  # held while a frame is sent that cannot be sent at once
        self.broken = False

    async def read_frame(self, *, idle_timeout_s: float, take: Take = _take_none) -> bytes | None:
        """The next frame that ``take`` does not take, or ``None`` when the peer ended the stream between frames.

        The caller says :meth:`done_with` when it no longer holds a frame, returned or taken.

        Args:
            take: is offered every frame, in order. One that it does not take is returned, and those behind it are
                offered when reading goes on. Over our own muxer it is called by the connection's read loop, as soon as
                a frame is here, and no task is woken for what it takes.

        Raises:
            StreamLostError: reset, broken, or ended within a frame.
            RemoteProtocolError: a malformed length, or a frame too large.
            trio.TooSlowError: nothing came for ``idle_timeout_s``, or a frame was not whole in time.
            Exception: what ``take`` raised.
        """
        receiver = partial(self._feed, take)
        self._heard_at_s = trio.current_time()
        while True:
            while self._ready:
                frame = self._ready.popleft()
                if not take(frame):
                    return frame
            deadline_s = self._deadline_s(idle_timeout_s)
            if deadline_s == math.inf:  # a scope takes 700 bytes, and there may be dozens of streams that idle
                await self._make_room()
                has_ended = not await self._receive(receiver)
            else:
                # Not trio.fail_after: its two context managers cost as much as the scope within.
                with trio.CancelScope(deadline=deadline_s) as scope:
                    await self._make_room()
                    has_ended = not await self._receive(receiver)
                if scope.cancelled_caught:
                    # Frames that were taken meanwhile have put the deadline off.
                    if trio.current_time() >= self._deadline_s(idle_timeout_s):
                        raise trio.TooSlowError
                    continue
            if has_ended:
                if self._decoder.is_between_frames:
                    return None
                raise StreamLostError("the stream ended within a frame")

    def done_with(self, frame: bytes) -> None:
        """The reader no longer holds a frame that :meth:`read_frame` returned: its room is free."""
        if len(frame) > SMALL_FRAME_BYTES:
            self._release(min(len(frame), self._taken_bytes - self._under_way_bytes))

    def is_quiet(self) -> bool:
        """Whether nothing has come, as far as can be told without reading, that :meth:`read_frame` has not returned."""
        unread = self._fast is not None and self._fast.buffered_bytes > 0
        return not (unread or self._ready) and self._decoder.is_between_frames

    def write_now(self, body: bytes) -> bool:
        """Send one frame without waiting; ``False``, with nothing sent, if that is not possible just now.

        Raises:
            StreamLostError: the stream is broken, or closed by either end.
        """
        if self._fast is None or (self._writing is not None and self._writing.locked()):
            return False
        try:
            return self._fast.write_now(encode_frame(body))
        except _STREAM_LOST as error:
            self.broken = True
            raise StreamLostError("the stream broke before a frame was written") from error

    async def write_frame(self, body: bytes, *, on_offer: Callable[[], None] = lambda: None) -> None:
        """Send one frame, whole or not at all: if this is cancelled half way, the stream is reset.

        Args:
            on_offer: is called before each 64 KiB that the peer has to take; not if all can be sent at once.

        Raises:
            StreamLostError: the stream is broken, or closed by either end.
        """
        if self.write_now(body):
            return
        frame = encode_frame(body)
        self._writing = self._writing or trio.Lock()
        async with self._writing:
            try:
                for start in range(0, len(frame), MAX_PAYLOAD_BYTES):
                    on_offer()
                    await (self._fast or self._stream).write(frame[start : start + MAX_PAYLOAD_BYTES])
            except trio.Cancelled:
                await self.reset()
                raise
            except _STREAM_LOST as error:
                self.broken = True
                raise StreamLostError("the stream broke while a frame was written") from error

    async def end_writing(self) -> None:
        """Say that no more frames will follow; those of the peer can still be read.

        Raises:
            StreamLostError: the stream is broken.
        """
        try:
            # For a stream that is not py-libp2p's, closing is ending our direction.
            await (self._stream.close_write() if isinstance(self._stream, NetStream) else self._stream.close())
        except _STREAM_LOST as error:
            self.broken = True
            raise StreamLostError("the stream broke before its end was sent") from error

    async def close(self) -> None:
        """End our direction; what the peer still sends is read by nobody."""
        self._release_all()
        with trio.move_on_after(CLOSE_TIMEOUT_S) as scope:
            scope.shield = True
            try:
                await self._stream.close()
            except _STREAM_LOST:
                self.broken = True

    async def reset(self) -> None:
        """End both directions at once. Never raises and never waits long, so it is fit for clean-up."""
        self.broken = True
        self._release_all()
        with trio.move_on_after(CLOSE_TIMEOUT_S) as scope:
            scope.shield = True
            with contextlib.suppress(*_STREAM_LOST):
                await self._stream.reset()

    async def disconnect(self) -> None:
        """Close the connection, with all streams on it. Never raises and never waits long."""
        self.broken = True
        self._release_all()
        with trio.move_on_after(CLOSE_TIMEOUT_S) as scope:
            scope.shield = True
            with contextlib.suppress(*_STREAM_LOST):
                await self._stream.muxed_conn.close()

    def _deadline_s(self, idle_timeout_s: float) -> float:
        if self._decoder.is_between_frames:
            return self._heard_at_s + idle_timeout_s
        return self._began_at_s + self._frame_timeout_s

    async def _receive(self, receiver: Receiver) -> bool:
        """Hand what comes to ``receiver`` until it has enough; ``False`` if the peer ends the stream before that."""
        if self._fast is None:
            while data := await self._read():
                if not receiver(data):
                    return True
            return False
        try:
            await self._fast.receive(receiver)
        except MuxedStreamEOF:
            return False
        except MuxedStreamError as error:
            self.broken = True
            raise StreamLostError("the stream was reset or its connection lost") from error
        return True

    async def _read(self) -> bytes:
        try:
            return await self._stream.read(SMALL_FRAME_BYTES)
        except (StreamEOF, MuxedStreamEOF):
            return b""
        except _STREAM_LOST as error:
            self.broken = True
            raise StreamLostError("the stream was reset or its connection lost") from error

    def _feed(self, take: Take, data: bytes | memoryview) -> bool:
        """Offer ``take`` the frames that ``data`` completes; whether it took all, and no other has begun."""
        now_s = trio.current_time()
        begins = self._decoder.is_between_frames
        frames = self._decoder.feed(data)
        self._heard_at_s = now_s
        if begins or frames:
            self._began_at_s = now_s
        if frames:
            self._under_way_bytes = 0  # its room is now the first frame's
        for frame in frames:
            if self._ready or not take(frame):
                if self._ready is None:
                    self._ready = deque()
                self._ready.append(frame)
        return self._decoder.is_between_frames and not self._ready

    async def _make_room(self) -> None:
        """Wait until the budget has room for the frame that is under way, if it is a large one."""
        announced = self._decoder.announced_bytes()
        if announced <= SMALL_FRAME_BYTES or self._under_way_bytes:
            return
        await self._budget.take(announced)
        self._under_way_bytes = announced
        self._taken_bytes += announced
        if self.broken:  # another task reset the stream meanwhile, and gave back what it had then
            self._release_all()
            raise StreamLostError("the stream was reset while a frame waited for room")

    def _release(self, size: int) -> None:
        self._taken_bytes -= size
        self._budget.give_back(size)

    def _release_all(self) -> None:
        self._release(self._taken_bytes)
        self._under_way_bytes = 0
