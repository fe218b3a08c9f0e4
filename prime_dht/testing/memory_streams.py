"""Streams of sync rounds in a :class:`~prime_dht.testing.memory_network.World`: messages that take their time.

A message is under way while its sender waits, as on a stream whose window is as large as one message. An end that is
closed says so after the same time; one that is reset, or whose node stops, likewise.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from prime_dht.errors import QueryError
from prime_dht.ids import PeerId

Travel = Callable[[bytes], Awaitable[None]]
"""Waits until a message has reached the other end, and tells the world of it; for ever if it is lost."""


class Call:
    """One request that another node is working on."""

    def __init__(self, caller: PeerId, message: bytes) -> None:
        self.caller = caller
        self.message = message
        self.done = trio.Event()
        self.answer: bytes | None = None
        self.is_refused = False  # a put that the other node could not carry out


class MemoryConversation:
    """One end; a :class:`prime_dht.net.network.Conversation`. Made in pairs by :func:`conversation_pair`."""

    def __init__(
        self,
        peer: PeerId,
        travel: Travel,
        outgoing: trio.MemorySendChannel[bytes],
        incoming: trio.MemoryReceiveChannel[bytes],
    ) -> None:
        self.peer = peer
        self._travel = travel
        self._outgoing = outgoing
        self._incoming = incoming

    async def send(self, message: bytes) -> None:
        await self._travel(message)
        try:
            await self._outgoing.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise QueryError("the stream is gone") from error

    async def receive(self) -> bytes | None:
        try:
            return await self._incoming.receive()
        except trio.EndOfChannel:
            return None
        except trio.ClosedResourceError as error:
            raise QueryError("the stream is gone") from error

    def close(self) -> None:
        """Send no more; what the other end still sends is read by nobody."""
        self._outgoing.close()
        self._incoming.close()


def conversation_pair(
    one: PeerId, other: PeerId, travel_to_other: Travel, travel_to_one: Travel
) -> tuple[MemoryConversation, MemoryConversation]:
    """The two ends of a stream: that of ``one``, and that of ``other``."""
    to_other, from_one = trio.open_memory_channel[bytes](1)
    to_one, from_other = trio.open_memory_channel[bytes](1)
    return (
        MemoryConversation(other, travel_to_other, to_other, from_other),
        MemoryConversation(one, travel_to_one, to_one, from_one),
    )
