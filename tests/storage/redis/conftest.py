"""Real Redis servers for tests, which are skipped where there is none, unless ``PRIME_DHT_REQUIRE_REDIS`` is 1."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from prime_dht.testing.redis_server import EXECUTABLE, RedisServer


@pytest.fixture(scope="session")
def _redis_is_installed() -> None:
    if shutil.which(EXECUTABLE) is None:
        reason = f"{EXECUTABLE} is not installed"
        if os.environ.get("PRIME_DHT_REQUIRE_REDIS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def redis_server(_redis_is_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that tests share; they keep to prefixes of their own and leave it as it is."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def start_redis(_redis_is_installed: None, tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Starts a server for this test alone, with settings of its own."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(RedisServer(tmp_path, **settings))


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A prefix for this test alone."""
    return str(request.node.nodeid)
