"""Answering Bitswap 1.2.0, so that an IPFS node that is connected to this one can fetch a CID from it.

Source: https://specs.ipfs.tech/bitswap-protocol/. A peer opens a stream and sends what it *wants*: blocks, or whether
they are here. It is answered on one stream that this node opens to it, block by block. Several streams of a peer add to
one list of wants, which they can also change and cancel.

Deliberate differences: this node asks nobody by Bitswap. It answers from what it has now and forgets a want that it
cannot fulfil, where the specification has it wait; peers repeat their wants. It answers in the order in which it was
asked, whatever the priority.

What a peer can do to this end is bounded: wants that are kept, streams that are read, bytes of a message, one block in
hand, seconds for it to take an answer; and peers that are answered at a time. What is wanted beyond is not here.

**Places.** Each peer that has a stream open here takes one of :data:`MAX_PEERS` *places*. It *dawdles* when it has been
its turn for a while: to want something, or to take what is sent. A message that leaves nothing to answer does not end
its turn. When all places are taken, a newcomer displaces the peer that has dawdled longest. That one's streams are
reset, as if its connection were lost, and its wants are forgotten. Nobody is charged, and the peer may come back, as a
newcomer. A peer is never displaced while it is this end's turn, however slow the store is, or while a large block may
be on its way. While none dawdles, newcomers are reset.

So a place is kept by wanting and taking, and whoever opens and drops streams, under however many ids, displaces nobody
who does. To keep others out, strangers have to want something under all ids within :data:`IDLE_S` each time, or a
large block within :data:`ON_ITS_WAY_S`, or to take 64 KiB within :data:`UNTAKEN_S`, or to come anew within that.

IPFS nodes that want nothing lose no more than a stream. Helia opens one for each message and ends it, so its place is
free once that is answered. go-bitswap keeps one open; when it next wants something and finds it reset, it opens another
0.1 s later. What was not answered, it wants again after 30 s.

py-libp2p's own Bitswap is not used. In version 0.8.1 it refuses to add blocks over 512 KiB, answers only on the stream
on which it was asked, where go-bitswap and Helia do not listen, answers the question whether it has a block with the
block, loads all blocks of a wantlist before it sends the first, and stores whatever block anybody sends it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence

import trio
from libp2p.abc import INetStream

from prime_dht.blobs.cid import Cid
from prime_dht.errors import PrimeDHTError, QueryError, RemoteProtocolError, ValidationError
from prime_dht.ids import PeerId, short
from prime_dht.net.block_server import BlockSource
from prime_dht.net.offenders import Offenders, Standing
from prime_dht.net.streams import SMALL_FRAME_BYTES, FrameBudget, FrameStream
from prime_dht.wire.bitswap import MAX_WANTLIST_BYTES, Want, Wantlist, decode_wantlist, encode_block, encode_presences

PROTOCOL = "/ipfs/bitswap/1.2.0"

MAX_WANTS = 1024
"""Wants of one peer that are kept; what it wants beyond is not here."""

STREAMS_OF_PEER = 8
"""Streams of one peer that are read at a time; go-bitswap and Helia keep one."""

MAX_PEERS = 32
"""Peers that are answered at a time, with one block and the message that holds it in hand each."""

IDLE_TIMEOUT_S = 60.0
"""Seconds after which a stream is reset on which nothing came. While the peer is being answered they do not count: it
may have said all that it wants."""

ANSWER_TIMEOUT_S = 60.0
"""Seconds for opening a stream to a peer, and for it to take one block."""

IDLE_S = 3.0
"""A peer dawdles that has wanted nothing for so long. While it fetches, go-bitswap sends a message every 2 s or sooner,
if it has something to say."""

UNTAKEN_S = 10.0
"""So does one that accepts no stream, or does not take 64 KiB, for so long. To displace it wastes the part of a block
that was sent, and many who share this end's uplink are slow by no fault of theirs, so this is longer."""

ON_ITS_WAY_S = 20.0
"""For so long after a block of more than 64 KiB was sent a peer is not idle, for the block may be on its way: the
buffers of both ends hold a megabyte or more, and that takes as long at 50 kB/s."""

