"""The SQL that reads entries: each function is one operation on a connection, and blocks.

An entry's row holds what is searched for in columns of its own; the entry is read back by decoding its envelope, which
is not verified again. Decoding checks the value against the header's hash, so a value that rotted on the disk is found
when it is read.

**Ops are read in packs.** SQLite glues together what many rows say, as hexadecimal text, so that a whole page is one
step of its machine. Python's sqlite3 lets go of the interpreter for each step and has to get it back: while the event
loop is busy that takes up to 5 ms, so a million rows one by one take most of a minute, and a million in packs a second.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from prime_dht.entries.codec import decode_entry
from prime_dht.entries.entry import Entry, Version
from prime_dht.errors import StorageError, ValidationError
from prime_dht.ids import Key, OpId, TimestampUs
from prime_dht.storage.base import OP_ID_BYTES, EntryPage, EntryQuery, Op, OpArrays, StoreStats
from prime_dht.storage.paging import decode_cursor, take_page
from prime_dht.storage.sqlite_schema import sector_of, stem_of

_READ_ENTRY = """
    SELECT peer, statement, iif(expires_at_us > :now_us, value, NULL)
    FROM entries JOIN publishers ON publishers.id = publisher WHERE entries.id = :id
"""
_FIND_OP = "SELECT id FROM entries WHERE substr(op_id, 1, 8) = substr(:op_id, 1, 8) AND op_id = :op_id"
_FIND_OPS = """
    SELECT op_id FROM entries WHERE substr(op_id, 1, 8) = substr(:prefix, 1, 8)
    AND substr(op_id, 1, length(:prefix)) = :prefix AND sector IS NOT NULL
"""
_KEYS = "SELECT DISTINCT key FROM entries WHERE key > ? ORDER BY key LIMIT ?"

_PACK = "group_concat(printf('%016x', created_at_us) || hex(op_id) || printf('%08x', location), '')"
OPS_OF_SECTOR = f"""
    SELECT {_PACK} FROM (
        SELECT created_at_us, op_id, location FROM entries
        WHERE sector = ? AND (created_at_us, op_id) > (?, ?) AND created_at_us <= ? AND location BETWEEN ? AND ?
        ORDER BY created_at_us, op_id LIMIT ?
    )
"""  # noqa: S608
OPS = f"""
    SELECT {_PACK} FROM (
        SELECT created_at_us, op_id, location FROM entries
        WHERE (sector, created_at_us, op_id) > (?, ?, ?) ORDER BY sector, created_at_us, op_id LIMIT ?
    )
