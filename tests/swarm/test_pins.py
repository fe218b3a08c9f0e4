"""Pins that meet: of one root at a time, undone, refused, damaged. In virtual time."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from prime_dht import PrimeDHT
from prime_dht.blobs.cid import Cid
from prime_dht.config import DhtConfig
from prime_dht.errors import BlobError, QueryError, StorageError
from prime_dht.node.blobs.claims import PIN
from prime_dht.node.blobs.fetch import Fetcher
from prime_dht.node.blobs.keeping import SWEEP_EVERY_S
from prime_dht.node.blobs.progress import BlobProgress
from prime_dht.node.core import Node
from prime_dht.storage.blocks import BlockStore, Claim
from prime_dht.storage.blocks_files import MemoryFiles
from prime_dht.storage.blocks_status import RootStatus
from prime_dht.testing.swarm import Swarm, open_swarm

MIB = 1 << 20
VALUE = Random(7).randbytes(24 * MIB)
LEAF = Cid.of_raw(VALUE[:MIB])
BLOCKS = 25
"""As many leaves as MiB, and the root."""


async def added(swarm: Swarm, node: Node, value: bytes = VALUE) -> Cid:
    receipt = await node.blobs.add(value, pin=True)
    assert receipt.blob is not None
    return Cid.from_bytes(receipt.blob.cid)


async def half_of_it(blocks: BlockStore) -> None:
    """Wait until half of the blocks have come."""
    while (await blocks.stats()).blocks < BLOCKS // 2:  # noqa: ASYNC110 - a store tells nobody
        await trio.sleep(0.005)


def rot(blocks: BlockStore, cid: Cid) -> None:
    """The disk damages a block."""
    assert isinstance(blocks._files, MemoryFiles)
    blocks._files._blocks[cid.digest] = b"rotten"


async def test_two_pins_of_a_blob_fetch_it_once(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        root, reader = await added(swarm, swarm.nodes[0]), await swarm.join_client()
        swarm.world.blocks_sent.clear()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(reader.blobs.pin, root)
        assert swarm.world.blocks_sent.total() == BLOCKS


async def test_a_pin_that_is_undone_while_it_fetches_says_so_and_the_next_one_has_all_of_it(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        root, reader = await added(swarm, swarm.nodes[0]), await swarm.join_client()

        async def undone() -> None:
            with pytest.raises(StorageError, match=f"blob {root} was unpinned while it was fetched"):
                await reader.blobs.pin(root)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(undone)
            await half_of_it(swarm.machine_of(reader).blocks)
            assert await reader.blobs.unpin(root)
            await reader.blobs.pin(root)
        await swarm.stop(swarm.nodes[0])
        (kept,) = await reader.blobs.kept()
        assert (kept.is_pinned, kept.is_complete) == (True, True)
        assert await reader.blobs.fetch(root) == VALUE


async def test_a_pin_that_is_refused_does_not_undo_anothers(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        provider, value = swarm.nodes[0], VALUE[: 2 * MIB]
        receipt = await provider.blobs.add(value)
        assert receipt.blob is not None
        root, lie = Cid.from_bytes(receipt.blob.cid), replace(receipt.blob, size=1)
        pins: list[Callable[[Node], Awaitable[object]]] = [
            lambda reader: reader.blobs.pin(root),
            lambda reader: reader.blobs.add(value, pin=True),
        ]
        for pin in pins:
            reader = await swarm.join_client()

            async def refused(reader: Node = reader) -> None:
                with pytest.raises(BlobError, match="where 1 were said"):
                    await reader.blobs.pin(lie)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(refused)
                await trio.sleep(0.0001)
                await pin(reader)
            (kept,) = await reader.blobs.kept()
            assert (kept.is_pinned, kept.is_complete) == (True, True)


async def test_a_block_that_is_damaged_while_others_come_is_fetched_again(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        root, reader = await added(swarm, swarm.nodes[0]), await swarm.join_client()
        blocks = swarm.machine_of(reader).blocks
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.blobs.pin, root)
            await half_of_it(blocks)
            rot(blocks, LEAF)
            await reader.blobs.fetch(root, start=0, stop=1)  # finds it
        (kept,) = await reader.blobs.kept()
        assert kept.is_complete
        assert await blocks.present([LEAF]) == {LEAF}


async def test_a_replica_that_finds_a_block_damaged_fetches_it_again(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        await swarm.nodes[0].put("k", VALUE)
        await trio.sleep(SWEEP_EVERY_S)
        blocks = swarm.machine_of(swarm.nodes[1]).blocks
        rot(blocks, LEAF)
        swarm.world.blocks_sent.clear()
        assert await blocks.read([LEAF], verify=True) == [None]
        await trio.sleep(2 * SWEEP_EVERY_S)
        (kept,) = await swarm.nodes[1].blobs.kept()
        assert kept.is_complete
        assert swarm.world.blocks_sent.total() == 1


async def test_that_a_pinned_blob_is_damaged_is_worth_one_warning(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def warned() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    async with open_swarm(seed=1, size=1) as swarm:
        root, reader = await added(swarm, swarm.nodes[0]), await swarm.join_client()
        nobodys = Cid.of_dag_pb(b"nobody's")
        await reader.blobs.pin(root)
        with pytest.raises(BlobError):
            await reader.blobs.pin(nobodys)
        blocks = swarm.machine_of(reader).blocks
        for times in (1, 2):
            rot(blocks, LEAF)
            await blocks.read([LEAF], verify=True)
            await trio.sleep(5 * SWEEP_EVERY_S)
            assert warned() == times * [f"blob {root}, which is pinned, is not whole; to fetch the rest, pin it again"]
            await reader.blobs.pin(root)
            await trio.sleep(2 * SWEEP_EVERY_S)


async def test_that_a_blob_is_damaged_which_is_being_pinned_again_is_worth_no_warning(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        root, reader = await added(swarm, swarm.nodes[0]), await swarm.join_client()
        await reader.blobs.pin(root)
        blocks, fetch = swarm.machine_of(reader).blocks, Fetcher.fetch

        async def fetch_late(*args: Any, **kwargs: Any) -> None:
            await trio.sleep(2 * SWEEP_EVERY_S)
            await fetch(*args, **kwargs)

        monkeypatch.setattr(Fetcher, "fetch", fetch_late)
        rot(blocks, LEAF)
        await blocks.read([LEAF], verify=True)
        await reader.blobs.pin(root)
        assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_an_add_that_fails_leaves_no_pin_and_takes_none_away(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        client = await swarm.join_client()
        pinned = await added(swarm, client, b"pinned before")
        for node in swarm.nodes[:2]:
            swarm.world.silence(node.peer_id)
        for value in (b"pinned before", b"new"):
            with pytest.raises(QueryError):
                await client.blobs.add(value, pin=True)
        assert [kept.cid for kept in await client.blobs.kept() if kept.is_pinned] == [pinned]


async def add_in_vain(client: PrimeDHT) -> None:
    with pytest.raises(QueryError):
        await client.blobs.add(b"value", pin=True)


async def test_an_add_that_fails_does_not_undo_a_pin_that_was_made_meanwhile(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        client = await swarm.join_client()
        for node in swarm.nodes[:2]:
            swarm.world.silence(node.peer_id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(add_in_vain, client)
            await trio.sleep(1)
            await client.blobs.pin(Cid.of_raw(b"value"))
        assert [kept.is_pinned for kept in await client.blobs.kept()] == [True]


async def test_two_adds_that_fail_leave_no_pin(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        client = await swarm.join_client()
        for node in swarm.nodes[:2]:
            swarm.world.silence(node.peer_id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(add_in_vain, client)
            await trio.sleep(1)
            nursery.start_soon(add_in_vain, client)
        assert await client.blobs.kept() == []


async def test_a_pin_takes_over_what_a_replica_fetches_by_itself(autojump_clock: MockClock) -> None:
    many = 48
    async with open_swarm(seed=1, size=1, config=DhtConfig(blobs_in_flight_bytes=16 * MIB)) as swarm:
        writer, replica = await swarm.join_client(), swarm.nodes[0]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.put, "k", Random(8).randbytes(many * MIB))
            await half_of_it(swarm.machine_of(replica).blocks)
            (kept,) = await replica.blobs.kept()
            await replica.blobs.pin(kept.cid)
        assert [(kept.is_pinned, kept.is_complete) for kept in await replica.blobs.kept()] == [(True, True)]
        assert swarm.world.blocks_sent.total() <= many + 1 + 4, "twice only what was under way when the pin began"


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_pin_that_nobody_serves_leaves_the_blob_to_the_replica_again(
    is_cancelled: bool, autojump_clock: MockClock
) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        replica = swarm.nodes[1]
        receipt = await swarm.nodes[0].put("k", VALUE)
        assert receipt.blob is not None
        root, machine = Cid.from_bytes(receipt.blob.cid), swarm.machine_of(replica)
        rot(machine.blocks, LEAF)
        assert await machine.blocks.read([LEAF], verify=True) == [None]
        others = [node.peer_id for node in swarm.nodes if node is not replica]
        for peer in others:
            swarm.world.silence(peer)
        with trio.move_on_after(1 if is_cancelled else 600) as scope:
            with nullcontext() if is_cancelled else pytest.raises(BlobError):
                await replica.blobs.pin(root)
        assert scope.cancelled_caught == is_cancelled
        for peer in others:
            swarm.world.unsilence(peer)
        await trio.sleep(10 * SWEEP_EVERY_S)
        assert [kept.is_complete for kept in await replica.blobs.kept()] == [True]


async def test_a_pin_that_is_undone_though_an_entry_keeps_the_blob_says_so(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        writer, replica = swarm.nodes[:2]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.put, "k", VALUE)
            blocks = swarm.machine_of(replica).blocks
            await half_of_it(blocks)
            (kept,) = await replica.blobs.kept()

            async def undone() -> None:
                with pytest.raises(StorageError, match=f"blob {kept.cid} was unpinned while it was fetched"):
                    await replica.blobs.pin(kept.cid)

            nursery.start_soon(undone)
            while not (await replica.blobs.kept())[0].is_pinned:  # noqa: ASYNC110 - a store tells nobody
                await trio.sleep(0.001)
            assert await replica.blobs.unpin(kept.cid)
        (kept,) = await replica.blobs.kept()
        assert (kept.is_pinned, kept.is_complete) == (False, True)


async def test_a_pin_that_is_undone_while_it_is_announced_is_not_announced(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        root, reader = await added(swarm, swarm.nodes[0], VALUE[:MIB]), await swarm.join()
        await reader.blobs.pin(root)
        assert reader._records._server.provided == {root.multihash}
        provide = reader._records.provide

        async def provide_slowly(multihash: bytes, *, announce: bool = True) -> object:
            await reader.blobs.unpin(root)
            return await provide(multihash, announce=announce)

        monkeypatch.setattr(reader._records, "provide", provide_slowly)
        await reader.blobs.pin(root)
        assert reader._records._server.provided == set()


async def test_a_fetch_to_keep_and_to_a_file_says_once_how_far_it_is(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        root, reader = await added(swarm, swarm.nodes[0]), await swarm.join_client()
        for name in ("fetched", "here already"):
            told: list[BlobProgress] = []
            await reader.blobs.fetch(root, to=tmp_path / name, keep=True, progress=told.append)
            done = [each.done_bytes for each in told]
            assert done == sorted(done)
            assert done[-1] == len(VALUE)
            assert (tmp_path / name).read_bytes() == VALUE


async def test_no_loss_of_power_takes_a_pin_back(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[bool] = []
    claim = BlockStore.claim

    async def note(store: BlockStore, each: Claim, **details: Any) -> RootStatus:
        if each.label == PIN:
            pinned.append(details.get("is_synced", False))
        return await claim(store, each, **details)

    monkeypatch.setattr(BlockStore, "claim", note)
    async with open_swarm(seed=1, size=1) as swarm:
        root, reader = await added(swarm, swarm.nodes[0]), await swarm.join_client()
        await reader.blobs.pin(root)
    assert pinned == [True, True]
