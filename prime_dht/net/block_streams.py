"""Asking peers for blocks, on streams of ``<prefix>/blocks/1.0.0``.

A :class:`BlockStream` asks one peer for many blocks and hands out what becomes of each, as it comes: an *outcome* is a
block, whose bytes have still to be verified, or word of whether the peer has it; and word that a block that takes long
goes on coming, which is no outcome of anything but says that the peer is there. It decides nothing; what to ask whom
for, and when that took too long, is a fetch plan's.

What a peer can make this end hold is one block on its way, what the stream's window holds, and a number for each block
that was asked for. A peer that sends what nobody asked for breaks the protocol, and is charged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from libp2p.abc import INetStream

from prime_dht.blobs.cid import Cid
from prime_dht.blobs.memory import Lend, Memory
from prime_dht.errors import LocalProtocolError, QueryError, RemoteProtocolError
from prime_dht.ids import PeerId, peer_text, short
from prime_dht.net.block_channel import BlockChannel, PartCame
from prime_dht.net.offenders import Offenders
from prime_dht.net.streams import StreamLostError
from prime_dht.wire.blocks import MAX_ASKED_AT_ONCE, MAX_UNANSWERED, Answer, Ask, Block, Cancel

PROGRESS_TIMEOUT_S = 20.0
"""Seconds in which a peer that was asked has to send a message or 64 KiB of a block, and any peer to take as much."""


@dataclass(frozen=True, slots=True)
class BlockCame:
    """What the peer sent for a block. Whoever receives it verifies it: that takes as long as receiving it did, and the
    next one can come meanwhile.
    """

    cid: Cid
    data: Memory


@dataclass(frozen=True, slots=True)
class HasBlock:
    """The peer has a block, of which it was asked only that."""

    cid: Cid


@dataclass(frozen=True, slots=True)
class LacksBlock:
    """The peer does not have a block."""

    cid: Cid


@dataclass(frozen=True, slots=True)
class NotAnswered:
    """The peer did not say, because too much is asked of it just now; it may be asked again later."""

    cid: Cid


Outcome = BlockCame | HasBlock | LacksBlock | NotAnswered | PartCame


@dataclass(frozen=True, slots=True)
class _Asked:
    cid: Cid
    presence_only: bool


class BlockStream:
    """Blocks from one peer. One task at a time may :meth:`receive`; any may ask and cancel meanwhile.

    Attributes:
        peer: who is asked.
    """

    def __init__(self, stream: INetStream, *, lend: Lend = bytearray) -> None:
        self._channel = BlockChannel(stream, asks=True, progress_timeout_s=PROGRESS_TIMEOUT_S, lend=lend)
        self.peer = self._channel.peer
        self._next_number = 0
        self._unanswered: dict[int, _Asked] = {}
        self._cancelled: set[int] = set()
        self._outcomes: deque[Outcome] = deque()

    @property
    def unanswered(self) -> int:
        """How much was asked for and is not answered, cancelled or not."""
        return len(self._unanswered)

    async def ask(self, cids: Sequence[Cid], *, presence_only: bool = False) -> None:
        """Ask for blocks, or whether the peer has them. Each is answered by one outcome, unless it is cancelled.

        Raises:
            LocalProtocolError: more than :data:`~prime_dht.wire.blocks.MAX_UNANSWERED` would be unanswered.
            StreamLostError: the stream is broken, or the peer takes nothing.
        """
        if len(self._unanswered) + len(cids) > MAX_UNANSWERED:
            raise LocalProtocolError(f"asking for more than {MAX_UNANSWERED} blocks at a time")
        for start in range(0, len(cids), MAX_ASKED_AT_ONCE):
            some = tuple(cids[start : start + MAX_ASKED_AT_ONCE])
            # Numbered before the message waits for its turn, and sent in the same order: the lock below is fair.
            for number, cid in enumerate(some, self._next_number):
                self._unanswered[number] = _Asked(cid, presence_only)
            self._next_number += len(some)
            self._channel.await_progress(is_awaited=True)
            await self._channel.send(Ask(some, presence_only))

    async def cancel(self, cids: Iterable[Cid]) -> None:
        """No longer want blocks that were asked for: nothing more is heard of them.

        The peer may have sent them already; they then still come, and are dropped.

        Raises:
            StreamLostError: the stream is broken, or the peer takes nothing.
        """
        unwanted = set(cids)
        numbers = [
            number
            for number, asked in self._unanswered.items()
            if asked.cid in unwanted and number not in self._cancelled
        ]
        if numbers:
            self._cancelled.update(numbers)
            await self._channel.send(Cancel(tuple(numbers)))

    async def receive(self) -> Outcome:
        """What became of one block that was asked for, or word that one is coming, which takes its time.

        While nothing is asked for, it waits without a deadline.

        Raises:
            StreamLostError: the stream broke or ended, or the peer, though asked, made no progress.
            RemoteProtocolError: the peer sent something else than what was asked for.
        """
        while not self._outcomes:
            message = await self._channel.receive()
            match message:
                case None:
                    raise StreamLostError("the peer ended the stream")
                case PartCame():
                    self._outcomes.append(message)
                case Block(number, data):
                    self._outcomes += self._came(number, data)
                case Answer(have=have, not_have=not_have, busy=busy):
                    for number in have:
                        self._outcomes += self._told(number, HasBlock, is_presence=True)
                    for number in not_have:
                        self._outcomes += self._told(number, LacksBlock)
                    for number in busy:
                        self._outcomes += self._told(number, NotAnswered)
                case _:
                    raise AssertionError("the decoder takes only what is for this end")
            self._channel.await_progress(is_awaited=bool(self._unanswered))
        return self._outcomes.popleft()

    async def verify(self, blocks: Iterable[BlockCame]) -> list[bool]:
        """Whether these are the bytes of the blocks, each. They are hashed on another thread."""
        return await trio.to_thread.run_sync(lambda: [block.cid.verify(block.data) for block in blocks])

    async def close(self) -> None:
        await self._channel.close()

    async def reset(self) -> None:
        await self._channel.reset()

    def _came(self, number: int, data: Memory) -> list[Outcome]:
        asked = self._answered(number)
        if asked.presence_only:
            raise self._breach(f"block {asked.cid}, of which its presence alone was asked")
        return [] if self._was_cancelled(number) else [BlockCame(asked.cid, data)]

    def _told(
        self, number: int, outcome: type[HasBlock | LacksBlock | NotAnswered], *, is_presence: bool = False
    ) -> list[Outcome]:
        asked = self._answered(number)
        if is_presence and not asked.presence_only:
            raise self._breach(f"that it has {asked.cid}, but not the block")
        return [] if self._was_cancelled(number) else [outcome(asked.cid)]

    def _answered(self, number: int) -> _Asked:
        asked = self._unanswered.pop(number, None)
        if asked is None:
            raise self._breach(f"an answer to number {number}, which was not asked or is answered")
        return asked

    def _was_cancelled(self, number: int) -> bool:
        is_cancelled = number in self._cancelled
        self._cancelled.discard(number)
        return is_cancelled

    def _breach(self, what: str) -> RemoteProtocolError:
        return RemoteProtocolError(f"the peer sent {what}", peer=peer_text(self.peer))


class BlockStreams:
    """Opens streams to peers.

    Args:
        open_stream: negotiates a stream for blocks with a peer, dialling it if need be; raises :class:`QueryError`.
        offenders: is told who broke the protocol.
    """

    def __init__(self, open_stream: Callable[[PeerId], Awaitable[INetStream]], offenders: Offenders) -> None:
        self._open_stream = open_stream
        self._offenders = offenders

    @asynccontextmanager
    async def open(self, peer: PeerId, *, timeout_s: float, lend: Lend = bytearray) -> AsyncIterator[BlockStream]:
        """A stream to a peer, which is closed when the block ends well, and else reset.

        A :class:`RemoteProtocolError` that leaves the block is the peer's offence, and counted here.

        Raises:
            QueryError: there is none, or not within ``timeout_s``.
        """
        try:
            with trio.fail_after(timeout_s):
                stream = BlockStream(await self._open_stream(peer), lend=lend)
        except trio.TooSlowError as error:
            raise QueryError(f"peer {short(peer)} opens no stream within {timeout_s:g} s") from error
        try:
            yield stream
        except BaseException as error:  # passed on, trio.Cancelled as well
            if isinstance(error, RemoteProtocolError):
                self._offenders.charge(peer, now_s=trio.current_time())
            await stream.reset()
            raise
        # What was asked for and is no longer wanted need not be sent.
        await (stream.reset() if stream.unanswered else stream.close())
