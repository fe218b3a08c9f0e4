"""Streams of sync rounds on a libp2p host: one stream a round, a frame a message.

What a peer can make this end hold is bounded: streams that are served (:mod:`prime_dht.net.places`), and bytes of a
message. A stream over a bound is reset. How long a message or a round takes, and how many rounds there are, is for
those who run them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio
from libp2p.abc import INetStream

from prime_dht.errors import PrimeDHTError, QueryError, RemoteProtocolError
from prime_dht.ids import PeerId, short
from prime_dht.net.network import SyncHandler
from prime_dht.net.offenders import Offenders, Standing
from prime_dht.net.places import Places
from prime_dht.net.streams import FrameBudget, FrameStream
from prime_dht.sync.limits import MAX_MESSAGE_BYTES
from prime_dht.wire.frames import MAX_FRAME_BYTES

logger = logging.getLogger(__name__)

SERVED_OF_PEER = 4
"""Streams of one peer that are served at a time; an honest one needs one, or two while it gives up the other."""

SERVED_IN_ALL = 32
"""With a message of at most 1 MiB in hand each."""


class MessageStream:
    """One end of a round's stream; a :class:`prime_dht.net.network.Conversation`."""

    def __init__(self, stream: INetStream) -> None:
        self.peer = PeerId(stream.muxed_conn.peer_id.to_bytes())
        self._frames = FrameStream(
            stream,
            budget=FrameBudget(MAX_FRAME_BYTES),
            frame_timeout_s=math.inf,
            max_frame_bytes=MAX_MESSAGE_BYTES,
        )

    async def send(self, message: bytes) -> None:
        await self._frames.write_frame(message)

    async def receive(self) -> bytes | None:
        message = await self._frames.read_frame(idle_timeout_s=math.inf)
        if message is not None:
            self._frames.done_with(message)
        return message

    async def close(self) -> None:
        """End our direction."""
        await self._frames.close()

    async def reset(self) -> None:
        """End both directions."""
        await self._frames.reset()


class SyncStreams:
    """Opens streams to peers and serves those that peers open.

    Args:
        open_stream: negotiates a stream for rounds with a peer, dialling it if need be; raises :class:`QueryError`.
        offenders: whose streams are neither opened nor served.
    """

    def __init__(self, open_stream: Callable[[PeerId], Awaitable[INetStream]], offenders: Offenders) -> None:
        self._open_stream = open_stream
        self._offenders = offenders
        self._places = Places(of_peer=SERVED_OF_PEER, in_all=SERVED_IN_ALL)
        self.handler: SyncHandler | None = None

    @asynccontextmanager
    async def open(self, peer: PeerId, *, timeout_s: float) -> AsyncIterator[MessageStream]:
        """A stream to a peer, which is closed when the block ends well, and else reset.

        Raises:
            QueryError: there is none, or not within ``timeout_s``.
        """
        try:
            with trio.fail_after(timeout_s):
                stream = MessageStream(await self._open_stream(peer))
        except trio.TooSlowError as error:
            raise QueryError(f"peer {short(peer)} opens no stream within {timeout_s:g} s") from error
        try:
            yield stream
        except BaseException:  # passed on, trio.Cancelled as well
            await stream.reset()
            raise
        await stream.close()

    async def serve(self, stream: INetStream) -> None:
        """A stream handler for ``<prefix>/sync/1.0.0``."""
        messages = MessageStream(stream)
        peer = messages.peer
        is_tolerated = self._offenders.standing(peer, now_s=trio.current_time()) is Standing.TOLERATED
        scope = self._places.take(peer) if self.handler is not None and is_tolerated else None
        if self.handler is None or scope is None:
            await messages.reset()
            return
        clean = False
        try:
            with scope:
                await self.handler(messages)
                clean = True
        except RemoteProtocolError as error:
            self._offenders.charge(peer, now_s=trio.current_time())
            logger.debug("a round of peer %s broke the protocol: %s", short(peer), error)
        except QueryError as error:
            logger.debug("a round of peer %s broke off: %s", short(peer), error)
        except PrimeDHTError as error:
            logger.warning("a round of peer %s could not be carried out: %s", short(peer), error)
        finally:
            self._places.leave(scope)
            await (messages.close() if clean else messages.reset())

    def stop(self) -> None:
        """Reset every stream that is being served."""
        self._places.cancel_all()
