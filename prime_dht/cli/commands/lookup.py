"""``prime-dht lookup``: the way to a key or a peer, hop by hop."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from prime_dht.cli import options
from prime_dht.cli.render import brief, milliseconds, table, visible
from prime_dht.cli.targets import KEY_OR_PEER
from prime_dht.errors import QueryError
from prime_dht.events import LookupProgress
from prime_dht.ids import KAD_KEY_BITS, PeerId, is_peer_id, kad_key, peer_text

if TYPE_CHECKING:
    from prime_dht.cli.client import Session
    from prime_dht.kad.candidate import Hop
    from prime_dht.kad.lookup import LookupResult
    from prime_dht.node.feed import Subscription

DISTANCE_DIGITS = 12

_HEADING = f"{'hop':>3}  {'peer':9}  {'named by':9}  {'bits':>4}  {'distance':{DISTANCE_DIGITS}}  {'ms':>7}  outcome"


@click.command("lookup")
@click.argument("target", type=KEY_OR_PEER, metavar="KEY|PEER-ID")
@options.asking
def command(session: Session, target: bytes) -> None:
    """Show the way to a key or a peer, hop by hop.

    It is a lookup of the servers closest to it, shown as it goes. Each line is a peer that was asked: on which hop, who
    had named it, how many leading bits its place has in common with the target's, how the XOR distance between them
    begins, how long the answer took, and what it was. Who failed and was asked once more, where others say that it is,
    may have two lines. Then follow the closest that answered, the nearest first: the first few are the replicas of the
    key. A key that reads like a peer id has to be written as /prime/KEY.

    \b
    Examples:
      prime-dht lookup model:digits --peer /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo...
      prime-dht lookup 12D3KooWLRPJAA5o6Ue7HZ1ZUKzNx1bmXZzHnQXEMNvvTHDsdc1B --json
    """
    from prime_dht.cli.life import run_until_done

    result = run_until_done(partial(_lookup, session, target))
    if not result.closest:
        raise QueryError("nobody that could be asked answered")
    session.show(_ending_as_json(result), _ending_as_text(result))


async def _lookup(session: Session, target: bytes) -> LookupResult:
    """Look up, and print each hop when it ends."""
    from libp2p.peer.id import ID

    from prime_dht.background import background_nursery

    shown: set[tuple[PeerId, str]] = set()  # who failed may be asked once more, and answer then

    def show(hop: LookupProgress) -> None:
        if (hop.peer, hop.failure) not in shown:
            if not shown and not session.as_json:
                session.show({}, _HEADING)
            shown.add((hop.peer, hop.failure))
            session.show(_hop_as_json(hop), _hop_as_text(hop))

    async def show_each(events: Subscription) -> None:
        async for event in events:
            if isinstance(event, LookupProgress) and event.target == kad_key(target):
                show(event)

    async with session.joined() as dht:
        with dht.subscribe() as events:
            async with background_nursery() as nursery:
                nursery.start_soon(show_each, events)
                result = await dht.find_closest(ID(target) if is_peer_id(target) else target)
    for hop in result.path:  # those that nobody waited for any more
        show(_as_it_stood(hop, result))
    return result


def _as_it_stood(hop: Hop, result: LookupResult) -> LookupProgress:
    """A hop when the lookup ended."""
    is_open = hop.answered_at_s is None and not hop.failure
    return LookupProgress(
        target=result.target,
        peer=hop.contact.peer,
        told_by=hop.told_by,
        depth=hop.depth,
        distance=hop.distance,
        elapsed_s=(result.ended_at_s if hop.answered_at_s is None else hop.answered_at_s) - hop.asked_at_s,
        heard_of=hop.heard_of,
        failure="no longer waited for" if is_open else hop.failure,
    )


def _shared_bits(distance: int) -> int:
    return KAD_KEY_BITS - distance.bit_length()


def _distance_digits(distance: int) -> str:
    return f"{distance:0{KAD_KEY_BITS // 4}x}"[:DISTANCE_DIGITS]


def _hop_as_text(hop: LookupProgress) -> str:
    named_by = "our table" if hop.told_by is None else brief(hop.told_by)
    outcome = visible(hop.failure) or f"answered, named {hop.heard_of}"
    return (
        f"{hop.depth:>3}  {brief(hop.peer):9}  {named_by:9}  {_shared_bits(hop.distance):>4}  "
        f"{_distance_digits(hop.distance)}  {milliseconds(hop.elapsed_s):>7}  {outcome}"
    )


def _hop_as_json(hop: LookupProgress) -> dict[str, object]:
    return {
        "hop": hop.depth,
        "peer": peer_text(hop.peer),
        "named_by": None if hop.told_by is None else peer_text(hop.told_by),
        "shared_bits": _shared_bits(hop.distance),
        "distance": f"{hop.distance:0{KAD_KEY_BITS // 4}x}",
        "elapsed_s": hop.elapsed_s,
        "heard_of": hop.heard_of,
        "failure": hop.failure or None,
    }


def _ending_as_text(result: LookupResult) -> str:
    from prime_dht.net.addresses import address_text

    rows = []
    for contact in result.closest:
        distance = contact.kad_key ^ result.target
        addresses = map(address_text, contact.addresses)
        rows.append(
            (peer_text(contact.peer), str(_shared_bits(distance)), _distance_digits(distance), next(addresses, "-"))
        )
    took_s = result.ended_at_s - result.started_at_s
    closest = table(("closest", "bits", "distance", "address"), rows, right=("bits",))
    return f"{result.outcome.value}: {len(result.path)} asked in {milliseconds(took_s)} ms\n{closest}"


def _ending_as_json(result: LookupResult) -> dict[str, object]:
    from prime_dht.net.addresses import address_text

    return {
        "outcome": result.outcome.name.lower(),
        "asked": len(result.path),
        "took_s": result.ended_at_s - result.started_at_s,
        "closest": [
            {
                "peer": peer_text(contact.peer),
                "shared_bits": _shared_bits(contact.kad_key ^ result.target),
                "distance": f"{contact.kad_key ^ result.target:0{KAD_KEY_BITS // 4}x}",
                "addresses": [address_text(address) for address in contact.addresses],
            }
            for contact in result.closest
        ],
    }
