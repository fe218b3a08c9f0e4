"""``prime-dht get``: read one value."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prime_dht.cli import options
from prime_dht.cli.commands.get_all import found_as_json
from prime_dht.cli.ending import STDOUT, Status, complain, emit_for_people
from prime_dht.cli.progress import quiet
from prime_dht.cli.render import visible
from prime_dht.ids import peer_text

if TYPE_CHECKING:
    from prime_dht.cli.client import Session
    from prime_dht.node.results import Found

logger = logging.getLogger(__name__)


@click.command("get")
@click.argument("key", type=options.Raw())
@click.option("--out", type=options.FileOrStream(), metavar="FILE", help="Write the value to this file.")
@options.subkey
@options.max_size
@quiet
@options.asking
def command(session: Session, key: bytes, out: Path | None, subkey: bytes, max_bytes: int | None, quiet: bool) -> int:
    """Write the newest value under KEY to standard output.

    Its bytes, nothing else; a terminal gets text alone, and with a newline. With --json, a line with all that is known
    of it, and the value in base64, unless it is a blob or goes to --out. Exits with 1 if there is none. With --out the
    file is there when it is whole; what an interrupted command has fetched of a blob is not fetched again.

    \b
    Examples:
      prime-dht get greeting --peer /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo...
      prime-dht get model:digits --out weights.safetensors
    """
    from prime_dht.cli.life import run_until_done
    from prime_dht.cli.transfer import going_on_later, place_for

    out = None if out == options.STREAM else out
    place = None if out is None else place_for(out)
    with going_on_later(session, None if place is None else f"what has come is kept beside {out}", is_here=True):
        found = run_until_done(partial(_get, session, key, subkey, out, place, max_bytes, is_quiet=quiet))
    if found is None:
        complain(f"not found: {visible(key)}")
        return Status.NOT_FOUND
    size_bytes = len(found.value) if found.blob is None else found.blob.size
    logger.info("%d bytes by %s, from %d replicas", size_bytes, peer_text(found.publisher), found.answered)
    if session.as_json:
        session.show(found_as_json(found, out), "")
    elif out is None and found.blob is None:
        emit_for_people(found.value)
    return Status.DONE


async def _get(
    session: Session,
    key: bytes,
    subkey: bytes,
    out: Path | None,
    place: Path | None,
    max_bytes: int | None,
    *,
    is_quiet: bool,
) -> Found | None:
    """The value; if it is for ``out``, or a blob, it has been written already."""
    from prime_dht.cli.transfer import check_size, transfer, write_blob, write_to

    async with session.joined() as dht, transfer(session, is_quiet=is_quiet) as progress:
        found = await dht.get(key, subkey=subkey, fetch=False)
        if found is None:
            return None
        check_size(found, max_bytes)
        if place is not None:
            await dht.blobs.resolve(found, to=place, progress=progress)
        elif found.blob is not None and not (session.as_json and out is None):
            await write_blob(dht, found, STDOUT if out is None else out, progress)
        elif out is not None:
            await write_to(out, found.value)
        return found
