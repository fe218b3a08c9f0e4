"""The index of a block store: which blocks there are, which roots use them, and who claims the roots. It blocks.

One SQLite database. It, and not the file system, says whether a block is there. What belongs together changes in one
transaction, so after a crash it is as it was before a call or as it is after. After a loss of power it may be as it was
some calls before, but not before the last one that asked for more. Counts are kept by triggers, which cannot forget
one.

- ``blocks``: a block, how many roots use it, and whether it would survive a loss of power.
- ``roots``: a root has a CID; or it is a *draft*, whose CID is not known yet; or neither, and then it is *dropped*: it
  goes, page by page, and with it what it alone uses.
- ``uses``: root by root, the blocks it uses.
- ``claims``: why a root is kept.
- ``state``: whether a store has it open, or had when its process died.
- ``lost``: blocks that were forgotten, and have not come again, of the roots that used them. It goes with the
  connection, as do those who rely on a root having what they once brought.
"""

from __future__ import annotations

import contextlib
import sqlite3
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prime_dht.blobs.cid import DIGEST_BYTES
from prime_dht.errors import StorageError
from prime_dht.storage.sqlite_file import BUSY_TIMEOUT_S, CACHE_KIB, is_damage, storage_error

APPLICATION_ID = int.from_bytes(b"PDHB", "big")
VERSION = 1
UNMADE = (0, 0)
IN_MEMORY = ":memory:"
AT_ONCE = 500
"""Digests in one query; SQLite takes 999 parameters at least."""

_SCHEMA = """
    CREATE TABLE blocks (
        digest BLOB PRIMARY KEY,
        size_bytes INTEGER NOT NULL,
        uses INTEGER NOT NULL DEFAULT 0,
        is_synced INTEGER NOT NULL DEFAULT 0
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX unused_blocks ON blocks (digest) WHERE uses = 0;
    CREATE INDEX unsynced_blocks ON blocks (digest) WHERE is_synced = 0;
    CREATE TABLE roots (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        cid BLOB UNIQUE,
        is_draft INTEGER NOT NULL,
        is_complete INTEGER NOT NULL DEFAULT 0,
        size_bytes INTEGER NOT NULL DEFAULT 0,     -- as declared
        present_blocks INTEGER NOT NULL DEFAULT 0,
        present_bytes INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX dropped_roots ON roots (id) WHERE cid IS NULL AND NOT is_draft;
    CREATE INDEX partial_roots ON roots (id) WHERE cid IS NOT NULL AND NOT is_complete;
    CREATE TABLE uses (root INTEGER, digest BLOB, PRIMARY KEY (root, digest)) STRICT, WITHOUT ROWID;
    CREATE TABLE claims (
        root INTEGER, owner BLOB, label BLOB, PRIMARY KEY (root, owner, label)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE state (is_open INTEGER NOT NULL) STRICT;
    INSERT INTO state VALUES (0);
    CREATE TRIGGER use_began AFTER INSERT ON uses BEGIN
        UPDATE blocks SET uses = uses + 1 WHERE digest = NEW.digest;
        UPDATE roots SET
            present_blocks = present_blocks + 1,
            present_bytes = present_bytes + (SELECT size_bytes FROM blocks WHERE digest = NEW.digest)
            WHERE id = NEW.root;
    END;
    CREATE TRIGGER use_ended AFTER DELETE ON uses BEGIN
        UPDATE roots SET
            present_blocks = present_blocks - 1,
            present_bytes = present_bytes - (SELECT size_bytes FROM blocks WHERE digest = OLD.digest)
            WHERE id = OLD.root;
        UPDATE blocks SET uses = uses - 1 WHERE digest = OLD.digest;
    END;
    CREATE TRIGGER claim_ended AFTER DELETE ON claims
        WHEN NOT EXISTS (SELECT 1 FROM claims WHERE root = OLD.root) BEGIN
        UPDATE roots SET cid = NULL WHERE id = OLD.root;
    END;
"""

_SCHEMA_OF_CONNECTION = """
    CREATE TEMP TABLE lost (root INTEGER, digest BLOB, PRIMARY KEY (root, digest)) STRICT, WITHOUT ROWID;
    CREATE TEMP TRIGGER lost_came AFTER INSERT ON main.uses BEGIN
        DELETE FROM lost WHERE root = NEW.root AND digest = NEW.digest;
    END;
    CREATE TEMP TRIGGER root_gone AFTER DELETE ON main.roots BEGIN
        DELETE FROM lost WHERE root = OLD.id;
    END;
"""

_ROOT = "SELECT id, cid, size_bytes, present_blocks, present_bytes, is_complete FROM roots"


