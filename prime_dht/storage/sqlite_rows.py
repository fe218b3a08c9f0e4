"""What is in the tables, and the SQL for it: each function is one operation on a connection, and blocks.

An entry's row holds its envelope and value, as received, and what is searched for in columns of its own; it is read
back by decoding the envelope, which is not verified again. Decoding checks the value against the header's hash, so a
value that rotted on the disk is found when it is read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

from prime_dht.entries.codec import decode_entry
from prime_dht.entries.entry import Entry, Slot
from prime_dht.entries.lifetime import as_of
from prime_dht.errors import StorageError, ValidationError
from prime_dht.ids import KAD_KEY_BITS, Key, OpId, PeerId, TimestampUs, kad_key
from prime_dht.storage.base import (
    EntryPage,
    EntryQuery,
    Expired,
    KnownPeer,
    OwnSlot,
    PlainRecord,
    ProviderRecord,
    PutOutcome,
    PutResult,
    StoreStats,
)
from prime_dht.storage.paging import decode_cursor, take_page

LOCATION_BITS = 32
MAX_INTEGER = (1 << 63) - 1

_READ_SLOT = "SELECT id, created_at_us, op_id FROM entries WHERE key = ? AND publisher = ? AND subkey = ?"
_REMOVE_ROW = "DELETE FROM entries WHERE id = ?"
_HOLD = """
    INSERT INTO entries (
        key, publisher, subkey, location, created_at_us, expires_at_us, retain_until_us, is_tombstone, op_id, envelope
    ) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_HOLD_VALUE = "INSERT OR IGNORE INTO inline_values (id, expires_at_us, value) VALUES (?, ?, ?)"
_READ_OP = """
    SELECT envelope, value FROM entries
    LEFT JOIN inline_values ON inline_values.id = entries.id AND inline_values.expires_at_us > ?
    WHERE op_id = ?
"""
_KEYS = "SELECT DISTINCT key FROM entries WHERE key > ? ORDER BY key LIMIT ?"
_REMOVE_OP = "DELETE FROM entries WHERE op_id = ?"

_RETIRE = """
    DELETE FROM entries WHERE id IN (
        SELECT id FROM entries WHERE retain_until_us < ? ORDER BY retain_until_us LIMIT ?
    ) RETURNING op_id
"""
_DROP_VALUES = """
    DELETE FROM inline_values WHERE id IN (
        SELECT id FROM inline_values WHERE expires_at_us <= ? ORDER BY expires_at_us LIMIT ?
    )
"""
_EXPIRE_RECORDS = """
    DELETE FROM records WHERE rowid IN (
        SELECT rowid FROM records WHERE expires_at_us <= ? ORDER BY expires_at_us LIMIT ?
    )
"""
_EXPIRE_PROVIDERS = """
    DELETE FROM providers WHERE (multihash, provider) IN (
        SELECT multihash, provider FROM providers WHERE expires_at_us <= ? ORDER BY expires_at_us LIMIT ?
    )
"""
_FREE_PAGES = "PRAGMA freelist_count"
_GIVE_BACK_PAGE = "PRAGMA incremental_vacuum"

_PUT_RECORD = """
    INSERT OR REPLACE INTO records (key, value, received_at_us, expires_at_us, publisher) VALUES (?, ?, ?, ?, ?)
"""
_READ_RECORD = """
    SELECT key, value, received_at_us, expires_at_us, publisher FROM records WHERE key = ? AND expires_at_us > ?
"""
_RECORDS = """
    SELECT key, value, received_at_us, expires_at_us, publisher FROM records WHERE key > ? ORDER BY key LIMIT ?
"""

_ADD_PROVIDER = "INSERT OR REPLACE INTO providers (multihash, provider, addresses, expires_at_us) VALUES (?, ?, ?, ?)"
_PROVIDERS = """
    SELECT multihash, provider, addresses, expires_at_us FROM providers
    WHERE multihash = ? AND expires_at_us > ? ORDER BY expires_at_us DESC LIMIT ?
"""
_REMOVE_PROVIDER = "DELETE FROM providers WHERE multihash = ? AND provider = ?"

