"""The ``prime-dht`` command.

What every subcommand keeps to:

- **Standard output is data**: addresses, values, ids, one thing a line or raw bytes. Everything for people (logs,
  warnings, errors) goes to standard error, one line each. There are no tracebacks.
- **Exit status**: see :class:`prime_dht.cli.ending.Status`.
- **Light until it works**: ``--help`` and mistakes in arguments are answered without importing libp2p. So commands
  import trio, the node, and those modules here that need either, inside the functions that do the work.
- **Settings** come from a file, the environment and options: :mod:`prime_dht.settings`. Commands get them from the
  decorators in :mod:`prime_dht.cli.options`.

A subcommand is a module in :mod:`prime_dht.cli.commands`; putting a file there is all it takes to add one.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``prime-dht``; ``arguments`` are those of the process by default. Returns the exit status."""
    try:
        from prime_dht.cli import app  # here, so that Ctrl-C while it is imported is no traceback
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return app.main(arguments)
