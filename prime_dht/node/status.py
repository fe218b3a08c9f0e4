"""How a node is doing, for people and programs."""

from __future__ import annotations

from prime_dht.config import DhtConfig
from prime_dht.ids import PeerId, peer_text
from prime_dht.kad.contact import Contact
from prime_dht.kad.keyspace import common_prefix_length
from prime_dht.net.addresses import address_text
from prime_dht.net.network import Network
from prime_dht.node.cache import ReadCache
from prime_dht.node.clock import Clock
from prime_dht.node.feed import Feed
from prime_dht.node.held import HeldSectors
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.node.results import Health, HeldArc, Holding, PeerStatus, Stats
from prime_dht.node.server import Server
from prime_dht.storage.base import StorageBackend
from prime_dht.wire.kad import Ping


class Status:
    """Looks at the parts of a node and says what there is to see."""

    def __init__(
        self,
        network: Network,
        neighbourhood: Neighbourhood,
        server: Server,
        held: HeldSectors,
        storage: StorageBackend,
        cache: ReadCache,
        config: DhtConfig,
        clock: Clock,
        feed: Feed,
    ) -> None:
        self._network = network
        self._neighbourhood = neighbourhood
        self._server = server
        self._held = held
        self._storage = storage
        self._cache = cache
        self._config = config
        self._clock = clock
        self._feed = feed

    def peers(self) -> list[PeerStatus]:
        """The peers in the routing table, nearest first."""
        table = self._neighbourhood.table
        return [self._peer(contact) for contact in table.find_closest(table.local, len(table))]

    async def health(self) -> Health:
        """Peers, keys, buckets, the target arc, and what a person should look at."""
        table = self._neighbourhood.table
        stored = await self._storage.stats()
        sizes = table.bucket_sizes()
        deepest = max((index for index, size in enumerate(sizes) if size), default=-1)
        arc = self._neighbourhood.own_arc.prefix
        is_server = self._neighbourhood.is_server
        return Health(
            peer_id=peer_text(self._network.local),
            mode="server" if is_server else "client",
            peers=len(table),
            connected=len(self._network.connected_peers()),
            keys=stored.keys,
            entries=stored.entries,
            bytes=stored.bytes,
            bucket_sizes=tuple(sizes[: deepest + 1]),
            target_arc=HeldArc.of(arc) if is_server else None,
            holding=Holding(sectors=len(self._held.arc), held=len(self._held.held)) if is_server else None,
            warnings=tuple(self._warnings()),
        )

    async def ping(self, peer: PeerId) -> float:
        """Seconds from a request to its answer, over a connection that is made first, and not timed, if there is none.

        Raises:
            QueryError: the peer cannot be reached, or did not answer.
            RemoteProtocolError: it answered wrongly.
        """
        timeout_s = self._config.rpc_timeout_s
        if not self._network.is_connected(peer):
            self._network.forgive(peer)
            await self._network.call(peer, Ping(), timeout_s=timeout_s)
        asked_at_s = self._clock.monotonic_s()
        await self._network.call(peer, Ping(), timeout_s=timeout_s)
        return self._clock.monotonic_s() - asked_at_s

    async def stats(self) -> Stats:
        """Counters since the node started."""
        counters = self._network.counters()
        return Stats(
            requests_sent=counters.requests_sent,
            requests_answered=counters.requests_answered,
            offences=counters.offences,
            backed_off=counters.backed_off,
            entries_stored=self._server.stored,
            events_dropped=self._feed.dropped,
            cache_hits=self._cache.hits,
            bytes_stored=(await self._storage.stats()).bytes,
        )

    def _warnings(self) -> list[str]:
        wanted = self._config.replication_factor
        servers = self._neighbourhood.servers_known(at_most=wanted)
        warnings = []
        if not len(self._neighbourhood.table):
            warnings.append("no other server is known")
        elif servers < wanted:
            warnings.append(f"servers known: {servers}, fewer than the {wanted} replicas asked for")
        if lost := self._feed.missed:
            warnings.append(f"{lost} events were lost to subscribers that fell behind")
        return warnings

    def _peer(self, contact: Contact) -> PeerStatus:
        acquaintance = self._neighbourhood.acquaintances.get(contact.peer)
        return PeerStatus(
            peer=contact.peer,
            addresses=tuple(map(address_text, self._network.addresses_of(contact.peer))),
            connected=self._network.is_connected(contact.peer),
            replicates=contact.syncs,
            bucket=common_prefix_length(self._neighbourhood.local, contact.kad_key),
            source=self._network.source_of(contact.peer),
            first_seen_us=acquaintance.first_seen_us if acquaintance is not None else None,
            last_seen_us=acquaintance.last_seen_us if acquaintance is not None else None,
        )
