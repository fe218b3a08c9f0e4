"""``prime-dht provide``: tell the swarm that this machine has some content."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import click

from prime_dht.cli import options
from prime_dht.cli.ending import EndedBySignal, Status, complain
from prime_dht.cli.open_files import FOR_A_NODE, allow_open_files
from prime_dht.errors import QueryError
from prime_dht.ids import peer_text

if TYPE_CHECKING:
    from prime_dht.config import NodeConfig
    from prime_dht.node.results import RecordReceipt

logger = logging.getLogger(__name__)


@click.command("provide")
@click.argument("cid")
@click.option("--once", is_flag=True, help="Announce and leave. The peers that are told dial in vain from then on.")
@options.as_json
@options.serving
def command(config: NodeConfig, cid: str, once: bool, as_json: bool) -> int:
    """Announce that this machine has the content of a CID.

    Again and again until Ctrl-C or SIGTERM, as a client that listens: others can dial it, but nobody relies on it to
    store anything. It says who has the content; to hand it over is the work of another protocol.

    \b
    Examples:
      prime-dht provide bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi --peer ADDR
      prime-dht provide bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi --peer ADDR --once
    """
    from prime_dht.cli.life import run_until_done

    allow_open_files(FOR_A_NODE, what="a node")
    try:
        run_until_done(partial(_provide, config, cid, once=once, as_json=as_json))
    except EndedBySignal as ended:
        logger.info("stopped by %s", ended)
        return ended.status_of_server
    return Status.DONE


async def _provide(config: NodeConfig, cid: str, *, once: bool, as_json: bool) -> None:
    import trio

    from prime_dht.cli.client import Session
    from prime_dht.config import Mode
    from prime_dht.node.multihashes import multihash_of

    multihash_of(cid)  # before anybody is dialled for a typing mistake
    listening_client = replace(config, dht=replace(config.dht, mode=Mode.CLIENT))
    session = Session(config=listening_client, timeout_s=math.inf, as_json=as_json, verbose=0)
    async with session.joined() as dht:
        receipt = await dht.provide(cid)
        if not receipt.stored_by:
            raise QueryError(f"nobody took the announcement: {_reasons(receipt) or 'no server is known'}")
        item = {"cid": cid, "told": [peer_text(peer) for peer in receipt.stored_by], "addresses": dht.addresses()}
        session.show(item, f"{len(receipt.stored_by)} peers were told")
        if receipt.failed:
            complain(f"warning: {_reasons(receipt)}")
        if once:
            complain("warning: nobody can dial this machine once this command has ended (--once)")
            return
        for address in dht.addresses():
            logger.info("provided at %s until Ctrl-C", address)
        await trio.sleep_forever()


def _reasons(receipt: RecordReceipt) -> str:
    return "; ".join(f"{peer_text(peer)}: {why}" for peer, why in receipt.failed)
