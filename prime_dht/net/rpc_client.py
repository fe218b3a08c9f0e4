"""Asking peers: one call per request, over streams that are kept.

Opening a stream per request costs five to eight times as much as reusing one. Towards a peer that speaks
``<prefix>/rpc/1.0.0`` all requests share one pipelined stream (:mod:`prime_dht.net.pipeline`); multistream negotiation
settles whether it does. Towards any other peer there is a small pool of classical streams with one request in flight on
each.

- A kept stream may have been closed by the other side while it idled. A request whose stream is lost before its answer
  came is repeated once, on a fresh one; requests are idempotent, so repeating is safe. Other streams that idled as long
  are then not trusted either, and the protocol is settled anew: the peer may have been restarted.
- A kept stream takes 9 kB at each end, and keeps its connection from counting as idle. A node that joins asks a hundred
  peers, most of them once. So of the pipelined streams only some are kept though they are not used (``KEPT_UNUSED``),
  and of the classical ones none: nobody reads on those meanwhile, so it would not be seen that a peer has ended them.
- On a classical stream nothing but its order ties an answer to its request. A stream is therefore used again only if
  nothing came behind the answer, and an answer of another type or key is a breach of protocol.
- ``ADD_PROVIDER`` has no answer on a classical stream, though py-libp2p sends one. Its stream is ended behind it, and
  the end that the peer then makes says what came of it: it closes if it took the record, and resets if it refused.
- Large replies, over all peers, take turns (:class:`~prime_dht.net.streams.FrameBudget`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, assert_never

import trio
from libp2p.abc import INetStream

from prime_dht.errors import LocalProtocolError, QueryError, RefusedError, RemoteProtocolError, UnsentError
from prime_dht.ids import PeerId, peer_text, short
from prime_dht.net.network import OnOutcome
from prime_dht.net.pipeline import Answer, Pipeline
from prime_dht.net.streams import FrameBudget, FrameStream, StreamLostError
from prime_dht.wire.calls import Refusal
from prime_dht.wire.frames import MAX_FRAME_BYTES
from prime_dht.wire.kad import AddProvider, PutValue, Reply, Request, decode_reply, encode_request

if TYPE_CHECKING:
    from trio_typing import TaskStatus

STREAMS_PER_PEER = 4
"""Classical streams kept to one peer; js-libp2p serves at most 32 on a connection."""

MAX_PEERS = 2000
"""Peers to which streams are kept; beyond, those of the peer unused for longest are closed."""

KEPT_UNUSED = 16
"""Pipelined streams that are kept though nothing is asked on them, until their peers end them: those used last."""

UNUSED_S = 15.0
"""Seconds without a call after which others are ended, and classical ones with them; it is looked as often, so they may
stay for twice as long."""

REPLY_BYTES_IN_FLIGHT = 64 << 20
"""Bytes that large replies under way may take together, over all peers."""

CLOSING = "this node is closing"
"""Why what is asked just now is not answered, or is not sent at all."""

_MAX_MESSAGE_BYTES = MAX_FRAME_BYTES - 9
"""A call's number goes before it."""

OpenStream = Callable[[PeerId, Sequence[str]], Awaitable[INetStream]]
"""Opens a stream to a peer, dialling it if need be, on the first of several protocols that it speaks.

Raises :class:`QueryError` if there is none or the peer cannot be reached.
"""


class _StaleStreamError(QueryError):
    """A stream was lost under a request, which is worth one more try."""


class _Peer:
    """The streams that are kept to one peer."""

    def __init__(self) -> None:
        self.opening = trio.Lock()
        self.pipeline: Pipeline | None = None
        self.is_classical = False
        self.idle: list[FrameStream] = []
        self.idle_since_s = -math.inf  # when the last of those was used
        self.is_forgotten = False  # so that requests still under way keep no streams

    @cached_property
    def places(self) -> trio.Semaphore:
        """For classical requests."""
        return trio.Semaphore(STREAMS_PER_PEER)

    def is_unused(self, *, since_s: float) -> bool:
        """Whether no classical request is under way, and none has been since then."""
        return self.places.value == STREAMS_PER_PEER and self.idle_since_s < since_s


