"""``python -m tests.bench``: run the suites, print each table as soon as it is there, write all of them as JSON."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
from collections.abc import Awaitable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import trio

from .blob_fetch import measure_blobs
from .join import measure_join
from .kad_dht import measure_kad_dht
from .lookup_simulator import measure_lookups
from .ml import measure_ml
from .operations import measure_operations
from .partition import measure_partition
from .storage import measure_storage
from .streams import measure_streams
from .sync import measure_sync
from .tables import Cell, Table, render


class Suite(Protocol):
    """Measures, and returns tables; ``quick`` only shows that it works."""

    def __call__(self, *, quick: bool) -> Awaitable[list[Table]]: ...


SUITES: dict[str, Suite] = {
    "join": measure_join,  # first: see there
    "operations": measure_operations,
    "kad_dht": measure_kad_dht,
    "streams": measure_streams,
    "storage": measure_storage,
    "partition": measure_partition,
    "sync": measure_sync,
    "blobs": measure_blobs,
    "ml": measure_ml,
    "lookups": measure_lookups,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a moment of each suite, to see that it works")
    parser.add_argument("--only", action="append", choices=SUITES, help="this suite alone; may be given again")
    parser.add_argument("--json", type=Path, default=Path("bench/bench.json"), help="where results go (%(default)s)")
    options = parser.parse_args(arguments)
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)  # kad_dht's hosts log the errors that ours prevent
    environment = _environment()
    print(", ".join(f"{name} {value}" for name, value in environment.items()))
    tables = trio.run(_run, options.only or list(SUITES), options.quick)
    results = {
        "environment": environment,
        "quick": options.quick,
        "tables": {table.name: asdict(table) for table in tables},
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print(f"\nwritten to {options.json}")


async def _run(names: Sequence[str], quick: bool) -> list[Table]:
    tables: list[Table] = []
    for name in names:
        for table in await SUITES[name](quick=quick):
            print(f"\n{render(table)}", flush=True)
            tables.append(table)
    return tables


def _environment() -> dict[str, Cell]:
    packages = ("libp2p", "trio", "pynacl", "cryptography", "protobuf")
    return {
        "CPUs": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
        "Python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
