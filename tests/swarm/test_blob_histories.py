"""Random histories of blobs in a swarm, after each of which the books of every node are right. In virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import pairwise
from random import Random

import pytest
import trio
from trio.testing import MockClock

from prime_dht.blobs.cid import Cid
from prime_dht.config import DhtConfig
from prime_dht.errors import PrimeDHTError
from prime_dht.ids import OpId, PeerId
from prime_dht.node.blobs.claims import FRESH_S, PIN, all_roots
from prime_dht.node.blobs.keeping import SWEEP_EVERY_S
from prime_dht.node.blobs.progress import BlobProgress
from prime_dht.node.core import Node
from prime_dht.storage.base import OP_ID_BYTES
from prime_dht.testing.swarm import Machine, Swarm, open_swarm

MIB = 1 << 20
SHARED = Random(1).randbytes(MIB)
VALUES = [Random(2).randbytes(100_000), SHARED + b"one", SHARED + b"other", 2 * SHARED + Random(3).randbytes(300_000)]
KEYS = ["k", "l", "m"]
STEPS = 25
LIFE_S = 3000.0
SETTLED_S = 2 * FRESH_S + 2 * SWEEP_EVERY_S
KINDS = [*3 * ["put"], *2 * ["add", "pin", "stop"], "fetch", "unpin", "partition", "heal", "lose", "sleep"]


async def slowly(value: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(value), 50_000):
        await trio.sleep(0.01)
        yield value[start : start + 50_000]


class History:
    """What was done in a swarm, and what has to be true of it."""

    def __init__(self, swarm: Swarm, rng: Random) -> None:
        self.swarm = swarm
        self.machines: list[Machine] = [swarm.machine_of(node) for node in swarm.nodes]
        self.roots: list[Cid] = []
        self.acknowledged: dict[tuple[str, PeerId], bytes] = {}
        self._rng = rng
        self._under_way: dict[PeerId, set[trio.CancelScope]] = {machine.peer: set() for machine in self.machines}

    def node_of(self, machine: Machine) -> Node | None:
        return next((node for node in self.swarm.nodes if node.peer_id == machine.peer), None)

    async def go_on(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(STEPS):
                kind, machine = self._rng.choice(KINDS), self._rng.choice(self.machines)
                match kind:
                    case "stop":
                        await self._stop_or_start(machine)
                    case "partition":
                        apart = self._rng.sample(self.machines, 2)
                        self.swarm.world.partition([], [each.peer for each in apart])
                    case "heal":
                        self._heal()
                    case "lose":
                        self.swarm.world.lose(0.1)
                    case "sleep":
                        await trio.sleep(100)
                    case _:
                        if (node := self.node_of(machine)) is not None:
                            nursery.start_soon(self._operate, kind, node)
                await trio.sleep(self._rng.choice([0, 0.1, 1, 10, 60]))
            self._heal()
            for machine in self.machines:
                if self.node_of(machine) is None:
                    await self._stop_or_start(machine)

    def _heal(self) -> None:
        self.swarm.world.heal()
        self.swarm.world.lose(0)

    async def _stop_or_start(self, machine: Machine) -> None:
        if (node := self.node_of(machine)) is None:
            await self.swarm.start(machine, via=self.swarm.nodes or [self.machines[0].peer])
            return
        for scope in self._under_way[machine.peer]:
            scope.cancel()
        await self.swarm.stop(node)

    async def _operate(self, kind: str, node: Node) -> None:
        """Do something, perhaps not to its end."""
        told: list[BlobProgress] = []
        with trio.CancelScope() as scope, suppress(PrimeDHTError):
            scope.deadline = trio.current_time() + self._rng.choice([0.05, 0.3, 1, 5, 100, 100, 100])
            self._under_way[node.peer_id].add(scope)
            value = self._rng.choice(VALUES)
            if kind == "put":
                key = self._rng.choice(KEYS)
                self.acknowledged.pop((key, node.peer_id), None)
                receipt = await node.put(key, slowly(value), ttl=LIFE_S, progress=told.append)
                assert receipt.blob is not None
                self.roots.append(Cid.from_bytes(receipt.blob.cid))
                if receipt.acknowledged and not receipt.superseded:
                    self.acknowledged[key, node.peer_id] = value
            elif kind == "add":
                await node.blobs.add(slowly(value), ttl=LIFE_S, pin=self._rng.random() < 0.5, progress=told.append)
            elif self.roots:
                root = self._rng.choice(self.roots)
                if kind == "fetch":
                    assert await node.blobs.fetch(root, progress=told.append) in VALUES
                    assert told[-1].done_bytes == told[-1].size_bytes
                else:
                    await (node.blobs.pin(root) if kind == "pin" else node.blobs.unpin(root))
        self._under_way[node.peer_id].discard(scope)
        for before, after in pairwise(told):
            assert before.stage is not after.stage or before.done_bytes <= after.done_bytes

    async def check_reads(self) -> None:
        for (key, publisher), value in self.acknowledged.items():
            for node in self.swarm.nodes:
                found = await node.get(key, publisher=publisher, latest=True)
                assert found is not None
                assert found.value == value

    async def check_books(self, machine: Machine, *, is_all_over: bool) -> None:
        node, blocks = self.node_of(machine), machine.blocks
        assert node is not None
        claims = node.blobs._keeping._claims
        stored = [claim for status in await all_roots(blocks) for claim in await blocks.claims(status.root)]
        for_entries = {OpId(claim.label) for claim in stored if claim.owner and len(claim.label) == OP_ID_BYTES}
        assert for_entries == claims.kept.keys()
        assert claims._putting == Counter()
        charged = {(blob.publisher, blob.root): 0 for blob in claims.kept.values()}
        for blob in claims.kept.values():
            charged[blob.publisher, blob.root] = max(charged[blob.publisher, blob.root], blob.size)
        by_publisher: Counter[PeerId] = Counter()
        for (publisher, _), size_bytes in charged.items():
            by_publisher[publisher] += size_bytes
        assert by_publisher == claims._accounts._bytes
        assert (await node.blobs.gc()).blocks == 0, "a node removes garbage by itself"
        if is_all_over:
            assert all(claim.label == PIN for claim in stored)
            needed = {digest for (digest,) in blocks._index._connection.execute("SELECT digest FROM uses")}
            assert (await blocks.stats()).blocks == len(needed)


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_happens_what_was_acknowledged_is_read_and_nothing_is_left_over(
    seed: int, autojump_clock: MockClock
) -> None:
    async with open_swarm(seed=seed, size=4, config=DhtConfig(refresh_interval=300.0, blob_wait_s=20.0)) as swarm:
        history = History(swarm, Random(seed))
        await history.go_on()
        await trio.sleep(600)
        await history.check_reads()
        await trio.sleep(SETTLED_S)
        for machine in history.machines:
            await history.check_books(machine, is_all_over=False)
        await trio.sleep(LIFE_S + SETTLED_S)
        for machine in history.machines:
            await history.check_books(machine, is_all_over=True)
