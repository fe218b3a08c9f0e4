"""``opendht`` from PyPI: C++ with threads, UDP, no authentication of what is put here; 8 copies."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import opendht

from .load import NODES, VALUE_BYTES, measure, print_result, scale_of_arguments

UNLIMITED = 1_000_000
"""Its nodes limit what they answer per second; a limit is not what is to be measured."""


class OpenDHT:
    """Its nodes, each with a thread of its own."""

    name = "OpenDHT"

    def __init__(self, nodes: list[opendht.DhtRunner]) -> None:
        self._nodes = nodes

    async def put(self, node: int, key: str, value: bytes) -> None:
        done, resolve = _future_for_threads()
        self._nodes[node].put(opendht.InfoHash.get(key), opendht.Value(value), lambda ok, _nodes: resolve(ok))
        if not await done:
            raise RuntimeError(f"{key} was not stored")

    async def get(self, node: int, key: str) -> bytes | None:
        """The first value that arrives; it then stops the search."""
        done, resolve = _future_for_threads()

        def arrived(value: opendht.Value) -> bool:
            resolve(value.data)
            return False

        self._nodes[node].get(opendht.InfoHash.get(key), arrived, lambda _ok, _nodes: resolve(None))
        value = await done
        assert value is None or isinstance(value, bytes)
        return value

    def holds(self, node: int, key: str) -> bool:
        return False  # its Python binding does not tell


def _future_for_threads() -> tuple[asyncio.Future[object], Callable[[object], None]]:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[object] = loop.create_future()

    def settle(value: object) -> None:
        if not done.done():
            done.set_result(value)

    def settle_from_any_thread(value: object) -> None:
        loop.call_soon_threadsafe(settle, value)

    return done, settle_from_any_thread


async def main() -> None:
    """Start the swarm and measure it."""
    nodes: list[opendht.DhtRunner] = []
    for _ in range(NODES):
        config = opendht.DhtConfig()
        config.setRateLimit(UNLIMITED, UNLIMITED)
        node = opendht.DhtRunner()
        node.run(ipv4="127.0.0.1", port=0, config=config)
        if nodes:
            node.bootstrap("127.0.0.1", str(nodes[0].getBound().getPort()))
        nodes.append(node)
    swarm = OpenDHT(nodes)
    for node in range(NODES):  # each joins by itself; it has when a value of its own can be read elsewhere
        while True:
            await swarm.put(node, f"join:{node}", bytes(VALUE_BYTES))
            if await swarm.get((node + 1) % NODES, f"join:{node}") is not None:
                break
            await asyncio.sleep(0.1)
    print_result(await measure(swarm, scale_of_arguments()), package="opendht")
    os._exit(0)  # its threads can keep a process from ending otherwise, also after they were told to


if __name__ == "__main__":
    asyncio.run(main())
