"""How fast a peer may send what brings no stream any data. Pure: ``now_s`` is any clock's.

Pings, streams opened and reset, or frames cut into the least pieces cost their sender next to nothing, and whoever
reads them the time for a frame of data each. An honest peer sends a few in a second; one that moves 100 MB/s makes a
thousand, to say how much it has read.
"""

from __future__ import annotations

IDLE_PER_S = 5000
"""What brings nothing: Yamux frames, and Noise frames beyond one for each piece of data."""

BURST_S = 1.0
"""So much may come early, as it does when many streams are opened at once."""


class Pace:
    """Of one connection.

    >>> pace = Pace()
    >>> pace.pause_s(5000, 100.0), pace.pause_s(500, 100.0), pace.pause_s(500, 100.2), pace.pause_s(5000, 200.0)
    (0.0, 0.1, 0.0, 0.0)
    """

    __slots__ = ("_even_s",)

    def __init__(self) -> None:
        self._even_s = 0.0  # when so many would have come at an even pace

    def pause_s(self, idle: int, now_s: float) -> float:
        """For how long nothing should be read, when so many have come."""
        self._even_s = max(self._even_s, now_s) + idle / IDLE_PER_S
        return max(0.0, round(self._even_s - now_s - BURST_S, 6))