logger = logging.getLogger(__name__)


class _Peer:
    """A peer that has a place.

    Attributes:
        scopes: one for each of its streams.
        wants: what it wants and was not answered yet, by CID, in the order in which it was asked.
        turn_since_s: since when it has been its turn; infinite while it is this end's.
        answered_at_s: when it was last answered to the end.
        sent_much_at_s: when it was last sent a large message, which may be on its way still.
    """

    def __init__(self) -> None:
        self.scopes: set[trio.CancelScope] = set()
        self.wants: dict[bytes, Want] = {}
        self.is_being_answered = False
        self.answered_at_s = -math.inf
        self.sent_much_at_s = -math.inf
        self.begin_turn()

    def begin_turn(self) -> None:
        """From now on it is the peer's turn, to want something or to take what is offered."""
        self.turn_since_s = trio.current_time()

    def idles_s(self, now_s: float) -> float:
        """How long ago it was last answered; 0 while it is."""
        return 0.0 if self.is_being_answered else now_s - self.answered_at_s

    def dawdles_s(self, now_s: float) -> float:
        """How long it has dawdled; negative if it does not."""
        waited_s = now_s - self.turn_since_s
        if self.is_being_answered:
            return waited_s - UNTAKEN_S
        return min(waited_s - IDLE_S, now_s - self.sent_much_at_s - ON_ITS_WAY_S)

    def reset(self) -> None:
        """Reset all its streams, a little later."""
        for scope in self.scopes:
            scope.cancel()


