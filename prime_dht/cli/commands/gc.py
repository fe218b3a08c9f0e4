"""``prime-dht gc``: remove blocks that nothing needs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from prime_dht.cli import options
from prime_dht.cli.ending import show
from prime_dht.cli.render import amount

if TYPE_CHECKING:
    from prime_dht.config import NodeConfig
    from prime_dht.storage.blocks_status import Collected


@click.command("gc")
@options.keeping
def command(config: NodeConfig, as_json: bool) -> None:
    """Remove from the data directory the blocks that no pin and no entry needs.

    A node that runs does so by itself; this is for one that does not. Nothing that is still wanted goes.

    \b
    Example:
      prime-dht gc --data-dir ./data
    """
    from prime_dht.cli.life import run_until_done

    removed = run_until_done(partial(_collect, config))
    text = f"{removed.blocks:,} blocks removed, {amount(removed.bytes)}"
    show({"blocks": removed.blocks, "bytes": removed.bytes}, text, as_json=as_json)


async def _collect(config: NodeConfig) -> Collected:
    from prime_dht.cli.kept import open_blocks
    from prime_dht.node.blobs.keeping import collect_all

    async with open_blocks(config) as blocks:
        return await collect_all(blocks)
