"""The database file: made, opened, checked, migrated and closed. Everything here blocks.

A store is one SQLite file in WAL mode; while it is open there are a journal (``-wal``), its index (``-shm``) and a lock
(``.lock``) beside it. All of them are readable by their owner alone.

- **One process.** The lock is a ``flock`` that the kernel releases when its holder dies, however it dies.
- **Complete or not there.** A new file is made under another name, synced, and renamed. So a file that is empty or
  shorter than it says was damaged, and is refused: nothing here deletes or replaces a store.
- **Versions.** ``application_id`` says that the file is ours, ``user_version`` how many of :data:`MIGRATIONS` it has
  seen. A file from a newer version is refused as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prime_dht.errors import StorageError

Synchronous = Literal["FULL", "NORMAL"]
"""When a commit reaches the disk. ``FULL`` waits for it: what was acknowledged survives a loss of power. ``NORMAL``
leaves it to the operating system: what was acknowledged survives the death of the process, but a loss of power may undo
the latest of it.
"""

APPLICATION_ID = int.from_bytes(b"PDHT", "big")
PAGE_BYTES = 8192
"""An entry of 1 KiB takes a sixth less disk than with 4,096, and no longer to write or read."""

CACHE_KIB = 16 * 1024
JOURNAL_LIMIT_BYTES = 64 << 20
BUSY_TIMEOUT_S = 5.0

MIGRATIONS: tuple[str, ...] = (
    # 1. Values lie apart from their entries: a row that shrinks keeps its page, one that is deleted gives it back, and
    # what is searched for is not spread among them. `totals` has one row, which the triggers keep.
    """
    CREATE TABLE entries (
        id INTEGER PRIMARY KEY,
        location INTEGER NOT NULL,           -- the top 32 bits of the kad key
        created_at_us INTEGER NOT NULL,
        expires_at_us INTEGER NOT NULL,
        retain_until_us INTEGER NOT NULL,
        is_tombstone INTEGER NOT NULL,
        op_id BLOB NOT NULL,
        key BLOB NOT NULL,
        publisher BLOB NOT NULL,
        subkey BLOB NOT NULL,
        envelope BLOB NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX entries_by_slot ON entries (key, publisher, subkey);
    CREATE UNIQUE INDEX entries_by_op_id ON entries (op_id);
    CREATE INDEX entries_by_location ON entries (location, created_at_us, op_id);
    CREATE INDEX entries_by_retention ON entries (retain_until_us);

    CREATE TABLE inline_values (
        id INTEGER PRIMARY KEY,              -- of the entry
        expires_at_us INTEGER NOT NULL,      -- as the entry says
        value BLOB NOT NULL
    ) STRICT;
    CREATE INDEX inline_values_by_expiry ON inline_values (expires_at_us);

    CREATE TABLE totals (keys INTEGER NOT NULL, entries INTEGER NOT NULL, bytes INTEGER NOT NULL) STRICT;
    INSERT INTO totals VALUES (0, 0, 0);
    CREATE TRIGGER entry_inserted AFTER INSERT ON entries BEGIN
        UPDATE totals SET
            keys = keys + NOT EXISTS (SELECT 1 FROM entries WHERE key = NEW.key AND id <> NEW.id),
            entries = entries + 1,
            bytes = bytes + length(NEW.envelope);
    END;
    CREATE TRIGGER entry_deleted AFTER DELETE ON entries BEGIN
        DELETE FROM inline_values WHERE id = OLD.id;
        UPDATE totals SET
            keys = keys - NOT EXISTS (SELECT 1 FROM entries WHERE key = OLD.key),
            entries = entries - 1,
            bytes = bytes - length(OLD.envelope);
    END;
    CREATE TRIGGER value_inserted AFTER INSERT ON inline_values BEGIN
        UPDATE totals SET bytes = bytes + length(NEW.value);
    END;
    CREATE TRIGGER value_deleted AFTER DELETE ON inline_values BEGIN
        UPDATE totals SET bytes = bytes - length(OLD.value);
    END;

    CREATE TABLE records (
        key BLOB PRIMARY KEY,
        value BLOB NOT NULL,
        received_at_us INTEGER NOT NULL,
        expires_at_us INTEGER NOT NULL,
        publisher BLOB
    ) STRICT;
    CREATE INDEX records_by_expiry ON records (expires_at_us);

    CREATE TABLE providers (
        multihash BLOB NOT NULL,
        provider BLOB NOT NULL,
        addresses BLOB NOT NULL,             -- each preceded by its length, 4 bytes, big-endian
        expires_at_us INTEGER NOT NULL,
        PRIMARY KEY (multihash, provider)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX providers_by_expiry ON providers (expires_at_us);

    CREATE TABLE peers (
        peer BLOB PRIMARY KEY,
        addresses BLOB NOT NULL,
        source TEXT NOT NULL,
        first_seen_us INTEGER NOT NULL,
        last_seen_us INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX peers_by_last_seen ON peers (last_seen_us);

    CREATE TABLE own_slots (
        key BLOB NOT NULL,
        publisher BLOB NOT NULL,
        subkey BLOB NOT NULL,
        created_at_us INTEGER NOT NULL,
        retain_until_us INTEGER NOT NULL,
        PRIMARY KEY (key, publisher, subkey)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
    """,
)


_MEANINGS = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_NOTADB: "damaged, or not a store of prime_dht; it was left as it is",
    sqlite3.SQLITE_CORRUPT: "damaged; it was left as it is",
    sqlite3.SQLITE_READONLY: "it cannot be written",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
    sqlite3.SQLITE_BUSY: "another program has locked it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenDatabase:
    """An open store: the connection that writes, the one that reads, and what is to be closed after them."""

    path: Path
    writer: sqlite3.Connection
    reader: sqlite3.Connection
    resources: contextlib.ExitStack

    def close(self) -> None:
        """Bring the journal into the file, close both, and let go of the lock."""
        with translation(self.path), self.resources:
            _empty_journal(self.writer)


def open_database(path: Path, *, synchronous: Synchronous) -> OpenDatabase:
    """Open the store at ``path``, or make one there.

    Raises:
        StorageError: another process has it open, it or its directory cannot be written, it is damaged, not a store, or
            of a newer version.
    """
    with translation(path), contextlib.ExitStack() as resources:
        _lock(path, resources)
        if not path.exists():
            _create(path)
        elif path.stat().st_size == 0:
            raise StorageError(f"{path}: damaged, it is empty; it was left as it is")
        writer = _connect(path, resources)
        _check_version(writer, path)
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute(f"PRAGMA synchronous = {synchronous}")
        writer.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        writer.execute(f"PRAGMA journal_size_limit = {JOURNAL_LIMIT_BYTES}")
        _empty_journal(writer)
        _migrate(writer)
        reader = _connect(path, resources)
        reader.execute("PRAGMA query_only = ON")
        return OpenDatabase(path=path, writer=writer, reader=reader, resources=resources.pop_all())


@contextlib.contextmanager
def translation(path: Path) -> Generator[None]:
    """Turn the errors of SQLite and of the file system into :class:`~prime_dht.errors.StorageError`."""
    try:
        yield
    except (sqlite3.Error, OverflowError, OSError) as error:
        raise storage_error(path, error) from error


def storage_error(path: Path, error: BaseException) -> StorageError:
    """What went wrong with the store, in one line."""
    match error:
        case sqlite3.Error():
            # The low byte is the primary code; errors of the sqlite3 module itself have none.
            meaning = _MEANINGS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, str(error))
        case OSError(strerror=str(strerror)):
            meaning = strerror
        case _:
            meaning = str(error)
    return StorageError(f"{path}: {meaning}")


def _lock(path: Path, resources: contextlib.ExitStack) -> None:
    descriptor = os.open(_beside(path, ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    resources.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StorageError(f"{path}: another process has it open") from error


def _create(path: Path) -> None:
    journal = _beside(path, "-wal")
    if journal.exists():
        # SQLite would play it back into the new file.
        raise StorageError(f"{path}: it is gone, but {journal.name} is there; move that away to start afresh")
    new = _beside(path, ".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = MEMORY")
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            _migrate(connection)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _connect(path: Path, resources: contextlib.ExitStack) -> sqlite3.Connection:
    # Each connection is used by one thread at a time, but not always by the same one.
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    resources.callback(connection.close)
    return connection


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    if _pragma(connection, "application_id") != APPLICATION_ID:
        raise StorageError(f"{path}: not a store of prime_dht; it was left as it is")
    version = _pragma(connection, "user_version")
    if version > len(MIGRATIONS):
        raise StorageError(
            f"{path}: written by a newer prime_dht (schema {version}; this one knows {len(MIGRATIONS)}); left as it is"
        )


def _migrate(connection: sqlite3.Connection) -> None:
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
