"""The database file: made, opened, checked, migrated and closed. Everything here blocks.

A store is one SQLite file in WAL mode; while it is open there are a journal (``-wal``), its index (``-shm``) and a lock
(``.lock``) beside it. All of them are readable by their owner alone.

- **One process.** The lock is a ``flock`` that the kernel releases when its holder dies, however it dies: a child that
  Python forked lets go of it at once, so none keeps it for a parent that is dead.
- **Complete or not there.** A new file is made under another name, synced, and renamed. So a file that is empty or
  shorter than it says was damaged.
- **Never silently empty.** A damaged file is moved aside, with its journal, and opening fails. As long as it lies there
  no other is made in its place: whoever runs the node puts a backup there, or moves the damaged one elsewhere and so
  says that the node may start afresh. Nothing here deletes or replaces a store.
- **Versions.** ``application_id`` says that the file is ours, ``user_version`` how many of the migrations it has seen
  (:mod:`prime_dht.storage.sqlite_schema`). A file from a newer version is refused as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import sqlite3
from collections.abc import Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from prime_dht.durability import sync_path
from prime_dht.errors import StorageError
from prime_dht.storage.capacity import location_of
from prime_dht.storage.sqlite_schema import APPLICATION_ID, MIGRATIONS

Synchronous = Literal["FULL", "NORMAL"]
"""When a commit reaches the disk. ``FULL`` waits for it: what was acknowledged survives a loss of power. ``NORMAL``
leaves it to the operating system: what was acknowledged survives the death of the process, but a loss of power may undo
the latest of it.
"""

PAGE_BYTES = 4096
"""Of a new store; one that is there keeps what it has. A put changes a dozen pages, and each goes into the journal as a
whole: with 8,192 bytes that is twice as much, and a value of 4 KiB would have a page for itself."""

CACHE_KIB = 16 * 1024
JOURNAL_LIMIT_BYTES = 64 << 20
READERS = 3
"""Connections that read at the same time: a long read, such as the scan at start, leaves two for the others."""

BUSY_TIMEOUT_S = 5.0

DAMAGED = ".corrupt-"
"""Between the name of a store that was moved aside and the time, UTC."""

_MEANINGS = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR_SHMSIZE: "the disk is full",  # what opening a store asks a full one for first
    sqlite3.SQLITE_NOTADB: "damaged, or not a database",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_READONLY: "it cannot be written",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
    sqlite3.SQLITE_BUSY: "another program has locked it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenDatabase:
    """An open store: the connection that writes, those that read, and what is to be closed after them."""

    path: Path
    writer: sqlite3.Connection
    readers: tuple[sqlite3.Connection, ...]
    resources: contextlib.ExitStack

    def close(self) -> None:
        """Bring the journal into the file, close all, and let go of the lock."""
        # A journal for which the file has no room stays, and is played back when the store is next opened.
        with translation(self.path), self.resources, contextlib.suppress(sqlite3.OperationalError):
            _empty_journal(self.writer)


def open_database(path: Path, *, synchronous: Synchronous) -> OpenDatabase:
    """Open the store at ``path``, or make one there.

    Raises:
        StorageError: another process has it open, it or its directory cannot be written, it is damaged and was moved
            aside, it is not a store, or of a newer version.
    """
    with translation(path), contextlib.ExitStack() as resources:
        lock(path, resources)
        _remove_journal_of_damaged(path)
        if not path.exists():
            _create(path)
        if path.stat().st_size == 0:
            raise _moved_aside(path, "damaged, it is empty")
        for is_last in (False, True):
            try:
                writer, readers = _open_file(path, synchronous, resources)
                break
            except sqlite3.DatabaseError as error:
                # SQLite says the same of what the disk could not read, and often a disk can when it is asked again.
                if not is_damage(error):
                    raise
                if is_last:
                    raise _moved_aside(path, _meaning(error)) from error
        return OpenDatabase(path=path, writer=writer, readers=readers, resources=resources.pop_all())


def open_for_inspection(path: Path, resources: contextlib.ExitStack) -> sqlite3.Connection:
    """A connection to a store that nobody has open, for whoever wants to look at it, whatever its state is.

    Nothing is made, migrated or moved aside; only a journal that was left over is played back.

    Raises:
        StorageError: there is none, another process has it open, it is no store, or not of this version.
        sqlite3.DatabaseError: it is damaged.
    """
    if not path.exists():
        raise StorageError(f"{path}: there is no store")
    lock(path, resources)
    _remove_journal_of_damaged(path)
    if path.stat().st_size == 0:
        # SQLite takes that for a new database, but no store was ever empty.
        raise StorageError(f"{path}: damaged, it is empty")
    _check_before_journal(path)
    connection = _connect(path, resources)
    connection.execute("PRAGMA query_only = ON")
    version = _check_version(connection, path)
    if version < len(MIGRATIONS):
        raise StorageError(f"{path}: of schema {version}; a node that opens it brings it to {len(MIGRATIONS)}")
    return connection


@contextlib.contextmanager
def translation(path: Path) -> Generator[None]:
    """Turn the errors of SQLite and of the file system into :class:`~prime_dht.errors.StorageError`."""
    try:
        yield
    except (sqlite3.Error, OverflowError, OSError) as error:
        raise storage_error(path, error) from error


@contextlib.contextmanager
def snapshot(connection: sqlite3.Connection) -> Generator[None]:
    """Let all statements within see the store as the first of them does."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        # Not after errors on which SQLite has ended it by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def journal_of(path: Path) -> Path:
    """Where the journal of a store lies; it is there while the store is open, and after its process was killed."""
    return _beside(path, "-wal")


