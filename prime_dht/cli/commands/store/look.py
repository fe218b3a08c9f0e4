"""``prime-dht store info`` and ``check``: nothing is changed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prime_dht.cli.commands.store.options import (
    data_dir,
    progress_bar,
    store_file,
)
from prime_dht.cli.ending import Status, show
from prime_dht.cli.logs import log_to_stderr
from prime_dht.cli.options import as_json, verbose
from prime_dht.cli.render import moment, visible
from prime_dht.ids import peer_text

if TYPE_CHECKING:
    from prime_dht.storage.offline import StoreInfo
    from prime_dht.storage.survey import Survey


@click.command("info")
@data_dir
@as_json
@verbose
def info(data_dir: Path, as_json: bool, verbose: int) -> None:
    """Say what is in a store: whose, how much, how old.

    \b
    Example:
      prime-dht store info --data-dir ./data
    """
    from prime_dht.cli.life import run_until_done

    log_to_stderr(logging.WARNING, verbose=verbose)
    path = store_file(data_dir)
    peer_id = _peer_id(data_dir)
    described, surveyed = run_until_done(partial(_look, path))
    text = "\n".join(_lines(path, peer_id, described, surveyed))
    show(_json(path, peer_id, described, surveyed), text, as_json=as_json)


@click.command("check")
@data_dir
@as_json
@verbose
def check(data_dir: Path, as_json: bool, verbose: int) -> int:
    """Check that a store is sound, and print what is wrong with it.

    The database is checked as SQLite does, and each entry against what its publisher signed; also the index of the
    blobs that lie beside it. Exits with 0 if all is well, 1 if something is wrong, 2 if the store cannot be opened.

    \b
    Example:
      prime-dht store check --data-dir ./data
    """
    from prime_dht.cli.life import run_until_done
    from prime_dht.storage import offline

    log_to_stderr(logging.WARNING, verbose=verbose)
    with progress_bar("checking") as progress:
        report = run_until_done(partial(offline.check, store_file(data_dir), progress=progress))
    problems = [*report.problems, *_problems_of_blocks(data_dir)]
    found = "\n".join(visible(" ".join(problem.split())) for problem in problems)
    item = {"entries": report.entries, "problems": problems}
    show(item, found or f"{report.entries:,} entries, all sound", as_json=as_json)
    return Status.SOMETHING_WRONG if problems else Status.DONE


def _problems_of_blocks(data_dir: Path) -> list[str]:
    from prime_dht.node.open import BLOCKS_DIRECTORY
    from prime_dht.storage.blocks_survey import check_index

    return check_index(data_dir / BLOCKS_DIRECTORY)


async def _look(path: Path) -> tuple[StoreInfo, Survey]:
    from prime_dht.node.clock import SystemClock
    from prime_dht.storage import offline
    from prime_dht.storage.survey import survey

    return await offline.describe(path), await survey(path, now_us=SystemClock().now_us())


def _peer_id(data_dir: Path) -> str | None:
    """Of the node whose store it is; ``None`` if the directory has no identity yet. None is made."""
    from prime_dht.net.identity import IDENTITY_FILE, load_or_create_identity, peer_id_of

    path = data_dir / IDENTITY_FILE
    return peer_text(peer_id_of(load_or_create_identity(path))) if os.path.lexists(path) else None


def _json(path: Path, peer_id: str | None, info: StoreInfo, survey: Survey) -> dict[str, object]:
    counts = asdict(info.stats)
    return {
        "path": str(path),
        "schema": info.schema,
        "peer_id": peer_id,
        "network": survey.network,
        "file_bytes": info.file_bytes,
        "free_bytes": info.free_bytes,
        "journal_bytes": info.journal_bytes,
        "entry_bytes": counts.pop("bytes"),
        **counts,
        "expired": survey.expired,
        "oldest_us": survey.oldest_us,
        "newest_us": survey.newest_us,
        "publishers": info.publishers,
        "top_publishers": [
            {"peer_id": peer_text(share.publisher), "entries": share.entries, "bytes": share.bytes}
            for share in survey.top_publishers
        ],
    }


def _lines(path: Path, peer_id: str | None, info: StoreInfo, survey: Survey) -> Iterator[str]:
    stats = info.stats
    yield f"store      {path}, schema {info.schema}"
    yield f"node       {peer_id or 'no identity yet'}"
    yield f"network    {survey.network or 'not known, there are no entries'}"
    journal = f"; {info.journal_bytes:,} bytes more in a journal that was left over" if info.journal_bytes else ""
    yield f"on disk    {info.file_bytes:,} bytes, {info.free_bytes:,} of them free{journal}"
    yield f"entries    {stats.entries:,} under {stats.keys:,} keys, {stats.bytes:,} bytes; {stats.ops:,} are ops"
    yield f"expired    {survey.expired:,} of them, retained so that nothing older rises again"
    if survey.oldest_us is not None and survey.newest_us is not None:
        yield f"created    {moment(survey.oldest_us)} to {moment(survey.newest_us)}"
    yield f"beside     {stats.records:,} records, {stats.providers:,} providers, {stats.peers:,} known peers"
    yield f"publishers {info.publishers:,}{', those with the most bytes:' if survey.top_publishers else ''}"
    for share in survey.top_publishers:
        yield f"  {peer_text(share.publisher)} {share.entries:>9,} entries {share.bytes:>15,} bytes"
