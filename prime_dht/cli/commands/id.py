"""``prime-dht id``: whose data directory is this?"""

from __future__ import annotations

from pathlib import Path

import click

from prime_dht.cli import options
from prime_dht.cli.ending import show


@click.command("id")
@options.identifying
def command(data_dir: Path | None, as_json: bool) -> None:
    """Print the peer id of the node that keeps its data in DIR.

    If DIR has no identity yet, one is made, as `run` would: so a node's id can be told to others before it first runs.

    \b
    Example:
      prime-dht id --data-dir ./data
    """
    if data_dir is None:
        raise click.UsageError("give --data-dir: the directory whose peer id to print")
    from prime_dht.ids import peer_text
    from prime_dht.net.identity import IDENTITY_FILE, load_or_create_identity, peer_id_of

    peer = peer_text(peer_id_of(load_or_create_identity(data_dir / IDENTITY_FILE)))
    show({"peer_id": peer}, peer, as_json=as_json)