class RpcClient:
    """Sends requests to peers. Works while :meth:`run` does.

    Args:
        open_stream: opens streams.
        kad_protocol: the classical protocol's id.
        rpc_protocol: the pipelined one's; ``None`` never uses it.

    Attributes:
        calls: requests sent so far.
    """

    def __init__(self, open_stream: OpenStream, *, kad_protocol: str, rpc_protocol: str | None) -> None:
        self._open_stream = open_stream
        self._kad_protocol = kad_protocol
        self._rpc_protocol = rpc_protocol
        self._peers: OrderedDict[PeerId, _Peer] = OrderedDict()
        self._budget = FrameBudget(REPLY_BYTES_IN_FLIGHT)
        self._nursery: trio.Nursery | None = None
        self._has_ended = False
        self._encoded: tuple[Request, bytes] | None = None
        self.calls = 0

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read answers until cancelled, then let go of all streams."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                while True:
                    await trio.sleep(UNUSED_S)
                    self._end_unused()
            finally:
                while self._peers:
                    self._forget(self._peers.popitem()[1])
                self._nursery = None
                self._has_ended = True

    async def call(self, peer: PeerId, request: Request, *, timeout_s: float, spent_s: float = 0.0) -> Reply:
        """Ask one peer.

        Args:
            spent_s: how much of ``timeout_s`` has passed already, for the dial.

        Towards a classical peer ``AddProvider`` has no answer: an empty reply means that the peer took it.

        Raises:
            QueryError: the peer cannot be reached, did not answer within ``timeout_s``, or refused the request (then
                :class:`~prime_dht.errors.RefusedError`, if it was to store something); or :meth:`run` has ended.
            RemoteProtocolError: it answered with something else than a reply.
            LocalProtocolError: :meth:`run` has not begun.
        """
        if self._nursery is None:
            await trio.lowlevel.checkpoint_if_cancelled()  # both the caller and the run may be, by who ends the node
            if self._has_ended:  # it is no mistake of who uses the node in another task than the one that ends it
                raise UnsentError(CLOSING)
            raise LocalProtocolError("RpcClient.call before its run")
        message = self._message_of(request)
        if len(message) > _MAX_MESSAGE_BYTES:
            raise UnsentError(f"a request of {len(message)} bytes does not fit into a frame")
        self.calls += 1
        return await self._call(peer, request, message, timeout_s, trio.current_time() - spent_s)

    def post(self, peer: PeerId, request: Request, *, timeout_s: float, then: OnOutcome) -> bool:
        """Ask one peer without waiting; ``False``, with nothing sent, if that is not possible just now.

        It takes a pipelined stream that is open already, and, unlike :meth:`call`, no task that waits.

        Args:
            then: is given the reply, or what :meth:`call` would raise, maybe before this returns. It must not block.
        """
        nursery, state = self._nursery, self._peers.get(peer)
        if nursery is None or state is None or state.pipeline is None:
            return False
        pipeline, started_s = state.pipeline, trio.current_time()
        message = self._message_of(request)

        def answered(answer: Answer) -> None:
            match answer:
                case bytes():
                    then(_decoded(peer, request, answer))
                case Refusal(reason):
                    then(_refused(peer, request, reason))
                case RemoteProtocolError():
                    then(RemoteProtocolError(str(answer), peer=peer_text(peer)))
                case trio.TooSlowError():
                    if pipeline.heard_s < started_s:
                        pipeline.abandon("nothing was answered on it any more")
                    then(QueryError(f"peer {short(peer)} did not answer within {timeout_s:g} s"))
                case StreamLostError():  # it may have been lost while it idled
                    nursery.start_soon(self._call_then, peer, request, message, started_s + timeout_s, then)
                case _:
                    assert_never(answer)

        if len(message) > _MAX_MESSAGE_BYTES:
            return False
        if not pipeline.post(message, deadline_s=started_s + timeout_s, then=answered):
            return False
        self._peers.move_to_end(peer)
        self.calls += 1
        return True

    def _message_of(self, request: Request) -> bytes:
        """A request's bytes. A lookup sends the same one to several peers in a row, so it is encoded once for them."""
        if self._encoded is None or self._encoded[0] is not request:
            self._encoded = request, encode_request(request)
        return self._encoded[1]

    async def _call_then(
        self, peer: PeerId, request: Request, message: bytes, deadline_s: float, then: OnOutcome
    ) -> None:
        try:
            now_s = trio.current_time()
            reply = await self._call(peer, request, message, deadline_s - now_s, now_s, is_repeated=True)
        except (QueryError, RemoteProtocolError) as error:
            then(error)
        except trio.Cancelled:
            then(UnsentError(CLOSING))
            raise
        else:
            then(reply)

    async def _call(
        self,
        peer: PeerId,
        request: Request,
        message: bytes,
        timeout_s: float,
        started_s: float,
        *,
        is_repeated: bool = False,
    ) -> Reply:
        try:
            try:
                return await self._attempt(peer, request, message, started_s + timeout_s)
            except _StaleStreamError:
                if is_repeated:
                    raise
                return await self._attempt(peer, request, message, started_s + timeout_s)
        except trio.TooSlowError as error:
            state = self._peers.get(peer)
            if state is not None and state.pipeline is not None and state.pipeline.heard_s < started_s:
                state.pipeline.abandon("nothing was answered on it any more")
            raise QueryError(f"peer {short(peer)} did not answer within {timeout_s:g} s") from error
        except StreamLostError as error:
            raise QueryError(f"peer {short(peer)}: {error}") from error
        except RemoteProtocolError as error:
            raise RemoteProtocolError(str(error), peer=peer_text(peer)) from error

    async def _attempt(self, peer: PeerId, request: Request, message: bytes, deadline_s: float) -> Reply:
        state = self._state(peer)
        if _is_undecided(state):
            with trio.fail_at(deadline_s):
                async with state.opening:  # one stream is opened, however many calls find none
                    if _is_undecided(state):
                        await self._open_first(peer, state)
        if state.pipeline is not None:
            return await self._pipelined(peer, state.pipeline, request, message, deadline_s)
        with trio.fail_at(deadline_s):
            return await self._classically(peer, state, request, message)

    async def _open_first(self, peer: PeerId, state: _Peer) -> None:
        """Open the first stream to a peer; its protocol says how to go on."""
        offered = [self._kad_protocol] if self._rpc_protocol is None else [self._rpc_protocol, self._kad_protocol]
        frames, protocol = await self._open(peer, offered)
        if protocol != self._rpc_protocol:
            state.pipeline, state.is_classical = None, True
            await self._keep(state, frames)
        elif self._nursery is not None and not state.is_forgotten:
            state.pipeline = Pipeline(frames, self._nursery)
            self._nursery.start_soon(_run, state, state.pipeline)
        else:
            await frames.reset()
            raise _StaleStreamError(f"peer {short(peer)} was forgotten")

    async def _pipelined(
        self, peer: PeerId, pipeline: Pipeline, request: Request, message: bytes, deadline_s: float
    ) -> Reply:
        try:
            answer = await pipeline.call(message, deadline_s=deadline_s)
        except StreamLostError as error:
            raise _StaleStreamError(f"peer {short(peer)}: {error}") from error
        if isinstance(answer, Refusal):
            raise _refused(peer, request, answer.reason)
        return decode_reply(request, answer)

    async def _classically(self, peer: PeerId, state: _Peer, request: Request, message: bytes) -> Reply:
        async with state.places:
            if not state.idle:
                frames, _ = await self._open(peer, [self._kad_protocol])
                return await self._exchange(state, frames, request, message)
            try:
                return await self._exchange(state, state.idle.pop(), request, message)
            except StreamLostError as error:
                self._drop_streams(state)
                raise _StaleStreamError(f"peer {short(peer)}: {error}") from error

    async def _exchange(self, state: _Peer, frames: FrameStream, request: Request, message: bytes) -> Reply:
        """One request and its answer on a classical stream, which is kept only if it is fit for another."""
        is_reusable = False
        try:
            await frames.write_frame(message)
            if isinstance(request, AddProvider):
                await frames.end_writing()
                await frames.read_frame(idle_timeout_s=float("inf"))
                return Reply()
            body = await frames.read_frame(idle_timeout_s=float("inf"))
            if body is None:
                raise StreamLostError("the stream was ended without an answer")
            reply = decode_reply(request, body)
            frames.done_with(body)
            is_reusable = frames.is_quiet()
            return reply
        finally:
            if is_reusable:
                await self._keep(state, frames)
            else:
                await frames.reset()

    async def _open(self, peer: PeerId, protocols: Sequence[str]) -> tuple[FrameStream, str]:
        stream = await self._open_stream(peer, protocols)
        return FrameStream(stream, budget=self._budget), str(stream.get_protocol())

    def _state(self, peer: PeerId) -> _Peer:
        state = self._peers.get(peer)
        if state is not None:
            self._peers.move_to_end(peer)
            return state
        state = self._peers[peer] = _Peer()
        if len(self._peers) > MAX_PEERS:
            _, unused = self._peers.popitem(last=False)
            self._forget(unused)
        return state

    async def _keep(self, state: _Peer, frames: FrameStream) -> None:
        if self._nursery is None or state.is_forgotten or len(state.idle) == STREAMS_PER_PEER:
            await frames.reset()
        else:
            state.idle.append(frames)
            state.idle_since_s = trio.current_time()

    def _end_unused(self) -> None:
        """End the streams that nobody uses, but for a few, and keep nothing of the peers to whom there are none."""
        since_s = trio.current_time() - UNUSED_S
        pipelines = 0
        for peer, state in list(reversed(self._peers.items())):  # used last first
            if state.pipeline is not None:
                pipelines += 1
                if pipelines > KEPT_UNUSED and state.pipeline.is_unused(since_s=since_s):
                    state.pipeline.abandon("nobody uses it")
            elif not state.opening.locked() and (not state.is_classical or state.is_unused(since_s=since_s)):
                self._forget(self._peers.pop(peer))

    def _forget(self, state: _Peer) -> None:
        state.is_forgotten = True
        self._drop_streams(state)

    def _drop_streams(self, state: _Peer) -> None:
        """Let go of the streams that are kept to a peer; its next request settles anew how it is asked."""
        state.is_classical = False
        if state.pipeline is not None:
            state.pipeline.abandon("the stream is not kept any longer")
        while state.idle:
            frames = state.idle.pop()
            if self._nursery is not None:
                self._nursery.start_soon(frames.reset)


async def _run(state: _Peer, pipeline: Pipeline) -> None:
    """Run a peer's pipeline, and let go of it when it is lost: it holds its stream, and that its connection."""
    await pipeline.run()
    if state.pipeline is pipeline:
        state.pipeline = None


def _decoded(peer: PeerId, request: Request, answer: bytes) -> Reply | RemoteProtocolError:
    try:
        return decode_reply(request, answer)
    except RemoteProtocolError as error:
        return RemoteProtocolError(str(error), peer=peer_text(peer))


def _refused(peer: PeerId, request: Request, reason: str) -> QueryError:
    # Who cannot store may answer all else. Who refuses a question is no use to whoever asks.
    error = RefusedError if isinstance(request, PutValue) else QueryError
    return error(f"peer {short(peer)} refused the request: {reason}")


def _is_undecided(state: _Peer) -> bool:
    return not state.is_classical and (state.pipeline is None or state.pipeline.is_lost)
