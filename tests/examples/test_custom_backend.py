"""``examples/custom_backend.py`` keeps every promise of the interface, also over restarts, and serves a node."""

from __future__ import annotations

import importlib.util
import io
import resource
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import pytest

from prime_dht.entries.limits import Limits
from prime_dht.errors import StorageError
from prime_dht.ids import KadKey, Key, PeerId, TimestampUs
from prime_dht.kad.keyspace import Prefix
from prime_dht.storage.base import OwnSlot, StorageBackend
from prime_dht.storage.capacity import Capacity
from prime_dht.storage.dump import export
from prime_dht.testing.processes import run
from prime_dht.testing.storage_conformance import StorageConformance
from prime_dht.testing.storage_samples import KEY, NOW_US, known_peer, make_entry, provider, record

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_backend.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("custom_backend", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


custom_backend = load()


class TestJournalBackend(StorageConformance):
    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[StorageBackend]:
        async with await custom_backend.JournalBackend.open(tmp_path / "journal.jsonl") as backend:
            yield backend


async def dump_of(store: StorageBackend) -> bytes:
    file = io.BytesIO()
    await export(store, file, now_us=NOW_US)
    return file.getvalue()


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


async def test_whatever_was_done_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    limits = Limits(max_store_entries=12)
    entries = [make_entry(key=Key(b"/prime/%d" % number)) for number in range(20)]
    brief = make_entry(expires_at_us=250, retain_until_us=260)
    async with await custom_backend.JournalBackend.open(path, capacity=Capacity(limits=limits)) as store:
        await store.put_entries([brief, *entries[:5]], now_us=NOW_US)
        store.capacity.responsible = Prefix.of(KadKey(0), 2)
        results = await store.put_entries(entries[5:], now_us=NOW_US)
        assert any(result.evicted for result in results)
        await store.remove_ops([entries[3].op_id])
        await store.put_record(record(b"a"), now_us=NOW_US)
        for name in (b"a", b"b"):
            await store.add_provider(provider(name), now_us=NOW_US)
        await store.put_peers([known_peer(b"a"), known_peer(b"b")])
        await store.remove_peers([PeerId(b"a")])
        await store.put_own_slots([OwnSlot(brief.slot, TimestampUs(1), TimestampUs(2))])
        await store.put_meta("name", b"value")
        await store.delete_expired(now_us=300, retire_before_us=300)
        before = await store.stats(), await dump_of(store)
    async with await custom_backend.JournalBackend.open(path, capacity=Capacity(limits=limits)) as store:
        assert (await store.stats(), await dump_of(store)) == before
        (refused,) = await store.put_entries([brief], now_us=NOW_US)
        assert "retired" in refused.reason


async def test_a_line_that_was_cut_short_is_as_if_it_had_not_been_begun(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    async with await custom_backend.JournalBackend.open(path) as store:
        await store.put_entries([make_entry()], now_us=NOW_US)
    append(path, b'{"change": "put_ent')
    for number in range(2):
        async with await custom_backend.JournalBackend.open(path) as store:
            assert (await store.stats()).entries == 1 + number
            await store.put_entries([make_entry(subkey=b"%d" % number)], now_us=NOW_US)


async def test_a_change_that_cannot_be_written_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with await custom_backend.JournalBackend.open(path) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limit[1]))
        try:
            with pytest.raises(StorageError, match="the journal cannot be written"):
                await store.put_entries([make_entry(bytes(5000))], now_us=NOW_US)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert await store.keys() == []
        await store.put_entries([make_entry()], now_us=NOW_US)
    async with await custom_backend.JournalBackend.open(path) as store:
        assert await store.keys() == [KEY]


def test_a_node_finds_in_the_journal_what_an_earlier_one_stored(tmp_path: Path) -> None:
    command = (sys.executable, str(EXAMPLE), str(tmp_path / "journal.jsonl"))
    for words, answer in (((), b"nothing there\n"), (("hello",), b"hello\n"), ((), b"hello\n")):
        ended = run(*command, "greeting", *words)
        assert (ended.status, ended.out) == (0, answer), ended.err
