"""Group commit: those who write at the same time share one transaction, and so one wait for the disk.

A *write* is a function of the connection. The first caller to find nobody at work *leads*: it takes every write that is
waiting, its own among them, and has them done in one transaction on a worker thread. Whoever arrives meanwhile waits;
when the commit ends, what they brought is done in the next one. This is LevelDB's writer queue (``DBImpl::Write``).
There is no task and no queue beside the callers: what bounds them bounds the work in hand.

- A write returns once its transaction is committed, and with it what its function returned.
- A transaction that fails is rolled back and its writes are tried one by one, so that only the culprit's caller sees
  the error. A write may therefore run twice and has to be a function of the connection alone. If none can begin,
  because another program has locked the database, all have failed after one wait.
- A cancelled caller's write is either withdrawn while it still waits, or seen through, and the caller told what became
  of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Generic, TypeVar

import trio

from prime_dht.errors import NotWrittenError, StorageError
from prime_dht.storage.sqlite_file import storage_error
from prime_dht.storage.worker_thread import Asked, run_then

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class _Committed(Generic[T_co]):
    result: T_co


@dataclass(frozen=True, slots=True)
class _Failed:
    """Why a write failed, and as what its caller is told: ``None`` if as itself, because it is a defect."""

    error: BaseException
    kind: type[StorageError] | None


@dataclass(slots=True, eq=False)
class _Write(Asked, Generic[T_co]):
    work: Callable[[sqlite3.Connection], T_co]
    outcome: _Committed[T_co] | _Failed | None = None


class GroupCommit:
    """The one way to write through a connection, which nobody else uses."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._waiting: dict[_Write[object], None] = {}
        self._is_at_work = False
        self._done = trio.lowlevel.ParkingLot()

    @trio.lowlevel.enable_ki_protection  # whoever waits has to be there when the commit ends
    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do ``work`` in a transaction; returns what it returned once that is durable.

        Raises:
            NotWrittenError: the transaction failed, and nothing of this write is stored. If it was the disk that failed
                to take it, this may be there all the same when the store is opened next.
        """
        write = _Write(work)
        self._waiting[write] = None
        if not self._is_at_work:
            self._is_at_work = True
            try:
                # Lets those who are about to write in this turn of the scheduler come along.
                await trio.lowlevel.checkpoint()
            except BaseException:
                del self._waiting[write]
                raise
            finally:
                self._commit_waiting()
        if write.outcome is None:
            write.caller = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(partial(self._withdraw, write))
        if isinstance(write.outcome, _Failed):
            failed = write.outcome
            if failed.kind is None:
                raise failed.error
            raise storage_error(self._path, failed.error, failed.kind) from failed.error
        assert write.outcome is not None
        return write.outcome.result

    async def finish(self) -> None:
        """Wait until every write that was asked for so far has its outcome."""
        while self._is_at_work:
            await self._done.park()

    def _withdraw(self, write: _Write[object], _: object) -> trio.lowlevel.Abort:
        if write not in self._waiting:
            return trio.lowlevel.Abort.FAILED
        del self._waiting[write]
        write.caller = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _commit_waiting(self) -> None:
        """Have all that waits done in one transaction, and so on until nothing waits."""
        batch = list(self._waiting)
        self._waiting.clear()
        self._is_at_work = bool(batch)
        if not batch:
            self._done.unpark_all()
            return
        try:
            run_then(partial(self._commit, batch), partial(self._committed, batch))
        except RuntimeError as error:  # the system lets this process have no more threads
            for write in batch:
                write.outcome = _Failed(error, NotWrittenError)
            self._committed(batch)

    def _committed(self, batch: Sequence[_Write[object]]) -> None:
        for write in batch:
            write.tell()
        self._commit_waiting()

    def _commit(self, writes: Sequence[_Write[object]]) -> None:
        transactions = [writes]
        while transactions:
            together = transactions.pop(0)
            try:
                self._connection.execute("BEGIN IMMEDIATE")
            except (sqlite3.Error, MemoryError) as error:
                # So would the others' begin, each after a wait of its own for whoever has locked the database.
                for write in chain(together, *transactions):
                    write.outcome = _Failed(error, NotWrittenError)
                return
            try:
                results = self._end_transaction(together)
            except BaseException as error:  # noqa: BLE001 - raised where the write was asked for
                if len(together) > 1:
                    transactions = [[write] for write in together]
                else:
                    is_of_database = isinstance(error, sqlite3.Error | OverflowError)
                    together[0].outcome = _Failed(error, NotWrittenError if is_of_database else None)
            else:
                for write, result in zip(together, results, strict=True):
                    write.outcome = _Committed(result)

    def _end_transaction(self, writes: Sequence[_Write[object]]) -> list[object]:
        try:
            results = [write.work(self._connection) for write in writes]
            self._connection.execute("COMMIT")
        except BaseException:  # whatever it is, no transaction stays open
            # Not after errors on which SQLite has rolled back by itself.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return results
