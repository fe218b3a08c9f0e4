"""A swarm of three nodes in a process of its own, and file systems on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from prime_dht import BlockingDHT
from prime_dht.blocking import connect
from prime_dht.filesystem import PrimeFileSystem
from prime_dht.testing.processes import PRIME_DHT, running


@pytest.fixture(scope="session")
def swarm() -> Iterator[tuple[str, ...]]:
    """The addresses of its nodes; each test uses directories of its own."""
    with running(*PRIME_DHT, "swarm", "3", "--json") as nodes:
        yield tuple(json.loads(nodes.line())["addresses"][0] for _ in range(3))


@pytest.fixture(scope="session")
def dht(swarm: tuple[str, ...]) -> Iterator[BlockingDHT]:
    """A client that no test closes."""
    with connect(swarm[:1]) as dht:
        yield dht


@pytest.fixture(scope="session")
def other_dht(swarm: tuple[str, ...]) -> Iterator[BlockingDHT]:
    """Another peer's."""
    with connect(swarm[1:2]) as dht:
        yield dht


@pytest.fixture
def fs(dht: BlockingDHT) -> PrimeFileSystem:
    return PrimeFileSystem(client=dht)


@pytest.fixture
def others(other_dht: BlockingDHT) -> PrimeFileSystem:
    """The same files, as another peer sees and writes them."""
    return PrimeFileSystem(client=other_dht)


@pytest.fixture(scope="session")
def new_directory() -> Callable[[], str]:
    """A path that nothing was ever put at."""
    numbers = count()
    return lambda: f"test-{next(numbers)}"


@pytest.fixture
def top(new_directory: Callable[[], str]) -> str:
    """The path of a directory that a test has for itself; there is nothing yet."""
    return new_directory()
