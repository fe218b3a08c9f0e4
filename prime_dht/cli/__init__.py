"""The ``prime-dht`` command.

What every subcommand keeps to:

- **Standard output is data**: addresses, values, ids, one thing a line or raw bytes. Everything for people (logs,
  warnings, errors) goes to standard error, one line each. There are no tracebacks.
- **Exit status**: see :class:`prime_dht.cli.ending.Status`.
- **Light until it works**: ``--help`` and mistakes in arguments are answered without importing libp2p. Modules here
  import the node inside the functions that need it; :mod:`prime_dht.cli.client` alone imports it at its top.

A subcommand is a module in :mod:`prime_dht.cli.commands`; putting a file there is all it takes to add one.
"""

from prime_dht.cli.app import main

__all__ = ["main"]
