"""What a block store keeps and why, for whoever looks at it, whether or not a node has it open.

SQLite lets a process read what another writes, so nothing is locked here, and nothing is changed. What the two stores
of a node say may be a moment apart.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from prime_dht.blobs.cid import Cid
from prime_dht.entries.entry import Entry
from prime_dht.errors import StorageError
from prime_dht.ids import OpId
from prime_dht.storage.base import OP_ID_BYTES
from prime_dht.storage.blocks import INDEX_FILE, Claim
from prime_dht.storage.blocks_files import holds_blocks
from prime_dht.storage.blocks_index import UNMADE, BlockIndex, is_nothing, lost_index, versions_of
from prime_dht.storage.blocks_status import RootStatus, status_of
from prime_dht.storage.sqlite_check import MOST_PROBLEMS
from prime_dht.storage.sqlite_file import BUSY_TIMEOUT_S, is_damage, lock, storage_error, translation
from prime_dht.storage.sqlite_reads import get_ops
from prime_dht.storage.sqlite_schema import MIGRATIONS

ROOTS_IN_PAGE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRoot:
    """A root, why it is kept, and those entries that are a reason and stored beside it."""

    status: RootStatus
    claims: tuple[Claim, ...]
    entries: tuple[Entry, ...]


def survey_blocks(directory: Path, store: Path | None, *, now_us: int) -> list[KeptRoot]:
    """Look through the block store in a directory. This blocks.

    Args:
        store: the file with the node's entries, if there is one.

    Raises:
        StorageError: one of them is no such store, damaged, or of another version.
    """
    index_path = directory / INDEX_FILE
    if not index_path.is_file():
        raise lost_index(index_path) if holds_blocks(directory) else StorageError(f"{directory}: there are no blobs")
    with ExitStack() as resources:
        resources.enter_context(translation(index_path))
        index = resources.enter_context(closing(BlockIndex(str(index_path), has_blocks=holds_blocks(directory))))
        entries = None if store is None else _open_entries(store, resources)
        return [
            KeptRoot(status=status, claims=claims, entries=_entries(entries, claims, now_us))
            for status, claims in _roots(index)
        ]


def check_index(directory: Path) -> list[str]:
    """What is wrong with the index of the block store in a directory, which nobody has open; nothing if it is sound.

    Or if there is no store. Nothing is made, changed or repaired. This blocks.

    Raises:
        StorageError: another process has it open, or it cannot be read.
    """
    path = directory / INDEX_FILE
    with ExitStack() as resources:
        resources.enter_context(translation(path))
        lost = [str(lost_index(path))] if holds_blocks(directory) else []
        if is_nothing(path):
            return lost
        lock(path, resources)
        connection = resources.enter_context(closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)))
        connection.execute("PRAGMA query_only = ON")
        try:
            if versions_of(connection) == UNMADE:
                return lost
            verdicts = connection.execute(f"PRAGMA integrity_check({MOST_PROBLEMS})").fetchall()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            return [str(storage_error(path, error))]
        return [f"{path}: {verdict}" for (verdict,) in verdicts if verdict != "ok"]


def op_ids_of(claims: Iterable[Claim]) -> list[OpId]:
    """The entries for whose sake a root is kept."""
    return [OpId(claim.label) for claim in claims if claim.owner and len(claim.label) == OP_ID_BYTES]


def _roots(index: BlockIndex) -> Iterator[tuple[RootStatus, tuple[Claim, ...]]]:
    after = b""
    while rows := index.roots(after, ROOTS_IN_PAGE):
        for row in rows:
            root = Cid.from_bytes(row.cid)
            claims = (Claim(root=root, owner=owner, label=label) for owner, label in index.claims(row.cid))
            yield status_of(row), tuple(claims)
        after = rows[-1].cid


def _open_entries(store: Path, resources: ExitStack) -> sqlite3.Connection | None:
    """A connection that only reads; ``None`` if there is nothing that this version reads."""
    if not store.is_file():
        return None
    resources.enter_context(translation(store))
    connection = resources.enter_context(closing(sqlite3.connect(store, timeout=BUSY_TIMEOUT_S)))
    connection.execute("PRAGMA query_only = ON")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return connection if version == len(MIGRATIONS) else None


def _entries(connection: sqlite3.Connection | None, claims: tuple[Claim, ...], now_us: int) -> tuple[Entry, ...]:
    return () if connection is None else tuple(get_ops(connection, op_ids_of(claims), now_us))
