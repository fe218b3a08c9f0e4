"""What this node answers: the six Kademlia requests. The wire's traps are in :mod:`prime_dht.wire.kad`.

Keys in ``/prime/`` hold entry sets: a PUT_VALUE is judged entry by entry (:mod:`prime_dht.entries.admission`), joined
into the store, and answered, per entry, only when the entry is durable. Other namespaces hold one plain record each,
which a registered validator checks and compares, as in go-libp2p.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from itertools import islice
from typing import assert_never
from weakref import WeakValueDictionary

import trio

from prime_dht.config import DhtConfig
from prime_dht.entries.admission import AdmissionRules, Admitted, Deferred, Refused, admit
from prime_dht.entries.codec import Undecodable, decode_entry_set, encode_entry_set
from prime_dht.entries.entry import Entry
from prime_dht.entries.envelope import VerifiedEnvelopes
from prime_dht.entries.validators import ValidatorRegistry
from prime_dht.errors import RemoteProtocolError, ValidationError
from prime_dht.events import EntriesEvicted, EntryStored
from prime_dht.ids import (
    EMPTY_KEY,
    PRIME_NAMESPACE,
    US_PER_S,
    Key,
    OpId,
    PeerId,
    TimestampUs,
    is_peer_id,
    kad_key,
    namespace_of,
)
from prime_dht.kad.replicas import digest
from prime_dht.net.addresses import credible, is_address_of
from prime_dht.net.network import Network
from prime_dht.node.blobs.claims import refers_to_blob
from prime_dht.node.cache import ReadCache
from prime_dht.node.clock import Clock
from prime_dht.node.feed import Feed
from prime_dht.node.held import HeldSectors
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.node.replica import Replica
from prime_dht.storage.base import (
    EntryPage,
    EntryQuery,
    PlainRecord,
    ProviderRecord,
    PutOutcome,
    PutResult,
    StorageBackend,
)
from prime_dht.wire.frames import MAX_FRAME_BYTES
from prime_dht.wire.kad import (
    MAX_ADDRESSES_PER_PEER,
    MAX_STATUSES,
    AddProvider,
    BatchReply,
    Connection,
    EntryStatus,
    FindNode,
    GetProviders,
    GetValue,
    PeerRecord,
    Ping,
    PutValue,
    Record,
    Reply,
    Request,
    SlotQuery,
    StatusCode,
)
from prime_dht.wire.times import rfc3339

MAX_REPLY_VALUE_BYTES = 1 << 20
"""Bytes of entries in one reply; readers page on."""

MAX_ENTRIES_PER_RECORD = MAX_STATUSES
"""Entries of one record, and of all records of one request."""

MAX_RECORD_BYTES = 1 << 20
"""Of a plain record's value."""

MAX_ECHO_BYTES = MAX_FRAME_BYTES // 2
"""A larger record is not echoed: the statuses have to fit beside it."""

MAX_PROVIDERS = 100
ENTRIES_PER_TURN = 64
"""Entries that are judged before others get a turn; most of the time goes into verifying signatures."""

ENTRIES_AT_ONCE = 4
"""Entries of one request that are joined without waiting, where the store allows it."""

_Judged = Entry | EntryStatus
"""An entry that may enter the store, or why one may not."""

_STATUS_OF = {
    PutOutcome.INSERTED: StatusCode.STORED,
    PutOutcome.DUPLICATE: StatusCode.STORED,
    PutOutcome.SUPERSEDED: StatusCode.SUPERSEDED,
    PutOutcome.REFUSED: StatusCode.REFUSED,
}


