"""The SQL for all that is not entries: each function is one operation on a connection, and blocks."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from prime_dht.entries.entry import Slot
from prime_dht.ids import Key, PeerId, TimestampUs
from prime_dht.storage.base import KnownPeer, OwnSlot, PlainRecord, ProviderRecord

MAX_INTEGER = (1 << 63) - 1

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
_ALL_PROVIDERS = """
    SELECT multihash, provider, addresses, expires_at_us FROM providers
    WHERE (multihash, provider) > (?, ?) ORDER BY multihash, provider LIMIT ?
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
_OWN_SLOTS = """
    SELECT key, publisher, subkey, created_at_us, retain_until_us FROM own_slots
    WHERE (key, publisher, subkey) > (?, ?, ?) ORDER BY key, publisher, subkey LIMIT ?
"""

_READ_META = "SELECT value FROM meta WHERE name = ?"
_META_NAMES = "SELECT name FROM meta ORDER BY name"
_PUT_META = "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)"


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
    return [_provider(*row) for row in connection.execute(_PROVIDERS, (multihash, now_us, limit))]


def providers(connection: sqlite3.Connection, after: tuple[bytes, PeerId] | None, limit: int) -> list[ProviderRecord]:
    return [_provider(*row) for row in connection.execute(_ALL_PROVIDERS, (*(after or (b"", b"")), limit))]


def _provider(multihash: bytes, provider: bytes, addresses: bytes, expires_at_us: int) -> ProviderRecord:
    return ProviderRecord(
        multihash=multihash,
        provider=PeerId(provider),
        addresses=_split(addresses),
        expires_at_us=TimestampUs(expires_at_us),
    )


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


def own_slots(connection: sqlite3.Connection, after: Slot | None, limit: int) -> list[OwnSlot]:
    behind = (b"", b"", b"") if after is None else (after.key, after.publisher, after.subkey)
    return [
        OwnSlot(Slot(Key(key), PeerId(publisher), subkey), TimestampUs(created_at_us), TimestampUs(retain_until_us))
        for key, publisher, subkey, created_at_us, retain_until_us in connection.execute(_OWN_SLOTS, (*behind, limit))
    ]


def get_meta(connection: sqlite3.Connection, name: str) -> bytes | None:
    row = connection.execute(_READ_META, (name,)).fetchone()
    return None if row is None else bytes(row[0])


def put_meta(connection: sqlite3.Connection, name: str, value: bytes) -> None:
    connection.execute(_PUT_META, (name, value))


def meta_names(connection: sqlite3.Connection) -> list[str]:
    return [name for (name,) in connection.execute(_META_NAMES)]


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
