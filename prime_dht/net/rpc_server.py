"""Answering requests: the classical Kademlia protocol, and the pipelined one.

On ``<prefix>/kad/1.0.0`` a stream carries any number of requests, answered in order; ``ADD_PROVIDER`` gets no answer
(go-libp2p reuses the stream and would read one as the answer to its next request). On ``<prefix>/rpc/1.0.0``
(:mod:`prime_dht.wire.calls`) requests are answered as they are ready, and at once where that needs no waiting. The end
of a peer's direction ends neither: what was asked before is answered (rust-libp2p ends its direction behind each
request).

What the handler raises decides: :class:`RemoteProtocolError` is the peer's offence, whose stream is reset and which is
counted, while its connection and everybody else's go on. The streams of a peer that offends again and again are for a
time reset unread, and in the end its connection is closed (:mod:`prime_dht.net.offenders`). With any other error the
request was understood and is not carried out: that resets a classical stream, as with go-libp2p; on a pipelined one the
request is refused by itself.

What a peer can do to this end is bounded: streams per peer; requests per peer that are being answered, or whose answers
it has not read; bytes of its large requests, from their announcement until they are answered; seconds for a frame, for
an answer and for idling. What is over a bound waits, except streams, which are reset. The bytes are bounded over all
peers as well, and so are those of the answers that they do not read (:mod:`prime_dht.net.unread`).
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio
from libp2p.abc import INetStream

from prime_dht.errors import PrimeDHTError, RemoteProtocolError, ValidationError
from prime_dht.ids import PeerId, short
from prime_dht.net.network import Handler
from prime_dht.net.offenders import Offenders, Standing
from prime_dht.net.streams import FrameBudget, FrameStream, StreamLostError
from prime_dht.net.unread import Unread
from prime_dht.wire.calls import MAX_CALLS_IN_FLIGHT, Refusal, decode_call, encode_answer
from prime_dht.wire.kad import AddProvider, Reply, Request, decode_request, encode_reply

logger = logging.getLogger(__name__)

TELL_AGAIN_S = 60.0
"""After a failure that is this node's own, the next warning of the same failure."""

FAILURES_TOLD = 16
"""Of so many it is known when they were warned of: a failing disk has more than one way to say it."""

CALLS_AT_ONCE = 8
"""Calls of one peer that are answered in a row by the task that reads them, where nothing has to be waited for: that
saves a task for each. The next one has its own, so that whoever sends many leaves others a turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What one peer may make this node hold and do."""

    streams_per_peer: int = 64
    """Request streams of one peer at a time; more are reset."""

    calls_per_peer: int = MAX_CALLS_IN_FLIGHT
    """Requests of one peer, over all its streams, that are being answered at a time; more wait unread."""

    frame_bytes_per_peer: int = 16 << 20
    """Bytes of one peer's large requests that are under way or being answered."""

    frame_bytes: int = 128 << 20
    """The same over all peers."""

    idle_timeout_s: float = 120.0
    """Seconds after which a stream without requests is reset; go-libp2p idles for 60 s."""

    frame_timeout_s: float = 10.0
    """Seconds within which a request must be whole once it has begun."""

    answer_timeout_s: float = 30.0
    """Seconds for answering one request, and again for a peer to take the answer."""

    unread_bytes: int = 96 << 20
    """Bytes of answers, over all peers, that wait for their peers to read; beyond, who stands still with most loses
    streams."""


class _PeerState:
    """What is held on behalf of one peer while it has streams open."""

    __slots__ = ("at_once", "budget", "places", "streams")

    def __init__(self, limits: ServerLimits, budget: FrameBudget) -> None:
        self.streams = 0
        self.at_once = 0  # calls answered since one had a task of its own, and so since others had a turn
        self.places = trio.Semaphore(limits.calls_per_peer)
        self.budget = FrameBudget(limits.frame_bytes_per_peer, within=budget)