"""  # noqa: S608
_PACKED_OP = np.dtype([("created_at_us", ">i8"), ("op_id", np.uint8, OP_ID_BYTES), ("location", ">u4")])
_VERSION_BYTES = 8 + OP_ID_BYTES
_LEAST_PACK = 16

_STATS = "SELECT keys, entries, bytes, records, providers, (SELECT count(*) FROM peers), ops FROM totals"


def get_entries(connection: sqlite3.Connection, query: EntryQuery, now_us: int) -> EntryPage:
    sql, parameters = _slots_sql(query, now_us)
    row_ids = connection.execute(sql, parameters).fetchall()
    return take_page(_entries(connection, (row_id for (row_id,) in row_ids), now_us), query.max_bytes)


def _slots_sql(query: EntryQuery, now_us: int) -> tuple[str, dict[str, bytes | int]]:
    """The statement that finds the slots of a query, and its parameters.

    Of the query, only numbers of parameters get into the SQL.
    """
    parameters: dict[str, bytes | int] = {"key": query.key, "now_us": now_us}
    matching = ["key = :key"]
    for column, choices in (("peer", query.publishers), ("subkey", query.subkeys)):
        if choices:
            names = [f"{column}_{i}" for i in range(len(choices))]
            parameters |= zip(names, choices, strict=True)
            matching.append(f"{column} IN ({', '.join(f':{name}' for name in names)})")
    selected = list(matching)
    if not query.include_expired:
        selected.append("(expires_at_us > :now_us OR is_tombstone)")
    behind = decode_cursor(query.cursor)
    if behind is not None:
        selected.append("(peer, subkey) > (:behind_publisher, :behind_subkey)")
        parameters["behind_publisher"], parameters["behind_subkey"] = behind
    newest = ""
    if query.newest:
        newest = f"""
            LEFT JOIN (
                SELECT created_at_us AS newest_us, op_id AS newest_op_id
                FROM entries JOIN publishers ON publishers.id = publisher
                WHERE {" AND ".join(matching)} AND expires_at_us > :now_us AND NOT is_tombstone
                ORDER BY created_at_us DESC, op_id DESC LIMIT 1
            )
        """  # noqa: S608
        selected.append("(newest_us IS NULL OR (created_at_us, op_id) >= (newest_us, newest_op_id))")
    sql = f"""
        SELECT entries.id FROM entries JOIN publishers ON publishers.id = publisher
        {newest} WHERE {" AND ".join(selected)} ORDER BY peer, subkey
    """  # noqa: S608
    return sql, parameters


def get_ops(connection: sqlite3.Connection, op_ids: Sequence[OpId], now_us: int) -> list[Entry]:
    found = (
        row_id
        for op_id in dict.fromkeys(op_ids)
        for (row_id,) in connection.execute(_FIND_OP, {"op_id": op_id}).fetchall()
    )
    return list(_entries(connection, found, now_us))


def find_ops(connection: sqlite3.Connection, prefixes: Sequence[bytes]) -> list[OpId]:
    found = (connection.execute(_FIND_OPS, {"prefix": prefix}).fetchall() for prefix in dict.fromkeys(prefixes))
    return list(dict.fromkeys(OpId(op_id) for rows in found for (op_id,) in rows))


def _entries(connection: sqlite3.Connection, row_ids: Iterable[int], now_us: int) -> Iterator[Entry]:
    for row_id in row_ids:
        row = connection.execute(_READ_ENTRY, {"id": row_id, "now_us": now_us}).fetchone()
        if row is None:
            raise StorageError("a stored entry was damaged: its index points nowhere")
        publisher, statement, value = row
        try:
            yield decode_entry(stem_of(publisher) + statement, value)
        except ValidationError as error:
            raise StorageError(f"a stored entry was damaged: {error}") from error


def ops(
    connection: sqlite3.Connection, locations: range, created_us: range, after: Version | None, limit: int
) -> list[Op]:
    if not locations or not created_us:
        return []
    behind = (created_us.start, b"")
    if after is not None:
        behind = max(behind, (after.created_at_us, after.op_id))
    sectors = range(sector_of(locations[0]), sector_of(locations[-1]) + 1)
    # One statement reads the page of one sector. Of many sectors most give little to it, so they are asked for little.
    pack = max(_LEAST_PACK, limit // len(sectors))
    in_order = heapq.merge(
        *(_packed(connection, sector, locations, behind, created_us[-1], pack) for sector in sectors)
    )
    return [_unpacked(op) for op in islice(in_order, limit)]


def _packed(
    connection: sqlite3.Connection, sector: int, locations: range, behind: tuple[int, bytes], last_us: int, pack: int
) -> Iterator[bytes]:
    """The ops of a sector in the order of their versions, which is also that of the bytes given."""
    while True:
        parameters = (sector, *behind, last_us, locations[0], locations[-1], pack)
        (text,) = connection.execute(OPS_OF_SECTOR, parameters).fetchone()
        packed = bytes.fromhex(text or "")
        size = _PACKED_OP.itemsize
        yield from (packed[start : start + size] for start in range(0, len(packed), size))
        if len(packed) < pack * size:
            return
        last = _unpacked(packed[-size:])
        behind = (last.created_at_us, last.op_id)


def _unpacked(packed: bytes) -> Op:
    return Op(
        OpId(packed[8:_VERSION_BYTES]),
        int.from_bytes(packed[_VERSION_BYTES:], "big"),
        TimestampUs(int.from_bytes(packed[:8], "big")),
    )


def scan_ops(connection: sqlite3.Connection, after: bytes, limit: int) -> OpArrays:
    behind = (-1, 0, b"")
    if after:
        last = _unpacked(after)
        behind = (sector_of(last.location), last.created_at_us, last.op_id)
    (text,) = connection.execute(OPS, (*behind, limit)).fetchone()
    packed = bytes.fromhex(text or "")
    columns = np.frombuffer(packed, _PACKED_OP)
    return OpArrays(
        op_ids=np.ascontiguousarray(columns["op_id"]),
        locations=columns["location"].astype(np.uint32),
        created_at_us=columns["created_at_us"].astype(np.int64),
        next_cursor=packed[-_PACKED_OP.itemsize :] if len(columns) == limit else b"",
    )


def keys(connection: sqlite3.Connection, after: Key | None, limit: int) -> list[Key]:
    return [Key(key) for (key,) in connection.execute(_KEYS, (after or b"", limit))]


def stats(connection: sqlite3.Connection) -> StoreStats:
    keys, entries, size_bytes, records, providers, peers, ops = connection.execute(_STATS).fetchone()
    return StoreStats(
        keys=keys, entries=entries, bytes=size_bytes, records=records, providers=providers, peers=peers, ops=ops
    )
