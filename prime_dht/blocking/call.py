"""One call: work for the node's thread, and what came of it.

A call is waited for, or has a future. The future stays pending until the task that does the work has ended, so
``cancel()`` works all the time; and as with executors, whoever waits for a cancelled future learns of it when the task
is gone.

**Ctrl-C** raises ``KeyboardInterrupt`` between any two steps of Python code in the main thread. In the middle of
``Future.result`` that can leave the future locked for ever, and then the node's thread would hang when it tells the
outcome. So a call that is waited for has no future: its latch is a bare lock, which C code waits for as a whole.
"""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from prime_dht.errors import LocalProtocolError, QueryError, ValidationError
from prime_dht.quantities import number_of

if TYPE_CHECKING:
    from prime_dht.node.dht import PrimeDHT

T_co = TypeVar("T_co", covariant=True)

Work = Callable[["PrimeDHT"], Awaitable[T_co]]
"""What is to be done with a node, in its thread."""


def checked_timeout(timeout_s: float) -> float:
    """How long something may take, as a number of Python's own.

    Raises:
        ValidationError: it is not a positive number.
    """
    if not (seconds := number_of("timeout", timeout_s)) > 0:
        raise ValidationError(f"timeout must be a positive number of seconds, not {timeout_s}")
    return seconds


class ClosedError(LocalProtocolError):
    """The node ended, or had ended before it was asked."""


class Call(ABC, Generic[T_co]):
    """Work to do, and then to tell of.

    Args:
        timeout_s: how long it may take; ``None`` leaves that to the node's own deadlines.
        began_s: from when on, on the monotonic clock; from now on by default.

    Attributes:
        scope: around the work; cancelling it, in the node's thread, cancels the call.
        is_begun: whether there is a task for it.

    Raises:
        ValidationError: the timeout is not a positive number.
    """

    def __init__(self, work: Work[T_co], *, timeout_s: float | None, began_s: float | None = None) -> None:
        self.scope = trio.CancelScope()
        self.is_begun = False
        self._work = work
        self._timeout_s = math.inf if timeout_s is None else checked_timeout(timeout_s)
        self._deadline_s = (time.monotonic() if began_s is None else began_s) + self._timeout_s
        self._value: tuple[T_co] | None = None
        self._error: BaseException = ClosedError("the node ended before this call did")

    @property
    def remaining_s(self) -> float:
        """Until its deadline; as much as a lock can be waited for, at most."""
        return min(max(0.0, self._deadline_s - time.monotonic()), threading.TIMEOUT_MAX)

    async def carry_out(self, dht: PrimeDHT) -> None:
        """Do the work, in the node's thread. What comes of it is told by :meth:`conclude`."""
        self.scope.deadline = trio.current_time() + self.remaining_s
        try:
            with self.scope:
                self._value = (await self._work(dht),)
        except (trio.Cancelled, GeneratorExit):  # the node ends
            raise
        except BaseException as error:  # noqa: BLE001 - raised in the thread that made the call: SystemExit, too
            cancelled = error.subgroup(trio.Cancelled) if isinstance(error, BaseExceptionGroup) else None
            if cancelled is not None:  # the node ends, and the work had a nursery of its own
                raise cancelled from None
            self._error = error
        if self.scope.cancelled_caught:
            self._error = QueryError(f"not done within {self._timeout_s:g} s")

    @abstractmethod
    def conclude(self) -> None:
        """The task has ended, or there will be none: tell who waits."""

    @abstractmethod
    def abandon(self) -> None:
        """In a forked child: this goes on only in the parent."""


class Waited(Call[T_co]):
    """A call that the thread that makes it waits for."""

    def __init__(self, work: Work[T_co], *, timeout_s: float | None, began_s: float | None = None) -> None:
        super().__init__(work, timeout_s=timeout_s, began_s=began_s)
        self._latch = threading.Lock()
        self._latch.acquire()

    def result(self) -> T_co:
        """Wait until the call has ended; what it returned, or raised. Once."""
        self._latch.acquire()
        if self._value is not None:
            return self._value[0]
        # The error's traceback holds the frames that hold this call. Were it to hold the error in turn, all that the
        # call was given would stay in memory until Python looks for cycles.
        error = self._error
        del self._error
        try:
            raise error
        finally:
            del error

    def conclude(self) -> None:
        self._latch.release()

    def abandon(self) -> None:
        pass  # a thread that waits does not fork, so there is none here that waits


class Promised(Call[T_co]):
    """A call with a future.

    Args:
        owner: kept alive until the call has ended.

    Attributes:
        future: of the outcome.
    """

    def __init__(
        self, work: Work[T_co], *, timeout_s: float | None, began_s: float | None = None, owner: object
    ) -> None:
        super().__init__(work, timeout_s=timeout_s, began_s=began_s)
        self.future: Future[T_co] = Future()
        self._owner = owner

    def conclude(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        if self._value is not None:
            self.future.set_result(self._value[0])
        else:
            self.future.set_exception(self._error)

    def abandon(self) -> None:
        Future.__init__(self.future)  # for a new lock: the thread that held the old one, if one did, is not here
        self.future.set_exception(not_of_this_process())


def not_of_this_process() -> LocalProtocolError:
    """The error of a child that uses what is its parent's."""
    return LocalProtocolError("this was begun in the process that forked this one, and goes on only there")
