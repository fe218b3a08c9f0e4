"""The SQL that changes entries: each function is one operation in a transaction of its caller's, and blocks.

:class:`StoredEntries` is the store as :func:`~prime_dht.storage.joining.join_entry` sees it. It also counts: whatever
inserts or removes entries goes through one, which writes the new counts when the operation ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

from prime_dht.entries.entry import Entry, Slot, Version
from prime_dht.entries.lifetime import is_op
from prime_dht.ids import Key, OpId, PeerId, TimestampUs
from prime_dht.storage import sqlite_records, sqlite_rows
from prime_dht.storage.base import MAX_STEP_BACK_US, Expired, Gone, Op, PutResult
from prime_dht.storage.capacity import Capacity, location_of
from prime_dht.storage.joining import Held, Holdings, Standing, join_entry, retired_before_us
from prime_dht.storage.sqlite_schema import STEM_BYTES, sector_of, stem_of

_READ_TOTALS = "SELECT keys, entries, ops, bytes, retired_before_us FROM totals"
_WRITE_TOTALS = "UPDATE totals SET keys = ?, entries = ?, ops = ?, bytes = ?, retired_before_us = ?"
_READ_PUBLISHER = "SELECT id, entries, bytes FROM publishers WHERE peer = ?"
_ADD_PUBLISHER = "INSERT INTO publishers (peer, entries, bytes) VALUES (?, 0, 0)"
_COUNT_FOR_PUBLISHER = "UPDATE publishers SET entries = entries + ?, bytes = bytes + ? WHERE id = ?"
_REMOVE_PUBLISHER = "DELETE FROM publishers WHERE id = ? AND entries = 0"

_SIZE = f"{STEM_BYTES} + length(statement) + ifnull(length(value), 0)"
_READ_SLOT = f"""
    SELECT created_at_us, op_id, {_SIZE}, value IS NOT NULL FROM entries
    WHERE key = ? AND publisher = ? AND subkey = ?
"""  # noqa: S608
_COUNT_SLOTS = "SELECT count(*) FROM entries WHERE key = ?"
_COUNT_SLOTS_OF = "SELECT count(*) FROM entries WHERE key = ? AND publisher = ?"
_HAS_KEY = "SELECT EXISTS (SELECT 1 FROM entries WHERE key = ?)"
_READ_ENDS = """
    SELECT
        (SELECT location FROM entries WHERE location BETWEEN :first AND :last ORDER BY location LIMIT 1),
        (SELECT location FROM entries WHERE location BETWEEN :first AND :last ORDER BY location DESC LIMIT 1)
"""
_READ_LOCATION = f"SELECT op_id, {_SIZE} FROM entries WHERE location = ? ORDER BY id"  # noqa: S608

COLUMNS = """
    sector, location, created_at_us, expires_at_us, retain_until_us, is_tombstone, op_id, key, subkey, statement
"""
"""Of an entry's row: those that follow from its envelope."""

_HOLD = f"INSERT INTO entries (id, {COLUMNS}, publisher, value) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_RETURNING = f"RETURNING id, op_id, key, location, created_at_us, publisher, sector, {_SIZE}"
_EMPTY_SLOT = f"DELETE FROM entries WHERE key = ? AND publisher = ? AND subkey = ? {_RETURNING}"  # noqa: S608
_REMOVE_OP = f"DELETE FROM entries WHERE substr(op_id, 1, 8) = substr(:op_id, 1, 8) AND op_id = :op_id {_RETURNING}"  # noqa: S608
_RETIRE = f"""
    DELETE FROM entries WHERE id IN (
        SELECT id FROM entries WHERE retain_until_us < ? ORDER BY retain_until_us, op_id LIMIT ?
    ) {_RETURNING}
"""  # noqa: S608
_REMOVE_EXPIRED = f"""
    DELETE FROM entries WHERE id IN (
        SELECT id FROM entries WHERE value IS NOT NULL AND expires_at_us <= ? ORDER BY expires_at_us, op_id LIMIT ?
    ) RETURNING id, {COLUMNS}, publisher, length(value)
"""  # noqa: S608
_FREE_PAGES = "PRAGMA freelist_count"
_GIVE_BACK_PAGE = "PRAGMA incremental_vacuum"

MOST_PAGES_GIVEN_BACK = 2048
"""By one clean-up, for those who wait for it: 8 MiB, or 16 in a store of the larger pages that were made before."""

_NOTHING = Held(0, 0)


def put_entries(
    connection: sqlite3.Connection, entries: Sequence[Entry], capacity: Capacity, now_us: int
) -> list[PutResult]:
    with _stored_entries(connection) as stored:
        retired = retired_before_us(stored.retired_before_us, now_us)
        return [join_entry(entry, stored, capacity, now_us=now_us, retired_before_us=retired) for entry in entries]


