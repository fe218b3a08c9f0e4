"""The memory backend keeps every promise of the interface."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from prime_dht.storage.base import EntryQuery, StorageBackend
from prime_dht.storage.memory import MemoryBackend
from prime_dht.testing.storage_conformance import StorageConformance
from prime_dht.testing.storage_samples import KEY, NOW_US, make_entry


class TestMemoryBackend(StorageConformance):
    @pytest.fixture
    async def backend(self) -> AsyncIterator[StorageBackend]:
        async with MemoryBackend() as backend:
            yield backend


async def test_every_call_is_a_checkpoint() -> None:
    async with MemoryBackend() as backend:
        with trio.testing.assert_checkpoints():
            await backend.put_entries([make_entry()], now_us=NOW_US)
        with trio.testing.assert_checkpoints():
            await backend.get_entries(EntryQuery(key=KEY), now_us=NOW_US)


async def test_a_put_that_was_cancelled_has_done_nothing() -> None:
    async with MemoryBackend() as backend:
        with trio.CancelScope() as scope:
            scope.cancel()
            await backend.put_entries([make_entry()], now_us=NOW_US)
        assert await backend.keys() == []
