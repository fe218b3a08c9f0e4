"""Steps taken at random with plain records and provider records, and all that a store says of them.

Stores that keep to the same rules and start from equal seeds have equal transcripts.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from prime_dht.entries.limits import Limits
from prime_dht.errors import ValidationError
from prime_dht.ids import KAD_KEY_BITS, KadKey
from prime_dht.kad.keyspace import Prefix
from prime_dht.storage.base import StorageBackend
from prime_dht.storage.capacity import Capacity
from prime_dht.testing.storage_samples import provider, record

PEERS = (b"a", b"b", b"c", b"d")
NAMES = tuple(b"%d" % number for number in range(8))


async def transcript(backend: StorageBackend, rng: Random, *, steps: int) -> list[object]:
    """Take so many steps with an empty backend; returns what it said to each, and held after it."""
    said: list[object] = []
    now_us = 200
    for _ in range(steps):
        if not said or rng.random() < 0.05:
            backend.capacity = _any_capacity(rng)
        now_us += rng.choice((0, 0, 1, 10))
        try:
            said.append(await _step(backend, rng, now_us))
        except ValidationError as error:
            said.append(str(error))
        said.append((await backend.records(), await backend.providers(), await backend.stats()))
    return said


async def _step(backend: StorageBackend, rng: Random, now_us: int) -> object:
    expires_at_us, size_bytes = now_us + rng.randint(1, 60), rng.choice((0, 1, 30, 100))
    name, peer = rng.choice(NAMES), rng.choice(PEERS)
    match rng.choice(("record", "record", "provider", "provider", "provider", "expire")):
        case "record":
            await backend.put_record(record(name, value=bytes(size_bytes), expires_at_us=expires_at_us), now_us=now_us)
        case "provider":
            one = provider(peer, multihash=name, expires_at_us=expires_at_us)
            await backend.add_provider(replace(one, addresses=(bytes(size_bytes), b"")), now_us=now_us)
        case _:
            return await backend.delete_expired(now_us=now_us, retire_before_us=0, limit=rng.randint(0, 4))
    return None


def _any_capacity(rng: Random) -> Capacity:
    limits = Limits(
        max_records=rng.randint(1, 8),
        max_records_bytes=rng.randint(50, 500),
        max_providers=rng.randint(1, 16),
        max_providers_bytes=rng.randint(50, 1500),
        max_providers_per_key=rng.randint(1, 4),
        max_providers_per_peer=rng.randint(1, 6),
    )
    local = KadKey(rng.getrandbits(KAD_KEY_BITS))
    arc = rng.choice((None, 0, 1, 2, 5))
    return Capacity(limits=limits, local=local, responsible=None if arc is None else Prefix.of(local, arc))
