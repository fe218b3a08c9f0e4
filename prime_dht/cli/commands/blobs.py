"""``prime-dht blobs``: what blobs are kept."""

from __future__ import annotations

import base64
from functools import partial
from typing import TYPE_CHECKING

import click

from prime_dht.cli import options
from prime_dht.cli.ending import show
from prime_dht.cli.render import amount, table, visible
from prime_dht.ids import peer_text

if TYPE_CHECKING:
    from prime_dht.config import NodeConfig
    from prime_dht.node.blobs.blobs import BlobStatus

PIN = "pin"


@click.command("blobs")
@options.keeping
def command(config: NodeConfig, as_json: bool) -> None:
    """List the blobs in the data directory: CID, size, how much of it is there, name, and what keeps it.

    That is a pin, or entries of the store, shown by their keys, or a put that still waits for replicas. The node may
    run meanwhile. With --json each blob is a line, with keys in base64.

    \b
    Examples:
      prime-dht blobs --data-dir ./data
      prime-dht blobs --data-dir ./data --json | jq -r 'select(.pinned) | .cid'
    """
    from prime_dht.cli.kept import list_blobs
    from prime_dht.cli.life import run_until_done

    found = run_until_done(partial(list_blobs, config))
    if as_json:
        for blob in found:
            show(_json(blob), "", as_json=True)
    else:
        columns = ("cid", "size", "here", "name", "kept for")
        show({}, table(columns, map(_row, found), right=("size", "here")), as_json=False)


def _row(blob: BlobStatus) -> tuple[str, ...]:
    size_bytes = max(blob.size_bytes, blob.present_bytes)  # of what was never whole, the size is not known
    here = "all" if blob.is_complete else amount(blob.present_bytes)
    kept_for = [PIN] * blob.is_pinned + [visible(reference.key) for reference in blob.references]
    return str(blob.cid), amount(size_bytes), here, blob.name or "-", ", ".join(kept_for) or "a put"


def _json(blob: BlobStatus) -> dict[str, object]:
    return {
        "cid": str(blob.cid),
        "size": blob.size_bytes,
        "present_bytes": blob.present_bytes,
        "complete": blob.is_complete,
        "name": blob.name,
        "pinned": blob.is_pinned,
        "references": [
            {"key": base64.b64encode(reference.key).decode(), "publisher": peer_text(reference.publisher)}
            for reference in blob.references
        ],
    }
