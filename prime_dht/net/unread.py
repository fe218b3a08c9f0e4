"""Answers that peers do not read: how much of them this node keeps, and whose go first when that is too much. Pure:
``now_s`` is any clock's.

An answer may be ten thousand times as large as the request for it, and is kept until its peer has taken it. What one
peer can have kept is bounded by the calls that it may have under way; but peer ids are free, so what all have together
is bounded as well. A stream's *burden* weighs its bytes times the seconds for which its peer has taken nothing of them,
and a tenth of the seconds for which they have been kept: who takes a little of everything now and then, just before it
asks for more, has not stood still, but has had much for long. Beyond the bound streams are given up, of the peer whose
burdens together are heaviest the heaviest first. So it is whoever stands still with much, over however many streams,
and hardly ever who reads slowly.

>>> unread = Unread(print, total_bytes=100)
>>> reads = unread.add("who reads", 60, peer="a", now_s=0)
>>> still = unread.add("who stands still", 40, peer="b", now_s=0)
>>> reads.moved_s = 9
>>> new = unread.add("who is new", 10, peer="c", now_s=10)
who stands still
>>> unread.remove(still, 40)
>>> unread.bytes
70
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

KEPT_SHARE = 0.1
"""What a second for which bytes were kept weighs, where one for which nothing was taken of them weighs 1."""

Stream = TypeVar("Stream", bound=Hashable)


class Unread(Generic[Stream]):
    """What is kept for the peers of all streams.

    Args:
        give_up: ends a stream, and with it the sending of all its answers. It must not block.
        total_bytes: for all streams.

    Attributes:
        bytes: how much is kept.
    """

    def __init__(self, give_up: Callable[[Stream], None], *, total_bytes: int) -> None:
        self._give_up = give_up
        self._total_bytes = total_bytes
        self._burdens: dict[Stream, Burden[Stream]] = {}
        self.bytes = 0

    def add(self, stream: Stream, size: int, *, peer: Hashable, now_s: float) -> Burden[Stream]:
        """An answer on a stream has to wait for its peer, and streams, maybe this one, have to go if it is too much
        now. The caller says :meth:`remove` in the end."""
        burden = self._burdens.get(stream)
        if burden is None:
            burden = self._burdens[stream] = Burden(stream, peer, now_s)
        burden.grow(size, now_s)
        self.bytes += size
        while self.bytes > self._total_bytes:
            heaviest = self._heaviest(now_s)
            self._drop(heaviest)
            self._give_up(heaviest.stream)
        return burden

    def remove(self, burden: Burden[Stream], size: int) -> None:
        """An answer waits no longer, because it was taken, or given up by itself or with its stream."""
        if self._burdens.get(burden.stream) is not burden:
            return
        burden.shrink(size)
        self.bytes -= size
        if not burden.bytes:
            self._drop(burden)

    def _heaviest(self, now_s: float) -> Burden[Stream]:
        of_peers: defaultdict[Hashable, float] = defaultdict(float)
        for each in self._burdens.values():
            of_peers[each.peer] += each.weight(now_s)
        return max(self._burdens.values(), key=lambda each: (of_peers[each.peer], each.weight(now_s), each.bytes))

    def _drop(self, burden: Burden[Stream]) -> None:
        del self._burdens[burden.stream]
        self.bytes -= burden.bytes


class Burden(Generic[Stream]):
    """What is kept for the peer of one stream.

    Attributes:
        stream: which one.
        peer: whose.
        moved_s: when the peer took something last, or the first of it began to wait.
        bytes: how much there is.
        since_s: since when it has been kept, on the average of its bytes.
    """

    __slots__ = ("bytes", "moved_s", "peer", "since_s", "stream")

    def __init__(self, stream: Stream, peer: Hashable, now_s: float) -> None:
        self.stream = stream
        self.peer = peer
        self.bytes = 0
        self.moved_s = now_s
        self.since_s = now_s

    def grow(self, size: int, now_s: float) -> None:
        """So much has come to be kept."""
        self.bytes += size
        self.since_s += (now_s - self.since_s) * size / max(1, self.bytes)

    def shrink(self, size: int) -> None:
        """So much is kept no longer. Nobody knows which, so the rest is as old as all was; over time that comes to be
        right, for what is new makes it young."""
        self.bytes -= size

    def weight(self, now_s: float) -> float:
        """In byte seconds."""
        return self.bytes * (now_s - self.moved_s + KEPT_SHARE * (now_s - self.since_s))
