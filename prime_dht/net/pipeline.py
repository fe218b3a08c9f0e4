"""The calling end of a ``<prefix>/rpc/1.0.0`` stream: calls in flight, answered in any order.

A call takes one of :data:`~prime_dht.wire.calls.MAX_CALLS_IN_FLIGHT` *places*, and its answer gives the place back, not
its caller: the caller may be cancelled while the peer still works for it. The request of a caller that was cancelled is
sent all the same, so no cancellation can cut a frame that others need whole.

A stream is *lost* when it ends, breaks, carries what no answer can be, takes nothing for :data:`WRITE_TIMEOUT_S`, or is
abandoned. Every call that waits on it then fails at once.

A cancel scope for the deadline of each call would cost a tenth of the call. So all calls of a stream share one timer: a
task that sleeps until the earliest deadline that there was when it began, and then ends the calls whose time is up.
"""

from __future__ import annotations

import itertools
import math

import trio

from prime_dht.errors import RemoteProtocolError
from prime_dht.net.streams import FrameStream, StreamLostError
from prime_dht.wire.calls import MAX_CALLS_IN_FLIGHT, Refusal, decode_answer, encode_call

WRITE_TIMEOUT_S = 30.0
"""Seconds for a peer to take one request."""


class Pipeline:
    """Calls over one stream, while :meth:`run` runs.

    Attributes:
        heard_s: when the last answer came, on trio's clock.
    """

    def __init__(self, frames: FrameStream) -> None:
        self._frames = frames
        self._waiting: dict[int, _Waiter] = {}
        self._numbers = itertools.count()
        self._places = trio.Semaphore(MAX_CALLS_IN_FLIGHT)
        # A request waits here only while it has a place, so there is always room.
        self._to_send, self._unsent = trio.open_memory_channel[bytes](MAX_CALLS_IN_FLIGHT)
        self._scope = trio.CancelScope()
        self._timer = trio.CancelScope()
        self._loss: StreamLostError | RemoteProtocolError | None = None
        self.heard_s = -math.inf

    @property
    def is_lost(self) -> bool:
        return self._loss is not None

    async def call(self, message: bytes, *, deadline_s: float) -> bytes | Refusal:
        """Send one message and wait for its answer, until ``deadline_s`` on trio's clock.

        Raises:
            StreamLostError: the stream was lost before the answer came.
            RemoteProtocolError: it was lost because the peer broke the protocol.
            trio.TooSlowError: no answer came in time.
        """
        try:
            self._places.acquire_nowait()  # waiting, even for what is free, costs a reschedule
        except trio.WouldBlock:
            with trio.fail_at(deadline_s):
                await self._places.acquire()
        if self._loss is not None:
            self._places.release()  # to the next one, which has to learn this as well
            raise type(self._loss)(str(self._loss)) from self._loss
        number = next(self._numbers)
        waiter = self._waiting[number] = _Waiter(deadline_s)
        if deadline_s < self._timer.deadline:
            self._timer.deadline = deadline_s
        self._send(encode_call(number, message))
        await waiter.over.wait()
        if waiter.answer is not None:
            return waiter.answer
        if self._loss is not None:
            raise type(self._loss)(str(self._loss)) from self._loss
        raise trio.TooSlowError

    def abandon(self, reason: str) -> None:
        """Give the stream up."""
        self._lose(StreamLostError(reason))

    async def run(self) -> None:
        """Send requests and hand answers to their callers until the stream is lost."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._time_out)
                    await self._read()
        finally:
            self.abandon("this node is closing")  # unless it was lost for another reason
            await self._frames.reset()

    def _send(self, frame: bytes) -> None:
        try:
            if not self._frames.write_now(frame):
                self._to_send.send_nowait(frame)
        except StreamLostError as error:
            self._lose(error)

    async def _write(self) -> None:
        try:
            async for frame in self._unsent:
                with trio.fail_after(WRITE_TIMEOUT_S):
                    await self._frames.write_frame(frame)
        except StreamLostError as error:
            self._lose(error)
        except trio.TooSlowError:
            self.abandon("the peer does not read")

    async def _time_out(self) -> None:
        """End calls whose deadline has passed. Their places stay taken, for the peer still works for them."""
        while True:
            with self._timer:
                await trio.sleep(math.inf)
            now_s = trio.current_time()
            waiting = [waiter for waiter in self._waiting.values() if not waiter.over.is_set()]
            for waiter in waiting:
                if waiter.deadline_s <= now_s:
                    waiter.over.set()
            deadlines_s = (waiter.deadline_s for waiter in waiting if waiter.deadline_s > now_s)
            self._timer = trio.CancelScope(deadline=min(deadlines_s, default=math.inf))

    async def _read(self) -> None:
        try:
            await self._frames.read_frame(idle_timeout_s=math.inf, take=self._take_answer)  # it takes all
            self.abandon("the peer ended the stream")
        except (StreamLostError, RemoteProtocolError) as error:
            self._lose(error)
        except trio.TooSlowError:
            self.abandon("an answer began and did not end")

    def _take_answer(self, body: bytes) -> bool:
        number, answer = decode_answer(body)
        self._frames.done_with(body)
        waiter = self._waiting.pop(number, None)
        if waiter is None:
            raise RemoteProtocolError(f"an answer to call {number}, which was not asked or is answered")
        self.heard_s = trio.current_time()
        self._places.release()
        waiter.answer = answer
        waiter.over.set()
        return True

    def _lose(self, loss: StreamLostError | RemoteProtocolError) -> None:
        if self._loss is not None:
            return
        self._loss = loss
        self._scope.cancel()
        for waiter in self._waiting.values():
            waiter.over.set()
            self._places.release()
        self._waiting.clear()


class _Waiter:
    __slots__ = ("answer", "deadline_s", "over")

    def __init__(self, deadline_s: float) -> None:
        self.answer: bytes | Refusal | None = None
        self.deadline_s = deadline_s
        self.over = trio.Event()
