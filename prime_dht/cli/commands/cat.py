"""``prime-dht cat``: read a blob by its CID."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prime_dht.blobs.cid import Cid
from prime_dht.cli import options
from prime_dht.cli.ending import STDOUT, Status, complain
from prime_dht.cli.progress import quiet
from prime_dht.cli.targets import CID
from prime_dht.errors import BlobError

if TYPE_CHECKING:
    from prime_dht.cli.client import Session


@click.command("cat")
@click.argument("cid", type=CID)
@click.option("--out", type=options.FileOrStream(), metavar="FILE", help="Write it to this file.")
@options.max_size
@quiet
@options.asking
def command(session: Session, cid: Cid, out: Path | None, max_bytes: int | None, quiet: bool) -> int:
    """Write the blob of this CID to standard output.

    From all nodes that have it, each block verified; it may take as long as something moves. A terminal gets a little
    text, and nothing else. With --out the file is there when it is whole; what an interrupted command has fetched is
    not fetched again. Exits with 1 if nobody has the blob.

    \b
    Examples:
      prime-dht cat bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi --out weights.safetensors
      prime-dht cat bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi | tar x
    """
    from prime_dht.cli.life import run_until_done
    from prime_dht.cli.transfer import going_on_later, place_for

    out = None if out == options.STREAM else out
    if session.as_json and out is None:
        raise click.UsageError("--json needs --out FILE: without it the blob is on standard output")
    place = None if out is None else place_for(out)
    try:
        with going_on_later(session, None if place is None else f"what has come is kept beside {out}", is_here=True):
            target = STDOUT if out is None else out
            run_until_done(partial(_cat, session, cid, target, place, max_bytes, is_quiet=quiet))
    except BlobError as error:
        if session.patience.has_moved:
            raise
        complain(f"not found: {error}")
        return Status.NOT_FOUND
    if place is not None:
        session.show({"cid": str(cid), "size": place.stat().st_size, "file": str(out)}, "")
    return Status.DONE


async def _cat(
    session: Session, cid: Cid, target: Path | int, place: Path | None, max_bytes: int | None, *, is_quiet: bool
) -> None:
    from prime_dht.cli.transfer import transfer, write_blob

    async with session.joined() as dht, transfer(session, is_quiet=is_quiet) as progress:
        if place is None:
            await write_blob(dht, cid, target, progress, max_bytes=max_bytes)
        else:
            await dht.blobs.fetch(cid, to=place, max_bytes=max_bytes, progress=progress)
