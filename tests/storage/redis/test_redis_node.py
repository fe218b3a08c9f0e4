"""A node that keeps its entries in Redis."""

from __future__ import annotations

from pathlib import Path

from prime_dht.config import NodeConfig
from prime_dht.node.open import open_node
from prime_dht.testing.redis_server import RedisServer


async def test_a_node_finds_its_entries_in_redis_when_it_is_back(redis_server: RedisServer, tmp_path: Path) -> None:
    config = NodeConfig(listen=("/ip4/127.0.0.1/tcp/0",), data_dir=tmp_path / "data", redis_url=redis_server.url)
    async with open_node(config) as node:
        peer_id = node.peer_id
        assert (await node.put("k", b"value")).acknowledged
    async with open_node(config) as node:
        assert node.peer_id == peer_id
        found = await node.get("k")
        assert found is not None
        assert found.value == b"value"
    assert not (tmp_path / "data" / "store.sqlite").exists()
