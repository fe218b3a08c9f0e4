"""How a Redis store of an older schema is brought up to date, schema by schema.

- **From 1 to 2**, in which plain records and provider records have limits. It gets what schema 1 lacks: an order of
  locations, one of what each peer provides, and how many bytes there are. The members for what falls due are replaced
  by those that name the location.
- **From 2 to 3**, in which sync finds ops by how their ids begin. It gets an order of the ids of ops.
- **From 3 to 4**, in which own slots are forgotten. It gets an order of how long they are retained.

Nothing is lost on the way: whoever is stopped halfway leaves a store of the schema it came to, and the next goes on
from there, since each step may be done twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from prime_dht.ids import Key
from prime_dht.storage import redis_entry_scripts as entry_scripts
from prime_dht.storage import redis_record_scripts as record_scripts
from prime_dht.storage import redis_rows as rows
from prime_dht.storage import redis_scripts as scripts
from prime_dht.storage.redis_store import RedisStore

_PAGE = 100
_OPS_IN_PAGE = 1000


async def bring_up_to_date(store: RedisStore) -> None:
    """Do what is missing to make a store one of this schema.

    Raises:
        StorageError: the server failed; the store is as good as before.
    """
    (said,) = await store.read(scripts.GET_ROWS, b"#schema")
    assert said is not None  # else the store could not have been taken
    schema = int(said)
    if schema < 2:
        await _place_records(store)
    if schema < 3:
        await _index_ops(store)
    if schema < 4:
        await _order_own_slots(store)


async def _place_records(store: RedisStore) -> None:
    """From schema 1 to 2."""
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
    await store.write(record_scripts.END_PLACING, b"2", b"%d" % record_bytes, b"%d" % provider_bytes)


async def _index_ops(store: RedisStore) -> None:
    """From schema 2 to 3."""
    start = b"[t"
    while last := await store.write(entry_scripts.INDEX_OPS, start, b"%d" % _OPS_IN_PAGE):
        start = b"(" + last
    await store.write(scripts.END_STEP, b"3")


async def _order_own_slots(store: RedisStore) -> None:
    """From schema 3 to 4."""
    async for page in _pages(store, b"o"):
        await store.write(scripts.PUT_OWN_SLOTS, *(part for own in page for part in own))
    await store.write(scripts.END_STEP, b"4")


async def _pages(store: RedisStore, kind: bytes) -> AsyncIterator[list[tuple[bytes, bytes]]]:
    """The names and rows of a kind."""
    start, stop = b"[" + kind, b"(" + bytes([kind[0] + 1])
    while page := list(rows.pairs(await store.read(scripts.WALK, start, stop, b"%d" % _PAGE))):
        yield page
        start = b"(" + kind + page[-1][0]
