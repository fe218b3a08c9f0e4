"""Events of a node, for a thread that waits for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Self

from prime_dht.blocking.call import ClosedError
from prime_dht.blocking.node_thread import NodeThread
from prime_dht.errors import LocalProtocolError
from prime_dht.events import Event

if TYPE_CHECKING:
    from prime_dht.node.dht import PrimeDHT
    from prime_dht.node.feed import Subscription


class Events:
    """An iterator of events that waits for each; ends when the node closes. See :meth:`BlockingDHT.subscribe`."""

    def __init__(self, node: NodeThread, subscription: Subscription) -> None:
        self._node = node
        self._subscription = subscription

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        event = self.next()
        if event is None:
            raise StopIteration
        return event

    def next(self, *, timeout: float | None = None) -> Event | None:
        """The next event, or ``None`` if there will be no more.

        Raises:
            QueryError: none came within ``timeout`` seconds.
        """

        async def receive(_: PrimeDHT) -> Event | None:
            return await anext(self._subscription, None)

        try:
            return self._node.wait(receive, timeout_s=timeout)
        except ClosedError:
            return None

    @property
    def dropped(self) -> int:
        """Events lost because nobody took them in time."""
        return self._subscription.dropped


@contextmanager
def subscribed(node: NodeThread) -> Iterator[Events]:
    """Events from here on, until the block ends."""

    async def begin(dht: PrimeDHT) -> tuple[AbstractContextManager[Subscription], Subscription]:
        context = dht.subscribe()
        return context, context.__enter__()

    async def finish(_: PrimeDHT) -> None:
        context.__exit__(None, None, None)

    context, subscription = node.wait(begin)
    try:
        yield Events(node, subscription)
    finally:
        with suppress(LocalProtocolError):  # the node has closed, and its feed with it; or it is a parent's
            node.wait(finish)
