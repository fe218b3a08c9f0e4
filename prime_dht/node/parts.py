"""The parts of a node, made and put together: each is given those that it needs, and knows no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random, SystemRandom

from libp2p.crypto.keys import PrivateKey

from prime_dht.config import DhtConfig, Mode
from prime_dht.entries.admission import AdmissionRules
from prime_dht.entries.validators import ValidatorRegistry
from prime_dht.ids import PeerId, peer_from_text
from prime_dht.kad.keyspace import Prefix
from prime_dht.net.network import Network, NetworkFactory
from prime_dht.node.blobs.blobs import Blobs
from prime_dht.node.blobs.claims import BlobClaims
from prime_dht.node.blobs.fetch import Fetcher
from prime_dht.node.blobs.keeping import HeldBlocks, Keeping
from prime_dht.node.blobs.left import LeftPuts
from prime_dht.node.blobs.putting import BlobWriter
from prime_dht.node.cache import ReadCache
from prime_dht.node.clock import Clock
from prime_dht.node.feed import Feed
from prime_dht.node.handing_on import HandingOn
from prime_dht.node.held import HeldSectors
from prime_dht.node.lookups import Explorer
from prime_dht.node.maintenance import Maintenance
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.node.reader import Reader
from prime_dht.node.records import Records
from prime_dht.node.replica import Replica
from prime_dht.node.rounds import Rounds
from prime_dht.node.server import Server
from prime_dht.node.status import Status
from prime_dht.node.syncing import Syncing
from prime_dht.node.writer import Writer
from prime_dht.storage.base import StorageBackend
from prime_dht.storage.blocks import BlockStore
from prime_dht.storage.capacity import Capacity


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a node is made of; see the module of each."""

    clock: Clock
    network: Network
    feed: Feed
    cache: ReadCache
    known: Neighbourhood
    explorer: Explorer
    replica: Replica
    writer: Writer
    reader: Reader
    records: Records
    blobs: Blobs
    keeping: Keeping
    left_puts: LeftPuts
    maintenance: Maintenance
    syncing: Syncing
    status: Status


def assemble(
    join: NetworkFactory,
    private_key: PrivateKey,
    config: DhtConfig,
    storage: StorageBackend,
    blocks: BlockStore,
    registry: ValidatorRegistry,
    clock: Clock,
    rng: Random | None,
    bootstrap_peers: Sequence[tuple[PeerId, bytes]],
) -> Parts:
    """Make the parts of a node.

    Args:
        join: makes its network.
        rng: for jitter and refresh targets; with one, the node does the same every time, and its salts can be foreseen.
    """
    allowed = config.allow_publishers
    parameters = config.partition
    rules = AdmissionRules(
        network_id=config.network_id,
        limits=config.limits,
        unit_us=parameters.unit_us,
        publishers=None if allowed is None else frozenset(map(peer_from_text, allowed)),
    )
    network = join(lambda peer, request: server.handle(peer, request))
    feed = Feed()
    cache = ReadCache(ttl_s=config.cache_ttl_s, max_bytes=config.cache_bytes)
    known = Neighbourhood(network, config, clock, feed, is_server=config.mode is Mode.SERVER)
    storage.capacity = Capacity(limits=config.limits, local=known.local)
    known.own_arc.watch(lambda arc: _spare(storage, arc))
    explorer = Explorer(known, config, clock, feed)
    claims = BlobClaims(blocks, storage, config.limits, clock)
    replica = Replica(storage, parameters, clock, feed, blobs=claims)
    held = HeldSectors(known, sector_bits=parameters.sector_bits, replication=config.replication_factor)
    server = Server(network, known, storage, replica, held, registry, cache, rules, config, clock, feed)
    writer = Writer(private_key, network, known, explorer, server, storage, config, clock)
    reader = Reader(network, known, explorer, server, writer, cache, rules, config, clock)
    records = Records(network, known, explorer, server, storage, registry, config, clock)
    replication = config.replication_factor
    rng_or_own = rng or Random()  # noqa: S311 (jitter, not secrets)
    fetcher = Fetcher(network, records, blocks, in_flight_bytes=config.blobs_in_flight_bytes)
    keeping = Keeping(blocks, claims, fetcher, records, explorer, known, feed, rng_or_own, replication=replication)
    held_blocks = HeldBlocks(blocks)
    network.serve_blocks(held_blocks, blocks)
    left_puts = LeftPuts(network, reader, writer, claims)
    blob_writer = BlobWriter(network, blocks, held_blocks, claims, left_puts, config.limits)
    blobs = Blobs(blocks, storage, fetcher, keeping, blob_writer, writer, config, clock)
    handing_on = HandingOn(network, held, replica, storage, known, explorer, clock, feed, replication=replication)
    maintenance = Maintenance(
        network,
        known,
        explorer,
        records,
        replica,
        handing_on,
        held,
        storage,
        config,
        clock,
        feed,
        rng_or_own,
        bootstrap_peers,
    )
    # Salts must not be foreseeable; in a simulation, where they are, sync draws from a source of its own.
    salts = SystemRandom() if rng is None else Random(network.local)  # noqa: S311
    rounds = Rounds(network, replica, held, server, storage, rules, clock, salts)
    timeout_s = config.operation_timeout_s
    syncing = Syncing(rounds, held, replica, known, clock, feed, salts, replication, timeout_s=timeout_s)
    network.serve_sync(syncing.accept)
    status = Status(network, known, server, held, storage, cache, config, clock, feed)
    return Parts(
        clock=clock,
        network=network,
        feed=feed,
        cache=cache,
        known=known,
        explorer=explorer,
        replica=replica,
        writer=writer,
        reader=reader,
        records=records,
        blobs=blobs,
        keeping=keeping,
        left_puts=left_puts,
        maintenance=maintenance,
        syncing=syncing,
        status=status,
    )


def _spare(storage: StorageBackend, arc: Prefix) -> None:
    """Have a store evict nothing within an arc from now on."""
    storage.capacity.responsible = arc