def storage_error(path: Path, error: BaseException, kind: type[StorageError] = StorageError) -> StorageError:
    """What went wrong with the store, in one line."""
    return kind(f"{path}: {_meaning(error)}")


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file is no database, or no longer a whole one."""
    return _primary_code(error) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def _meaning(error: BaseException) -> str:
    match error:
        case sqlite3.Error():
            return _MEANINGS.get(_code(error)) or _MEANINGS.get(_primary_code(error), str(error))
        case OSError(strerror=str(strerror)):
            return strerror
        case MemoryError():
            return "there is no memory left"
        case _:
            return str(error)


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0))  # errors of the sqlite3 module itself have none


def _primary_code(error: sqlite3.Error) -> int:
    return _code(error) & 0xFF


def lock(path: Path, resources: contextlib.ExitStack) -> None:
    """Let no other process open ``path`` until the resources are closed, or this process ends.

    Raises:
        StorageError: another process has it open.
    """
    key = object()
    descriptor = _lock_files[key] = os.open(_beside(path, ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    resources.callback(_unlock, key)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StorageError(f"{path}: another process has it open") from error


_lock_files: dict[object, int] = {}
"""The descriptors of the lock files that this process has open. A forked child shares them, and with them the locks."""


def _unlock(key: object) -> None:
    descriptor = _lock_files.pop(key, None)
    if descriptor is None:  # this is a forked child, and the lock its parent's
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child may be about to close it, or was not forked by Python
    finally:
        os.close(descriptor)


def _leave_locks_to_parent() -> None:
    """In a forked child: close the lock files, but not unlock them, which would be for the parent too."""
    while _lock_files:
        _, descriptor = _lock_files.popitem()
        os.close(descriptor)


os.register_at_fork(after_in_child=_leave_locks_to_parent)


def _create(path: Path) -> None:
    # SQLite would play back the journal into the new file. A damaged store is not to be forgotten.
    for left in sorted(path.parent.iterdir()):
        if left.name.startswith((path.name + "-wal", path.name + DAMAGED)):
            raise StorageError(f"{path}: it is gone, but {left.name} is there; move that away to start afresh")
    new = _beside(path, ".new")
    new.unlink(missing_ok=True)
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = MEMORY")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        _migrate(connection)
    new.rename(path)
    sync_path(path.parent)


def _open_file(
    path: Path, synchronous: Synchronous, resources: contextlib.ExitStack
) -> tuple[sqlite3.Connection, tuple[sqlite3.Connection, ...]]:
    """The connection that writes and those that read."""
    _check_before_journal(path)
    with contextlib.ExitStack() as connections:
        writer = _connect(path, connections)
        _check_version(writer, path)
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute(f"PRAGMA synchronous = {synchronous}")
        writer.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        writer.execute(f"PRAGMA journal_size_limit = {JOURNAL_LIMIT_BYTES}")
        _empty_journal(writer)
        _migrate(writer)
        readers = tuple(_connect(path, connections) for _ in range(READERS))
        for reader in readers:
            reader.execute("PRAGMA query_only = ON")
        resources.push(connections.pop_all())
        return writer, readers


def _moved_aside(path: Path, damage: str) -> StorageError:
    """Give a damaged store and its journal another name; returns the error that says so."""
    aside = _beside(path, f"{DAMAGED}{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    journal, its_journal = journal_of(path), journal_of(aside)
    if journal.exists():
        with contextlib.suppress(OSError):  # not every file system can
            os.link(journal, its_journal)  # so that it is known for another's, if this ends before it is removed
    path.rename(aside)  # before its journal: without that it could be taken for whole
    if journal.exists() and not its_journal.exists():
        journal.rename(its_journal)
    _remove_journal_of_damaged(path)
    _beside(path, "-shm").unlink(missing_ok=True)
    return StorageError(
        f"{path}: {damage}; it was moved to {aside.name}: put a backup in its place, or move it away to start afresh"
    )


def _remove_journal_of_damaged(path: Path) -> None:
    """Remove the journal at a store's place that a damaged one moved aside has too: a backup must not meet it."""
    journal = journal_of(path)
    for its_journal in path.parent.glob(f"{glob.escape(path.name + DAMAGED)}*-wal"):
        is_aside = its_journal.with_name(its_journal.name.removesuffix("-wal")).exists()
        if is_aside and journal.exists() and journal.samefile(its_journal):
            journal.unlink()


