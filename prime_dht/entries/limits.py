"""What one entry, one key, one publisher may take up: explicit, and enforced on both ends with a clear error.

A writer checks its entry before signing it, a replica before storing it, with the same :class:`Limits`. They are
configurable; ``max_ttl_s`` is a parameter of the network, on which its nodes agree, because a tombstone whose writer
forgot what it hides relies on it. The others are each node's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple, assert_never

from prime_dht.entries.entry import BlobRef, Entry, Inline, Tombstone
from prime_dht.entries.envelope import MAX_ENVELOPE_BYTES
from prime_dht.errors import ConfigError, ValidationError
from prime_dht.ids import US_PER_S
from prime_dht.quantities import settle_numbers

MAX_ENTRY_BYTES = (1 << 20) - (64 << 10)
"""Of an entry, envelope and value, that travels: a message between replicas is of 1 MiB, and has more in it."""

MAX_DURATION_S = 100 * 365 * 86_400
"""A century: a time in microseconds and this together have 64 bits."""

MAX_NUMBER = 1 << 53
"""Beyond it a float no longer tells neighbours apart."""

_STORE = "the store"


class Occupancy(NamedTuple):
    """What a store holds without the entry in question and the one it would displace from its slot.

    Attributes:
        slots_of_key: of the publisher alone, if it has a share of its own in them
            (:func:`~prime_dht.entries.access.shares_slots`).
    """

    slots_of_key: int = 0
    store_entries: int = 0
    store_bytes: int = 0
    publisher_entries: int = 0
    publisher_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Upper bounds, all inclusive.

    Raises:
        ConfigError: a limit is not a positive number, or more than the format allows, or than can travel.
    """

    max_key_bytes: int = 1024
    """Of a key's wire form, ``/prime/`` included."""

    max_subkey_bytes: int = 256
    """Of a subkey."""

    max_inline_bytes: int = 64 << 10
    """Of a value that travels beside its header, compressed if it is; larger ones are blobs. With a header of
    ``max_envelope_bytes`` it takes 960 KiB at most."""

    max_envelope_bytes: int = 8 << 10
    """Of the signed header: key, subkey, metadata, capability and some 300 bytes more; below the format's 64 KiB."""

    max_metadata_items: int = 32
    """Names in an entry's metadata."""

    max_metadata_bytes: int = 4 << 10
    """Of all names and values together, as UTF-8."""

    max_content_type_bytes: int = 255
    """A media type: two names of 127 characters (RFC 6838, section 4.2) and a slash."""

    max_capability_bytes: int = 512
    """Of what lets a member of a group write under its keys."""

    max_ttl_s: float = 30 * 86_400.0
    """From created_at to expires_at, and to retain_until; a network parameter."""

    clock_skew_s: float = 600.0
    """How far ahead of this node's clock an entry may be dated; one dated further is deferred."""

    max_slots_per_key: int = 4096
    """Retained slots under one key, over all publishers and subkeys; in a group's key, of each publisher."""

    max_store_entries: int = 1_000_000
    """In the store."""

    max_store_bytes: int = 16 << 30
    """Of envelopes and values in the store."""

    max_publisher_entries: int = 100_000
    """Of one publisher."""

    max_publisher_bytes: int = 4 << 30
    """Of one publisher's envelopes and values."""

    max_blob_bytes: int = 32 << 30
    """Of a blob that an entry refers to."""

    max_publisher_blob_bytes: int = 32 << 30
    """Of all blobs that one publisher's entries refer to, in this node's block store: half of what that takes."""

    max_records: int = 100_000
    """Plain records in the store."""

    max_records_bytes: int = 64 << 20
    """Of their keys and values: twice what so many public keys and IPNS records take."""

    max_providers: int = 200_000
    """Provider records in the store."""

    max_providers_bytes: int = 64 << 20
    """Of their multihashes, peer ids and addresses: 330 bytes each, which is some seven addresses."""

    max_providers_per_key: int = 1000
    """Providers of one content that have not expired; a reader is told of 100."""

    max_providers_per_peer: int = 20_000
    """Contents that one peer provides, as far as this store knows; the one it announced longest ago makes room."""

    def __post_init__(self) -> None:
        settle_numbers(self)
        for field in fields(self):
            limit = getattr(self, field.name)
            if not (limit > 0 and math.isfinite(limit)):
                raise ConfigError(f"{field.name} must be a positive number, not {limit}")
            most = MAX_DURATION_S if field.name.endswith("_s") else MAX_NUMBER
            if limit > most:
                raise ConfigError(f"{field.name} cannot exceed {most:,}, not {limit:,}")
        if self.max_envelope_bytes > MAX_ENVELOPE_BYTES:
            raise ConfigError(f"max_envelope_bytes cannot exceed the format's {MAX_ENVELOPE_BYTES}")
        if self.max_inline_bytes + self.max_envelope_bytes > MAX_ENTRY_BYTES:
            most = MAX_ENTRY_BYTES - self.max_envelope_bytes
            raise ConfigError(
                f"max_inline_bytes cannot exceed {most:,} beside max_envelope_bytes, not {self.max_inline_bytes:,}: "
                "a larger entry would reach no replica"
            )

    @property
    def max_ttl_us(self) -> int:
        return int(self.max_ttl_s * US_PER_S)

    @property
    def clock_skew_us(self) -> int:
        return int(self.clock_skew_s * US_PER_S)

    def check(self, entry: Entry) -> None:
        """Check what can be checked by looking at the entry alone.

        Raises:
            ValidationError: it exceeds a limit; the message names the limit and says by how much.
        """
        header = entry.header
        _within("key", len(header.key), self.max_key_bytes, "bytes")
        _within("subkey", len(header.subkey), self.max_subkey_bytes, "bytes")
        _within("content type", len(header.content_type.encode()), self.max_content_type_bytes, "bytes")
        if header.metadata:
            _within("metadata", len(header.metadata), self.max_metadata_items, "items")
            metadata_bytes = sum(len(name.encode()) + len(value.encode()) for name, value in header.metadata.items())
            _within("metadata", metadata_bytes, self.max_metadata_bytes, "bytes")
        _within("capability", len(header.capability), self.max_capability_bytes, "bytes")
        _within("signed header", len(entry.envelope), self.max_envelope_bytes, "bytes")
        _within("ttl", (header.retain_until_us - header.created_at_us) / US_PER_S, self.max_ttl_s, "s")
        match header.content:
            case Inline(_, size):
                _within("inline value", size, self.max_inline_bytes, "bytes")
            case BlobRef(_, size):
                _within("blob", size, self.max_blob_bytes, "bytes")
            case Tombstone():
                pass
            case _:
                assert_never(header.content)

    def check_room(self, entry: Entry, occupancy: Occupancy) -> None:
        """Check whether a store that holds so much can take the entry as well.

        Raises:
            ValidationError: a count or size would exceed its limit.
        """
        size = entry.size_bytes
        _within("the key", occupancy.slots_of_key + 1, self.max_slots_per_key, "slots")
        _within(_STORE, occupancy.store_entries + 1, self.max_store_entries, "entries")
        _within(_STORE, occupancy.store_bytes + size, self.max_store_bytes, "bytes")
        _within("the publisher", occupancy.publisher_entries + 1, self.max_publisher_entries, "entries")
        _within("the publisher", occupancy.publisher_bytes + size, self.max_publisher_bytes, "bytes")

    def check_blobs(self, publisher_blob_bytes: int) -> None:
        """Check whether one publisher's blobs may have so many bytes.

        Raises:
            ValidationError: they may not.
        """
        _within("the publisher", publisher_blob_bytes, self.max_publisher_blob_bytes, "bytes of blobs")

    def check_records(self, count: int, size_bytes: int) -> None:
        """Check whether a store may hold so many plain records, of so many bytes.

        Raises:
            ValidationError: a count or size would exceed its limit.
        """
        _within("the store", count, self.max_records, "plain records")
        _within("the store", size_bytes, self.max_records_bytes, "bytes of plain records")

    def check_providers(self, count: int, size_bytes: int) -> None:
        """Check whether a store may hold so many provider records, of so many bytes.

        Raises:
            ValidationError: a count or size would exceed its limit.
        """
        _within("the store", count, self.max_providers, "providers")
        _within("the store", size_bytes, self.max_providers_bytes, "bytes of providers")

    def check_providers_of_key(self, count: int) -> None:
        """Check whether one content may have so many providers.

        Raises:
            ValidationError: it may not.
        """
        _within("the content", count, self.max_providers_per_key, "providers")


DEFAULT_LIMITS = Limits()


def is_about_store(refusal: str) -> bool:
    """Whether it is the store that has no room, not just one key or publisher, as :meth:`Limits.check_room` said it.

    >>> is_about_store("the store: 11 entries; the limit is 10 entries")
    True
    """
    return refusal.startswith(f"{_STORE}: ")


def _within(what: str, actual: float, limit: float, unit: str) -> None:
    if actual > limit:
        raise ValidationError(f"{what}: {actual:,} {unit}; the limit is {limit:,} {unit}")
