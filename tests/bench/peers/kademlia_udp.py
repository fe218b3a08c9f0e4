"""``kademlia`` from PyPI: asyncio, UDP, no authentication. k = 5, so that there are nodes without a copy."""

from __future__ import annotations

import asyncio

from kademlia.network import Server
from kademlia.utils import digest

from .load import NODES, measure, print_result, scale_of_arguments

K = 5


class Kademlia:
    """Its servers in this process."""

    name = f"kademlia, k = {K}"

    def __init__(self, servers: list[Server]) -> None:
        self._servers = servers

    async def put(self, node: int, key: str, value: bytes) -> None:
        if not await self._servers[node].set(key, value):
            raise RuntimeError(f"{key} was not stored")

    async def get(self, node: int, key: str) -> bytes | None:
        value: bytes | None = await self._servers[node].get(key)
        return value

    def holds(self, node: int, key: str) -> bool:
        return self._servers[node].storage.get(digest(key)) is not None


async def main() -> None:
    """Start the swarm and measure it."""
    servers = [Server(ksize=K) for _ in range(NODES)]
    for server in servers:
        await server.listen(0, interface="127.0.0.1")
    first = servers[0].transport.get_extra_info("sockname")
    for server in servers[1:]:
        await server.bootstrap([first])
    print_result(await measure(Kademlia(servers), scale_of_arguments()), package="kademlia")
    for server in servers:
        server.stop()


if __name__ == "__main__":
    asyncio.run(main())
