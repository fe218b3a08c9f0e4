"""``prime-dht sync``: one round of sync with a node."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from prime_dht.cli import options
from prime_dht.cli.ending import Status
from prime_dht.cli.render import brief, visible
from prime_dht.ids import peer_text

if TYPE_CHECKING:
    from prime_dht.cli.client import Session
    from prime_dht.node.rounds import SyncReport
    from prime_dht.sync.actions import Outcome


@click.command("sync")
@click.argument("address", type=options.PeerAddress(), metavar="MULTIADDR")
@click.option("--dry-run", is_flag=True, help="Only compare: nothing is stored, here or there.")
@options.asking
def command(session: Session, address: str, dry_run: bool) -> int:
    """Compare the store in the data directory with a node's, and give each what it lacks.

    That is what nodes do among themselves all the time, once. It says in how many sectors of the keyspace both store
    entries, how many entries only one of them had, what was moved, and what the comparison took on the wire. Without
    --data-dir this side is an empty store, which is gone afterwards. A node of another network, or with another unit,
    factor, number of sectors or longest life of entries, refuses and says why. Exits with 1 if something is left to do,
    which after --dry-run is all that only one side had.

    \b
    Examples:
      prime-dht sync /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo... --dry-run
      prime-dht sync /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo... --data-dir ./data
    """
    from prime_dht.cli.life import run_until_done

    report = run_until_done(partial(_sync, session, address, dry_run=dry_run))
    _show(session, report)
    return Status.DONE if is_equal(report.outcome) else Status.SOMETHING_WRONG


def is_equal(outcome: Outcome) -> bool:
    """Whether nothing is left to do; a dry run does nothing of what there is."""
    differs = outcome.only_ours > 0 or outcome.only_theirs > 0
    return outcome.ending.value == "equal" or (outcome.ending.value == "compared" and not differs)


async def _sync(session: Session, address: str, *, dry_run: bool) -> SyncReport:
    async with session.opened() as dht:
        return await dht.sync(await dht.add_peer(address), dry_run=dry_run)


def _show(session: Session, report: SyncReport) -> None:
    outcome, traffic = report.outcome, report.traffic
    reasons = {**outcome.declined, **outcome.postponed}
    sectors = 0 if outcome.common is None else len(outcome.common)
    lines = [
        f"{outcome}, {sectors} sectors, with {brief(report.peer)}",
        f"  only here {outcome.only_ours}, only there {outcome.only_theirs}",
        f"  entries: {outcome.entries_sent} sent, {outcome.entries_received} received, {outcome.stored} stored, "
        f"{outcome.superseded} superseded",
        f"  sent {traffic.bytes_sent} bytes, messages: {traffic.messages_sent}; "
        f"received {traffic.bytes_received} bytes, messages: {traffic.messages_received}",
    ]
    lines += [f"  not taken: {count} ({visible(reason)})" for reason, count in reasons.items()]
    if outcome.refusal is not None:
        detail = f" has {visible(outcome.refusal.text)}" if outcome.refusal.text else ""
        lines = [f"{outcome}: {brief(report.peer)}{detail}"]
    session.show(
        {
            "peer": peer_text(report.peer),
            "ending": outcome.ending.value,
            "sectors": sectors,
            "only_here": outcome.only_ours,
            "only_there": outcome.only_theirs,
            "entries_sent": outcome.entries_sent,
            "entries_received": outcome.entries_received,
            "stored": outcome.stored,
            "superseded": outcome.superseded,
            "declined": dict(outcome.declined),
            "postponed": dict(outcome.postponed),
            "refusal": None if outcome.refusal is None else outcome.refusal.reason.value,
            "refusal_detail": None if outcome.refusal is None else outcome.refusal.text,
            "bytes_sent": traffic.bytes_sent,
            "bytes_received": traffic.bytes_received,
            "messages_sent": traffic.messages_sent,
            "messages_received": traffic.messages_received,
            "elapsed_s": report.seconds,
        },
        "\n".join(lines),
    )
