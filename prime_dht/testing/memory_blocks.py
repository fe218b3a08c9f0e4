"""Blocks from node to node in a :class:`~prime_dht.testing.memory_network.World`: what is asked for takes a while.

To its user a :class:`MemoryBlockStream` is what :class:`prime_dht.net.block_streams.BlockStream` is: one outcome for
each block that was asked for and not cancelled, blocks verified, and an error where the peer lies or goes away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio

from prime_dht.blobs.cid import Cid
from prime_dht.blobs.memory import Lend
from prime_dht.errors import QueryError, RemoteProtocolError
from prime_dht.net.block_server import BlockSource
from prime_dht.net.block_streams import BlockCame, HasBlock, LacksBlock, Outcome

BYTES_PER_S = 100e6

BlockLie = Callable[[Cid, bytes | None], bytes | None]
"""What a node sends instead of the bytes that it has of a block; ``None``: that it lacks it."""


class MemoryBlockStream:
    """See the module.

    Args:
        travel: waits as long as a message takes to the peer.
        travel_back: as long as one takes from it.
        is_open: whether the peer, and the connection to it, are still there.
        lie: what the peer makes of its blocks.
        sent: is told how many bytes the peer sent.
        lend: gives memory for a block that came.
    """

    def __init__(
        self,
        source: BlockSource,
        *,
        travel: Callable[[], Awaitable[None]],
        travel_back: Callable[[], Awaitable[None]],
        is_open: Callable[[], bool],
        lie: BlockLie | None,
        sent: Callable[[int], None],
        lend: Lend = bytearray,
    ) -> None:
        self._source = source
        self._travel = travel
        self._travel_back = travel_back
        self._is_open = is_open
        self._lie = lie
        self._sent = sent
        self._lend = lend
        self._asked: deque[tuple[Cid, bool]] = deque()
        self._came: deque[Outcome | QueryError | RemoteProtocolError] = deque()
        self._changed = trio.Event()

    @property
    def unanswered(self) -> int:
        return len(self._asked)

    async def ask(self, cids: Sequence[Cid], *, presence_only: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        self._asked += [(cid, presence_only) for cid in cids]
        self._change()

    async def cancel(self, cids: Iterable[Cid]) -> None:
        await trio.lowlevel.checkpoint()
        unwanted = set(cids)
        self._asked = deque(asked for asked in self._asked if asked[0] not in unwanted)

    async def receive(self) -> Outcome:
        while not self._came:
            await self._changed.wait()
        outcome = self._came.popleft()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def verify(self, blocks: Iterable[BlockCame]) -> list[bool]:
        await trio.lowlevel.checkpoint()
        return [block.cid.verify(block.data) for block in blocks]

    async def carry(self) -> None:
        """Have what is asked answered, in order, until cancelled."""
        while True:
            while not self._asked:
                await self._changed.wait()
            await self._travel()
            await self._travel_back()
            while self._asked:
                self._came.append(await self._answer(*self._asked[0]))
                if self._asked:
                    self._asked.popleft()
                self._change()

    async def _answer(self, cid: Cid, presence_only: bool) -> Outcome | QueryError | RemoteProtocolError:
        if not self._is_open():
            return QueryError("the stream was reset or its connection lost")
        if presence_only:
            return HasBlock(cid) if await self._source.present([cid]) else LacksBlock(cid)
        (data,) = await self._source.read([cid])
        if self._lie is not None:
            data = self._lie(cid, data)
        if data is None:
            return LacksBlock(cid)
        self._sent(len(data))
        await trio.sleep(len(data) / BYTES_PER_S)
        came = self._lend(len(data))
        came[:] = data
        return BlockCame(cid, came)

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
