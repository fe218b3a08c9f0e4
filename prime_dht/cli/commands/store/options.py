"""What the subcommands of ``prime-dht store`` share: options, the file they mean, progress."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prime_dht.cli.options import Directory

if TYPE_CHECKING:
    from prime_dht.storage.dump import Progress

data_dir = click.option(
    "--data-dir",
    type=Directory(),
    required=True,
    metavar="DIR",
    envvar="PRIME_DHT_DATA_DIR",
    help="Where the node keeps its data. [env: PRIME_DHT_DATA_DIR]",
)

entries_only = click.option(
    "--entries-only", is_flag=True, help="Only entries, which are signed; nothing that belongs to one node."
)


def store_file(data_dir: Path) -> Path:
    """Where a node with this data directory has its store."""
    from prime_dht.node.open import STORE_FILE

    return data_dir / STORE_FILE


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
