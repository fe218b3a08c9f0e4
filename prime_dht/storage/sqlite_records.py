"""The SQL for plain records and provider records: each function is one operation on a connection, and blocks.

Those that change them go through :class:`StoredRecords` or :class:`StoredProviders`: the store as
:mod:`prime_dht.storage.room` sees it, which also counts, and writes the new counts when the operation ends.
"""

from __future__ import annotations

import sqlite3
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from prime_dht.errors import ValidationError
from prime_dht.ids import Key, PeerId, TimestampUs
from prime_dht.storage.base import PlainRecord, ProviderRecord
from prime_dht.storage.capacity import Capacity, location_of
from prime_dht.storage.joined import joined, split
from prime_dht.storage.room import (
    Load,
    ProviderName,
    ProviderShelf,
    Shelf,
    make_room_for_provider,
    make_room_for_record,
)
from prime_dht.storage.sqlite_rows import MAX_INTEGER

N = TypeVar("N")

RECORD_SIZE = "length(key) + length(value)"
PROVIDER_SIZE = "length(multihash) + length(provider) + length(addresses)"
"""What :attr:`PlainRecord.size_bytes` and :attr:`ProviderRecord.size_bytes` are, of rows."""

_PUT_RECORD = """
    INSERT INTO records (key, value, received_at_us, expires_at_us, publisher, location) VALUES (?, ?, ?, ?, ?, ?)
"""
_READ_RECORD = """
    SELECT key, value, received_at_us, expires_at_us, publisher FROM records WHERE key = ? AND expires_at_us > ?
"""
_RECORDS = """
    SELECT key, value, received_at_us, expires_at_us, publisher FROM records WHERE key > ? ORDER BY key LIMIT ?
"""

_ADD_PROVIDER = """
    INSERT INTO providers (multihash, provider, addresses, expires_at_us, location) VALUES (?, ?, ?, ?, ?)
"""
_PROVIDERS = """
    SELECT multihash, provider, addresses, expires_at_us FROM providers
    WHERE multihash = ? AND expires_at_us > ? ORDER BY expires_at_us DESC LIMIT ?
"""
_ALL_PROVIDERS = """
    SELECT multihash, provider, addresses, expires_at_us FROM providers
    WHERE (multihash, provider) > (?, ?) ORDER BY multihash, provider LIMIT ?
"""
_ADDRESSES = "SELECT addresses FROM providers WHERE (multihash, provider) = (?, ?)"
_OTHER_PROVIDERS = "SELECT count(*) FROM providers WHERE multihash = ? AND provider <> ? AND expires_at_us > ?"
_COUNT_OF_PEER = "SELECT count(*) FROM providers WHERE provider = ?"
_OLDEST_OF_PEER = "SELECT multihash FROM providers WHERE provider = ? ORDER BY expires_at_us, multihash LIMIT 1"


@dataclass(frozen=True, slots=True)
class _Table:
    """What is asked of a table and done to it, whichever it is.

    Attributes:
        read_load, write_load: how many rows there are, and their bytes.
        size_of, remove: of and by a row's name.
        read_ends, read_location: as :class:`~prime_dht.storage.room.Shelf` has it.
        expire: removes so many that have expired.
    """

    read_load: str
    write_load: str
    size_of: str
    remove: str
    read_ends: str
    read_location: str
    expire: str


