"""Streams in memory: what the RPC layer needs of libp2p, without sockets.

A :class:`MemoryStream` behaves as a py-libp2p stream does, half-closing, resetting and flow control included, and tells
a test what became of it. A :class:`StreamOpener` stands for a host and the peers it can reach.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import trio
from libp2p.abc import IMuxedConn, INetStream
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamClosed, StreamEOF, StreamReset
from libp2p.peer.id import ID

from prime_dht.errors import QueryError
from prime_dht.ids import PeerId

WINDOW_BYTES = 256 << 10
"""Bytes that can be on their way in one direction: Yamux's first window."""


@dataclass(slots=True)
class _Connection:
    """The one thing that servers ask of a connection: who is at the other end."""

    peer_id: ID


class _Direction:
    def __init__(self, window_bytes: int) -> None:
        self.window_bytes = window_bytes
        self.buffer = bytearray()
        self.is_closed = False
        self.is_reset = False
        self.changed = trio.lowlevel.ParkingLot()


class MemoryStream(INetStream):
    """One end of a stream; see :func:`stream_pair`."""

    def __init__(self, peer: PeerId, protocol: str, incoming: _Direction, outgoing: _Direction) -> None:
        self.muxed_conn = cast(IMuxedConn, _Connection(ID(peer)))
        self._protocol = TProtocol(protocol)
        self._incoming = incoming
        self._outgoing = outgoing

    @property
    def is_closed(self) -> bool:
        """Whether this end has ended its direction in good order."""
        return self._outgoing.is_closed and not self._outgoing.is_reset

    @property
    def is_reset(self) -> bool:
        """Whether either end has reset the stream."""
        return self._outgoing.is_reset

    @property
    def unread_bytes(self) -> int:
        """What the other end has sent and this one has not read."""
        return len(self._incoming.buffer)

    async def read(self, n: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        incoming = self._incoming
        while not incoming.buffer:
            if incoming.is_reset:
                raise StreamReset("reset")
            if incoming.is_closed:
                raise StreamEOF
            await incoming.changed.park()
        size = len(incoming.buffer) if n is None else n
        data = bytes(incoming.buffer[:size])
        del incoming.buffer[:size]
        incoming.changed.unpark_all()
        return data

    async def write(self, data: bytes) -> None:
        """In pieces, as the window allows; a cancelled write has sent some of them."""
        outgoing = self._outgoing
        while data:
            await trio.lowlevel.checkpoint()
            if outgoing.is_reset:
                raise StreamReset("reset")
            if outgoing.is_closed:
                raise StreamClosed("closed")
            room = outgoing.window_bytes - len(outgoing.buffer)
            if not room:
                await outgoing.changed.park()
                continue
            outgoing.buffer += data[:room]
            data = data[room:]
            outgoing.changed.unpark_all()

    async def close(self) -> None:
        self._outgoing.is_closed = True
        self._outgoing.changed.unpark_all()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        for direction in (self._incoming, self._outgoing):
            direction.is_reset = True
            direction.buffer.clear()
            direction.changed.unpark_all()
        await trio.lowlevel.checkpoint()

    def get_protocol(self) -> TProtocol:
        return self._protocol

    def set_protocol(self, protocol_id: TProtocol) -> None:
        self._protocol = protocol_id

    def get_remote_address(self) -> tuple[str, int] | None:
        return None


def stream_pair(
    here: PeerId, there: PeerId, *, protocol: str = "", window_bytes: int = WINDOW_BYTES
) -> tuple[MemoryStream, MemoryStream]:
    """Both ends of one stream: that of ``here``, and that of ``there``."""
    there_to_here, here_to_there = _Direction(window_bytes), _Direction(window_bytes)
    return (
        MemoryStream(there, protocol, there_to_here, here_to_there),
        MemoryStream(here, protocol, here_to_there, there_to_here),
    )


class StreamOpener:
    """Opens streams from one peer to any other, all of which serve alike.

    Args:
        local: who opens.
        nursery: where streams are served.
        handlers: what serves a stream, by protocol.

    Attributes:
        opened: this end of every stream, in order.
        handlers: may be changed at any time.
    """

    def __init__(
        self,
        local: PeerId,
        nursery: trio.Nursery,
        handlers: Mapping[str, Callable[[MemoryStream], Awaitable[None]]],
        *,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self._local = local
        self._nursery = nursery
        self._window_bytes = window_bytes
        self.handlers = dict(handlers)
        self.opened: list[MemoryStream] = []

    async def __call__(self, peer: PeerId, protocols: Sequence[str]) -> MemoryStream:
        await trio.lowlevel.checkpoint()
        protocol = next((each for each in protocols if each in self.handlers), None)
        if protocol is None:
            raise QueryError(f"the peer speaks none of {protocols}")
        here, there = stream_pair(self._local, peer, protocol=protocol, window_bytes=self._window_bytes)
        self._nursery.start_soon(self.handlers[protocol], there)
        self.opened.append(here)
        return here

    @property
    def open_streams(self) -> list[MemoryStream]:
        """Those that nobody has reset."""
        return [stream for stream in self.opened if not stream.is_reset]
