"""How many open files a command may have; each connection is one."""

from __future__ import annotations

import resource
from contextlib import suppress

from prime_dht.errors import ConfigError

FOR_A_NODE = 64
"""A node with its store, its listeners and connections with some others. Most of it is what SQLite and threads need."""

ENOUGH = 10_240
"""What macOS gives a process where it says that there is no limit; to ask for more is an error there."""


def allow_open_files(needed: int, *, what: str) -> None:
    """Let this process have as many as the system gives it: what shells let one have is 256 or 1,024, fewer than the
    connections that a node takes. Before anything begins: whatever runs out of files half-way fails in its own words.

    Raises:
        ConfigError: they are too few.
    """
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    more = max(allowed, ENOUGH) if most == resource.RLIM_INFINITY != allowed else most
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (more, most))
        allowed = more
    if resource.RLIM_INFINITY != allowed < needed:
        raise ConfigError(f"{what} needs {needed:,} open files, and may have {allowed:,}: raise the limit, `ulimit -n`")
