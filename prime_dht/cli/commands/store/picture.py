"""``prime-dht store picture``: what a node would compare with others, as they would see it."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prime_dht.cli.commands.store.options import data_dir, store_file
from prime_dht.cli.ending import show
from prime_dht.cli.logs import log_to_stderr
from prime_dht.cli.options import as_json, dividing, verbose
from prime_dht.errors import ConfigError

if TYPE_CHECKING:
    from prime_dht.partition.cells import Counts
    from prime_dht.partition.parameters import PartitionParameters


@click.command("picture")
@data_dir
@click.option("--rows", type=click.Choice(["8", "16", "32", "64", "128"]), default="32", help="Lines. [default: 32]")
@click.option("--graph", type=click.Path(path_type=Path), metavar="FILE", help="Write the graph as SVG.")
@click.option("--circle", type=click.Path(path_type=Path), metavar="FILE", help="Write disc and rings as SVG.")
@dividing
@as_json
@verbose
def picture(
    data_dir: Path,
    rows: str,
    graph: Path | None,
    circle: Path | None,
    parameters: PartitionParameters,
    as_json: bool,
    verbose: int,
) -> None:
    """Show where the entries of a store lie: sectors down, time to the right.

    A sector is a part of the key space. Left of the first bar is the disc: full slices of five days. Then come the
    rings, which get shorter towards now, and the tail. The darker a cell, the more entries; times are in UTC. In a
    network whose unit, factor or sector bits are not the usual ones, name the node's configuration with --config.

    \b
    Examples:
      prime-dht store picture --data-dir ./data
      prime-dht store picture --data-dir ./data --graph graph.svg --circle circle.svg
    """
    from prime_dht.cli.life import run_until_done
    from prime_dht.partition.drawing import circle_svg, graph_svg
    from prime_dht.partition.picture import describe, text_picture

    log_to_stderr(logging.WARNING, verbose=verbose)
    counts = run_until_done(partial(_count, store_file(data_dir), parameters))
    for path, draw in ((graph, graph_svg), (circle, circle_svg)):
        if path is not None:
            try:
                path.write_text(draw(counts), encoding="utf-8")
            except OSError as error:
                raise ConfigError(f"{path}: {error.strerror}") from error
    show(_json(counts), f"{describe(counts)}\n\n{text_picture(counts, rows=int(rows))}", as_json=as_json)


async def _count(path: Path, parameters: PartitionParameters) -> Counts:
    from prime_dht.node.clock import SystemClock
    from prime_dht.partition.partition import Partition
    from prime_dht.storage import offline

    partition = Partition(parameters, now_us=SystemClock().now_us())
    async for ops in offline.ops(path):
        partition.insert_batch(ops.op_ids, ops.locations, ops.created_at_us)
    return partition.cells.counts()


def _json(counts: Counts) -> dict[str, object]:
    """Each slice with its kind, and the ops in its sectors where there are any."""
    kinds = ["full"] * counts.full + ["ring"] * counts.rings
    kinds += ["tail"] * (len(counts.slices) - len(kinds))
    return {
        "sectors": int(counts.ops.shape[1]),
        "slices": [
            {
                "kind": kind,
                "start_us": span.start,
                "stop_us": span.stop,
                "ops": {str(sector): int(row[sector]) for sector in row.nonzero()[0]},
            }
            for kind, span, row in zip(kinds, counts.slices, counts.ops, strict=True)
        ],
    }
