"""Reads share threads, keep to a connection each, and leave nobody waiting for what was cancelled or failed."""

from __future__ import annotations

import gc
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from weakref import ref

import pytest
import trio
import trio.testing

from prime_dht.errors import StorageError
from prime_dht.storage.read_threads import ReadThreads

PATIENCE_S = 60.0


class Gate:
    """A read that says when it is being done and then waits to be let on."""

    def __init__(self) -> None:
        self.connection: sqlite3.Connection | None = None
        self._entered = threading.Event()
        self._leave = threading.Event()

    def __call__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._entered.set()
        assert self._leave.wait(PATIENCE_S)

    async def entered(self) -> None:
        assert await trio.to_thread.run_sync(self._entered.wait, PATIENCE_S)

    def open(self) -> None:
        self._leave.set()


class Starts:
    """Counts the threads that are started for reads; there are none to be had while it is out of them."""

    def __init__(self) -> None:
        self.count = 0
        self.is_out = False

    def __call__(self, work: Callable[[], None], deliver: Callable[[object], None]) -> None:
        if self.is_out:
            raise RuntimeError("can't start new thread")
        self.count += 1

        def run() -> None:
            work()
            deliver(None)

        threading.Thread(target=run).start()


@pytest.fixture
def connections() -> Iterator[list[sqlite3.Connection]]:
    with ExitStack() as stack:
        yield [stack.enter_context(closing(sqlite3.connect(":memory:", check_same_thread=False))) for _ in range(2)]


@pytest.fixture
def reads(connections: list[sqlite3.Connection]) -> ReadThreads:
    return ReadThreads(connections, Path("prime.db"))


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    starts = Starts()
    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", starts)
    return starts


def reading(number: int) -> Callable[[sqlite3.Connection], int]:
    def read(connection: sqlite3.Connection) -> int:
        (result,) = connection.execute("SELECT ?", (number,)).fetchone()
        return int(result)

    return read


async def test_those_who_wait_share_a_thread_and_each_gets_its_own_result(
    connections: list[sqlite3.Connection], starts: Starts
) -> None:
    reads = ReadThreads(connections[:1], Path("prime.db"))
    results: dict[int, int] = {}

    async def read(number: int) -> None:
        results[number] = await reads.run(reading(number))

    gate = Gate()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reads.run, gate)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(20):
            nursery.start_soon(read, number)
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
    assert results == {number: number for number in range(20)}
    assert starts.count == 1


async def test_no_two_reads_at_a_time_have_one_connection(
    reads: ReadThreads, connections: list[sqlite3.Connection]
) -> None:
    first, second = Gate(), Gate()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reads.run, first)
        nursery.start_soon(reads.run, second)
        await first.entered()
        await second.entered()
        assert {first.connection, second.connection} == set(connections)
        first.open()
        second.open()


async def test_a_result_is_told_while_its_thread_goes_on_with_the_next_read(
    connections: list[sqlite3.Connection],
) -> None:
    reads = ReadThreads(connections[:1], Path("prime.db"))
    first, last = Gate(), Gate()
    told = trio.Event()

    async def read() -> None:
        await reads.run(first)
        told.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await first.entered()
        nursery.start_soon(reads.run, last)
        await trio.testing.wait_all_tasks_blocked()
        first.open()
        with trio.fail_after(PATIENCE_S):
            await told.wait()
        last.open()


async def test_a_read_that_comes_while_a_thread_ends_is_done_after_it(
    connections: list[sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = ReadThreads(connections[:1], Path("prime.db"))
    ends: list[Callable[[], None]] = []
    results: list[int] = []

    def start(work: Callable[[], None], deliver: Callable[[object], None]) -> None:
        work()
        ends.append(partial(deliver, None))

    async def read() -> None:
        results.append(await reads.run(reading(2)))

    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", start)
    assert await reads.run(reading(1)) == 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        assert results == []
        for _ in range(2):
            ends.pop()()
            await trio.testing.wait_all_tasks_blocked()
        assert results == [2]
    await reads.finish()


async def test_who_is_cancelled_does_not_wait_and_its_connection_is_not_used_before_the_read_has_ended(
    connections: list[sqlite3.Connection],
) -> None:
    reads = ReadThreads(connections[:1], Path("prime.db"))
    gate = Gate()
    results: list[int] = []

    async def read() -> None:
        results.append(await reads.run(reading(1)))

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as cancelled:
            cancelled.start_soon(reads.run, gate)
            await gate.entered()
            cancelled.cancel_scope.cancel()
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        assert results == []
        gate.open()
    assert results == [1]


async def test_a_read_cancelled_while_it_waits_is_not_done_and_not_kept(connections: list[sqlite3.Connection]) -> None:
    reads = ReadThreads(connections[:1], Path("prime.db"))
    gate, other = Gate(), Gate()
    kept = ref(other)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reads.run, gate)
        await gate.entered()
        async with trio.open_nursery() as cancelled:
            cancelled.start_soon(reads.run, other)
            del other
            await trio.testing.wait_all_tasks_blocked()
            cancelled.cancel_scope.cancel()
        gc.collect()
        assert kept() is None
        gate.open()
    assert await reads.run(reading(1)) == 1


async def test_what_a_read_raises_is_raised_where_it_was_asked_for_and_the_connection_is_free_again(
    reads: ReadThreads,
) -> None:
    def fail(_: sqlite3.Connection) -> None:
        raise ZeroDivisionError("a defect")

    for _ in range(5):
        with pytest.raises(ZeroDivisionError, match="a defect"):
            await reads.run(fail)
    assert await reads.run(reading(1)) == 1


async def test_finishing_waits_for_reads_that_nobody_waits_for_any_more(reads: ReadThreads) -> None:
    gate, finished = Gate(), trio.Event()

    async def finish() -> None:
        await reads.finish()
        finished.set()

    async with trio.open_nursery() as cancelled:
        cancelled.start_soon(reads.run, gate)
        await gate.entered()
        cancelled.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish)
        await trio.testing.wait_all_tasks_blocked()
        assert not finished.is_set()
        gate.open()


async def test_where_no_thread_is_to_be_had_reads_fail_until_there_is_one(reads: ReadThreads, starts: Starts) -> None:
    starts.is_out = True
    for _ in range(3):
        with pytest.raises(StorageError, match=r"prime\.db: can't start new thread"):
            await reads.run(reading(1))
    starts.is_out = False
    assert await reads.run(reading(1)) == 1
    await reads.finish()
