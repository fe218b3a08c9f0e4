"""``prime-dht run``: a node in the foreground."""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prime_dht.cli import options
from prime_dht.cli.ending import EndedBySignal, Status, emit
from prime_dht.cli.logs import log_to_stderr

if TYPE_CHECKING:
    from prime_dht.config import NodeConfig
    from prime_dht.node.dht import PrimeDHT

logger = logging.getLogger(__name__)

JOIN_BEFORE_READY_S = 2.0
"""How long a node that has peers to join through waits for the first before it says that it is ready all the same."""


@click.command("run")
@click.option(
    "--listen",
    multiple=True,
    metavar="MULTIADDR",
    envvar="PRIME_DHT_LISTEN",
    help="Where to listen; repeat for several. [default: /ip4/0.0.0.0/tcp/0, any free port; env: PRIME_DHT_LISTEN]",
)
@options.peers
@options.data_dir
@click.option(
    "--redis",
    "redis_url",
    metavar="URL",
    envvar="PRIME_DHT_REDIS",
    help="Keep the entries in this Redis server, redis://host:port, not in a file. [env: PRIME_DHT_REDIS]",
)
@click.option("--stop-with-stdin", is_flag=True, help="Stop when standard input ends, for programs that start nodes.")
@options.verbose
def command(
    listen: tuple[str, ...],
    peers: tuple[str, ...],
    data_dir: Path | None,
    redis_url: str | None,
    stop_with_stdin: bool,
    verbose: int,
) -> int:
    """Run a node until Ctrl-C or SIGTERM.

    Prints the addresses at which others can reach it, one a line, when it is ready: it listens and has joined, or
    tried to. Nothing else goes to standard output; the log goes to standard error. Peers that do not answer are tried
    again and again.

    \b
    Examples:
      prime-dht run --data-dir ./data
      prime-dht run --listen /ip4/0.0.0.0/tcp/4001 --data-dir ./data
      prime-dht run --peer /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo...
    """
    from prime_dht.cli.life import run_until_done
    from prime_dht.config import NodeConfig

    log_to_stderr(logging.INFO, verbose=verbose)
    config = NodeConfig(peers=peers, data_dir=data_dir, redis_url=redis_url)
    if listen:
        config = replace(config, listen=listen)
    try:
        run_until_done(partial(_run, config, stop_with_stdin=stop_with_stdin))
    except EndedBySignal as ended:
        logger.info("stopped by %s", ended)
        return Status.DONE if ended.signum == signal.SIGTERM else ended.status
    return Status.DONE


async def _first_peer(dht: PrimeDHT) -> None:
    """Wait until the node knows somebody; it joins by itself."""
    from prime_dht.events import PeerJoined

    with dht.subscribe() as events:
        async for event in events:
            if isinstance(event, PeerJoined):
                return


def _drain_stdin() -> None:
    # Not sys.stdin: the abandoned thread would hold its lock while Python exits, which is fatal.
    while os.read(0, 1 << 12):
        pass


async def _run(config: NodeConfig, *, stop_with_stdin: bool) -> None:
    import trio

    from prime_dht.node.open import open_node

    async with open_node(config) as dht:
        if config.data_dir is None:
            lost = "identity is" if config.redis_url else "identity and entries are"
            logger.warning("no --data-dir: %s lost when this node stops", lost)
        if config.peers:
            with trio.move_on_after(JOIN_BEFORE_READY_S):
                await _first_peer(dht)
        for address in dht.addresses():
            emit(f"{address}\n".encode())
        if stop_with_stdin:
            await trio.to_thread.run_sync(_drain_stdin, abandon_on_cancel=True)  # type: ignore[call-arg]  # old stubs
        else:
            await trio.sleep_forever()
