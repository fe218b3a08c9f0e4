"""A swarm in a process of its own, and a client of it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from prime_dht import BlockingDHT, connect
from prime_dht.testing.processes import PRIME_DHT, running


@pytest.fixture(scope="session")
def swarm() -> Iterator[tuple[str, ...]]:
    """The addresses of three nodes, for all tests: each uses keys of its own."""
    with running(*PRIME_DHT, "swarm", "3", "--json") as nodes:
        yield tuple(json.loads(nodes.line())["addresses"][0] for _ in range(3))


@pytest.fixture(scope="module")
def dht(swarm: tuple[str, ...]) -> Iterator[BlockingDHT]:
    """A client that no test closes."""
    with connect(swarm[:1]) as dht:
        yield dht