class LostBlocksError(StorageError):
    """A root is not complete: blocks that were brought for it are not there any more, or need not be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RootRow:
    """A root that is claimed."""

    id: int
    cid: bytes
    size_bytes: int
    present_blocks: int
    present_bytes: int
    is_complete: bool


class BlockIndex:
    """One connection, used by one thread at a time. Each method is to be called within :meth:`transaction`."""

    def __init__(self, path: str, *, has_blocks: bool = False) -> None:
        """Open the index in a file, or make one there; :data:`IN_MEMORY` makes one in memory.

        Args:
            has_blocks: there are blocks beside it, so that there was one: none is made.

        Raises:
            StorageError: it is damaged or gone, of another version, or no index of blocks.
            sqlite3.Error: it cannot be read.
        """
        self._is_synchronous: bool | None = None
        self._path = path
        if has_blocks and is_nothing(Path(path)):
            raise lost_index(Path(path))
        with contextlib.ExitStack() as failing, self._damage_named():
            self._connection = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            failing.callback(self._connection.close)
            found = versions_of(self._connection)
            if found == UNMADE and has_blocks:
                raise lost_index(Path(path))
            if path == IN_MEMORY:  # SQLite begins with 20 pages, of 4 KiB if it is left to it
                # From Python 3.13 on SQLite warns where nobody does. Not at exit: a node may still be using it.
                weakref.finalize(self, self._connection.close).atexit = False
                self._connection.execute("PRAGMA page_size = 1024")
                self._connection.execute("PRAGMA temp.page_size = 1024")
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA temp_store = MEMORY")
            self._connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            if found == UNMADE:
                versions = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};"
                self._connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} {versions} COMMIT;")
            elif found != (APPLICATION_ID, VERSION):
                raise StorageError(f"{path}: not an index of blocks, or not of version {VERSION}; left as it is")
            self._connection.executescript(_SCHEMA_OF_CONNECTION)
            failing.pop_all()

    def close(self) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def transaction(self, *, is_synced: bool = False) -> Generator[None]:
        """All or nothing of what is done within; with ``is_synced``, that and all before survives a loss of power."""
        with self._damage_named():
            if is_synced != self._is_synchronous:
                self._connection.execute(f"PRAGMA synchronous = {'FULL' if is_synced else 'NORMAL'}")
                self._is_synchronous = is_synced
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:  # whatever it is, no transaction stays open
                if self._connection.in_transaction:  # SQLite ends it by itself on some errors
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def part(self) -> Generator[None]:
        """All or nothing of what is done within, whatever becomes of the rest of the transaction."""
        self._connection.execute("SAVEPOINT part")
        try:
            yield
        except BaseException:  # whatever it is, nothing of it stays
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK TO part")
                self._connection.execute("RELEASE part")
            raise
        self._connection.execute("RELEASE part")

    @contextlib.contextmanager
    def _damage_named(self) -> Generator[None]:
        """Say what to do about a damaged index. It alone knows what is pinned, so nothing here makes another instead.

        Nor when it was moved away: files that a new one does not know would be removed at a recovery.
        """
        try:
            yield
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            raise StorageError(f"{storage_error(Path(self._path), error)}: {_REMEDY}") from error

    def begin(self) -> bool:
        """A store opens it; returns whether the last one closed it."""
        was_open = self._number("SELECT is_open FROM state")
        self._connection.execute("UPDATE state SET is_open = 1")
        return not was_open

    def end(self, *, is_tidy: bool) -> None:
        """The store closes it, so that no draft is settled any more; if it is tidy, its files are as this says."""
        self.drop_draft()
        self._connection.execute("UPDATE state SET is_open = ?", (not is_tidy,))

    # Blocks

    def taken(self) -> tuple[int, int]:
        """How many blocks there are, and how many bytes."""
        count, size = self._connection.execute("SELECT count(*), total(size_bytes) FROM blocks").fetchone()
        return count, int(size)

    def present(self, digests: Sequence[bytes]) -> set[bytes]:
        """Those of these that are there."""
        found: set[bytes] = set()
        for some, marks in _chunks(digests):
            rows = self._connection.execute(f"SELECT digest FROM blocks WHERE digest IN ({marks})", some)  # noqa: S608
            found.update(digest for (digest,) in rows)
        return found

    def digests(self, first: int) -> set[bytes]:
        """Those of all blocks whose digest has this first byte."""
        rows = self._connection.execute("SELECT digest FROM blocks WHERE digest >= ? AND digest < ?", _range(first))
        return {digest for (digest,) in rows}

    def add(self, sizes: Mapping[bytes, int]) -> None:
        """Blocks of these digests and sizes in bytes are there from now on; they were not before."""
        self._connection.executemany("INSERT INTO blocks (digest, size_bytes) VALUES (?, ?)", sizes.items())

    def use(self, root: int, digests: Iterable[bytes]) -> None:
        """A root uses these blocks, all of which are there."""
        self._connection.executemany("INSERT OR IGNORE INTO uses VALUES (?, ?)", ((root, digest) for digest in digests))

    def forget(self, digests: Sequence[bytes]) -> list[int]:
        """Blocks turned out not to be there, or damaged; returns their sizes in bytes, of those that were known.

        Roots that use them are no longer complete, nor whole until they come again. This reads all of ``uses``: it is
        for accidents.
        """
        sizes: list[int] = []
        for some, marks in _chunks(digests):
            affected = f"SELECT root FROM uses WHERE digest IN ({marks})"  # noqa: S608 - question marks
            self._connection.execute(f"UPDATE roots SET is_complete = 0 WHERE id IN ({affected})", some)  # noqa: S608
            self._connection.execute(
                f"INSERT OR IGNORE INTO lost SELECT root, digest FROM uses WHERE digest IN ({marks})",  # noqa: S608
                some,
            )
            self._connection.execute(f"DELETE FROM uses WHERE digest IN ({marks})", some)  # noqa: S608
            rows = self._connection.execute(
                f"DELETE FROM blocks WHERE digest IN ({marks}) RETURNING size_bytes",  # noqa: S608
                some,
            )
            sizes += (size for (size,) in rows)
        return sizes

    def unsynced(self) -> dict[bytes, int]:
        """Blocks that a loss of power might damage, and their sizes in bytes."""
        return dict(self._connection.execute("SELECT digest, size_bytes FROM blocks WHERE is_synced = 0"))

    def synced(self, digests: Iterable[bytes]) -> None:
        """These blocks are safe from a loss of power."""
        self._connection.executemany(
            "UPDATE blocks SET is_synced = 1 WHERE digest = ?", ((digest,) for digest in digests)
        )

    # Roots

    def draft(self) -> int:
        """A new draft; returns its id."""
        cursor = self._connection.execute("INSERT INTO roots (is_draft) VALUES (1) RETURNING id")
        return int(cursor.fetchone()[0])

    def drop_draft(self, root: int | None = None) -> None:
        """Drop a draft, or all of them, that were not settled."""
        self._connection.execute("UPDATE roots SET is_draft = 0 WHERE is_draft AND coalesce(id = ?, 1)", (root,))

    def settle(self, draft: int, cid: bytes, size_bytes: int) -> None:
        """A draft is the complete root of this CID; if there was one, this takes its place and its claims.

        Raises:
            LostBlocksError: blocks of it are lost.
        """
        self._check_whole(draft)
        known = self.root(cid)
        if known is not None:
            self._connection.execute("UPDATE claims SET root = ? WHERE root = ?", (draft, known.id))
            self._connection.execute("UPDATE roots SET cid = NULL WHERE id = ?", (known.id,))
        self._connection.execute(
            "UPDATE roots SET cid = ?, is_draft = 0, is_complete = 1, size_bytes = ? WHERE id = ?",
            (cid, size_bytes, draft),
        )

    def root(self, cid: bytes) -> RootRow | None:
        """The root of this CID, if it is claimed."""
        row = self._connection.execute(f"{_ROOT} WHERE cid = ?", (cid,)).fetchone()
        return None if row is None else _root_row(row)

    def roots(self, after: bytes, limit: int, *, is_partial: bool = False) -> list[RootRow]:
        """The next roots that are claimed, in the order of their CIDs' bytes, behind ``after``; or the partial ones."""
        which = "AND NOT is_complete " * is_partial
        rows = self._connection.execute(f"{_ROOT} WHERE cid > ? {which}ORDER BY cid LIMIT ?", (after, limit))
        return [_root_row(row) for row in rows]

    def held(self, cids: Sequence[bytes]) -> list[bytes]:
        """The CIDs, of these, of roots that are complete."""
        found: list[bytes] = []
        for some, marks in _chunks(cids):
            rows = self._connection.execute(f"SELECT cid FROM roots WHERE is_complete AND cid IN ({marks})", some)  # noqa: S608
            found += (cid for (cid,) in rows)
        return found

    def reserved_bytes(self) -> int:
        """What is reserved for partial roots, of what they still lack of what they were declared to be.

        All of it for those that this node's own user claims; for others at most as much again as is there.
        """
        query = """
            SELECT total(CASE
                WHEN EXISTS (SELECT 1 FROM claims WHERE root = roots.id AND owner = x'')
                THEN max(size_bytes - present_bytes, 0)
                ELSE max(min(size_bytes - present_bytes, present_bytes), 0)
            END) FROM roots WHERE cid IS NOT NULL AND NOT is_complete
        """
        return self._number(query)

    def complete(self, root: int, size_bytes: int | None) -> None:
        """All that a root uses is there; it was declared to have so many bytes, unless they are told now.

        Raises:
            LostBlocksError: blocks of it are lost.
        """
        self._check_whole(root)
        self._connection.execute(
            "UPDATE roots SET is_complete = 1, size_bytes = coalesce(?, size_bytes) WHERE id = ?", (size_bytes, root)
        )

    def _check_whole(self, root: int) -> None:
        lost = self._number("SELECT count(*) FROM lost WHERE root = ?", root)
        if lost:
            raise LostBlocksError(f"{lost} of its blocks turned out to be damaged or gone: they have to come again")

    # Claims

    def claim(self, cid: bytes, owner: bytes, label: bytes, size_bytes: int) -> None:
        """Keep a root for a reason; one that is new is partial, and has this size."""
        self._connection.execute(
            "INSERT OR IGNORE INTO roots (cid, is_draft, size_bytes) VALUES (?, 0, ?)", (cid, size_bytes)
        )
        self._connection.execute(
            "INSERT OR IGNORE INTO claims SELECT id, ?, ? FROM roots WHERE cid = ?", (owner, label, cid)
        )

    def release(self, cid: bytes, owner: bytes, label: bytes) -> None:
        """The reason is gone; a root without any is dropped."""
        self._connection.execute(
            "DELETE FROM claims WHERE root = (SELECT id FROM roots WHERE cid = ?) AND owner = ? AND label = ?",
            (cid, owner, label),
        )

    def has_claim(self, root: int, owner: bytes, label: bytes) -> bool:
        """Whether a root is kept for this reason."""
        query = "SELECT count(*) FROM claims WHERE root = ? AND owner = ? AND label = ?"
        return bool(self._number(query, root, owner, label))

    def claims(self, cid: bytes) -> list[tuple[bytes, bytes]]:
        """Owner and label of each claim on a root, in order."""
        return self._connection.execute(
            "SELECT owner, label FROM claims WHERE root = (SELECT id FROM roots WHERE cid = ?) ORDER BY owner, label",
            (cid,),
        ).fetchall()

    # Garbage

    def drop_uses(self, limit: int) -> int:
        """Take up to ``limit`` uses from dropped roots, and away those that have none left; returns how many."""
        ended = self._connection.execute(
            "DELETE FROM uses WHERE (root, digest) IN (SELECT root, digest FROM uses WHERE root IN "
            "(SELECT id FROM roots WHERE cid IS NULL AND NOT is_draft) LIMIT ?)",
            (limit,),
        ).rowcount
        self._connection.execute(
            "DELETE FROM roots WHERE cid IS NULL AND NOT is_draft "
            "AND NOT EXISTS (SELECT 1 FROM uses WHERE root = roots.id)"
        )
        return ended

    def doom(self, limit: int) -> dict[bytes, int]:
        """Up to ``limit`` blocks that no root uses are not there from now on; returns them and their sizes."""
        return dict(
            self._connection.execute(
                "DELETE FROM blocks WHERE digest IN (SELECT digest FROM blocks WHERE uses = 0 LIMIT ?) "
                "RETURNING digest, size_bytes",
                (limit,),
            )
        )

    def _number(self, query: str, *parameters: bytes | int) -> int:
        (number,) = self._connection.execute(query, parameters).fetchone()
        return int(number)


