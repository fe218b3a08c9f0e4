"""``prime-dht put``: store one value."""

from __future__ import annotations

import base64
import math
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prime_dht.blobs.cid import Cid
from prime_dht.cli import capability, options
from prime_dht.cli.ending import STDIN, complain
from prime_dht.cli.progress import quiet
from prime_dht.cli.render import moment
from prime_dht.errors import BlobError, QueryError
from prime_dht.ids import peer_text

if TYPE_CHECKING:
    from prime_dht.cli.client import Session
    from prime_dht.entries.entry import BlobRef
    from prime_dht.node.results import PutReceipt


@click.command("put")
@click.argument("key", type=options.Raw())
@click.argument("value", type=options.Raw(), required=False)
@click.option("--file", type=options.FileOrStream(), metavar="FILE", help="Take the value from this file.")
@options.ttl
@options.subkey
@capability.option
@quiet
@options.asking
def command(
    session: Session,
    key: bytes,
    value: bytes | None,
    file: Path | None,
    ttl_s: float | None,
    subkey: bytes,
    capability: bytes,
    quiet: bool,
) -> None:
    """Store VALUE, or a file of any size, under KEY.

    VALUE and FILE may be - for standard input. Anybody can put a value under a key; a reader gets the newest. With
    --data-dir the value is signed by an identity that you keep, so that readers can know it is yours. What has more
    than 64 KiB becomes a blob, which the replicas of the key fetch from here before the command ends, however long that
    takes.

    \b
    Examples:
      prime-dht put greeting "hello, swarm" --peer /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo...
      prime-dht put model:digits --file weights.safetensors --ttl 7d
      date | prime-dht put now -
    """
    from prime_dht.cli.life import run_until_done
    from prime_dht.cli.transfer import going_on_later

    if (value is None) == (file is None):
        raise click.UsageError("give one of VALUE, --file FILE, or - for standard input")
    source = STDIN if value == b"-" or file == options.STREAM else value if file is None else file
    assert source is not None
    with going_on_later(session, "replicas keep what they have fetched"):
        receipt = run_until_done(
            partial(_put, session, key, source, ttl_s=ttl_s, subkey=subkey, capability=capability, is_quiet=quiet)
        )
    check_held(receipt)
    if receipt.superseded:
        raise QueryError("a newer value by this identity stands under the key: this one will not be seen")
    session.show(receipt_as_json(receipt), f"stored until {moment(receipt.expires_at_us)}")
    for line in shortfalls(receipt):
        complain(f"warning: {line}")


def shortfalls(receipt: PutReceipt) -> list[str]:
    """What a person should know of a put that fewer replicas took than were asked for; nothing if all is well."""
    if receipt.warning is None:
        return []
    return [receipt.warning, *(f"{peer_text(peer)}: {why}" for peer, why in (*receipt.refused, *receipt.failed))]


def receipt_as_json(receipt: PutReceipt) -> dict[str, object]:
    """A receipt for programs; times are in microseconds since the Unix epoch, key and subkey base64."""
    return {
        "key": base64.b64encode(receipt.key).decode(),
        "subkey": base64.b64encode(receipt.subkey).decode(),
        "op_id": receipt.op_id.hex(),
        "created_at_us": receipt.created_at_us,
        "expires_at_us": receipt.expires_at_us,
        "blob": None if receipt.blob is None else blob_as_json(receipt.blob),
        "stored_by": [peer_text(peer) for peer in receipt.stored_by],
        "held_by": [peer_text(peer) for peer in receipt.held_by],
        "refused": {peer_text(peer): why for peer, why in receipt.refused},
        "failed": {peer_text(peer): why for peer, why in receipt.failed},
        "wanted": receipt.wanted,
        "needed": receipt.needed,
        "acknowledged": receipt.acknowledged,
        "superseded": receipt.superseded,
        "warning": receipt.warning,
    }


def blob_as_json(blob: BlobRef) -> dict[str, object]:
    """A blob for programs."""
    return {"cid": str(Cid.from_bytes(blob.cid)), "size": blob.size, "chunker": blob.chunker}


def check_held(receipt: PutReceipt) -> None:
    """Check that there is somebody to get a blob from, once this command has ended.

    Raises:
        BlobError: nobody else has it.
    """
    if receipt.blob is not None and not receipt.held_by:
        raise BlobError("no replica has fetched the blob, so nobody could get it")


async def _put(
    session: Session,
    key: bytes,
    given: bytes | Path | int,
    *,
    ttl_s: float | None,
    subkey: bytes,
    capability: bytes,
    is_quiet: bool,
) -> PutReceipt:
    from prime_dht.cli.transfer import blocks_on_disk, leaving_nothing, opened_source, transfer

    most_bytes = session.config.dht.limits.max_inline_bytes
    source = given if isinstance(given, bytes) else await opened_source(given, most_bytes)
    is_inline = isinstance(source, bytes) and len(source) <= most_bytes  # and has no blocks
    with nullcontext(session) if is_inline else blocks_on_disk(session) as session:
        async with (
            session.joined() as dht,
            leaving_nothing(session, dht),
            transfer(session, is_quiet=is_quiet) as progress,
        ):
            return await dht.put(
                key, source, subkey=subkey, ttl=ttl_s, capability=capability, wait_s=math.inf, progress=progress
            )
