"""``prime-dht unpin``: keep a blob no longer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from prime_dht.blobs.cid import Cid
from prime_dht.cli import options
from prime_dht.cli.ending import Status, complain, show
from prime_dht.cli.targets import CID

if TYPE_CHECKING:
    from prime_dht.config import NodeConfig


@click.command("unpin")
@click.argument("cid", type=CID)
@options.keeping
def command(config: NodeConfig, cid: Cid, as_json: bool) -> int:
    """Keep the blob of this CID in the data directory no longer.

    Unless an entry there refers to it, the blocks that no other blob shares with it are removed. Exits with 1 if it was
    not pinned.

    \b
    Example:
      prime-dht unpin bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi --data-dir ./data
    """
    from prime_dht.cli.life import run_until_done

    if not run_until_done(partial(_unpin, config, cid)):
        complain(f"not found: {cid} is not pinned")
        return Status.NOT_FOUND
    show({"cid": str(cid), "pinned": False}, f"unpinned {cid}", as_json=as_json)
    return Status.DONE


async def _unpin(config: NodeConfig, cid: Cid) -> bool:
    from prime_dht.cli.kept import open_blocks
    from prime_dht.node.blobs.claims import PIN
    from prime_dht.node.blobs.keeping import collect_all
    from prime_dht.storage.blocks import Claim

    claim = Claim(root=cid, label=PIN)
    async with open_blocks(config) as blocks:
        if claim not in await blocks.claims(cid):
            return False
        await blocks.release(claim)
        await collect_all(blocks)
        return True
