"""``prime-dht health``: is the swarm well, as seen from here?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import click

from prime_dht.cli import options
from prime_dht.cli.ending import Status
from prime_dht.cli.render import milliseconds
from prime_dht.ids import PeerId, peer_text

if TYPE_CHECKING:
    from prime_dht.cli.client import Session
    from prime_dht.node.results import Holding


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a client sees of a swarm when it has joined.

    Attributes:
        peers: servers in its routing table.
        replicas: those of them that can be replicas of values.
        holdings: how much those hold of what they are to store that said so.
        silent: those that did not answer a ping.
        round_trip_s: the median over those that did; ``None`` if none did.
        bucket_sizes: peers per bucket, farthest first.
        node_warnings: what the client itself finds wrong.
    """

    peers: int
    replicas: int
    holdings: Mapping[PeerId, Holding]
    silent: tuple[PeerId, ...]
    round_trip_s: float | None
    bucket_sizes: tuple[int, ...]
    node_warnings: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should look at, one line each; none means healthy.

        >>> silent = (PeerId(bytes.fromhex("0001aa")),)
        >>> view = View(
        ...     peers=2, replicas=2, holdings={}, silent=silent, round_trip_s=0.1, bucket_sizes=(2,), node_warnings=()
        ... )
        >>> view.warnings
        ('1 of 2 peers did not answer: 18M',)
        """
        if not self.silent:
            return self.node_warnings
        names = ", ".join(map(peer_text, self.silent))
        return (*self.node_warnings, f"{len(self.silent)} of {self.peers} peers did not answer: {names}")

    @property
    def settled(self) -> int:
        """How many of the replicas hold all that they are to store; when all do, the swarm has settled."""
        return sum(holding.is_settled for holding in self.holdings.values())


@click.command("health")
@options.asking
def command(session: Session) -> int:
    """Say in plain words whether the swarm is well.

    Joins as a client and looks around. Exits with 0 if all is well, with 1 if there are warnings (fewer servers than a
    value is to have replicas, or some that are known and do not answer), and with 2 if the swarm cannot be reached at
    all.

    \b
    Example:
      prime-dht health --peer /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo... && echo well
    """
    from prime_dht.cli.life import run_until_done

    view = run_until_done(partial(_look, session))
    session.show(_as_json(view), _as_text(view))
    return Status.SOMETHING_WRONG if view.warnings else Status.DONE


async def _look(session: Session) -> View:
    from prime_dht.cli.pinging import ask_each

    async with session.joined() as dht:
        peers = dht.peers()
        answered = await ask_each([known.peer for known in peers], dht.ping)
        replicas = [known.peer for known in peers if known.replicates and known.peer in answered]
        holdings = await ask_each(replicas, dht.holding_of)
        health = await dht.health()
    return View(
        peers=len(peers),
        replicas=sum(known.replicates for known in peers),
        holdings=holdings,
        silent=tuple(known.peer for known in peers if known.peer not in answered),
        round_trip_s=median(answered.values()) if answered else None,
        bucket_sizes=health.bucket_sizes,
        node_warnings=health.warnings,
    )


def _as_text(view: View) -> str:
    buckets = " ".join(map(str, view.bucket_sizes))
    lines = [
        f"peers     {view.peers} known, {view.peers - len(view.silent)} answered, {view.replicas} can be replicas",
        f"settled   {view.settled} of {view.replicas} replicas hold all that they are to store",
        f"answers   {milliseconds(view.round_trip_s)} ms, the median",
        f"buckets   {buckets}, farthest first",
    ]
    lines += [f"warning   {warning}" for warning in view.warnings]
    return "\n".join(lines if view.warnings else [*lines, "healthy"])


def _as_json(view: View) -> dict[str, object]:
    return {
        "healthy": not view.warnings,
        "peers": view.peers,
        "replicas": view.replicas,
        "settled": view.settled == view.replicas,
        "held": {peer_text(peer): [holding.held, holding.sectors] for peer, holding in view.holdings.items()},
        "silent": [peer_text(peer) for peer in view.silent],
        "round_trip_s": view.round_trip_s,
        "bucket_sizes": view.bucket_sizes,
        "warnings": view.warnings,
    }