class RpcServer:
    """Serves request streams with one handler.

    Attributes:
        offenders: who broke the protocol, and whose streams are therefore not served.
        requests: requests that were answered or refused, by kind.
    """

    def __init__(
        self, handler: Handler, limits: ServerLimits | None = None, *, offenders: Offenders | None = None
    ) -> None:
        self._handler = handler
        self._limits = limits or ServerLimits()
        self.offenders = offenders or Offenders()
        self._peers: dict[PeerId, _PeerState] = {}
        self._budget = FrameBudget(self._limits.frame_bytes)
        self._serving: dict[FrameStream, trio.CancelScope] = {}
        self._told_at_s: dict[str, float] = {}  # when it was warned of a failure last
        self._unread = Unread(self._give_up, total_bytes=self._limits.unread_bytes)
        self._is_stopped = False
        self.requests: Counter[str] = Counter()

    async def serve_classical(self, stream: INetStream) -> None:
        """A stream handler for ``<prefix>/kad/1.0.0``."""
        await self._serve(stream, self._answer_in_order)

    async def serve_pipelined(self, stream: INetStream) -> None:
        """A stream handler for ``<prefix>/rpc/1.0.0``."""
        await self._serve(stream, self._answer_as_ready)

    def stop(self) -> None:
        """Reset every stream that is being served."""
        self._is_stopped = True  # what is being read in this moment is not answered either
        for scope in self._serving.values():
            scope.cancel()

    async def _serve(
        self, stream: INetStream, answer_all: Callable[[FrameStream, PeerId, _PeerState], Awaitable[bool]]
    ) -> None:
        peer = PeerId(stream.muxed_conn.peer_id.to_bytes())
        if self._standing(peer) is not Standing.TOLERATED:
            await self._turn_away(FrameStream(stream, budget=FrameBudget(0)), peer)
            return
        state = self._peers.get(peer)
        if state is None:
            state = self._peers[peer] = _PeerState(self._limits, self._budget)
        frames = FrameStream(stream, budget=state.budget, frame_timeout_s=self._limits.frame_timeout_s)
        if state.streams >= self._limits.streams_per_peer:
            self._charge(peer, "too many streams")
            await frames.reset()
            return
        state.streams += 1
        clean = False
        try:
            clean = await answer_all(frames, peer, state)
        except* (StreamLostError, trio.TooSlowError):
            # A peer may reset a stream it no longer needs (js-libp2p does), vanish, or stall: none is an offence.
            pass
        except* RemoteProtocolError as group:
            self._charge(peer, str(group.exceptions[0]))
        except* PrimeDHTError as group:
            self._note(peer, group.exceptions[0])
        finally:
            self._serving.pop(frames, None)
            state.streams -= 1
            if not state.streams:
                self._peers.pop(peer, None)
            await (frames.close() if clean else self._turn_away(frames, peer))

    async def _answer_in_order(self, frames: FrameStream, peer: PeerId, state: _PeerState) -> bool:
        """Returns whether the peer ended the stream, and not this end."""
        with trio.CancelScope() as scope:
            self._serving[frames] = scope
            while (body := await frames.read_frame(idle_timeout_s=self._limits.idle_timeout_s)) is not None:
                async with state.places:
                    request = decode_request(body)
                    message = encode_reply(request, await self._answer(peer, request))
                    is_answered = not isinstance(request, AddProvider)
                    frames.done_with(body)
                    del body, request  # not kept for as long as the peer may take to read
                    if is_answered:
                        await self._send(frames, peer, message)
                    del message  # nor this for as long as it may idle
        return not scope.cancelled_caught

    async def _answer_as_ready(self, frames: FrameStream, peer: PeerId, state: _PeerState) -> bool:
        """Returns whether the peer ended the stream, and not this end."""
        async with trio.open_nursery() as nursery:
            self._serving[frames] = nursery.cancel_scope

            def begin(body: bytes) -> bool:
                try:
                    state.places.acquire_nowait()
                except trio.WouldBlock:
                    return False
                self._begin_call(nursery, frames, peer, state, body)
                return True

            idle_timeout_s = self._limits.idle_timeout_s
            while (body := await frames.read_frame(idle_timeout_s=idle_timeout_s, take=begin)) is not None:
                await state.places.acquire()
                self._begin_call(nursery, frames, peer, state, body)
                del body  # not kept until the next one comes
        return not nursery.cancel_scope.cancelled_caught

    def _begin_call(
        self, nursery: trio.Nursery, frames: FrameStream, peer: PeerId, state: _PeerState, body: bytes
    ) -> None:
        """Answer a call, which has a place: at once, if it needs no waiting and others are not kept from their turn."""
        is_over = True
        try:
            number, message = decode_call(body)
            request = decode_request(message)
            answer: bytes | Refusal | Awaitable[Reply] | None = None
            if state.at_once < CALLS_AT_ONCE and not self._is_stopped:
                state.at_once += 1
                answer = self._begin(peer, request)
                if isinstance(answer, bytes | Refusal) and frames.write_now(encode_answer(number, answer)):
                    return
            nursery.start_soon(self._answer_call, frames, peer, state, body, number, request, answer)
            is_over = False
        finally:
            if is_over:
                frames.done_with(body)
                state.places.release()

    async def _answer_call(
        self,
        frames: FrameStream,
        peer: PeerId,
        state: _PeerState,
        body: bytes,
        number: int,
        request: Request,
        answer: bytes | Refusal | Awaitable[Reply] | None,
    ) -> None:
        state.at_once = 0
        try:
            try:
                if answer is None:
                    await trio.lowlevel.checkpoint_if_cancelled()  # the stream may have been given up since it came
                    answer = self._begin(peer, request)
                if not isinstance(answer, bytes | Refusal):
                    answer = await self._finish(peer, request, answer)
                message = encode_answer(number, answer)
            finally:
                frames.done_with(body)
            del body, request, answer  # not kept for as long as the peer may take to read
            await self._send(frames, peer, message)
        finally:
            state.places.release()

    def _begin(self, peer: PeerId, request: Request) -> bytes | Refusal | Awaitable[Reply]:
        """What a call is answered with, or what has to be awaited for that."""
        self.requests[type(request).__name__] += 1
        try:
            answer = self._handler(peer, request)
            return encode_reply(request, answer) if isinstance(answer, Reply) else answer
        except RemoteProtocolError:
            raise
        except PrimeDHTError as error:
            return self._refusal(peer, error)

    async def _finish(self, peer: PeerId, request: Request, answer: Awaitable[Reply]) -> bytes | Refusal:
        try:
            return encode_reply(request, await self._in_time(answer))
        except RemoteProtocolError:
            raise
        except PrimeDHTError as error:
            return self._refusal(peer, error)
        except trio.TooSlowError:
            return Refusal("not done in time")

    def _refusal(self, peer: PeerId, error: PrimeDHTError) -> Refusal:
        if isinstance(error, ValidationError):
            return Refusal(str(error))
        self._note(peer, error)
        return Refusal("this node failed")  # how is nobody else's business

    async def _answer(self, peer: PeerId, request: Request) -> Reply:
        self.requests[type(request).__name__] += 1
        answer = self._handler(peer, request)
        return answer if isinstance(answer, Reply) else await self._in_time(answer)

    async def _in_time(self, answer: Awaitable[Reply]) -> Reply:
        # Not trio.fail_after: its two context managers cost as much as the scope within.
        with trio.CancelScope(deadline=trio.current_time() + self._limits.answer_timeout_s):
            return await answer
        raise trio.TooSlowError

    async def _send(self, frames: FrameStream, peer: PeerId, body: bytes) -> None:
        if frames.write_now(body):
            return
        burden = self._unread.add(frames, len(body), peer=peer, now_s=trio.current_time())

        def moved() -> None:
            burden.moved_s = trio.current_time()

        try:
            with trio.fail_after(self._limits.answer_timeout_s):
                await frames.write_frame(body, on_offer=moved)
        finally:
            self._unread.remove(burden, len(body))

    def _give_up(self, frames: FrameStream) -> None:
        logger.debug("a stream was given up: its peer leaves too much unread")
        self._serving[frames].cancel()

    def _note(self, peer: PeerId, error: Exception) -> None:
        """Log why a request was not carried out. A refusal peers can cause at will; a failure is this node's own.

        While it lasts, as a full disk does, each request fails: of the same failure one is warned of now and then.
        """
        now_s, why = trio.current_time(), str(error)
        told_at_s = self._told_at_s.get(why, -math.inf)
        is_told = isinstance(error, ValidationError) or now_s < told_at_s + TELL_AGAIN_S
        if not is_told:
            if len(self._told_at_s) == FAILURES_TOLD:
                self._told_at_s.clear()
            self._told_at_s[why] = now_s
        level = logging.DEBUG if is_told else logging.WARNING
        logger.log(level, "a request of %s was not carried out: %s", short(peer), error)

    def _charge(self, peer: PeerId, reason: str) -> None:
        standing = self.offenders.charge(peer, now_s=trio.current_time())
        # A peer can cause these at will, so they are not worth more than a debug line each.
        logger.debug("peer %s, which is %s, broke the protocol: %s", short(peer), standing.value, reason)

    def _standing(self, peer: PeerId) -> Standing:
        return self.offenders.standing(peer, now_s=trio.current_time())

    async def _turn_away(self, frames: FrameStream, peer: PeerId) -> None:
        await (frames.disconnect() if self._standing(peer) is Standing.SHUNNED else frames.reset())