_PUT_PEER = """
    INSERT INTO peers (peer, addresses, source, first_seen_us, last_seen_us) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (peer) DO UPDATE SET
        addresses = excluded.addresses, source = excluded.source, last_seen_us = excluded.last_seen_us
"""
_PEERS = """
    SELECT peer, addresses, source, first_seen_us, last_seen_us FROM peers ORDER BY last_seen_us DESC LIMIT ?
"""
_REMOVE_PEER = "DELETE FROM peers WHERE peer = ?"

_READ_OWN_SLOT = """
    SELECT created_at_us, retain_until_us FROM own_slots WHERE key = ? AND publisher = ? AND subkey = ?
"""
_PUT_OWN_SLOT = """
    INSERT INTO own_slots (key, publisher, subkey, created_at_us, retain_until_us) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (key, publisher, subkey) DO UPDATE SET
        created_at_us = max(created_at_us, excluded.created_at_us),
        retain_until_us = max(retain_until_us, excluded.retain_until_us)
"""

_READ_META = "SELECT value FROM meta WHERE name = ?"
_PUT_META = "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)"

_STATS = """
    SELECT keys, entries, bytes,
        (SELECT count(*) FROM records), (SELECT count(*) FROM providers), (SELECT count(*) FROM peers)
    FROM totals
"""


def put_entries(connection: sqlite3.Connection, entries: Sequence[Entry], now_us: int) -> list[PutResult]:
    return [_join(connection, as_of(entry, now_us)) for entry in entries]


def _join(connection: sqlite3.Connection, entry: Entry) -> PutResult:
    header = entry.header
    standing = connection.execute(_READ_SLOT, (header.key, entry.publisher, header.subkey)).fetchone()
    displaced = None
    if standing is not None:
        row_id, created_at_us, op_id = standing
        if op_id == entry.op_id:
            _hold_value(connection, row_id, entry)
            return PutResult(PutOutcome.DUPLICATE)
        if (created_at_us, op_id) > (header.created_at_us, entry.op_id):
            return PutResult(PutOutcome.SUPERSEDED)
        connection.execute(_REMOVE_ROW, (row_id,))
        displaced = OpId(op_id)
    row_id = connection.execute(
        _HOLD,
        (
            header.key,
            entry.publisher,
            header.subkey,
            kad_key(header.key) >> (KAD_KEY_BITS - LOCATION_BITS),
            header.created_at_us,
            header.expires_at_us,
            header.retain_until_us,
            entry.is_tombstone,
            entry.op_id,
            entry.envelope,
        ),
    ).lastrowid
    _hold_value(connection, row_id, entry)
    return PutResult(PutOutcome.INSERTED, displaced)


def _hold_value(connection: sqlite3.Connection, row_id: int | None, entry: Entry) -> None:
    if entry.value is not None:
        connection.execute(_HOLD_VALUE, (row_id, entry.header.expires_at_us, entry.value))


def get_entries(connection: sqlite3.Connection, query: EntryQuery, now_us: int) -> EntryPage:
    sql, parameters = _page_sql(query, now_us)
    # Closed when the page is full, because a statement that is not at its end would hold the journal.
    with closing(connection.execute(sql, parameters)) as rows:
        return take_page(_decoded(rows), query.max_bytes)


