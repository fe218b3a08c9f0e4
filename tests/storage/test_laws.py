"""Backends against a model that is too simple to be wrong: whatever is done to them, all say and hold the same."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import assert_never

from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.entries.entry import Entry, Slot
from prime_dht.entries.join import state_of
from prime_dht.entries.lifetime import as_of
from prime_dht.ids import Key, OpId
from prime_dht.storage.base import EntryQuery, Expired, Gone, PutOutcome, PutResult, StorageBackend
from prime_dht.storage.memory import MemoryBackend
from prime_dht.storage.sqlite import SQLiteBackend
from prime_dht.testing.storage_samples import bare, in_op_id_order, make_entry, read_all

KEYS = (Key(b"/prime/a"), Key(b"/prime/b"))
TIMES_US = st.integers(100, 160)

ENTRIES = tuple(
    make_entry(
        value,
        key=key,
        writer=writer,
        subkey=subkey,
        created_at_us=created_at_us,
        expires_at_us=created_at_us + life_us,
        retain_until_us=created_at_us + life_us + 10 * (life_us % 3),
    )
    for (key, writer, subkey), value, created_at_us, life_us in product(
        ((KEYS[0], 0, b""), (KEYS[0], 1, b""), (KEYS[0], 0, b"s"), (KEYS[1], 0, b"")),
        (b"one", None),
        (100, 110),
        (10, 20, 45, 300_000_000),
    )
)
"""Sixteen entries for each of four slots of two keys: twelve that expire between 110 and 155, and four ops."""

SOME_ENTRIES = st.lists(
    st.builds(lambda entry, is_bare: bare(entry) if is_bare else entry, st.sampled_from(ENTRIES), st.booleans()),
    max_size=6,
)


@dataclass(frozen=True, slots=True)
class Put:
    entries: Sequence[Entry]
    now_us: int


@dataclass(frozen=True, slots=True)
class Remove:
    op_ids: Sequence[OpId]


@dataclass(frozen=True, slots=True)
class DeleteExpired:
    now_us: int
    retire_before_us: int


@dataclass(frozen=True, slots=True)
class Restart:
    """Close and open again what is kept on disk."""


Step = Put | Remove | DeleteExpired | Restart

STEPS = st.lists(
    st.one_of(
        st.builds(Put, SOME_ENTRIES, TIMES_US),
        st.builds(Remove, st.lists(st.sampled_from([entry.op_id for entry in ENTRIES]), max_size=4)),
        st.builds(DeleteExpired, TIMES_US, TIMES_US),
        st.just(Restart()),
    ),
    max_size=12,
)


RETIRED = PutResult(PutOutcome.REFUSED)


class Model:
    """What a store is: one entry for each slot."""

    def __init__(self) -> None:
        self.slots: dict[Slot, Entry] = {}
        self.retired_before_us = 0

    def put(self, entry: Entry, now_us: int) -> PutResult:
        if entry.header.retain_until_us < self.retired_before_us:
            return RETIRED
        standing = self.slots.get(entry.slot)
        if standing is None or standing.version < entry.version:
            self.slots[entry.slot] = as_of(entry, now_us)
            return PutResult(PutOutcome.INSERTED, None if standing is None else Gone.of(standing))
        if standing.version > entry.version:
            return PutResult(PutOutcome.SUPERSEDED)
        if standing.value is None:
            self.slots[entry.slot] = as_of(entry, now_us)
        return PutResult(PutOutcome.DUPLICATE)

    def remove(self, op_ids: Iterable[OpId]) -> set[Gone]:
        gone = [entry for entry in self.slots.values() if entry.op_id in op_ids]
        for entry in gone:
            del self.slots[entry.slot]
        return {Gone.of(entry) for entry in gone}

    def delete_expired(self, now_us: int, retire_before_us: int) -> Expired:
        self.retired_before_us = max(retire_before_us, self.retired_before_us)
        retired = [e.op_id for e in self.slots.values() if e.header.retain_until_us < self.retired_before_us]
        gone = self.remove(retired)
        dropped = [e for e in self.slots.values() if e.value is not None and e.header.expires_at_us <= now_us]
        self.slots |= {entry.slot: bare(entry) for entry in dropped}
        return Expired(retired=in_op_id_order(gone), values_dropped=len(dropped))

    def read(self, query: EntryQuery, now_us: int) -> list[Entry]:
        state = [entry for slot, entry in self.slots.items() if slot.key == query.key]
        if not query.include_expired:
            state = [entry for entry in state if entry.is_tombstone or now_us < entry.header.expires_at_us]
        live = [entry.version for entry in state if entry.is_live(now_us)]
        if query.newest and live:
            state = [entry for entry in state if entry.version >= max(live)]
        return [as_of(e, now_us) for e in sorted(state, key=lambda e: (e.publisher, e.header.subkey))]


async def assert_equals(store: StorageBackend, model: Model, now_us: int) -> None:
    for key, newest, include_expired in product(KEYS, (False, True), (False, True)):
        query = EntryQuery(key=key, newest=newest, include_expired=include_expired, max_bytes=500)
        assert await read_all(store, query, now_us=now_us) == model.read(query, now_us)
    held = model.slots.values()
    keys = sorted({slot.key for slot in model.slots})
    assert await store.keys() == keys
    stats = await store.stats()
    assert (stats.keys, stats.entries, stats.bytes) == (len(keys), len(held), sum(entry.size_bytes for entry in held))
    found = await store.get_ops([entry.op_id for entry in ENTRIES], now_us=0)
    assert sorted(found, key=lambda entry: entry.op_id) == sorted(held, key=lambda entry: entry.op_id)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(steps=STEPS, now_us=TIMES_US)
async def test_backends_do_as_the_model_does(steps: Sequence[Step], now_us: int) -> None:
    model = Model()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "prime.db"
        stores = [MemoryBackend(), await SQLiteBackend.open(path, synchronous="NORMAL")]
        for step in steps:
            match step:
                case Put(entries, at_us):
                    results = [model.put(entry, at_us) for entry in entries]
                    for store in stores:
                        said = await store.put_entries(entries, now_us=at_us)
                        assert [result._replace(reason="") for result in said] == results
                case Remove(op_ids):
                    removed = model.remove(op_ids)
                    for store in stores:
                        assert set(await store.remove_ops(op_ids)) == removed
                case DeleteExpired(at_us, retire_before_us):
                    expired = model.delete_expired(at_us, retire_before_us)
                    for store in stores:
                        gone = await store.delete_expired(now_us=at_us, retire_before_us=retire_before_us)
                        assert replace(gone, retired=in_op_id_order(gone.retired)) == expired
                case Restart():
                    await stores[1].aclose()
                    stores[1] = await SQLiteBackend.open(path, synchronous="NORMAL")
                case _:
                    assert_never(step)
            for store in stores:
                await assert_equals(store, model, now_us)
        for store in stores:
            await store.aclose()


@settings(derandomize=True, deadline=None, max_examples=40)
@given(data=st.data(), entries=st.lists(st.sampled_from(ENTRIES), max_size=25), now_us=TIMES_US)
async def test_the_same_entries_in_any_order_and_any_portions_make_equal_stores(
    data: st.DataObject, entries: list[Entry], now_us: int
) -> None:
    joined = Model()
    joined.slots = {slot: as_of(entry, now_us) for slot, entry in state_of(entries).items()}
    with tempfile.TemporaryDirectory() as directory:
        database = await SQLiteBackend.open(Path(directory) / "prime.db", synchronous="NORMAL")
        for store in (MemoryBackend(), database):
            async with store:
                left = data.draw(st.permutations(entries))
                while left:
                    portion = data.draw(st.integers(1, len(left)))
                    await store.put_entries(left[:portion], now_us=now_us)
                    left = left[portion:]
                await assert_equals(store, joined, now_us)
