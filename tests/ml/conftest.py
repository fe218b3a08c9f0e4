"""A swarm in a process of its own, and a client of it, for the tests of models and checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from prime_dht import LearningDHT, connect
from prime_dht.testing.processes import PRIME_DHT, running


@pytest.fixture(scope="session")
def swarm() -> Iterator[tuple[str, ...]]:
    """The addresses of three nodes, for all tests: each uses models of its own."""
    with running(*PRIME_DHT, "swarm", "3", "--json") as nodes:
        yield tuple(json.loads(nodes.line())["addresses"][0] for _ in range(3))


@pytest.fixture(scope="module")
def dht(swarm: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LearningDHT]:
    """A client that no test closes."""
    with connect(swarm[0], data_dir=tmp_path_factory.mktemp("client")) as dht:
        yield dht


@pytest.fixture
def reader(swarm: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LearningDHT]:
    """Another, which has pulled nothing yet, and has no data directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with connect(swarm[1]) as reader:
        yield reader
