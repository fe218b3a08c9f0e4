"""What the subcommands of ``prime-dht store`` share: options, the file they mean, results as JSON, progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prime_dht.cli.ending import emit

if TYPE_CHECKING:
    from prime_dht.storage.dump import Progress

SOMETHING_WRONG = 1
"""The exit status of a check that found something, and of an import that left something out."""

data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    envvar="PRIME_DHT_DATA_DIR",
    help="Where the node keeps its data. [env: PRIME_DHT_DATA_DIR]",
)

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as one line of JSON.")

entries_only = click.option(
    "--entries-only", is_flag=True, help="Only entries, which are signed; nothing that belongs to one node."
)


def store_file(data_dir: Path) -> Path:
    """Where a node with this data directory has its store."""
    from prime_dht.node.open import STORE_FILE

    return data_dir / STORE_FILE


def emit_json(result: Mapping[str, object]) -> None:
    """Print a result for programs."""
    emit(json.dumps(result).encode() + b"\n")


@contextmanager
def progress_bar(label: str) -> Iterator[Progress | None]:
    """What shows progress on standard error; ``None`` if that is no terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=1, label=label, file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield show