class Server:
    """Answers requests, and stores on behalf of the network.

    Attributes:
        stored: entries that became the newest in their slot here.
        provided: the multihashes of what this node provides itself. It answers for them wherever their keys lie, and
            without a provider record, which its store might have no room for.
    """

    def __init__(
        self,
        network: Network,
        neighbourhood: Neighbourhood,
        storage: StorageBackend,
        replica: Replica,
        held: HeldSectors,
        validators: ValidatorRegistry,
        cache: ReadCache,
        rules: AdmissionRules,
        config: DhtConfig,
        clock: Clock,
        feed: Feed,
    ) -> None:
        self._network = network
        self._neighbourhood = neighbourhood
        self._storage = storage
        self._replica = replica
        self._held = held
        self._validators = validators
        self._cache = cache
        self._rules = rules
        self._config = config
        self._clock = clock
        self._feed = feed
        self._plain_locks: WeakValueDictionary[Key, trio.Lock] = WeakValueDictionary()
        self.verified = VerifiedEnvelopes()
        self.stored = 0
        self.provided: set[bytes] = set()

    def handle(self, peer: PeerId, request: Request) -> Reply | Awaitable[Reply]:
        """Answer one request, or begin to.

        Raises:
            RemoteProtocolError: the request breaks the protocol; its stream is to be reset.
            ValidationError: a plain record that its validator refuses, or a plain or provider record for which there is
                no room: likewise, as in go-libp2p.
            StorageError: the store failed.
        """
        self._neighbourhood.heard_from(peer)
        match request:
            case FindNode(target):
                return Reply(closer=self._find_node(target, peer), replicates=self._neighbourhood.is_server)
            case GetValue(key, query, batch):
                return self._get_batch(batch, query) if batch else self._get(key, query, peer)
            case PutValue(records):
                return self._put(request, records, peer)
            case AddProvider(multihash, providers):
                return self._add_provider(multihash, providers, peer)
            case GetProviders(multihash):
                return self._get_providers(multihash, peer)
            case Ping():
                return Reply(replicates=self._neighbourhood.is_server)
            case _:
                assert_never(request)

    async def join(self, candidates: Sequence[Entry | Undecodable], *, relayer: PeerId | None) -> list[EntryStatus]:
        """Judge entries and join those admitted into the store; one status for each, in order, once they are durable.

        Args:
            relayer: who brought them; ``None`` for this node itself, whose entries it does not judge.

        Raises:
            RemoteProtocolError: an entry that no honest peer could have relayed.
        """
        now_us = self._clock.now_us()
        judged: list[_Judged] = []
        for start in range(0, len(candidates), ENTRIES_PER_TURN):
            if start:
                await trio.lowlevel.checkpoint()
            judged += self._judge(candidates[start : start + ENTRIES_PER_TURN], relayer, now_us)
        admitted = [one for one in judged if isinstance(one, Entry)]
        results = await self._replica.put_entries(admitted, now_us=now_us) if admitted else []
        return self._conclude(judged, admitted, results)

    def _join_now(self, candidates: Sequence[Entry | Undecodable], *, relayer: PeerId) -> list[EntryStatus]:
        """As :meth:`join`, where the replica is immediate."""
        now_us = self._clock.now_us()
        judged = self._judge(candidates, relayer, now_us)
        admitted = [one for one in judged if isinstance(one, Entry)]
        return self._conclude(judged, admitted, self._replica.put_entries_now(admitted, now_us=now_us))

    def _judge(self, candidates: Sequence[Entry | Undecodable], relayer: PeerId | None, now_us: int) -> list[_Judged]:
        judged: list[_Judged] = []
        for candidate in candidates:
            op_id = candidate.op_id if isinstance(candidate, Entry) else OpId(b"")
            verdict = admit(candidate, now_us=now_us, rules=self._rules, verified=self.verified)
            match verdict:
                case Admitted(entry):
                    judged.append(entry)
                case Deferred():
                    judged.append(EntryStatus(op_id, StatusCode.DEFERRED, "dated too far in the future"))
                case Refused(reason, text):
                    if verdict.blame and relayer is not None:
                        raise RemoteProtocolError(f"{reason.value}: {text}")
                    judged.append(EntryStatus(op_id, StatusCode.REFUSED, f"{reason.value}: {text}"))
                case _:
                    assert_never(verdict)
        return judged

    def _conclude(
        self, judged: Sequence[_Judged], admitted: Sequence[Entry], results: Sequence[PutResult]
    ) -> list[EntryStatus]:
        self.publish(admitted, results)
        rest = iter(results)
        return [_status(one, next(rest)) if isinstance(one, Entry) else one for one in judged]

    def publish(self, entries: Sequence[Entry], results: Sequence[PutResult]) -> None:
        """Tell of what became of entries that were put into the store, and forget older answers of theirs."""
        for entry, result in zip(entries, results, strict=True):
            if result.outcome is PutOutcome.INSERTED:
                self._publish_stored(entry)
            if result.evicted:
                self._feed.publish(EntriesEvicted(op_ids=tuple(gone.op_id for gone in result.evicted)))

    async def read(self, key: Key, query: SlotQuery) -> EntryPage:
        """Entries that this node stores under a key, headers included."""
        return await self._storage.get_entries(_entry_query(key, query), now_us=self._clock.now_us())

    def holds(self, key: Key, *, names_some: bool = False) -> bool:
        """Whether what this node names under a key is all that there is, and nothing means that there is nothing."""
        return self._neighbourhood.is_server and self._held.holds(key, names_some=names_some)

    async def get_providers(self, multihash: bytes) -> list[ProviderRecord]:
        """Providers that this node knows of, itself first if it is one."""
        now_us = self._clock.now_us()
        own = [self._provider(multihash, self._network.local, self._network.own_addresses(), now_us)]
        others = await self._storage.get_providers(multihash, now_us=now_us, limit=MAX_PROVIDERS)
        return own + others if multihash in self.provided else others

    async def put_plain(self, record: PlainRecord) -> bool:
        """Keep a plain record unless the one here is better; whether it was kept.

        Raises:
            ValidationError: its validator refuses it, or this node has no room for it.
        """
        self._validators.validate(record.key, record.value)
        lock = self._plain_locks.setdefault(record.key, trio.Lock())
        async with lock:  # of two puts of one key the second must see what the first has stored
            held = await self.get_plain(record.key)
            is_other = held is not None and held.value != record.value
            # Of two that are equally good the one held stays, so that replays cannot flip it to and fro.
            if held is not None and is_other and self._validators.select(record.key, [held.value, record.value]) == 0:
                return False
            await self._storage.put_record(record, now_us=self._clock.now_us())
        return True

    async def get_plain(self, key: Key) -> PlainRecord | None:
        """The plain record this node stores under a key, if there is one and it is still valid."""
        held = await self._storage.get_record(key, now_us=self._clock.now_us())
        if held is None:
            return None
        try:
            self._validators.validate(key, held.value)
        except ValidationError:
            return None  # records may expire by their own rules (IPNS does), and rules may have changed
        return held

    def _find_node(self, target: bytes, asker: PeerId) -> tuple[PeerRecord, ...]:
        closer = self._closer(target, asker)
        if not is_peer_id(target) or any(record.peer == target for record in closer):
            return closer
        if target == self._network.local:
            return (PeerRecord(PeerId(target), self._network.own_addresses(), Connection.CONNECTED), *closer)
        addresses = self._network.addresses_of(PeerId(target))
        if not addresses or target == asker:
            return closer
        return (self._neighbourhood.record(self._neighbourhood.contact(PeerId(target), addresses)), *closer)

    def _closer(self, key: bytes, asker: PeerId, count: int | None = None) -> tuple[PeerRecord, ...]:
        wanted = count or self._config.k_bucket_size
        contacts = self._neighbourhood.table.find_closest(kad_key(key), wanted + 1)
        return tuple(self._neighbourhood.record(one) for one in contacts if one.peer != asker)[:wanted]

    def _knows_same_replicas(self, key: Key, theirs: bytes) -> bool:
        """Whether an asker's replicas of a key, of which it sent the digest, are those that this node would name."""
        replication = self._config.replication_factor
        return bool(theirs) and theirs == digest(self._neighbourhood.nearest_replicas(kad_key(key), replication))

    # Values

    def _get(self, key: Key, query: SlotQuery | None, asker: PeerId) -> Reply | Awaitable[Reply]:
        if self._namespace(key) != PRIME_NAMESPACE:
            return self._get_plain(key, asker)
        if not self._storage.is_immediate:
            return self._get_entries(key, query, asker)
        page = self._storage.get_entries_now(_entry_query(key, query or SlotQuery()), now_us=self._clock.now_us())
        return self._got(key, query, asker, page)

    async def _get_entries(self, key: Key, query: SlotQuery | None, asker: PeerId) -> Reply:
        return self._got(key, query, asker, await self.read(key, query or SlotQuery()))

    def _got(self, key: Key, query: SlotQuery | None, asker: PeerId, page: EntryPage) -> Reply:
        record = self._record_of(key, page)
        # A reader that says what it wants, and finds it, needs nobody closer.
        closer = () if query is not None and record is not None else self._closer(key, asker)
        names_some = record is not None
        holds = self.holds(key, names_some=names_some)
        return Reply(
            record=record,
            closer=closer,
            held=holds and not names_some,
            next_cursor=page.next_cursor,
            replicates=self._neighbourhood.is_server,
            not_held=names_some and not holds,
        )

    async def _get_plain(self, key: Key, asker: PeerId) -> Reply:
        held = await self.get_plain(key)
        return Reply(
            record=None if held is None else _wire_record(held),
            closer=self._closer(key, asker),
            replicates=self._neighbourhood.is_server,
        )

    async def _get_batch(self, keys: tuple[Key, ...], query: SlotQuery | None) -> Reply:
        room = MAX_REPLY_VALUE_BYTES
        items: list[BatchReply] = []
        for key in keys:
            if self._namespace(key) != PRIME_NAMESPACE:
                raise RemoteProtocolError("a batched GET_VALUE is for keys in /prime/")
            page = await self.read(key, query or SlotQuery())
            record = self._record_of(key, page)
            if record is not None and (room := room - len(record.value)) < 0 and items:
                break  # the answers for the first keys; the asker asks again for the rest
            names_some = record is not None
            holds = self.holds(key, names_some=names_some)
            items.append(
                BatchReply(record, held=holds, next_cursor=page.next_cursor, not_held=names_some and not holds)
            )
        return Reply(batch=tuple(items), replicates=self._neighbourhood.is_server)

    def _record_of(self, key: Key, page: EntryPage) -> Record | None:
        if not page.entries:
            return None
        return Record(key, encode_entry_set(page.entries), rfc3339(self._clock.now_us()))

    def _put(self, request: PutValue, records: tuple[Record, ...], asker: PeerId) -> Reply | Awaitable[Reply]:
        if any(self._namespace(record.key) != PRIME_NAMESPACE for record in records):
            if len(records) > 1:
                raise RemoteProtocolError("a batched PUT_VALUE is for keys in /prime/")
            return self._put_plain(records[0], asker, want_closer=request.want_closer)
        candidates: list[Entry | Undecodable] = []
        for record in records:
            try:
                entries = decode_entry_set(record.value, max_entries=MAX_ENTRIES_PER_RECORD - len(candidates))
            except ValidationError as error:
                raise RemoteProtocolError(str(error)) from error
            if any(isinstance(entry, Entry) and entry.header.key != record.key for entry in entries):
                raise RemoteProtocolError("PUT_VALUE: an entry is of another key than its record")
            candidates += entries
        has_blob = any(isinstance(candidate, Entry) and refers_to_blob(candidate) for candidate in candidates)
        if len(candidates) <= ENTRIES_AT_ONCE and self._replica.is_immediate and not has_blob:
            return self._put_reply(request, records, asker, self._join_now(candidates, relayer=asker))
        return self._put_entries(request, records, asker, candidates)

    async def _put_entries(
        self, request: PutValue, records: tuple[Record, ...], asker: PeerId, candidates: Sequence[Entry | Undecodable]
    ) -> Reply:
        return self._put_reply(request, records, asker, await self.join(candidates, relayer=asker))

    def _put_reply(
        self, request: PutValue, records: tuple[Record, ...], asker: PeerId, statuses: Sequence[EntryStatus]
    ) -> Reply:
        closer: tuple[PeerRecord, ...] = ()
        if (
            request.want_closer
            and len(records) == 1
            and not self._knows_same_replicas(records[0].key, request.replicas)
        ):
            # With this node itself they are all the replicas there could be; each one named costs both ends time.
            closer = self._closer(records[0].key, asker, self._config.replication_factor)
        is_echoed = len(records) == 1 and not request.no_echo and len(records[0].value) <= MAX_ECHO_BYTES
        echo = _echo(records[0], self._clock.now_us()) if is_echoed else None
        return Reply(record=echo, closer=closer, statuses=tuple(statuses), replicates=self._neighbourhood.is_server)

    async def _put_plain(self, record: Record, asker: PeerId, *, want_closer: bool) -> Reply:
        now_us = self._clock.now_us()
        if len(record.value) > MAX_RECORD_BYTES or len(record.key) > self._config.limits.max_key_bytes:
            raise ValidationError("the record or its key is too large")
        lifetime_s = min(record.ttl_s or self._config.record_ttl_s, self._config.record_ttl_s)
        kept = await self.put_plain(
            PlainRecord(
                key=record.key,
                value=record.value,
                received_at_us=now_us,
                expires_at_us=TimestampUs(now_us + int(lifetime_s * US_PER_S)),
                publisher=PeerId(record.publisher) if is_peer_id(record.publisher) else None,
            )
        )
        if not kept:
            raise ValidationError("a better record is held")
        closer = self._closer(record.key, asker) if want_closer else ()
        return Reply(record=_echo(record, now_us), closer=closer, replicates=self._neighbourhood.is_server)

    # Providers

    async def _add_provider(self, multihash: bytes, providers: tuple[PeerRecord, ...], sender: PeerId) -> Reply:
        # Peers may only announce themselves, as in go-libp2p: what they say of others is ignored.
        said = (address for record in providers if record.peer == sender for address in record.addresses)
        addresses = tuple(islice((each for each in said if is_address_of(sender, each)), MAX_ADDRESSES_PER_PEER))
        if not addresses:
            raise RemoteProtocolError("ADD_PROVIDER names no address of its sender")
        told_from = self._network.remote_address_of(sender)
        self._network.learn_addresses(sender, credible(addresses, told_from=told_from), source="kad")
        now_us = self._clock.now_us()
        await self._storage.add_provider(self._provider(multihash, sender, addresses, now_us), now_us=now_us)
        return Reply(replicates=self._neighbourhood.is_server)

    def _provider(self, multihash: bytes, peer: PeerId, addresses: tuple[bytes, ...], now_us: int) -> ProviderRecord:
        return ProviderRecord(
            multihash=multihash,
            provider=peer,
            addresses=addresses,
            expires_at_us=TimestampUs(now_us + int(self._config.provider_ttl_s * US_PER_S)),
        )

    async def _get_providers(self, multihash: bytes, asker: PeerId) -> Reply:
        providers = tuple(
            PeerRecord(record.provider, record.addresses, Connection.CAN_CONNECT)
            for record in await self.get_providers(multihash)
        )
        return Reply(
            providers=providers, closer=self._closer(multihash, asker), replicates=self._neighbourhood.is_server
        )

    def _namespace(self, key: Key) -> str:
        if key == EMPTY_KEY:  # which an application can come to ask for
            raise ValidationError("a key cannot be empty behind /prime/")
        try:
            return namespace_of(key)
        except ValidationError as error:
            raise RemoteProtocolError(str(error)) from error

    def _publish_stored(self, entry: Entry) -> None:
        self.stored += 1
        header = entry.header
        self._cache.drop(header.key)
        if not self._feed.is_heard:
            return
        self._feed.publish(
            EntryStored(
                key=header.key,
                publisher=entry.publisher,
                subkey=header.subkey,
                op_id=entry.op_id,
                tombstone=entry.is_tombstone,
            )
        )


def _entry_query(key: Key, query: SlotQuery) -> EntryQuery:
    return EntryQuery(
        key=key,
        subkeys=query.subkeys,
        publishers=query.publishers,
        newest=query.newest,
        include_expired=True,
        cursor=query.cursor,
        max_bytes=min(query.max_bytes or MAX_REPLY_VALUE_BYTES, MAX_REPLY_VALUE_BYTES),
    )


def _status(entry: Entry, result: PutResult) -> EntryStatus:
    return EntryStatus(entry.op_id, _STATUS_OF[result.outcome], result.reason)


def _echo(record: Record, received_at_us: int) -> Record:
    """What a PUT_VALUE is answered with: what was put, and nothing else that came with it."""
    return Record(record.key, record.value, rfc3339(received_at_us))


def _wire_record(record: PlainRecord) -> Record:
    return Record(record.key, record.value, rfc3339(record.received_at_us), record.publisher or b"")