class BitswapServer:
    """Serves the blocks of a store.

    Args:
        open_stream: negotiates a stream of :data:`PROTOCOL` with a peer; raises :class:`QueryError`.
        offenders: who is not answered.
    """

    def __init__(
        self, store: BlockSource, open_stream: Callable[[PeerId], Awaitable[INetStream]], offenders: Offenders
    ) -> None:
        self._store = store
        self._open_stream = open_stream
        self._offenders = offenders
        self._peers: dict[PeerId, _Peer] = {}

    async def serve(self, stream: INetStream) -> None:
        """A stream handler for :data:`PROTOCOL`."""
        peer = PeerId(stream.muxed_conn.peer_id.to_bytes())
        frames = FrameStream(stream, budget=FrameBudget(MAX_WANTLIST_BYTES), max_frame_bytes=MAX_WANTLIST_BYTES)
        scope = trio.CancelScope()
        state = self._take_place(peer, scope)
        if state is None:
            await frames.reset()
            return
        clean = False
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    await self._read(frames, peer, state, nursery)
                clean = True
        except* RemoteProtocolError as group:
            self._offenders.charge(peer, now_s=trio.current_time())
            logger.debug("peer %s broke Bitswap: %s", short(peer), group.exceptions[0])
        except* (QueryError, trio.TooSlowError) as group:
            logger.debug("Bitswap with peer %s broke off: %s", short(peer), group.exceptions[0])
        except* PrimeDHTError as group:
            logger.warning("blocks for peer %s could not be sent: %s", short(peer), group.exceptions[0])
        finally:
            state.scopes.remove(scope)
            if not state.scopes and self._peers.get(peer) is state:  # if it was displaced, its place is another's
                del self._peers[peer]
            await (frames.close() if clean else frames.reset())

    def stop(self) -> None:
        """Reset every stream that is being served."""
        for state in self._peers.values():
            state.reset()

    def _take_place(self, peer: PeerId, scope: trio.CancelScope) -> _Peer | None:
        """Take a place for a peer that has none, if need be that of another; ``None`` if the stream is not served."""
        now_s = trio.current_time()
        if self._offenders.standing(peer, now_s=now_s) is not Standing.TOLERATED:
            return None
        state = self._peers.get(peer)
        if state is None:
            if len(self._peers) == MAX_PEERS and not self._displace_one(now_s):
                return None
            state = self._peers[peer] = _Peer()
        elif len(state.scopes) == STREAMS_OF_PEER:
            return None
        state.scopes.add(scope)
        return state

    def _displace_one(self, now_s: float) -> bool:
        """Free the place of the peer that has dawdled longest; ``False`` if none does."""
        peer, state = max(self._peers.items(), key=lambda item: item[1].dawdles_s(now_s))
        if state.dawdles_s(now_s) < 0:
            return False
        logger.debug("peer %s, which dawdles, gives way to a newcomer", short(peer))
        del self._peers[peer]
        state.reset()
        return True

    async def _read(self, frames: FrameStream, peer: PeerId, state: _Peer, nursery: trio.Nursery) -> None:
        """Note what the peer wants until it ends the stream, and see that it is answered."""
        while (body := await self._next_wantlist(frames, state)) is not None:
            wantlist = decode_wantlist(body)
            frames.done_with(body)
            _update(state.wants, wantlist)
            if state.wants and not state.is_being_answered:
                state.is_being_answered = True
                state.begin_turn()  # to accept a stream
                nursery.start_soon(self._answer, peer, state)

    async def _next_wantlist(self, frames: FrameStream, state: _Peer) -> bytes | None:
        """The next frame, or ``None`` when the peer ended the stream.

        Raises:
            trio.TooSlowError: nothing came for :data:`IDLE_TIMEOUT_S`, and nothing was answered, or no whole frame did.
        """
        timeout_s = IDLE_TIMEOUT_S
        while True:
            try:
                return await frames.read_frame(idle_timeout_s=timeout_s)
            except trio.TooSlowError:
                timeout_s = IDLE_TIMEOUT_S - state.idles_s(trio.current_time())
                if timeout_s <= 0 or not frames.is_quiet():
                    raise

    async def _answer(self, peer: PeerId, state: _Peer) -> None:
        """Answer all that the peer wants, on a stream to it."""
        clean = False
        frames: FrameStream | None = None
        try:
            with trio.fail_after(ANSWER_TIMEOUT_S):
                frames = FrameStream(await self._open_stream(peer), budget=FrameBudget(0))
            while state.wants:
                state.turn_since_s = math.inf
                body = await self._next_answer(state)
                if body is not None:
                    with trio.fail_after(ANSWER_TIMEOUT_S):
                        await frames.write_frame(body, on_offer=state.begin_turn)
                    if len(body) > SMALL_FRAME_BYTES:
                        state.sent_much_at_s = trio.current_time()
            clean = True
        finally:
            state.is_being_answered = False
            state.answered_at_s = trio.current_time()
            state.begin_turn()
            if frames is not None:
                await (frames.close() if clean else frames.reset())

    async def _next_answer(self, state: _Peer) -> bytes | None:
        """Take all wants of presence, or else the first want of a block; returns what is to be sent, if anything."""
        presences = [want for want in state.wants.values() if want.presence_only]
        taken = presences or [next(iter(state.wants.values()))]
        for want in taken:
            del state.wants[want.cid]
        return await (self._presences(presences) if presences else self._block(taken[0]))

    async def _presences(self, wants: Sequence[Want]) -> bytes | None:
        cids = {want.cid: _readable(want.cid) for want in wants}
        here = await self._store.present(cid for cid in cids.values() if cid is not None)
        told = {want.cid: cids[want.cid] in here for want in wants if want.tell_absence or cids[want.cid] in here}
        return encode_presences(told) if told else None

    async def _block(self, want: Want) -> bytes | None:
        cid = _readable(want.cid)
        if cid is not None:
            (data,) = await self._store.read([cid])
            if data is not None:
                return encode_block(cid, data)
        return encode_presences({want.cid: False}) if want.tell_absence else None


def _update(wants: dict[bytes, Want], wantlist: Wantlist) -> None:
    if wantlist.is_full:
        wants.clear()
    for want in wantlist.wants:
        if want.is_cancelled:
            wants.pop(want.cid, None)
        elif want.cid in wants or len(wants) < MAX_WANTS:
            wants[want.cid] = want


def _readable(raw: bytes) -> Cid | None:
    """The CID, if it is one that a block of ours may have."""
    try:
        return Cid.from_bytes(raw)
    except ValidationError:
        return None
