"""The classical side of Kademlia: plain records of other namespaces, and provider records.

Both are put to the ``r`` closest servers of any implementation and republished by the node that made them, because
nobody else keeps them alive (libp2p kad-dht specification, "Entry correction" and "Content provider routing").
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from typing import TYPE_CHECKING

import trio

from prime_dht.config import DhtConfig
from prime_dht.entries.validators import ValidatorRegistry
from prime_dht.errors import (
    ConfigError,
    LocalProtocolError,
    PrimeDHTError,
    QueryError,
    RemoteProtocolError,
    StorageError,
    ValidationError,
)
from prime_dht.ids import PRIME_NAMESPACE, US_PER_S, Key, PeerId, TimestampUs, kad_key, namespace_of, short
from prime_dht.kad.contact import MAX_ADDRESSES_TOLD, Contact, in_turns
from prime_dht.kad.keyspace import closest
from prime_dht.net.addresses import address_text, is_address_of
from prime_dht.net.network import Network
from prime_dht.node.arguments import whole_number_of
from prime_dht.node.clock import Clock
from prime_dht.node.lookups import Explorer
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.node.results import NOT_IN_TIME, Provider, RecordReceipt
from prime_dht.node.server import MAX_RECORD_BYTES, Server
from prime_dht.storage.base import PlainRecord, StorageBackend
from prime_dht.wire.kad import (
    AddProvider,
    GetProviders,
    GetValue,
    PeerRecord,
    PutValue,
    Record,
    Reply,
    Request,
)

if TYPE_CHECKING:
    from trio_typing import TaskStatus

logger = logging.getLogger(__name__)

MAX_PROVIDED = 100_000
"""Multihashes, and records, that one node announces and republishes."""

MAX_HEARD = 1000
"""Multihashes of which the providers found last are remembered."""


CORRECTIONS_WAITING = 16
"""Corrections that wait their turn, each a record at most; beyond, they are left to the next reader."""

ANNOUNCEMENTS_AT_ONCE = 8

ANNOUNCE_AGAIN_S = 60.0
"""How often what nobody took is announced again."""

ANNOUNCED_IN_VAIN = 16
"""After so many announcements that nobody took again, the others wait for the next time."""


@dataclass(slots=True)
class _Providers:
    """Who provides something, and where they are said to be: what one server says does not hide what others do.

    Attributes:
        named: the providers that each server named that named any.
    """

    named: list[Iterable[PeerId]] = field(default_factory=list)
    _addresses: dict[PeerId, tuple[bytes, ...]] = field(default_factory=dict)
    _tellers: Counter[PeerId] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self._addresses)

    def add(self, said: Mapping[PeerId, Iterable[bytes]]) -> None:
        """Take in what one server said of providers and their addresses."""
        if said:
            self.named.append(said)
        for provider, addresses in said.items():
            good = tuple(islice((each for each in addresses if is_address_of(provider, each)), MAX_ADDRESSES_TOLD))
            known, tellers = self._addresses.get(provider, ()), self._tellers[provider]
            self._addresses[provider] = in_turns(known, good, tellers=tellers)
            self._tellers[provider] += 1

    def choose(self, count: int, *, first: Iterable[PeerId]) -> Iterator[tuple[PeerId, tuple[bytes, ...]]]:
        """So many: after ``first`` the first that each server named, then the second of each, and so on."""
        in_turn = (provider for turn in zip_longest(*self.named) for provider in turn if provider is not None)
        for provider in islice(dict.fromkeys((*first, *in_turn)), count):
            yield provider, self._addresses[provider]


@dataclass(slots=True)
class _Named:
    """What servers said of a key: only the best record is kept, however many and large the others were."""

    asked: set[PeerId] = field(default_factory=set)
    holders: set[PeerId] = field(default_factory=set)
    best: bytes | None = None
    count: int = 0
    """Servers that named a valid record."""


class Records:
    """Plain records and provider records, to and from the swarm."""

    def __init__(
        self,
        network: Network,
        neighbourhood: Neighbourhood,
        explorer: Explorer,
        server: Server,
        storage: StorageBackend,
        validators: ValidatorRegistry,
        config: DhtConfig,
        clock: Clock,
    ) -> None:
        self._network = network
        self._neighbourhood = neighbourhood
        self._explorer = explorer
        self._server = server
        self._storage = storage
        self._validators = validators
        self._config = config
        self._clock = clock
        self._own_records: dict[Key, bytes] = {}
        self._heard: OrderedDict[bytes, list[PeerRecord]] = OrderedDict()
        self._untold: dict[bytes, None] = {}  # announced, and nobody took it; tried last, last
        self._announcing = trio.CapacityLimiter(ANNOUNCEMENTS_AT_ONCE)
        self._to_correct, self._corrections = trio.open_memory_channel[tuple[PeerId, Request]](CORRECTIONS_WAITING)

    # Plain records

    async def put_record(self, key: Key, value: bytes) -> RecordReceipt:
        """Store a record on the ``r`` closest servers, and republish it while this node runs.

        Raises:
            ValidationError: no validator is registered for its namespace, the validator refuses it, or it is too large
                or one too many.
            QueryError: nobody took it.
        """
        _check_plain(key)
        if len(value) > MAX_RECORD_BYTES:
            raise ValidationError(f"a record of {len(value)} bytes exceeds the limit of {MAX_RECORD_BYTES}")
        self._validators.validate(key, value)
        if len(self._own_records) >= MAX_PROVIDED and key not in self._own_records:
            raise ValidationError(f"a node keeps at most {MAX_PROVIDED} records alive")
        receipt = await self._send_record(key, value)
        self._own_records[key] = value
        return receipt

    async def get_record(self, key: Key, *, quorum: int | None = None) -> bytes | None:
        """The best valid record that ``quorum`` servers (the read quorum by default) name, or all that can be asked.

        Servers that were asked and named a worse one, or none, among the ``r`` closest are corrected.

        Raises:
            ConfigError: the quorum is not in 1 ..= r.
            QueryError: nobody that could be asked answered, and this node is not the first of its swarm.
            ValidationError: no validator is registered for the key's namespace, or the quorum is no whole number.
        """
        _check_plain(key)
        self._validators.check_namespace(key)
        limit = self._config.replication_factor
        if quorum is not None and not 1 <= whole_number_of("quorum", quorum) <= limit:
            raise ConfigError(f"quorum must be in 1 ..= {limit}, not {quorum}")
        wanted = quorum or self._config.read_quorum or self._config.write_quorum
        named = _Named()
        own = await self._storage.get_record(key, now_us=self._clock.now_us())
        if own is not None:
            self._weigh(named, key, self._network.local, own.value)

        def weigh(contact: Contact, reply: Reply) -> None:
            self._weigh(named, key, contact.peer, reply.record.value if reply.record is not None else None)

        if named.count < wanted:
            lookup = self._explorer.lookup(kad_key(key), query_timeout_s=self._config.rpc_timeout_s)
            await self._explorer.run(lookup, GetValue(key), take=weigh, until=lambda: named.count >= wanted)
        if named.best is None:
            self._check_anybody_answered(named.asked - {self._network.local})
            return None
        self._correct_soon(key, named)
        return named.best

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry out corrections, and announce again what nobody took, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._correct_each)
            nursery.start_soon(self._announce_untold)
            task_status.started()

    async def _correct_each(self) -> None:
        async for peer, request in self._corrections:
            try:
                await self._neighbourhood.tell(self._neighbourhood.contact(peer), request)
            except (QueryError, RemoteProtocolError):
                continue  # whether they take it is their affair

    def _weigh(self, named: _Named, key: Key, peer: PeerId, value: bytes | None) -> None:
        """Note which record a server named, and whether it is the best so far."""
        named.asked.add(peer)
        if value is None or not self._is_valid(key, value):
            return
        named.count += 1
        if named.best is None or (value != named.best and self._validators.select(key, [named.best, value]) == 1):
            named.best, named.holders = value, {peer}
        elif value == named.best:
            named.holders.add(peer)

    def _correct_soon(self, key: Key, named: _Named) -> None:
        """Give the best record to those of the closest that lack it."""
        assert named.best is not None
        request = PutValue((Record(key, named.best),))
        lacking = named.asked - named.holders - {self._network.local}
        contacts = [self._neighbourhood.contact(peer) for peer in named.asked]
        for contact in closest(contacts, kad_key(key), self._config.replication_factor):
            if contact.peer in lacking:
                try:
                    self._to_correct.send_nowait((contact.peer, request))
                except trio.WouldBlock:
                    return

    async def _send_record(self, key: Key, value: bytes) -> RecordReceipt:
        now_us = self._clock.now_us()
        request = PutValue((Record(key, value),))

        async def here() -> bool:
            record = PlainRecord(
                key=key,
                value=value,
                received_at_us=now_us,
                expires_at_us=TimestampUs(now_us + int(self._config.record_ttl_s * US_PER_S)),
                publisher=self._network.local,
            )
            return await self._server.put_plain(record)

        def stored(reply: Reply) -> bool:
            return reply.record is not None and reply.record.value == value

        receipt = await self._to_closest(key, request, stored, here)
        if not receipt.stored_by:
            raise QueryError(f"nobody stored the record: {_first_reason(receipt)}")
        return receipt

    def _is_valid(self, key: Key, value: bytes) -> bool:
        try:
            self._validators.validate(key, value)
        except ValidationError:
            return False
        return True

    # Providers

    async def provide(self, multihash: bytes, *, announce: bool) -> RecordReceipt:
        """Announce that this node has the content of a multihash, now or at the next republish, and while it runs.

        What nobody takes now, because this node has not joined yet, say, is announced again within a minute of when it
        has, and so on until somebody took it. The receipt then names nobody that stored it.

        Raises:
            LocalProtocolError: this node has no address at which it could be reached.
            ValidationError: it provides too many already.
        """
        if not self._network.own_addresses():
            raise LocalProtocolError("a node that does not listen cannot provide")
        provided = self._server.provided
        if len(provided) >= MAX_PROVIDED and multihash not in provided:
            raise ValidationError(f"a node provides at most {MAX_PROVIDED} multihashes")
        provided.add(multihash)
        return await self._announce(multihash) if announce else RecordReceipt(key=multihash, stored_by=())

    async def stop_providing(self, multihash: bytes) -> None:
        """Announce it no longer; what others remember of it expires."""
        self._server.provided.discard(multihash)
        self._untold.pop(multihash, None)
        await trio.lowlevel.checkpoint()

    async def find_providers(self, multihash: bytes, count: int) -> list[Provider]:
        """Up to ``count`` providers, each once, those that this node knows of first.

        Anybody can name peers that provide nothing: it is not enough that one server names as many, unless the ``r``
        closest have answered, and of what several name each has its share. Of each provider the addresses that this
        node knows itself come first, then those that were named, by anybody.

        Raises:
            QueryError: none is known, nobody that could be asked answered, and this node is not the first of its swarm.
            ValidationError: the count is below 1, or no whole number.
        """
        if whole_number_of("count", count) < 1:
            raise ValidationError("count must be at least 1")
        found = _Providers()
        known = {record.provider: record.addresses for record in await self._server.get_providers(multihash)}
        found.add(known)
        lookup = self._explorer.lookup(kad_key(multihash))

        def note(_contact: Contact, reply: Reply) -> None:
            found.add({record.peer: record.addresses for record in reply.providers})
            if len(found) >= count:
                lookup.narrow(1)  # those that are being asked may be all it takes

        def is_enough() -> bool:
            is_heard_of = len(found.named) >= self._config.write_quorum
            return len(found) >= count and (is_heard_of or lookup.has_heard_nearest(self._config.replication_factor))

        if len(found) < count:
            result = await self._explorer.run(lookup, GetProviders(multihash), take=note, until=is_enough)
            if not found:
                self._check_anybody_answered(result.closest)
        providers = []
        for peer, said in found.choose(count, first=known):
            self._network.learn_addresses(peer, said, source="kad")
            addresses = dict.fromkeys((*self._network.addresses_of(peer), *said))
            providers.append(PeerRecord(peer, tuple(addresses)))
        self._heard[multihash] = providers
        self._heard.move_to_end(multihash)
        if len(self._heard) > MAX_HEARD:
            self._heard.popitem(last=False)
        return [Provider(record.peer, tuple(map(address_text, record.addresses))) for record in providers]

    def heard_providers(self, multihash: bytes) -> list[PeerRecord]:
        """What :meth:`find_providers` found when it was last asked."""
        return self._heard.get(multihash, [])

    async def republish(self) -> None:
        """Put everything again that this node made: due every ``record_republish_s``.

        What fails, because a better record stands or nobody is there, has another turn then.
        """
        for multihash in sorted(self._server.provided):  # a set has another order in each process
            if multihash in self._server.provided:  # and not withdrawn meanwhile
                await self._announce(multihash)
        for key, value in list(self._own_records.items()):
            try:
                await self._send_record(key, value)
            except (QueryError, ValidationError) as error:
                logger.info("a record could not be put again: %s", error)

    async def _announce(self, multihash: bytes) -> RecordReceipt:
        async with self._announcing:
            request = AddProvider(multihash, (PeerRecord(self._network.local, self._network.own_addresses()),))
            receipt = await self._to_closest(multihash, request, lambda _reply: True, None)
        self._untold.pop(multihash, None)
        if not receipt.stored_by and multihash in self._server.provided:
            self._untold[multihash] = None
        return receipt

    async def _announce_untold(self) -> None:
        """Announce again what nobody took, once there is somebody."""
        while True:
            await trio.sleep(ANNOUNCE_AGAIN_S)
            failures = 0
            for multihash in list(self._untold):
                is_possible = len(self._neighbourhood.table) and self._network.own_addresses()
                if not is_possible or failures == ANNOUNCED_IN_VAIN:
                    break
                if multihash not in self._untold:  # withdrawn, or announced meanwhile
                    continue
                try:
                    failures += not (await self._announce(multihash)).stored_by
                except PrimeDHTError as error:
                    logger.warning("content could not be announced: %s; again in %g s", error, ANNOUNCE_AGAIN_S)
                    break

    def _check_anybody_answered(self, others: Collection[object]) -> None:
        """See that what nobody named is not merely what nobody could be asked for.

        Raises:
            QueryError: no other node answered, though there may be some.
        """
        known = self._neighbourhood
        is_first = known.is_server and known.has_looked_around and not len(known.table)
        if not others and not is_first:
            raise QueryError("nobody that could be asked answered")

    async def _to_closest(
        self,
        key: bytes,
        request: Request,
        is_stored: Callable[[Reply], bool],
        here: Callable[[], Awaitable[bool]] | None,
    ) -> RecordReceipt:
        """Send a request to the ``r`` servers closest to a key; ``here`` does the same on this node, if it is one.

        To find them and to ask them each takes half of ``operation_timeout_s`` at most.
        """
        half_s = self._config.operation_timeout_s / 2
        replication = self._config.replication_factor
        result = await self._explorer.find_closest(key, timeout_s=half_s)
        own = self._neighbourhood.own_contact() if here is not None else None
        servers = closest(result.closest if own is None else (own, *result.closest), kad_key(key), replication)
        stored: list[PeerId] = []
        failed: list[tuple[PeerId, str]] = []

        async def send(contact: Contact) -> None:
            try:
                if contact is own and here is not None:
                    done = await here()
                else:
                    with trio.fail_after(half_s):
                        done = is_stored(await self._neighbourhood.tell(contact, request))
            except (QueryError, RemoteProtocolError, StorageError, ValidationError, trio.TooSlowError) as error:
                failed.append((contact.peer, str(error) or NOT_IN_TIME))
                return
            if done:
                stored.append(contact.peer)
            else:
                failed.append((contact.peer, "it answered with another record"))

        async with trio.open_nursery() as nursery:
            for server in servers:
                nursery.start_soon(send, server)
        return RecordReceipt(key=key, stored_by=tuple(stored), failed=tuple(failed))


def _check_plain(key: Key) -> None:
    if namespace_of(key) == PRIME_NAMESPACE:
        raise ValidationError("keys in /prime/ hold entries: use put and get")


def _first_reason(receipt: RecordReceipt) -> str:
    if not receipt.failed:
        return "no server is known"
    peer, reason = receipt.failed[0]
    return f"{short(peer)}: {reason}"
