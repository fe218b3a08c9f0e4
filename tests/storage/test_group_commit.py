"""Those who write at the same time share a commit, and neither failures nor cancellation spread among them."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from prime_dht.errors import NotWrittenError
from prime_dht.storage.group_commit import GroupCommit

PATIENCE_S = 60.0


class Table:
    """A database of one table of unique numbers, which counts its commits."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self.connection.execute("CREATE TABLE numbers (number INTEGER UNIQUE)")
        self.commits = 0
        self.connection.set_trace_callback(self._count)
        self.group = GroupCommit(self.connection, Path("prime.db"))

    def _count(self, statement: str) -> None:
        self.commits += statement == "COMMIT"

    def numbers(self) -> list[int]:
        return [number for (number,) in self.connection.execute("SELECT number FROM numbers ORDER BY number")]

    async def add(self, number: int) -> int:
        return await self.group.run(inserting(number))


class Gate:
    """A write that says when it is being done and then waits to be let on."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._entered = threading.Event()
        self._leave = threading.Event()

    def __call__(self, connection: sqlite3.Connection) -> int:
        self._entered.set()
        assert self._leave.wait(PATIENCE_S)
        return inserting(self._number)(connection)

    async def entered(self) -> None:
        assert await trio.to_thread.run_sync(self._entered.wait, PATIENCE_S)

    def open(self) -> None:
        self._leave.set()


def inserting(number: int) -> Callable[[sqlite3.Connection], int]:
    def insert(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO numbers VALUES (?)", (number,))
        return number

    return insert


@pytest.fixture
def table() -> Iterator[Table]:
    table = Table()
    yield table
    table.connection.close()


async def test_writes_of_one_moment_share_one_commit_and_each_gets_its_own_result(table: Table) -> None:
    results: dict[int, int] = {}

    async def add(number: int) -> None:
        results[number] = await table.add(number)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(add, number)
    assert results == {number: number for number in range(20)}
    assert table.numbers() == list(range(20))
    assert table.commits == 1


async def test_those_who_come_during_a_commit_share_the_next(table: Table) -> None:
    gate = Gate(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(table.group.run, gate)
        await gate.entered()
        for number in range(1, 10):
            nursery.start_soon(table.add, number)
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
    assert table.numbers() == list(range(10))
    assert table.commits == 2


async def test_a_write_that_fails_fails_alone_and_leaves_nothing(table: Table) -> None:
    failures: list[str] = []

    def insert_two_then_fail(connection: sqlite3.Connection) -> None:
        inserting(100)(connection)
        inserting(100)(connection)

    async def fail() -> None:
        try:
            await table.group.run(insert_two_then_fail)
        except NotWrittenError as error:
            failures.append(str(error))

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(table.add, number)
        nursery.start_soon(fail)
        nursery.start_soon(table.add, 3)
    assert table.numbers() == [0, 1, 2, 3]
    assert failures == ["prime.db: UNIQUE constraint failed: numbers.number"]


async def test_a_write_cancelled_while_it_waits_is_withdrawn(table: Table) -> None:
    gate = Gate(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(table.group.run, gate)
        await gate.entered()
        async with trio.open_nursery() as waiting:
            waiting.start_soon(table.add, 1)
            await trio.testing.wait_all_tasks_blocked()
            waiting.cancel_scope.cancel()
        gate.open()
    await table.add(2)
    assert table.numbers() == [0, 2]


async def test_a_cancelled_leader_sees_the_others_writes_through(table: Table) -> None:
    gate = Gate(0)
    async with trio.open_nursery() as nursery, trio.open_nursery() as leading:
        leading.start_soon(table.group.run, gate)
        await gate.entered()
        nursery.start_soon(table.add, 1)
        await trio.testing.wait_all_tasks_blocked()
        leading.cancel_scope.cancel()
        gate.open()
    assert table.numbers() == [0, 1]


async def test_whoever_is_cancelled_while_its_write_is_committed_is_told_what_became_of_it(table: Table) -> None:
    gate = Gate(0)
    added: list[int] = []

    async def add(number: int) -> None:
        added.append(await table.add(number))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(table.group.run, gate)
        nursery.start_soon(add, 1)
        await gate.entered()
        nursery.start_soon(add, 2)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        gate.open()
    assert added == table.numbers()[1:] == [1]


async def test_where_no_thread_is_to_be_had_nothing_is_written_and_nobody_waits(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[str] = []

    def none_left(work: Callable[[], None], deliver: Callable[[object], None]) -> None:
        raise RuntimeError("can't start new thread")

    async def fail(number: int) -> None:
        with pytest.raises(NotWrittenError) as caught:
            await table.add(number)
        failures.append(str(caught.value))

    with monkeypatch.context() as patch:
        patch.setattr(trio.lowlevel, "start_thread_soon", none_left)
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(fail, number)
        await table.group.finish()
    assert failures == ["prime.db: can't start new thread"] * 3
    await table.add(3)
    assert table.numbers() == [3]


async def test_where_no_memory_is_to_be_had_for_a_transaction_nothing_is_written_and_nobody_waits() -> None:
    class Short(sqlite3.Connection):
        is_short = True

        def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
            if self.is_short and sql.startswith("BEGIN"):
                raise MemoryError
            return super().execute(sql, parameters)

    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, factory=Short)
    with closing(connection):
        group = GroupCommit(connection, Path("prime.db"))

        async def fail() -> None:
            with pytest.raises(NotWrittenError, match=r"prime\.db: there is no memory left"):
                await group.run(lambda _: None)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(fail)
        connection.is_short = False
        assert await group.run(lambda _: 1) == 1


async def test_whoever_is_cancelled_at_the_start_leaves_the_lead_to_the_other(table: Table) -> None:
    async def add_cancelled(number: int) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await table.add(number)

    # Often enough for each of the two to have been the first.
    for number in range(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(add_cancelled, -number - 1)
            nursery.start_soon(table.add, number)
    assert table.numbers() == list(range(20))


@pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit])
async def test_a_defect_in_a_write_surfaces_where_it_was_asked_for_and_nowhere_else(
    table: Table, kind: type[BaseException]
) -> None:
    outcomes: list[str] = []
    gate = Gate(0)

    def defect(connection: sqlite3.Connection) -> None:
        raise kind("a defect")

    async def run(write: Callable[[sqlite3.Connection], object]) -> None:
        try:
            await table.group.run(write)
        except kind as error:
            outcomes.append(repr(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(table.group.run, gate)
        await gate.entered()
        nursery.start_soon(run, inserting(1))
        nursery.start_soon(run, defect)
        nursery.start_soon(run, inserting(2))
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
    assert outcomes == [repr(kind("a defect"))]
    await table.add(3)
    assert table.numbers() == [0, 1, 2, 3]


async def test_all_who_wait_for_a_locked_database_have_failed_after_one_wait(tmp_path: Path) -> None:
    path = tmp_path / "prime.db"
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as other,
        closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)) as connection,
    ):
        begun: list[str] = []
        connection.set_trace_callback(begun.append)
        group = GroupCommit(connection, path)
        other.execute("BEGIN IMMEDIATE")
        failures: list[str] = []

        async def add(number: int) -> None:
            with pytest.raises(NotWrittenError) as caught:
                await group.run(inserting(number))
            failures.append(str(caught.value))

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(add, number)
        assert failures == [f"{path}: another program has locked it"] * 5
        assert begun == ["BEGIN IMMEDIATE"]


async def test_finishing_waits_for_every_write(table: Table) -> None:
    gate = Gate(0)
    finished = trio.Event()

    async def finish() -> None:
        await table.group.finish()
        finished.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(table.group.run, gate)
        await gate.entered()
        nursery.start_soon(table.add, 1)
        nursery.start_soon(finish)
        await trio.testing.wait_all_tasks_blocked()
        assert not finished.is_set()
        gate.open()
    assert table.numbers() == [0, 1]
