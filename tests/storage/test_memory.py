"""The memory backend keeps every promise of the interface."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
import trio
import trio.testing

from prime_dht.entries.entry import Entry
from prime_dht.storage.base import EntryQuery, PutResult, StorageBackend
from prime_dht.storage.deadlines import SWEEP_FROM
from prime_dht.storage.memory import CALLS_IN_TURN, MemoryBackend
from prime_dht.testing.storage_conformance import StorageConformance
from prime_dht.testing.storage_samples import KEY, NOW_US, make_entry


class TestMemoryBackend(StorageConformance):
    @pytest.fixture
    async def backend(self) -> AsyncIterator[StorageBackend]:
        async with MemoryBackend() as backend:
            yield backend


async def test_a_loop_over_it_leaves_others_their_turn() -> None:
    async with MemoryBackend() as backend:
        with trio.testing.assert_checkpoints():
            for _ in range(CALLS_IN_TURN):
                await backend.get_entries(EntryQuery(key=KEY), now_us=NOW_US)


async def test_what_it_does_without_waiting_is_the_same() -> None:
    async with MemoryBackend() as backend, MemoryBackend() as other:
        with trio.testing.assert_no_checkpoints():
            results = backend.put_entries_now([make_entry()], now_us=NOW_US)
            page = backend.get_entries_now(EntryQuery(key=KEY), now_us=NOW_US)
        assert results == await other.put_entries([make_entry()], now_us=NOW_US)
        assert page == await backend.get_entries(EntryQuery(key=KEY), now_us=NOW_US)


async def test_a_subclass_that_puts_in_its_own_way_is_not_passed_by() -> None:
    class Own(MemoryBackend):
        async def put_entries(self, entries: Sequence[Entry], *, now_us: int) -> list[PutResult]:
            return await super().put_entries(entries, now_us=now_us)

    assert MemoryBackend().is_immediate
    assert not Own().is_immediate


async def test_a_put_that_was_cancelled_has_done_nothing() -> None:
    async with MemoryBackend() as backend:
        with trio.CancelScope() as scope:
            scope.cancel()
            await backend.put_entries([make_entry()], now_us=NOW_US)
        assert await backend.keys() == []


@pytest.mark.parametrize("rewrites", [*range(SWEEP_FROM - 2, SWEEP_FROM + 3), 2 * SWEEP_FROM + 2])
async def test_an_entry_retires_however_often_its_slot_was_rewritten_before(rewrites: int) -> None:
    async with MemoryBackend() as backend:
        for number in range(rewrites):
            await backend.put_entries([make_entry(created_at_us=100 + number, expires_at_us=1000)], now_us=NOW_US)
        gone = await backend.delete_expired(now_us=2000, retire_before_us=2000)
        assert len(gone.retired) == 1
        assert (await backend.stats()).entries == 0
