"""A node, on any network: what it offers its owner. :class:`prime_dht.PrimeDHT` is one on a libp2p host.

The work is done by the parts beside this module; here arguments become theirs. For its life see
:mod:`prime_dht.node.life`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial

from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from prime_dht.errors import ValidationError
from prime_dht.ids import Key, PeerId, peer_text
from prime_dht.kad.lookup import LookupResult
from prime_dht.net.address_book import split_peer_address
from prime_dht.net.addresses import address_text
from prime_dht.node.arguments import (
    PathLike,
    PeerLike,
    bytes_of,
    entry_key,
    metadata_of,
    pairs_of,
    peer_id_of,
    peer_ids_of,
    peer_info,
    publishers_of,
    selected,
    several,
    subkey_of,
    subkeys_of,
    whole_number_of,
)
from prime_dht.node.blobs.fetch import OnProgress
from prime_dht.node.blobs.putting import Value
from prime_dht.node.feed import Subscription
from prime_dht.node.life import NodeLife, not_running
from prime_dht.node.multihashes import multihash_of
from prime_dht.node.provision import Provision
from prime_dht.node.results import Found, FoundPage, Health, PeerStatus, Provider, PutReceipt, RecordReceipt, Stats
from prime_dht.node.rounds import SyncReport
from prime_dht.node.writer import Statement
from prime_dht.quantities import number_of
from prime_dht.storage.base import Expired


class Node(NodeLife):
    """A DHT node. Use it as ``async with``; it runs once. Its parameters: :class:`~prime_dht.node.life.NodeLife`.

    Attributes:
        blobs: what it offers for values of any size (:class:`~prime_dht.node.blobs.blobs.Blobs`).
    """

    # Entries

    async def put(
        self,
        key: bytes | str,
        value: Value,
        *,
        subkey: bytes = b"",
        ttl: float | None = None,
        expires_at: float | None = None,
        replication: int | None = None,
        metadata: Mapping[str, str] | None = None,
        content_type: str = "",
        keep: bool = False,
        capability: bytes = b"",
        chunker: str | None = None,
        wait_s: float | None = None,
        progress: OnProgress | None = None,
    ) -> PutReceipt:
        """Store a value under a key, in this node's own slot there.

        Args:
            key: an application's key; ``k`` becomes ``/prime/k``. At most 1 KiB.
            value: bytes, a file, or a reader of bytes, of any size. Over 64 KiB it becomes a blob. Or a blob that the
                swarm has, as a receipt or a find names it; then no bytes leave this node.
            subkey: names one of several slots that this node has under the key; at most 256 bytes.
            ttl: seconds that the value lives; the configuration's by default. Or
            expires_at: when it ends, in seconds since the Unix epoch.
            replication: on how many servers it is stored, 1 ..= k; the configuration's by default.
            metadata: names and texts, signed with the entry.
            content_type: a media type.
            keep: sign and put it again before it expires, for as long as this node runs, or until it next puts or
                deletes anything in the same slot, even if that fails.
            capability: for group keys, what :func:`prime_dht.entries.capability.grant` gave this node.
            chunker, wait_s, progress: of a blob, as in :meth:`~prime_dht.node.blobs.blobs.Blobs.add`.

        Raises:
            ValidationError: the key, value or times break a rule or a limit.
            StorageError: the file cannot be read, or there is no room for the blob's blocks.
            QueryError: no replica took it.
        """
        limit = self.config.limits.max_inline_bytes
        is_inline = isinstance(value, bytes | bytearray | memoryview) and len(value) <= limit
        statement = Statement(
            key=self._key(key),
            subkey=self._subkey(subkey),
            value=bytes_of("a value", value) if is_inline else None,
            ttl_s=None if ttl is None else number_of("ttl", ttl),
            expires_at_s=None if expires_at is None else number_of("expires_at", expires_at),
            content_type=content_type,
            metadata=metadata_of(metadata),
            capability=bytes_of("a capability", capability),
        )
        if keep:
            self._keeper.check_room(statement)
        async with self._rewriting(statement):
            with self._keeper.place_for(statement) if keep else nullcontext() as place:
                if is_inline:
                    receipt = await self._writer.put(statement, replication=replication)
                else:
                    statement, receipt = await self.blobs.put(
                        statement,
                        value,
                        replication=replication,
                        chunker=chunker,
                        wait_s=wait_s,
                        progress=progress,
                        signs=partial(self._keeper.signs, statement, place),
                    )
                if place is not None:
                    self._keeper.keep(place, statement, replication, receipt)
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
        to: PathLike | None = None,
        fetch: bool = True,
        progress: OnProgress | None = None,
    ) -> Found | None:
        """The newest live value under a key and subkey, or ``None`` if there is none.

        Args:
            publisher: only this peer's.
            trusted: only these peers', 256 of them at most.
            quorum: replicas whose answers are joined, 1 ..= r; the configuration's ``read_quorum`` by default.
            latest: ask the replicas even if a recent answer is remembered here.
            to: a file to write the value to, of any size; see :meth:`~prime_dht.node.blobs.blobs.Blobs.fetch`.
            fetch: whether to fetch the blob if the value is one, or only to say which (:attr:`Found.blob`).
            progress: of fetching a blob; must not block.

        Raises:
            QueryError: nobody could be asked, too few answered to tell, or what replicas hold is dated too far ahead of
                this node's clock, or above its limits.
            ValidationError: both ``publisher`` and ``trusted`` are given, or the key is empty, or it or the subkey too
                long.
            BlobError: the value is a blob that nobody has, or of more than ``max_value_bytes`` without ``to``.
            StorageError: the file cannot be written.
        """
        await self._check_running()
        found = await self._reader.get(
            self._key(key),
            self._subkey(subkey),
            publishers_of(publisher, trusted),
            wanted_quorum=quorum,
            latest=latest,
        )
        return await self.blobs.resolve(found, to=to, progress=progress) if found and fetch else found

    async def get_all(
        self,
        key: bytes | str,
        *,
        subkeys: Collection[bytes] | None = None,
        publishers: Collection[PeerLike] | None = None,
        limit: int | None = None,
        cursor: bytes | None = None,
    ) -> FoundPage:
        """Every publisher's live value under a key, in the order of (publisher, subkey), in pages; blobs unfetched.

        Args:
            subkeys, publishers: only these, 256 at most of each; any by default.
            limit: values in the page at most, 1 or more; a page may hold fewer and still not be the last.
            cursor: the ``next_cursor`` of the page before.

        Raises:
            QueryError: nobody could be asked.
            ValidationError: the limit is below 1, too much is named, or the cursor is none that a page ended with.
        """
        await self._check_running()
        if limit is not None and whole_number_of("limit", limit) < 1:
            raise ValidationError("limit must be at least 1")
        return await self._reader.get_all(
            self._key(key),
            subkeys=selected("subkeys", subkeys_of(subkeys, self.config.limits.max_subkey_bytes)),
            publishers=selected("publishers", peer_ids_of("publishers", publishers)),
            limit=limit,
            cursor=b"" if cursor is None else bytes_of("a cursor", cursor),
        )

    async def delete(self, key: bytes | str, *, subkey: bytes = b"", capability: bytes = b"") -> PutReceipt:
        """Empty this node's own slot under a key. Others' values stay; they cannot be deleted.

        Args:
            capability: for group keys, as in :meth:`put`.

        Raises:
            QueryError: no replica took the tombstone.
        """
        statement = Statement(
            key=self._key(key),
            subkey=self._subkey(subkey),
            value=None,
            capability=bytes_of("a capability", capability),
        )
        async with self._rewriting(statement):
            return await self._writer.put(statement)

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
        ttl_s = None if ttl is None else number_of("ttl", ttl)
        statements = [
            Statement(key=self._key(key), value=bytes_of("a value", value), ttl_s=ttl_s)
            for key, value in pairs_of(items)
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
        wire_keys = dict.fromkeys(map(self._key, several("keys", keys)))
        return await self._reader.get_many(list(wire_keys), wanted_quorum=quorum)

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
            raise not_running()
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
        providers = self._records.heard_providers(multihash_of(cid))[:count]
        return [peer_info(provider.peer, provider.addresses) for provider in providers]

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
            QueryError: the peer cannot be reached or does not sync, or this node cannot read its store in time.
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

    @asynccontextmanager
    async def _rewriting(self, statement: Statement) -> AsyncIterator[None]:
        await self._check_running()
        self._keeper.let_go(statement.key, statement.subkey)
        try:
            yield
        finally:  # what was remembered may be older now, also if the put failed half-way
            self._cache.drop(statement.key)

    def _key(self, key: bytes | str) -> Key:
        return entry_key(key, self.config.limits.max_key_bytes)

    def _subkey(self, subkey: bytes) -> bytes:
        return subkey_of(subkey, self.config.limits.max_subkey_bytes)