def _page_sql(query: EntryQuery, now_us: int) -> tuple[str, dict[str, bytes | int]]:
    """The statement for a page and its parameters. Of the query, only numbers of parameters get into the SQL."""
    parameters: dict[str, bytes | int] = {"key": query.key, "now_us": now_us}
    matching = ["key = :key"]
    for column, choices in (("publisher", query.publishers), ("subkey", query.subkeys)):
        if choices:
            names = [f"{column}_{i}" for i in range(len(choices))]
            parameters |= zip(names, choices, strict=True)
            matching.append(f"{column} IN ({', '.join(f':{name}' for name in names)})")
    selected = list(matching)
    if not query.include_expired:
        selected.append("(entries.expires_at_us > :now_us OR is_tombstone)")
    behind = decode_cursor(query.cursor)
    if behind is not None:
        selected.append("(publisher, subkey) > (:behind_publisher, :behind_subkey)")
        parameters["behind_publisher"], parameters["behind_subkey"] = behind
    newest = ""
    if query.newest:
        newest = f"""
            LEFT JOIN (
                SELECT created_at_us AS newest_us, op_id AS newest_op_id FROM entries
                WHERE {" AND ".join(matching)} AND expires_at_us > :now_us AND NOT is_tombstone
                ORDER BY created_at_us DESC, op_id DESC LIMIT 1
            )
        """  # noqa: S608
        selected.append("(newest_us IS NULL OR (created_at_us, op_id) >= (newest_us, newest_op_id))")
    sql = f"""
        SELECT envelope, value FROM entries
        LEFT JOIN inline_values ON inline_values.id = entries.id AND inline_values.expires_at_us > :now_us
        {newest} WHERE {" AND ".join(selected)} ORDER BY publisher, subkey
    """  # noqa: S608
    return sql, parameters


def _decoded(rows: Iterable[tuple[bytes, bytes | None]]) -> Iterator[Entry]:
    for envelope, value in rows:
        try:
            yield decode_entry(envelope, value)
        except ValidationError as error:
            raise StorageError(f"a stored entry was damaged: {error}") from error


def get_ops(connection: sqlite3.Connection, op_ids: Sequence[OpId], now_us: int) -> list[Entry]:
    rows = (row for op_id in dict.fromkeys(op_ids) for row in connection.execute(_READ_OP, (now_us, op_id)))
    return list(_decoded(rows))


def keys(connection: sqlite3.Connection, after: Key | None, limit: int) -> list[Key]:
    return [Key(key) for (key,) in connection.execute(_KEYS, (after or b"", limit))]


def remove_ops(connection: sqlite3.Connection, op_ids: Sequence[OpId]) -> int:
    return connection.executemany(_REMOVE_OP, ((op_id,) for op_id in op_ids)).rowcount


def delete_expired(connection: sqlite3.Connection, now_us: int, retire_before_us: int, limit: int) -> Expired:
    retired = tuple(OpId(op_id) for (op_id,) in connection.execute(_RETIRE, (retire_before_us, limit)).fetchall())
    left = limit - len(retired)
    counts = []
    for statement in (_DROP_VALUES, _EXPIRE_RECORDS, _EXPIRE_PROVIDERS):
        counts.append(connection.execute(statement, (now_us, left)).rowcount)
        left -= counts[-1]
    (free_pages,) = connection.execute(_FREE_PAGES).fetchone()
    for _ in range(free_pages):
        # Python steps a statement that has no columns just once, and this one gives back a page a step.
        connection.execute(_GIVE_BACK_PAGE)
    values_dropped, records, providers = counts
    return Expired(retired=retired, values_dropped=values_dropped, records=records, providers=providers)


def put_record(connection: sqlite3.Connection, record: PlainRecord) -> None:
    connection.execute(
        _PUT_RECORD,
        (record.key, record.value, record.received_at_us, min(record.expires_at_us, MAX_INTEGER), record.publisher),
    )


def get_record(connection: sqlite3.Connection, key: Key, now_us: int) -> PlainRecord | None:
    row = connection.execute(_READ_RECORD, (key, now_us)).fetchone()
    return None if row is None else _record(*row)


def records(connection: sqlite3.Connection, after: Key | None, limit: int) -> list[PlainRecord]:
    return [_record(*row) for row in connection.execute(_RECORDS, (after or b"", limit))]


