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

import os
import signal
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``prime-dht``; ``arguments`` are those of the process by default. Returns the exit status."""
    _reserve_standard_streams()
    if os.getpid() == 1:  # as in a container; there Linux drops whatever signal has no handler, also while this imports
        signal.signal(signal.SIGTERM, lambda signum, _frame: os._exit(128 + signum))
    try:
        from prime_dht.cli import app  # here, so that Ctrl-C while it is imported is no traceback
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return app.main(arguments)


def _reserve_standard_streams() -> None:
    """Where a parent has closed a standard stream, put one that cannot be used.

    Else the next file or socket that is opened would have its number, and get what is meant for the stream.
    """
    for descriptor, unusable in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, unusable)  # it takes the lowest number that is free, which is this one
