"""When a fetch searches for more providers than it knows.

- *Early*: a second after it began, whoever is known: one of them may be silent, and more of them are quicker.
- *Needed*: no provider has the next block. Such a search is *in vain* until a block has come. The first begins at once,
  and the pauses between them double, from ``NEEDED_PAUSE_US`` on: a few soon say that nobody has the blob, and a few
  more give a provider that was restarted time to be there again.
- *Few*: of the providers one is left at most, and what is still to be fetched takes it a while. Before the first such
  search is a pause of ``FEW_PAUSE_US``, before each further one twice as long a pause, but never more than
  ``LONGEST_PAUSE_US``: nobody is asked again and again about a blob that only one peer has.

There is one search at a time, and none is begun within ``NEEDED_PAUSE_US`` of another's end. So if they take no time,
five that are needed begin after so many seconds:

>>> searches, began_s = Searches(0), []
>>> for now_s in range(60):
...     if len(began_s) < 5 and searches.is_due(now_s * US_PER_S, is_needed=True):
...         searches.begin(is_needed=True)
...         searches.on_ended(now_s * US_PER_S)
...         began_s.append(now_s)
>>> began_s
[0, 2, 6, 14, 30]

In the first hour of a fetch from one provider, the searches because of few begin after:

>>> searches, began_s = Searches(0), []
>>> for now_s in range(3600):
...     if searches.is_due(now_s * US_PER_S, is_needed=False):
...         searches.begin(is_needed=False)
...         searches.on_ended(now_s * US_PER_S)
...         began_s.append(now_s)
>>> began_s
[1, 6, 16, 36, 76, 156, 316, 616, 916, 1216, 1516, 1816, 2116, 2416, 2716, 3016, 3316]
"""

from __future__ import annotations

from prime_dht.ids import US_PER_S

EARLY_US = US_PER_S
NEEDED_PAUSE_US = 2 * US_PER_S
FEW_PAUSE_US = 5 * US_PER_S
LONGEST_PAUSE_US = 300 * US_PER_S


class Searches:
    """The searches of one fetch. All times are microseconds of one monotonic clock.

    Attributes:
        is_under_way: whether one was begun that has not ended.
        is_first: whether none was begun yet.
        in_vain: how many were needed since the last block came.
    """

    def __init__(self, now_us: int) -> None:
        self.is_under_way = False
        self.is_first = True
        self.in_vain = 0
        self._ended_at_us = now_us - NEEDED_PAUSE_US
        self._few_at_us = now_us + EARLY_US
        self._few_pause_us = FEW_PAUSE_US

    @property
    def times_us(self) -> tuple[int, int]:
        """When one may begin: if it is needed, and if not."""
        pause_us = NEEDED_PAUSE_US << max(self.in_vain - 1, 0)
        return self._ended_at_us + min(pause_us, LONGEST_PAUSE_US), self._few_at_us

    def is_due(self, now_us: int, *, is_needed: bool) -> bool:
        """Whether one may begin."""
        needed_at_us, few_at_us = self.times_us
        return not self.is_under_way and now_us >= (needed_at_us if is_needed else few_at_us)

    def begin(self, *, is_needed: bool) -> None:
        if is_needed:
            self.in_vain += 1
        elif not self.is_first:
            self._few_pause_us = min(2 * self._few_pause_us, LONGEST_PAUSE_US)
        self.is_first = False
        self.is_under_way = True

    def on_ended(self, now_us: int) -> None:
        self.is_under_way = False
        self._ended_at_us = now_us
        self._few_at_us = now_us + self._few_pause_us

    def on_block(self) -> None:
        """A block came: whoever was found is of use."""
        self.in_vain = 0
