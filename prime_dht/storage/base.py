"""The storage interface. A backend is one class with these methods; the rest of the node never sees a database.

What a backend promises:

- **Newest wins, per slot, atomically.** ``put_entries`` keeps, of the entry it has in a slot and the one it is given,
  the one whose :class:`~prime_dht.entries.entry.Version` is greater, and says for each entry what happened.
- **Durable when it returns.** What ``put_entries`` reports as inserted survives the death of the process.
- **Idempotent.** The same entry again is ``DUPLICATE`` and changes nothing, except that it brings a value the backend
  lacks, as long as the entry has not expired.
- **Absent on time.** From ``expires_at_us`` on no read returns an entry's value, whether or not ``delete_expired`` has
  dropped it yet.
- **Within its capacity.** No put takes the store beyond its :class:`~prime_dht.storage.capacity.Capacity`, which says
  what goes first when it is full. What is refused or evicted is reported.
- **What retired stays away**, though the clock be set back: the latest ``retire_before_us`` that ``delete_expired`` was
  given is kept, durably, and ``put_entries`` refuses what was retained until before it. The join's law needs a replica
  whose clock never steps back (:mod:`prime_dht.entries.join`); for what has retired, this makes it one. A time more
  than :data:`MAX_STEP_BACK_US` ahead of a call's ``now_us`` is forgotten: then the clock was wrong before, not now.
- **Whole or not at all.** A cancelled call has either done all of its work or none of it, and harms no other call.
- **Time is an argument.** ``now_us`` is microseconds since the Unix epoch; backends have no clock. They may take a
  time from 2**63 on (the year 294,247) as 2**63 - 1.

Deciding what may enter (signatures, sizes, policy) is the caller's work; a backend stores what it is given.
:class:`prime_dht.testing.storage_conformance.StorageConformance` checks all of this.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from trio.abc import AsyncResource

from prime_dht.entries.entry import Entry, Slot, Version
from prime_dht.entries.lifetime import is_op
from prime_dht.ids import US_PER_S, Key, OpId, PeerId, TimestampUs
from prime_dht.storage.capacity import Capacity, location_of

OP_ID_BYTES = 32

OP_ID_HEAD_BYTES = 8
"""Of an op id, those that an index is made of."""

MAX_STEP_BACK_US = 86_400 * US_PER_S
"""How far a clock may be set back while what retired is still kept away: a day."""


class PutOutcome(Enum):
    """What became of one entry given to ``put_entries``."""

    INSERTED = "inserted"
    DUPLICATE = "duplicate"
    SUPERSEDED = "superseded"
    REFUSED = "refused"


# Of these there is at least one for each entry that is stored, and named tuples are made in half the time.


class Op(NamedTuple):
    """What the partition sees of an entry; ``location`` is the top 32 bits of its key's kad key."""

    op_id: OpId
    location: int
    created_at_us: TimestampUs

    @property
    def version(self) -> Version:
        return Version(self.created_at_us, self.op_id)


class Gone(NamedTuple):
    """An entry that left the store: its op id, and what the partition saw of it, ``None`` if it was no op."""

    op_id: OpId
    op: Op | None = None

    @classmethod
    def of(cls, entry: Entry) -> Gone:
        """What is left of an entry that goes."""
        if not is_op(entry):
            return cls(entry.op_id)
        return cls(entry.op_id, Op(entry.op_id, location_of(entry.header.key), entry.header.created_at_us))