def _record(key: bytes, value: bytes, received_at_us: int, expires_at_us: int, publisher: bytes | None) -> PlainRecord:
    return PlainRecord(
        key=Key(key),
        value=value,
        received_at_us=TimestampUs(received_at_us),
        expires_at_us=TimestampUs(expires_at_us),
        publisher=None if publisher is None else PeerId(publisher),
    )


def add_provider(connection: sqlite3.Connection, record: ProviderRecord) -> None:
    connection.execute(
        _ADD_PROVIDER,
        (record.multihash, record.provider, _joined(record.addresses), min(record.expires_at_us, MAX_INTEGER)),
    )


def get_providers(connection: sqlite3.Connection, multihash: bytes, now_us: int, limit: int) -> list[ProviderRecord]:
    return [
        ProviderRecord(
            multihash=multihash,
            provider=PeerId(provider),
            addresses=_split(addresses),
            expires_at_us=TimestampUs(expires_at_us),
        )
        for multihash, provider, addresses, expires_at_us in connection.execute(_PROVIDERS, (multihash, now_us, limit))
    ]


def remove_provider(connection: sqlite3.Connection, multihash: bytes, provider: PeerId) -> None:
    connection.execute(_REMOVE_PROVIDER, (multihash, provider))


def put_peers(connection: sqlite3.Connection, peers: Sequence[KnownPeer]) -> None:
    connection.executemany(
        _PUT_PEER,
        ((peer.peer, _joined(peer.addresses), peer.source, peer.first_seen_us, peer.last_seen_us) for peer in peers),
    )


def peers(connection: sqlite3.Connection, limit: int) -> list[KnownPeer]:
    return [
        KnownPeer(
            peer=PeerId(peer),
            addresses=_split(addresses),
            source=source,
            first_seen_us=TimestampUs(first_seen_us),
            last_seen_us=TimestampUs(last_seen_us),
        )
        for peer, addresses, source, first_seen_us, last_seen_us in connection.execute(_PEERS, (limit,))
    ]


def remove_peers(connection: sqlite3.Connection, peers: Sequence[PeerId]) -> None:
    connection.executemany(_REMOVE_PEER, ((peer,) for peer in peers))


def own_slot(connection: sqlite3.Connection, slot: Slot) -> OwnSlot | None:
    row = connection.execute(_READ_OWN_SLOT, (slot.key, slot.publisher, slot.subkey)).fetchone()
    return None if row is None else OwnSlot(slot, *map(TimestampUs, row))


def put_own_slots(connection: sqlite3.Connection, slots: Sequence[OwnSlot]) -> None:
    connection.executemany(
        _PUT_OWN_SLOT,
        ((own.slot.key, own.slot.publisher, own.slot.subkey, own.created_at_us, own.retain_until_us) for own in slots),
    )


def get_meta(connection: sqlite3.Connection, name: str) -> bytes | None:
    row = connection.execute(_READ_META, (name,)).fetchone()
    return None if row is None else bytes(row[0])


def put_meta(connection: sqlite3.Connection, name: str, value: bytes) -> None:
    connection.execute(_PUT_META, (name, value))


def stats(connection: sqlite3.Connection) -> StoreStats:
    keys, entries, size_bytes, records, providers, peers = connection.execute(_STATS).fetchone()
    return StoreStats(keys=keys, entries=entries, bytes=size_bytes, records=records, providers=providers, peers=peers)


def _joined(addresses: Iterable[bytes]) -> bytes:
    """Addresses as one column.

    >>> _joined([b"ab", b""])
    b'\\x00\\x00\\x00\\x02ab\\x00\\x00\\x00\\x00'
    >>> _split(_joined([b"ab", b""]))
    (b'ab', b'')
    """
    return b"".join(len(address).to_bytes(4, "big") + address for address in addresses)


def _split(joined: bytes) -> tuple[bytes, ...]:
    addresses = []
    start = 0
    while start < len(joined):
        end = start + 4 + int.from_bytes(joined[start : start + 4], "big")
        addresses.append(joined[start + 4 : end])
        start = end
    return tuple(addresses)