def _check_before_journal(path: Path) -> None:
    """As :func:`_check_version`, but whatever it raises, the file and its journal stay as they are.

    A connection that can write plays the journal into the file when it is closed, even if the file is damaged. Whether
    it is, SQLite has to say: a first page that was ruined while the journal was played in is whole in the journal.
    """
    if journal_of(path).exists():
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S)) as connection:
            _check_version(connection, path)


def _connect(path: Path, resources: contextlib.ExitStack) -> sqlite3.Connection:
    # Each connection is used by one thread at a time, but not always by the same one.
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    resources.callback(connection.close)
    return connection


def _check_version(connection: sqlite3.Connection, path: Path) -> int:
    """The version of a store.

    Raises:
        StorageError: it is no store, or newer than this code.
        sqlite3.DatabaseError: it is damaged.
    """
    if _pragma(connection, "application_id") != APPLICATION_ID:
        raise StorageError(f"{path}: not a store of prime_dht; it was left as it is")
    version = _pragma(connection, "user_version")
    if version > len(MIGRATIONS):
        raise StorageError(
            f"{path}: written by a newer prime_dht (schema {version}; this one knows {len(MIGRATIONS)}); left as it is"
        )
    return version


def _migrate(connection: sqlite3.Connection) -> None:
    connection.create_function("location_of", 1, location_of, deterministic=True)
    seen = _pragma(connection, "user_version")
    for version, script in enumerate(MIGRATIONS[seen:], seen + 1):
        connection.executescript(f"BEGIN; {script} PRAGMA user_version = {version}; COMMIT;")


def _empty_journal(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
