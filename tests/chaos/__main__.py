"""``make chaos``: one run; what happened as it happens, a table, and, if all was not well, what was not."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio

from prime_dht.testing.simulation.plan import ANCHORS

from .plan import draw_plan
from .run import Run

BESIDE_FAULTS_S = 60.0
"""Of a run, about what it takes to start the nodes and to check them; the rest are faults."""

MOST_NODES = 100
COMPLAINTS_SHOWN = 100
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 if all was well."""
    parser = argparse.ArgumentParser(prog="make chaos", description="Try a swarm of node processes under faults.")
    parser.add_argument("--minutes", type=float, default=10.0, help="about how long it all takes; 2 or more")
    parser.add_argument("--nodes", type=int, default=20, help=f"how many nodes, {ANCHORS + 1} to {MOST_NODES}")
    parser.add_argument("--seed", type=int, help="what chance is drawn from; another one each time by default")
    parser.add_argument("--keep", action="store_true", help="keep logs and stores also if all was well")
    parser.add_argument("--loopback", action="store_true", help="without network namespaces")
    options = parser.parse_args(arguments)
    if not options.minutes >= 2:
        parser.error("--minutes must be 2 or more")
    if not ANCHORS < options.nodes <= MOST_NODES:
        parser.error(f"--nodes must be {ANCHORS + 1} to {MOST_NODES}")
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    began_s = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - began_s:7.1f} s  {line}", flush=True)

    folder = Path(tempfile.mkdtemp(prefix="prime-dht-chaos-"))
    print(f"seed {seed}, {options.nodes} nodes, about {options.minutes:g} minutes; logs and stores are in {folder}")
    plan = draw_plan(seed, nodes=options.nodes, faults_s=60.0 * options.minutes - BESIDE_FAULTS_S)
    run = Run(plan, folder, tell)
    is_interrupted = False
    try:
        trio.run(partial(run.all, loopback=options.loopback))
    except* KeyboardInterrupt:
        is_interrupted = True
    if is_interrupted:
        print("interrupted: all nodes are stopped")
        shutil.rmtree(folder)
        return INTERRUPTED
    tell("all is checked")
    for name, figure in run.figures().items():
        print(f"  {name:<44}{figure:>12,}")
    if not run.complaints:
        if not options.keep:
            shutil.rmtree(folder)
        print(f"all was well; the same faults again: make chaos SEED={seed}")
        return 0
    print(f"\n{len(run.complaints)} things were not as they must be:")
    for complaint in run.complaints[:COMPLAINTS_SHOWN]:
        print(f"  {complaint}")
    if len(run.complaints) > COMPLAINTS_SHOWN:
        print(f"  ... and {len(run.complaints) - COMPLAINTS_SHOWN} more")
    print(f"logs and stores are in {folder}; the same faults again: make chaos SEED={seed}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
