"""When this node heard from a peer first and last, across restarts. Bounded: who was silent longest is forgotten."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from prime_dht.ids import PeerId, TimestampUs

MAX_ACQUAINTANCES = 20_000


@dataclass(slots=True)
class Acquaintance:
    """Times of the calendar, which its owner may set: ``last_seen_us`` can lie before ``first_seen_us``."""

    first_seen_us: TimestampUs
    last_seen_us: TimestampUs


class Acquaintances:
    """See the module.

    >>> known = Acquaintances()
    >>> known.heard(PeerId(b"peer"), TimestampUs(5))
    >>> known.heard(PeerId(b"peer"), TimestampUs(7))
    >>> known.remember(PeerId(b"peer"), first_seen_us=TimestampUs(1), last_seen_us=TimestampUs(2))
    >>> known.get(PeerId(b"peer"))
    Acquaintance(first_seen_us=1, last_seen_us=7)
    """

    def __init__(self) -> None:
        self._peers: OrderedDict[PeerId, Acquaintance] = OrderedDict()  # heard from longest ago first

    def heard(self, peer: PeerId, now_us: TimestampUs) -> None:
        """A peer sent something."""
        known = self._peers.get(peer)
        if known is None:
            self._peers[peer] = Acquaintance(now_us, now_us)
            if len(self._peers) > MAX_ACQUAINTANCES:
                self._peers.popitem(last=False)
        else:
            known.last_seen_us = now_us
            self._peers.move_to_end(peer)

    def remember(self, peer: PeerId, *, first_seen_us: TimestampUs, last_seen_us: TimestampUs) -> None:
        """This is what was known of a peer when the node stopped."""
        known = self._peers.get(peer)
        if known is not None:
            known.first_seen_us = first_seen_us
        elif len(self._peers) < MAX_ACQUAINTANCES:
            self._peers[peer] = Acquaintance(first_seen_us, last_seen_us)
            self._peers.move_to_end(peer, last=False)

    def get(self, peer: PeerId) -> Acquaintance | None:
        return self._peers.get(peer)
