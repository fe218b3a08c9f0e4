"""A store whose node does not run: what is in it, whether it is sound, and how it is carried elsewhere.

These are the functions behind ``prime-dht store``. Each takes the path of the database file and holds its lock for as
long as it works, so none runs beside a node.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Generator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import trio

from prime_dht.entries.admission import AdmissionRules
from prime_dht.entries.lifetime import UNIT_US
from prime_dht.entries.limits import DEFAULT_LIMITS, Limits
from prime_dht.errors import StorageError
from prime_dht.storage import dump
from prime_dht.storage.base import OpArrays, StoreStats
from prime_dht.storage.capacity import Capacity
from prime_dht.storage.dump import Progress
from prime_dht.storage.sqlite import SQLiteBackend
from prime_dht.storage.sqlite_check import CheckReport, examine
from prime_dht.storage.sqlite_file import is_damage, journal_of, open_for_inspection, storage_error, translation
from prime_dht.storage.sqlite_reads import scan_ops, stats

OPS_IN_PAGE = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreInfo:
    """What is in a store.

    Attributes:
        schema: its version.
        file_bytes, free_bytes: how large the database file is, and how much of that is free.
        journal_bytes: how large the journal is that a node left which was killed; the next one brings it into the file.
        publishers: how many have an entry in it.
        stats: the other counts.
    """

    schema: int
    file_bytes: int
    free_bytes: int
    journal_bytes: int
    publishers: int
    stats: StoreStats


async def describe(path: Path) -> StoreInfo:
    """Counts and sizes of a store.

    Raises:
        StorageError: there is none, another process has it open, it is damaged, or of another version.
    """
    with translation(path), ExitStack() as resources:
        return await trio.to_thread.run_sync(_describe, path, resources)


async def check(path: Path, *, progress: Progress | None = None) -> CheckReport:
    """Whether a store is sound. Nothing is changed, moved or repaired; damage is reported, not raised.

    Raises:
        StorageError: there is none, another process has it open, it is no store, or of another version.
    """
    done = 0
    with translation(path), ExitStack() as resources:
        try:
            examination = examine(await trio.to_thread.run_sync(open_for_inspection, path, resources))
            while not isinstance(step := await trio.to_thread.run_sync(_next, examination), CheckReport):
                done, total = step
                if progress is not None:
                    progress(done, total)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            return CheckReport(entries=done, problems=(str(storage_error(path, error)),))
        return step


async def ops(path: Path) -> AsyncIterator[OpArrays]:
    """All ops of a store, in pages. Nothing is changed.

    Raises:
        StorageError: there is none, another process has it open, it is damaged, or of another version.
    """
    with translation(path), ExitStack() as resources:
        connection = await trio.to_thread.run_sync(open_for_inspection, path, resources)
        cursor = b""
        while True:
            page = await trio.to_thread.run_sync(scan_ops, connection, cursor, OPS_IN_PAGE)
            yield page
            if not (cursor := page.next_cursor):
                return


async def export(
    path: Path, file: BinaryIO, *, now_us: int, entries_only: bool = False, progress: Progress | None = None
) -> int:
    """Write what a store holds to a file; see :func:`prime_dht.storage.dump.export`.

    Raises:
        StorageError: there is no store, or it cannot be opened or read.
    """
    if not await trio.Path(path).exists():
        raise StorageError(f"{path}: there is no store")
    async with await SQLiteBackend.open(path) as store:
        return await dump.export(store, file, now_us=now_us, entries_only=entries_only, progress=progress)


async def import_(
    path: Path,
    file: BinaryIO,
    *,
    now_us: int,
    limits: Limits = DEFAULT_LIMITS,
    unit_us: int = UNIT_US,
    entries_only: bool = False,
    progress: Progress | None = None,
) -> dump.ImportReport:
    """Read such a file into a store, which is made if there is none; see :func:`prime_dht.storage.dump.import_`.

    Args:
        limits: of the node whose store it is: for each entry, and for all that the store holds.
        unit_us: its network's.

    Raises:
        StorageError: the store cannot be opened or written.
        ValidationError: the file is no dump; then no store is made.
    """
    begun = await dump.begin(file)
    rules = AdmissionRules(network_id=begun.header.network or "", limits=limits, unit_us=unit_us)
    async with await SQLiteBackend.open(path, capacity=Capacity(limits=limits)) as store:
        return await dump.finish(begun, store, now_us=now_us, rules=rules, entries_only=entries_only, progress=progress)


def _describe(path: Path, resources: ExitStack) -> StoreInfo:
    connection = open_for_inspection(path, resources)
    journal = journal_of(path)
    schema, free_pages, page_bytes, publishers = (
        int(connection.execute(query).fetchone()[0])
        for query in (
            "PRAGMA user_version",
            "PRAGMA freelist_count",
            "PRAGMA page_size",
            "SELECT count(*) FROM publishers",
        )
    )
    return StoreInfo(
        schema=schema,
        file_bytes=path.stat().st_size,
        free_bytes=free_pages * page_bytes,
        journal_bytes=journal.stat().st_size if journal.exists() else 0,
        publishers=publishers,
        stats=stats(connection),
    )


def _next(examination: Generator[tuple[int, int], None, CheckReport]) -> tuple[int, int] | CheckReport:
    """The next step, or the report that comes after the last."""
    try:
        return next(examination)
    except StopIteration as end:
        report: CheckReport = end.value
        return report
