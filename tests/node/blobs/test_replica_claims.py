"""Puts of one entry that meet in a replica: what one of them stores keeps its claim, whatever the other hears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from prime_dht.blobs.cid import Cid
from prime_dht.entries.entry import BlobRef, Entry
from prime_dht.entries.limits import Limits
from prime_dht.entries.signing import sign_entry
from prime_dht.node.blobs.claims import BlobClaims
from prime_dht.node.feed import Feed
from prime_dht.node.replica import Replica
from prime_dht.partition.parameters import PartitionParameters
from prime_dht.storage.base import PutOutcome, PutResult
from prime_dht.storage.blocks import BlockStore
from prime_dht.storage.memory import MemoryBackend
from prime_dht.testing.serving import SetClock
from prime_dht.testing.storage_samples import NOW_US, WRITERS, make_entry

ROOT = Cid.of_dag_pb(b"a root")
ENTRY = sign_entry(replace(make_entry().header, content=BlobRef(bytes(ROOT), 1, "size-1048576")), WRITERS[0], None)


class FullForAMoment(MemoryBackend):
    """Refuses one of the first two puts; the other ends first, or last."""

    def __init__(self, *, refuses: int, ends_last: int) -> None:
        super().__init__()
        self._refuses = refuses
        self._ends_last = ends_last
        self._puts = 0
        self._has_ended = trio.Event()

    async def put_entries(self, entries: Sequence[Entry], *, now_us: int) -> list[PutResult]:
        number, self._puts = self._puts, self._puts + 1
        if number == self._ends_last:
            await self._has_ended.wait()
        if number == self._refuses:
            return [PutResult(PutOutcome.REFUSED, reason="full") for _ in entries]
        return await super().put_entries(entries, now_us=now_us)

    def let_end(self) -> None:
        self._has_ended.set()


@pytest.mark.parametrize("refuses", [0, 1])
@pytest.mark.parametrize("ends_last", [0, 1])
async def test_what_one_put_stores_keeps_its_claim_though_another_be_refused(refuses: int, ends_last: int) -> None:
    storage, blocks, clock = (
        FullForAMoment(refuses=refuses, ends_last=ends_last),
        BlockStore.in_memory(max_bytes=9),
        SetClock(NOW_US),
    )
    claims = BlobClaims(blocks, storage, Limits(), clock)
    replica = Replica(storage, PartitionParameters(), clock, Feed(), blobs=claims)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(lambda: replica.put_entries([ENTRY], now_us=NOW_US))
            await wait_all_tasks_blocked()
        storage.let_end()
    assert [claim.label for claim in await blocks.claims(ROOT)] == [ENTRY.op_id]


async def test_what_no_put_stores_keeps_no_claim() -> None:
    storage, blocks, clock = FullForAMoment(refuses=0, ends_last=1), BlockStore.in_memory(max_bytes=9), SetClock(NOW_US)
    replica = Replica(storage, PartitionParameters(), clock, Feed(), blobs=BlobClaims(blocks, storage, Limits(), clock))
    await replica.put_entries([ENTRY], now_us=NOW_US)
    assert await blocks.claims(ROOT) == []