def remove_ops(connection: sqlite3.Connection, op_ids: Sequence[OpId]) -> list[Gone]:
    with _stored_entries(connection) as stored:
        return [gone for op_id in op_ids for gone in stored.remove(op_id)]


def delete_expired(connection: sqlite3.Connection, now_us: int, retire_before_us: int, limit: int) -> Expired:
    with _stored_entries(connection) as stored:
        stored.retired_before_us = max(retire_before_us, retired_before_us(stored.retired_before_us, now_us))
        retired = tuple(stored.retire(stored.retired_before_us, limit))
        left = limit - len(retired)
        values_dropped = stored.drop_values(now_us, left)
    left -= values_dropped
    records, providers = sqlite_records.delete_expired(connection, now_us, left)
    left -= records + providers
    own_slots = sqlite_rows.forget_own_slots(connection, retire_before_us - MAX_STEP_BACK_US, left)
    (free_pages,) = connection.execute(_FREE_PAGES).fetchone()
    for _ in range(min(free_pages, MOST_PAGES_GIVEN_BACK)):
        # Python steps a statement that has no columns just once, and this one gives back a page a step.
        connection.execute(_GIVE_BACK_PAGE)
    return Expired(
        retired=retired, values_dropped=values_dropped, records=records, providers=providers, own_slots=own_slots
    )


def columns_of(entry: Entry) -> tuple[bytes | int | None, ...]:
    """The values of :data:`COLUMNS`."""
    header = entry.header
    location = location_of(header.key)
    return (
        sector_of(location) if is_op(entry) else None,
        location,
        header.created_at_us,
        header.expires_at_us,
        header.retain_until_us,
        entry.is_tombstone,
        entry.op_id,
        header.key,
        header.subkey,
        entry.envelope[STEM_BYTES:],
    )


@contextmanager
def _stored_entries(connection: sqlite3.Connection) -> Generator[StoredEntries]:
    stored = StoredEntries(connection)
    yield stored
    stored.write_counts()


