"""``prime-dht delete``: take back a value of one's own."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import click

from prime_dht.cli import capability, options
from prime_dht.cli.commands.put import receipt_as_json, shortfalls
from prime_dht.cli.ending import Status, complain
from prime_dht.cli.render import visible
from prime_dht.errors import ConfigError, QueryError
from prime_dht.ids import peer_text

if TYPE_CHECKING:
    from prime_dht.cli.client import Session
    from prime_dht.node.results import PutReceipt


@click.command("delete")
@click.argument("key", type=options.Raw())
@options.subkey
@capability.option
@options.asking
def command(session: Session, key: bytes, subkey: bytes, capability: bytes) -> int:
    """Delete one's own value under KEY.

    That is the one which the identity in --data-dir has put; those of others stay, and are for them to delete. Exits
    with 1 if nothing of this identity is there.

    \b
    Examples:
      prime-dht delete greeting --data-dir ./me --peer /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo...
      prime-dht delete model:digits --subkey layer-1 --data-dir ./me
    """
    from prime_dht.cli.life import run_until_done
    from prime_dht.net.identity import IDENTITY_FILE

    data_dir = session.config.data_dir
    if data_dir is None:
        raise click.UsageError("give --data-dir: a value can be deleted only by the identity that has put it")
    if not os.path.lexists(data_dir / IDENTITY_FILE):
        raise ConfigError(f"{data_dir} holds no identity, so nothing that it has put can be there")
    receipt = run_until_done(partial(_delete, session, key, subkey, capability))
    if receipt is None:
        return Status.NOT_FOUND
    if receipt.superseded:
        raise QueryError("a newer value by this identity stands under the key: it is not deleted")
    session.show(receipt_as_json(receipt), f"deleted on {len(receipt.stored_by)} replicas")
    for line in shortfalls(receipt):
        complain(f"warning: {line}")
    return Status.DONE


async def _delete(session: Session, key: bytes, subkey: bytes, capability: bytes) -> PutReceipt | None:
    """Delete, if there is anything."""
    async with session.joined() as dht:
        if await dht.get(key, subkey=subkey, publisher=dht.peer_id, latest=True) is None:
            complain(f"not found: {peer_text(dht.peer_id)} has nothing under {visible(key)}")
            return None
        return await dht.delete(key, subkey=subkey, capability=capability)
