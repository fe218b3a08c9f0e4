"""A Yamux connection: one read loop for all streams, synchronous sending, and limits on all that a peer can cause.

The read loop takes everything that one ``recv`` brought, handles it without a checkpoint, unless that is very many
frames, and sends what they call for (acknowledgements, answers to pings, resets) as one Noise frame. Data goes to the
stream's receiver, if a task waits with one, and else into the stream's buffer. Streams send synchronously through the
session below, so nothing has to be locked and a frame is never cut.

What a peer can make us hold: ``max_inbound_streams`` streams that we have not closed, as many that wait to be accepted,
``MAX_LINGERING_STREAMS`` that we have closed and it has not, ``MAX_BUFFERED_BYTES`` of unread data, and the session's
outgoing buffer. Identities are free, so the unread data of all connections of a host has a bound as well. The read loop
waits for nothing but the socket, unless a peer sends too fast what brings no stream any data, or opens streams too fast
(:mod:`prime_dht.net.yamux.pace`). A stream beyond a limit is reset. A peer that breaks the protocol (an unknown version
or kind, more data than the window, a stream id that is zero, ours or in use) gets GO_AWAY, and the connection is
closed.

A stream id is not checked against ids that were used and are done with: go-yamux gives out ids and sends their SYNs
without a common lock, so an id below the highest seen is no proof of reuse, and reuse harms nobody but its peer. Frames
for a stream that is not there are dropped: they crossed our RST or FIN on the way.

Differences from py-libp2p's own Yamux: no polling, the window is enforced, a remote's streams are limited, an outbound
stream that finds no place fails after ``OPEN_TIMEOUT_S`` instead of never, no stream outlives a cancelled
``open_stream``, and this end sends no pings of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import cached_property
from itertools import chain
from typing import Protocol

import trio
from libp2p.abc import IMuxedConn
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamError, MuxedStreamReset
from multiaddr import Multiaddr

from prime_dht.errors import RemoteProtocolError
from prime_dht.ids import PeerId, short
from prime_dht.net.yamux import frames
from prime_dht.net.yamux.pace import Crowd, Pace
from prime_dht.net.yamux.stream import FastYamuxStream

MAX_STREAMS = 256
"""Open streams in each direction, unless the constructor says otherwise. py-libp2p opens as many at most."""

MAX_LINGERING_STREAMS = 256
"""Streams that we have closed and the peer has not; beyond that the oldest is reset."""

MAX_BUFFERED_BYTES = 16 << 20
"""Unread data over all streams of a connection; a stream whose data goes beyond it is reset."""

MAX_BUFFERED_TOGETHER_BYTES = 256 << 20
"""Unread data over all connections of a host; beyond it, the fullest stream of the fullest connection is reset."""

SPARE_WINDOW_BYTES = 8 << 20
"""How much the windows of all streams of a connection together may grow."""

FRAMES_PER_TURN = 256
"""After so many the read loop lets others have their turn."""

OPEN_TIMEOUT_S = 10.0
"""How long ``open_stream`` waits for one of our streams to end, or for the peer to read."""

CLOSE_FLUSH_S = 1.0
"""How long ``close`` waits for the kernel to take what was sent before."""

_logger = logging.getLogger(__name__)

OnStream = Callable[[FastYamuxStream], None]
OnEnd = Callable[[], None]
StartSoon = Callable[[Callable[[], Awaitable[None]]], None]

_SET = trio.Event()
_SET.set()


class MuxableConn(Protocol):
    """What the muxer needs of the secured connection; :class:`~prime_dht.net.noise.FastNoiseSession` has it."""

    is_initiator: bool

    @property
    def room_bytes(self) -> int: ...
    def send_now(self, data: bytes, /) -> bool: ...
    async def backpressure(self) -> None: ...
    async def read_some(self) -> list[bytes]: ...
    async def flush(self) -> None: ...
    async def close(self) -> None: ...
    def get_remote_address(self) -> tuple[str, int] | None: ...
    def get_transport_addresses(self) -> list[Multiaddr]: ...
    def get_connection_type(self) -> ConnectionType: ...


class Unread:
    """The unread data of connections that share a bound.

    Attributes:
        bytes: how much there is.
    """

    def __init__(self, total_bytes: int = MAX_BUFFERED_TOGETHER_BYTES) -> None:
        self._total_bytes = total_bytes
        self._connections: set[FastYamux] = set()  # those that have any
        self.bytes = 0

    def change(self, connection: FastYamux, size: int) -> None:
        """A connection has come to hold so much more, or less; then one may have to let go of some."""
        self.bytes += size
        if not connection.buffered_bytes:
            self._connections.discard(connection)
        elif size > 0:
            self._connections.add(connection)
            if self.bytes > self._total_bytes:
                max(self._connections, key=lambda each: each.buffered_bytes).drop_fullest_stream()


class FastYamux(IMuxedConn):
    """A connection's streams. py-libp2p's swarm runs ``start`` in a task, and that task is the read loop.

    Args:
        conn: the secured connection; the muxer closes it.
        peer_id: who is at the other end.
        max_inbound_streams: how many of the peer's streams may be open on our side at a time.
        max_outbound_streams: how many of our own.
        unread: shared with other connections.
        crowd: likewise.
    """

    def __init__(
        self,
        conn: MuxableConn,
        peer_id: ID,
        *,
        max_inbound_streams: int = MAX_STREAMS,
        max_outbound_streams: int = MAX_STREAMS,
        unread: Unread | None = None,
        crowd: Crowd | None = None,
    ) -> None:
        self.secured_conn = conn
        self.peer_id = peer_id
        self.event_started = trio.Event()
        self._is_closed = False
        self._streams: dict[int, FastYamuxStream] = {}
        self._lingering: dict[int, FastYamuxStream] = {}  # in the order of their closing
        self._next_stream_id = 1 if conn.is_initiator else 2
        self._max_outbound = max_outbound_streams
        self._free_inbound = max_inbound_streams
        self._max_inbound = max_inbound_streams
        self._to_accept: list[FastYamuxStream] = []
        self._on_stream: OnStream | None = None
        self._on_end: OnEnd | None = None
        self._start_soon: StartSoon | None = None
        self._is_flushing = False
        self._replies: bytearray | None = None  # what the read loop has to send, while it handles what it received
        self._buffered_bytes = 0
        self._unread = unread
        self._crowd = crowd or Crowd()
        self._spare_window_bytes = SPARE_WINDOW_BYTES

    # Each takes a quarter of a kilobyte. Only who opens streams needs the first, and only who accepts them the second.

    @cached_property
    def _outbound_slots(self) -> trio.Semaphore:
        return trio.Semaphore(self._max_outbound)

    @cached_property
    def _acceptors(self) -> trio.lowlevel.ParkingLot:
        """Those who wait for the peer to open a stream."""
        return trio.lowlevel.ParkingLot()

    # What py-libp2p's swarm uses

    @property
    def is_initiator(self) -> bool:
        return self.secured_conn.is_initiator

    @property
    def is_established(self) -> bool:
        return self.event_started.is_set() and not self._is_closed

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    @property
    def stream_count(self) -> int:
        """Streams of either direction that have not ended."""
        return len(self._streams)

    async def start(self) -> None:
        """Read from the peer until the connection ends, whichever side ends it. A second call does nothing."""
        async with trio.open_nursery() as nursery:
            await self.run(nursery.start_soon)
            nursery.cancel_scope.cancel()

    async def run(self, start_soon: StartSoon) -> None:
        """As ``start``, with a place for tasks that is shared: one is needed rarely, and a nursery takes a kilobyte.

        Args:
            start_soon: starts a task, as a nursery's own does; it may outlive the connection for a moment.
        """
        if self.event_started.is_set():
            return
        self._start_soon = start_soon
        self.event_started.set()
        self.event_started = _SET  # an event takes a quarter of a kilobyte
        parser, pace = frames.FrameParser(), Pace(self._crowd)
        try:
            while not self._is_closed:
                chunks = await self.secured_conn.read_some()
                received = chain.from_iterable(map(parser.feed, chunks))
                idle, opened = len(chunks), 0  # each was a Noise frame
                del chunks  # or the last of what was received would be kept for as long as nothing more is
                while True:
                    handled, loaded, more = self._handle_some(received)
                    idle += handled - 2 * loaded
                    opened += more
                    if handled < FRAMES_PER_TURN:
                        break
                    await trio.lowlevel.checkpoint()
                if opened:  # data does not make up for streams
                    idle = max(0, idle) + self._crowd.idle_of(opened, trio.current_time())
                if idle > 0 and (pause_s := pace.pause_s(idle, trio.current_time())):
                    with pace.pausing():
                        await trio.sleep(pause_s)
        except ConnectionClosedError as reason:
            _logger.debug("connection to %s ended: %s", self._peer, reason)
        except RemoteProtocolError as error:
            _logger.info("closing the connection to %s: %s", self._peer, error)
            self._shut(frames.PROTOCOL_ERROR)
        finally:
            try:
                await self.close()
            finally:
                # They refer back to this, which would wait for garbage collection.
                self._start_soon = self._on_stream = self._on_end = None

    async def open_stream(self) -> FastYamuxStream:
        """Open a stream to the peer. If this is cancelled, no stream was opened.

        Raises:
            MuxedStreamError: the connection is closed, or had no place for a stream for ``OPEN_TIMEOUT_S``.
        """
        with trio.move_on_after(OPEN_TIMEOUT_S) as waiting:
            await self.backpressure()
            await self._outbound_slots.acquire()
        if waiting.cancelled_caught:
            raise MuxedStreamError(f"no place for another stream within {OPEN_TIMEOUT_S:g} s")
        if self._is_closed:
            self._outbound_slots.release()  # to the next one that waits for a place and has to learn this
            raise MuxedStreamError("the connection is closed")
        stream = FastYamuxStream(self, self._next_stream_id)
        self._streams[stream.stream_id] = stream
        self._next_stream_id += 2
        self.send(frames.encode(frames.WINDOW_UPDATE, frames.SYN, stream.stream_id, 0))
        return stream

    async def accept_stream(self) -> FastYamuxStream:
        """The next stream that the peer opened and has not reset.

        Raises:
            MuxedConnUnavailable: the connection is closed.
        """
        if self._to_accept:
            await trio.lowlevel.checkpoint()
        while True:
            while self._to_accept:
                stream = self._to_accept.pop(0)
                if not stream.is_reset:
                    return stream
            if self._is_closed:
                raise MuxedConnUnavailable("the connection is closed")
            await self._acceptors.park()

    def tell(self, on_stream: OnStream, on_end: OnEnd) -> None:
        """From here on, tell of each stream that the peer opens and does not reset at once, and of the end.

        The end is when no stream can be opened any more, which may be a second before the socket is closed. This takes
        the place of ``accept_stream``, which needs a task that waits. Neither function may block.
        """
        self._on_stream, self._on_end = on_stream, on_end
        self._pass_on_streams()
        if self._is_closed:
            on_end()

    async def close(self) -> None:
        """Say GO_AWAY, end all streams and close the connection. In a cancelled scope it does so without waiting."""
        self._shut(frames.NORMAL)
        try:
            with trio.move_on_after(CLOSE_FLUSH_S):
                await self.secured_conn.flush()
        except ConnectionClosedError:
            _logger.debug("connection to %s was lost before all was sent", self._peer)
        finally:
            await self.secured_conn.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.secured_conn.get_remote_address()

    def get_transport_addresses(self) -> list[Multiaddr]:
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        return self.secured_conn.get_connection_type()

    # What streams use

    @property
    def has_room(self) -> bool:
        """Whether a frame of data may be sent now; if not, ``backpressure`` waits for it."""
        return self.secured_conn.room_bytes > 0

    async def backpressure(self) -> None:
        """Wait until the connection takes data.

        Raises:
            MuxedStreamReset: the connection was lost.
        """
        try:
            await self.secured_conn.backpressure()
        except ConnectionClosedError as error:
            raise MuxedStreamReset("the connection is lost") from error

    def send(self, frame: bytes) -> None:
        """Send a frame, or, within the read loop, add it to the replies. A lost connection is no error here.

        The read loop sees the loss as well and ends every stream, which is how everybody learns of it.
        """
        if self._replies is not None:
            self._replies += frame
            return
        try:
            if not self.secured_conn.send_now(frame) and self._start_soon is not None and not self._is_flushing:
                self._is_flushing = True
                self._start_soon(self._flush)
        except ConnectionClosedError as error:
            _logger.debug("nothing can be sent to %s: %s", self._peer, error)

    def hold(self, size: int) -> bool:
        """Account for ``size`` bytes that a stream is to buffer; ``False`` if the connection holds too much already."""
        if self._buffered_bytes + size > MAX_BUFFERED_BYTES:
            return False
        self._change_buffered(size)
        return True

    def release(self, size: int) -> None:
        """``size`` buffered bytes were read."""
        self._change_buffered(-size)

    @property
    def buffered_bytes(self) -> int:
        """Unread data over all streams."""
        return self._buffered_bytes

    def drop_fullest_stream(self) -> None:
        """Reset the stream with most unread data, of which there must be some."""
        max(self._streams.values(), key=lambda each: each.buffered_bytes).abort(
            "too much unread data on all connections"
        )

    def _change_buffered(self, size: int) -> None:
        self._buffered_bytes += size
        if self._unread is not None and size:
            self._unread.change(self, size)

    def spare_window(self, wanted: int) -> int:
        """Set aside up to ``wanted`` bytes for a stream's window to grow by; returns how many."""
        granted = min(wanted, self._spare_window_bytes)
        self._spare_window_bytes -= granted
        return granted

    def linger(self, stream: FastYamuxStream) -> None:
        """We are done with ``stream``: if the peer is not, it stays for a while but counts against no limit."""
        if stream.is_closed or stream.stream_id in self._lingering:
            return
        self._free_slot(stream)
        self._lingering[stream.stream_id] = stream
        if len(self._lingering) > MAX_LINGERING_STREAMS:
            oldest = next(iter(self._lingering.values()))
            oldest.abort("the peer did not close the stream")

    def forget(self, stream: FastYamuxStream) -> None:
        """``stream`` ends. Called once, before it drops what it has buffered."""
        del self._streams[stream.stream_id]
        self._change_buffered(-stream.buffered_bytes)
        self._spare_window_bytes += stream.borrowed_window_bytes
        if self._lingering.pop(stream.stream_id, None) is None:
            self._free_slot(stream)

    def _free_slot(self, stream: FastYamuxStream) -> None:
        if self._is_ours(stream.stream_id):
            self._outbound_slots.release()
        else:
            self._free_inbound += 1

    def _is_ours(self, stream_id: int) -> bool:
        return stream_id % 2 == self._next_stream_id % 2

    async def _flush(self) -> None:
        """Give the kernel what it did not take at first. This is rare, so no task is kept for it."""
        try:
            await self.secured_conn.flush()
        except ConnectionClosedError as error:
            _logger.debug("not all could be sent to %s: %s", self._peer, error)
        finally:
            self._is_flushing = False

    # The read loop

    def _handle_some(self, received: Iterator[frames.Frame]) -> tuple[int, int, int]:
        """Handle the next frames, one turn's at most. Returns how many, how many of them had data for a stream, and how
        many streams were opened."""
        handled = loaded = opened = 0
        if self._is_closed:
            return 0, 0, 0
        self._replies = bytearray()
        try:
            for frame in received:
                handled += 1
                loaded += self._handle(frame)
                if handled == FRAMES_PER_TURN:
                    break
        finally:
            replies, self._replies = self._replies, None
            if replies:
                self.send(bytes(replies))
            if self._to_accept:
                opened = self._pass_on_streams()
        return handled, loaded, opened

    def _handle(self, frame: frames.Frame) -> bool:
        """Returns whether it had data for a stream."""
        kind, flags, stream_id, value, payload = frame
        if kind == frames.PING:
            if flags & frames.SYN:
                self.send(frames.encode(frames.PING, frames.ACK, 0, value))
            return False
        if kind == frames.GO_AWAY:
            raise ConnectionClosedError(f"the peer went away (reason {value})")
        stream = self._accept(stream_id) if flags & frames.SYN else self._streams.get(stream_id)
        if stream is None:
            if not stream_id:
                raise RemoteProtocolError("Yamux stream 0 carries no data")
            return False
        if kind == frames.DATA:
            stream.feed_data(payload)
        elif value:
            stream.feed_credit(value)
        if flags & frames.RST:
            stream.feed_reset()
        elif flags & frames.FIN:
            stream.feed_fin()
        return bool(payload)

    def _accept(self, stream_id: int) -> FastYamuxStream | None:
        """The stream that the peer opens, or ``None`` if there is no place for it and it was reset."""
        if not stream_id or self._is_ours(stream_id) or stream_id in self._streams:
            raise RemoteProtocolError(f"the peer cannot open Yamux stream {stream_id}")
        # Streams that were reset while nobody accepted them wait as well, so there may be no place before the limit.
        if not self._free_inbound or len(self._to_accept) == self._max_inbound:
            self.send(frames.encode(frames.WINDOW_UPDATE, frames.RST, stream_id, 0))
            return None
        stream = FastYamuxStream(self, stream_id)
        self._free_inbound -= 1
        self._streams[stream_id] = stream
        self._to_accept.append(stream)
        self.send(frames.encode(frames.WINDOW_UPDATE, frames.ACK, stream_id, 0))
        return stream

    def _pass_on_streams(self) -> int:
        """Only when all that was received is handled: by then many a stream of a flood has been reset again. Returns
        how many were told of."""
        if self._on_stream is None:
            self._acceptors.unpark_all()
            return 0
        opened = [stream for stream in self._to_accept if not stream.is_reset]
        self._to_accept = []
        for stream in opened:
            self._on_stream(stream)
        return len(opened)

    def _shut(self, reason: int) -> None:
        """End everything but the socket, synchronously; the first call counts."""
        if self._is_closed:
            return
        self.send(frames.encode(frames.GO_AWAY, 0, 0, reason))
        self._is_closed = True
        self._acceptors.unpark_all()
        for stream in list(self._streams.values()):
            stream.feed_lost()
        if self._on_end is not None:
            self._on_end()

    @property
    def _peer(self) -> str:
        return short(PeerId(self.peer_id.to_bytes()))