class PutResult(NamedTuple):
    """The outcome for one entry, what it displaced from its slot, and, where refused, why.

    ``evicted`` is what went to make room for it, in that order. What had expired goes even for one that is
    refused in the end.
    """

    outcome: PutOutcome
    displaced: Gone | None = None
    reason: str = ""
    evicted: tuple[Gone, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpArrays:
    """Ops as columns, row i of each array for one op, and where to go on; an empty cursor means this is the end.

    Attributes:
        op_ids: uint8, of shape (n, 32).
        locations: uint32, of shape (n,).
        created_at_us: int64, of shape (n,).
    """

    op_ids: NDArray[np.uint8]
    locations: NDArray[np.uint32]
    created_at_us: NDArray[np.int64]
    next_cursor: bytes = b""

    @classmethod
    def of(cls, ops: Sequence[Op], next_cursor: bytes = b"") -> OpArrays:
        """The columns of some ops."""
        return cls(
            op_ids=np.frombuffer(b"".join(op.op_id for op in ops), np.uint8).reshape(-1, OP_ID_BYTES),
            locations=np.array([op.location for op in ops], np.uint32),
            created_at_us=np.array([op.created_at_us for op in ops], np.int64),
            next_cursor=next_cursor,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryQuery:
    """Which of a key's slots to read. Empty ``subkeys`` or ``publishers`` mean any.

    ``include_expired`` also returns entries that have expired but are still retained, as bare headers. Tombstones are
    always returned, expired or not: they are the answer.

    ``newest`` keeps, of what the rest of the query selects, the newest live entry and those that are newer than it. A
    reader needs the latter although they say nothing: they take away what another replica, which is behind, may still
    have in their slots. They hide nothing in other slots.

    ``cursor`` is the ``next_cursor`` of the page before, opaque to the caller; ``max_bytes`` bounds the sum of entries'
    ``size_bytes``, but a page never comes back empty while an entry matches.
    """

    key: Key
    subkeys: tuple[bytes, ...] = ()
    publishers: tuple[PeerId, ...] = ()
    newest: bool = False
    include_expired: bool = False
    cursor: bytes = b""
    max_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class EntryPage:
    """Entries in the order of (publisher, subkey), and where to go on; an empty cursor means this is the end."""

    entries: tuple[Entry, ...]
    next_cursor: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainRecord:
    """A record of a namespace other than ``/prime/``: the bytes, and when this node received or wrote it."""

    key: Key
    value: bytes
    received_at_us: TimestampUs
    expires_at_us: TimestampUs
    publisher: PeerId | None = None

    @property
    def size_bytes(self) -> int:
        """What it counts for in a store: key and value."""
        return len(self.key) + len(self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderRecord:
    """That a peer has the content under a multihash, where the peer may be reached, and until when to believe it."""

    multihash: bytes
    provider: PeerId
    addresses: tuple[bytes, ...]
    expires_at_us: TimestampUs

    @property
    def size_bytes(self) -> int:
        """What it counts for in a store: multihash, peer id, and each address with its length, 4 bytes."""
        return len(self.multihash) + len(self.provider) + sum(4 + len(address) for address in self.addresses)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPeer:
    """A peer remembered across restarts: binary multiaddrs, how it was found, and when it last answered."""

    peer: PeerId
    addresses: tuple[bytes, ...]
    source: str
    first_seen_us: TimestampUs
    last_seen_us: TimestampUs


@dataclass(frozen=True, slots=True)
class OwnSlot:
    """The last entry this node wrote in one of its own slots: what its next write there must come after.

    A write at any time later than ``retain_until_us`` comes after it by itself. So a day after that, which is how far a
    clock may be set back, it may be forgotten.
    """

    slot: Slot
    created_at_us: TimestampUs
    retain_until_us: TimestampUs


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired:
    """What ``delete_expired`` removed: entries that left for good, and how many values, records and so on went."""

    retired: tuple[Gone, ...] = ()
    values_dropped: int = 0
    records: int = 0
    providers: int = 0
    own_slots: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """Counts and sizes.

    ``keys`` are distinct keys with at least one entry; ``bytes`` are those of the entries, envelopes and values;
    ``ops`` are the entries that the partition sees.
    """

    keys: int
    entries: int
    bytes: int
    records: int
    providers: int
    peers: int
    ops: int = 0


class StorageBackend(AsyncResource):
    """See the module. Every method may raise :class:`~prime_dht.errors.StorageError`.

    One that writes raises :class:`~prime_dht.errors.NotWrittenError` if it is certain that it has changed nothing.
    After any other error of one that does, a node reads all ops again, to know what there is.

    As a trio resource it can be the subject of ``async with``, which closes it at the end.

    Attributes:
        capacity: what it may hold. The node that uses it says here what it is responsible for.
    """

    capacity: Capacity

    @property
    def is_immediate(self) -> bool:
        """Whether :meth:`put_entries_now` and :meth:`get_entries_now` are there: nothing has to be waited for."""
        return False

    def put_entries_now(self, entries: Sequence[Entry], *, now_us: int) -> list[PutResult]:
        """As :meth:`put_entries`, where the backend is immediate: to be waited for costs more than the put."""
        raise NotImplementedError

    def get_entries_now(self, query: EntryQuery, *, now_us: int) -> EntryPage:
        """As :meth:`get_entries`, where the backend is immediate."""
        raise NotImplementedError

    @abstractmethod
    async def put_entries(self, entries: Sequence[Entry], *, now_us: int) -> list[PutResult]:
        """Join entries into the store, all or none durable, one result for each in order.

        An entry that has expired at ``now_us`` is stored as a bare header. Of two entries in one call for one slot the
        greater version stands, whatever their order. Each is judged by the store as those before it have left it.

        It is refused, with a reason, if it has retired, or if there is no room for it (:class:`Capacity`): then what
        stood in its slot stays. A duplicate that is refused is one whose lacking value has no room.
        """

    @abstractmethod
    async def get_entries(self, query: EntryQuery, *, now_us: int) -> EntryPage:
        """Read a key's slots, as the query says.

        Raises:
            ValidationError: the cursor is none that this backend gave.
        """

    @abstractmethod
    async def get_ops(self, op_ids: Sequence[OpId], *, now_us: int) -> list[Entry]:
        """Read entries by op id, each once, in any order; ids it does not hold are left out.

        Those expired at ``now_us`` come as bare headers.
        """

    @abstractmethod
    async def ops(
        self, *, locations: range, created_us: range, after: Version | None = None, limit: int = 1000
    ) -> list[Op]:
        """The next ``limit`` ops in an arc and a time slice, in the order of their versions, starting behind ``after``.

        Entries that are not ops (:func:`~prime_dht.entries.lifetime.is_op`) are left out.

        Args:
            locations: [start, stop) within [0, 2**32).
            created_us: [start, stop) of ``created_at_us``.
            after: the version of the last op of the page before.
        """

    @abstractmethod
    async def scan_ops(self, *, after: bytes = b"", limit: int = 65_536) -> OpArrays:
        """The next ``limit`` of all ops, in an order of the backend's own; for reading all of them at start.

        A pass gives each op that is there throughout just once, and of those that come or go meanwhile, any.

        Args:
            after: the ``next_cursor`` of the page before, which no other backend understands.
        """

    async def find_ops(self, prefixes: Sequence[bytes]) -> list[OpId]:
        """The op ids of the ops that begin with these bytes, 8 or more, in any order.

        That is how sync names ops. Here it is a pass over all of them; a backend with an index overrides this.
        """
        wanted = frozenset(prefixes)
        lengths = {len(prefix) for prefix in wanted}
        found: list[OpId] = []
        cursor = b""
        while wanted:
            page = await self.scan_ops(after=cursor)
            ids = page.op_ids.tobytes()
            op_ids = (OpId(ids[at : at + OP_ID_BYTES]) for at in range(0, len(ids), OP_ID_BYTES))
            found += (op_id for op_id in op_ids if any(op_id[:length] in wanted for length in lengths))
            if not (cursor := page.next_cursor):
                break
        return found

    @abstractmethod
    async def keys(self, *, after: Key | None = None, limit: int = 1000) -> list[Key]:
        """The next ``limit`` keys that hold an entry, in byte order, starting behind ``after``."""

    @abstractmethod
    async def remove_ops(self, op_ids: Sequence[OpId]) -> list[Gone]:
        """Forget entries this node need not keep; returns those it held, in any order."""

    @abstractmethod
    async def delete_expired(self, *, now_us: int, retire_before_us: int, limit: int = 1000) -> Expired:
        """Delete entries with ``retain_until_us < retire_before_us`` and drop values expired at ``now_us``.

        Also deletes plain records and providers expired at ``now_us``, and forgets own slots with ``retain_until_us``
        more than :data:`MAX_STEP_BACK_US` before this ``retire_before_us``. Touches at most ``limit`` of all these, so
        that other calls need not wait for long: call again until nothing is left to report. A value that goes with its
        entry is not counted as dropped. Entries go by a later ``retire_before_us`` if a call before gave one.
        """

    @abstractmethod
    async def put_record(self, record: PlainRecord, *, now_us: int) -> None:
        """Store or replace a plain record.

        Raises:
            ValidationError: there is no room for it (:class:`Capacity`). What is held under its key stays.
        """

    @abstractmethod
    async def get_record(self, key: Key, *, now_us: int) -> PlainRecord | None:
        """The plain record under a key, unless it has expired."""

    @abstractmethod
    async def records(self, *, after: Key | None = None, limit: int = 1000) -> list[PlainRecord]:
        """The next ``limit`` plain records in byte order of their keys, expired ones too, starting behind ``after``."""

    @abstractmethod
    async def add_provider(self, record: ProviderRecord, *, now_us: int) -> None:
        """Store or refresh a provider record; with the addresses that are held, if there is no room for more.

        Raises:
            ValidationError: it is not held, and there is no room for it (:class:`Capacity`).
        """

    @abstractmethod
    async def get_providers(self, multihash: bytes, *, now_us: int, limit: int = 100) -> list[ProviderRecord]:
        """Unexpired providers of a multihash, those that expire last first."""

    @abstractmethod
    async def providers(self, *, after: tuple[bytes, PeerId] | None = None, limit: int = 1000) -> list[ProviderRecord]:
        """The next ``limit`` provider records in byte order of (multihash, provider), expired too, behind ``after``."""

    @abstractmethod
    async def put_peers(self, peers: Sequence[KnownPeer]) -> None:
        """Remember peers; ``first_seen_us`` of one already known stays."""

    @abstractmethod
    async def peers(self, *, limit: int = 1000) -> list[KnownPeer]:
        """Known peers, last seen first."""

    @abstractmethod
    async def remove_peers(self, peers: Sequence[PeerId]) -> None:
        """Forget peers."""

    @abstractmethod
    async def own_slot(self, slot: Slot) -> OwnSlot | None:
        """The last write this node made in one of its own slots."""

    async def own_slots_of(self, slots: Sequence[Slot]) -> list[OwnSlot | None]:
        """As :meth:`own_slot` for each. A backend that reads many at a time faster than one by one does so here."""
        return [await self.own_slot(slot) for slot in slots]

    @abstractmethod
    async def put_own_slots(self, slots: Sequence[OwnSlot]) -> None:
        """Remember, durably, this node's last write in each slot; while that is kept, no time of it moves backwards."""

    @abstractmethod
    async def own_slots(self, *, after: Slot | None = None, limit: int = 1000) -> list[OwnSlot]:
        """The next ``limit`` of them in byte order of (key, publisher, subkey), starting behind ``after``."""

    @abstractmethod
    async def get_meta(self, name: str) -> bytes | None:
        """A piece of node metadata."""

    @abstractmethod
    async def put_meta(self, name: str, value: bytes) -> None:
        """Store a piece of node metadata."""

    @abstractmethod
    async def meta_names(self) -> list[str]:
        """The names of all pieces of node metadata, in order."""

    @abstractmethod
    async def stats(self) -> StoreStats:
        """Counts and sizes."""

    @abstractmethod
    async def aclose(self) -> None:
        """Finish what is under way and close. Idempotent; later calls to other methods raise ``StorageError``."""
