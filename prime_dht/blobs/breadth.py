"""How many of its providers a fetch asks at a time: no more than make it faster.

The more providers there are, the faster is a fetch, until its own end is the limit: the processor, the link or the
disk. From then on more of them bring nothing, and those on the reader's own machine slow it down. Nothing tells a fetch
that it is the limit itself, so it tries.

- *All* providers are in use at first, so that a silent one holds nothing up. How fast they are together is measured in
  periods. A fetch that is not fast leaves it at that: there the links are the limit.
- *Narrower.* Once the rate is steady, only the faster half of them is in use: of the others nothing more is asked, and
  what was asked still comes. If that is enough, half of that half follows, and so on until there is one.
- *Enough* are those with whom the fetch never lags more than ``MAX_LAG_US`` behind ``KEPT`` of the rate of all. The lag
  is a cumulative sum (CUSUM; E. S. Page, "Continuous inspection schemes", Biometrika 41, 1954): it grows with time,
  shrinks with each block, and is never below 0. So a short pause says nothing, and what lasts shows soon.
- *Wider.* A fetch that lags takes back the last step, and waits longer before the next; what it waits for from one that
  has fallen silent it asks of others. All are in use at once when one that is in use goes or rests, and when those in
  use lack a block; and after ``TRUSTED_US`` in any case, to be measured anew, for what was true once need not be any
  more.

A step in vain costs what did not come until it was taken back. With three equal providers that are all needed, these
are so many seconds of fetching:

>>> kept = 1 / 3
>>> round((1 - kept) * MAX_LAG_US / (KEPT - kept) / US_PER_S, 3)
0.065
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter

from prime_dht.blobs.provider import MIN_COUNTED_BYTES, Provider
from prime_dht.ids import US_PER_S, PeerId

FAST_BYTES_PER_S = 128_000_000
"""More than a gigabit link brings. Nothing is tried at less."""

PERIOD_US = US_PER_S // 4
GROWTH = 1.25
"""A rate that grows by more from one period to the next is not steady: the windows are still opening."""

KEPT = 0.95
"""Of the rate of all providers, what is enough: a part of it is noise."""

MAX_LAG_US = 60_000
"""A fetch may lag by what would have come in so long. Where others use the processor too, 40 ms of that are noise."""

FIRST_WAIT_US = 2 * PERIOD_US
LONGEST_WAIT_US = 64 * US_PER_S
WAIT_FACTOR = 16
"""From one step to the next it waits so long; and so many times as long after a step that was taken back."""

TRUSTED_US = 5 * US_PER_S
"""For so long after all were measured fewer may be in use."""


class Breadth:
    """Which providers of a fetch are in use. All times are microseconds of one monotonic clock."""

    def __init__(self, now_us: int) -> None:
        self._halves: list[frozenset[PeerId]] = []  # each of the one before; the last is in use, or all are
        self._wait_us = FIRST_WAIT_US
        self._rate = self._last_rate = 0.0  # of all, in bytes per second: over two periods, and over the last
        self._is_steady = False
        self._lag_us = 0.0
        self._came_bytes = 0  # since it was looked at
        self._measured_at_us = self._begun_at_us = self._seen_at_us = now_us

    def in_use(self, providers: Mapping[PeerId, Provider]) -> list[Provider]:
        """Those of a fetch's providers that may be asked."""
        return [provider for peer, provider in providers.items() if not self._halves or peer in self._halves[-1]]

    @property
    def lags_at_us(self) -> int:
        """When the fetch would lag too far if nothing came; 0 while all are in use."""
        return self._seen_at_us + int((MAX_LAG_US - self._lag_us) / KEPT) + 1 if self._halves else 0

    def hear(self, block_bytes: int) -> None:
        """A block came that was still wanted."""
        self._came_bytes += max(block_bytes, MIN_COUNTED_BYTES)

    def use_all(self, now_us: int) -> bool:
        """Those in use cannot do it. Returns whether there are others."""
        had_others = bool(self._halves)
        if had_others:
            self._halves.clear()
            self._begin(now_us)
        return had_others

    def step(self, providers: Mapping[PeerId, Provider], now_us: int) -> list[Provider]:
        """Decide which of these are in use from now on. Returns those that were, if the fetch lags with them."""
        too_few: list[Provider] = []
        if not self._halves:
            self._measure(now_us)
        elif any(peer not in providers or providers[peer].rests(now_us) for peer in self._halves[-1]):
            self.use_all(now_us)
        elif now_us >= self._measured_at_us + TRUSTED_US:
            self._wait_us = max(self._wait_us // WAIT_FACTOR, FIRST_WAIT_US)
            self.use_all(now_us)
        elif self._lags(now_us):
            too_few = self.in_use(providers)
            self._wait_us = min(self._wait_us * WAIT_FACTOR, LONGEST_WAIT_US)
            self._halves.pop()
            self._begin(now_us)
        if self._is_steady and now_us >= self._begun_at_us + self._wait_us:
            self._narrow(providers, now_us)
        return too_few

    def _measure(self, now_us: int) -> None:
        """Measure the rate of all, one period after the other."""
        elapsed_us = now_us - self._seen_at_us
        if elapsed_us < PERIOD_US:
            return
        before, self._last_rate = self._last_rate, self._came_bytes * US_PER_S / elapsed_us
        self._rate = (before + self._last_rate) / 2
        self._is_steady = FAST_BYTES_PER_S <= self._last_rate <= GROWTH * before
        self._measured_at_us = self._seen_at_us = now_us
        self._came_bytes = 0

    def _lags(self, now_us: int) -> bool:
        """Count what came since; whether the fetch lags too far behind the rate of all."""
        came_us = self._came_bytes * US_PER_S / self._rate
        self._lag_us = max(self._lag_us + KEPT * (now_us - self._seen_at_us) - came_us, 0)
        self._seen_at_us = now_us
        self._came_bytes = 0
        return self._lag_us > MAX_LAG_US

    def _narrow(self, providers: Mapping[PeerId, Provider], now_us: int) -> None:
        """Use only the faster half."""
        in_use = sorted(self.in_use(providers), key=attrgetter("window_bytes"), reverse=True)
        if len(in_use) > 1:
            self._halves.append(frozenset(provider.peer for provider in in_use[: len(in_use) // 2]))
            self._begin(now_us)

    def _begin(self, now_us: int) -> None:
        """Others are in use from now on: what came before does not count."""
        self._last_rate = 0.0
        self._begun_at_us = self._seen_at_us = now_us
        self._came_bytes = 0
        self._lag_us = 0.0
