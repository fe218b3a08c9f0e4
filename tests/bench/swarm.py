"""Swarms of nodes in one process, on loopback, with identities that are the same in every run."""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair

from prime_dht import DhtConfig, PrimeDHT
from prime_dht.ids import kad_key, wire_key
from prime_dht.net.host import HostSettings, open_host
from prime_dht.node.maintenance import SETTLE_AFTER_S
from prime_dht.storage.base import StorageBackend
from prime_dht.storage.sqlite import SQLiteBackend

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
JOIN_TIMEOUT_S = 60.0


class Swarm:
    """Nodes that all know each other.

    Attributes:
        nodes: in the order in which they joined.
        join_s: from the first node's start until everyone knew everyone.
        node_bytes: resident memory that each node after the first added, its connections included.
    """

    def __init__(self, nodes: list[PrimeDHT], config: DhtConfig, *, join_s: float, node_bytes: float) -> None:
        self.nodes = nodes
        self.join_s = join_s
        self.node_bytes = node_bytes
        self._replication = config.replication_factor
        self._places = [kad_key(node.peer_id) for node in nodes]

    def outsider(self, key: str, rng: Random) -> PrimeDHT:
        """A random node that is no replica of ``key``."""
        target = kad_key(wire_key(key))
        nearest = sorted(range(len(self.nodes)), key=lambda index: self._places[index] ^ target)
        return self.nodes[rng.choice(nearest[self._replication :])]

    async def requests_sent(self) -> int:
        """Requests that all nodes together have sent."""
        return sum([(await node.stats()).requests_sent for node in self.nodes])


@asynccontextmanager
async def open_swarm(size: int, config: DhtConfig, *, directory: Path | None = None) -> AsyncIterator[Swarm]:
    """Start ``size`` nodes, of which the first is the bootstrap peer of the others, and wait until all know all.

    ``size`` is at most k, or no node would ever know all. They keep their entries in memory or, each in a file of its
    own, in ``directory``.
    """
    keys = key_pairs()

    async def open_node(name: int, peers: list[str]) -> PrimeDHT:
        storage = None if directory is None else await SQLiteBackend.open(directory / f"{name}.sqlite")
        if storage is not None:
            await stack.enter_async_context(storage)
        return await _open_node(stack, next(keys), config, peers=peers, storage=storage)

    async with AsyncExitStack() as stack:
        began_s = time.perf_counter()
        first = await open_node(0, [])
        first_bytes = resident_bytes()
        rest = [await open_node(name, first.addresses()) for name in range(1, size)]
        nodes = [first, *rest]
        with trio.fail_after(JOIN_TIMEOUT_S):
            await _meet(nodes)
        join_s = time.perf_counter() - began_s
        node_bytes = (resident_bytes() - first_bytes) / (size - 1)
        # What nodes do once after joining is not to be counted with the operations.
        await trio.sleep(1.5 * SETTLE_AFTER_S)
        with trio.fail_after(JOIN_TIMEOUT_S):
            await _settle(nodes)
        # As ``prime-dht run`` does once it is up: the garbage collector passes over what is there by now.
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        yield Swarm(nodes, config, join_s=join_s, node_bytes=node_bytes)


def key_pairs() -> Iterator[KeyPair]:
    """Identities, always the same ones."""
    rng = Random("bench identities")
    while True:
        yield create_new_key_pair(rng.randbytes(32))


def resident_bytes() -> int:
    """Memory that this process has in RAM; where the system does not tell, the most it ever had."""
    gc.collect()
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


async def _meet(nodes: list[PrimeDHT]) -> None:
    """Wait until all know all. Nodes that joined in the same moment may have missed each other, and look again."""
    while missing := [node for node in nodes if len(node.peers()) < len(nodes) - 1]:
        async with trio.open_nursery() as nursery:
            for node in missing:
                nursery.start_soon(node.bootstrap)
        await trio.sleep(0.02)  # for the probes that they cause


async def _settle(nodes: list[PrimeDHT]) -> None:
    """Wait until each has synced with enough others to hold its arc."""
    for node in nodes:
        while not await _holds_its_arc(node):  # noqa: ASYNC110 (it tells when asked)
            await trio.sleep(0.02)


async def _holds_its_arc(node: PrimeDHT) -> bool:
    holding = (await node.health()).holding
    return holding is not None and holding.is_settled


async def _open_node(
    stack: AsyncExitStack, key_pair: KeyPair, config: DhtConfig, *, peers: list[str], storage: StorageBackend | None
) -> PrimeDHT:
    host = await stack.enter_async_context(open_host(HostSettings(key_pair=key_pair, listen=(LOOPBACK,))))
    dht = PrimeDHT(host, config, storage=storage, bootstrap_peers=peers, rng=Random(1))
    return await stack.enter_async_context(dht)
