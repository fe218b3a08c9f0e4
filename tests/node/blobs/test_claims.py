"""Claims: which blobs a node keeps for the entries that it stores, what it refuses, and when it lets go."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from prime_dht.blobs.cid import Cid
from prime_dht.entries.entry import BlobRef, Entry
from prime_dht.entries.limits import Limits
from prime_dht.entries.signing import sign_entry
from prime_dht.ids import OpId
from prime_dht.node.blobs.claims import FRESH_S, MAX_UNKEPT, BlobClaims, all_roots
from prime_dht.storage.blocks import BlockStore, Claim
from prime_dht.storage.memory import MemoryBackend
from prime_dht.testing.serving import SetClock
from prime_dht.testing.storage_samples import NOW_US, WRITERS, make_entry

ROOT, OTHER = Cid.of_dag_pb(b"one"), Cid.of_dag_pb(b"other")
MIB = 1 << 20


def entry_of(
    cid: bytes = bytes(ROOT), *, size: int = MIB, writer: int = 0, subkey: bytes = b"", expires_at_us: int = 1000
) -> Entry:
    header = replace(
        make_entry(writer=writer, subkey=subkey, expires_at_us=expires_at_us).header,
        content=BlobRef(cid, size, "size-1048576"),
    )
    return sign_entry(header, WRITERS[writer], None)


class Desk:
    """Claims, and the stores that they lie between."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.storage = MemoryBackend()
        self.blocks = BlockStore.in_memory(max_bytes=100 * MIB)
        self.clock = SetClock(NOW_US)
        self.limits = limits or Limits()
        self.claims = self.again()

    def again(self) -> BlobClaims:
        return BlobClaims(self.blocks, self.storage, self.limits, self.clock)

    async def store(self, *entries: Entry) -> dict[OpId, str]:
        unkept = await self.claims.claim(entries, is_by_put=True)
        await self.storage.put_entries([entry for entry in entries if entry.op_id not in unkept], now_us=NOW_US)
        return unkept

    async def roots(self) -> list[Cid]:
        return [status.root for status in await all_roots(self.blocks)]


async def test_an_entry_claims_the_blob_that_it_refers_to_on_its_publishers_account() -> None:
    desk = Desk()
    entry = entry_of()
    assert await desk.store(entry) == {}
    assert await desk.blocks.claims(ROOT) == [Claim(root=ROOT, owner=entry.publisher, label=entry.op_id)]
    assert await desk.blocks.owner_bytes(entry.publisher) == MIB
    assert [blob.root for blob in desk.claims.take_new()] == [ROOT]
    assert desk.claims.take_new() == []


async def test_values_tombstones_and_expired_entries_claim_nothing() -> None:
    desk = Desk()
    await desk.store(make_entry(), make_entry(None, subkey=b"t"), entry_of(expires_at_us=NOW_US))
    assert await desk.roots() == []


@pytest.mark.parametrize("cid", [b"\x00", b"Qm" * 18, bytes(36), bytes(ROOT) + b"\x00"])
async def test_an_entry_that_names_no_blob_is_refused(cid: bytes) -> None:
    desk = Desk()
    entry = entry_of(cid)
    assert list(await desk.store(entry)) == [entry.op_id]


async def test_a_publisher_over_its_limit_is_refused_and_others_are_not() -> None:
    desk = Desk(Limits(max_publisher_blob_bytes=2 * MIB))
    await desk.store(entry_of(size=2 * MIB))
    again = entry_of(size=2 * MIB, subkey=b"the same blob")
    more, others = entry_of(bytes(OTHER), size=1, subkey=b"s"), entry_of(bytes(OTHER), writer=1)
    unkept = await desk.store(again, more, others)
    assert unkept == {more.op_id: "the publisher: 2,097,153 bytes of blobs; the limit is 2,097,152 bytes of blobs"}


async def test_what_is_declared_but_not_here_yet_takes_room() -> None:
    desk = Desk()
    assert await desk.store(entry_of(size=60 * MIB)) == {}
    entry = entry_of(bytes(OTHER), size=60 * MIB, subkey=b"s")
    (reason,) = (await desk.store(entry)).values()
    assert "no room" in reason


async def test_a_sweep_releases_what_no_live_entry_refers_to(autojump_clock: MockClock) -> None:
    desk = Desk()
    stays, goes, expires = entry_of(), entry_of(bytes(OTHER), subkey=b"g"), entry_of(subkey=b"e", expires_at_us=300)
    await desk.store(stays, goes, expires)
    await desk.storage.remove_ops([goes.op_id])
    await trio.sleep(FRESH_S)
    desk.clock.time_us = 300
    assert sorted(map(bytes, await desk.claims.sweep())) == sorted([bytes(ROOT), bytes(OTHER)])
    assert await desk.blocks.claims(ROOT) == [Claim(root=ROOT, owner=stays.publisher, label=stays.op_id)]
    assert await desk.roots() == [ROOT]
    assert await desk.claims.sweep() == []


