"""The authoring rule: the times a writer gives an entry so that it stands in its slot, and stays standing.

A writer knows the last entry it wrote in the slot (it keeps that durably) and takes

- ``created_at = max(now, last created_at + 1)``, so that a clock that stepped back cannot make its puts lose;
- ``retain_until = max(expires_at, last retain_until)``, so that a header outlives every entry it ever superseded, and
  none of them can rise again when it expires (the law is tested in ``tests/entries/test_join_law.py``).

A last write far ahead of now means that the clock was ahead then, or that it is behind now. The writer cannot tell, but
replicas can: if the clock was ahead they put off what follows, and the writer begins anew (:func:`brought_back`).

Both sequences never decrease along a slot, so ``retain_until ≤ created_at + max_ttl`` holds for every entry, given that
``expires_at ≤ created_at + max_ttl`` does: what a writer can make others hold is bounded though lives are inherited.

What follows an op that is retained still is an op itself: it is retained for ``SHORT_LIVED_US`` at least. Else sync,
which carries ops alone, would bring the older entry, and not the newer, to whoever has neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from prime_dht.entries.lifetime import SHORT_LIVED_US
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
    retain_until_us = expires_at_us
    if previous is not None:
        retained_us = _shortest_retention_us(created_at_us, previous, max_ttl_us)
        retain_until_us = max(expires_at_us, previous.retain_until_us, created_at_us + retained_us)
    return EntryTimes(
        created_at_us=created_at_us,
        expires_at_us=TimestampUs(expires_at_us),
        retain_until_us=TimestampUs(retain_until_us),
    )


def tombstone_times(
    now_us: int, previous: LastWrite | None, *, max_ttl_us: int, expires_by_us: int | None = None
) -> EntryTimes:
    """The times of a tombstone: it outlives what it hides.

    That is until ``previous`` retires. A writer that does not know what it wrote last hides whatever it could have
    written: that lives for ``max_ttl_us`` at most.

    Args:
        expires_by_us: when the capability ends that the slot's entries carry, if they do: none may expire later. But it
            may be retained longer.
    """
    created_at_us = _next_created_at_us(now_us, previous)
    if previous is None:
        hidden_until_us = created_at_us + max_ttl_us
        if expires_by_us is not None:
            hidden_until_us = min(hidden_until_us, expires_by_us)
        retained_us = min(SHORT_LIVED_US, max_ttl_us)
    else:
        hidden_until_us = previous.retain_until_us
        retained_us = _shortest_retention_us(created_at_us, previous, max_ttl_us)
    retain_until_us = max(hidden_until_us, created_at_us + retained_us)
    expires_at_us = retain_until_us if expires_by_us is None else min(retain_until_us, expires_by_us)
    return EntryTimes(
        created_at_us=created_at_us,
        expires_at_us=TimestampUs(max(created_at_us + 1, expires_at_us)),
        retain_until_us=TimestampUs(retain_until_us),
    )


def _shortest_retention_us(created_at_us: int, previous: LastWrite, max_ttl_us: int) -> int:
    """For how long an entry is retained at least, that it may be an op if it has to hide one."""
    was_op = previous.retain_until_us - previous.created_at_us >= SHORT_LIVED_US
    return min(SHORT_LIVED_US, max_ttl_us) if was_op and previous.retain_until_us > created_at_us else 1


def _next_created_at_us(now_us: int, previous: LastWrite | None) -> TimestampUs:
    return TimestampUs(now_us if previous is None else max(now_us, previous.created_at_us + 1))


def brought_back(previous: LastWrite, now_us: int, *, clock_skew_us: int, max_ttl_us: int) -> LastWrite:
    """What an entry is to follow that replicas put off because it followed ``previous``, which is dated far ahead.

    They cannot have taken ``previous`` either, so a clock that was wrong wrote it. Where it is not far ahead of the
    writer's own clock, it stays as it is. How long it is retained matters no more than any entry's could.
    """
    if previous.created_at_us <= now_us + clock_skew_us:
        return previous
    retain_until_us = TimestampUs(min(previous.retain_until_us, now_us + max_ttl_us))
    return EntryTimes(
        created_at_us=TimestampUs(now_us - 1), expires_at_us=retain_until_us, retain_until_us=retain_until_us
    )
