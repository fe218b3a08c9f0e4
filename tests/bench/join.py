"""What it costs a swarm to come together in one process, and what an idle node costs in memory.

All nodes start at one moment and join through the first. They have *joined* when each knows the servers it has to know:
the ``k`` nearest to it, or all there are. Then as many values as there are nodes are put, and got by others. Then they
are left alone until they are *idle*: the streams that nobody uses have ended, and no node has more connections than its
low-water mark. How long a connection may be idle is shorter here than by default; how long a stream may is not.

Each size runs in a process of its own: memory that was used and freed before would hide growth. There the garbage
collector leaves alone what it has seen once, as a long-lived program with as many nodes should have it: of 200 nodes a
full collection looks at millions of objects for more than a second, finds nothing, and is begun again and again while
they grow. Connections of which both ends are in the process cost what both ends cost. Every step has a time limit, so
that a busy machine makes the numbers worse, and not the run endless; the process ends without closing its nodes.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from random import Random
from typing import NoReturn

import trio
from libp2p.abc import IHost

from prime_dht import DhtConfig, PrimeDHT
from prime_dht.errors import QueryError
from prime_dht.ids import PeerId, kad_key
from prime_dht.net.host import HostSettings, open_host
from prime_dht.net.rpc_server import ServerLimits
from prime_dht.node.maintenance import SETTLE_AFTER_S

from .swarm import LOOPBACK, key_pairs, resident_bytes
from .tables import Row, Table

JOIN_TIMEOUT_S = 180.0
"""A swarm that has not joined by then is measured as it is."""

OPERATIONS_TIMEOUT_S = 60.0
"""What has not been found by then was not found."""

IDLE_CONNECTION_S = 10.0
IDLE_S = ServerLimits().idle_timeout_s + 4 * IDLE_CONNECTION_S
"""For streams to end, then connections."""

POLL_S = 0.25
ENOUGH = 0.99
"""Of all pairs of which one has to know the other, those that do when a swarm has joined. In a process that is busy
with thousands of handshakes a few are too slow to answer, and are asked again a minute later."""


async def measure_join(*, quick: bool) -> list[Table]:
    """The table of this suite."""
    idle_s = 0.0 if quick else IDLE_S
    rows = [await trio.to_thread.run_sync(_in_own_process, size, idle_s) for size in ((4,) if quick else (16, 200))]
    title = (
        "Joining at once through one bootstrap peer; a put by one and a get by another for each node; resident memory "
        f"when joined, and {IDLE_S:g} s later (where connections idle for {IDLE_CONNECTION_S:g} s are closed)"
    )
    return [Table(name="join", title=title, rows=rows)]


def _in_own_process(size: int, idle_s: float) -> Row:
    command = [sys.executable, "-m", "tests.bench.join", str(size), str(idle_s)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5 * JOIN_TIMEOUT_S)
    row: dict[str, int | float] = json.loads(done.stdout)
    return row


async def _measure(size: int, idle_s: float) -> NoReturn:
    keys, config = key_pairs(), DhtConfig()
    hosts: list[IHost] = []
    nodes: list[PrimeDHT] = []
    async with AsyncExitStack() as stack:
        began_s, cpu_began_s, first_bytes = time.perf_counter(), time.process_time(), 0
        for number in range(size):
            settings = HostSettings(key_pair=next(keys), listen=(LOOPBACK,), idle_connection_s=IDLE_CONNECTION_S)
            host = await stack.enter_async_context(open_host(settings))
            peers = nodes[0].addresses() if nodes else []
            nodes.append(
                await stack.enter_async_context(PrimeDHT(host, config, bootstrap_peers=peers, rng=Random(number)))
            )
            hosts.append(host)
            first_bytes = first_bytes or resident_bytes()
        nearest = _nearest(nodes, config.k_bucket_size)
        with trio.move_on_after(JOIN_TIMEOUT_S):
            while _known(nearest) < ENOUGH:  # noqa: ASYNC110 (joining has no end to wait for)
                await trio.sleep(POLL_S)
        known = _known(nearest)
        join_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_began_s
        connections = _connections(hosts)
        requests = sum([(await node.stats()).requests_sent for node in nodes])
        joined_bytes = resident_bytes() - first_bytes
        # What nodes do once after joining is not to be counted with the operations.
        await trio.sleep(1.5 * SETTLE_AFTER_S)
        found = await _found(nodes, Random("join"))
        await trio.sleep(idle_s)
        row: Row = {
            "nodes": size,
            "join_s": join_s,
            "known_of_nearest": known,
            "cpu_s": cpu_s,
            "cpu_ms_per_connection": 1e3 * cpu_s / connections,
            "connections_per_node": 2 * connections / size,
            "requests_per_node": requests / size,
            "MB_per_further_node": joined_bytes / (size - 1) / 1e6,
            "found_of_put": found,
            "idle_connections_per_node": 2 * _connections(hosts) / size,
            "idle_MB_per_further_node": (resident_bytes() - first_bytes) / (size - 1) / 1e6,
        }
        print(json.dumps(row), flush=True)
        os._exit(0)  # closing hundreds of nodes takes long, and is nothing that is measured here


def _connections(hosts: list[IHost]) -> float:
    """How many there are, each of them having two ends."""
    return sum(len(host.get_network().get_connections()) for host in hosts) / 2


def _nearest(nodes: list[PrimeDHT], k: int) -> list[tuple[PrimeDHT, list[PeerId]]]:
    """Each node, and the ``k`` others nearest to it."""
    places = {node.peer_id: kad_key(node.peer_id) for node in nodes}
    nearest: list[tuple[PrimeDHT, list[PeerId]]] = []
    for node in nodes:
        distances = {peer: place ^ places[node.peer_id] for peer, place in places.items()}
        nearest.append((node, sorted(distances, key=distances.__getitem__)[1 : k + 1]))
    return nearest


def _known(nearest: list[tuple[PrimeDHT, list[PeerId]]]) -> float:
    """Of the nodes nearest to each, the share that it knows. Asked often, so it must cost little: not ``peers()``."""
    known = [node._neighbourhood.table.get(peer) is not None for node, peers in nearest for peer in peers]
    return sum(known) / len(known)


async def _found(nodes: list[PrimeDHT], rng: Random) -> float:
    """Of as many values as there are nodes, each put and got by random ones, the share that was found."""
    found = 0
    with trio.move_on_after(OPERATIONS_TIMEOUT_S):
        for number in range(len(nodes)):
            try:
                await rng.choice(nodes).put(f"key {number}", b"value %d" % number)
                answer = await rng.choice(nodes).get(f"key {number}")
            except QueryError:
                continue
            found += answer is not None and answer.value == b"value %d" % number
    return found / len(nodes)


if __name__ == "__main__":
    gc.freeze()
    gc.set_threshold(gc.get_threshold()[0], gc.get_threshold()[1], 10_000)
    trio.run(_measure, int(sys.argv[1]), float(sys.argv[2]))
