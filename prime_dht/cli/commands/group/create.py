"""``prime-dht group create``: the root key of a new group."""

from __future__ import annotations

from pathlib import Path

import click

from prime_dht.cli import options
from prime_dht.cli.commands.group.root_key import create_root_key, group_prefix
from prime_dht.cli.ending import complain, show

SUFFIX = ".group"


@click.command("create")
@click.argument("name")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="Where the root key goes. [default: NAME.group, here]",
)
@options.as_json
def create(name: str, out: Path | None, as_json: bool) -> None:
    """Make a group: write its root key to a file.

    Prints what the group's keys begin with. Whoever has the file can invite members, and nobody else can, so keep it
    safe; a node does not need it. NAME is for you to know it by, and means nothing to others.

    \b
    Examples:
      prime-dht group create trainers
      prime-dht group create trainers --out ~/keys/
    """
    from prime_dht.entries.capability import root_of

    path = _path(name, out)
    root = root_of(create_root_key(path).public_key)
    complain(f"the root key is in {path}: keep it safe, whoever has it can invite members")
    show({"prefix": group_prefix(root), "root_key": str(path)}, group_prefix(root), as_json=as_json)


def _path(name: str, out: Path | None) -> Path:
    if out is not None and not out.is_dir():
        return out
    if not name or name.startswith((".", "-")) or not name.isprintable() or "/" in name:
        raise click.UsageError(f"{name!r} cannot be the name of a file: give another, or --out FILE")
    return (out or Path()) / f"{name}{SUFFIX}"
