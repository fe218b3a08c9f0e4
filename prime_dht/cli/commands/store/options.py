"""What the subcommands of ``prime-dht store`` share: options, the file they mean, progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import click

from prime_dht.cli.options import Directory
from prime_dht.cli.progress import bar_of, can_draw, draw
from prime_dht.cli.render import span

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
    """What shows progress on standard error; ``None`` if none can be drawn there."""
    if not can_draw():
        yield None
        return
    shown, began_s = "", monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown
        text = progress_text(label, done, total, took_s=monotonic() - began_s)
        if text != shown:
            shown = text
            draw(text)

    try:
        yield show
    finally:
        if shown:
            draw(shown, end="\n")


def progress_text(label: str, done: int, total: int, *, took_s: float) -> str:
    """How far something is that goes on as it began.

    >>> progress_text("importing", 3, 4, took_s=90), progress_text("importing", 4, 4, took_s=120)
    ('importing  [#######---]  75%  30 s left', 'importing  [##########]  100%')
    """
    left = (f"{span(took_s * (total - done) / done)} left",) if 0 < done < total else ()
    return "  ".join((label, *bar_of(done, total), *left))
