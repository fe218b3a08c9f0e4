"""P1, P8, A4, A7: an inbound stream can harm only itself, and always ends.

Defects (py-libp2p 0.8.1):

- P1: an exception in a stream handler, or in the negotiation before it, reaches the nursery of the whole host and ends
  it. Remotely: after the multistream header send the length-prefixed bytes ``ff fe fa``.
- P8: a handler that returns without closing its stream leaves the peer reading for ever.
- A4: a handler that closes its stream only half-closes it. If the peer never closes its half, the stream and up to a
  window of data are kept for the life of the connection, without limit on their number.
- A7: the number of streams a peer may have open is not limited.

Why this works: the swarm looks up ``common_stream_handler`` for each stream; this guard stands in its place. It admits
a stream within the limits or resets it; contains whatever the handler raises and then resets the stream; after a
handler that returned it closes this end, reads what the peer still sends until the peer closes too, and resets the
stream if that takes too long. A handler therefore owns its stream until it returns, and not longer. When all peers
together have as many streams as there may be, the newest of the peer that has most is reset for one of a peer that has
few: identities are free, and those that hold streams for nothing must not keep everybody else out.

It can go when the swarm contains handlers' exceptions, limits streams per peer, and finishes streams itself.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import StreamHandlerFn
from libp2p.io.exceptions import IOException
from libp2p.network.swarm import Swarm
from libp2p.stream_muxer.exceptions import MuxedStreamError

from prime_dht.ids import PeerId, short
from prime_dht.net.hardening.containment import contained
from prime_dht.net.hardening.limits import HostLimits

LINGER_S = 10.0
"""How long a peer may take to close its half of a stream after this host has closed its own."""

_LINGER_READ_BYTES = 64 << 10

logger = logging.getLogger(__name__)


class StreamGuard:
    """What a swarm calls for each inbound stream, in place of the host's own handler.

    Args:
        handler: the host's own: negotiates a protocol and runs its handler.
        limits: how many streams peers may have open.
        finish_streams: end streams after their handler returns. Not on a host made elsewhere: py-libp2p lets a handler
            pass its stream on and return, and some of its protocols do.
    """

    def __init__(self, handler: StreamHandlerFn, limits: HostLimits, *, finish_streams: bool) -> None:
        self._handler = handler
        self._limits = limits
        self._finish_streams = finish_streams
        self._open: dict[PeerId, dict[INetStream, None]] = {}
        self._total = 0

    @property
    def total(self) -> int:
        """How many streams peers have open."""
        return self._total

    async def __call__(self, stream: INetStream) -> None:
        peer = PeerId(stream.muxed_conn.peer_id.to_bytes())
        count = len(self._open.get(peer, ()))
        displaced: tuple[PeerId, INetStream] | None = None
        is_full = self._total >= self._limits.max_inbound_streams
        if is_full and count < self._limits.max_inbound_streams_per_peer:
            displaced = self._dispensable(count)
        if count >= self._limits.max_inbound_streams_per_peer or (is_full and displaced is None):
            logger.debug("refused a stream of %s: too many are open", short(peer))
            await _reset(stream)
            return
        if displaced is not None:
            self._forget(*displaced)
        self._open.setdefault(peer, {})[stream] = None
        self._total += 1
        ended = False
        try:
            if displaced is not None:
                await _reset(displaced[1])
            with contained(partial(_note, peer, stream)):
                await self._handler(stream)
                ended = not self._finish_streams or await _finish(stream)
            if not ended:
                await _reset(stream)
        finally:
            self._forget(peer, stream)

    def _dispensable(self, count: int) -> tuple[PeerId, INetStream] | None:
        """The newest stream of the peer that has most, if it has many more than a peer with so many."""
        most = max(self._open, key=lambda peer: len(self._open[peer]), default=None)
        if most is None or len(self._open[most]) <= count + 1:
            return None
        return most, next(reversed(self._open[most]))

    def _forget(self, peer: PeerId, stream: INetStream) -> None:
        streams = self._open.get(peer, {})
        if stream in streams:
            del streams[stream]
            self._total -= 1
        if not streams:
            self._open.pop(peer, None)


def _note(peer: PeerId, stream: INetStream, faults: ExceptionGroup[Exception]) -> None:
    # A peer can cause these at will, so they are not worth more than a debug line each.
    logger.debug("reset a stream of %s (%s)", short(peer), stream.get_protocol(), exc_info=faults)


async def _finish(stream: INetStream) -> bool:
    """Close this end and read until the peer closes the other; ``False`` if it did not."""
    finished = False
    with trio.move_on_after(LINGER_S), suppress(IOException, MuxedStreamError):
        await stream.close()
        try:
            while await stream.read(_LINGER_READ_BYTES):
                pass
        except EOFError:
            pass
        finished = True
    return finished


async def _reset(stream: INetStream) -> None:
    with trio.move_on_after(LINGER_S), contained(lambda _: None):
        await stream.reset()


def guard_streams(swarm: Swarm, limits: HostLimits, *, finish_streams: bool) -> None:
    """Put a :class:`StreamGuard` in front of a swarm's stream handler."""
    swarm.common_stream_handler = StreamGuard(swarm.common_stream_handler, limits, finish_streams=finish_streams)
