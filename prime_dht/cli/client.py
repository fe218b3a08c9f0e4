"""A node for the length of one command: a client that joins, asks and leaves.

Like the command line itself this module is light: the node is imported when it is opened.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from prime_dht.cli.ending import show
from prime_dht.errors import QueryError, RemoteProtocolError

if TYPE_CHECKING:
    import trio

    from prime_dht.config import NodeConfig
    from prime_dht.node.dht import PrimeDHT

FIND_LOCALLY_S = 10.0
"""How long mDNS gets to find the first node, at most; half of the timeout if that is less."""


class Patience:
    """The deadline of a command. One that transfers a blob, however large, has that much time since something moved.

    Attributes:
        has_moved: whether there was any.
    """

    def __init__(self) -> None:
        self.has_moved = False
        self._waiting: trio.CancelScope | None = None

    def begin(self, waiting: trio.CancelScope) -> None:
        """The command has begun, and this is what ends it."""
        self._waiting = waiting

    def moved(self, timeout_s: float) -> None:
        """Something has moved, and the next is to within so many seconds."""
        import trio

        assert self._waiting is not None
        self.has_moved = True
        self._waiting.deadline = trio.current_time() + timeout_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What the options of :func:`prime_dht.cli.options.asking` ask for.

    Attributes:
        config: a client's: it listens nowhere, and each operation ends within ``timeout_s``.
        timeout_s: for the whole command; for one that transfers a blob, without anything that moves.
        as_json: whether results are printed for programs.
        verbose: how often ``-v`` was given.
        patience: the deadline.
    """

    config: NodeConfig
    timeout_s: float
    as_json: bool
    verbose: int
    patience: Patience = field(default_factory=Patience, compare=False)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[PrimeDHT]:
        """A client that has joined nobody yet.

        Raises:
            QueryError: the block was not done within ``timeout_s``, or nothing has moved for so long.
        """
        import trio

        from prime_dht.node.open import open_node

        knows_somebody = False
        with trio.move_on_after(self.timeout_s) as waiting:
            self.patience.begin(waiting)
            # Without its peers: the node would wait for all of them, dead ones too, where the first is enough.
            async with open_node(replace(self.config, peers=())) as dht:
                try:
                    yield dht
                finally:
                    knows_somebody = bool(dht.peers())
        if waiting.cancelled_caught and self.patience.has_moved:
            raise QueryError(f"nothing has moved for {self.timeout_s:g} s (--timeout)")
        if waiting.cancelled_caught:
            silence = "" if knows_somebody else ", and no peer has answered"
            raise QueryError(f"not done within {self.timeout_s:g} s (--timeout){silence}")

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[PrimeDHT]:
        """A client that has joined: through the first peer that answers, or those that its data directory remembers.

        Raises:
            QueryError: there is nobody to join through, nobody answers, or the block was not done within ``timeout_s``.
        """
        async with self.opened() as dht:
            await self._join(dht)
            yield dht

    def show(self, item: Mapping[str, object], text: str) -> None:
        """Print one result on standard output: as a line of JSON if that was asked for, else as text.

        Args:
            item: for programs; bytes in it are for the caller to encode.
            text: for people: any number of lines, the last newline left out. Nothing is printed if it is empty.
        """
        show(item, text, as_json=self.as_json)

    async def _join(self, dht: PrimeDHT) -> None:
        import trio

        failures: list[str] = []

        async def meet(address: str) -> None:
            try:
                await dht.add_peer(address)
            except (QueryError, RemoteProtocolError) as error:
                failures.append(str(error))
            else:
                nursery.cancel_scope.cancel()  # one is enough; the others may be dead

        async with trio.open_nursery() as nursery:
            for address in self.config.peers:
                nursery.start_soon(meet, address)
        try:
            if await dht.bootstrap():
                return
        except QueryError as error:  # of those that are remembered, nobody answers
            failures.append(str(error))
        if not self.config.mdns:
            raise QueryError(
                "; ".join(failures) or "no node to ask: give --peer an address that `prime-dht run` prints, or --mdns"
            )
        patience_s = min(FIND_LOCALLY_S, self.timeout_s / 2)
        with trio.move_on_after(patience_s) as waiting:
            await first_peer(dht)
        if waiting.cancelled_caught:
            network = self.config.dht.network_id
            failures.append(f"no node of network {network} was found on the local network in {patience_s:g} s")
            raise QueryError("; ".join(failures))
        await dht.bootstrap()  # to meet the others, whom that one knows


async def first_peer(dht: PrimeDHT) -> None:
    """Wait until a node that is joining knows somebody."""
    from prime_dht.events import PeerJoined

    if dht.peers():
        return
    with dht.subscribe() as events:
        async for event in events:
            if isinstance(event, PeerJoined):
                return
