"""A node in a daemon thread of its own, and calls into it from other threads.

The thread's whole life is one cancel scope: ending it cancels the calls under way first, then closes the node, which
has deadlines of its own for that. Whatever way it ends, no future stays pending.

Threads share what is here without a lock. The handler of a signal may make a call at any step of another one, and while
it waits the node must not wait for a lock that is held by what it interrupts. So each step is one that Python does as a
whole, such as adding to a set; and who has to wait does so at a *gate* of its own, a bare lock, which the node opens.

Of all this a forked child gets a copy in which nothing runs any more; :meth:`NodeThread.abandon` is for that copy.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple
from weakref import WeakValueDictionary

import trio

from prime_dht.background import background_nursery
from prime_dht.blocking.call import Call, ClosedError, Promised, Waited, Work, checked_timeout, not_of_this_process
from prime_dht.blocking.joining import join, ways_in
from prime_dht.errors import LocalProtocolError, QueryError, StorageError

if TYPE_CHECKING:
    from prime_dht.config import NodeConfig
    from prime_dht.entries.validators import Validator
    from prime_dht.node.dht import PrimeDHT

logger = logging.getLogger(__name__)

CALLS_AT_ONCE = 256
"""Calls under way at a time, but for those *aside*, and a few more if threads come at the same moment. More are not
quicker, and each holds on to what it was given."""

CLOSING_S = 10.0
"""How long is waited for a node to close. Its own deadlines come to less."""

_in_data_dir: WeakValueDictionary[str, NodeThread] = WeakValueDictionary()
"""By data directory, who had it last in this process."""

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


def runs_trio() -> bool:
    """Whether trio runs in this thread; it may even be a node's own, in the callback of a future."""
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError:
        return False
    return True


def refuse_in_trio() -> None:
    """Check that this thread may wait.

    Raises:
        LocalProtocolError: trio runs in it.
    """
    if runs_trio():
        raise LocalProtocolError(
            "waiting here would stall trio, which runs in this thread: use prime_dht.open_node, or call in "
            "trio.to_thread.run_sync; in a callback of a future, use wait=False"
        )


