"""Serving blocks from a store, on streams of ``<prefix>/blocks/1.0.0``.

A stream has a task that reads what is asked, one that loads blocks, and one that sends them. The store is read no
faster than the stream takes: at any time one block is loaded and waits while another is sent. Word of presence goes
before blocks. Blocks are not verified here: who asked for them does that in any case.

What a peer can do to this end is bounded: its streams and those of all (:mod:`prime_dht.net.places`); blocks in hand
(:mod:`prime_dht.net.blocks_in_hand`), likewise; blocks that are asked for and not answered, likewise (those beyond are
answered ``busy``); seconds in which a stream may idle, or take nothing. When the peer ends its direction, what it asked
for is still answered.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol
from weakref import WeakValueDictionary

import trio
from libp2p.abc import INetStream

from prime_dht.blobs.cid import Cid
from prime_dht.errors import PrimeDHTError, QueryError, RemoteProtocolError
from prime_dht.ids import PeerId, short
from prime_dht.net.block_channel import BlockChannel
from prime_dht.net.blocks_in_hand import IN_HAND_OF_PEER, BlocksInHand, Hand
from prime_dht.net.offenders import Offenders, Standing
from prime_dht.net.places import Places
from prime_dht.wire.blocks import MAX_UNANSWERED, Answer, Ask, Cancel

SERVED_OF_PEER = 8
"""Streams of one peer that are served at a time. An honest one needs one for each blob that it fetches, and lets its
fetches take turns if they are more (:data:`prime_dht.node.blobs.lines.LINES_OF_PEER`); and a few to ask whether this
node holds what it put."""

SERVED_IN_ALL = 1024
"""With some 20 kB each, besides the blocks in hand. A node has fewer connections by default, so whoever is connected is
served."""

UNANSWERED_IN_ALL = 32 * MAX_UNANSWERED
"""Blocks that all peers together may ask for and not be answered yet, ..."""

UNANSWERED_AT_LEAST = 32
"""... beyond so many of each."""

TIMEOUT_S = 30.0
"""Seconds after which a stream is reset on which nothing is asked, or on which 64 KiB are not taken."""

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
        blocks_sent: since the start.
    """

    def __init__(self, store: BlockSource, offenders: Offenders) -> None:
        self._store = store
        self._offenders = offenders
        self._in_hand = BlocksInHand()
        self._turns: WeakValueDictionary[PeerId, trio.CapacityLimiter] = WeakValueDictionary()
        self._unanswered: Counter[PeerId] = Counter()
        self._places = Places(of_peer=SERVED_OF_PEER, in_all=SERVED_IN_ALL)
        self.blocks_sent = 0

    async def serve(self, stream: INetStream) -> None:
        """A stream handler for ``<prefix>/blocks/1.0.0``."""
        channel = BlockChannel(stream, asks=False, progress_timeout_s=TIMEOUT_S)
        peer = channel.peer
        is_tolerated = self._offenders.standing(peer, now_s=trio.current_time()) is Standing.TOLERATED
        scope = self._places.take(peer) if is_tolerated else None
        if scope is None:
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
            self._places.leave(scope)
            await (channel.close() if clean else channel.reset())

    def stop(self) -> None:
        """Reset every stream that is being served."""
        self._places.cancel_all()

    async def _answer(self, channel: BlockChannel) -> None:
        asked = _Asked(channel.peer, self._unanswered)
        hand = Hand(self._in_hand, self._turns.setdefault(channel.peer, trio.CapacityLimiter(IN_HAND_OF_PEER)))
        to_send, loaded = trio.open_memory_channel[tuple[int, bytes | None]](0)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, channel, asked)
                nursery.start_soon(self._load, channel, asked, hand, to_send)
                async for number, data in loaded:
                    with hand.giving():
                        await self._send(channel, number, data)
                    asked.answered([number])
                    channel.await_progress(is_awaited=not asked.unanswered)
        finally:
            hand.let_go_of_all()
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
        self,
        channel: BlockChannel,
        asked: _Asked,
        hand: Hand,
        to_send: trio.MemorySendChannel[tuple[int, bytes | None]],
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
                    continue
                await hand.take()
                if asked.wants_blocks:
                    number, cid = asked.next_block()
                    (data,) = await self._store.read([cid])
                    await to_send.send((number, data))
                else:  # they were cancelled meanwhile
                    hand.put_back()

    async def _send(self, channel: BlockChannel, number: int, data: bytes | None) -> None:
        if data is None:
            await channel.send(Answer(not_have=(number,)))
            return
        await channel.send_block(number, data)
        self.blocks_sent += 1


class _Asked:
    """What a peer has asked for on one stream, and has not got.

    Args:
        of_peers: how much of each peer's is unanswered, over all its streams; kept up to date.
    """

    def __init__(self, peer: PeerId, of_peers: Counter[PeerId]) -> None:
        self._peer = peer
        self._of_peers = of_peers
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
        in_all = self._of_peers.total() + len(cids)
        most = MAX_UNANSWERED if in_all <= UNANSWERED_IN_ALL else UNANSWERED_AT_LEAST
        room = max(0, most - self._of_peers[self._peer])
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

    @property
    def wants_blocks(self) -> bool:
        return bool(self._blocks)

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
        self._of_peers[self._peer] += more
        if not self._of_peers[self._peer]:
            del self._of_peers[self._peer]
