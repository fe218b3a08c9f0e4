"""How a Redis store of schema 1 is brought to schema 2, in which plain records and provider records have limits.

It gets what schema 1 lacks: an order of locations, one of what each peer provides, and how many bytes there are. The
members for what falls due are replaced by those that name the location. Nothing is lost on the way: whoever is stopped
halfway leaves a store of schema 1, and the next begins again, since each step may be done twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from prime_dht.ids import Key
from prime_dht.storage import redis_record_scripts as record_scripts
from prime_dht.storage import redis_rows as rows
from prime_dht.storage import redis_scripts as scripts
from prime_dht.storage.redis_store import SCHEMA, RedisStore

_PAGE = 100


async def bring_up_to_date(store: RedisStore) -> None:
    """Do what is missing to make a store one of this schema.

    Raises:
        StorageError: the server failed; the store is as good as before.
    """
    current = b"%d" % SCHEMA
    if await store.read(scripts.GET_ROW, b"#schema") == [current]:
        return
    record_bytes = provider_bytes = 0
    async for page in _pages(store, b"k"):
        placed = []
        for key, row in page:
            placed += [rows.record_name(Key(key)), rows.location(key)]
            record_bytes += rows.read_record(key, row).size_bytes
        await store.write(record_scripts.PLACE, b"k", *placed)
    async for page in _pages(store, b"m"):
        placed = []
        for name, row in page:
            multihash, provider = rows.split_first(name)
            placed += [name, rows.location(multihash)]
            provider_bytes += rows.read_provider(multihash, provider, row).size_bytes
        await store.write(record_scripts.PLACE, b"m", *placed)
    await store.write(record_scripts.END_PLACING, current, b"%d" % record_bytes, b"%d" % provider_bytes)


async def _pages(store: RedisStore, kind: bytes) -> AsyncIterator[list[tuple[bytes, bytes]]]:
    """The names and rows of a kind."""
    start, stop = b"[" + kind, b"(" + bytes([kind[0] + 1])
    while page := list(rows.pairs(await store.read(scripts.WALK, start, stop, b"%d" % _PAGE))):
        yield page
        start = b"(" + kind + page[-1][0]
