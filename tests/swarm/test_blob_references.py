"""Putting an entry that refers to a blob which the swarm has. In virtual time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
import trio
from trio.testing import MockClock

from prime_dht.blobs.cid import Cid
from prime_dht.entries.entry import BlobRef
from prime_dht.errors import ValidationError
from prime_dht.ids import US_PER_S, OpId, PeerId, TimestampUs, wire_key
from prime_dht.node.blobs.claims import FRESH_S, KeptBlob
from prime_dht.node.blobs.keeping import SWEEP_EVERY_S
from prime_dht.node.blobs.progress import BlobProgress, Stage
from prime_dht.node.blobs.turns import Begin, GiveWay, WaitUntil
from prime_dht.testing.swarm import BLOCKS_BYTES, open_swarm

VALUE = Random(8).randbytes(3 << 20)


async def test_a_second_key_for_a_blob_costs_its_writer_no_bytes(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=8) as swarm:
        blob = (await swarm.nodes[0].put("first", VALUE)).blob
        assert blob is not None
        writer = await swarm.join_client()
        receipt = await writer.put("second", blob)
        assert receipt.acknowledged
        assert receipt.blob == blob
        assert await swarm.machine_of(writer).blocks.status(Cid.from_bytes(blob.cid)) is None
        holders = {node.peer_id for node in swarm.nodes for kept in await node.blobs.kept() if kept.is_complete}
        assert holders >= set(receipt.held_by)
        assert {node.peer_id for node in swarm.closest_to("second", 3)} >= set(receipt.held_by)
        found = await swarm.nodes[0].get("second", latest=True)
        assert found is not None
        assert found.value == VALUE


async def test_a_blob_that_nobody_has_is_not_acknowledged(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=2, size=4) as swarm:
        nowhere = BlobRef(bytes(Cid.of_raw(VALUE)), len(VALUE), "size-1048576")
        receipt = await swarm.nodes[0].put("k", nowhere, wait_s=60)
        assert len(receipt.stored_by) == 3
        assert not receipt.acknowledged


async def test_what_is_no_cid_is_refused_before_anything_is_put(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=3, size=3) as swarm:
        blob = (await swarm.nodes[0].put("first", VALUE)).blob
        assert blob is not None
        with pytest.raises(ValidationError, match="CID"):
            await swarm.nodes[0].put("second", replace(blob, cid=b"none"))
        assert await swarm.nodes[1].get("second") is None


async def test_a_find_says_whom_to_ask_for_its_blob(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=4, size=30) as swarm:
        await swarm.nodes[0].put("k", VALUE)
        searches = {}
        for by_find in (True, False):
            reader = await swarm.join_client()
            found = await reader.get("k", fetch=False)
            assert found is not None
            assert found.blob is not None
            before = swarm.network_of(reader).sent["GetProviders"]
            source = found if by_find else found.blob.cid
            assert await reader.blobs.fetch(source, start=10, stop=2 << 20) == VALUE[10 : 2 << 20]
            async with reader.blobs.stream(source, start=5, stop=10) as pieces:
                assert b"".join([piece async for piece in pieces]) == VALUE[5:10]
            searches[by_find] = swarm.network_of(reader).sent["GetProviders"] - before
        assert searches[True] == 0
        assert searches[False] > 0


async def test_a_find_whose_value_is_no_blob_is_refused(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=5, size=3) as swarm:
        await swarm.nodes[0].put("k", b"small")
        found = await swarm.nodes[1].get("k")
        assert found is not None
        with pytest.raises(ValidationError, match="no blob"):
            await swarm.nodes[1].blobs.fetch(found)


async def test_what_a_stranger_refers_to_and_nobody_has_holds_up_no_other_blob_and_writes_no_log(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def read_never(_cids: Sequence[Cid]) -> list[bytes | None]:
        await trio.sleep_forever()
        raise AssertionError

    async with open_swarm(seed=2, size=5) as swarm:
        stranger, writer = await swarm.join_client(), await swarm.join_client()
        swarm.machine_of(stranger).clock.set_by_us += 9 * 60 * US_PER_S  # a skew that is allowed
        source = swarm.network_of(stranger)._block_source
        assert source is not None
        monkeypatch.setattr(source, "read", read_never)
        for number in range(10):
            nowhere = BlobRef(bytes(Cid.of_raw(b"%d" % number)), 100_000, "size-1048576")
            await stranger.put(f"nowhere {number}", nowhere, wait_s=0)
        await trio.sleep(1)
        assert (await writer.put("k", VALUE, wait_s=20)).acknowledged
        await trio.sleep(600)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_who_says_a_wrong_size_of_anothers_blob_does_it_no_harm(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=2, size=5) as swarm:
        stranger, writer = await swarm.join_client(), await swarm.join_client()
        source = swarm.network_of(writer)._block_source
        assert source is not None
        read, until_s = source.read, trio.current_time() + 200

        async def read_later(cids: Sequence[Cid]) -> list[bytes | None]:
            await trio.sleep_until(until_s)
            return await read(cids)

        monkeypatch.setattr(source, "read", read_later)
        blob = (await writer.put("k", VALUE, wait_s=0)).blob
        assert blob is not None
        for key in ("k", "l"):
            await stranger.put(key, replace(blob, size=len(VALUE) + 1), wait_s=0)
        await trio.sleep(1800)
        holders = [node for node in swarm.closest_to("k", 3) for kept in await node.blobs.kept() if kept.is_complete]
        assert len(holders) == 3


@pytest.mark.parametrize("wrong_by", [-1, 1])
async def test_a_blob_that_has_come_has_the_size_that_it_has_whoever_said_another_before(
    wrong_by: int, autojump_clock: MockClock
) -> None:
    async with open_swarm(seed=2, size=3) as swarm:
        stranger, writer = await swarm.join_client(), await swarm.join_client()
        blob = (await writer.put("elsewhere", VALUE)).blob
        assert blob is not None
        await writer.delete("elsewhere")
        await trio.sleep(FRESH_S + 2 * SWEEP_EVERY_S)
        await stranger.put("k", replace(blob, size=blob.size + wrong_by), wait_s=0)
        assert (await writer.put("k", VALUE)).acknowledged
        await trio.sleep(FRESH_S + 2 * SWEEP_EVERY_S)
        assert {kept.size_bytes for node in swarm.nodes[:3] for kept in await node.blobs.kept()} == {len(VALUE)}


async def test_whoever_said_too_little_of_a_blob_is_charged_what_it_has_whoever_brought_it_here(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=2, size=2) as swarm:
        stranger, writer = await swarm.join_client(), swarm.nodes[1]
        accounts = swarm.nodes[0].blobs._keeping._claims._accounts
        blob = (await writer.blobs.add(VALUE, pin=True)).blob
        assert blob is not None
        root = Cid.from_bytes(blob.cid)
        await writer.delete(f"blob/{root}")
        await trio.sleep(FRESH_S + 2 * SWEEP_EVERY_S)
        await stranger.put("k", replace(blob, size=1), wait_s=0)
        assert accounts.bytes_with(stranger.peer_id, root, 0) == 1
        await swarm.nodes[0].blobs.pin(root)
        await trio.sleep(SWEEP_EVERY_S)
        assert accounts.bytes_with(stranger.peer_id, root, 0) == len(VALUE)


async def test_however_many_blobs_are_lacking_they_are_not_gone_through_for_each_that_comes(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    many, new = 20_000, 50
    async with open_swarm(seed=1, size=1) as swarm:
        keeping = swarm.nodes[0].blobs._keeping
        claims, turns = keeping._claims, keeping._turns
        stranger = PeerId(b"stranger")
        monkeypatch.setattr(turns, "_is_ours", lambda _: False)
        lacking = [
            KeptBlob(
                op_id=OpId(b"%032d" % number),
                root=Cid.of_raw(b"%d" % number),
                size=1,
                key=wire_key("k"),
                publisher=stranger,
                created_at_us=TimestampUs(number),
                is_by_put=True,
                since_s=trio.current_time(),
            )
            for number in range(many + new)
        ]
        claims.kept.update({blob.op_id: blob for blob in lacking})
        turns.add(lacking[:many])
        claims.changed.set()
        await trio.sleep(30)
        times: list[float] = []
        go_on = turns.next

        def noted(now_s: float) -> Begin | GiveWay | WaitUntil:
            times.append(now_s)
            return go_on(now_s)

        monkeypatch.setattr(turns, "next", noted)
        for blob in lacking[many:]:
            claims._new[blob.op_id] = blob
            claims.changed.set()
            await trio.sleep(0.005)
        await trio.sleep(1)
        assert 1 < len(times) < new / 5
        assert all(blob.op_id in turns._lacking for blob in lacking)


async def test_what_strangers_refer_to_and_nobody_has_takes_no_room_from_other_blobs(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        stranger, writer = await swarm.join_client(), await swarm.join_client()
        for number in range(3):
            nowhere = BlobRef(bytes(Cid.of_dag_pb(b"%d" % number)), BLOCKS_BYTES, "size-1048576")
            assert len((await stranger.put(f"nowhere {number}", nowhere, wait_s=0)).stored_by) == 3
        receipt = await writer.put("k", VALUE)
        assert receipt.acknowledged
        assert len(receipt.stored_by) == 3


async def test_a_replica_that_finds_no_room_for_a_blob_that_it_took_keeps_nothing_of_it_and_tries_again_later(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        writer = await swarm.join_client()
        replicas = [swarm.machine_of(node).blocks for node in swarm.nodes[:3]]

        def fill_up(now: BlobProgress) -> None:
            if now.stage is Stage.SPREADING:
                for blocks in replicas:
                    blocks.max_bytes = 2 << 20

        receipt = await writer.put("k", VALUE, wait_s=60, progress=fill_up)
        assert (len(receipt.stored_by), receipt.held_by, receipt.acknowledged) == (3, (), False)
        await trio.sleep(2 * SWEEP_EVERY_S)
        for node, blocks in zip(swarm.nodes[:3], replicas, strict=True):
            assert await node.blobs.kept() == []
            assert (await blocks.stats()).blocks == 0
            blocks.max_bytes = BLOCKS_BYTES
        await trio.sleep(2 * 3600)
        kept = [blob for node in swarm.nodes[:3] for blob in await node.blobs.kept()]
        assert [blob.is_complete for blob in kept] == [True] * 3
