"""Serving blocks from a store, on streams of ``<prefix>/blocks/1.0.0``.

A stream has a task that reads what is asked, one that loads blocks, and one that sends them. The store is read no
faster than the stream takes: at any time one block is loaded and waits while another is sent. Word of presence goes
before blocks. Blocks are not verified here: who asked for them does that in any case.

What a peer can do to this end is bounded: streams, of one peer and in all, each with two blocks in hand; blocks that
one peer asks for and has not got, over all its streams (those beyond are answered ``busy``); seconds in which a stream
may idle, or take nothing. When the peer ends its direction, what it asked for is still answered.

**Places.** Each stream that is served takes one of :data:`SERVED_IN_ALL` *places*. It *dawdles* when it has been its
peer's turn for a while: to ask, or to take what is sent. When all places are taken, a newcomer displaces the stream
that has dawdled longest. (How many places its peer has does not count, for ids cost nothing.) It is reset, as if its
connection were lost. Nobody is charged, and the peer may come back, as fetches of ours do. A stream is never displaced
while it is this end's turn, however slow the store is, or while a large block may be on its way. While none dawdles,
newcomers are reset.

So a place is kept by using it, and whoever opens and drops streams, under however many ids, displaces nobody who does.
To keep others out, strangers have to ask on all streams within :data:`IDLE_S` each time, or for a large block within
:data:`ON_ITS_WAY_S`, or to take 64 KiB within :data:`UNTAKEN_S`, or to open all anew within that.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import trio
from libp2p.abc import INetStream

from prime_dht.blobs.cid import Cid
from prime_dht.errors import PrimeDHTError, QueryError, RemoteProtocolError
from prime_dht.ids import PeerId, short
from prime_dht.net.block_channel import BlockChannel
from prime_dht.net.offenders import Offenders, Standing
from prime_dht.wire.blocks import MAX_UNANSWERED, Answer, Ask, Cancel

SERVED_OF_PEER = 8
"""Streams of one peer that are served at a time; an honest one needs one for each blob that it fetches, and a few to
ask whether this node holds what it put."""

SERVED_IN_ALL = 32
"""With two blocks of 1 MiB, or 2 MiB at most, in hand each."""

TIMEOUT_S = 30.0
"""Seconds after which a stream is reset on which nothing is asked, or on which 64 KiB are not taken."""

IDLE_S = 3.0
"""A stream dawdles on which all is answered and nothing was asked for so long. A fetch asks again within a round trip
and the hashing of a block, if it needs this provider. One that is turned away comes back for 4 s, and so outlasts
strangers who do nothing."""

UNTAKEN_S = 10.0
"""So does one on which 64 KiB were not taken for so long. To displace it wastes the part of a block that was sent, so
this is longer. At three times that speed, a block of 1 MiB in 60 s, a fetch gives a provider up of its own accord."""

ON_ITS_WAY_S = 20.0
"""For so long after a block of more than 64 KiB was sent a stream is not idle, for the block may be on its way: the
buffers of both ends hold a megabyte or more, and that takes as long at 50 kB/s."""

logger = logging.getLogger(__name__)


class BlockSource(Protocol):
    """What is needed of a :class:`~prime_dht.storage.blocks.BlockStore`."""

    async def present(self, cids: Iterable[Cid]) -> set[Cid]: ...

    async def read(self, cids: Sequence[Cid]) -> list[bytes | None]: ...


class BlockServer:
    """Serves streams from a store.

    Args:
        store: which blocks there are.
        offenders: whose streams are not served.

    Attributes:
        blocks_sent, bytes_sent: since the start, of blocks alone.
    """

    def __init__(self, store: BlockSource, offenders: Offenders) -> None:
        self._store = store
        self._offenders = offenders
        self._unanswered: Counter[PeerId] = Counter()
        self._places: dict[trio.CancelScope, BlockChannel] = {}
        self.blocks_sent = 0
        self.bytes_sent = 0

    async def serve(self, stream: INetStream) -> None:
        """A stream handler for ``<prefix>/blocks/1.0.0``."""
        channel = BlockChannel(stream, asks=False, progress_timeout_s=TIMEOUT_S)
        peer = channel.peer
        scope = trio.CancelScope()
        if not self._take_place(channel, scope):
            await channel.reset()
            return
        clean = False
        try:
            with scope:
                await self._answer(channel)
                clean = True
        except* RemoteProtocolError as group:
            self._offenders.charge(peer, now_s=trio.current_time())
            logger.debug("peer %s asked for blocks wrongly: %s", short(peer), group.exceptions[0])
        except* (QueryError, trio.TooSlowError) as group:
            logger.debug("blocks for peer %s broke off: %s", short(peer), group.exceptions[0])
        except* PrimeDHTError as group:
            logger.warning("blocks for peer %s could not be sent: %s", short(peer), group.exceptions[0])
        finally:
            self._places.pop(scope, None)  # if it was displaced, its place is another's
            await (channel.close() if clean else channel.reset())

    def stop(self) -> None:
        """Reset every stream that is being served."""
        for scope in self._places:
            scope.cancel()

    def _take_place(self, channel: BlockChannel, scope: trio.CancelScope) -> bool:
        """Take a place for a stream, if need be that of another; ``False`` if it gets none."""
        now_s = trio.current_time()
        if self._offenders.standing(channel.peer, now_s=now_s) is not Standing.TOLERATED:
            return False
        if sum(other.peer == channel.peer for other in self._places.values()) == SERVED_OF_PEER:
            return False
        if len(self._places) == SERVED_IN_ALL and not self._displace_one(now_s):
            return False
        self._places[scope] = channel
        return True

    def _displace_one(self, now_s: float) -> bool:
        """Free the place of the stream that has dawdled longest, which is reset a little later; ``False`` if none."""
        scope, channel = max(self._places.items(), key=lambda place: _dawdles_s(place[1], now_s))
        if _dawdles_s(channel, now_s) < 0:
            return False
        logger.debug("a stream of peer %s, which dawdles, gives way to a newcomer", short(channel.peer))
        del self._places[scope]
        scope.cancel()
        return True

    async def _answer(self, channel: BlockChannel) -> None:
        asked = _Asked(channel.peer, self._unanswered)
        to_send, loaded = trio.open_memory_channel[tuple[int, bytes | None]](0)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, channel, asked)
                nursery.start_soon(self._load, channel, asked, to_send)
                async for number, data in loaded:
                    await self._send(channel, number, data)
                    asked.answered([number])
                    channel.await_progress(is_awaited=not asked.unanswered)
        finally:
            asked.drop_all()

    async def _read(self, channel: BlockChannel, asked: _Asked) -> None:
        """Note what the peer asks for, and answer at once what is not carried out."""
        while True:
            channel.await_progress(is_awaited=not asked.unanswered)
            message = await channel.receive()
            match message:
                case None:
                    asked.end()
                    return
                case Ask(cids, presence_only):
                    refused = asked.add(cids, presence_only=presence_only)
                case Cancel(numbers):
                    refused = asked.cancel(numbers)
                case _:
                    raise AssertionError("the decoder takes only what is for this end")
            if refused:
                await channel.send(Answer(busy=refused))

    async def _load(
        self, channel: BlockChannel, asked: _Asked, to_send: trio.MemorySendChannel[tuple[int, bytes | None]]
    ) -> None:
        """Answer what is asked about presence, and hand loaded blocks on, in the order in which they were asked for."""
        async with to_send:
            while await asked.wait():
                if presences := asked.next_presences():
                    present = await self._store.present(presences.values())
                    have = tuple(number for number, cid in presences.items() if cid in present)
                    not_have = tuple(number for number, cid in presences.items() if cid not in present)
                    await channel.send(Answer(have=have, not_have=not_have))
                    asked.answered(presences)
                    channel.await_progress(is_awaited=not asked.unanswered)
                else:
                    number, cid = asked.next_block()
                    (data,) = await self._store.read([cid])
                    await to_send.send((number, data))

    async def _send(self, channel: BlockChannel, number: int, data: bytes | None) -> None:
        if data is None:
            await channel.send(Answer(not_have=(number,)))
            return
        await channel.send_block(number, data)
        self.blocks_sent += 1
        self.bytes_sent += len(data)


def _dawdles_s(channel: BlockChannel, now_s: float) -> float:
    """How long a stream has dawdled; negative if it does not."""
    idle_s = min(channel.silent_s(now_s) - IDLE_S, channel.since_much_s(now_s) - ON_ITS_WAY_S)
    return max(idle_s, channel.untaken_s(now_s) - UNTAKEN_S)


class _Asked:
    """What a peer has asked for on one stream, and has not got.

    Args:
        peer_unanswered: how much of each peer's is unanswered, over all its streams; kept up to date.
    """

    def __init__(self, peer: PeerId, peer_unanswered: Counter[PeerId]) -> None:
        self._peer = peer
        self._peer_unanswered = peer_unanswered
        self._next_number = 0
        self._presences: dict[int, Cid] = {}
        self._blocks: dict[int, Cid] = {}
        self._is_ended = False
        self._changed = trio.lowlevel.ParkingLot()
        self.unanswered = 0

    def add(self, cids: Sequence[Cid], *, presence_only: bool) -> tuple[int, ...]:
        """Take what is asked for; returns the numbers of what is too much."""
        numbers = range(self._next_number, self._next_number + len(cids))
        self._next_number = numbers.stop
        room = max(0, MAX_UNANSWERED - self._peer_unanswered[self._peer])
        taken = dict(zip(numbers[:room], cids, strict=False))
        (self._presences if presence_only else self._blocks).update(taken)
        self._count(len(taken))
        self._changed.unpark_all()
        return tuple(numbers[room:])

    def cancel(self, numbers: Iterable[int]) -> tuple[int, ...]:
        """Drop what is not under way yet; returns the numbers."""
        waiting = [self._presences, self._blocks]
        dropped = tuple(n for n in numbers if any(asked.pop(n, None) is not None for asked in waiting))
        self.answered(dropped)
        return dropped

    def end(self) -> None:
        """Nothing more will be asked."""
        self._is_ended = True
        self._changed.unpark_all()

    async def wait(self) -> bool:
        """Wait until something is asked; ``False`` if nothing is and nothing will be."""
        while not (self._presences or self._blocks or self._is_ended):
            await self._changed.park()
        return bool(self._presences or self._blocks)

    def next_presences(self) -> dict[int, Cid]:
        """Blocks of which the peer wants to know whether they are here; they are under way from now on."""
        presences, self._presences = self._presences, {}
        return presences

    def next_block(self) -> tuple[int, Cid]:
        """The block that was asked for first; it is under way from now on."""
        number = next(iter(self._blocks))
        return number, self._blocks.pop(number)

    def answered(self, numbers: Collection[int]) -> None:
        self._count(-len(numbers))

    def drop_all(self) -> None:
        """The stream is over."""
        self._count(-self.unanswered)

    def _count(self, more: int) -> None:
        self.unanswered += more
        self._peer_unanswered[self._peer] += more
        if not self._peer_unanswered[self._peer]:
            del self._peer_unanswered[self._peer]
