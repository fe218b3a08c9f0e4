"""Things to put into a store: what the conformance suite, and other tests of storage, are made of.

Times are literal microseconds: what is made here lives in [100, 1000) unless told otherwise, and the time is 200.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from prime_dht.entries.access import group_key
from prime_dht.entries.capability import grant
from prime_dht.entries.codec import inline
from prime_dht.entries.entry import Entry, EntryHeader, Tombstone
from prime_dht.entries.signing import sign_entry
from prime_dht.ids import Key, PeerId, TimestampUs
from prime_dht.storage.base import EntryQuery, Gone, KnownPeer, PlainRecord, ProviderRecord, StorageBackend

NOW_US = 200
KEY = Key(b"/prime/model")
OTHER_KEY = Key(b"/prime/other")
_ROOT = create_new_key_pair(bytes([9]) * 32)
GROUP_KEY = group_key(_ROOT.public_key, b"round")
"""Of a group whose members are all of the writers."""

WRITERS = tuple(create_new_key_pair(bytes([seed]) * 32).private_key for seed in range(3))


def make_entry(
    value: bytes | None = b"value",
    *,
    key: Key = KEY,
    writer: int = 0,
    subkey: bytes = b"",
    created_at_us: int = 100,
    expires_at_us: int = 1000,
    retain_until_us: int | None = None,
) -> Entry:
    """A signed entry with a value, or a tombstone if that is ``None``, by one of :data:`WRITERS`."""
    key_of_writer = WRITERS[writer]
    capability = b""
    if key == GROUP_KEY:
        member = PeerId(ID.from_pubkey(key_of_writer.get_public_key()).to_bytes())
        capability = grant(_ROOT.private_key, member=member, expires_at_us=expires_at_us, network_id="conformance")
    header = EntryHeader(
        network_id="conformance",
        key=key,
        subkey=subkey,
        created_at_us=TimestampUs(created_at_us),
        expires_at_us=TimestampUs(expires_at_us),
        retain_until_us=TimestampUs(expires_at_us if retain_until_us is None else retain_until_us),
        content=Tombstone() if value is None else inline(value),
        capability=capability,
    )
    return sign_entry(header, key_of_writer, value)


def bare(entry: Entry) -> Entry:
    """The entry without its value."""
    return replace(entry, value=None)


async def read_all(backend: StorageBackend, query: EntryQuery, *, now_us: int = NOW_US) -> list[Entry]:
    """The entries of all pages of a query."""
    page = await backend.get_entries(query, now_us=now_us)
    entries = list(page.entries)
    while page.next_cursor:
        page = await backend.get_entries(replace(query, cursor=page.next_cursor), now_us=now_us)
        entries += page.entries
    return entries


def in_slot_order(entries: Sequence[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (entry.publisher, entry.header.subkey))


def in_op_id_order(gone: Iterable[Gone]) -> tuple[Gone, ...]:
    return tuple(sorted(gone, key=lambda one: one.op_id))


def record(name: bytes, *, value: bytes = b"record", expires_at_us: int = 1000) -> PlainRecord:
    return PlainRecord(
        key=Key(b"/pk/" + name),
        value=value,
        received_at_us=TimestampUs(NOW_US),
        expires_at_us=TimestampUs(expires_at_us),
    )


def provider(name: bytes, *, multihash: bytes = b"content", expires_at_us: int = 1000) -> ProviderRecord:
    return ProviderRecord(
        multihash=multihash,
        provider=PeerId(name),
        addresses=(b"address 1", b"", b"address 2"),
        expires_at_us=TimestampUs(expires_at_us),
    )


def known_peer(name: bytes, *, first_seen_us: int = 100, last_seen_us: int = 100, source: str = "lookup") -> KnownPeer:
    return KnownPeer(
        peer=PeerId(name),
        addresses=(b"address",),
        source=source,
        first_seen_us=TimestampUs(first_seen_us),
        last_seen_us=TimestampUs(last_seen_us),
    )
