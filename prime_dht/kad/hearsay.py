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

from collections import defaultdict

from prime_dht.ids import PeerId

DOUBTED_AT_ONCE = 20
"""Queries in flight that are not slow, when only those in doubt are left to ask."""


class Hearsay:
    """What was told in one lookup. See the module.

    Attributes:
        doubted: whoever named too many that were silent; mostly nobody.
    """

    def __init__(self, *, max_silent: int) -> None:
        self._max_silent = max_silent
        self._tellers: dict[PeerId, set[PeerId]] = {}
        self._silent: set[PeerId] = set()
        self._answered: set[PeerId] = set()
        self._against: defaultdict[PeerId, int] = defaultdict(int)  # of those it named, how many more silent than not
        self.doubted: set[PeerId] = set()

    def named(self, peer: PeerId, teller: PeerId) -> None:
        """Somebody named a peer that is not of this node's own table."""
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

    def forget(self, peer: PeerId) -> None:
        """A peer that was not asked is of no interest any more."""
        self._tellers.pop(peer, None)

    def _count(self, teller: PeerId, change: int) -> None:
        self._against[teller] += change
        if self._against[teller] >= self._max_silent:
            self.doubted.add(teller)
        else:
            self.doubted.discard(teller)
