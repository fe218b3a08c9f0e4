"""Whether the system lets a command have as many open files as it needs; each connection is one."""

from __future__ import annotations

import resource

from prime_dht.errors import ConfigError

FOR_A_NODE = 64
"""A node with its store, its listeners and connections with some others. Most of it is what SQLite and threads need."""


def check_open_files(needed: int, *, what: str) -> None:
    """Make sure of it before anything begins: whatever runs out of files half-way fails in its own words.

    Raises:
        ConfigError: it is too few.
    """
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != allowed < needed:
        raise ConfigError(f"{what} needs {needed:,} open files, and may have {allowed:,}: raise the limit, `ulimit -n`")
