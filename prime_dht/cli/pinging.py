"""Which of the peers that a node knows are there, and how far away."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

import trio

from prime_dht.errors import QueryError, RemoteProtocolError
from prime_dht.ids import PeerId
from prime_dht.node.dht import PrimeDHT

PINGS_AT_ONCE = 16

PATIENCE_S = 3.0
"""How long a peer has to answer, connecting included: a dead one must not hold up what is said of the others."""


async def round_trips_s(dht: PrimeDHT, peers: Collection[PeerId]) -> dict[PeerId, float]:
    """How long each peer took to answer one request, in seconds; those that did not answer are left out."""
    answered: dict[PeerId, float] = {}
    places = trio.CapacityLimiter(PINGS_AT_ONCE)

    async def ping(peer: PeerId) -> None:
        async with places:
            with trio.move_on_after(PATIENCE_S), suppress(QueryError, RemoteProtocolError):
                answered[peer] = await dht.ping(peer)

    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(ping, peer)
    return answered
