"""``prime-dht run``: a node in the foreground."""

from __future__ import annotations

import gc
import logging
import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import click

from prime_dht.cli import options
from prime_dht.cli.client import first_peer
from prime_dht.cli.ending import EndedBySignal, Status, show
from prime_dht.cli.open_files import FOR_A_NODE, allow_open_files
from prime_dht.ids import peer_text

if TYPE_CHECKING:
    from prime_dht.config import NodeConfig
    from prime_dht.node.dht import PrimeDHT

logger = logging.getLogger(__name__)

JOIN_BEFORE_READY_S = 2.0
"""How long a node that has peers to join through waits for the first before it says that it is ready all the same."""


@click.command("run")
@click.option("--stop-with-stdin", is_flag=True, help="Stop when standard input ends, for programs that start nodes.")
@options.as_json
@options.serving
def command(config: NodeConfig, stop_with_stdin: bool, as_json: bool) -> int:
    """Run a node until Ctrl-C or SIGTERM.

    Prints the addresses at which others can reach it, one a line, when it is ready: it listens and has joined, or
    tried to. (With --json it prints them and its peer id on one line.) Nothing else goes to standard output; the log
    goes to standard error. Peers that do not answer are tried again and again.

    \b
    Examples:
      prime-dht run --data-dir ./data
      prime-dht run --listen /ip4/0.0.0.0/tcp/4001 --data-dir ./data
      prime-dht run --peer /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo...
    """
    from prime_dht.cli.life import run_until_done

    allow_open_files(FOR_A_NODE, what="a node")
    try:
        run_until_done(partial(_run, config, stop_with_stdin=stop_with_stdin, as_json=as_json))
    except EndedBySignal as ended:
        logger.info("stopped by %s", ended)
        return ended.status_of_server
    return Status.DONE


async def _run(config: NodeConfig, *, stop_with_stdin: bool, as_json: bool) -> None:
    import trio

    from prime_dht.background import background_nursery
    from prime_dht.cli.arrivals import log_arrivals
    from prime_dht.node.open import open_node

    async with open_node(config) as dht, background_nursery() as nursery:
        with dht.subscribe() as events:
            nursery.start_soon(log_arrivals, events, lambda: len(dht.peers()))
            if config.data_dir is None:
                lost = "identity is" if config.redis_url else "identity and entries are"
                logger.warning("no --data-dir: %s lost when this node stops", lost)
            if config.peers:
                with trio.move_on_after(JOIN_BEFORE_READY_S):
                    await first_peer(dht)
            _keep_out_of_collections()
            _say_ready(dht, as_json=as_json)
            if stop_with_stdin:
                await trio.to_thread.run_sync(_drain_stdin, abandon_on_cancel=True)  # type: ignore[call-arg]  # old stubs
            else:
                await trio.sleep_forever()


def _say_ready(dht: PrimeDHT, *, as_json: bool) -> None:
    addresses = dht.addresses()
    show({"peer_id": peer_text(dht.peer_id), "addresses": addresses}, "\n".join(addresses), as_json=as_json)
    known = len(dht.peers())
    network = dht.config.network_id
    logger.info(
        "ready in network %s; known peers: %d",
        network,
        known,
        extra={"event": "ready", "network": network, "known": known, "addresses": addresses},
    )


def _keep_out_of_collections() -> None:
    """Take what is there now out of garbage collections: it stays as long as the node.

    Modules and the node are some 110,000 objects. A full collection looks at each, which takes some 100 ms, and
    meanwhile the node answers nobody: its slowest answers were those.
    """
    gc.collect()
    gc.freeze()


def _drain_stdin() -> None:
    # Not sys.stdin: the abandoned thread would hold its lock while Python exits, which is fatal.
    with suppress(OSError):  # of one that is closed nothing more will come either
        while os.read(0, 1 << 12):
            pass
