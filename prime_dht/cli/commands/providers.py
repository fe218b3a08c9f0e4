"""``prime-dht providers``: who has some content?"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from prime_dht.cli import options
from prime_dht.cli.ending import Status, complain
from prime_dht.cli.render import visible
from prime_dht.ids import peer_text

if TYPE_CHECKING:
    from prime_dht.cli.client import Session
    from prime_dht.node.results import Provider


@click.command("providers")
@click.argument("cid")
@click.option("--count", type=options.Count(), default=20, metavar="N", help="Look for so many at most. [default: 20]")
@options.asking
def command(session: Session, cid: str, count: int) -> int:
    """Print the peers that have the content of a CID.

    So they say; one address a line. A peer of which no address is known is printed as /p2p/<peer id>. Exits with 1 if
    there is none.

    \b
    Example:
      prime-dht providers bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi --count 5
    """
    from prime_dht.cli.life import run_until_done

    found = run_until_done(partial(_find, session, cid, count))
    for provider in found:
        item = {"peer": peer_text(provider.peer), "addresses": provider.addresses}
        session.show(item, "\n".join(map(visible, full_addresses(provider))))
    if not found:
        complain(f"not found: nobody says that they have {visible(cid)}")
        return Status.NOT_FOUND
    return Status.DONE


def full_addresses(provider: Provider) -> list[str]:
    """Each address with the peer id at its end, as ``--peer`` takes it."""
    end = f"/p2p/{peer_text(provider.peer)}"
    return [address if address.endswith(end) else address + end for address in provider.addresses or ("",)]


async def _find(session: Session, cid: str, count: int) -> list[Provider]:
    from prime_dht.node.multihashes import multihash_of

    multihash_of(cid)  # before anybody is dialled for a typing mistake
    async with session.joined() as dht:
        return await dht.find_providers(cid, count=count)