class StoredEntries(Holdings):
    """The entries of a store for the time of one operation; see the module.

    Attributes:
        retired_before_us: the latest time that ``delete_expired`` was given.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        keys, entries, ops, size_bytes, retired_before_us = connection.execute(_READ_TOTALS).fetchone()
        self.retired_before_us: int = retired_before_us
        self._keys: int = keys
        self._ops: int = ops
        self._held = Held(entries, size_bytes)
        self._publishers: dict[PeerId, tuple[int, Held]] = {}  # their rows and counts before this operation
        self._changes: dict[int, Held] = {}  # of the counts since, by row
        # What was asked last, which is what is done next, unless something was changed meanwhile.
        self._empty_slot: Slot | None = None
        self._unused_key: Key | None = None

    def write_counts(self) -> None:
        """End the operation."""
        totals = (self._keys, self._held.entries, self._ops, self._held.bytes, self.retired_before_us)
        self._connection.execute(_WRITE_TOTALS, totals)
        for publisher, change in self._changes.items():
            self._connection.execute(_COUNT_FOR_PUBLISHER, (change.entries, change.bytes, publisher))
            if change.entries <= 0:
                self._connection.execute(_REMOVE_PUBLISHER, (publisher,))

    def standing(self, slot: Slot) -> Standing | None:
        known = self._publisher(slot.publisher)
        row = None
        if known is not None:
            row = self._connection.execute(_READ_SLOT, (slot.key, known[0], slot.subkey)).fetchone()
        if row is None:
            self._empty_slot = slot
            return None
        created_at_us, op_id, size_bytes, has_value = row
        return Standing(Version(TimestampUs(created_at_us), OpId(op_id)), size_bytes, bool(has_value))

    def slots_of(self, key: Key, publisher: PeerId | None = None) -> int:
        if publisher is None:
            (slots,) = self._connection.execute(_COUNT_SLOTS, (key,)).fetchone()
            self._unused_key = None if slots else key
        else:
            known = self._publisher(publisher)
            if known is None:
                return 0
            (slots,) = self._connection.execute(_COUNT_SLOTS_OF, (key, known[0])).fetchone()
        return int(slots)

    def held(self) -> Held:
        return self._held

    def held_of(self, publisher: PeerId) -> Held:
        known = self._publisher(publisher)
        if known is None:
            return _NOTHING
        row_id, held = known
        change = self._changes.get(row_id, _NOTHING)
        return Held(held.entries + change.entries, held.bytes + change.bytes)

    def hold(self, entry: Entry) -> Gone | None:
        header = entry.header
        publisher = self._publisher_row(entry.publisher)
        is_empty = self._empty_slot == entry.slot
        emptied = [] if is_empty else self._delete(_EMPTY_SLOT, (header.key, publisher, header.subkey))
        # One that only gets its value has not arrived anew.
        row_id = next((row_id for row_id, gone, _ in emptied if gone.op_id == entry.op_id), None)
        if not emptied and (self._unused_key == header.key or not self._has_key(header.key)):
            self._keys += 1
        assert entry.envelope.startswith(stem_of(entry.publisher)), "only canonical envelopes are decoded"
        self._connection.execute(_HOLD, (row_id, *columns_of(entry), publisher, entry.value))
        self._empty_slot = self._unused_key = None
        self._count(publisher, +1, entry.size_bytes, is_op=is_op(entry))
        return next((gone for _, gone, _ in emptied if gone.op_id != entry.op_id), None)

    def evict(self, op_id: OpId) -> Gone:
        (gone,) = self.remove(op_id)
        return gone

    def evict_unretained(self, now_us: int) -> Gone | None:
        return next(iter(self.retire(now_us, limit=1)), None)

    def drop_expired_value(self, now_us: int) -> bool:
        return self.drop_values(now_us, limit=1) > 0

    def held_in(self, block: range) -> tuple[int, int] | None:
        least, greatest = self._connection.execute(_READ_ENDS, {"first": block[0], "last": block[-1]}).fetchone()
        return None if least is None else (least, greatest)

    def held_at(self, location: int) -> Iterator[tuple[OpId, int]]:
        for op_id, size_bytes in self._connection.execute(_READ_LOCATION, (location,)):
            yield OpId(op_id), size_bytes

    def remove(self, op_id: OpId) -> list[Gone]:
        """Remove an entry, if it is held; returns it if so."""
        return self._forget(_REMOVE_OP, {"op_id": op_id})

    def retire(self, before_us: int, limit: int) -> list[Gone]:
        """Remove at most ``limit`` entries that were retained until before ``before_us``."""
        return self._forget(_RETIRE, (before_us, limit))

    def drop_values(self, now_us: int, limit: int) -> int:
        """Drop at most ``limit`` values that have expired; returns how many."""
        # Not by an update: SQLite keeps a page whose rows have shrunk, and gives back one whose rows have gone.
        removed = self._connection.execute(_REMOVE_EXPIRED, (now_us, limit)).fetchall()
        for *header, publisher, value_bytes in removed:
            self._connection.execute(_HOLD, (*header, publisher, None))
            self._count(publisher, 0, -value_bytes, is_op=False)
        return len(removed)

    def _forget(self, statement: str, parameters: tuple[int, int] | dict[str, bytes]) -> list[Gone]:
        deleted = self._delete(statement, parameters)
        for key in {key for _, _, key in deleted}:
            if not self._has_key(key):
                self._keys -= 1
        return [gone for _, gone, _ in deleted]

    def _delete(
        self, statement: str, parameters: tuple[int, int] | tuple[Key, int, bytes] | dict[str, bytes]
    ) -> list[tuple[int, Gone, Key]]:
        """Delete rows and count them, but not their keys."""
        rows = self._connection.execute(statement, parameters).fetchall()
        deleted = []
        for row_id, op_id, key, location, created_at_us, publisher, sector, size_bytes in rows:
            self._count(publisher, -1, -size_bytes, is_op=sector is not None)
            op = None if sector is None else Op(OpId(op_id), location, TimestampUs(created_at_us))
            deleted.append((row_id, Gone(OpId(op_id), op), Key(key)))
        return deleted

    def _count(self, publisher: int, entries: int, size_bytes: int, *, is_op: bool) -> None:
        self._held = Held(self._held.entries + entries, self._held.bytes + size_bytes)
        self._ops += entries if is_op else 0
        change = self._changes.get(publisher, _NOTHING)
        self._changes[publisher] = Held(change.entries + entries, change.bytes + size_bytes)

    def _has_key(self, key: Key) -> bool:
        (has_key,) = self._connection.execute(_HAS_KEY, (key,)).fetchone()
        return bool(has_key)

    def _publisher(self, peer: PeerId) -> tuple[int, Held] | None:
        known = self._publishers.get(peer)
        if known is None:
            row = self._connection.execute(_READ_PUBLISHER, (peer,)).fetchone()
            if row is not None:
                known = self._publishers[peer] = (row[0], Held(row[1], row[2]))
        return known

    def _publisher_row(self, peer: PeerId) -> int:
        known = self._publisher(peer)
        if known is None:
            row_id = self._connection.execute(_ADD_PUBLISHER, (peer,)).lastrowid
            assert row_id is not None
            known = self._publishers[peer] = (row_id, _NOTHING)
        return known[0]
