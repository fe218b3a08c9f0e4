"""What a replica does when its store fails."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.background import background_nursery
from prime_dht.entries.entry import Entry
from prime_dht.errors import StorageError
from prime_dht.ids import US_PER_S
from prime_dht.node.feed import Feed
from prime_dht.node.replica import Replica
from prime_dht.partition.parameters import PartitionParameters
from prime_dht.storage.base import OpArrays, PutResult
from prime_dht.storage.memory import MemoryBackend
from prime_dht.testing.storage_samples import make_entry
from prime_dht.testing.swarm import EPOCH_US, VirtualClock

ENTRY = make_entry(created_at_us=EPOCH_US, expires_at_us=EPOCH_US + 3600 * US_PER_S)


class FailingLate(MemoryBackend):
    """A store that fails what is put once it is told to, and notes how often its ops were read from the first on."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = trio.Event()
        self.readings = 0

    async def put_entries(self, entries: Sequence[Entry], *, now_us: int) -> list[PutResult]:
        await self.fails.wait()
        raise StorageError("the disc is gone")

    async def scan_ops(self, *, after: bytes = b"", limit: int = 65_536) -> OpArrays:
        self.readings += not after
        return await super().scan_ops(after=after, limit=limit)


async def test_a_store_that_fails_just_when_its_ops_have_been_read_has_them_read_again(
    autojump_clock: MockClock,
) -> None:
    storage = FailingLate()
    replica = Replica(storage, PartitionParameters(), VirtualClock(), Feed())
    async with background_nursery() as nursery, trio.open_nursery() as calls:

        async def put_in_vain() -> None:
            with pytest.raises(StorageError):
                await replica.put_entries([ENTRY], now_us=EPOCH_US)

        calls.start_soon(put_in_vain)
        await wait_all_tasks_blocked()
        await nursery.start(replica.run)
        await wait_all_tasks_blocked()
        assert (storage.readings, replica.partition) == (1, None)  # it waits for what becomes of the put
        storage.fails.set()
        for _ in range(50):
            await trio.lowlevel.checkpoint()
        assert storage.readings == 2
        assert replica.partition is not None