def _table(table: str, *, name: str, size: str, load: tuple[str, str]) -> _Table:
    """The statements for a table.

    Args:
        name: the columns that are a row's name.
        size: the bytes of a row.
        load: the columns of ``totals`` that count rows and bytes.
    """
    unknown = ", ".join("?" for _ in name.split(","))
    within = f"FROM {table} WHERE location BETWEEN :first AND :last ORDER BY location"
    return _Table(
        read_load=f"SELECT {', '.join(load)} FROM totals",  # noqa: S608
        write_load=f"UPDATE totals SET {' = ?, '.join(load)} = ?",  # noqa: S608
        size_of=f"SELECT {size} FROM {table} WHERE ({name}) = ({unknown})",  # noqa: S608
        remove=f"DELETE FROM {table} WHERE ({name}) = ({unknown}) RETURNING {size}",  # noqa: S608
        read_ends=f"SELECT (SELECT location {within} LIMIT 1), (SELECT location {within} DESC LIMIT 1)",
        read_location=f"SELECT {size}, {name} FROM {table} WHERE location = ? ORDER BY expires_at_us, {name}",  # noqa: S608
        expire=f"""
            DELETE FROM {table} WHERE ({name}) IN (
                SELECT {name} FROM {table} WHERE expires_at_us <= ? ORDER BY expires_at_us, {name} LIMIT ?
            ) RETURNING {size}
        """,  # noqa: S608
    )


_RECORD_TABLE = _table("records", name="key", size=RECORD_SIZE, load=("records", "record_bytes"))
_PROVIDER_TABLE = _table(
    "providers", name="multihash, provider", size=PROVIDER_SIZE, load=("providers", "provider_bytes")
)


class _StoredShelf(Shelf[N]):
    """The rows of a table for the time of one operation."""

    def __init__(self, connection: sqlite3.Connection, table: _Table) -> None:
        self._connection = connection
        self._table = table
        self._load = Load(*connection.execute(table.read_load).fetchone())

    def write_load(self) -> None:
        """End the operation."""
        self._connection.execute(self._table.write_load, (self._load.count, self._load.bytes))

    def load(self) -> Load:
        return self._load

    def size_of(self, name: N) -> int | None:
        row = self._connection.execute(self._table.size_of, self._columns(name)).fetchone()
        return None if row is None else int(row[0])

    def held_in(self, block: range) -> tuple[int, int] | None:
        ends = {"first": block[0], "last": block[-1]}
        least, greatest = self._connection.execute(self._table.read_ends, ends).fetchone()
        return None if least is None else (least, greatest)

    def held_at(self, location: int) -> Iterator[tuple[N, int]]:
        for size_bytes, *columns in self._connection.execute(self._table.read_location, (location,)):
            yield self._name(*columns), size_bytes

    def evict(self, name: N) -> None:
        self._delete(self._table.remove, self._columns(name))

    def evict_expired(self, now_us: int) -> bool:
        return self.delete_expired(now_us, limit=1) > 0

    def delete_expired(self, now_us: int, limit: int) -> int:
        """Remove at most ``limit`` that have expired; returns how many."""
        return self._delete(self._table.expire, (now_us, limit))

    def _insert(self, statement: str, row: tuple[bytes | int | None, ...], size_bytes: int) -> None:
        self._connection.execute(statement, row)
        self._load = Load(self._load.count + 1, self._load.bytes + size_bytes)

    def _delete(self, statement: str, parameters: tuple[bytes | int, ...]) -> int:
        deleted = self._connection.execute(statement, parameters).fetchall()
        self._load = Load(self._load.count - len(deleted), self._load.bytes - sum(size for (size,) in deleted))
        return len(deleted)

    @abstractmethod
    def _columns(self, name: N) -> tuple[bytes, ...]:
        """The columns of a name."""

    @abstractmethod
    def _name(self, *columns: bytes) -> N:
        """The opposite of :meth:`_columns`."""


