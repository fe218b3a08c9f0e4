"""Commands that a test runs in its own process set up logging for the whole of it; here that is undone."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    names = ("prime_dht", "libp2p", "coredis")
    levels = {name: logging.getLogger(name).level for name in names}
    level, handlers = root.level, root.handlers[:]
    yield
    for name in names:
        logging.getLogger(name).setLevel(levels[name])
    root.setLevel(level)
    root.handlers[:] = handlers
    logging.captureWarnings(capture=False)