class NodeThread:
    """See the module. The thread starts at once.

    Args:
        config: the node's.
        validators: as for :func:`prime_dht.open_node`.
        joining_s: how long the node may take to open and join.

    Attributes:
        is_started: whether calls can be made, or could be.
        has_failed: whether they never will be.
        ways_in: addresses of nodes through which others can join, once it has started.
    """

    def __init__(self, config: NodeConfig, *, validators: Mapping[str, Validator] | None, joining_s: float) -> None:
        self.is_started = False
        self.ways_in: tuple[str, ...] = ()
        self._config = config
        self._validators = validators
        self._joining_s = self._joining_left_s = joining_s
        self._calls: set[Call[object]] = set()
        """Those that take a place."""
        self._aside: set[Call[object]] = set()
        """Those that take none."""
        self.has_failed = False
        self._gates: set[threading.Lock] = set()
        """One for each thread that waits until this has started."""
        self._room: set[threading.Lock] = set()
        """One for each thread that waits for a place."""
        self._failure: BaseException = ClosedError("the client was closed before it had joined")
        self._life = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None
        self._at_work: tuple[trio.Nursery, PrimeDHT] | None = None
        self._is_ending = False
        self._is_inherited = False
        self._thread = threading.Thread(target=self._run, name="prime_dht", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # Ctrl-C, while that waits for the thread to begin: nobody would have this to close it
            self.end()
            raise

    # In other threads

    def wait_until_started(self, timeout_s: float | None = None) -> None:
        """Wait until calls can be made.

        Raises:
            LocalProtocolError: trio runs in this thread.
            PrimeDHTError: the node could not be opened, or did not join, or was closed before that.
            QueryError: that is not known within ``timeout_s``; the node goes on.
            ValidationError: the timeout is not a positive number.
        """
        timeout_s = None if timeout_s is None else checked_timeout(timeout_s)
        if self.is_started:
            return
        refuse_in_trio()
        gate = _gate_in(self._gates)
        is_known = self.is_started or self.has_failed  # else that opens the gate
        most_s = -1 if timeout_s is None else min(timeout_s, threading.TIMEOUT_MAX)
        if not is_known and not gate.acquire(timeout=most_s):
            self._gates.discard(gate)
            raise QueryError(f"not joined within {timeout_s:g} s; the node goes on trying")
        if not self.is_started:
            raise self._failure

    def wait(self, work: Work[T], *, timeout_s: float | None = None, began_s: float | None = None) -> T:
        """Have ``work`` carried out, and wait for what it returns or raises. The node has started.

        Raises:
            ClosedError: the node has ended, or ends meanwhile.
            LocalProtocolError: trio runs in this thread; or the node is the parent's of this process.
            QueryError: it is not done within ``timeout_s``, which count from ``began_s`` on, or else from now on.
        """
        refuse_in_trio()
        call = Waited(work, timeout_s=timeout_s, began_s=began_s)
        try:
            self._begin(call)
            return call.result()
        except BaseException:  # also Ctrl-C: the node is not to go on with what nobody waits for
            self._soon(self._cancel, call)
            raise

    def start(
        self,
        work: Work[T],
        *,
        timeout_s: float | None = None,
        began_s: float | None = None,
        owner: object,
        is_aside: bool = False,
    ) -> Future[T]:
        """As :meth:`wait`, but return when there is a place for the call, with the future of its outcome.

        Args:
            owner: kept alive until the call has ended.
            is_aside: whether it takes no place: for what goes on only as other calls ask it to.
        """
        call = Promised(work, timeout_s=timeout_s, began_s=began_s, owner=owner)
        call.future.add_done_callback(partial(self._cancel_if_asked, call.scope))
        try:
            self._begin(call, is_aside=is_aside)
        except BaseException:  # also Ctrl-C: nobody has the future
            self._soon(self._cancel, call)
            raise
        return call.future

    def end(self) -> None:
        """Have the node close, without waiting for it. A finalizer may call this, anywhere and at any time."""
        self._is_ending = True
        self._soon(self._life.cancel)

    def close(self) -> None:
        """Have the node close, and wait for that, for :data:`CLOSING_S` at most."""
        self.end()
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSING_S)

    def abandon(self) -> None:
        """In a forked child: nothing runs here. The calls under way fail, in this process."""
        self._is_inherited = True
        for call in (*self._calls, *self._aside):
            call.abandon()

    def _begin(self, call: Call[object], *, is_aside: bool = False) -> None:
        if self._is_inherited:
            raise not_of_this_process()
        while not is_aside and not self._has_room():
            gate = _gate_in(self._room)
            # Where trio runs nobody may wait, not for a place either.
            wait_s = 0.0 if runs_trio() else call.remaining_s
            if not self._has_room() and not gate.acquire(timeout=wait_s):
                self._room.discard(gate)
                raise QueryError(f"{CALLS_AT_ONCE} calls are under way, and none of them ended in time for this one")
        (self._aside if is_aside else self._calls).add(call)
        if not self._soon(self._spawn, call):
            self._conclude(call)

    def _has_room(self) -> bool:
        return len(self._calls) < CALLS_AT_ONCE

    def _cancel_if_asked(self, scope: trio.CancelScope, future: Future[T]) -> None:
        if future.cancelled():
            self._soon(scope.cancel)

    def _soon(self, function: Callable[[*Arguments], object], *arguments: *Arguments) -> bool:
        """Have the node's thread call a function, unless trio does not run there any more, or not yet."""
        if self._token is None or self._is_inherited:
            return False
        try:
            self._token.run_sync_soon(function, *arguments)
        except trio.RunFinishedError:
            return False
        return True

    # In the node's thread

    def _run(self) -> None:
        try:
            self._take_data_dir()
            trio.run(self._main)
        except BaseException as error:
            if not self.is_started:
                self._failure = error
            elif self._is_ending and isinstance(error, StorageError):
                # Of what was acknowledged nothing is lost by it: that was on the disk before.
                logger.warning("not all could be written down at the end: %s", error)
            else:
                raise  # nobody foresaw it, and nobody waits: Python shows it as the end of this thread
        finally:
            self.has_failed = not self.is_started
            _open(self._gates)

    def _take_data_dir(self) -> None:
        """A client that nobody has any more closes by itself, and may still be at it: wait for that.

        Raises:
            StorageError: another client of this process has the data directory open, and is to keep it.
        """
        if self._config.data_dir is None:
            return
        try:
            place = os.path.realpath(self._config.data_dir)
        except OSError:  # the current directory is gone; opening the node tells in words what that means
            return
        began_s = time.monotonic()
        until_s = began_s + min(CLOSING_S, self._joining_s)
        # Again, for of several that have waited for the same client only one comes next.
        while (before := _in_data_dir.get(place)) is not None and before._thread.is_alive():
            if not (before._is_ending or before.has_failed):
                raise StorageError(
                    f"{self._config.data_dir}: another client of this process has it open: close that one, or use it"
                )
            if (left_s := until_s - time.monotonic()) <= 0:
                break
            before._thread.join(left_s)
        _in_data_dir[place] = self
        self._joining_left_s -= time.monotonic() - began_s

    async def _main(self) -> None:
        from prime_dht.node.open import open_node  # nearly all of the time that a start takes

        self._token = trio.lowlevel.current_trio_token()
        if self._is_ending:
            return
        self._life.deadline = trio.current_time() + self._joining_left_s
        with self._life:
            async with open_node(self._config, validators=self._validators) as dht:
                await join(dht, self._config)
                self._life.deadline = math.inf
                await trio.lowlevel.checkpoint_if_cancelled()  # it may have passed at this very moment
                async with background_nursery() as nursery:
                    self._at_work = (nursery, dht)
                    self.ways_in = ways_in(dht)
                    self.is_started = True
                    _open(self._gates)
                    try:
                        await trio.sleep(math.inf)
                    finally:
                        self._at_work = None
        if not self._is_ending:
            raise QueryError(f"not joined within {self._joining_s:g} s")

    def _cancel(self, call: Call[object]) -> None:
        call.scope.cancel()
        self._spawn(call)  # Ctrl-C may have come when the call had a place, but was not asked for yet

    def _spawn(self, call: Call[object]) -> None:
        if call.is_begun or not (call in self._calls or call in self._aside):
            return
        if self._at_work is None:
            self._conclude(call)
            return
        call.is_begun = True
        nursery, dht = self._at_work
        nursery.start_soon(self._carry_out, call, dht)

    async def _carry_out(self, call: Call[object], dht: PrimeDHT) -> None:
        try:
            await call.carry_out(dht)
        finally:
            self._conclude(call)

    def _conclude(self, call: Call[object]) -> None:
        self._calls.discard(call)
        self._aside.discard(call)
        _open(self._room)
        try:
            call.conclude()
        except BaseException:  # of a callback: SystemExit, say, or asyncio's CancelledError; a future logs the others
            logger.exception("a callback of a future failed; the node goes on")


def _gate_in(gates: set[threading.Lock]) -> threading.Lock:
    """A gate, among others that are still shut. Look again for what it is to wait for before waiting."""
    gate = threading.Lock()
    gate.acquire()
    gates.add(gate)
    return gate


def _open(gates: set[threading.Lock]) -> None:
    """Let go on who waits at some gates."""
    with suppress(KeyError):  # there are no more; not "while there are": one may be gone before it is taken
        while True:
            gates.pop().release()
