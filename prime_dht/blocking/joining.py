"""Joining a swarm, and how others can join after this node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prime_dht.config import Mode, NodeConfig
from prime_dht.errors import QueryError
from prime_dht.events import PeerJoined
from prime_dht.ids import peer_text

if TYPE_CHECKING:
    from prime_dht.node.dht import PrimeDHT

NEIGHBOURS = 8
"""So many of the servers known are named to those who join after this node."""


async def join(dht: PrimeDHT, config: NodeConfig) -> None:
    """Return when a node that is opening knows somebody; or soon if it serves and is named nobody: it is the first, or
    the first to come back.

    Raises:
        QueryError: of the peers named, or remembered by a client, none answers; or a client is named nobody.
    """
    try:
        known = await dht.bootstrap()
    except QueryError:
        if not config.mdns:
            raise
        known = 0
    if known or config.dht.mode is not Mode.CLIENT:
        return
    if not config.mdns:
        raise QueryError("there is nobody to ask: give peers, mdns=True, or a data_dir that remembers some")
    with dht.subscribe() as events:
        while not dht.peers():
            async for event in events:
                if isinstance(event, PeerJoined):
                    break


def ways_in(dht: PrimeDHT) -> tuple[str, ...]:
    """Multiaddrs of nodes through which others can join: this one if it listens, and its neighbours."""
    neighbours = [
        f"{address}/p2p/{peer_text(neighbour.peer)}"
        for neighbour in dht.peers()[:NEIGHBOURS]
        for address in neighbour.addresses
    ]
    return (*dht.addresses(), *neighbours)
