"""``prime-dht ping``: is a peer there, and how far away?"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import click

from prime_dht.cli import options
from prime_dht.cli.ending import Status, complain
from prime_dht.cli.render import milliseconds, visible
from prime_dht.cli.targets import PEER_OR_ADDRESS, Target
from prime_dht.errors import QueryError, RemoteProtocolError
from prime_dht.ids import peer_text

if TYPE_CHECKING:
    from prime_dht.cli.client import Session
    from prime_dht.node.dht import PrimeDHT

PATIENCE_S = 5.0
"""How long each ping waits for its answer, connecting included."""


@click.command("ping")
@click.argument("target", type=PEER_OR_ADDRESS, metavar="MULTIADDR|PEER-ID")
@click.option("--count", type=options.Count(), default=4, metavar="N", help="How many times. [default: 4]")
@click.option(
    "--interval",
    "interval_s",
    type=options.DURATION,
    default=1.0,
    metavar="DURATION",
    help="From one ping to the next. [default: 1]",
)
@options.asking
def command(session: Session, target: Target, count: int, interval_s: float) -> int:
    """Send requests to a peer and time the answers.

    A full multiaddr is dialled as it is, without joining a swarm; a peer that is named by its id alone is looked up
    first. What is timed is one request and its answer: connecting takes longer and is not counted. Exits with 1 if
    nothing was answered, or nobody knows the peer.

    \b
    Examples:
      prime-dht ping /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo...
      prime-dht ping 12D3Koo... --peer ADDR --count 10 --interval 0.2
    """
    from prime_dht.cli.life import run_until_done

    patient = replace(session, timeout_s=session.timeout_s + count * (interval_s + PATIENCE_S))
    answered = run_until_done(partial(_ping, patient, target, count, interval_s))
    return Status.DONE if answered else Status.NOT_FOUND


async def _ping(session: Session, target: Target, count: int, interval_s: float) -> bool:
    """Ping and print; whether anything was answered."""
    if target.address is not None:
        async with session.opened() as dht:
            return await _ping_each(session, dht, target, count, interval_s)
    async with session.joined() as dht:
        if await dht.find_peer(target.peer) is not None:
            return await _ping_each(session, dht, target, count, interval_s)
    complain(f"not found: nobody who was asked knows the peer {peer_text(target.peer)}")
    return False


async def _ping_each(session: Session, dht: PrimeDHT, target: Target, count: int, interval_s: float) -> bool:
    import trio

    round_trips_s: list[float] = []
    asked = 0
    try:
        for number in range(1, count + 1):
            next_at_s = trio.current_time() + interval_s
            asked = number
            try:
                with trio.fail_after(PATIENCE_S):
                    round_trip_s = await _round_trip_s(dht, target)
            except trio.TooSlowError:
                _show_silence(session, number, f"not within {PATIENCE_S:g} s")
            except (QueryError, RemoteProtocolError) as error:
                _show_silence(session, number, str(error))
            else:
                round_trips_s.append(round_trip_s)
                session.show(
                    {"ping": number, "round_trip_s": round_trip_s}, f"answer {number}: {milliseconds(round_trip_s)} ms"
                )
            if number < count:
                await trio.sleep_until(next_at_s)
    finally:  # also when Ctrl-C ends it, as ping(8) does
        _show_summary(session, asked, round_trips_s)
    return bool(round_trips_s)


async def _round_trip_s(dht: PrimeDHT, target: Target) -> float:
    if target.address is not None and all(known.peer != target.peer for known in dht.peers()):
        await dht.add_peer(target.address)
    return await dht.ping(target.peer)


def _show_silence(session: Session, number: int, reason: str) -> None:
    session.show({"ping": number, "failure": reason}, f"no answer {number}: {visible(reason)}")


def _show_summary(session: Session, asked: int, round_trips_s: list[float]) -> None:
    answered = len(round_trips_s)
    lost = f"{asked} asked, {answered} answered, {100 * (asked - answered) / max(asked, 1):.0f}% lost"
    if not answered:
        session.show({"asked": asked, "answered": 0}, lost)
        return
    least_s, mean_s, most_s = min(round_trips_s), sum(round_trips_s) / answered, max(round_trips_s)
    session.show(
        {"asked": asked, "answered": answered, "min_s": least_s, "avg_s": mean_s, "max_s": most_s},
        f"{lost}; min/avg/max {milliseconds(least_s)}/{milliseconds(mean_s)}/{milliseconds(most_s)} ms",
    )
