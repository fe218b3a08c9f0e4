"""``prime-dht swarm``: many nodes in one process, to try things with."""

from __future__ import annotations

import gc
import logging
import os
import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import click

from prime_dht.cli import options
from prime_dht.cli.ending import EndedBySignal, show
from prime_dht.cli.open_files import FOR_A_NODE, allow_open_files
from prime_dht.cli.render import table
from prime_dht.errors import QueryError
from prime_dht.ids import peer_text

if TYPE_CHECKING:
    from trio_typing import TaskStatus

    from prime_dht.config import NodeConfig
    from prime_dht.node.dht import PrimeDHT

logger = logging.getLogger(__name__)

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)

CLOSING_S = 0.8
"""How long the nodes have to close; then the process ends, and the kernel closes what is left. Among hundreds of nodes
there are thousands of connections, each half a millisecond's work, for which nobody waits who has pressed Ctrl-C. What
a node has acknowledged is safe as it is from ``kill -9``."""

JOINS_AT_ONCE = 8
"""Nodes that join at the same time: they share the CPU, and each is to find those that came before it."""

REPORTS = 10
"""Lines about the progress of a large swarm; one of fewer than so many nodes is there before anybody wonders."""

_PORT = re.compile(r"(?<=/tcp/)\d+")


@click.command("swarm")
@click.argument("size", type=options.Count(), metavar="N")
@options.as_json
@options.serving
def command(config: NodeConfig, size: int, as_json: bool) -> None:
    """Run N nodes on this machine until Ctrl-C or SIGTERM.

    They share one process. They join each other through the first, and, if --peer is given, the swarm that it is in.
    When all have joined, their addresses are printed, one a line. They listen on loopback unless --listen says where; a
    port other than 0, there or in `announce`, is the first node's, and the next ones have those that follow. With
    --data-dir each keeps its data in a directory of its own in there, so that the same nodes come back when the command
    is run again.

    \b
    Examples:
      prime-dht swarm 20
      prime-dht swarm 5 --listen /ip4/127.0.0.1/tcp/4001 --data-dir ./swarm
    """
    from prime_dht.cli.life import run_until_done
    from prime_dht.config import Mode

    if config.dht.mode is Mode.CLIENT:
        raise click.UsageError("a swarm of clients has nobody to rely on: leave out --client")
    if not logger.isEnabledFor(logging.DEBUG):
        logging.getLogger("prime_dht.node").setLevel(logging.WARNING)  # whom each of them meets is told with -v alone
    allow_open_files(open_files_of(size, keeps_data=config.data_dir is not None), what=f"a swarm of {size:,}")
    try:
        run_until_done(partial(_run, config, size, as_json=as_json), closing_s=CLOSING_S)
    except EndedBySignal as ended:
        _leave(ended.status_of_server)


async def _run(config: NodeConfig, size: int, *, as_json: bool) -> NoReturn:
    import trio

    from prime_dht.background import background_nursery

    gc.disable()  # almost all that joining makes stays; to look through it again and again took a third of the time
    nodes: dict[int, PrimeDHT] = {}
    places = trio.CapacityLimiter(JOINS_AT_ONCE)

    async def start(number: int, own: NodeConfig) -> None:
        async with places:
            nodes[number] = await nursery.start(_run_one, number, own)
        if len(nodes) % max(REPORTS, size // REPORTS) == 0:
            logger.info("%d of %d nodes run", len(nodes), size)

    async with background_nursery() as nursery:
        await start(1, config_of(config, 1, ()))
        through = tuple(nodes[1].addresses())
        async with trio.open_nursery() as joining:
            for number in range(2, size + 1):
                joining.start_soon(start, number, config_of(config, number, through))
        gc.collect()
        gc.freeze()
        gc.enable()
        _show(nodes, as_json=as_json)
        try:
            await trio.sleep_forever()
        finally:
            logger.info("stopping %d nodes", size)
            gc.disable()  # nothing is collected any more: with it, closing took ten times as long


async def _run_one(number: int, config: NodeConfig, *, task_status: TaskStatus[PrimeDHT]) -> None:
    """One node, until cancelled; it has started when it has joined, or tried to."""
    import trio

    from prime_dht.node.open import open_node

    async with open_node(config) as dht:
        try:
            await dht.bootstrap()
        except QueryError as error:
            logger.warning("node %d has not joined: %s; it goes on trying", number, error)
        task_status.started(dht)
        await trio.sleep_forever()


def config_of(config: NodeConfig, number: int, through: tuple[str, ...]) -> NodeConfig:
    """One node's part of the configuration that all share.

    Args:
        number: which node, from 1 on.
        through: the first node's addresses.

    >>> from pathlib import Path
    >>> from prime_dht.config import NodeConfig
    >>> second = config_of(NodeConfig(listen=("/ip4/127.0.0.1/tcp/4001",), data_dir=Path("swarm")), 2, ())
    >>> second.listen, second.data_dir.as_posix()
    (('/ip4/127.0.0.1/tcp/4002',), 'swarm/node-2')
    """
    from prime_dht.config import NodeConfig

    def own(addresses: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_PORT.sub(lambda port: _port_of(int(port[0]), number), address) for address in addresses)

    return replace(
        config,
        listen=own(LOOPBACK if config.listen == NodeConfig().listen else config.listen),
        announce=own(config.announce),
        peers=(*config.peers, *through),
        data_dir=None if config.data_dir is None else config.data_dir / f"node-{number}",
        blocks_dir=None if config.blocks_dir is None else config.blocks_dir / f"node-{number}",
        mdns=config.mdns and number == 1,  # whoever finds the first has found them all
    )


def open_files_of(size: int, *, keeps_data: bool) -> int:
    """How many files a swarm has open when all have joined, counted on swarms of 5 to 100 nodes, and some to spare.

    In a small one each node has a connection with each other, now and then two; in a large one with some thirty.

    >>> open_files_of(20, keeps_data=False), open_files_of(100, keeps_data=False)  # there were 518 and 3,424
    (564, 3564)
    """
    own = 15 if keeps_data else 1
    return FOR_A_NODE + size * (own + min(size + 4, 34))


def _port_of(first: int, number: int) -> str:
    return str(first + number - 1 if first else 0)


def _leave(status: int) -> NoReturn:
    """End the process at once: Python would take seconds to take apart what the kernel just drops."""
    logging.shutdown()
    os._exit(status)


def _show(nodes: dict[int, PrimeDHT], *, as_json: bool) -> None:
    in_order = sorted(nodes.items())
    if as_json:
        for number, dht in in_order:
            show({"node": number, "peer": peer_text(dht.peer_id), "addresses": dht.addresses()}, "", as_json=True)
    else:
        rows = [(str(number), address) for number, dht in in_order for address in dht.addresses()]
        show({}, table(("node", "address"), rows, right=("node",)), as_json=False)
    address = nodes[1].addresses()[0]
    logger.info("ready: %d nodes, until Ctrl-C; try: prime-dht put greeting hello --peer %s", len(nodes), address)
