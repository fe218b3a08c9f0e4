"""A secured connection in memory, for muxers: no socket, no cipher, and ends that a test can stall or lose."""

from __future__ import annotations

import trio
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import ConnectionClosedError
from multiaddr import Multiaddr

from prime_dht.net.yamux.frames import FrameParser


class MemoryConn:
    """One end of a connection in memory: what is sent is at once in the other end's inbox, unless that is stalled."""

    def __init__(self, *, is_initiator: bool) -> None:
        self.is_initiator = is_initiator
        self.other: MemoryConn = self
        self.inbox: list[bytes] = []
        self.is_lost = False
        self.is_stalled = False
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def room_bytes(self) -> int:
        return 0 if self.is_stalled else 1

    def send_now(self, data: bytes) -> bool:
        if self.is_lost:
            raise ConnectionClosedError("lost")
        self.other.inbox.append(bytes(data))
        self.other._changed.unpark_all()
        return True

    async def backpressure(self) -> None:
        while self.is_stalled and not self.is_lost:
            await self._changed.park()
        if self.is_lost:
            raise ConnectionClosedError("lost")

    async def read_some(self) -> list[bytes]:
        while not self.inbox:
            if self.is_lost:
                raise ConnectionClosedError("lost")
            await self._changed.park()
        chunks, self.inbox = self.inbox, []
        return chunks

    def resume(self) -> None:
        self.is_stalled = False
        self._changed.unpark_all()

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        for end in (self, self.other):
            end.is_lost = True
            end._changed.unpark_all()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None

    def get_transport_addresses(self) -> list[Multiaddr]:
        return []

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT

    def received(self) -> list[tuple[int, int, int, int]]:
        """Every frame in the inbox, without payloads: what a peer that runs no muxer was sent."""
        wire, self.inbox = b"".join(self.inbox), []
        return [frame[:4] for frame in FrameParser().feed(wire)]


def memory_conns() -> tuple[MemoryConn, MemoryConn]:
    dialer, listener = MemoryConn(is_initiator=True), MemoryConn(is_initiator=False)
    dialer.other, listener.other = listener, dialer
    return dialer, listener
