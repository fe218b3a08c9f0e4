"""Reads on worker threads, each on a connection that nobody else uses meanwhile.

A thread that has done a read goes on with the next one that waits, so that many reads share one start of a thread. What
a read returns is told as soon as it is there. A cancelled caller waits for it no longer.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import trio

from prime_dht.storage.sqlite_file import storage_error
from prime_dht.storage.worker_thread import Asked, run_then

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class _Returned(Generic[T_co]):
    result: T_co


@dataclass(slots=True, eq=False)
class _Read(Asked, Generic[T_co]):
    work: Callable[[sqlite3.Connection], T_co]
    outcome: _Returned[T_co] | BaseException | None = None

    def do(self, connection: sqlite3.Connection) -> None:
        try:
            self.outcome = _Returned(self.work(connection))
        except BaseException as error:  # noqa: BLE001 - raised where the read was asked for
            self.outcome = error


class ReadThreads:
    """The one way to read through some connections."""

    def __init__(self, connections: Sequence[sqlite3.Connection], path: Path) -> None:
        self._path = path
        self._all = len(connections)
        self._idle = list(connections)
        self._waiting: deque[_Read[object]] = deque()  # which the threads take from as well
        self._all_idle = trio.lowlevel.ParkingLot()

    @trio.lowlevel.enable_ki_protection  # whoever waits has to be there when the thread tells
    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do ``work``; returns what it returned, or raises what it raised.

        Raises:
            StorageError: there was no thread to be had for it.
        """
        read = _Read(work)
        self._waiting.append(read)
        if self._idle:
            self._start(self._idle.pop())
        if read.outcome is None:
            read.caller = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(partial(self._abandon, read))
        if isinstance(read.outcome, _Returned):
            return read.outcome.result
        assert read.outcome is not None
        raise read.outcome

    async def finish(self) -> None:
        """Wait until every read that was asked for so far has ended."""
        while len(self._idle) < self._all:
            await self._all_idle.park()

    def _abandon(self, read: _Read[object], _: object) -> trio.lowlevel.Abort:
        read.caller = None
        with suppress(ValueError):  # a thread is doing it
            self._waiting.remove(read)
        return trio.lowlevel.Abort.SUCCEEDED

    def _next(self) -> _Read[object] | None:
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def _start(self, connection: sqlite3.Connection) -> None:
        tell_soon = trio.lowlevel.current_trio_token().run_sync_soon
        last: list[_Read[object]] = []

        def read_all() -> None:
            while (read := self._next()) is not None:
                read.do(connection)
                if not self._waiting:  # each message wakes the loop, so this one goes with that of the end
                    last.append(read)
                    return
                tell_soon(read.tell)

        try:
            run_then(read_all, partial(self._ended, connection, last))
        except RuntimeError as error:  # the system lets this process have no more threads
            failed = list(iter(self._next, None))
            for read in failed:
                read.outcome = storage_error(self._path, error)
            self._ended(connection, failed)

    def _ended(self, connection: sqlite3.Connection, last: Sequence[_Read[object]]) -> None:
        for read in last:
            read.tell()
        if self._waiting:
            self._start(connection)
        else:
            self._idle.append(connection)
            self._all_idle.unpark_all()
