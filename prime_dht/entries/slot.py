"""The authoring rule: the times a writer gives an entry so that it stands in its slot, and stays standing.

A writer knows the last entry it wrote in the slot (it keeps that durably) and takes

- ``created_at = max(now, last created_at + 1)``, so that a clock that stepped back cannot make its puts lose;
- ``retain_until = max(expires_at, last retain_until)``, so that a header outlives every entry it ever superseded, and
  none of them can rise again when it expires (the law is tested in ``tests/entries/test_join_law.py``).

Both sequences never decrease along a slot, so ``retain_until ≤ created_at + max_ttl`` holds for every entry, given that
``expires_at ≤ created_at + max_ttl`` does: what a writer can make others hold is bounded though lives are inherited.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from prime_dht.errors import ValidationError
from prime_dht.ids import US_PER_S, TimestampUs
from prime_dht.quantities import duration_text


class LastWrite(Protocol):
    """What a writer remembers of its last entry in a slot."""

    @property
    def created_at_us(self) -> TimestampUs: ...

    @property
    def retain_until_us(self) -> TimestampUs: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryTimes:
    """The three times of an entry's header."""

    created_at_us: TimestampUs
    expires_at_us: TimestampUs
    retain_until_us: TimestampUs


def next_entry_times(
    now_us: int,
    previous: LastWrite | None,
    *,
    ttl_us: int | None = None,
    expires_at_us: int | None = None,
    max_ttl_us: int,
) -> EntryTimes:
    """The times of the next entry with a value; give exactly one of ``ttl_us`` and ``expires_at_us``.

    A ttl counts from created_at, which is ``now_us`` unless the clock stepped back since the last write.

    Raises:
        ValidationError: both or neither are given, the entry would expire before it is created, or it would live for
            more than ``max_ttl_us``.
    """
    created_at_us = _next_created_at_us(now_us, previous)
    if (ttl_us is None) == (expires_at_us is None):
        raise ValidationError("give either a ttl or the time of expiry")
    if ttl_us is not None:
        expires_at_us = created_at_us + ttl_us
    assert expires_at_us is not None
    life_us = expires_at_us - created_at_us
    if life_us <= 0:
        raise ValidationError("an entry must expire later than it is created")
    if life_us > max_ttl_us:
        life, longest = (duration_text(math.ceil(us / US_PER_S)) for us in (life_us, max_ttl_us))
        raise ValidationError(f"a ttl of {life} exceeds this network's max_ttl of {longest}")
    retain_until_us = expires_at_us if previous is None else max(expires_at_us, previous.retain_until_us)
    return EntryTimes(
        created_at_us=created_at_us,
        expires_at_us=TimestampUs(expires_at_us),
        retain_until_us=TimestampUs(retain_until_us),
    )


def tombstone_times(now_us: int, previous: LastWrite | None, *, max_ttl_us: int) -> EntryTimes:
    """The times of a tombstone: it outlives what it hides.

    That is until ``previous`` retires. A writer that does not know what it wrote last hides whatever it could have
    written: that lives for ``max_ttl_us`` at most.
    """
    created_at_us = _next_created_at_us(now_us, previous)
    hidden_until_us = created_at_us + max_ttl_us if previous is None else previous.retain_until_us
    end_us = TimestampUs(max(created_at_us + 1, hidden_until_us))
    return EntryTimes(created_at_us=created_at_us, expires_at_us=end_us, retain_until_us=end_us)


def _next_created_at_us(now_us: int, previous: LastWrite | None) -> TimestampUs:
    return TimestampUs(now_us if previous is None else max(now_us, previous.created_at_us + 1))
