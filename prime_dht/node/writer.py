"""Putting entries: sign, store on the replicas closest to the key, report who has it.

Where the routing table knows all servers near a key, no lookup goes before a put. The put is one itself: a
:class:`~prime_dht.kad.lookup.Lookup` for the ``r`` closest whose query is PUT_VALUE. It starts from the replicas, so
the entry goes to all of them in one parallel step; only if some of them are dead, or know closer servers, does it go on
to others, until the ``r`` closest that are alive have been asked. The request brings a digest of the replicas that this
node knows, and who knows the same ones names nobody: to name and weigh up the others costs as much as to store the
entry.

Where a lookup goes before, it takes half of ``operation_timeout_s`` at most, and the put what is left: so a put ends in
time, and not before it has asked those that were found.

Whether this node is a replica itself is judged when the put starts, so that it stores in the same step, and judged
again by what the lookup found when it ends: the peers that seemed closer may be dead.

An own slot's last write is made durable before the entry leaves this node: after a crash, or with a clock that was set
back, the next entry is still newer than any that others may hold. But a clock that was far ahead once would hold up the
slot until then: what follows such a write is dated ahead as well, and replicas put it off. If most do, the writer signs
once more, by its clock as it is now. In a slot that has no last write a clock that is far behind gives an entry that is
superseded, or refused as retired; the receipt, or the error, says so.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import trio
from libp2p.crypto.keys import PrivateKey

from prime_dht.config import DhtConfig
from prime_dht.entries.capability import decode_capability
from prime_dht.entries.codec import YEAR_10000_US, encode_entry_set, inline
from prime_dht.entries.entry import NO_METADATA, BlobRef, Content, Entry, EntryHeader, Slot, Tombstone
from prime_dht.entries.envelope import signature_of
from prime_dht.entries.signing import sign_entry
from prime_dht.entries.slot import EntryTimes, LastWrite, brought_back, next_entry_times, tombstone_times
from prime_dht.errors import (
    ConfigError,
    QueryError,
    RefusedError,
    RemoteProtocolError,
    StorageError,
    ValidationError,
)
from prime_dht.ids import US_PER_S, KadKey, Key, PeerId, TimestampUs, kad_key, short
from prime_dht.kad.contact import Contact
from prime_dht.kad.replicas import choose_replicas, digest, quorum
from prime_dht.net.network import Network
from prime_dht.node.arguments import whole_number_of
from prime_dht.node.batches import batches
from prime_dht.node.clock import Clock
from prime_dht.node.lookups import Explorer
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.node.results import NOT_IN_TIME, PutReceipt
from prime_dht.node.server import Server
from prime_dht.node.slot_locks import SlotLocks
from prime_dht.storage.base import OwnSlot, StorageBackend
from prime_dht.wire.kad import EntryStatus, PutValue, Record, Reply, StatusCode

logger = logging.getLogger(__name__)

BATCHES_AT_ONCE = 16

SIGNED_AT_A_TIME = 32
"""Statements, of many: about 3 ms."""

MAX_BEGUN_ANEW = 10_000
"""Slots of which a node notes that they were begun anew; of more, the next write of the first finds out once again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a caller wants a slot to say: a value, or the blob it refers to; neither deletes."""

    key: Key
    subkey: bytes = b""
    value: bytes | None
    blob: BlobRef | None = None
    ttl_s: float | None = None
    expires_at_s: float | None = None
    content_type: str = ""
    metadata: Mapping[str, str] = field(default_factory=lambda: NO_METADATA)
    capability: bytes = b""

    @property
    def deletes(self) -> bool:
        """Whether it says that there is nothing."""
        return self.value is None and self.blob is None

    @property
    def content(self) -> Content:
        """As an entry has it; of a value this takes the hash."""
        if self.blob is not None:
            return self.blob
        return Tombstone() if self.value is None else inline(self.value)


@dataclass(slots=True)
class _Tally:
    """Who said what of one entry, each peer once."""

    entry: Entry
    replication: int
    stored: list[PeerId] = field(default_factory=list)
    refused: list[tuple[PeerId, str]] = field(default_factory=list)
    failed: list[tuple[PeerId, str]] = field(default_factory=list)
    superseded: bool = False
    deferred_by: int = 0
    others: Iterator[Contact] = field(default_factory=lambda: iter(()))
    """Servers that have not been asked yet, the nearest first."""

    @property
    def size_bytes(self) -> int:
        return self.entry.size_bytes

    def note(self, peer: PeerId, status: EntryStatus, *, is_local: bool = False) -> None:
        match status.code:
            case StatusCode.STORED:
                self.stored.append(peer)
            case StatusCode.SUPERSEDED:
                self.superseded = True
                self.refused.append((peer, "superseded"))
            case StatusCode.DEFERRED | StatusCode.REFUSED | StatusCode.UNSPECIFIED:
                self.deferred_by += status.code is StatusCode.DEFERRED and not is_local
                self.refused.append((peer, status.reason or status.code.name.lower()))

    def receipt(self, servers_known: int) -> PutReceipt:
        header = self.entry.header
        return PutReceipt(
            key=header.key,
            subkey=header.subkey,
            op_id=self.entry.op_id,
            created_at_us=header.created_at_us,
            expires_at_us=header.expires_at_us,
            stored_by=tuple(self.stored),
            refused=tuple(self.refused),
            failed=tuple(self.failed),
            wanted=self.replication,
            needed=max(1, quorum(self.replication, servers_known)),
            superseded=self.superseded,
        )


class Writer:
    """Signs this node's entries and puts entries, its own or others', to their replicas."""

    def __init__(
        self,
        private_key: PrivateKey,
        network: Network,
        neighbourhood: Neighbourhood,
        explorer: Explorer,
        server: Server,
        storage: StorageBackend,
        config: DhtConfig,
        clock: Clock,
    ) -> None:
        self._private_key = private_key
        self._network = network
        self._neighbourhood = neighbourhood
        self._explorer = explorer
        self._server = server
        self._storage = storage
        self._config = config
        self._clock = clock
        self._signing = SlotLocks()
        # The last writes of slots that were begun anew: what is durable of them is the write that was dated far ahead.
        self._begun_anew: OrderedDict[Slot, OwnSlot] = OrderedDict()

    async def put(
        self, statement: Statement, *, replication: int | None = None, leaves: Callable[[], None] | None = None
    ) -> PutReceipt:
        """Sign a statement and store it on the ``r`` servers closest to its key.

        It takes ``operation_timeout_s`` at most; twice as long where this node's clock was far ahead at its last write.

        Args:
            leaves: called before the entry goes out to anybody; until then nobody has it.

        Raises:
            ConfigError: the replication is not in 1 ..= k.
            ValidationError: the statement breaks a rule or a limit.
            QueryError: no replica took it: none is known, none answered, or all refused.
        """
        wanted = self._replication(replication)
        servers_known = self._neighbourhood.servers_known(at_most=wanted)
        tally = await self._put_one(await self._sign([statement]), wanted, leaves)
        if self._is_held_up(tally):
            tally = await self._put_one(await self._sign([statement], is_anew=True), wanted, leaves)
        return self._receipts([tally], servers_known)[0]

    async def _put_one(self, entries: Sequence[Entry], wanted: int, leaves: Callable[[], None] | None) -> _Tally:
        (entry,) = entries
        key = entry.header.key
        tally = _Tally(entry, wanted)
        own = self._neighbourhood.own_contact()
        target = kad_key(key)
        began_s, half_s = self._clock.monotonic_s(), self._config.operation_timeout_s / 2
        replicas = await self._explorer.replicas_of(key, wanted, timeout_s=half_s)
        left_s = max(half_s, began_s + 2 * half_s - self._clock.monotonic_s())
        if leaves is not None:
            leaves()
        if own in replicas:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._store_here, [tally])
                await self._put_along_lookup(tally, target, replicas, wanted - 1, timeout_s=left_s)
        else:
            others = await self._put_along_lookup(tally, target, replicas, wanted, timeout_s=left_s)
            if own is not None and own in choose_replicas(target, others, wanted, own=own):
                await self._store_here([tally])
        return tally

    async def put_many(self, statements: Sequence[Statement], *, replication: int | None = None) -> list[PutReceipt]:
        """As :meth:`put` for each, with lookups shared by neighbouring keys and few, large requests.

        Raises:
            ConfigError: the replication is not in 1 ..= k.
            ValidationError: a statement breaks a rule or a limit; then none is put.
            QueryError: no entry was taken by any replica.
        """
        wanted = self._replication(replication)
        servers_known = self._neighbourhood.servers_known(at_most=wanted)
        tallies = await self._put_each(await self._sign(statements), wanted)
        if held_up := [index for index, tally in enumerate(tallies) if self._is_held_up(tally)]:
            signed_anew = await self._sign([statements[index] for index in held_up], is_anew=True)
            for index, tally in zip(held_up, await self._put_each(signed_anew, wanted), strict=True):
                tallies[index] = tally
        return self._receipts(tallies, servers_known)

    async def _put_each(self, entries: Sequence[Entry], wanted: int) -> list[_Tally]:
        tallies = [_Tally(entry, wanted) for entry in entries]
        by_peer: dict[PeerId, list[_Tally]] = defaultdict(list)
        timeout_s = self._explorer.timeout_s(len(tallies))
        ends_at_s = self._clock.monotonic_s() + timeout_s
        keys = {tally.entry.header.key for tally in tallies}
        servers = await self._explorer.servers_near(keys, wanted, timeout_s=timeout_s / 2)
        for tally in tallies:
            tally.others = iter(servers[tally.entry.header.key])
            for replica in islice(tally.others, wanted):
                by_peer[replica.peer].append(tally)
        while by_peer:
            turned_away: list[_Tally] = []
            at_once = trio.Semaphore(BATCHES_AT_ONCE)
            async with trio.open_nursery() as nursery:
                for peer, batch in by_peer.items():
                    if peer == self._network.local:
                        nursery.start_soon(self._store_here, batch)
                        continue
                    for part in batches(batch):
                        await at_once.acquire()
                        nursery.start_soon(self._put_part, peer, part, at_once, ends_at_s, turned_away)
            by_peer.clear()
            for tally in turned_away:  # the next closest takes the place of who cannot store, as in a single put
                for other in islice(tally.others, 1):
                    by_peer[other.peer].append(tally)
        return tallies

    def _is_held_up(self, tally: _Tally) -> bool:
        """Whether an entry is dated too far ahead, by other replicas' clocks and this node's, for what it follows."""
        ahead_us = tally.entry.header.created_at_us - self._clock.now_us()
        return tally.deferred_by > len(tally.stored) and ahead_us > self._config.limits.clock_skew_us

    async def repair(self, entries: Sequence[Entry], peer: PeerId) -> None:
        """Give entries of one key to a replica that was seen to lack them.

        A failure is left to the next reader, or to sync.
        """
        key = entries[0].header.key
        try:
            if peer == self._network.local:
                await self._server.join(entries, relayer=None)
                return
            for part in batches(entries):
                request = PutValue((Record(key, encode_entry_set(part)),), no_echo=True)
                await self._neighbourhood.ask(self._neighbourhood.contact(peer), request)
        except (QueryError, RemoteProtocolError, StorageError) as error:
            logger.info("%s could not be brought up to date: %s", short(peer), error)

    async def last_written_us(self, slot: Slot) -> TimestampUs:
        """When this node's last entry in a slot was made, sent or not; 0 if it made none, as far as it remembers.

        Raises:
            StorageError: it cannot be read.
        """
        last = self._begun_anew.get(slot) or (await self._storage.own_slots_of([slot]))[0]
        return TimestampUs(0) if last is None else last.created_at_us

    # Signing

    async def _sign(self, statements: Sequence[Statement], *, is_anew: bool = False) -> list[Entry]:
        """Make entries that are newer than anything this node wrote in their slots, and remember that durably.

        Args:
            is_anew: whether what this node wrote with a clock that was far ahead does not count.

        Raises:
            ValidationError: a statement breaks a rule or a limit; then none is signed.
        """
        slots = [Slot(statement.key, self._network.local, statement.subkey) for statement in statements]
        await self._signing.take(slots)
        try:
            latest: dict[Slot, OwnSlot] = {}
            entries: list[Entry] = []
            durable: list[OwnSlot | None] = []
            for index, (slot, statement) in enumerate(zip(slots, statements, strict=True)):
                if index == len(durable):  # in parts, between which others have their turn
                    durable += await self._storage.own_slots_of(slots[index : index + SIGNED_AT_A_TIME])
                previous: LastWrite | None = latest.get(slot) or self._begun_anew.get(slot) or durable[index]
                if is_anew and previous is not None:
                    limits = self._config.limits
                    previous = brought_back(
                        previous,
                        self._clock.now_us(),
                        clock_skew_us=limits.clock_skew_us,
                        max_ttl_us=limits.max_ttl_us,
                    )
                times = self._times(statement, previous)
                entry = self._sign_one(statement, times)
                latest[slot] = OwnSlot(slot, times.created_at_us, times.retain_until_us)
                entries.append(entry)
            await self._storage.put_own_slots(list(latest.values()))
            self._begun_anew.update(
                (slot, last) for slot, last in latest.items() if is_anew or slot in self._begun_anew
            )
            while len(self._begun_anew) > MAX_BEGUN_ANEW:
                self._begun_anew.popitem(last=False)
        finally:
            self._signing.give_back(slots)
        return entries

    def _times(self, statement: Statement, previous: LastWrite | None) -> EntryTimes:
        now_us = self._clock.now_us()
        max_ttl_us = self._config.limits.max_ttl_us
        if statement.deletes:
            end_us = decode_capability(statement.capability).expires_at_us if statement.capability else None
            return tombstone_times(now_us, previous, max_ttl_us=max_ttl_us, expires_by_us=end_us)
        if statement.ttl_s is not None and statement.expires_at_s is not None:
            raise ValidationError("give ttl or expires_at, not both")
        if statement.expires_at_s is not None:
            expires_at_us = _us("expires_at", statement.expires_at_s)
            return next_entry_times(now_us, previous, expires_at_us=expires_at_us, max_ttl_us=max_ttl_us)
        ttl_us = _us("ttl", self._config.ttl if statement.ttl_s is None else statement.ttl_s)
        return next_entry_times(now_us, previous, ttl_us=ttl_us, max_ttl_us=max_ttl_us)

    def _sign_one(self, statement: Statement, times: EntryTimes) -> Entry:
        header = EntryHeader(
            network_id=self._config.network_id,
            key=statement.key,
            subkey=statement.subkey,
            created_at_us=times.created_at_us,
            expires_at_us=times.expires_at_us,
            retain_until_us=times.retain_until_us,
            content=statement.content,
            content_type=statement.content_type,
            metadata=statement.metadata,
            capability=statement.capability,
        )
        entry = sign_entry(header, self._private_key, statement.value, limits=self._config.limits)
        self._server.verified.remember(entry.op_id, signature_of(entry.envelope))
        return entry

    # Storing

    def _replication(self, replication: int | None) -> int:
        given = self._config.replication_factor if replication is None else replication
        wanted = whole_number_of("replication", given)
        if not 1 <= wanted <= self._config.k_bucket_size:
            raise ConfigError(f"replication must be in 1 ..= {self._config.k_bucket_size}, not {wanted}")
        return wanted

    async def _store_here(self, tallies: Sequence[_Tally]) -> None:
        try:
            statuses = await self._server.join([tally.entry for tally in tallies], relayer=None)
        except StorageError as error:  # the other replicas can still store them
            for tally in tallies:
                tally.failed.append((self._network.local, str(error)))
            return
        for tally, status in zip(tallies, statuses, strict=True):
            tally.note(self._network.local, status, is_local=True)

    async def _put_along_lookup(
        self, tally: _Tally, target: KadKey, replicas: Sequence[Contact], wanted: int, *, timeout_s: float
    ) -> Sequence[Contact]:
        """Put to the ``wanted`` closest other servers, at first to the replicas known, of which this node may be one.

        It ends after ``timeout_s`` at most.

        Returns:
            Those that answered, the nearest first.
        """
        if not wanted:
            return ()
        request = PutValue(
            (Record(tally.entry.header.key, encode_entry_set((tally.entry,))),),
            want_closer=True,
            no_echo=True,
            replicas=digest(replicas) if tally.replication == self._config.replication_factor else b"",
        )

        def note(contact: Contact, reply: Reply) -> None:
            if reply.replicates:  # others may keep what they do not understand, but do not join it
                if len(reply.statuses) != 1:  # not a refusal: the next closest has to take its place
                    raise RemoteProtocolError("not one status for each entry")
                tally.note(contact.peer, reply.statuses[0])

        lookup = self._explorer.lookup(
            target,
            k=wanted,
            alpha=wanted,
            replicas_only=True,
            nearest=[one for one in replicas if one.peer != self._network.local],
            query_timeout_s=self._config.rpc_timeout_s,
            timeout_s=timeout_s,
        )
        result = await self._explorer.run(lookup, request, take=note)
        tally.failed += [
            (hop.contact.peer, hop.failure or NOT_IN_TIME) for hop in result.path if hop.answered_at_s is None
        ]
        return result.closest

    async def _put_part(
        self,
        peer: PeerId,
        part: Sequence[_Tally],
        place: trio.Semaphore,
        ends_at_s: float,
        turned_away: list[_Tally],
    ) -> None:
        records = tuple(Record(tally.entry.header.key, encode_entry_set((tally.entry,))) for tally in part)
        try:
            reply = None
            with trio.move_on_after(max(0.0, ends_at_s - self._clock.monotonic_s())):
                contact = self._neighbourhood.contact(peer)
                reply = await self._neighbourhood.ask(contact, PutValue(records, no_echo=True))
            if reply is None:
                raise QueryError(NOT_IN_TIME)
            if len(reply.statuses) != len(part):
                raise RemoteProtocolError("not one status for each entry")
            for tally, status in zip(part, reply.statuses, strict=True):
                tally.note(peer, status)
        except (QueryError, RemoteProtocolError) as error:
            for tally in part:
                tally.failed.append((peer, str(error)))
            if isinstance(error, RefusedError):
                turned_away += part
        finally:
            place.release()

    def _receipts(self, tallies: Sequence[_Tally], servers_known: int) -> list[PutReceipt]:
        """What to tell the caller, who knew of ``servers_known`` when the put began: some of them may be dead now.

        Counting those as well means that a node that is cut off in the middle of a put does not take it for
        acknowledged; nor one that was told of servers a moment ago and reached only a few. Nor does one that has not
        joined yet, and cannot know how many servers there are.
        """
        if not tallies:
            return []
        if not any(tally.stored or tally.superseded for tally in tallies):
            raise self._nobody_took(tallies[0])
        wanted = tallies[0].replication
        known = self._neighbourhood
        known_now = known.servers_known(at_most=wanted) if known.has_met_anybody() else wanted
        servers = max(servers_known, known_now)
        if servers < wanted:  # who was known when the put began, and has failed since, counts once
            servers = max(servers, known_now + len(known.silent_replicas(or_told_of=True, at_most=wanted)))
        return [tally.receipt(servers) for tally in tallies]

    def _nobody_took(self, tally: _Tally) -> QueryError:
        told = [
            f"{len(said)} {what} ({short(said[0][0])}: {said[0][1]})"
            for what, said in (("refused", tally.refused), ("failed", tally.failed))
            if said
        ]
        if told:
            return QueryError(f"no replica took the entry: {', '.join(told)}")
        return QueryError("no server is known to store the entry: this node has found no peers")


def _us(what: str, seconds: float) -> int:
    if not abs(seconds) < YEAR_10000_US // US_PER_S:  # infinity, or not a number, is not
        raise ValidationError(f"{what} must be a number of seconds that ends before the year 10000")
    return int(seconds * US_PER_S)
