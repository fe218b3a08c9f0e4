"""``prime-dht pin``: keep a blob."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from prime_dht.blobs.cid import Cid
from prime_dht.cli import options
from prime_dht.cli.ending import Status, complain
from prime_dht.cli.progress import quiet
from prime_dht.cli.targets import CID
from prime_dht.errors import BlobError

if TYPE_CHECKING:
    from prime_dht.cli.client import Session


@click.command("pin")
@click.argument("cid", type=CID)
@options.max_size
@quiet
@options.asking
def command(session: Session, cid: Cid, max_bytes: int | None, quiet: bool) -> int:
    """Keep the blob of this CID in the data directory.

    What is not there is fetched, and stays until `unpin`, whatever becomes of the entries that refer to it. A node that
    runs on the data directory afterwards hands it out; it must not run meanwhile, for it has its blocks to itself.
    Exits with 1 if nobody has the blob; it is pinned all the same, and the next try goes on from what has come.

    \b
    Example:
      prime-dht pin bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi --data-dir ./data --peer ADDR
    """
    from prime_dht.cli.life import run_until_done
    from prime_dht.cli.transfer import going_on_later

    if session.config.data_dir is None:
        raise click.UsageError("give --data-dir: that is where it is kept")
    try:
        with going_on_later(session, f"what has come is kept in {session.config.data_dir}", is_here=True):
            run_until_done(partial(_pin, session, cid, max_bytes, is_quiet=quiet))
    except BlobError as error:
        if session.patience.has_moved:
            raise
        complain(f"not found: {error}")
        return Status.NOT_FOUND
    session.show({"cid": str(cid), "pinned": True}, f"pinned {cid}")
    return Status.DONE


async def _pin(session: Session, cid: Cid, max_bytes: int | None, *, is_quiet: bool) -> None:
    from prime_dht.cli.transfer import transfer

    async with session.joined() as dht, transfer(session, is_quiet=is_quiet) as progress:
        await dht.blobs.pin(cid, max_bytes=max_bytes, progress=progress)
