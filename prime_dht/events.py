"""What a node tells its subscribers. Events are values; a subscriber that falls behind loses events, counted."""

from __future__ import annotations

from dataclasses import dataclass

from prime_dht.ids import KadKey, Key, OpId, PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerJoined:
    """A peer proved that it serves Kademlia and entered the routing table."""

    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLeft:
    """A peer left the routing table, and why."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryStored:
    """An entry became the newest in its slot on this node."""

    key: Key
    publisher: PeerId
    subkey: bytes
    op_id: OpId
    tombstone: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EntriesExpired:
    """A clean-up dropped values and retired ops."""

    values_dropped: int
    retired: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EntriesEvicted:
    """The store was full, and these ops went to make room: expired ones, or those furthest from this node."""

    op_ids: tuple[OpId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EntriesHandedOn:
    """Entries outside this node's arc were given to their replicas: so many were dropped here then, so many stay."""

    dropped: int
    kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncFinished:
    """A round of sync came to its end.

    Attributes:
        begun_here: whether this node began it.
        ending: ``equal``, ``equal-declined(n)``, ``partial(sectors left)``, ``refused(why)``, ``failed``, ``compared``.
        stored: entries that were new here.
        sent: entries that the peer was given.
        declined: entries that were refused for good.
        bytes_sent, bytes_received: on the stream.
    """

    peer: PeerId
    begun_here: bool
    ending: str
    stored: int
    sent: int
    declined: int
    bytes_sent: int
    bytes_received: int
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupProgress:
    """A lookup heard from a peer, or gave up on it.

    Attributes:
        told_by: who named the peer; ``None`` if this node's own table did.
        depth: 1 for a peer of the own table, otherwise one more than the teller's.
        distance: from the peer to the target.
        elapsed_s: from the request, once it could be sent, to the answer, or to the failure.
        heard_of: how many peers it named.
        failure: why there is no answer; empty if there is one.
    """

    target: KadKey
    peer: PeerId
    told_by: PeerId | None
    depth: int
    distance: int
    elapsed_s: float
    heard_of: int
    failure: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobFetched:
    """A fetch of a blob that this node has to keep came to its end.

    Attributes:
        cid: of its root, as text.
        key: of the entry for whose sake it was fetched.
        failure: why it did not come, and will be tried again; empty if it did.
    """

    cid: str
    key: Key
    size_bytes: int
    elapsed_s: float
    failure: str


Event = (
    PeerJoined
    | PeerLeft
    | EntryStored
    | EntriesExpired
    | EntriesEvicted
    | EntriesHandedOn
    | SyncFinished
    | LookupProgress
    | BlobFetched
)