async def test_a_claim_whose_entry_is_on_its_way_is_left_alone(autojump_clock: MockClock) -> None:
    desk = Desk()
    await desk.claims.claim([entry_of()], is_by_put=True)
    await trio.sleep(FRESH_S - 1)
    assert await desk.claims.sweep() == []
    assert await desk.roots() == [ROOT]
    await trio.sleep(1)
    assert await desk.claims.sweep() == [ROOT]


async def test_after_a_start_claims_are_those_of_the_entries_that_are_there() -> None:
    desk = Desk()
    here, never_came = entry_of(), entry_of(bytes(OTHER), subkey=b"n")
    await desk.store(here)
    await desk.claims.claim([never_came], is_by_put=True)
    again = desk.again()
    await again.load()
    assert list(again.kept) == [here.op_id]
    assert await desk.roots() == [ROOT]


async def test_where_blocks_were_lost_claims_are_made_again_from_the_entries() -> None:
    desk = Desk()
    long_lived = entry_of(expires_at_us=NOW_US + 3_600_000_000)
    await desk.store(long_lived)
    desk.blocks = BlockStore.in_memory(max_bytes=MIB)
    again = desk.again()
    await again.load()
    assert list(again.kept) == [long_lived.op_id]
    assert await desk.roots() == [ROOT]


async def test_what_there_was_no_room_for_is_kept_once_there_is(autojump_clock: MockClock) -> None:
    desk = Desk()
    entry = entry_of(size=101 * MIB)
    assert await desk.claims.claim([entry], is_by_put=False)
    await desk.storage.put_entries([entry], now_us=NOW_US)
    await desk.claims.sweep()
    assert await desk.roots() == []
    desk.blocks.max_bytes = 200 * MIB
    await desk.claims.sweep()
    assert await desk.roots() == [ROOT]


async def test_what_is_not_kept_is_remembered_up_to_a_bound(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "prime_dht.node.blobs")
    desk = Desk()
    entries = [entry_of(size=101 * MIB, subkey=b"%d" % number) for number in range(3)]
    for _ in range(2):
        await desk.claims.claim(entries, is_by_put=False)
    assert [record.levelno for record in caplog.records] == 3 * [logging.DEBUG], "anybody can have them written"
    assert len(desk.claims._unkept) == 3 <= MAX_UNKEPT


async def test_what_replicas_hold_is_kept_no_longer_for_a_put_of_it_by_a_process_that_ended() -> None:
    desk = Desk()
    for claim in [desk.claims.put_claim(root, until) for root in (ROOT, OTHER) for until in (1000, 3000)]:
        await desk.blocks.claim(claim, size_bytes=1)
    again = desk.again()
    await again.load()
    mine = again.put_claim(ROOT, 2000)
    await desk.blocks.claim(mine, size_bytes=1)
    await again.put_held(mine)
    assert [len(await desk.blocks.claims(root)) for root in (ROOT, OTHER)] == [1, 2]
    assert await desk.blocks.claims(ROOT) == [again.put_claim(ROOT, 3000)], "its entry lives longer"


async def test_what_replicas_hold_is_kept_no_longer_for_a_put_of_it_that_nobody_waits_for() -> None:
    desk = Desk()
    left, waiting, again = (desk.claims.put_claim(ROOT, until) for until in (1000, 1500, 1600))
    mine, other = desk.claims.put_claim(ROOT, 2000), desk.claims.put_claim(OTHER, 1000)
    for claim in (left, waiting, again, mine, other):
        await desk.blocks.claim(claim, size_bytes=1)
    for claim in (left, again, other):
        desk.claims.put_left(claim)
    assert desk.claims.put_claim(ROOT, 1600) == again, "somebody waits for it once more"
    await desk.claims.put_held(mine)
    desk.claims.put_left(mine)
    assert await desk.blocks.claims(ROOT) == [waiting, again]
    assert await desk.blocks.claims(OTHER) == [other]
    assert desk.claims._left == {other}


async def test_a_claim_whose_release_is_cancelled_is_released_by_a_sweep() -> None:
    desk = Desk()
    claim = desk.claims.put_claim(ROOT, 1000)
    await desk.blocks.claim(claim, size_bytes=1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await desk.claims.put_held(claim)
    assert scope.cancelled_caught
    desk.clock.time_us = 1000
    assert await desk.claims.sweep() == [ROOT]
    assert await desk.roots() == []


async def test_an_entry_may_leave_the_store_while_a_sweep_releases_its_claim() -> None:
    desk = Desk()
    entry = entry_of()
    await desk.store(entry)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(desk.claims.unclaim, [entry.op_id])
    assert desk.claims.kept == {}
    assert await desk.roots() == []


async def test_a_put_keeps_its_blob_until_it_is_done_or_its_entry_ends(autojump_clock: MockClock) -> None:
    desk = Desk()
    done, ends = desk.claims.put_claim(ROOT, 1000), desk.claims.put_claim(OTHER, 300)
    for claim in (done, ends):
        await desk.blocks.claim(claim, size_bytes=1)
    await desk.claims.put_done(done)
    assert await desk.roots() == [OTHER]
    again = desk.again()
    await again.load()
    assert await again.sweep() == []
    desk.clock.time_us = 300
    assert await again.sweep() == [OTHER]
    assert await desk.roots() == []
