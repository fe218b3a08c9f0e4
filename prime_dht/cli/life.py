"""Runs a command's asynchronous part until it is done or a signal ends it."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import trio

from prime_dht.cli.ending import EndedBySignal
from prime_dht.node.background import background_nursery

if TYPE_CHECKING:
    from trio_typing import TaskStatus

T = TypeVar("T")


def run_until_done(work: Callable[[], Awaitable[T]]) -> T:
    """Run ``work`` in trio. SIGINT and SIGTERM cancel it, so that the node closes as it should; a second one kills.

    Raises:
        EndedBySignal: a signal ended it.
    """
    result: T = trio.run(_supervise, work)
    return result


async def _supervise(work: Callable[[], Awaitable[T]]) -> T:
    caught: list[int] = []

    async def heed_signals(*, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            caught.append(await anext(aiter(signals)))
        # From here on signals do again what they do by default: whoever presses Ctrl-C twice means it.
        scope.cancel()

    with trio.CancelScope() as scope:
        async with background_nursery() as nursery:
            await nursery.start(heed_signals)
            return await work()
    raise EndedBySignal(caught[0])
