"""A node, on any network: what it offers its owner, and its life. :class:`prime_dht.PrimeDHT` is one on a libp2p host.

The work is done by the parts beside this module; here arguments become theirs, and their life becomes one ``async
with``. While that block runs, the node answers requests, keeps its routing table true and does its chores. All it knows
of the world comes in through its constructor: a network, a clock and a source of chance, so that whole swarms run in
virtual time (:mod:`prime_dht.testing.swarm`).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from random import Random
from types import TracebackType
from typing import ClassVar, Self

import trio
from libp2p.crypto.keys import PrivateKey
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from prime_dht.background import background_nursery
from prime_dht.config import DhtConfig, Mode
from prime_dht.entries.entry import NO_METADATA
from prime_dht.entries.validators import Validator, ValidatorRegistry
from prime_dht.errors import LocalProtocolError, StorageError, ValidationError
from prime_dht.ids import Key, PeerId, peer_text
from prime_dht.kad.lookup import LookupResult
from prime_dht.net.addresses import address_text
from prime_dht.net.dialer import split_peer_address
from prime_dht.net.network import NetworkFactory
from prime_dht.node.arguments import PeerLike, bytes_of, entry_key, peer_id_of, peer_info, publishers_of
from prime_dht.node.clock import Clock, SystemClock
from prime_dht.node.feed import Subscription
from prime_dht.node.keeper import Keeper
from prime_dht.node.multihashes import multihash_of
from prime_dht.node.parts import assemble
from prime_dht.node.provision import Provision
from prime_dht.node.results import Found, FoundPage, Health, PeerStatus, Provider, PutReceipt, RecordReceipt, Stats
from prime_dht.node.rounds import SyncReport
from prime_dht.node.writer import Statement
from prime_dht.storage.base import Expired, StorageBackend
from prime_dht.storage.memory import MemoryBackend

logger = logging.getLogger(__name__)

LAST_CHORES_S = 2.0
"""For what a node writes down when it stops."""


class Node:
    """A DHT node. Use it as ``async with``; it runs once.

    Args:
        join: makes its network.
        private_key: Ed25519; signs its entries.
        config: how to behave.
        storage: where entries go; memory by default. The caller closes what it brings.
        bootstrap_peers: multiaddrs, each ending in ``/p2p/<peer id>``, of nodes to join through.
        validators: of namespaces other than ``/prime/``, by name; ``pk`` is there already.
        clock: the time.
        rng: for jitter and refresh targets.

    Raises:
        ConfigError: a validator is given for ``/prime/``.
        ValidationError: a bootstrap peer's multiaddr is malformed.
    """

    syncs: ClassVar[bool] = True  # whether it keeps replicas equal by itself, beyond what puts and reads do

    def __init__(
        self,
        join: NetworkFactory,
        private_key: PrivateKey,
        config: DhtConfig | None = None,
        *,
        storage: StorageBackend | None = None,
        bootstrap_peers: Iterable[str | Multiaddr] = (),
        validators: Mapping[str, Validator] | None = None,
        clock: Clock | None = None,
        rng: Random | None = None,
    ) -> None:
        config = self.config = config or DhtConfig()
        self._bootstrap_peers = [split_peer_address(str(address)) for address in bootstrap_peers]
        parts = assemble(
            join,
            private_key,
            config,
            storage or MemoryBackend(),
            ValidatorRegistry(validators),
            clock or SystemClock(),
            rng,
            [peer for peer, _ in self._bootstrap_peers],
        )
        self._network = parts.network
        self._neighbourhood = parts.known
        self._feed = parts.feed
        self._cache = parts.cache
        self._explorer = parts.explorer
        self._replica = parts.replica
        self._writer = parts.writer
        self._reader = parts.reader
        self._records = parts.records
        self._keeper = Keeper(parts.writer, parts.clock)
        self._maintenance = parts.maintenance
        self._syncing = parts.syncing
        self._status = parts.status
        self._has_started = False
        self._life: AsyncExitStack | None = None
        self._nursery: trio.Nursery | None = None

    # Life

    async def __aenter__(self) -> Self:
        stack = AsyncExitStack()
        await stack.enter_async_context(self._running())
        self._life = stack
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._life is not None
        return await self._life.__aexit__(exc_type, exc, traceback)

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        if self._has_started:
            raise LocalProtocolError("a node runs once, and this one was started before")
        self._has_started = True
        network, known = self._network, self._neighbourhood
        if self.config.mode is Mode.AUTO:
            known.is_server = bool(network.own_addresses())
        async with background_nursery() as nursery:
            for part in (network, known, self._replica, self._reader, self._records, self._keeper):
                await nursery.start(part.run)
            for peer, address in self._bootstrap_peers:
                network.learn_addresses(peer, (address,), source="bootstrap")
            network.mount(as_server=known.is_server)
            await nursery.start(self._maintenance.run)
            await nursery.start(self._syncing.run)
            self._nursery = nursery
            try:
                yield
            finally:
                self._nursery = None
                network.unmount()
                self._feed.close()
                with trio.move_on_after(LAST_CHORES_S) as scope:
                    scope.shield = True
                    try:
                        await self._maintenance.remember_peers()
                    except StorageError as error:
                        logger.warning("peers could not be remembered: %s", error)

    # Entries

    async def put(
        self,
        key: bytes | str,
        value: bytes,
        *,
        subkey: bytes = b"",
        ttl: float | None = None,
        expires_at: float | None = None,
        replication: int | None = None,
        metadata: Mapping[str, str] | None = None,
        content_type: str = "",
        keep: bool = False,
        capability: bytes = b"",
    ) -> PutReceipt:
        """Store a value under a key, in this node's own slot there.

        Args:
            key: an application's key; ``k`` becomes ``/prime/k``. At most 1 KiB.
            value: at most 64 KiB.
            subkey: names one of several slots that this node has under the key; at most 256 bytes.
            ttl: seconds that the value lives; the configuration's by default. Or
            expires_at: when it ends, in seconds since the Unix epoch.
            replication: on how many servers it is stored, 1 ..= k; the configuration's by default.
            metadata: names and texts, signed with the entry.
            content_type: a media type.
            keep: sign and put it again before it expires, for as long as this node runs, or until it next puts or
                deletes anything in the same slot, even if that fails.
            capability: for group keys, what :func:`prime_dht.entries.capability.grant` gave this node.

        Raises:
            ValidationError: the key, value or times break a rule or a limit.
            QueryError: no replica took it.
        """
        statement = Statement(
            key=self._key(key),
            subkey=bytes_of("a subkey", subkey),
            value=bytes_of("a value", value),
            ttl_s=ttl,
            expires_at_s=expires_at,
            content_type=content_type,
            metadata=metadata or NO_METADATA,
            capability=capability,
        )
        if keep:
            self._keeper.check_room(statement)
        receipt = await self._put(statement, replication)
        if keep:
            self._keeper.keep(statement, replication, receipt)
        return receipt

    async def get(
        self,
        key: bytes | str,
        *,
        subkey: bytes = b"",
        publisher: PeerLike | None = None,
        trusted: Collection[PeerLike] | None = None,
        quorum: int | None = None,
        latest: bool = False,
    ) -> Found | None:
        """The newest live value under a key and subkey, or ``None`` if there is none.

        Args:
            publisher: only this peer's.
            trusted: only these peers'.
            quorum: replicas whose answers are joined, 1 ..= r; the configuration's ``read_quorum`` by default.
            latest: ask the replicas even if a recent answer is remembered here.

        Raises:
            QueryError: nobody could be asked.
            ValidationError: both ``publisher`` and ``trusted`` are given, or the key is empty.
        """
        await self._check_running()
        return await self._reader.get(
            self._key(key),
            bytes_of("a subkey", subkey),
            publishers_of(publisher, trusted),
            wanted_quorum=quorum,
            latest=latest,
        )

    async def get_all(
        self,
        key: bytes | str,
        *,
        subkeys: Collection[bytes] | None = None,
        publishers: Collection[PeerLike] | None = None,
        limit: int | None = None,
        cursor: bytes | None = None,
    ) -> FoundPage:
        """Every publisher's live value under a key, in the order of (publisher, subkey), in pages.

        Args:
            subkeys: only these; any by default.
            publishers: only these; any by default.
            limit: values in the page at most, 1 or more; a page may hold fewer and still not be the last.
            cursor: the ``next_cursor`` of the page before.

        Raises:
            QueryError: nobody could be asked.
            ValidationError: the limit is below 1, or the cursor is none that a page ended with.
        """
        await self._check_running()
        if limit is not None and limit < 1:
            raise ValidationError("limit must be at least 1")
        return await self._reader.get_all(
            self._key(key),
            subkeys=None if subkeys is None else frozenset(subkeys),
            publishers=None if publishers is None else frozenset(map(peer_id_of, publishers)),
            limit=limit,
            cursor=cursor or b"",
        )

    async def delete(self, key: bytes | str, *, subkey: bytes = b"", capability: bytes = b"") -> PutReceipt:
        """Empty this node's own slot under a key. Others' values stay; they cannot be deleted.

        Args:
            capability: for group keys, as in :meth:`put`.

        Raises:
            QueryError: no replica took the tombstone.
        """
        statement = Statement(
            key=self._key(key), subkey=bytes_of("a subkey", subkey), value=None, capability=capability
        )
        return await self._put(statement, None)

    async def put_many(
        self,
        items: Mapping[str, bytes] | Mapping[bytes, bytes] | Iterable[tuple[bytes | str, bytes]],
        *,
        ttl: float | None = None,
        replication: int | None = None,
    ) -> list[PutReceipt]:
        """Store many values in few requests; a receipt for each, in order. See :meth:`put`.

        Raises:
            ValidationError: one of them breaks a rule or a limit; then none is stored.
            QueryError: no replica took any of them.
        """
        await self._check_running()
        pairs: Iterable[tuple[bytes | str, bytes]] = items.items() if isinstance(items, Mapping) else items
        statements = [
            Statement(key=self._key(key), value=bytes_of("a value", value), ttl_s=ttl) for key, value in pairs
        ]
        for statement in statements:
            self._keeper.let_go(statement.key, statement.subkey)
        try:
            return await self._writer.put_many(statements, replication=replication)
        finally:
            for statement in statements:
                self._cache.drop(statement.key)

    async def get_many(self, keys: Iterable[bytes | str], *, quorum: int | None = None) -> dict[Key, Found | None]:
        """The newest live value of each key, in few requests; wire keys name them in the result. See :meth:`get`.

        Returns:
            for each key its value, or ``None`` if there is none. Keys of which too few replicas answered are left out.

        Raises:
            QueryError: that is so of all keys.
        """
        await self._check_running()
        return await self._reader.get_many(list(dict.fromkeys(map(self._key, keys))), wanted_quorum=quorum)

    # Records and providers

    async def put_record(self, key: bytes, value: bytes) -> RecordReceipt:
        """Store a plain record of a namespace other than ``/prime/``; see :mod:`prime_dht.node.records`."""
        await self._check_running()
        return await self._records.put_record(Key(bytes_of("a record key", key)), bytes_of("a value", value))

    async def get_record(self, key: bytes, *, quorum: int | None = None) -> bytes | None:
        """The best valid record under a key, or ``None``."""
        await self._check_running()
        return await self._records.get_record(Key(bytes_of("a record key", key)), quorum=quorum)

    def provide(self, cid: bytes | str, announce: bool = True) -> Provision:
        """Announce that this node has the content of a CID or multihash, at once and as long as it runs.

        py-libp2p's interface makes this a plain call; awaiting what it returns waits for the announcement.

        Args:
            announce: whether to tell others now. If not, they are told at the next republish.

        Raises:
            ValidationError: it is neither a CID nor a multihash.
        """
        if self._nursery is None:
            raise _not_running()
        provision = Provision()
        self._nursery.start_soon(partial(provision.carry_out, self._records, multihash_of(cid), announce=announce))
        return provision

    async def stop_providing(self, cid: bytes | str) -> None:
        """Announce it no longer."""
        await self._check_running()
        await self._records.stop_providing(multihash_of(cid))

    async def find_providers(self, cid: bytes | str, *, count: int = 20) -> list[Provider]:
        """Up to ``count`` peers that say they have the content of a CID or multihash."""
        await self._check_running()
        return await self._records.find_providers(multihash_of(cid), count)

    def find_provider_iter(self, cid: bytes | str, count: int) -> Iterable[PeerInfo]:
        """The providers that :meth:`find_providers` found last: py-libp2p's interface leaves no way to search here."""
        providers = self._records.heard_providers(multihash_of(cid))
        return [PeerInfo(ID(provider.peer), list(map(Multiaddr, provider.addresses))) for provider in providers[:count]]

    # Peers

    async def find_peer(self, peer_id: PeerLike) -> PeerInfo | None:
        """A peer's addresses, or ``None`` if nobody knows it."""
        await self._check_running()
        peer = peer_id_of(peer_id)
        network = self._network
        if peer == network.local:
            return peer_info(peer, network.own_addresses())
        is_at_hand = self._neighbourhood.table.get(peer) is not None or network.is_connected(peer)
        if not is_at_hand or not network.addresses_of(peer):
            result = await self._explorer.find_closest(peer)
            if all(hop.contact.peer != peer for hop in result.path):
                return None
        addresses = network.addresses_of(peer)
        return peer_info(peer, addresses) if addresses else None

    async def find_closest(self, key: bytes | str | ID) -> LookupResult:
        """The ``k`` servers closest to a key or a peer id, with the path that led there."""
        await self._check_running()
        raw = key.to_bytes() if isinstance(key, ID) else self._key(key)
        return await self._explorer.find_closest(raw)

    async def bootstrap(self) -> int:
        """Join now, through the bootstrap peers and those remembered; how many peers are known then.

        The node does this by itself when it starts, and again until it knows somebody.

        Raises:
            QueryError: there are bootstrap peers, but none of them answers.
        """
        await self._check_running()
        return await self._maintenance.bootstrap()

    async def add_peer(self, address: str | Multiaddr) -> PeerId:
        """Dial a peer by its multiaddr and take it into the routing table.

        Raises:
            ValidationError: the multiaddr is malformed or names no peer.
            QueryError: it cannot be reached, or serves no Kademlia.
        """
        await self._check_running()
        peer, raw = split_peer_address(str(address))
        await self._maintenance.add_peer(peer, raw)
        return peer

    def peer_found(self, peer: PeerId, addresses: Iterable[bytes], *, source: str) -> None:
        """Say that there may be a peer, where, and how it was found; it is met soon, if it is new.

        Args:
            addresses: binary multiaddrs.
        """
        if self._nursery is not None:
            self._maintenance.peer_found(peer, addresses, source=source)

    async def sync(self, peer_id: PeerLike, *, dry_run: bool = False) -> SyncReport:
        """Carry out one round of sync with a peer whose address is known; the node does this by itself all the time.

        Args:
            dry_run: only compare.

        Raises:
            QueryError: the peer cannot be reached or does not sync, or this node is still reading its store.
        """
        await self._check_running()
        return await self._syncing.sync_with(peer_id_of(peer_id), dry_run=dry_run)

    async def ping(self, peer_id: PeerLike) -> float:
        """Seconds from a request to the answer of a peer whose address is known; QueryError if none comes."""
        await self._check_running()
        return await self._status.ping(peer_id_of(peer_id))

    def peers(self) -> list[PeerStatus]:
        """The peers in the routing table, nearest first."""
        return self._status.peers()

    @property
    def peer_id(self) -> PeerId:
        """This node's own."""
        return self._network.local

    def addresses(self) -> list[str]:
        """Full multiaddrs, each ending in ``/p2p/<peer id>``, at which this node can be dialled."""
        own = peer_text(self._network.local)
        return [f"{address_text(address)}/p2p/{own}" for address in self._network.own_addresses()]

    # Looking after it

    async def health(self) -> Health:
        """Peers, keys, bucket sizes, the target arc, and warnings in plain words."""
        return await self._status.health()

    async def stats(self) -> Stats:
        """Counters since the node started."""
        return await self._status.stats()

    async def cleanup_expired(self) -> Expired:
        """Drop what has expired now; the node does this by itself every minute."""
        await self._check_running()
        return await self._replica.expire()

    def subscribe(self) -> AbstractContextManager[Subscription]:
        """Events from here on: ``with dht.subscribe() as events: async for event in events: ...``"""
        return self._feed.subscribe()

    # Within

    async def _put(self, statement: Statement, replication: int | None) -> PutReceipt:
        await self._check_running()
        self._keeper.let_go(statement.key, statement.subkey)
        try:
            return await self._writer.put(statement, replication=replication)
        finally:  # what was remembered may be older now, also if the put failed half-way
            self._cache.drop(statement.key)

    async def _check_running(self) -> None:
        if self._nursery is None:
            raise _not_running()

    def _key(self, key: bytes | str) -> Key:
        return entry_key(key, self.config.limits.max_key_bytes)


def _not_running() -> LocalProtocolError:
    return LocalProtocolError("this node is not running: use it as `async with`")
