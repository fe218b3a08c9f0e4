"""``hivemind``, what people in machine learning know: a process for each node, as its users run it, and all in one.

Gets ask for the latest value, which its cache of reads does not answer.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Sequence
from typing import Any

warnings.simplefilter("ignore", FutureWarning)  # torch's, about hivemind

from hivemind import DHT  # noqa: E402
from hivemind.dht import DHTID, DHTNode  # noqa: E402
from hivemind.utils import get_dht_time  # noqa: E402

from .load import NODES, measure, print_result, scale_of_arguments  # noqa: E402

LISTEN = ["/ip4/127.0.0.1/tcp/0"]
TTL_S = 3600.0


class Processes:
    """Its public API: each node in a process of its own, asked over a pipe."""

    name = "hivemind, process per node"

    def __init__(self, nodes: Sequence[DHT]) -> None:
        self._nodes = nodes

    async def put(self, node: int, key: str, value: bytes) -> None:
        if not await self._nodes[node].store(key, value, get_dht_time() + TTL_S, return_future=True):
            raise RuntimeError(f"{key} was not stored")

    async def get(self, node: int, key: str) -> bytes | None:
        return _value(await self._nodes[node].get(key, latest=True, return_future=True))

    def holds(self, node: int, key: str) -> bool:
        return False  # what another process has stored it does not tell


class OneProcess:
    """The class beneath, in this process."""

    name = "hivemind, one process"

    def __init__(self, nodes: Sequence[DHTNode]) -> None:
        self._nodes = nodes

    async def put(self, node: int, key: str, value: bytes) -> None:
        if not await self._nodes[node].store(key, value, get_dht_time() + TTL_S):
            raise RuntimeError(f"{key} was not stored")

    async def get(self, node: int, key: str) -> bytes | None:
        return _value(await self._nodes[node].get(key, latest=True))

    def holds(self, node: int, key: str) -> bool:
        protocol = self._nodes[node].protocol
        return any(store.get(DHTID.generate(key)) is not None for store in (protocol.storage, protocol.cache))


def _value(found: Any) -> bytes | None:
    value: bytes | None = None if found is None else found.value
    return value


async def _measure_one_process(scale: Any) -> list[dict[str, str | int | float | None]]:
    first = await DHTNode.create(host_maddrs=LISTEN)
    peers = [str(address) for address in await first.get_visible_maddrs()]
    nodes = [first, *[await DHTNode.create(host_maddrs=LISTEN, initial_peers=peers) for _ in range(NODES - 1)]]
    try:
        return await measure(OneProcess(nodes), scale)
    finally:
        for node in nodes:
            await node.shutdown()


def main() -> None:
    """Start the swarms, one after the other, and measure them."""
    scale = scale_of_arguments()
    first = DHT(start=True, host_maddrs=LISTEN)
    peers = [str(address) for address in first.get_visible_maddrs()]
    nodes = [first, *[DHT(start=True, host_maddrs=LISTEN, initial_peers=peers) for _ in range(NODES - 1)]]
    rows = asyncio.run(measure(Processes(nodes), scale))
    for node in nodes:
        node.shutdown()
    rows += asyncio.run(_measure_one_process(scale))
    print_result(rows, package="hivemind")


if __name__ == "__main__":
    main()
