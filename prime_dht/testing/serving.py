"""One node's request handler without the rest of the node: its own store, clock and network, and peers made up."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

from prime_dht.config import DhtConfig
from prime_dht.entries.admission import AdmissionRules
from prime_dht.entries.validators import Validator, ValidatorRegistry
from prime_dht.ids import PeerId, TimestampUs
from prime_dht.node.cache import ReadCache
from prime_dht.node.feed import Feed
from prime_dht.node.held import HeldSectors
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.node.replica import Replica
from prime_dht.node.server import Server
from prime_dht.storage.base import StorageBackend
from prime_dht.storage.memory import MemoryBackend
from prime_dht.testing.memory_network import World
from prime_dht.wire.kad import Reply, Request

LOCAL, ASKER = PeerId(b"\x00\x05local"), PeerId(b"\x00\x05asker")
NOW_US = 1_700_000_000_000_001


class SetClock:
    """A clock that stands still until it is set."""

    def __init__(self, now_us: int) -> None:
        self.time_us = now_us

    def now_us(self) -> TimestampUs:
        return TimestampUs(self.time_us)

    def monotonic_s(self) -> float:
        return self.time_us / 1e6


class Serving:
    """A :class:`~prime_dht.node.server.Server` with all it needs. Peers that ask are not probed."""

    def __init__(
        self,
        config: DhtConfig | None = None,
        *,
        is_server: bool = True,
        validators: Mapping[str, Validator] | None = None,
        storage: StorageBackend | None = None,
    ) -> None:
        config = config or DhtConfig()
        self.clock = SetClock(NOW_US)
        self.storage = storage or MemoryBackend()
        self.network = World(seed=0).network(LOCAL, self._answer)
        feed = Feed()
        self.neighbourhood = Neighbourhood(self.network, config, self.clock, feed, is_server=is_server)
        self.server = Server(
            self.network,
            self.neighbourhood,
            self.storage,
            Replica(self.storage, config.partition, self.clock, feed),
            HeldSectors(self.neighbourhood, sector_bits=config.sector_bits, replication=config.replication_factor),
            ValidatorRegistry(validators),
            ReadCache(ttl_s=config.cache_ttl_s, max_bytes=config.cache_bytes),
            AdmissionRules(network_id=config.network_id, limits=config.limits, unit_us=config.partition.unit_us),
            config,
            self.clock,
            feed,
        )

    async def handle(self, request: Request, *, asker: PeerId = ASKER) -> Reply:
        """The answer to a request, with the errors that the handler raises."""
        answer = self.server.handle(asker, request)
        return answer if isinstance(answer, Reply) else await answer

    def meet(self, count: int) -> list[PeerId]:
        """Put servers into the routing table, which has to be wide enough for them."""
        peers = [PeerId(b"\x00\x02" + number.to_bytes(2, "big")) for number in range(count)]
        for number, peer in enumerate(peers):
            address = bytes((4, 11 + number, 0, 0, 1, 6, 0x0F, 0xA1))
            self.network.learn_addresses(peer, [address], source="kad")
            self.neighbourhood.answered(peer, Reply(replicates=True))
        return [peer for peer in peers if self.neighbourhood.table.get(peer) is not None]

    def _answer(self, peer: PeerId, request: Request) -> Reply | Awaitable[Reply]:
        return self.server.handle(peer, request)
