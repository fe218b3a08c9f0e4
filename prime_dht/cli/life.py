"""Runs a command's asynchronous part until it is done or a signal ends it."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import trio

from prime_dht.background import background_nursery
from prime_dht.cli.ending import EndedBySignal
from prime_dht.errors import StorageError

if TYPE_CHECKING:
    from trio_typing import TaskStatus

logger = logging.getLogger(__name__)

HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The last comes when the terminal is closed; whoever ignores it, as nohup does, goes on."""

T = TypeVar("T")

# Python goes through all that is left when it exits. That is libp2p's modules, for the most part, and takes a good part
# of the second in which Ctrl-C is to be obeyed.
atexit.register(gc.freeze)


def run_until_done(work: Callable[[], Awaitable[T]], *, closing_s: float | None = None) -> T:
    """Run ``work`` in trio. The first signal cancels it, so that the node closes as it should; a second one kills.

    Args:
        closing_s: seconds that a server has to close then; after them the process ends with the status that it would
            have had.

    Raises:
        EndedBySignal: a signal ended it.
    """
    # Until there is somebody to heed signals they wait, so that none of them ends trio in the middle of a step.
    signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)
    try:
        result: T = trio.run(_supervise, work, closing_s)
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[0] is not None:  # the second Ctrl-C, in trio
            raise EndedBySignal(signal.SIGINT) from None
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)
    return result


async def _supervise(work: Callable[[], Awaitable[T]], closing_s: float | None) -> T:
    caught: list[int] = []

    async def heed_signals(*, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        heeded = [each for each in HEEDED if signal.getsignal(each) is not signal.SIG_IGN]
        with trio.open_signal_receiver(*heeded) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)
            task_status.started()
            caught.append(await anext(aiter(signals)))
        if closing_s is not None:
            _end_process_after(closing_s, EndedBySignal(caught[0]).status_of_server)
        # From here on signals do again what they do by default: whoever presses Ctrl-C twice means it.
        scope.cancel()

    try:
        with trio.CancelScope() as scope:
            async with background_nursery() as nursery:
                await nursery.start(heed_signals)
                return await work()
    except StorageError as error:
        if not caught:
            raise
        # Of what was acknowledged nothing is lost by it: that was on the disk before.
        logger.warning("not all could be written down at the end: %s", error)
    raise EndedBySignal(caught[0])


def _end_process_after(seconds: float, status: int) -> None:
    """End the process from another thread: trio may be busy with closing, and not look at its clock."""
    watchdog = threading.Timer(seconds, os._exit, (status,))
    watchdog.daemon = True
    watchdog.start()
