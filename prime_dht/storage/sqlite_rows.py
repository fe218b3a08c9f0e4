"""The SQL for known peers, own slots and metadata: each function is one operation on a connection, and blocks."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from prime_dht.entries.entry import Slot
from prime_dht.ids import Key, PeerId, TimestampUs
from prime_dht.storage.base import KnownPeer, OwnSlot
from prime_dht.storage.joined import joined, split

MAX_INTEGER = (1 << 63) - 1

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
_FORGET_OWN_SLOTS = """
    DELETE FROM own_slots WHERE (key, publisher, subkey) IN (
        SELECT key, publisher, subkey FROM own_slots WHERE retain_until_us < ? ORDER BY retain_until_us LIMIT ?
    )
"""

_READ_META = "SELECT value FROM meta WHERE name = ?"
_META_NAMES = "SELECT name FROM meta ORDER BY name"
_PUT_META = "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)"


def put_peers(connection: sqlite3.Connection, peers: Sequence[KnownPeer]) -> None:
    connection.executemany(
        _PUT_PEER,
        ((peer.peer, joined(peer.addresses), peer.source, peer.first_seen_us, peer.last_seen_us) for peer in peers),
    )


def peers(connection: sqlite3.Connection, limit: int) -> list[KnownPeer]:
    return [
        KnownPeer(
            peer=PeerId(peer),
            addresses=split(addresses),
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


def forget_own_slots(connection: sqlite3.Connection, before_us: int, limit: int) -> int:
    """Forget at most ``limit`` that were retained until before ``before_us``; returns how many."""
    return connection.execute(_FORGET_OWN_SLOTS, (before_us, limit)).rowcount


def get_meta(connection: sqlite3.Connection, name: str) -> bytes | None:
    row = connection.execute(_READ_META, (name,)).fetchone()
    return None if row is None else bytes(row[0])


def put_meta(connection: sqlite3.Connection, name: str, value: bytes) -> None:
    connection.execute(_PUT_META, (name, value))


def meta_names(connection: sqlite3.Connection) -> list[str]:
    return [name for (name,) in connection.execute(_META_NAMES)]
