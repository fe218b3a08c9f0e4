"""Frames over a libp2p stream, for either end of a request.

A :class:`FrameStream` reads whole frames from whatever pieces the muxer delivers (py-libp2p reads a varint byte by
byte, each a window update: P10 and P11 of ``net/hardening``) and writes whole frames. A write that is cancelled between
its bytes would leave the peer in the middle of a frame, so it resets the stream.

A reader may *take* frames synchronously as they come in. Over our own muxer the connection's read loop then hands them
over directly, and the reader's task sleeps until there is something that it has to wait for: a frame that is not taken
yet, one that comes in parts, a deadline, the end. Over any other muxer the reader's task itself offers each frame.

What large frames make this end hold is bounded by a :class:`FrameBudget` that several streams share. A stream reads on
in a large frame only when the budget has room for all of it, and the room is taken until the reader is done with the
frame. Frames up to :data:`SMALL_FRAME_BYTES` need none, so nobody's large frames hold up a small one. While somebody
waits for room, a frame that stands still loses its own: its time is over.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Awaitable, Callable
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

LOOK_S = 0.5
LOOKS = 4
LEAST_SHARE = 0.1
"""While others wait for room it is looked this often how large frames get on. One of which less than this share came
over so many looks is given up: that is half of what it takes to be whole within 10 s."""

CLOSE_TIMEOUT_S = 1.0
"""For sending the end of a stream; a peer that does not read is not waited for."""

STREAM_LOST = (StreamError, MuxedStreamError, IOException, trio.BrokenResourceError, trio.ClosedResourceError, OSError)
"""What streams raise, of our muxer or another, when they end or break."""


class StreamLostError(QueryError):
    """The stream ended or broke under an exchange."""


async def end_quietly(end: Callable[[], Awaitable[None]]) -> None:
    """End a stream or a connection. Never raises and never waits long."""
    with trio.move_on_after(CLOSE_TIMEOUT_S) as scope:
        scope.shield = True
        with contextlib.suppress(*STREAM_LOST):
            await end()


class FrameBudget:
    """Bytes that large frames may take together.

    Room is given in the order in which it was asked for, except that of a budget's parts the one is first that will
    then have least of it: so whoever asks for much makes himself wait, and not others. Nobody gets room before who is
    first, or what little is free would never become enough for a large frame.

    Args:
        total_bytes: over all streams that share this budget.
        within: a larger budget, of which this one is a part.
    """

    __slots__ = ("_free_bytes", "_looked_at_s", "_under_way", "_waiting", "_within", "_within_bytes")

    def __init__(self, total_bytes: int, *, within: FrameBudget | None = None) -> None:
        self._free_bytes = total_bytes
        self._within = within
        self._within_bytes = 0  # what this part has of the larger budget
        self._waiting: dict[_Wait, None] = {}
        self._under_way: dict[FrameStream, _Pace] = {}
        self._looked_at_s = -math.inf

    async def take(self, size: int) -> None:
        """Set bytes aside, waiting until there are that many."""
        await self._set_aside(size, None)
        if self._within is not None:
            try:
                await self._within._set_aside(size, self)
            except BaseException:  # trio.Cancelled, or Ctrl-C: nobody takes what was set aside
                self._free(size, None)
                raise

    def give_back(self, size: int) -> None:
        self._free(size, None)
        if self._within is not None:
            self._within._free(size, self)

    def begin(self, stream: FrameStream) -> None:
        """A stream has room for a frame that is under way."""
        self._under_way[stream] = _Pace()
        if self._within is not None:
            self._within.begin(stream)

    def end(self, stream: FrameStream) -> None:
        """The frame is whole, or given up."""
        self._under_way.pop(stream, None)
        if self._within is not None:
            self._within.end(stream)

    async def _set_aside(self, size: int, part: FrameBudget | None) -> None:
        wait = _Wait(size, part)
        self._waiting[wait] = None
        self._grant()
        look_at_s = trio.current_time() + LOOK_S
        try:
            while wait in self._waiting:
                with trio.move_on_at(look_at_s) as scope:
                    await wait.granted.wait()
                if scope.cancelled_caught:
                    look_at_s = trio.current_time() + LOOK_S
                    self._take_back_from_who_stands_still()
        except BaseException:  # trio.Cancelled, or Ctrl-C: nobody waits any more, or takes what was granted
            if wait in self._waiting:
                del self._waiting[wait]
                self._grant()  # others may have waited behind it
            else:
                self._free(size, part)
            raise

    def _grant(self) -> None:
        while self._waiting:
            first = min(self._waiting, key=_Wait.rank)
            if first.size > self._free_bytes:
                return
            del self._waiting[first]
            self._free_bytes -= first.size
            if first.part is not None:
                first.part._within_bytes += first.size
            first.granted.set()

    def _free(self, size: int, part: FrameBudget | None) -> None:
        self._free_bytes += size
        if part is not None:
            part._within_bytes -= size
        self._grant()

    def _take_back_from_who_stands_still(self) -> None:
        now_s = trio.current_time()
        if now_s < self._looked_at_s + LOOK_S:
            return  # another who waits has just looked
        self._looked_at_s = now_s
        for stream, pace in list(self._under_way.items()):
            if pace.stands_still(*stream.progress):
                stream.give_up_frame()


class _Wait:
    """A frame that wants room, and the part of the budget that it belongs to, if it has parts."""

    __slots__ = ("granted", "part", "size")

    def __init__(self, size: int, part: FrameBudget | None) -> None:
        self.size = size
        self.part = part
        self.granted = trio.Event()

    def rank(self) -> int:
        """The lowest is first, and of equals who came first."""
        return 0 if self.part is None else self.part._within_bytes + self.size


class _Pace:
    """How a frame gets on, by looks and not by the clock: a node that did nothing for a while has not read either."""

    __slots__ = ("_looks", "_mark_bytes")

    def __init__(self) -> None:
        self._looks = 0
        self._mark_bytes = 0

    def stands_still(self, got_bytes: int, size: int) -> bool:
        """Whether at this look, as at those before it, too little has come."""
        if got_bytes - self._mark_bytes >= size * LEAST_SHARE:
            self._mark_bytes, self._looks = got_bytes, 0
            return False
        self._looks += 1
        return self._looks >= LOOKS


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
        self._is_given_up = False  # that frame, because others wait for its room
        self._scope: trio.CancelScope | None = None  # of a read that has a deadline
        self._writing: trio.Lock | None = None  # held while a frame is sent that cannot be sent at once
        self._is_over = False  # closed or reset here

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
            trio.TooSlowError: nothing came for ``idle_timeout_s``, or a frame was not whole in time, or stood still
                while others waited for its room.
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
                    self._scope = scope
                    await self._make_room()
                    has_ended = not await self._receive(receiver)
                self._scope = None
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

    @property
    def progress(self) -> tuple[int, int]:
        """How many bytes there are of the large frame that is under way, and of how many."""
        return self._decoder.held_bytes, self._under_way_bytes

    def give_up_frame(self) -> None:
        """The large frame that is under way is not waited for any longer: :meth:`read_frame` says that it is late."""
        self._is_given_up = True
        if self._scope is not None:
            self._scope.deadline = -math.inf

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
        except STREAM_LOST as error:
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
        self._writing = self._writing or trio.Lock()
        async with self._writing:
            frame = encode_frame(body)  # a copy, so not while many wait for their turn
            try:
                for start in range(0, len(frame), MAX_PAYLOAD_BYTES):
                    on_offer()
                    await (self._fast or self._stream).write(frame[start : start + MAX_PAYLOAD_BYTES])
            except trio.Cancelled:
                await self.reset()
                raise
            except STREAM_LOST as error:
                raise StreamLostError("the stream broke while a frame was written") from error

    async def end_writing(self) -> None:
        """Say that no more frames will follow; those of the peer can still be read.

        Raises:
            StreamLostError: the stream is broken.
        """
        try:
            # For a stream that is not py-libp2p's, closing is ending our direction.
            await (self._stream.close_write() if isinstance(self._stream, NetStream) else self._stream.close())
        except STREAM_LOST as error:
            raise StreamLostError("the stream broke before its end was sent") from error

    async def close(self) -> None:
        """End our direction; what the peer still sends is read by nobody. Never raises and never waits long."""
        self._release_all()
        await end_quietly(self._stream.close)

    async def reset(self) -> None:
        """End both directions at once. Never raises and never waits long, so it is fit for clean-up."""
        self._release_all()
        await end_quietly(self._stream.reset)

    async def disconnect(self) -> None:
        """Close the connection, with all streams on it. Never raises and never waits long."""
        self._release_all()
        await end_quietly(self._stream.muxed_conn.close)

    def _deadline_s(self, idle_timeout_s: float) -> float:
        if self._is_given_up:
            return -math.inf
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
            raise StreamLostError("the stream was reset or its connection lost") from error
        return True

    async def _read(self) -> bytes:
        try:
            return await self._stream.read(SMALL_FRAME_BYTES)
        except (StreamEOF, MuxedStreamEOF):
            return b""
        except STREAM_LOST as error:
            raise StreamLostError("the stream was reset or its connection lost") from error

    def _feed(self, take: Take, data: bytes | memoryview) -> bool:
        """Offer ``take`` the frames that ``data`` completes; whether it took all, and no other has begun."""
        now_s = trio.current_time()
        begins = self._decoder.is_between_frames
        frames = self._decoder.feed(data)
        self._heard_at_s = now_s
        if begins or frames:
            self._began_at_s = now_s
        if frames and self._under_way_bytes:
            self._end_frame()  # its room is now the first frame's
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
        if self._frame_timeout_s < math.inf:
            self._budget.begin(self)
        if self._is_over:  # another task ended the stream meanwhile, and gave back what it had then
            self._release_all()
            raise StreamLostError("the stream was ended while a frame waited for room")

    def _release(self, size: int) -> None:
        self._taken_bytes -= size
        self._budget.give_back(size)

    def _release_all(self) -> None:
        self._is_over = True
        self._release(self._taken_bytes)
        self._end_frame()

    def _end_frame(self) -> None:
        """No large frame is under way any longer."""
        self._under_way_bytes = 0
        self._is_given_up = False
        self._budget.end(self)
