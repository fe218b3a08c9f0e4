"""``prime-dht store``: look at, check, and carry elsewhere the store of a node that does not run."""

from __future__ import annotations

import click

from prime_dht.cli.commands.store import carry, look, picture


@click.group("store")
def command() -> None:
    """Look at, check, draw, export or import what a node keeps in its data directory.

    The node must not run meanwhile: it has its store to itself.

    \b
    Examples:
      prime-dht store info --data-dir ./data
      prime-dht store check --data-dir ./data
      prime-dht store picture --data-dir ./data
      prime-dht store export --data-dir ./data --out backup.jsonl
      prime-dht store import --data-dir ./elsewhere backup.jsonl

    \b
    Exit status:
      0  done
      1  check: something is wrong; import: something was not taken
      2  a mistake in the arguments, or a store or a file that cannot be used
    """


for subcommand in (look.info, look.check, picture.picture, carry.export, carry.import_):
    command.add_command(subcommand)
