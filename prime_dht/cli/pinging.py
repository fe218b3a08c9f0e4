"""One question to all of the peers that a node knows: is each there, and how far away; how much does it hold?"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import TypeVar

import trio

from prime_dht.errors import QueryError, RemoteProtocolError
from prime_dht.ids import PeerId

ASKED_AT_ONCE = 16

PATIENCE_S = 3.0
"""How long a peer has to answer, connecting included: a dead one must not hold up what is said of the others."""

T = TypeVar("T")


async def ask_each(peers: Collection[PeerId], ask: Callable[[PeerId], Awaitable[T]]) -> dict[PeerId, T]:
    """What each peer answered; those that did not answer are left out."""
    answers: dict[PeerId, T] = {}
    places = trio.CapacityLimiter(ASKED_AT_ONCE)

    async def ask_one(peer: PeerId) -> None:
        async with places:
            with trio.move_on_after(PATIENCE_S), suppress(QueryError, RemoteProtocolError):
                answers[peer] = await ask(peer)

    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(ask_one, peer)
    return answers
