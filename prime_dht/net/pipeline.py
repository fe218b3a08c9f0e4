"""The calling end of a ``<prefix>/rpc/1.0.0`` stream: calls in flight, answered in any order.

A call takes one of :data:`~prime_dht.wire.calls.MAX_CALLS_IN_FLIGHT` *places*, and its answer gives the place back, not
its caller: the caller may be cancelled while the peer still works for it. The request of a caller that was cancelled is
sent all the same, so no cancellation can cut a frame that others need whole. A call can be *posted* as well: then no
task waits for its answer, which is handed to a function as it comes.

A stream is *lost* when it ends, breaks, carries what no answer can be, takes nothing for :data:`WRITE_TIMEOUT_S`, or is
abandoned. Every call that waits on it then fails at once.

A cancel scope for the deadline of each call would cost a tenth of the call. So all calls of a stream share one timer: a
task that sleeps until the earliest deadline that there was when it began, and then ends the calls whose time is up. A
node keeps dozens of streams on which nothing is asked, so of those only the task that reads is there: the timer ends
when no call is left by its deadline, and what could not be sent at once has a task of its own until it is sent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import trio

from prime_dht.errors import RemoteProtocolError
from prime_dht.net.streams import FrameStream, StreamLostError
from prime_dht.wire.calls import MAX_CALLS_IN_FLIGHT, Refusal, decode_answer, encode_call

WRITE_TIMEOUT_S = 30.0
"""Seconds for a peer to take one request."""

Answer = bytes | Refusal | StreamLostError | RemoteProtocolError | trio.TooSlowError
OnAnswer = Callable[[Answer], None]


class Pipeline:
    """Calls over one stream, while :meth:`run` runs.

    Args:
        nursery: for the tasks that are there only while calls are; it outlives ``run``.

    Attributes:
        heard_s: when the last answer came, on trio's clock.
    """

    def __init__(self, frames: FrameStream, nursery: trio.Nursery) -> None:
        self._frames = frames
        self._nursery = nursery
        self._calls: dict[int, _Call] = {}
        self._numbers = itertools.count()
        self._places = trio.Semaphore(MAX_CALLS_IN_FLIGHT)
        self._unsent: list[bytes] = []  # each has a place, so it is short; while there are any, a task writes the first
        self._scope = trio.CancelScope()
        self._writing: trio.CancelScope | None = None
        self._timer: trio.CancelScope | None = None  # around the sleep of the task that there is with calls
        self._loss: StreamLostError | RemoteProtocolError | None = None
        self.heard_s = -math.inf

    @property
    def is_lost(self) -> bool:
        return self._loss is not None

    def is_unused(self, *, since_s: float) -> bool:
        """Whether no call is under way, nor was answered since ``since_s`` on trio's clock."""
        return not self._calls and self.heard_s < since_s

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
        waiter = _Waiter()
        self._begin(message, deadline_s, waiter.take)
        await waiter.over.wait()
        answer = waiter.answer
        if isinstance(answer, bytes | Refusal):
            return answer
        raise type(answer)(str(answer)) from answer

    def post(self, message: bytes, *, deadline_s: float, then: OnAnswer) -> bool:
        """Send one message without waiting; ``False``, with nothing sent, if that is not possible just now.

        Args:
            then: is given the answer, or what :meth:`call` would raise, maybe before this returns. It must not block.
        """
        if self._loss is not None:
            return False
        try:
            self._places.acquire_nowait()
        except trio.WouldBlock:
            return False
        self._begin(message, deadline_s, then)
        return True

    def abandon(self, reason: str) -> None:
        """Give the stream up."""
        self._lose(StreamLostError(reason))

    async def run(self) -> None:
        """Send requests and hand answers to their callers until the stream is lost."""
        try:
            with self._scope:
                await self._read()
        finally:
            self.abandon("this node is closing")  # unless it was lost for another reason
            await self._frames.reset()

    def _begin(self, message: bytes, deadline_s: float, then: OnAnswer) -> None:
        """Send a message that has a place."""
        number = next(self._numbers)
        self._calls[number] = _Call(deadline_s, then)
        if self._timer is None:
            self._timer = trio.CancelScope(deadline=deadline_s)
            self._nursery.start_soon(self._time_out, self._timer)
        elif deadline_s < self._timer.deadline:
            self._timer.deadline = deadline_s
        self._send(encode_call(number, message))

    def _send(self, frame: bytes) -> None:
        try:
            if not self._unsent and self._frames.write_now(frame):
                return
        except StreamLostError as error:
            self._lose(error)
            return
        self._unsent.append(frame)
        if len(self._unsent) == 1:
            self._nursery.start_soon(self._write)

    async def _write(self) -> None:
        try:
            while self._unsent:
                with trio.fail_after(WRITE_TIMEOUT_S) as self._writing:
                    await self._frames.write_frame(self._unsent[0])
                del self._unsent[0]
        except StreamLostError as error:
            self._lose(error)
        except trio.TooSlowError:
            self.abandon("the peer does not read")

    async def _time_out(self, timer: trio.CancelScope) -> None:
        """End calls whose deadline has passed. Their places stay taken, for the peer still works for them."""
        while True:
            with timer:
                await trio.sleep(math.inf)
            now_s = trio.current_time()
            for call in list(self._calls.values()):
                if call.deadline_s <= now_s:
                    call.end(trio.TooSlowError())
            deadlines_s = [call.deadline_s for call in self._calls.values() if call.then is not None]
            if not deadlines_s:
                self._timer = None
                return
            self._timer = timer = trio.CancelScope(deadline=min(deadlines_s))

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
        call = self._calls.pop(number, None)
        if call is None:
            raise RemoteProtocolError(f"an answer to call {number}, which was not asked or is answered")
        self.heard_s = trio.current_time()
        self._places.release()
        call.end(answer)
        return True

    def _lose(self, loss: StreamLostError | RemoteProtocolError) -> None:
        if self._loss is not None:
            return
        self._loss = type(loss)(str(loss))  # what was raised has a traceback, which leads back here
        self._scope.cancel()
        for waiting in (self._timer, self._writing):
            if waiting is not None:
                waiting.cancel()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            self._places.release()
            call.end(loss)


class _Call:
    """A call that is not answered. When it is over, ``then`` is gone."""

    __slots__ = ("deadline_s", "then")

    def __init__(self, deadline_s: float, then: OnAnswer) -> None:
        self.deadline_s = deadline_s
        self.then: OnAnswer | None = then

    def end(self, answer: Answer) -> None:
        if self.then is not None:
            then, self.then = self.then, None
            then(answer)


class _Waiter:
    """A task that waits for an answer."""

    __slots__ = ("answer", "over")

    def __init__(self) -> None:
        self.over = trio.Event()
        self.answer: Answer = b""

    def take(self, answer: Answer) -> None:
        self.answer = answer
        self.over.set()
