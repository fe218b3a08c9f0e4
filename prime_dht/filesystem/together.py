"""Several operations of a node at the same time, as one call of the thread that waits for them.

Futures would do that too, but Ctrl-C ends a wait for one without ending what it is of (:mod:`prime_dht.blocking.call`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

import trio

from prime_dht.errors import PrimeDHTError

if TYPE_CHECKING:
    from prime_dht.blocking import BlockingDHT
    from prime_dht.blocking.call import Work
    from prime_dht.node import PrimeDHT

T = TypeVar("T")

AT_ONCE = 64
"""Operations under way at a time."""


def together(dht: BlockingDHT, works: Iterable[Work[T]]) -> list[T | PrimeDHTError | OSError]:
    """Carry them all out, whichever of them fail.

    Returns:
        what each has returned, or raised, in their order.
    """
    works = list(works)
    outcomes: dict[int, T | PrimeDHTError | OSError] = {}

    async def carry_out(node: PrimeDHT) -> None:
        places = trio.CapacityLimiter(AT_ONCE)

        async def one(index: int, work: Work[T]) -> None:
            async with places:
                try:
                    outcomes[index] = await work(node)
                except (PrimeDHTError, OSError) as error:
                    outcomes[index] = error

        async with trio.open_nursery() as nursery:
            for index, work in enumerate(works):
                nursery.start_soon(one, index, work)

    if works:
        try:
            dht.call(carry_out)
        except PrimeDHTError as error:  # there is no node to carry them out
            return [error] * len(works)
    return [outcomes[index] for index in range(len(works))]
