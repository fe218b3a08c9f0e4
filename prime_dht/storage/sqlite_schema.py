"""The tables of the SQLite backend, as the scripts that made them what they are.

``user_version`` says how many of :data:`MIGRATIONS` a file has seen; each runs in a transaction of its own, on a
connection that knows the function ``location_of``.

**Small rows.** What many rows share is not in them: the publisher's peer id stands in ``publishers``, and of the
envelope, whose encoding is canonical, only the *statement* is stored, the part behind what follows from the publisher
(:func:`stem_of`). Rows lie in the order of arrival, so their pages are full.

**Counts** of the store and of each publisher, in ``totals`` and ``publishers``, are kept by those who write, once for
each call and not by triggers for each row; so are those of plain records and of provider records.
"""

from __future__ import annotations

from prime_dht.entries.envelope import ENTRY
from prime_dht.ids import PeerId
from prime_dht.storage.capacity import LOCATION_BITS

APPLICATION_ID = int.from_bytes(b"PDHT", "big")

SECTOR_BITS = 9
"""Of the index of ops. It is the default network's, and serves those of finer or coarser sectors as well."""

STEM_BYTES = 54
"""What :func:`stem_of` is long."""

_PAYLOAD_TYPE = b"\x12" + bytes([len(ENTRY.payload_type)]) + ENTRY.payload_type

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
    # 2. One row for an entry and its value; publishers apart, with their counts; op ids indexed by their first 8 bytes;
    # entries that are not ops (retained for less than 5 minutes) have no sector.
    """
    CREATE TABLE publishers (
        id INTEGER PRIMARY KEY,
        peer BLOB NOT NULL UNIQUE,           -- peer id
        entries INTEGER NOT NULL,
        bytes INTEGER NOT NULL
    ) STRICT;
    INSERT INTO publishers (peer, entries, bytes)
        SELECT publisher, count(*), sum(length(envelope) + ifnull(length(value), 0))
        FROM entries LEFT JOIN inline_values USING (id) GROUP BY publisher;

    DROP TRIGGER entry_inserted;
    DROP TRIGGER entry_deleted;
    DROP TRIGGER value_inserted;
    DROP TRIGGER value_deleted;
    ALTER TABLE entries RENAME TO entries_1;
    CREATE TABLE entries (
        id INTEGER PRIMARY KEY,              -- in the order of arrival
        sector INTEGER,                      -- of an op: the top 9 bits of its location
        location INTEGER NOT NULL,           -- the top 32 bits of the kad key
        created_at_us INTEGER NOT NULL,
        expires_at_us INTEGER NOT NULL,
        retain_until_us INTEGER NOT NULL,
        is_tombstone INTEGER NOT NULL,
        publisher INTEGER NOT NULL,          -- id in publishers
        op_id BLOB NOT NULL,
        key BLOB NOT NULL,
        subkey BLOB NOT NULL,
        statement BLOB NOT NULL,             -- the envelope behind its stem
        value BLOB
    ) STRICT;
    INSERT INTO entries
        SELECT
            entries_1.id, iif(retain_until_us - created_at_us >= 300000000, location >> 23, NULL), location,
            created_at_us, entries_1.expires_at_us, retain_until_us, is_tombstone, publishers.id,
            op_id, key, subkey, substr(envelope, 55), value
        FROM entries_1
        JOIN publishers ON publishers.peer = entries_1.publisher
        LEFT JOIN inline_values ON inline_values.id = entries_1.id
        ORDER BY entries_1.id;
    DROP TABLE entries_1;
    DROP TABLE inline_values;
    CREATE UNIQUE INDEX entries_by_slot ON entries (key, publisher, subkey);
    CREATE INDEX entries_by_op_id ON entries (substr(op_id, 1, 8));
    CREATE INDEX entries_by_location ON entries (location);
    CREATE INDEX entries_by_retention ON entries (retain_until_us);
    CREATE INDEX entries_by_expiry ON entries (expires_at_us) WHERE value IS NOT NULL;
    CREATE INDEX ops ON entries (sector, created_at_us, op_id, location);

    ALTER TABLE totals ADD COLUMN ops INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE totals ADD COLUMN retired_before_us INTEGER NOT NULL DEFAULT 0;
    UPDATE totals SET ops = (SELECT count(sector) FROM entries);
    """,
    # 3. Plain records and provider records have limits too: counts, locations, and the order of a peer's own.
    """
    ALTER TABLE records ADD COLUMN location INTEGER NOT NULL DEFAULT 0;
    UPDATE records SET location = location_of(key);
    CREATE INDEX records_by_location ON records (location, expires_at_us);

    ALTER TABLE providers ADD COLUMN location INTEGER NOT NULL DEFAULT 0;
    UPDATE providers SET location = location_of(multihash);
    CREATE INDEX providers_by_location ON providers (location, expires_at_us);
    CREATE INDEX providers_by_peer ON providers (provider, expires_at_us);

    ALTER TABLE totals ADD COLUMN records INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE totals ADD COLUMN record_bytes INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE totals ADD COLUMN providers INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE totals ADD COLUMN provider_bytes INTEGER NOT NULL DEFAULT 0;
    UPDATE totals SET
        (records, record_bytes) = (SELECT count(*), ifnull(sum(length(key) + length(value)), 0) FROM records),
        (providers, provider_bytes) = (
            SELECT count(*), ifnull(sum(length(multihash) + length(provider) + length(addresses)), 0) FROM providers
        );
    """,
    # 4. Own slots are forgotten, those first that were retained least long.
    """
    CREATE INDEX own_slots_by_retention ON own_slots (retain_until_us);
    """,
)


def sector_of(location: int) -> int:
    """The sector of an op at a location."""
    return location >> (LOCATION_BITS - SECTOR_BITS)


def stem_of(publisher: PeerId) -> bytes:
    """How every envelope of a publisher begins: public key and payload type, the first two of its four fields.

    The peer id of an Ed25519 key is the key itself behind the two bytes of the identity multihash.
    """
    public_key = publisher[2:]
    return b"".join((b"\x0a", bytes([len(public_key)]), public_key, _PAYLOAD_TYPE))
