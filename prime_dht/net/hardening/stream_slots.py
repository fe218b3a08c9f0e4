"""P7: opening a stream ends, one way or the other.

Defects (py-libp2p 0.8.1): a connection has 256 slots for streams, and whoever asks for one more waits without a
deadline. A task cancelled between the muxer's opening of a stream and the swarm's registering of it leaves the stream
open for the life of the connection.

Why this works: ``Swarm.new_stream``, through which ``BasicHost.new_stream`` goes, first takes one of fewer slots for
the peer, which comes back when the swarm reports the stream closed; slot and stream together have a deadline. The
swarm's inner step is replaced by one that resets a stream that was opened and cannot be handed over (and that does not
try the peer's other connections).

It can go when ``new_stream`` has a deadline and gives up its stream when cancelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import trio
from libp2p.abc import INetConn, INetStream
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.net_stream import NetStream
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID

OPEN_STREAM_TIMEOUT_S = 10.0
"""Time for a slot and the muxer; negotiating the protocol comes after and has a deadline of its own."""

_RESET_TIMEOUT_S = 1.0


class _StreamSlots:
    def __init__(self, swarm: Swarm, max_per_peer: int) -> None:
        self._open_stream = swarm.new_stream
        self._notify_closed = swarm.notify_closed_stream
        self._max_per_peer = max_per_peer
        self._slots: dict[ID, trio.Semaphore] = {}
        self._holders: dict[INetStream, ID] = {}

    async def new_stream(self, peer_id: ID) -> INetStream:
        slots = self._slots.setdefault(peer_id, trio.Semaphore(self._max_per_peer, max_value=self._max_per_peer))
        try:
            with trio.fail_after(OPEN_STREAM_TIMEOUT_S):
                await slots.acquire()
                try:
                    stream = await self._open_stream(peer_id)
                    _check_open(stream)
                except BaseException:  # also a cancellation: the slot is free again
                    self._give_back(peer_id)
                    raise
                self._holders[stream] = peer_id
                return stream
        except trio.TooSlowError as error:
            raise SwarmException(f"no stream to {peer_id} within {OPEN_STREAM_TIMEOUT_S:g} s") from error

    async def notify_closed_stream(self, stream: INetStream) -> None:
        peer_id = self._holders.pop(stream, None)
        if peer_id is not None:
            self._give_back(peer_id)
        await self._notify_closed(stream)

    def _give_back(self, peer_id: ID) -> None:
        slots = self._slots[peer_id]
        slots.release()
        if slots.value == self._max_per_peer:
            del self._slots[peer_id]


def _check_open(stream: INetStream) -> None:
    """A stream whose connection closed under its opening has been, or never will be, reported closed."""
    assert isinstance(stream, NetStream)
    if stream.swarm_conn is None or stream.swarm_conn.is_closed:
        raise SwarmException("the connection was closed while a stream was opened")


async def _open_on(connection: INetConn, _others: Sequence[INetConn], peer_id: ID) -> NetStream:
    assert isinstance(connection, SwarmConn)
    try:
        muxed = await connection.muxed_conn.open_stream()
    except BaseLibp2pError as error:
        raise SwarmException(f"cannot open a stream to {peer_id}: {error}") from error
    try:
        return await connection._add_stream(muxed)
    except BaseException:  # also a cancellation: the stream is open already, and nobody else knows of it
        with trio.move_on_after(_RESET_TIMEOUT_S) as scope, suppress(BaseLibp2pError):
            scope.shield = True
            await muxed.reset()
        raise


def guard_new_streams(swarm: Swarm, max_per_peer: int) -> None:
    """Bound the streams a swarm opens to one peer, and the time it takes to open one."""
    slots = _StreamSlots(swarm, max_per_peer)
    swarm.new_stream = slots.new_stream  # type: ignore[method-assign]
    swarm.notify_closed_stream = slots.notify_closed_stream  # type: ignore[method-assign]
    swarm._open_stream_on_connection = _open_on  # type: ignore[method-assign,assignment]
