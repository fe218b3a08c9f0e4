"""What a fetch knows of one provider: what it was asked for, how fast it delivers, whether it still answers.

**Window.** So many bytes as a provider delivers in one second may be asked of it at a time: enough to keep any path
with a shorter round trip full, and never more than a second's work to ask of another when it fails. How fast it
delivers is measured while something is asked of it, and what is long ago counts less and less. A provider begins with a
window of 2 MiB, and one block may always be asked. A block takes time however small it is, so it counts as 16 KiB at
least. If another provider brings a block first, the time that this one had it counts, and nothing else.

**Stalled** is a provider that said nothing for ``silence_us`` although it was asked, and sent no part of a block
either; or left one ask open for four times that, whatever else it sent.

>>> provider = Provider(PeerId(b"a peer"))
>>> cids = [Cid.of_raw(bytes((index,))) for index in range(8)]
>>> for cid in cids:
...     provider.ask(cid, 1 << 20, now_us=0)
>>> for index, cid in enumerate(cids):  # each of 1 MiB, one every 50 ms: that is 20 MiB/s
...     provider.hear(50_000 * (index + 1), 1 << 20)
...     _ = provider.take_back(cid)
>>> provider.window_bytes >> 20
13
"""

from __future__ import annotations

from prime_dht.blobs.cid import Cid
from prime_dht.ids import US_PER_S, PeerId

WINDOW_US = US_PER_S
"""What is asked of a provider at a time is what it delivers in this."""

FIRST_WINDOW_BYTES = 2 << 20
MIN_COUNTED_BYTES = 16 << 10
"""A smaller block counts as if it had so many."""

OPEN_SILENCES = 4
"""An ask may stay open for so many times as a provider may be silent."""

FIRST_COUNTS_US = WINDOW_US // 4
"""The first window counts as if it had been measured for so long."""


class Provider:
    """One provider of a fetch.

    Attributes:
        stalls, refusals: how often it stalled, and was busy, since it last delivered.
        delivered, missed: the blocks that it brought, and those that it said it has not.
        answered_us: when it last answered, or was asked for something after a pause.
        rests_until_us: it is not asked for anything before.
        is_held_up: nor while this is so: other fetches from it have their turn.
    """

    def __init__(self, peer: PeerId) -> None:
        self.peer = peer
        self.stalls = 0
        self.refusals = 0
        self.delivered = 0
        self.missed = 0
        self._asked: dict[Cid, tuple[int, int]] = {}  # bytes and time, the oldest first
        self._asked_bytes = 0
        self._part_heard_us = 0
        self._measured_us = 0
        self.answered_us = 0
        self.rests_until_us = 0
        self.is_held_up = False
        self._counted_bytes = FIRST_WINDOW_BYTES * FIRST_COUNTS_US // WINDOW_US
        self._counted_us = FIRST_COUNTS_US

    @property
    def asked(self) -> tuple[Cid, ...]:
        """The asks that are open, the oldest first."""
        return tuple(self._asked)

    @property
    def is_idle(self) -> bool:
        return not self._asked

    @property
    def is_new(self) -> bool:
        """Whether its window says little yet: it has been measured for less time than the first one counts."""
        return self._counted_us < 2 * FIRST_COUNTS_US

    @property
    def heard_us(self) -> int:
        """When it last said something, or was asked for something after a pause."""
        return max(self.answered_us, self._part_heard_us)

    @property
    def window_bytes(self) -> int:
        return self._counted_bytes * WINDOW_US // self._counted_us

    @property
    def standing(self) -> str:
        """For people: how it did."""
        return f"brought {self.delivered} blocks, lacks {self.missed}"

    def rests(self, now_us: int) -> bool:
        """Whether it is to be asked for nothing now, whatever its window."""
        return self.is_held_up or now_us < self.rests_until_us

    def has_room(self, now_us: int) -> bool:
        """Whether more may be asked of it now."""
        if self.rests(now_us):
            return False
        return self.is_idle or self._asked_bytes < self.window_bytes

    def expected_us(self, size_bytes: int) -> int:
        """How long it would take to deliver a block after all that is asked of it."""
        return (
            (self._asked_bytes + max(size_bytes, MIN_COUNTED_BYTES)) * self._counted_us // max(self._counted_bytes, 1)
        )

    def stalls_at_us(self, silence_us: int) -> int | None:
        """When it will have stalled if it says nothing; ``None`` if nothing is asked of it."""
        if self.is_idle:
            return None
        _, oldest_us = next(iter(self._asked.values()))
        return min(self.heard_us + silence_us, oldest_us + OPEN_SILENCES * silence_us)

    def ask(self, cid: Cid, size_bytes: int, now_us: int) -> None:
        if self.is_idle:
            self.answered_us = self._measured_us = now_us
        counted_bytes = max(size_bytes, MIN_COUNTED_BYTES)
        self._asked[cid] = (counted_bytes, now_us)
        self._asked_bytes += counted_bytes

    def take_back(self, cid: Cid) -> bool:
        """An ask is no longer open; returns whether it was."""
        counted_bytes, _ = self._asked.pop(cid, (0, 0))
        self._asked_bytes -= counted_bytes
        return counted_bytes > 0

    def lose(self, cid: Cid, now_us: int) -> bool:
        """Another brought a block that it was asked for; returns whether the ask was open. Its time counts."""
        self._measure(now_us, 0)
        return self.take_back(cid)

    def hear(self, now_us: int, block_bytes: int | None = None) -> None:
        """It answered, with a block of so many bytes, or without. Report it before the ask is taken back."""
        if not self.is_idle:
            self._measure(now_us, max(block_bytes, MIN_COUNTED_BYTES) if block_bytes is not None else 0)
            self.answered_us = now_us

    def hear_part(self, now_us: int) -> None:
        """Some of a block came; how fast shows when it is whole."""
        self._part_heard_us = now_us

    def rest(self, until_us: int) -> None:
        """It has too much to do: ask it for nothing until then, and for half as much afterwards."""
        self.rests_until_us = until_us
        self._counted_bytes //= 2

    def _measure(self, now_us: int, came_bytes: int) -> None:
        self._counted_us += max(now_us - self._measured_us, 0)
        self._counted_bytes += came_bytes
        self._measured_us = now_us
        if self._counted_us > WINDOW_US:
            self._counted_us //= 2
            self._counted_bytes //= 2
