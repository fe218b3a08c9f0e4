"""A node for the length of one command: a client that joins, asks and leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from prime_dht.config import DhtConfig, Mode, NodeConfig
from prime_dht.errors import QueryError, RemoteProtocolError
from prime_dht.node.dht import PrimeDHT
from prime_dht.node.open import open_node


@asynccontextmanager
async def joined_client(peers: Sequence[str], *, data_dir: Path | None, timeout_s: float) -> AsyncIterator[PrimeDHT]:
    """A client that has joined through the first of ``peers`` that answers, or those that ``data_dir`` remembers.

    Raises:
        QueryError: there is nobody to join through, nobody answers, or the block was not done within ``timeout_s``.
    """
    config = NodeConfig(listen=(), data_dir=data_dir, dht=DhtConfig(mode=Mode.CLIENT, operation_timeout_s=timeout_s))
    with trio.move_on_after(timeout_s) as waiting:
        async with open_node(config) as dht:
            await _join(dht, peers)
            yield dht
    if waiting.cancelled_caught:
        raise QueryError(f"not done within {timeout_s:g} s (--timeout)")


async def _join(dht: PrimeDHT, peers: Sequence[str]) -> None:
    failures: list[str] = []

    async def meet(address: str) -> None:
        try:
            await dht.add_peer(address)
        except (QueryError, RemoteProtocolError) as error:
            failures.append(str(error))
        else:
            nursery.cancel_scope.cancel()  # one is enough; the others may be dead

    async with trio.open_nursery() as nursery:
        for address in peers:
            nursery.start_soon(meet, address)
    if not await dht.bootstrap():
        raise QueryError("; ".join(failures) or "no node to ask: give --peer an address that `prime-dht run` prints")
