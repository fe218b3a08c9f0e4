"""``prime-dht store export`` and ``import``: a store carried elsewhere, as a dump (:mod:`prime_dht.storage.dump`)."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prime_dht.cli.commands.store.options import data_dir, entries_only, progress_bar, store_file
from prime_dht.cli.ending import Status, complain, show
from prime_dht.cli.logs import log_to_stderr
from prime_dht.cli.options import STREAM, FileOrStream, admitting, as_json, verbose
from prime_dht.durability import make_directory
from prime_dht.errors import ConfigError

if TYPE_CHECKING:
    from prime_dht.config import DhtConfig
    from prime_dht.storage.dump import ImportReport

REFUSALS_SHOWN = 10


@click.command("export")
@data_dir
@click.option(
    "--out", type=FileOrStream(), default="-", metavar="FILE", help="Write to this file. [default: -, standard output]"
)
@click.option("--force", is_flag=True, help="Replace the file if there is one.")
@entries_only
@as_json
@verbose
def export(data_dir: Path, out: Path, force: bool, entries_only: bool, as_json: bool, verbose: int) -> None:
    """Write what a store holds as lines of JSON.

    `import` reads them into any other store. The file appears when it is complete, and only its owner can read it.

    \b
    Examples:
      prime-dht store export --data-dir ./data --out backup.jsonl
      prime-dht store export --data-dir ./data --entries-only | zstd > entries.jsonl.zst
    """
    from prime_dht.cli.commands.store.files import dump_to_write
    from prime_dht.cli.life import run_until_done
    from prime_dht.node.clock import SystemClock
    from prime_dht.storage import offline

    log_to_stderr(logging.WARNING, verbose=verbose)
    if as_json and out == STREAM:
        raise click.UsageError("--json needs --out FILE: without it the dump is on standard output")
    with dump_to_write(out, force=force) as file, progress_bar("exporting") as progress:
        now_us = SystemClock().now_us()
        work = partial(offline.export, now_us=now_us, entries_only=entries_only, progress=progress)
        lines = run_until_done(partial(work, store_file(data_dir), file))
    if out != STREAM:
        show({"path": str(out), "lines": lines}, f"{lines:,} lines written to {out}", as_json=as_json)


@click.command("import")
@click.argument("file", type=FileOrStream())
@data_dir
@entries_only
@admitting
@as_json
@verbose
def import_(file: Path, data_dir: Path, entries_only: bool, dht: DhtConfig, as_json: bool, verbose: int) -> int:
    """Read into a store what `export` wrote.

    FILE may be - for standard input. The store is made if there is none. In each slot the newer entry stands, so
    importing twice, or again after an interruption, is the same as once. Entries are verified as if a peer had sent
    them; if the node's limits are not the usual ones, name its configuration with --config. The rest is not signed: of
    somebody you do not trust take --entries-only. Exits with 1 if something was not taken, and says what and why.

    \b
    Examples:
      prime-dht store import --data-dir ./data backup.jsonl
      zstd -dc entries.jsonl.zst | prime-dht store import --data-dir ./data -
    """
    from prime_dht.cli.commands.store.files import dump_to_read
    from prime_dht.cli.life import run_until_done
    from prime_dht.node.clock import SystemClock
    from prime_dht.storage import offline

    log_to_stderr(logging.WARNING, verbose=verbose)
    with dump_to_read(file) as dump, progress_bar("importing") as progress:
        _make(data_dir)
        now_us = SystemClock().now_us()
        judging = partial(offline.import_, now_us=now_us, limits=dht.limits, unit_us=dht.partition.unit_us)
        work = partial(judging, entries_only=entries_only, progress=progress)
        report = run_until_done(partial(work, store_file(data_dir), dump))
    show(_json(report), _summary(report), as_json=as_json)
    if not as_json:
        for line in _shortfalls(report):
            complain(line)
    return Status.DONE if report.is_whole and not report.refused else Status.SOMETHING_WRONG


def _make(data_dir: Path) -> None:
    try:
        make_directory(data_dir)
    except OSError as error:
        raise ConfigError(f"{data_dir}: {error.strerror}") from error


def _json(report: ImportReport) -> dict[str, object]:
    inserted, duplicate, superseded = _entries(report)
    return {
        "inserted": inserted,
        "duplicate": duplicate,
        "superseded": superseded,
        "others": dict(report.others),
        "refused": report.refused,
        "refusals": [{"line": refusal.line, "reason": refusal.reason} for refusal in report.refusals],
        "whole": report.is_whole,
    }


def _summary(report: ImportReport) -> str:
    """What became of the lines of a dump, by the name they have there."""
    inserted, duplicate, superseded = _entries(report)
    lines = [f"entry: {inserted:,} taken, {duplicate:,} there already, {superseded:,} older than what is there"]
    lines += [f"{name}: {count:,} taken" for name, count in sorted(report.others.items())]
    return "\n".join((*lines, f"refused: {report.refused:,}"))


def _entries(report: ImportReport) -> tuple[int, int, int]:
    """How many were inserted, were there already, or are superseded by what is there."""
    from prime_dht.storage.base import PutOutcome

    inserted, duplicate, superseded = (
        report.outcomes.get(outcome, 0)
        for outcome in (PutOutcome.INSERTED, PutOutcome.DUPLICATE, PutOutcome.SUPERSEDED)
    )
    return inserted, duplicate, superseded


def _shortfalls(report: ImportReport) -> list[str]:
    """What a person should know of an import that did not take everything; nothing if it did."""
    shown = report.refusals[:REFUSALS_SHOWN]
    lines = [f"line {refusal.line:,} was refused: {refusal.reason}" for refusal in shown]
    if report.refused > len(shown):
        lines.append(f"{report.refused - len(shown):,} more were refused")
    if not report.is_whole:
        lines.append("the dump does not end as it should: it was cut short, or changed")
    return lines
