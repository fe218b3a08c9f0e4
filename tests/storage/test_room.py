"""What strangers can make a store hold in plain records and provider records."""

from __future__ import annotations

from pathlib import Path
from random import Random

from prime_dht.entries.limits import Limits
from prime_dht.errors import ValidationError
from prime_dht.ids import KAD_KEY_BITS, KadKey, kad_key
from prime_dht.kad.keyspace import Prefix
from prime_dht.storage.capacity import Capacity
from prime_dht.storage.memory import MemoryBackend
from prime_dht.storage.offline import check
from prime_dht.storage.sqlite import SQLiteBackend
from prime_dht.testing.storage_record_steps import transcript
from prime_dht.testing.storage_samples import NOW_US, provider, record

LOCAL = KadKey(0b1010 << (KAD_KEY_BITS - 4))


async def test_stores_given_the_same_records_and_providers_say_and_hold_the_same(tmp_path: Path) -> None:
    for seed in range(20):
        path = tmp_path / f"{seed}.db"
        async with MemoryBackend() as memory, await SQLiteBackend.open(path, synchronous="NORMAL") as database:
            said = await transcript(memory, Random(seed), steps=60)
            assert await transcript(database, Random(seed), steps=60) == said, seed
        assert (await check(path)).problems == ()


async def test_a_flood_of_records_and_providers_leaves_alone_what_the_node_is_responsible_for() -> None:
    arc = Prefix.of(LOCAL, 2)
    limits = Limits(max_records=100, max_providers=100)
    names = [b"honest %d" % number for number in range(200)]
    own_keys = [key for name in names if arc.covers(kad_key(key := record(name).key))]
    own_contents = [name for name in names if arc.covers(kad_key(name))]
    async with MemoryBackend(Capacity(limits=limits, local=LOCAL, responsible=arc)) as store:
        for key in own_keys:
            await store.put_record(record(key.removeprefix(b"/pk/")), now_us=NOW_US)
        for content in own_contents:
            await store.add_provider(provider(b"honest", multihash=content), now_us=NOW_US)
        refused = 0
        for number in range(3000):
            try:
                await store.put_record(record(b"flood %d" % number), now_us=NOW_US)
                await store.add_provider(provider(b"%d" % number, multihash=b"flood %d" % number), now_us=NOW_US)
            except ValidationError:
                refused += 1
        stats = await store.stats()
        assert (stats.records, stats.providers) == (100, 100)
        assert refused > 2000
        held = {each.key for each in await store.records()}
        assert held >= set(own_keys)
        provided = {each.multihash for each in await store.providers()}
        assert provided >= set(own_contents)
