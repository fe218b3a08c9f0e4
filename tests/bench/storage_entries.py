"""What the storage suites put."""

from __future__ import annotations

from random import Random

from prime_dht.entries.entry import Entry
from prime_dht.entries.limits import Limits
from prime_dht.ids import Key
from prime_dht.storage.capacity import Capacity
from prime_dht.testing.storage_samples import make_entry

VALUE_BYTES = 1024
NOW_US = 1_790_000_000_000_000
DAY_US = 86_400_000_000


def unlimited() -> Capacity:
    """More than any suite puts."""
    return Capacity(limits=Limits(max_store_entries=10**8, max_publisher_entries=10**8))


def new_entry(rng: Random) -> Entry:
    """An entry as they are: a random key and value, made about now, to live for a day."""
    created_at_us = NOW_US + rng.randrange(DAY_US)
    return make_entry(
        rng.randbytes(VALUE_BYTES),
        key=Key(b"/prime/bench:%x" % rng.getrandbits(48)),
        writer=rng.randrange(3),
        created_at_us=created_at_us,
        expires_at_us=created_at_us + DAY_US,
    )
