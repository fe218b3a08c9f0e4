"""What a running node logs of its peers' coming and going, so that a swarm of hundreds does not flood the log.

The first ``TOLD_SINGLY`` that come or go in an interval of ``SUMMARY_EVERY_S`` have a line each; for the rest, one line
at its end says how many there were. The node itself logs each of them at DEBUG.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, Callable

import trio

from prime_dht.events import EntriesEvicted, Event, PeerJoined, PeerLeft, SyncFinished
from prime_dht.ids import PeerId, peer_text, short

TOLD_SINGLY = 10
SUMMARY_EVERY_S = 60.0

logger = logging.getLogger(__name__)


async def log_arrivals(events: AsyncIterable[Event], known: Callable[[], int]) -> None:
    """Log what a node tells of its peers, until it tells no more. ``known`` counts those in its routing table."""
    arrivals = Arrivals(known)

    async def sum_up() -> None:
        while True:
            await trio.sleep(SUMMARY_EVERY_S)
            arrivals.sum_up()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sum_up)
        async for event in events:
            arrivals.heard(event)
        nursery.cancel_scope.cancel()


class Arrivals:
    """Counts what happened since the last summary, and logs it."""

    def __init__(self, known: Callable[[], int]) -> None:
        self._known = known
        self._begin()

    def heard(self, event: Event) -> None:
        """Log an event if it is one of the first, and count it."""
        match event:
            case PeerJoined(peer=peer, addresses=addresses):
                self._joined += 1
                self._tell(peer, "joined", ", ".join(addresses) or "its address is not known", addresses=addresses)
            case PeerLeft(peer=peer, reason=reason):
                self._left += 1
                self._tell(peer, "left", f"{reason}; it is back when it answers again", reason=reason)
            case EntriesEvicted(op_ids=op_ids):
                self._evicted += len(op_ids)
            case SyncFinished() if event.stored or event.sent or event.declined:
                _tell_of_round(event)
            case _:
                pass

    def sum_up(self) -> None:
        """Log what was not told singly, and begin again."""
        if self._joined + self._left > TOLD_SINGLY:
            counts = {"known": self._known(), "joined": self._joined, "left": self._left}
            message = "%(known)d peers known; %(joined)d joined and %(left)d left in the last minute"
            logger.info(message, counts, extra=counts)
        if self._evicted:
            logger.warning(
                "the store is full: %d entries went to make room in the last minute; raise max_store_bytes or "
                "max_store_entries, or run more nodes",
                self._evicted,
            )
        self._begin()

    def _begin(self) -> None:
        self._joined = self._left = self._evicted = 0

    def _tell(self, peer: PeerId, what: str, more: str, **fields: object) -> None:
        if self._joined + self._left <= TOLD_SINGLY:
            known = self._known()
            logger.info(
                "peer %s %s (%d known): %s",
                short(peer),
                what,
                known,
                more,
                extra={"event": f"peer_{what}", "peer": peer_text(peer), "known": known, **fields},
            )


def _tell_of_round(event: SyncFinished) -> None:
    """A round that moved something has a line."""
    logger.info(
        "synced with peer %s: %s; %d entries came, %d went, %d declined; %d bytes sent, %d received",
        short(event.peer),
        event.ending,
        event.stored,
        event.sent,
        event.declined,
        event.bytes_sent,
        event.bytes_received,
        extra={
            "event": "sync",
            "peer": peer_text(event.peer),
            "ending": event.ending,
            "stored": event.stored,
            "sent": event.sent,
            "declined": event.declined,
        },
    )
