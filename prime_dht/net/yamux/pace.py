"""How fast a peer may send what brings no stream any data, and open streams. Pure: ``now_s`` is any clock's.

Pings, streams opened and reset, or frames cut into the least pieces cost their sender next to nothing, and whoever
reads them the time for a frame of data each. An honest peer sends a few in a second; one that moves 100 MB/s makes a
thousand, to say how much it has read. A stream costs its opener a frame, and who has to answer it as much as dozens of
them, whether it brings data or not: a task, and the agreement on a protocol. Most honest peers keep their streams.

Connections are many, and identities free. So while several of a host's connections have to pause, each may bring less:
together they are not read faster than ``PAUSED_AT_FULL_SPEED`` of them would be alone. While more streams are opened
than ``STREAMS_PER_S`` on all of them, each counts for more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

IDLE_PER_S = 5000
"""What brings nothing: Yamux frames, and Noise frames beyond one for each piece of data."""

STREAMS_PER_S = 500
"""Of all connections: about half of the time of one core."""

IDLE_PER_STREAM = IDLE_PER_S // STREAMS_PER_S
"""A stream counts as so many of those: one connection may open as many in a second as all together. Honest peers that
open a stream for each request, as py-libp2p's own do, or for each of many small blobs, come to hundreds."""

IDLE_PER_STREAM_OF_MANY = 200
"""What a stream counts as beyond that: 25 may be opened in a second."""

BURST_S = 1.0
"""So much may come early, as it does when many streams are opened at once."""

LONGEST_PAUSE_S = 5.0
"""For so long at most it goes unnoticed that a connection has ended; what is left to wait is waited after a look."""

PAUSED_AT_FULL_SPEED = 2
"""Connections that may have to pause before each of them has to for longer."""


class Crowd:
    """The connections of a host.

    Attributes:
        paused: how many of them are not read just now.
    """

    def __init__(self) -> None:
        self.paused = 0
        self._even_s = 0.0  # when so many streams would have been opened at an even pace

    def idle_of(self, streams: int, now_s: float) -> int:
        """What the streams count as that one connection has just opened.

        >>> crowd = Crowd()
        >>> [crowd.idle_of(100, now_s) for now_s in (7.0, 7.0, 7.0, 7.0, 7.0, 7.0, 9.0)]
        [1000, 1000, 1000, 1000, 1000, 20000, 1000]
        """
        limit_s = now_s + BURST_S
        self._even_s = max(self._even_s, now_s) + streams / STREAMS_PER_S
        is_many = round(self._even_s - limit_s, 6) > 0
        self._even_s = min(self._even_s, limit_s)
        return streams * (IDLE_PER_STREAM_OF_MANY if is_many else IDLE_PER_STREAM)


class Pace:
    """Of one connection.

    >>> pace = Pace()
    >>> pace.pause_s(5000, 100.0), pace.pause_s(500, 100.0), pace.pause_s(500, 100.2), pace.pause_s(5000, 200.0)
    (0.0, 0.1, 0.0, 0.0)
    """

    __slots__ = ("_crowd", "_even_s")

    def __init__(self, crowd: Crowd | None = None) -> None:
        self._crowd = crowd or Crowd()
        self._even_s = 0.0  # when so many would have come at an even pace

    def pause_s(self, idle: int, now_s: float) -> float:
        """For how long nothing should be read, when so many have come."""
        share = max(1.0, self._crowd.paused / PAUSED_AT_FULL_SPEED)
        had_s = max(self._even_s, now_s) + idle / IDLE_PER_S
        # Who still has of its burst does not pay for others.
        self._even_s = had_s if had_s <= now_s + BURST_S else had_s + (share - 1) * idle / IDLE_PER_S
        return min(LONGEST_PAUSE_S, max(0.0, round(self._even_s - now_s - BURST_S, 6)))

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """While a connection is not read."""
        self._crowd.paused += 1
        try:
            yield
        finally:
            self._crowd.paused -= 1
