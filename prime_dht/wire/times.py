"""Times as Kademlia's records have them."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from prime_dht.ids import US_PER_S


def rfc3339(time_us: int) -> str:
    """RFC 3339 in UTC with nanoseconds, as go-libp2p writes and reads it.

    >>> rfc3339(1_700_000_000_000_001)
    '2023-11-14T22:13:20.000001000Z'
    """
    return f"{_to_the_second(time_us // US_PER_S)}.{time_us % US_PER_S:06d}000Z"


@lru_cache(maxsize=64)
def _to_the_second(time_s: int) -> str:
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%dT%H:%M:%S}"
