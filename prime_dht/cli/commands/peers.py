"""``prime-dht peers``: who is in the swarm, as seen from here, or as a node that does not run remembers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prime_dht.cli import options
from prime_dht.cli.render import milliseconds, span, table
from prime_dht.errors import StorageError
from prime_dht.ids import US_PER_S, PeerId, peer_text

if TYPE_CHECKING:
    from prime_dht.cli.client import Session
    from prime_dht.node.results import PeerStatus
    from prime_dht.storage.base import KnownPeer


@click.command("peers")
@click.option("--stored", is_flag=True, help="Show whom the node in --data-dir remembers; it must not run meanwhile.")
@options.asking
def command(session: Session, stored: bool) -> None:
    """List the peers that a client meets when it joins.

    The nearest come first, each with how far away it is. Every node knows its own part of a swarm, so this is the view
    of one that has just come, with the identity of --data-dir if that is given. "bucket" counts the leading bits that a
    peer's place shares with it. "found" says how: by --peer (bootstrap, manual), on the local network (mdns), or from
    another peer (kad, identify).

    Nobody is asked with --stored, or with --data-dir but no --peer and no --mdns: then it lists the peers through
    which the node in that directory will join when it runs again, those heard from last first.

    \b
    Examples:
      prime-dht peers --peer /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo...
      prime-dht peers --stored --data-dir ./data
    """
    from prime_dht.cli.life import run_until_done

    data_dir = session.config.data_dir
    if stored and data_dir is None:
        raise click.UsageError("--stored needs --data-dir: the directory of the node that remembers")
    if data_dir is not None and (stored or not (session.config.peers or session.config.mdns)):
        run_until_done(partial(_show_remembered, session, data_dir))
    else:
        run_until_done(partial(_show_met, session))


async def _show_met(session: Session) -> None:
    from prime_dht.cli.pinging import ask_each
    from prime_dht.node.clock import SystemClock

    async with session.joined() as dht:
        round_trip_s = await ask_each([known.peer for known in dht.peers()], dht.ping)
        peers = dht.peers()  # those that did not answer may be gone from it
    now_us = SystemClock().now_us()
    if not session.as_json:
        session.show({}, _table_of_met(peers, round_trip_s, now_us))
        return
    for known in peers:
        session.show(_met_as_json(known, round_trip_s.get(known.peer)), "")


async def _show_remembered(session: Session, data_dir: Path) -> None:
    from prime_dht.node.clock import SystemClock
    from prime_dht.node.open import STORE_FILE
    from prime_dht.storage.sqlite import SQLiteBackend

    path = data_dir / STORE_FILE
    if not path.exists():
        raise StorageError(f"{path}: there is no store")
    async with await SQLiteBackend.open(path) as store:
        peers = await store.peers()
    now_us = SystemClock().now_us()
    if not session.as_json:
        session.show({}, _table_of_remembered(peers, now_us))
        return
    for known in peers:
        session.show(_remembered_as_json(known), "")


def _table_of_met(peers: Sequence[PeerStatus], round_trip_s: Mapping[PeerId, float], now_us: int) -> str:
    columns = ("peer", "bucket", "ms", "found", "first", "last", "replica", "address")
    rows = [
        (
            peer_text(known.peer),
            str(known.bucket),
            milliseconds(round_trip_s.get(known.peer)),
            known.source or "-",
            _ago(known.first_seen_us, now_us),
            _ago(known.last_seen_us, now_us),
            "yes" if known.replicates else "no",
            " ".join(known.addresses) or "-",
        )
        for known in peers
    ]
    return table(columns, rows, right=("bucket", "ms"))


def _table_of_remembered(peers: Sequence[KnownPeer], now_us: int) -> str:
    columns = ("peer", "found", "first", "last", "address")
    rows = [
        (
            peer_text(known.peer),
            known.source or "-",
            _ago(known.first_seen_us, now_us),
            _ago(known.last_seen_us, now_us),
            " ".join(_addresses(known)),
        )
        for known in peers
    ]
    return table(columns, rows)


def _met_as_json(known: PeerStatus, round_trip_s: float | None) -> dict[str, object]:
    return {
        "peer": peer_text(known.peer),
        "addresses": known.addresses,
        "bucket": known.bucket,
        "round_trip_s": round_trip_s,
        "source": known.source,
        "first_seen_us": known.first_seen_us,
        "last_seen_us": known.last_seen_us,
        "connected": known.connected,
        "replicates": known.replicates,
    }


def _remembered_as_json(known: KnownPeer) -> dict[str, object]:
    return {
        "peer": peer_text(known.peer),
        "addresses": _addresses(known),
        "source": known.source,
        "first_seen_us": known.first_seen_us,
        "last_seen_us": known.last_seen_us,
    }


def _addresses(known: KnownPeer) -> list[str]:
    from prime_dht.net.addresses import address_text

    return [address_text(address) for address in known.addresses]


def _ago(time_us: int | None, now_us: int) -> str:
    return "-" if time_us is None else f"{span(max(0, now_us - time_us) / US_PER_S)} ago"