class StoredRecords(_StoredShelf[Key]):
    """Plain records; see the module."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection, _RECORD_TABLE)

    def hold(self, record: PlainRecord) -> None:
        """Put a record under its key, in place of what is there."""
        self.evict(record.key)
        expires_at_us = min(record.expires_at_us, MAX_INTEGER)
        columns = (record.key, record.value, record.received_at_us, expires_at_us, record.publisher)
        self._insert(_PUT_RECORD, (*columns, location_of(record.key)), record.size_bytes)

    def _columns(self, name: Key) -> tuple[bytes, ...]:
        return (name,)

    def _name(self, *columns: bytes) -> Key:
        (key,) = columns
        return Key(key)


class StoredProviders(_StoredShelf[ProviderName], ProviderShelf):
    """Provider records; see the module."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection, _PROVIDER_TABLE)

    def hold(self, record: ProviderRecord) -> None:
        """Put a record under its name, in place of what is there."""
        self.evict((record.multihash, record.provider))
        expires_at_us = min(record.expires_at_us, MAX_INTEGER)
        columns = (record.multihash, record.provider, joined(record.addresses), expires_at_us)
        self._insert(_ADD_PROVIDER, (*columns, location_of(record.multihash)), record.size_bytes)

    def others_of(self, name: ProviderName, now_us: int) -> int:
        (count,) = self._connection.execute(_OTHER_PROVIDERS, (*name, now_us)).fetchone()
        return int(count)

    def count_of(self, provider: PeerId) -> int:
        (count,) = self._connection.execute(_COUNT_OF_PEER, (provider,)).fetchone()
        return int(count)

    def addresses_of(self, name: ProviderName) -> tuple[bytes, ...] | None:
        row = self._connection.execute(_ADDRESSES, name).fetchone()
        return None if row is None else split(row[0])

    def oldest_of(self, provider: PeerId) -> ProviderName:
        (multihash,) = self._connection.execute(_OLDEST_OF_PEER, (provider,)).fetchone()
        return multihash, provider

    def _columns(self, name: ProviderName) -> tuple[bytes, ...]:
        return name

    def _name(self, *columns: bytes) -> ProviderName:
        multihash, provider = columns
        return multihash, PeerId(provider)


def put_record(connection: sqlite3.Connection, record: PlainRecord, capacity: Capacity, now_us: int) -> str:
    """Returns why it was refused; nothing if it was taken."""
    stored = StoredRecords(connection)
    refusal = ""
    try:
        make_room_for_record(record, stored, capacity, now_us=now_us)
        stored.hold(record)
    except ValidationError as error:
        refusal = str(error)
    stored.write_load()
    return refusal


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


def add_provider(connection: sqlite3.Connection, record: ProviderRecord, capacity: Capacity, now_us: int) -> str:
    """Returns why it was refused; nothing if it was taken."""
    stored = StoredProviders(connection)
    refusal = ""
    try:
        stored.hold(make_room_for_provider(record, stored, capacity, now_us=now_us))
    except ValidationError as error:
        refusal = str(error)
    stored.write_load()
    return refusal


def get_providers(connection: sqlite3.Connection, multihash: bytes, now_us: int, limit: int) -> list[ProviderRecord]:
    return [_provider(*row) for row in connection.execute(_PROVIDERS, (multihash, now_us, limit))]


def providers(connection: sqlite3.Connection, after: tuple[bytes, PeerId] | None, limit: int) -> list[ProviderRecord]:
    return [_provider(*row) for row in connection.execute(_ALL_PROVIDERS, (*(after or (b"", b"")), limit))]


def _provider(multihash: bytes, provider: bytes, addresses: bytes, expires_at_us: int) -> ProviderRecord:
    return ProviderRecord(
        multihash=multihash,
        provider=PeerId(provider),
        addresses=split(addresses),
        expires_at_us=TimestampUs(expires_at_us),
    )


def delete_expired(connection: sqlite3.Connection, now_us: int, limit: int) -> tuple[int, int]:
    """Remove at most ``limit`` that have expired; returns how many records and how many providers."""
    stored_records, stored_providers = StoredRecords(connection), StoredProviders(connection)
    expired_records = stored_records.delete_expired(now_us, limit)
    expired_providers = stored_providers.delete_expired(now_us, limit - expired_records)
    stored_records.write_load()
    stored_providers.write_load()
    return expired_records, expired_providers
