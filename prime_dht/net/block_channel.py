"""A libp2p stream as messages of ``/prime/blocks/1.0.0``, blocks among them, for either end.

Unlike the frames of :mod:`prime_dht.net.streams`, a block is written from where it lies and read into its place, so the
only copies are those that encryption makes. Both directions are held to *progress*, not to a time for the whole: what
is sent, and what is awaited, has to go on by :data:`PROGRESS_BYTES`, or by a whole message, within the timeout. That
lets a slow peer take its time over a block, and is why a block has no deadline here; whoever wants it sooner cancels.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import trio
from libp2p.abc import INetStream
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.network.stream.net_stream import NetStream
from libp2p.stream_muxer.exceptions import MuxedStreamEOF

from prime_dht.blobs.memory import Lend
from prime_dht.errors import RemoteProtocolError
from prime_dht.ids import PeerId, peer_text
from prime_dht.net.streams import STREAM_LOST, StreamLostError, end_quietly
from prime_dht.net.yamux import FastYamuxStream
from prime_dht.net.yamux.stream import MAX_PAYLOAD_BYTES
from prime_dht.wire.blocks import Answer, Ask, Cancel, Message, MessageDecoder, encode_block_header, encode_message

PROGRESS_BYTES = MAX_PAYLOAD_BYTES
"""What has to move within the timeout; also what is read and written at a time: one frame of our own muxer's."""

TOLD_EVERY_S = 1.0
"""A block that takes longer is heard of so often while it comes."""


@dataclass(frozen=True, slots=True)
class PartCame:
    """A block that takes its time goes on coming: :data:`PROGRESS_BYTES` of it did."""


class BlockChannel:
    """Messages in both directions over one stream. One task at a time may receive, any number send.

    Args:
        stream: negotiated; this object closes or resets it.
        asks: whether this is the end that asks.
        lend: gives memory for a block that comes, of so many bytes.
        progress_timeout_s: seconds for :data:`PROGRESS_BYTES`, or a whole message.

    Attributes:
        peer: who is at the other end.
    """

    def __init__(
        self,
        stream: INetStream,
        *,
        asks: bool,
        progress_timeout_s: float,
        lend: Lend = bytearray,
    ) -> None:
        self.peer = PeerId(stream.muxed_conn.peer_id.to_bytes())
        self._stream = stream
        # The state lock of py-libp2p's NetStream costs two reschedules a call; our muxer keeps its own state.
        muxed = stream.muxed_stream if isinstance(stream, NetStream) else None
        self._fast = muxed if isinstance(muxed, FastYamuxStream) else None
        self._decoder = MessageDecoder(takes_blocks=asks, lend=lend)
        self._received: deque[Message | PartCame] = deque()
        self._told_at_s = trio.current_time()
        self._progress_timeout_s = progress_timeout_s
        self._progressed_at_s = math.inf  # inf while nothing is awaited
        self._unprogressed_bytes = 0
        self._receiving = trio.CancelScope()
        self._write_lock = trio.Lock()

    # Sending

    async def send(self, message: Ask | Cancel | Answer) -> None:
        """Send a message, whole: if this is cancelled half way, the stream is reset.

        Raises:
            StreamLostError: the stream is broken, or the peer takes nothing.
        """
        await self._write(encode_message(message))

    async def send_block(self, number: int, data: bytes) -> None:
        """Send the block that was asked for under a number, whole like a message.

        Raises:
            StreamLostError: the stream is broken, or the peer takes nothing.
        """
        await self._write(encode_block_header(number, len(data)), data)

    async def _write(self, *parts: bytes) -> None:
        try:
            async with self._write_lock:
                with trio.CancelScope() as progress:
                    for piece in _pieces(parts):
                        progress.deadline = trio.current_time() + self._progress_timeout_s
                        if self._fast is not None:
                            await self._fast.write(piece)
                        else:
                            await self._stream.write(bytes(piece))
        except trio.Cancelled:
            await self.reset()
            raise
        except STREAM_LOST as error:
            raise StreamLostError("the stream broke while something was sent") from error
        if progress.cancelled_caught:
            await self.reset()
            raise StreamLostError(f"the peer took nothing for {self._progress_timeout_s:g} s")

    # Receiving

    def await_progress(self, *, is_awaited: bool) -> None:
        """Say whether something is awaited from the peer from now on; only then has it to make progress."""
        was_awaited = not math.isinf(self._progressed_at_s)
        if is_awaited == was_awaited:
            return
        self._progressed_at_s = trio.current_time() if is_awaited else math.inf
        self._receiving.deadline = self._progressed_at_s + self._progress_timeout_s
        self._told_at_s = trio.current_time()

    async def receive(self) -> Message | PartCame | None:
        """The next message, or word of a block's part; ``None`` when the peer ended its direction between messages.

        Raises:
            StreamLostError: the stream broke, ended within a message, or no progress was made in time; or there was no
                memory for a block.
            RemoteProtocolError: what came is no message.
        """
        self._told_at_s = trio.current_time()
        if not math.isinf(self._progressed_at_s):
            self._progressed_at_s = self._told_at_s  # that nobody received before is not the peer's fault
        while not self._received:
            self._receiving = trio.CancelScope(deadline=self._progressed_at_s + self._progress_timeout_s)
            with self._receiving:
                if not await self._receive_more():
                    if self._decoder.is_between_messages:
                        return None
                    raise StreamLostError("the stream ended within a message")
            now_s = trio.current_time()
            if self._receiving.cancelled_caught and now_s >= self._progressed_at_s + self._progress_timeout_s:
                raise StreamLostError(f"the peer sent nothing for {self._progress_timeout_s:g} s")
        return self._received.popleft()

    async def _receive_more(self) -> bool:
        """Read until a message is there; ``False`` if the peer ends its direction before that."""
        try:
            if self._fast is not None:
                await self._fast.receive(self._feed)
                return True
            while self._feed(data := await self._stream.read(PROGRESS_BYTES)):
                if not data:
                    return False
        except (StreamEOF, MuxedStreamEOF):
            return False
        except STREAM_LOST as error:
            raise StreamLostError("the stream was reset or its connection lost") from error
        return True

    def _feed(self, data: bytes | memoryview) -> bool:
        """Take what came; whether more is needed for a message."""
        try:
            messages = self._decoder.feed(data)
        except RemoteProtocolError as error:
            raise RemoteProtocolError(str(error), peer=peer_text(self.peer)) from error
        except (MemoryError, OSError) as error:  # whoever lends it has none
            raise StreamLostError("there was no memory for a block that came") from error
        self._received += messages
        self._unprogressed_bytes += len(data)
        if messages or self._unprogressed_bytes >= PROGRESS_BYTES:
            self._unprogressed_bytes = 0
            now_s = trio.current_time()
            if not math.isinf(self._progressed_at_s):
                self._progressed_at_s = now_s
            if not messages and now_s >= self._told_at_s + TOLD_EVERY_S:
                self._received.append(PartCame())
        return not self._received

    # The end

    async def close(self) -> None:
        """End our direction; what the peer still sends is read by nobody. Never raises and never waits long."""
        await end_quietly(self._stream.close)

    async def reset(self) -> None:
        """End both directions at once. Never raises and never waits long."""
        await end_quietly(self._stream.reset)


def _pieces(parts: Iterable[bytes]) -> Iterator[memoryview]:
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), PROGRESS_BYTES):
            yield view[start : start + PROGRESS_BYTES]
