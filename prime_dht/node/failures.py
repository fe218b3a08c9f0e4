"""Who failed this node a moment ago.

Others may name such a peer for a while: they find out more slowly. And it may be a replica that has what nobody else
has. Of those that failed there may be thousands that never answered, for anybody can name peers; so those that have
answered as replicas are kept by themselves. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from itertools import takewhile

from prime_dht.ids import PeerId

BELIEVE_AGAIN_S = 30.0
"""Seconds for which others may name a peer that failed us before we ask it again: each put or lookup that believed them
would wait for its deadline once more."""

BELIEVE_SOON_S = 1.0
BELIEVE_TIMES = 10.0
"""Where a machine refuses at once there is nothing to wait for, and a node that is restarted is back soon: who cannot
be reached is asked again after so many times what it took to find out, at the least and at the most what is above."""

FAILURES_NOTED = 20_000
"""Of more, what was noted first is forgotten."""


class Failures:
    """See the module.

    >>> failures = Failures()
    >>> failures.note(PeerId(b"replica"), 1.0, is_replica=True)
    >>> failures.note(PeerId(b"stranger"), 2.0, is_replica=False)
    >>> [peer.decode() for peer in failures.recent(30.0)], [peer.decode() for peer in failures.recent(31.0)]
    (['stranger', 'replica'], ['stranger'])
    >>> list(failures.recent_replicas(30.0))
    [b'replica']
    >>> failures.note(PeerId(b"refused"), 5.0, is_replica=True, is_gone=True, asked_at_s=4.99)
    >>> [failures.is_left_alone(PeerId(b"refused"), now_s) for now_s in (5.9, 6.0)]
    [True, False]
    """

    def __init__(self) -> None:
        self._at_s: OrderedDict[PeerId, float] = OrderedDict()  # the last to fail last
        self._replicas: OrderedDict[PeerId, None] = OrderedDict()  # those of them; likewise
        self._believe_at_s: dict[PeerId, float] = {}  # of all of them

    def __len__(self) -> int:
        """How many are noted, whenever they failed."""
        return len(self._at_s)

    def note(
        self, peer: PeerId, now_s: float, *, is_replica: bool, is_gone: bool = False, asked_at_s: float = math.inf
    ) -> None:
        """A peer has failed.

        Args:
            is_replica: whether it has answered as a replica before.
            is_gone: whether it cannot be reached, which was found out just now.
            asked_at_s: when it was asked, if that is known. What was noted since is the same failure.
        """
        if self._at_s.get(peer, -math.inf) >= asked_at_s:
            believe_at_s = self._believe_at_s[peer]
        else:
            took_s = now_s - asked_at_s if is_gone else math.inf
            believe_at_s = now_s + min(max(BELIEVE_SOON_S, BELIEVE_TIMES * took_s), BELIEVE_AGAIN_S)
        self.forget(peer)
        self._at_s[peer] = now_s
        self._believe_at_s[peer] = believe_at_s
        if is_replica:
            self._replicas[peer] = None
        if len(self._at_s) > FAILURES_NOTED:
            self.forget(next(iter(self._at_s)))

    def forget(self, peer: PeerId) -> None:
        """A peer is there."""
        if peer in self._at_s:
            del self._at_s[peer], self._believe_at_s[peer]
            self._replicas.pop(peer, None)

    def is_recent(self, peer: PeerId, now_s: float) -> bool:
        """Whether a peer failed a moment ago, and was not heard from since."""
        at_s = self._at_s.get(peer)
        return at_s is not None and now_s < at_s + BELIEVE_AGAIN_S

    def is_left_alone(self, peer: PeerId, now_s: float) -> bool:
        """Whether it is too early to ask it again because others name it."""
        return now_s < self._believe_at_s.get(peer, now_s)

    def recent(self, now_s: float) -> Iterator[PeerId]:
        """All of which that is so, the last to fail first."""
        return takewhile(lambda peer: self.is_recent(peer, now_s), reversed(self._at_s))

    def recent_replicas(self, now_s: float) -> Iterator[PeerId]:
        """Those of them that have answered as replicas before."""
        return takewhile(lambda peer: self.is_recent(peer, now_s), reversed(self._replicas))