_REMEDY = (
    "put a backup of its directory in place, or move that away: what entries refer to is fetched again then, what was "
    "pinned is not"
)


def is_nothing(path: Path) -> bool:
    """Whether there is no index, or nothing in it."""
    return not path.exists() or path.stat().st_size == 0


def versions_of(connection: sqlite3.Connection) -> tuple[int, int]:
    """Whose database it is, and of which version; :data:`UNMADE` if nothing was made in it."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return application, version


def lost_index(path: Path) -> StorageError:
    """What to say of an index in which there is nothing any more, while blocks are there."""
    return StorageError(f"{path}: gone or empty, while blocks are there: {_REMEDY}")


def _chunks(digests: Sequence[bytes]) -> Iterator[tuple[Sequence[bytes], str]]:
    """Digests, as many as fit into a query at a time, and a question mark for each."""
    for start in range(0, len(digests), AT_ONCE):
        some = digests[start : start + AT_ONCE]
        yield some, ", ".join("?" * len(some))


def _range(first: int) -> tuple[bytes, bytes]:
    """Between which bytes those with this first byte lie; what is longer than a digest is behind all of them."""
    return bytes([first]), bytes([first + 1]) if first < 255 else b"\xff" * (DIGEST_BYTES + 1)


def _root_row(row: tuple[int, bytes, int, int, int, int]) -> RootRow:
    root, cid, size_bytes, present_blocks, present_bytes, is_complete = row
    return RootRow(
        id=root,
        cid=cid,
        size_bytes=size_bytes,
        present_blocks=present_blocks,
        present_bytes=present_bytes,
        is_complete=bool(is_complete),
    )
