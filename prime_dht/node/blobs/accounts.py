"""What each publisher's references to blobs declare: this is held against its limit before anything is fetched.

Each is charged by what it said itself. Of one root several references may say several sizes, of which one at most is
true, and only that one brings anything here; so the largest counts, once.

>>> accounts, writer, root = Accounts(), PeerId(b"a writer"), Cid.of_raw(b"a block")
>>> accounts.add(writer, root, 5)
>>> [accounts.bytes_with(writer, each, 7) for each in (root, Cid.of_raw(b"other"))]
[7, 12]
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter

from prime_dht.blobs.cid import Cid
from prime_dht.ids import PeerId


class Accounts:
    """See the module."""

    def __init__(self) -> None:
        self._sizes: dict[tuple[PeerId, Cid], list[int]] = {}  # that references say, in order
        self._bytes: Counter[PeerId] = Counter()

    def bytes_with(self, publisher: PeerId, root: Cid, size: int) -> int:
        """What a publisher is charged if it refers to a root of so many bytes as well."""
        return self._bytes[publisher] + max(size - self._charge(publisher, root), 0)

    def add(self, publisher: PeerId, root: Cid, size: int) -> None:
        """A publisher refers to a root of so many bytes, by one entry more."""
        self._bytes[publisher] = self.bytes_with(publisher, root, size)
        insort(self._sizes.setdefault((publisher, root), []), size)

    def remove(self, publisher: PeerId, root: Cid, size: int) -> None:
        """One of the entries that did so has left."""
        before, sizes = self._charge(publisher, root), self._sizes[publisher, root]
        del sizes[bisect_left(sizes, size)]
        if not sizes:
            del self._sizes[publisher, root]
        self._bytes[publisher] -= before - self._charge(publisher, root)
        if not self._bytes[publisher]:
            del self._bytes[publisher]

    def raise_to(self, publisher: PeerId, root: Cid, size: int) -> None:
        """Those of a publisher's entries that refer to a root by fewer bytes say so many from now on."""
        self._bytes[publisher] = self.bytes_with(publisher, root, size)
        self._sizes[publisher, root] = [max(each, size) for each in self._sizes[publisher, root]]

    def _charge(self, publisher: PeerId, root: Cid) -> int:
        sizes = self._sizes.get((publisher, root))
        return sizes[-1] if sizes else 0
