"""What the operations of a node return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prime_dht.entries.entry import BlobRef, Entry
from prime_dht.ids import KadKey, Key, OpId, PeerId, TimestampUs
from prime_dht.kad.keyspace import Prefix

NOT_IN_TIME = "no answer before the time was up"
"""Why a peer failed that might have answered later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PutReceipt:
    """Where an entry was stored.

    Attributes:
        key, subkey, op_id: what was put.
        created_at_us, expires_at_us: its times, in microseconds since the Unix epoch.
        stored_by: replicas that hold it durably; this node among them, if it is one.
        refused: replicas that would not take it, and why.
        failed: peers that were asked and did not answer properly, and why.
        wanted: r, the replicas that were asked for.
        needed: replicas that make it acknowledged: ⌊r/2⌋ + 1, at most the servers that are known.
        superseded: a newer entry stood in the slot at some replica, or came while the put waited for replicas to hold
            its blob, so a reader will not see this one.
        blob: what the entry refers to, if its value is a blob.
        held_by: of those that stored the entry, those that hold the blob, as far as the put waited for them.
    """

    key: Key
    subkey: bytes
    op_id: OpId
    created_at_us: TimestampUs
    expires_at_us: TimestampUs
    stored_by: tuple[PeerId, ...]
    refused: tuple[tuple[PeerId, str], ...] = ()
    failed: tuple[tuple[PeerId, str], ...] = ()
    wanted: int
    needed: int
    superseded: bool = False
    blob: BlobRef | None = None
    held_by: tuple[PeerId, ...] = ()

    @property
    def acknowledged(self) -> bool:
        """Whether enough replicas hold it durably, blob included, for it to outlive any minority of them."""
        return len(self.stored_by if self.blob is None else self.held_by) >= self.needed

    @property
    def warning(self) -> str | None:
        """One line for a person, if the put fell short of what was asked."""
        if self.superseded:
            return "a newer entry stands in this slot"
        if len(self.stored_by) < self.wanted:
            return f"stored by {len(self.stored_by)} of {self.wanted} replicas"
        if not self.acknowledged:
            return f"its blob is held by {len(self.held_by)} of {len(self.stored_by)} replicas so far"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An entry that a get found.

    Attributes:
        value: the bytes; empty if they are a blob that was not fetched, or were written to a file.
        blob: what blob it refers to, if it does.
        publisher: who signed it.
        envelope: its header as the publisher signed it, which proves to anyone what it says.
        answered: replicas whose answers were joined; 0 when it came from this node's cache.
    """

    key: Key
    subkey: bytes
    value: bytes = field(repr=False)
    blob: BlobRef | None
    publisher: PeerId
    op_id: OpId
    created_at_us: TimestampUs
    expires_at_us: TimestampUs
    content_type: str
    metadata: Mapping[str, str]
    envelope: bytes = field(repr=False)
    answered: int

    @classmethod
    def of(cls, entry: Entry, *, answered: int) -> Found:
        """Show a live entry to a reader."""
        header = entry.header
        return cls(
            key=header.key,
            subkey=header.subkey,
            value=entry.value or b"",
            blob=header.content if isinstance(header.content, BlobRef) else None,
            publisher=entry.publisher,
            op_id=entry.op_id,
            created_at_us=header.created_at_us,
            expires_at_us=header.expires_at_us,
            content_type=header.content_type,
            metadata=dict(header.metadata),  # what is found can be pickled, as a worker process does to hand it on
            envelope=entry.envelope,
            answered=answered,
        )


@dataclass(frozen=True, slots=True)
class FoundPage:
    """Some of a key's live entries, in the order of (publisher, subkey).

    ``next_cursor`` goes into the next call; ``None`` means that these are the last.
    """

    entries: tuple[Found, ...]
    next_cursor: bytes | None = None

    def __iter__(self) -> Iterator[Found]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordReceipt:
    """Where a plain record or a provider record was put.

    A provider record that nobody stored is announced again every minute, until somebody does.
    """

    key: bytes
    stored_by: tuple[PeerId, ...]
    failed: tuple[tuple[PeerId, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Provider:
    """A peer that says it has some content, and its multiaddrs."""

    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """A peer in the routing table.

    Attributes:
        connected: whether a connection to it is open.
        replicates: whether it can be a replica of ``/prime/`` keys.
        bucket: leading bits that its place has in common with this node's.
        source: how it was found first: ``bootstrap``, ``mdns``, ``kad``, ``manual`` or ``identify``.
        first_seen_us, last_seen_us: when it was heard from, in microseconds since the Unix epoch, across restarts.
    """

    peer: PeerId
    addresses: tuple[str, ...]
    connected: bool
    replicates: bool
    bucket: int
    source: str
    first_seen_us: TimestampUs | None
    last_seen_us: TimestampUs | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldArc:
    """The part of the keyspace that a node stores: the kad keys that share the first ``prefix_bits`` bits of its own.

    ``first`` and ``last`` are inclusive kad keys.
    """

    prefix_bits: int
    first: KadKey
    last: KadKey

    @classmethod
    def of(cls, arc: Prefix) -> HeldArc:
        """An arc as its ends."""
        return cls(prefix_bits=arc.length, first=KadKey(arc.keys.start), last=KadKey(arc.keys.stop - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """How much of what it is to store a server holds: has all of, as far as its replicas can tell.

    Attributes:
        sectors: of its target arc.
        held: those of them that it holds. Who knows no other server holds them all.
    """

    sectors: int
    held: int

    @property
    def is_settled(self) -> bool:
        """Whether nothing is missing."""
        return self.held == self.sectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a node is doing.

    Attributes:
        peers: contacts in the routing table.
        connected: peers with an open connection.
        keys, entries, bytes: what it stores.
        bucket_sizes: contacts per bucket, farthest first, up to the deepest that holds one.
        target_arc: what it is to store; ``None`` for a client.
        holding: how much of that it holds; ``None`` for a client. A swarm has settled when each of its servers has.
        warnings: what a person should look at, one line each; none means healthy.
    """

    peer_id: str
    mode: str
    peers: int
    connected: int
    keys: int
    entries: int
    bytes: int
    bucket_sizes: tuple[int, ...]
    target_arc: HeldArc | None
    holding: Holding | None
    warnings: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        return not self.warnings


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counters since the node started.

    Attributes:
        offences: breaches of protocol by peers.
        backed_off: peers that are neither answered nor asked now, because of theirs.
    """

    requests_sent: int
    requests_answered: Mapping[str, int]
    offences: int
    backed_off: int
    entries_stored: int
    events_dropped: int
    cache_hits: int
    bytes_stored: int
