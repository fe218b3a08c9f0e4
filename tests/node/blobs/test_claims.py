"""Claims: which blobs a node keeps for the entries that it stores, what it refuses, and when it lets go."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.blobs.cid import Cid
from prime_dht.entries.entry import BlobRef, Entry
from prime_dht.entries.limits import Limits
from prime_dht.entries.signing import sign_entry
from prime_dht.ids import OpId, wire_key
from prime_dht.node.blobs.claims import FRESH_S, GIVEN_UP_S, MAX_UNKEPT, BlobClaims, all_roots
from prime_dht.storage.blocks import BlockStore, Claim
from prime_dht.storage.blocks_status import RootStatus
from prime_dht.storage.memory import MemoryBackend
from prime_dht.testing.serving import SetClock
from prime_dht.testing.storage_samples import NOW_US, WRITERS, make_entry

ROOT, OTHER = Cid.of_dag_pb(b"one"), Cid.of_dag_pb(b"other")
MIB = 1 << 20
KEY, OTHER_KEY = wire_key("k"), wire_key("other")


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


async def test_an_entry_claims_the_blob_that_it_refers_to_for_its_publisher() -> None:
    desk = Desk()
    entry = entry_of()
    assert await desk.store(entry) == {}
    assert await desk.blocks.claims(ROOT) == [Claim(root=ROOT, owner=entry.publisher, label=entry.op_id)]
    assert [blob.root for blob in desk.claims.take_new()] == [ROOT]
    assert desk.claims.take_new() == []


async def test_what_was_here_of_a_blob_is_told_once_after_it_was_claimed_and_not_later(
    autojump_clock: MockClock,
) -> None:
    desk = Desk()
    await desk.store(entry_of(), entry_of(bytes(OTHER), subkey=b"other"))
    one, other = desk.claims.take_new()
    assert desk.claims.found(one) == await desk.blocks.status(ROOT)
    assert desk.claims.found(one) is None
    await trio.sleep(60)
    assert desk.claims.found(other) is None


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


async def test_a_publisher_is_charged_the_most_that_it_says_of_a_blob_and_nothing_that_others_say() -> None:
    desk = Desk(Limits(max_publisher_blob_bytes=3 * MIB))
    assert await desk.store(entry_of(writer=1, size=3 * MIB)) == {}
    small, large = entry_of(size=1), entry_of(size=2 * MIB, subkey=b"large")
    more = entry_of(bytes(OTHER), size=2 * MIB, subkey=b"more")
    unkept = await desk.store(small, large, more)
    assert unkept == {more.op_id: "the publisher: 4,194,304 bytes of blobs; the limit is 3,145,728 bytes of blobs"}
    await desk.storage.remove_ops([large.op_id])
    await desk.claims.unclaim([large.op_id])
    assert await desk.store(more) == {}


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_whoever_said_too_little_of_a_blob_that_has_come_is_charged_what_it_has(is_restarted: bool) -> None:
    desk = Desk(Limits(max_publisher_blob_bytes=3 * MIB))
    small, large = entry_of(size=1), entry_of(size=2 * MIB, subkey=b"large")
    await desk.store(small, large)
    await desk.blocks.complete(ROOT, size_bytes=2 * MIB)
    desk.claims.came(ROOT, 2 * MIB)
    await desk.storage.remove_ops([large.op_id])
    await desk.claims.unclaim([large.op_id])
    if is_restarted:
        desk.claims = desk.again()
        await desk.claims.load()
    assert list(desk.claims.kept) == [small.op_id]
    assert await desk.store(entry_of(bytes(OTHER), size=2 * MIB, subkey=b"more"))
    assert await desk.store(entry_of(bytes(OTHER), size=MIB, subkey=b"less")) == {}


async def test_a_blob_that_comes_while_its_entry_leaves_is_charged_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(Limits(max_publisher_blob_bytes=2 * MIB))
    small, large = entry_of(size=1), entry_of(size=2, subkey=b"large")
    await desk.store(small, large)
    release = desk.blocks.release

    async def release_late(claim: Claim) -> None:
        await release(claim)
        desk.claims.came(ROOT, 2 * MIB)

    monkeypatch.setattr(desk.blocks, "release", release_late)
    for entry in (small, large):
        await desk.storage.remove_ops([entry.op_id])
        await desk.claims.unclaim([entry.op_id])
        await desk.claims.sweep()
    assert await desk.store(entry_of(bytes(OTHER), size=2 * MIB, subkey=b"more")) == {}


async def test_what_is_here_whole_is_not_new_at_a_start(autojump_clock: MockClock) -> None:
    desk = Desk()
    await desk.store(entry_of(), entry_of(bytes(OTHER), subkey=b"lacking"))
    await desk.blocks.complete(ROOT)
    desk.claims = desk.again()
    await desk.claims.load()
    assert len(desk.claims.kept) == 2
    assert [blob.root for blob in desk.claims.take_new()] == [OTHER]
    await desk.store(entry_of(subkey=b"waited for"))
    await desk.claims.load()
    assert [blob.root for blob in desk.claims.take_new()] == [ROOT]


async def test_what_was_kept_before_a_limit_was_lowered_stays() -> None:
    desk = Desk()
    entry = entry_of()
    await desk.store(entry)
    desk.limits = Limits(max_publisher_blob_bytes=1)
    desk.claims = desk.again()
    await desk.claims.load()
    assert list(desk.claims.kept) == [entry.op_id]
    assert await desk.roots() == [ROOT]


async def test_a_publisher_that_puts_much_at_once_is_held_to_its_limit() -> None:
    desk = Desk(Limits(max_publisher_blob_bytes=2 * MIB))
    unkept: dict[OpId, str] = {}

    async def store(number: int) -> None:
        entry = entry_of(bytes(Cid.of_dag_pb(b"%d" % number)), subkey=b"%d" % number)
        unkept.update(await desk.store(entry))

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(store, number)
    assert len(unkept) == 3
    assert len(await desk.roots()) == 2


async def test_what_strangers_declare_and_nobody_brings_takes_no_others_room() -> None:
    desk = Desk()
    for number in range(3):
        nothing = entry_of(bytes(Cid.of_dag_pb(b"%d" % number)), size=100 * MIB, subkey=b"%d" % number)
        assert await desk.store(nothing) == {}
    assert await desk.store(entry_of(writer=1, size=60 * MIB)) == {}
    await desk.blocks.add(ROOT, [(Cid.of_raw(bytes(30 * MIB)), bytes(30 * MIB))])
    entry = entry_of(bytes(OTHER), size=60 * MIB, subkey=b"s")
    (reason,) = (await desk.store(entry)).values()
    assert "no room" in reason


async def test_an_entry_for_whose_blob_there_is_no_room_when_it_comes_is_without_it_for_an_hour(
    autojump_clock: MockClock,
) -> None:
    desk = Desk()
    entry, again = entry_of(expires_at_us=NOW_US + 1), entry_of(subkey=b"the same blob", expires_at_us=NOW_US + 1)
    await desk.store(entry, again, entry_of(bytes(OTHER), subkey=b"o", expires_at_us=NOW_US + 1))
    await desk.claims.give_up(ROOT, "no room")
    assert await desk.roots() == [OTHER]
    assert await desk.claims.sweep() == [ROOT, ROOT]
    assert await desk.roots() == [OTHER]
    await trio.sleep(GIVEN_UP_S)
    await desk.claims.sweep()
    assert set(await desk.roots()) == {ROOT, OTHER}


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
    claims = [desk.claims.put_claim(root, until, KEY) for root in (ROOT, OTHER) for until in (1000, 3000)]
    for claim in claims:
        await desk.blocks.claim(claim, size_bytes=1)
    again = desk.again()
    await again.load()
    mine = again.put_claim(ROOT, 2000, KEY)
    await desk.blocks.claim(mine, size_bytes=1)
    await again.put_held(mine)
    assert [len(await desk.blocks.claims(root)) for root in (ROOT, OTHER)] == [1, 2]
    assert await desk.blocks.claims(ROOT) == [claims[1]], "its entry lives longer"


async def test_what_replicas_hold_is_kept_no_longer_for_a_put_of_it_that_nobody_waits_for() -> None:
    desk = Desk()
    left, waiting = (desk.claims.put_claim(ROOT, until, KEY) for until in (1000, 1500))
    mine, other = desk.claims.put_claim(ROOT, 2000, KEY), desk.claims.put_claim(OTHER, 1000, KEY)
    for claim in (left, waiting, mine, other):
        await desk.blocks.claim(claim, size_bytes=1)
    for claim in (left, other):
        desk.claims.put_left(claim)
    await desk.claims.put_held(mine)
    desk.claims.put_left(mine)
    assert await desk.blocks.claims(ROOT) == [waiting]
    assert await desk.blocks.claims(OTHER) == [other]
    assert desk.claims._left == {other}


@pytest.mark.parametrize("is_left", [False, True])
async def test_a_put_that_fails_takes_no_blocks_from_one_of_the_same_that_ends_at_the_same_time(is_left: bool) -> None:
    desk = Desk()
    mine = desk.claims.put_claim(ROOT, 1000, KEY)
    await desk.blocks.claim(mine, size_bytes=1)
    if is_left:
        desk.claims.put_left(mine)
    failed = desk.claims.put_claim(ROOT, 1000, KEY)
    await desk.blocks.claim(failed, size_bytes=1)
    await desk.claims.put_done(failed)
    assert await desk.blocks.claims(ROOT) == [mine]


async def test_what_replicas_hold_is_kept_no_longer_for_a_put_of_the_same_that_ends_at_the_same_time() -> None:
    desk = Desk()
    mine, left = (desk.claims.put_claim(ROOT, 1000, KEY) for _ in range(2))
    for claim in (mine, left):
        await desk.blocks.claim(claim, size_bytes=1)
    desk.claims.put_left(left)
    await desk.claims.put_held(mine)
    assert await desk.blocks.claims(ROOT) == []


async def test_what_the_replicas_of_one_key_hold_is_kept_for_a_put_of_it_under_another() -> None:
    desk = Desk()
    before, other = desk.claims.put_claim(ROOT, 1000, KEY), desk.claims.put_claim(ROOT, 1000, OTHER_KEY)
    for claim in (before, other):
        await desk.blocks.claim(claim, size_bytes=1)
    again = desk.again()
    await again.load()
    mine = again.put_claim(ROOT, 2000, OTHER_KEY)
    await desk.blocks.claim(mine, size_bytes=1)
    await again.put_held(mine)
    assert await desk.blocks.claims(ROOT) == [before]


async def test_a_claim_whose_release_is_cancelled_is_released_by_a_sweep() -> None:
    desk = Desk()
    claim = desk.claims.put_claim(ROOT, 1000, KEY)
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
    await desk.storage.remove_ops([entry.op_id])
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(desk.claims.unclaim, [entry.op_id])
    assert desk.claims.kept == {}
    assert await desk.roots() == []


async def test_the_claim_of_an_entry_that_comes_back_while_a_sweep_goes_on_stays(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk()
    entries = [entry_of(bytes(Cid.of_raw(b"%d" % number)), subkey=b"%d" % number, size=1) for number in range(150)]
    await desk.store(*entries)
    await desk.storage.remove_ops([entry.op_id for entry in entries])
    await trio.sleep(FRESH_S)
    get_ops, is_back = desk.storage.get_ops, False

    async def get_ops_while_they_come_back(op_ids: Sequence[OpId], *, now_us: int) -> list[Entry]:
        nonlocal is_back
        found = await get_ops(op_ids, now_us=now_us)
        if not is_back:
            is_back = True
            await desk.store(*entries)
        return found

    monkeypatch.setattr(desk.storage, "get_ops", get_ops_while_they_come_back)
    await desk.claims.sweep()
    assert len(await desk.roots()) == len(desk.claims.kept) == len(entries)


async def test_an_entry_that_is_stored_while_the_store_is_asked_for_it_keeps_its_claim(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk()
    entry = entry_of()
    await desk.claims.claim([entry], is_by_put=True)
    await trio.sleep(FRESH_S)
    get_ops = desk.storage.get_ops
    with ExitStack() as put:
        put.enter_context(desk.claims.putting([entry]))

        async def get_ops_before_it_is_stored(op_ids: Sequence[OpId], *, now_us: int) -> list[Entry]:
            found = await get_ops(op_ids, now_us=now_us)
            await desk.storage.put_entries([entry], now_us=NOW_US)
            put.close()
            return found

        monkeypatch.setattr(desk.storage, "get_ops", get_ops_before_it_is_stored)
        await desk.claims.sweep()
    assert await desk.roots() == [ROOT]


async def test_an_entry_that_a_crash_kept_from_being_stored_and_comes_while_claims_are_read_keeps_its_claim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk()
    entry = entry_of()
    await desk.claims.claim([entry], is_by_put=True)
    desk.claims = desk.again()
    get_ops, claim = desk.storage.get_ops, desk.blocks.claim
    is_claimed, goes_on = trio.Event(), trio.Event()

    async def claim_slowly(each: Claim, **details: Any) -> RootStatus:
        status = await claim(each, **details)
        is_claimed.set()
        await goes_on.wait()
        return status

    async def get_ops_while_it_comes(op_ids: Sequence[OpId], *, now_us: int) -> list[Entry]:
        found = await get_ops(op_ids, now_us=now_us)
        nursery.start_soon(desk.store, entry)
        await is_claimed.wait()
        return found

    monkeypatch.setattr(desk.blocks, "claim", claim_slowly)
    monkeypatch.setattr(desk.storage, "get_ops", get_ops_while_it_comes)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.claims.load)
        await is_claimed.wait()
        await wait_all_tasks_blocked()
        goes_on.set()
    assert await desk.roots() == [ROOT]
    assert desk.claims.kept.keys() == {entry.op_id}


async def test_an_entry_that_one_put_refuses_and_another_stores_keeps_its_claim() -> None:
    desk = Desk()
    entry = entry_of()
    with desk.claims.putting([entry]):
        with desk.claims.putting([entry]):
            await desk.claims.claim([entry], is_by_put=True)
        await desk.claims.unclaim([entry.op_id])  # while the other may be about to store it
        assert await desk.roots() == [ROOT]
        await desk.storage.put_entries([entry], now_us=NOW_US)
    await desk.claims.unclaim([entry.op_id])  # once it has
    assert await desk.roots() == [ROOT]
    await desk.storage.remove_ops([entry.op_id])
    await desk.claims.unclaim([entry.op_id])
    assert await desk.roots() == []


async def test_a_put_keeps_its_blob_until_it_is_done_or_its_entry_ends(autojump_clock: MockClock) -> None:
    desk = Desk()
    done, ends = desk.claims.put_claim(ROOT, 1000, KEY), desk.claims.put_claim(OTHER, 300, KEY)
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
