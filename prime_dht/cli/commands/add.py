"""``prime-dht add``: store a file of any size under its CID."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prime_dht.blobs.cid import Cid
from prime_dht.cli import options
from prime_dht.cli.commands.put import check_held, receipt_as_json, shortfalls
from prime_dht.cli.ending import STDIN, complain
from prime_dht.cli.progress import quiet

if TYPE_CHECKING:
    from prime_dht.cli.client import Session
    from prime_dht.node.results import PutReceipt


@click.command("add")
@click.argument("file", type=options.FileOrStream())
@click.option("--name", metavar="NAME", help="What to call it; a file's own name by default.")
@options.ttl
@click.option("--pin", is_flag=True, help="Keep a copy in --data-dir too.")
@quiet
@options.asking
def command(session: Session, file: Path, name: str | None, ttl_s: float | None, pin: bool, quiet: bool) -> None:
    """Store FILE, of any size, and print its CID.

    FILE may be - for standard input (./- is a file of that name). It is cut into blocks, which the nodes fetch that
    are responsible for the CID; the command ends when enough of them have all, and may take as long as something
    moves. Until then the blocks are in --data-dir, or else where temporary files are. If it is interrupted when
    nodes know of the blob already, they stay in --data-dir, where a node may serve them, until FILE is added again
    or the entry ends. The same bytes have the same CID everywhere, in IPFS too, except for *.safetensors, which are
    cut where tensors begin, so that checkpoints share what they have in common.

    \b
    Examples:
      prime-dht add weights.safetensors --peer /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo...
      tar c ./data | prime-dht add - --name data.tar --ttl 7d
      CID=$(prime-dht add corpus.txt) && prime-dht cat $CID
    """
    from prime_dht.cli.life import run_until_done
    from prime_dht.cli.transfer import going_on_later

    if pin and session.config.data_dir is None:
        raise click.UsageError("--pin needs --data-dir: that is where the copy is kept")
    with going_on_later(session, "nodes keep what they have fetched"):
        receipt = run_until_done(partial(_add, session, file, name or "", ttl_s=ttl_s, pin=pin, is_quiet=quiet))
    check_held(receipt)
    assert receipt.blob is not None
    cid = str(Cid.from_bytes(receipt.blob.cid))
    session.show({"cid": cid, **receipt_as_json(receipt)}, cid)
    for line in shortfalls(receipt):
        complain(f"warning: {line}")


async def _add(
    session: Session, file: Path, name: str, *, ttl_s: float | None, pin: bool, is_quiet: bool
) -> PutReceipt:
    from prime_dht.cli.transfer import blocks_on_disk, leaving_nothing, opened_source, transfer

    given = STDIN if file == options.STREAM else file
    source = await opened_source(given, session.config.dht.limits.max_inline_bytes)
    with blocks_on_disk(session) as session:
        async with (
            session.joined() as dht,
            leaving_nothing(session, dht),
            transfer(session, is_quiet=is_quiet) as progress,
        ):
            return await dht.blobs.add(source, name=name, ttl=ttl_s, pin=pin, wait_s=math.inf, progress=progress)
