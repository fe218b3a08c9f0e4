"""Swarms of whole nodes on a :class:`~prime_dht.testing.memory_network.World`, started and stopped at will.

>>> async def main() -> None:
...     async with open_swarm(seed=1, size=5) as swarm:
...         await swarm.nodes[0].put("k", b"value")
...         found = await swarm.nodes[4].get("k")
...         print(found.value if found else None)
>>> trio.run(main, clock=MockClock(autojump_threshold=0))
b'value'

All that chance decides comes from the seed, and all clocks are trio's, so under a ``MockClock`` one seed is one history
(as far as trio's scheduler is deterministic). A node's *disc* is its memory backend, which outlives it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from trio.testing import MockClock as MockClock

from prime_dht.background import background_nursery
from prime_dht.config import DhtConfig, Mode
from prime_dht.entries.validators import Validator
from prime_dht.ids import US_PER_S, PeerId, TimestampUs, kad_key, peer_text, wire_key
from prime_dht.net.addresses import address_text
from prime_dht.net.identity import peer_id_of
from prime_dht.node.core import Node
from prime_dht.node.maintenance import SETTLE_AFTER_S
from prime_dht.storage.base import StorageBackend
from prime_dht.storage.blocks import BlockStore
from prime_dht.storage.memory import MemoryBackend
from prime_dht.testing.memory_network import MemoryNetwork, World

if TYPE_CHECKING:
    from trio_typing import TaskStatus

EPOCH_US = 1_800_000_000_000_000
"""When a swarm's time begins: a tick of the partition, in January 2027."""

BLOCKS_BYTES = 64 << 20
"""Of blocks on a machine."""


class VirtualClock:
    """A :class:`prime_dht.node.clock.Clock` whose calendar runs with trio's clock.

    Attributes:
        set_by_us: by how much its owner has set it forwards, or back.
    """

    def __init__(self) -> None:
        self.set_by_us = 0

    def now_us(self) -> TimestampUs:
        return TimestampUs(EPOCH_US + int(trio.current_time() * US_PER_S) + self.set_by_us)

    def monotonic_s(self) -> float:
        return trio.current_time()


@dataclass(slots=True, kw_only=True)
class Machine:
    """What outlives a node: its identity, its disc, its clock; and the node that runs on it, if one does."""

    key_pair: KeyPair
    peer: PeerId
    disc: StorageBackend = field(default_factory=MemoryBackend)
    blocks: BlockStore = field(default_factory=lambda: BlockStore.in_memory(max_bytes=BLOCKS_BYTES))
    clock: VirtualClock = field(default_factory=VirtualClock)
    listens: bool = True
    network: MemoryNetwork | None = None
    scope: trio.CancelScope | None = None
    stopped: trio.Event = field(default_factory=trio.Event)


class Swarm:
    """Nodes in one world. Made by :func:`open_swarm`.

    Attributes:
        world: what lies between them.
        nodes: those that run, in the order in which they were started.
    """

    def __init__(self, nursery: trio.Nursery, *, seed: int, round_trip_s: float, config: DhtConfig) -> None:
        self.world = World(seed=seed, round_trip_s=round_trip_s)
        self.nodes: list[Node] = []
        self._nursery = nursery
        self._config = config
        self._rng = Random(seed)  # noqa: S311 - a simulation, nothing secret
        self._machines: dict[PeerId, Machine] = {}

    def machine(self, *, disc: StorageBackend | None = None, listens: bool = True) -> Machine:
        """A new machine on which a node can be started."""
        key_pair = create_new_key_pair(self._rng.randbytes(32))
        machine = Machine(key_pair=key_pair, peer=peer_id_of(key_pair), disc=disc or MemoryBackend(), listens=listens)
        self._machines[machine.peer] = machine
        return machine

    def machine_of(self, node: Node) -> Machine:
        """The machine that a node runs, or ran, on."""
        return self._machines[node.peer_id]

    def network_of(self, node: Node) -> MemoryNetwork:
        """A node's network, for a look at what it sent."""
        network = self._machines[node.peer_id].network
        assert network is not None
        return network

    async def start(
        self,
        machine: Machine | None = None,
        *,
        via: Sequence[Node | PeerId] = (),
        config: DhtConfig | None = None,
        validators: Mapping[str, Validator] | None = None,
    ) -> Node:
        """Start a node, on a new machine unless one is given; it has yet to join.

        Args:
            via: its bootstrap peers.
        """
        machine = machine or self.machine()
        node = await self._nursery.start(self._run, machine, via, config or self._config, validators)
        self.nodes.append(node)
        return node

    async def join(self, *, via: Node | None = None, config: DhtConfig | None = None) -> Node:
        """Start a node on a new machine and wait until it has joined through another, by default the first."""
        node = await self.start(via=[via or self.nodes[0]], config=config)
        await node.bootstrap()
        return node

    async def join_client(self, *, via: Node | None = None) -> Node:
        """As :meth:`join`, for a client that nobody can dial."""
        config = replace(self._config, mode=Mode.CLIENT)
        node = await self.start(self.machine(listens=False), via=[via or self.nodes[0]], config=config)
        await node.bootstrap()
        return node

    async def stop(self, node: Node) -> Machine:
        """Stop a node; nobody else is told. Returns its machine, on which it can be started again."""
        machine = self._machines[node.peer_id]
        assert machine.scope is not None
        machine.scope.cancel()
        await machine.stopped.wait()
        return machine

    def address_of(self, node: Node | PeerId) -> str:
        """A node's full multiaddr, whether it runs or not."""
        peer = node.peer_id if isinstance(node, Node) else node
        return f"{address_text(self.world.address_of(peer))}/p2p/{peer_text(peer)}"

    def closest_to(self, key: bytes | str, count: int) -> list[Node]:
        """The running servers closest to a key, as somebody who sees all of the swarm knows them."""
        target = kad_key(wire_key(key))
        servers = [node for node in self.nodes if node.config.mode is not Mode.CLIENT]
        return sorted(servers, key=lambda node: kad_key(node.peer_id) ^ target)[:count]

    async def _run(
        self,
        machine: Machine,
        via: Sequence[Node | PeerId],
        config: DhtConfig,
        validators: Mapping[str, Validator] | None,
        *,
        task_status: TaskStatus[Node] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        node = Node(
            lambda handler: self.world.network(machine.peer, handler, listens=machine.listens),
            machine.key_pair.private_key,
            config,
            storage=machine.disc,
            blocks=machine.blocks,
            bootstrap_peers=[self.address_of(peer) for peer in via],
            validators=validators,
            clock=machine.clock,
            rng=Random(self._rng.random()),  # noqa: S311 - a simulation, nothing secret
        )
        machine.stopped = trio.Event()
        network = node._network
        assert isinstance(network, MemoryNetwork)
        machine.network = network
        try:
            with trio.CancelScope() as machine.scope:
                async with node:
                    task_status.started(node)
                    await trio.sleep_forever()
        finally:
            if node in self.nodes:
                self.nodes.remove(node)
            machine.stopped.set()


@asynccontextmanager
async def open_swarm(
    *, seed: int, size: int = 0, round_trip_s: float = 0.05, config: DhtConfig | None = None
) -> AsyncIterator[Swarm]:
    """A swarm of ``size`` nodes that joined one after the other, each through the first, and met; more can join."""
    async with background_nursery() as nursery:
        swarm = Swarm(nursery, seed=seed, round_trip_s=round_trip_s, config=config or DhtConfig())
        if size:
            await swarm.start()
        for _ in range(size - 1):
            await swarm.join()
        await trio.sleep(2 * SETTLE_AFTER_S)
        yield swarm
