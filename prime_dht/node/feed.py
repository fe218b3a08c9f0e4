"""Events to subscribers: each has a bounded queue, and loses events, counted, when it falls behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import trio

from prime_dht.events import Event

QUEUED_EVENTS = 1000


class Subscription:
    """An async iterator of events; ends when the node closes.

    Attributes:
        dropped: events lost because this subscriber was behind by :data:`QUEUED_EVENTS`.
    """

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Event](QUEUED_EVENTS)
        self.dropped = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    def offer(self, event: Event) -> bool:
        """Queue an event; ``False`` if there was no room."""
        try:
            self._send.send_nowait(event)
        except trio.WouldBlock:
            self.dropped += 1
            return False
        return True

    def close(self) -> None:
        """No more events will come; those queued can still be read."""
        self._send.close()


class Feed:
    """Hands every event to every subscription.

    Attributes:
        dropped: events lost over all subscriptions, past ones included.
    """

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self._is_closed = False
        self.dropped = 0

    @property
    def is_heard(self) -> bool:
        """Whether anybody subscribes. Where events are frequent, those that nobody hears need not be made."""
        return bool(self._subscriptions)

    @property
    def missed(self) -> int:
        """Events lost to those who subscribe now."""
        return sum(subscription.dropped for subscription in self._subscriptions)

    def publish(self, event: Event) -> None:
        for subscription in self._subscriptions:
            self.dropped += not subscription.offer(event)

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """Events from here on, until the block ends; none once the feed is closed."""
        subscription = Subscription()
        if self._is_closed:
            subscription.close()
        else:
            self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            subscription.close()

    def close(self) -> None:
        """End all subscriptions, now and to come."""
        self._is_closed = True
        for subscription in self._subscriptions:
            subscription.close()
        self._subscriptions.clear()
