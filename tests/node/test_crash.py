"""What a node acknowledged survives SIGKILL, whenever and however often it comes, and the node serves again.

A node of its own, ``prime-dht run``, is put to by several tasks of a client here and killed when a seeded number of
puts were acknowledged; the puts that were under way fall where they may. It begins warm, forked from a process that has
imported libp2p, because that takes longer than the rest of its start; the last of all begins from nothing. Sixty kills
of a store alone: ``tests/storage/test_sudden_death.py``.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from random import Random
from statistics import median

import trio

from prime_dht import NodeConfig, PrimeDHT, QueryError, open_node
from prime_dht.config import DhtConfig, Mode
from prime_dht.ids import Key
from prime_dht.node.open import STORE_FILE
from prime_dht.storage.offline import check
from prime_dht.testing.processes import LOOPBACK, PRIME_DHT, Running, prime_dht, running, running_node

KILLS = 50
WRITERS = 8
MOST_ACKNOWLEDGED_BEFORE_A_KILL = 100
LARGEST_BYTES = 20_000


@asynccontextmanager
async def client_of(address: str) -> AsyncIterator[PrimeDHT]:
    """Somebody who only asks, through the node at ``address``."""
    config = DhtConfig(mode=Mode.CLIENT, cache_ttl_s=0.0)
    async with open_node(NodeConfig(listen=(), dht=config)) as client:
        await client.add_peer(address)
        yield client


async def put_until_killed(node: Running, client: PrimeDHT, life: int, rng: Random) -> dict[Key, bytes]:
    """Put through several tasks at once, kill the node in the middle of it, and return what it acknowledged."""
    acknowledged: dict[Key, bytes] = {}
    kill_at = rng.randrange(1, MOST_ACKNOWLEDGED_BEFORE_A_KILL)

    async def put_on_and_on(writer: int) -> None:
        for number in count():
            value = rng.randbytes(rng.randrange(LARGEST_BYTES))
            try:
                receipt = await client.put(f"{life}/{writer}/{number}", value)
            except QueryError:
                assert len(acknowledged) >= kill_at, "only the dead do not answer"
                return
            assert receipt.acknowledged
            acknowledged[receipt.key] = value
            if len(acknowledged) == kill_at:
                node.process.kill()

    async with trio.open_nursery() as nursery:
        for writer in range(WRITERS):
            nursery.start_soon(put_on_and_on, writer)
    return acknowledged


async def found(client: PrimeDHT, keys: dict[Key, bytes]) -> dict[Key, bytes]:
    """What there is under some keys."""
    return {key: value.value for key, value in (await client.get_many(keys)).items() if value is not None}


async def test_every_acknowledged_put_outlives_sigkill_of_the_node(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    data_dir = tmp_path / "data"
    rng = Random(8)
    acknowledged: dict[Key, bytes] = {}
    latest: dict[Key, bytes] = {}
    serving_s: list[float] = []
    for life in range(KILLS):
        began_s = time.perf_counter()
        with running_node("--data-dir", str(data_dir)) as (node, address):
            async with client_of(address) as client:
                serving_s.append(time.perf_counter() - began_s)
                assert await found(client, latest) == latest
                latest = await put_until_killed(node, client, life, rng)
                acknowledged |= latest
        # Of a copy, because a check plays back the journal, and that is for the node to do.
        shutil.copytree(data_dir, copy := tmp_path / str(life))
        assert (await check(copy / STORE_FILE)).problems == ()
    began_s = time.perf_counter()
    with running(*PRIME_DHT, "run", "--listen", LOOPBACK, "--data-dir", str(data_dir)) as node:
        async with client_of(node.line()) as client:
            from_nothing_s = time.perf_counter() - began_s
            assert await found(client, acknowledged) == acknowledged
    verdict = prime_dht("store", "check", "--data-dir", str(data_dir), "--json")
    assert verdict.status == 0
    assert json.loads(verdict.out)["entries"] >= len(acknowledged)
    record_property("serving_again_s_median", median(serving_s))
    record_property("serving_again_s_most", max(serving_s))
    record_property("serving_again_s_from_nothing", from_nothing_s)
    print(f"{KILLS} kills, {len(acknowledged)} puts acknowledged; Kademlia served again in {median(serving_s):.2f} s")
    print(f"(median), {max(serving_s):.2f} s (most), and in {from_nothing_s:.2f} s where libp2p had to be imported")
