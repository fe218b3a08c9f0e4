"""When entries expire, when they retire, and which of them are ops.

An entry's life has two ends. From ``expires_at`` on its value is dropped and its slot reads as absent. Its header stays
until it *retires*, at the first tick after ``retain_until``, so that no older entry with a longer life can rise again.

A *tick* is a boundary of the partition's unit: a multiple of ``unit_us`` since the Unix epoch, every 15 minutes by
default. Ops retire together, at ticks, so that two nodes on the same tick agree on which ops there are.

>>> tick_of(1_800_000_000, UNIT_US), retire_before_us(1_800_000_000, UNIT_US)
(2, 1800000000)
"""

from __future__ import annotations

from dataclasses import replace

from prime_dht.entries.entry import Entry
from prime_dht.ids import TimestampUs

UNIT_US = 15 * 60 * 1_000_000
"""The default unit of the partition."""

SHORT_LIVED_US = 5 * 60 * 1_000_000
"""An entry retained for less than this is not an op."""


def tick_of(now_us: int, unit_us: int) -> int:
    """The number of the tick that ``now_us`` lies in, which is [tick · unit, (tick + 1) · unit)."""
    return now_us // unit_us


def retire_before_us(now_us: int, unit_us: int) -> TimestampUs:
    """The start of the tick that ``now_us`` lies in: entries retained until before it have retired."""
    return TimestampUs(tick_of(now_us, unit_us) * unit_us)


def is_retired(entry: Entry, now_us: int, unit_us: int) -> bool:
    """Whether a tick has passed since ``retain_until``: then the entry is gone for good, and is never taken again."""
    return entry.header.retain_until_us < retire_before_us(now_us, unit_us)


def is_op(entry: Entry) -> bool:
    """Whether the partition sees the entry and sync carries it: it is retained for 5 minutes or more.

    What counts is how long the *header* lives, not the value: a heartbeat put over a value that lives for a day carries
    that value's ``retain_until``, and must reach every replica that could otherwise show the value again.
    """
    return entry.header.retain_until_us - entry.header.created_at_us >= SHORT_LIVED_US


def as_of(entry: Entry, now_us: int) -> Entry:
    """The entry as it is at ``now_us``: without its value once it has expired."""
    if entry.value is None or now_us < entry.header.expires_at_us:
        return entry
    return replace(entry, value=None)
