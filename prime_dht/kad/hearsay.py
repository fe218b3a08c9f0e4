"""Who named whom in a lookup, and whose word counts for little by now.

Anybody can name peers that do not exist, nearer to a target than all others, at addresses that swallow packets. So a
peer that was asked and is *silent* counts against all that named it, and one that answered counts for them. Whoever
named ``max_silent`` more of the silent than of those that answered is *doubted*; and so is a peer of which the doubted
alone have told. Contacts of this node's own table never are, whoever names them as well: they have answered it before.

An honest peer comes to be doubted where most around the target died a moment ago, or when the path is slow or cut. So
those in doubt are put off, not forgotten: a lookup asks them when nothing else in its window is open,
``DOUBTED_AT_ONCE`` at a time, and the next need not wait for those that are silent. Its end does wait for them: on a
slow path it takes longer to reach those that are there. So a liar makes a lookup seconds longer, and not minutes, and
hides nobody.

What counts against somebody when a lookup ends does so from the beginning of those that follow, up to what it takes to
be doubted: so it is believed again as soon as one that it names answers. Of whoever was doubted at the beginning, what
it alone names holds up the end of a lookup no longer than until it is silent.

>>> hearsay, liar, honest = Hearsay(max_silent=2), PeerId(b"liar"), PeerId(b"honest")
>>> for name in (b"a", b"b", b"c", b"d"):
...     hearsay.named(PeerId(name), liar)
>>> hearsay.named(PeerId(b"d"), honest)
>>> for name in (b"a", b"b"):
...     hearsay.silent(PeerId(name))
>>> [hearsay.is_doubted(PeerId(name)) for name in (b"c", b"d")]
[True, False]
>>> hearsay.answered(PeerId(b"a"))
>>> hearsay.is_doubted(PeerId(b"c"))
False
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from types import MappingProxyType

from prime_dht.ids import PeerId

NOTHING: Mapping[PeerId, int] = MappingProxyType({})

DOUBTED_AT_ONCE = 20
"""Queries in flight that are not slow, when only those in doubt are left to ask."""

REMEMBERED_FOR_S = 600.0
"""Seconds for which what counts against somebody is remembered, from the first of it."""

REMEMBERED_AT_MOST = 256
"""Tellers; of more, who was noted first is forgotten."""


class Hearsay:
    """What was told in one lookup. See the module.

    Args:
        before: what counted against whom before.

    Attributes:
        against: how many more of those whom a peer named were silent than answered, in this lookup.
        doubted: whoever named too many that were silent, now or before; mostly nobody.
    """

    def __init__(self, *, max_silent: int, before: Mapping[PeerId, int] = NOTHING) -> None:
        self._max_silent = max_silent
        self._before = before
        self._tellers: dict[PeerId, set[PeerId]] = {}
        self._silent: set[PeerId] = set()
        self._answered: set[PeerId] = set()
        self.against: defaultdict[PeerId, int] = defaultdict(int)
        self.doubted: set[PeerId] = set()

    def named(self, peer: PeerId, teller: PeerId) -> None:
        """Somebody named a peer that is not of this node's own table."""
        if teller in self._before and teller not in self.against and self._was_doubted(teller):
            self.doubted.add(teller)
        tellers = self._tellers.get(peer)
        if tellers is None:
            self._tellers[peer] = {teller}
        elif teller not in tellers:
            tellers.add(teller)
            if change := (peer in self._silent) - (peer in self._answered):
                self._count(teller, change)

    def silent(self, peer: PeerId) -> None:
        """A peer has not answered for long, or failed."""
        if peer not in self._silent:
            self._silent.add(peer)
            for teller in self._tellers.get(peer, ()):
                self._count(teller, +1)

    def spare(self, peer: PeerId) -> None:
        """A peer may answer yet, but nobody waits for it."""
        if peer in self._silent:
            self._silent.discard(peer)
            for teller in self._tellers.get(peer, ()):
                self._count(teller, -1)

    def answered(self, peer: PeerId) -> None:
        """A peer answered, be it late."""
        change = -2 if peer in self._silent else -1
        self._silent.discard(peer)
        self._answered.add(peer)
        for teller in self._tellers.get(peer, ()):
            self._count(teller, change)

    def is_doubted(self, peer: PeerId) -> bool:
        """Whether of a peer the doubted alone have told."""
        tellers = self._tellers.get(peer)
        return tellers is not None and tellers <= self.doubted

    def is_late(self, peer: PeerId) -> bool:
        """Whether a peer in doubt is silent, so that the next need not wait for it."""
        return peer in self._silent and self.is_doubted(peer)

    def is_waited_for(self, peer: PeerId) -> bool:
        """Whether the end waits for one that is late: not if those alone told of it that were doubted before."""
        return not all(map(self._was_doubted, self._tellers[peer]))

    def forget(self, peer: PeerId) -> None:
        """A peer that was not asked is of no interest any more."""
        self._tellers.pop(peer, None)

    def _count(self, teller: PeerId, change: int) -> None:
        self.against[teller] += change
        if self._before.get(teller, 0) + self.against[teller] >= self._max_silent:
            self.doubted.add(teller)
        else:
            self.doubted.discard(teller)

    def _was_doubted(self, teller: PeerId) -> bool:
        return self._before.get(teller, 0) >= self._max_silent


class Memory:
    """What counts against whom after lookups, for those that follow. Times are seconds of one monotonic clock."""

    def __init__(self, *, max_silent: int) -> None:
        self._max_silent = max_silent
        self._noted: OrderedDict[PeerId, tuple[int, float]] = OrderedDict()  # how much, and until when
        self._shown: Mapping[PeerId, int] | None = NOTHING  # unless it has changed since

    def now(self, now_s: float) -> Mapping[PeerId, int]:
        """What counts against whom now; it stays as it is, whatever is learnt later."""
        while self._noted and next(iter(self._noted.values()))[1] <= now_s:
            self._noted.popitem(last=False)
            self._shown = None
        if self._shown is None:  # each put and get asks
            self._shown = {peer: count for peer, (count, _) in self._noted.items()}
        return self._shown

    def learn(self, against: Mapping[PeerId, int], now_s: float) -> None:
        """A lookup has ended with this."""
        for peer, change in against.items():
            before, until_s = self._noted.get(peer) or (0, now_s + REMEMBERED_FOR_S)
            count = max(0, min(before + change, self._max_silent))
            if count == before:
                continue
            self._shown = None
            if count:
                self._noted[peer] = count, until_s
            else:
                del self._noted[peer]
        while len(self._noted) > REMEMBERED_AT_MOST:
            self._noted.popitem(last=False)
