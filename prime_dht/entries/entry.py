"""The entry: one signed, immutable statement by one publisher about one slot.

A *slot* is (key, publisher, subkey). In a slot the newest entry stands, by the total order
(created_at_us, op_id). An entry says one of three things of its slot: an inline value, a reference to a blob, or, as a
tombstone, that there is nothing. Its life has two ends: at ``expires_at_us`` the value is dropped and the slot reads as
absent; the header stays, so that no older entry with a longer life can rise again, until the tick after
``retain_until_us``.

The value travels beside the header, so a header can outlive its value: ``Entry.value`` is ``None`` for tombstones,
blobs, and inline values that were dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple

from prime_dht.ids import Key, OpId, PeerId, TimestampUs


class Compression(IntEnum):
    """How an inline value's bytes are compressed; the hash and size are those of the compressed bytes.

    Only ``NONE`` is admitted, until something here decompresses (:mod:`prime_dht.entries.admission`).
    """

    NONE = 0
    ZSTD = 1


@dataclass(frozen=True, slots=True)
class Inline:
    """The value itself travels beside the header."""

    sha256: bytes
    size: int


@dataclass(frozen=True, slots=True)
class BlobRef:
    """The value is the blob under a root CID."""

    cid: bytes
    size: int
    chunker: str


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The slot holds nothing."""


Content = Inline | BlobRef | Tombstone

NO_METADATA: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryHeader:
    """What the publisher signs. Times are microseconds since the Unix epoch."""

    network_id: str
    key: Key
    subkey: bytes = b""
    created_at_us: TimestampUs
    expires_at_us: TimestampUs
    retain_until_us: TimestampUs
    content: Content
    content_type: str = ""
    compression: Compression = Compression.NONE
    encryption: int = 0
    metadata: Mapping[str, str] = field(default_factory=lambda: NO_METADATA)
    capability: bytes = b""


class Version(NamedTuple):
    """The place of an entry in its slot's total order: the greatest stands."""

    created_at_us: TimestampUs
    op_id: OpId


class Slot(NamedTuple):
    """What an entry is about: of one slot, one entry stands."""

    key: Key
    publisher: PeerId
    subkey: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A header, who signed it, its identity, the envelope as received, and the value if it is still there.

    Equality is that of all fields; two entries with one op id are the same statement.
    """

    header: EntryHeader
    publisher: PeerId
    op_id: OpId
    envelope: bytes = field(repr=False)
    value: bytes | None = field(default=None, repr=False)

    @property
    def slot(self) -> Slot:
        return Slot(self.header.key, self.publisher, self.header.subkey)

    @property
    def version(self) -> Version:
        return Version(self.header.created_at_us, self.op_id)

    @property
    def is_tombstone(self) -> bool:
        return isinstance(self.header.content, Tombstone)

    def is_live(self, now_us: int) -> bool:
        """Whether a reader may see it: not a tombstone and not expired."""
        return now_us < self.header.expires_at_us and not self.is_tombstone

    @property
    def size_bytes(self) -> int:
        """What it costs a store: envelope and value."""
        return len(self.envelope) + (len(self.value) if self.value is not None else 0)
