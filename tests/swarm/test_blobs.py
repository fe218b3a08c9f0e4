"""Blobs in whole swarms: put, spread, fetched, kept, let go of, whatever providers do. In virtual time."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from random import Random

import pytest
import trio
from trio.testing import MockClock

from prime_dht.blobs.cid import Cid, Codec
from prime_dht.config import DhtConfig
from prime_dht.entries.entry import BlobRef
from prime_dht.entries.limits import Limits
from prime_dht.errors import BlobError, QueryError, StorageError, ValidationError
from prime_dht.ids import PeerId, wire_key
from prime_dht.node.blobs.claims import FRESH_S
from prime_dht.node.blobs.keeping import SWEEP_EVERY_S
from prime_dht.node.blobs.progress import BlobProgress, Stage
from prime_dht.node.core import Node
from prime_dht.node.writer import Statement
from prime_dht.storage.base import EntryQuery
from prime_dht.storage.blocks_status import NoRoomError
from prime_dht.testing.swarm import Swarm, open_swarm

MIB = 1 << 20
VALUE = Random(7).randbytes(3 * MIB + 5)
BLOCKS = 5
"""Four leaves and the root."""

STEP_S = 0.12
"""In which a replica gets some blocks, but not all of them."""


async def holders(swarm: Swarm) -> set[PeerId]:
    """Who keeps a complete blob."""
    return {node.peer_id for node in swarm.nodes for blob in await node.blobs.kept() if blob.is_complete}


async def reader_of(swarm: Swarm, key: str) -> Node:
    """A server that does not hold what is under a key."""
    replicas = swarm.closest_to(key, 3)
    return next(node for node in swarm.nodes if node not in replicas)


async def swept(swarm: Swarm) -> None:
    """Wait until every node has let go of what nobody needs."""
    await trio.sleep(FRESH_S + 2 * SWEEP_EVERY_S)


async def test_a_large_value_is_held_by_the_replicas_of_its_key_and_read_by_anybody(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        receipt = await swarm.nodes[0].put("k", VALUE)
        assert receipt.acknowledged
        assert receipt.blob is not None
        assert set(receipt.held_by) <= set(receipt.stored_by)
        assert len(receipt.held_by) >= receipt.needed == 2
        for node in swarm.nodes:
            found = await node.get("k")
            assert found is not None
            assert found.value == VALUE
            assert found.blob == receipt.blob
        await swept(swarm)
        assert await holders(swarm) == {node.peer_id for node in swarm.closest_to("k", 3)}


async def test_a_holder_reads_its_own_blocks(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        await swarm.nodes[0].put("k", VALUE)
        await trio.sleep(30)
        swarm.world.blocks_sent.clear()
        found = await swarm.closest_to("k", 1)[0].get("k")
        assert found is not None
        assert found.value == VALUE
        assert not swarm.world.blocks_sent


async def test_every_holder_is_a_provider_of_the_root(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        receipt = await swarm.nodes[0].put("k", VALUE)
        await trio.sleep(10)
        assert receipt.blob is not None
        found = await swarm.nodes[5].find_providers(receipt.blob.cid)
        assert {provider.peer for provider in found} >= {node.peer_id for node in swarm.closest_to("k", 3)}


async def test_a_client_puts_a_blob_that_outlives_it(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        client = await swarm.join_client()
        assert (await client.put("k", VALUE)).acknowledged
        await swarm.stop(client)
        found = await swarm.nodes[0].get("k")
        assert found is not None
        assert found.value == VALUE


async def test_a_reader_of_bytes_gives_the_same_blob_as_bytes(autojump_clock: MockClock) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(VALUE), 100_000):
            await trio.lowlevel.checkpoint()
            yield VALUE[start : start + 100_000]

    async with open_swarm(seed=1, size=3) as swarm:
        one = await swarm.nodes[0].put("one", pieces())
        other = await swarm.nodes[1].put("other", VALUE)
        assert one.blob == other.blob


async def test_a_reader_that_ends_early_is_a_small_value(autojump_clock: MockClock) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        await trio.lowlevel.checkpoint()
        yield b"sm"
        yield b"all"

    async with open_swarm(seed=1, size=2) as swarm:
        assert (await swarm.nodes[0].put("k", pieces())).blob is None
        found = await swarm.nodes[1].get("k")
        assert found is not None
        assert found.value == b"small"


async def test_what_is_added_is_found_by_its_cid_alone(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        receipt = await swarm.nodes[0].blobs.add(VALUE, name="weights.bin")
        assert receipt.blob is not None
        cid = str(Cid.from_bytes(receipt.blob.cid))
        assert receipt.key == f"/prime/blob/{cid}".encode()
        for node in swarm.nodes:
            assert await node.blobs.fetch(cid) == VALUE
        (kept,) = await swarm.closest_to(receipt.key, 1)[0].blobs.kept()
        assert (str(kept.cid), kept.name, kept.size_bytes) == (cid, "weights.bin", len(VALUE))


async def test_a_get_says_how_far_it_is(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        told: list[BlobProgress] = []
        await swarm.nodes[0].put("k", VALUE, progress=told.append)
        assert [each.done_bytes for each in told if each.stage is Stage.STORING][-1] == len(VALUE)
        assert [each.replicas_held for each in told if each.stage is Stage.SPREADING][-1] >= 2
        told.clear()
        await (await reader_of(swarm, "k")).get("k", progress=told.append)
        done = [each.done_bytes for each in told]
        assert done == sorted(done)
        assert (told[-1].done_bytes, told[-1].size_bytes, told[-1].fetched_blocks) == (len(VALUE), len(VALUE), BLOCKS)


# Limits


async def test_a_blob_too_large_to_return_is_not_fetched(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=4, config=DhtConfig(max_value_bytes=MIB)) as swarm:
        receipt = await swarm.nodes[0].put("k", VALUE)
        swarm.world.blocks_sent.clear()
        with pytest.raises(BlobError, match="give a path"):
            await swarm.nodes[1].get("k")
        assert not swarm.world.blocks_sent
        found = await swarm.nodes[1].get("k", fetch=False)
        assert found is not None
        assert (found.value, found.blob) == (b"", receipt.blob)


async def test_a_writer_refuses_a_blob_over_its_limit(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2, config=DhtConfig(limits=Limits(max_blob_bytes=MIB))) as swarm:
        with pytest.raises(ValidationError, match=r"blob: .* the limit is 1,048,576 bytes"):
            await swarm.nodes[0].put("k", VALUE)
        assert await swarm.nodes[0].blobs.kept() == []


@pytest.mark.parametrize("limit", ["max_blob_bytes", "max_publisher_blob_bytes"])
async def test_a_replica_refuses_an_entry_whose_blob_is_over_a_limit_before_it_fetches_anything(
    limit: str, autojump_clock: MockClock
) -> None:
    strict = DhtConfig(limits=replace(Limits(), **{limit: 2 * MIB}))
    async with open_swarm(seed=1, size=2) as swarm:
        replica = await swarm.join(config=strict)
        receipt = await swarm.nodes[0].put("k", VALUE)
        ((refused_by, reason),) = receipt.refused
        assert refused_by == replica.peer_id
        assert "the limit is 2,097,152 bytes" in reason
        await trio.sleep(60)
        assert await replica.blobs.kept() == []


async def test_a_put_whose_store_is_full_half_way_leaves_nothing_and_says_so(autojump_clock: MockClock) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(VALUE), MIB // 4):
            await trio.lowlevel.checkpoint()
            yield VALUE[start : start + MIB // 4]

    async with open_swarm(seed=1, size=2) as swarm:
        writer = swarm.nodes[0]
        swarm.machine_of(writer).blocks.max_bytes = 2 * MIB
        with pytest.raises(StorageError, match="no room"):
            await writer.put("k", pieces())
        await writer.blobs.gc()
        assert (await swarm.machine_of(writer).blocks.stats()).blocks == 0
        assert await writer.get("k") is None


async def test_a_fetch_whose_store_is_full_half_way_goes_on_once_there_is_room(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        receipt = await swarm.nodes[0].put("k", VALUE)
        reader = await reader_of(swarm, "k")
        await swept(swarm)
        blocks = swarm.machine_of(reader).blocks
        blocks.max_bytes = 2 * MIB
        assert receipt.blob is not None
        with pytest.raises(StorageError, match="no room"):
            await reader.blobs.pin(receipt.blob.cid)
        present = (await blocks.stats()).blocks
        assert 0 < present < BLOCKS
        blocks.max_bytes = 8 * MIB
        swarm.world.blocks_sent.clear()
        await reader.blobs.pin(receipt.blob.cid)
        assert swarm.world.blocks_sent.total() == BLOCKS - present
        assert await reader.blobs.fetch(receipt.blob.cid) == VALUE


async def test_a_blob_that_lies_about_its_size_is_refused_and_does_no_harm(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        writer = swarm.nodes[0]
        receipt = await writer.blobs.add(VALUE, pin=True)
        assert receipt.blob is not None
        lie = replace(receipt.blob, size=10)
        await writer._writer.put(Statement(key=wire_key("k"), value=None, blob=lie))
        reader = await reader_of(swarm, "k")
        with pytest.raises(BlobError, match=f"{len(VALUE)} bytes where 10 were said"):
            await reader.get("k")


async def test_an_entry_that_names_no_blob_is_taken_by_nobody(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        statement = Statement(key=wire_key("k"), value=None, blob=BlobRef(b"no cid", 1, ""))
        with pytest.raises(QueryError, match="not the CID of a blob's block"):
            await swarm.nodes[0]._writer.put(statement)


async def test_a_put_is_not_acknowledged_as_long_as_replicas_have_but_a_part(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        writer = await reader_of(swarm, "k")
        swarm.world.block_lies[writer.peer_id] = lambda cid, data: data if cid.codec is Codec.DAG_PB else None
        receipt = await writer.put("k", VALUE, wait_s=60)
        assert not receipt.acknowledged
        assert (len(receipt.stored_by), receipt.held_by) == (3, ())
        assert receipt.warning == "its blob is held by 0 of 3 replicas so far"
        del swarm.world.block_lies[writer.peer_id]
        await trio.sleep(600)
        assert await holders(swarm) >= {node.peer_id for node in swarm.closest_to("k", 3)}


async def test_a_replica_without_room_refuses_the_entry(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        swarm.machine_of(swarm.nodes[1]).blocks.max_bytes = 2 * MIB
        receipt = await swarm.nodes[0].put("k", VALUE)
        assert [peer for peer, reason in receipt.refused if "no room" in reason] == [swarm.nodes[1].peer_id]


# Replicas that lack a blob


async def test_a_node_without_room_is_given_the_entry_by_sync_and_goes_without_the_blob(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        await swarm.nodes[0].put("k", VALUE)
        machine = swarm.machine()
        machine.blocks.max_bytes = MIB
        joined = await swarm.start(machine, via=[swarm.nodes[0]])
        await trio.sleep(120)
        page = await machine.disc.get_entries(EntryQuery(key=wire_key("k")), now_us=0)
        assert len(page.entries) == 1
        assert await joined.blobs.kept() == []
        health = await joined.health()
        assert health.holding is not None
        assert health.holding.is_settled


async def test_a_put_that_does_not_wait_says_that_nobody_holds_the_blob_yet(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        writer = await reader_of(swarm, "k")
        receipt = await writer.put("k", VALUE, wait_s=0)
        assert not receipt.acknowledged
        assert receipt.held_by == ()
        assert receipt.warning is not None
        await trio.sleep(30)
        assert await holders(swarm) >= {node.peer_id for node in swarm.closest_to("k", 3)}


async def test_a_node_that_joins_fetches_the_blobs_of_what_it_is_a_replica_of(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        await swarm.nodes[0].put("k", VALUE)
        joined = await swarm.join()
        await trio.sleep(120)
        (kept,) = await joined.blobs.kept()
        assert kept.is_complete


async def test_a_replica_that_was_stopped_in_the_middle_goes_on_where_it_was(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        writer, replica = swarm.nodes
        await writer.put("k", VALUE, wait_s=0)
        await trio.sleep(STEP_S)
        machine = await swarm.stop(replica)
        before = swarm.world.blocks_sent[writer.peer_id]
        status = await machine.blocks.roots()
        present = status[0].present_blocks
        assert 0 < present < BLOCKS
        again = await swarm.start(machine, via=[writer])
        await trio.sleep(30)
        (kept,) = await again.blobs.kept()
        assert kept.is_complete
        assert swarm.world.blocks_sent[writer.peer_id] - before == BLOCKS - present


async def test_when_a_holder_dies_the_next_closest_takes_its_place(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        await swarm.nodes[0].put("k", VALUE)
        first, *_ = swarm.closest_to("k", 3)
        fourth = swarm.closest_to("k", 4)[3]
        await trio.sleep(120)
        assert fourth.peer_id not in await holders(swarm)
        await swarm.stop(first)
        await trio.sleep(1800)
        assert await holders(swarm) >= {node.peer_id for node in swarm.closest_to("k", 3)}


async def test_a_replica_whose_blocks_were_lost_fetches_them_again(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        await swarm.nodes[0].put("k", VALUE)
        await trio.sleep(10)
        machine = await swarm.stop(swarm.nodes[1])
        machine.blocks = swarm.machine().blocks
        again = await swarm.start(machine, via=[swarm.nodes[0]])
        await trio.sleep(60)
        (kept,) = await again.blobs.kept()
        assert kept.is_complete


@pytest.mark.parametrize(("error", "is_told"), [(StorageError("it fails"), True), (NoRoomError(2, 1, 3), False)])
async def test_a_failing_disk_is_worth_a_warning_and_a_full_store_is_not(
    error: StorageError,
    is_told: bool,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(*_: object) -> None:
        raise error

    async with open_swarm(seed=1, size=1) as swarm:
        client = await swarm.join_client()
        monkeypatch.setattr(swarm.machine_of(swarm.nodes[0]).blocks, "add", fail)
        await client.put("k", VALUE, wait_s=5)
    warned = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert any(str(error) in message for message in warned) == is_told


# Letting go


async def test_a_deleted_blob_is_let_go_of(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        receipt = await swarm.nodes[0].put("k", VALUE)
        await swarm.nodes[0].delete("k")
        await swept(swarm)
        assert await holders(swarm) == set()
        for node in swarm.nodes:
            assert (await swarm.machine_of(node).blocks.stats()).blocks == 0
            assert node._records._server.provided == set()
        assert receipt.blob is not None
        with pytest.raises(BlobError, match=str(Cid.from_bytes(receipt.blob.cid))):
            await swarm.nodes[0].blobs.fetch(receipt.blob.cid)


async def test_a_blob_that_another_took_the_place_of_is_let_go_of(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        await swarm.nodes[0].put("k", VALUE)
        newer = await swarm.nodes[0].put("k", VALUE[::-1])
        await swept(swarm)
        for node in swarm.nodes:
            (kept,) = await node.blobs.kept()
            assert newer.blob is not None
            assert bytes(kept.cid) == newer.blob.cid


async def test_a_blob_goes_when_its_entry_expires(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        await swarm.nodes[0].put("k", VALUE, ttl=600)
        await trio.sleep(300)
        assert len(await holders(swarm)) == 3
        await trio.sleep(300)
        await swept(swarm)
        assert await holders(swarm) == set()


async def test_a_blob_that_is_kept_alive_outlives_its_first_entry(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        receipt = await swarm.nodes[0].put("k", VALUE, ttl=600, keep=True)
        swarm.world.blocks_sent.clear()
        await trio.sleep(2000)
        assert not swarm.world.blocks_sent
        found = await swarm.nodes[1].get("k", latest=True)
        assert found is not None
        assert (found.value, found.blob) == (VALUE, receipt.blob)
        assert found.op_id != receipt.op_id


async def test_a_pinned_blob_stays_until_it_is_unpinned(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        receipt = await swarm.nodes[0].put("k", VALUE)
        reader = await reader_of(swarm, "k")
        assert receipt.blob is not None
        await reader.blobs.pin(receipt.blob.cid)
        await swarm.nodes[0].delete("k")
        await swept(swarm)
        assert await holders(swarm) == {reader.peer_id}
        (kept,) = await reader.blobs.kept()
        assert (kept.is_pinned, kept.references, kept.size_bytes) == (True, (), len(VALUE))
        assert await swarm.nodes[1].blobs.fetch(receipt.blob.cid) == VALUE
        assert await reader.blobs.unpin(receipt.blob.cid)
        assert not await reader.blobs.unpin(receipt.blob.cid)
        assert await reader.blobs.kept() == []
        assert (await swarm.machine_of(reader).blocks.stats()).blocks == 0


# Providers that fail


async def test_a_liar_is_charged_and_the_blob_comes_from_the_others(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        receipt = await swarm.nodes[0].put("k", VALUE)
        await swept(swarm)
        liar, *_ = swarm.closest_to("k", 3)
        reader = await reader_of(swarm, "k")
        swarm.world.block_lies[liar.peer_id] = lambda _, data: b"?" + (data or b"")[1:]
        assert receipt.blob is not None
        assert await reader.blobs.fetch(receipt.blob.cid) == VALUE
        assert swarm.network_of(reader).counters().offences <= 1


async def test_a_liar_is_asked_once_though_it_be_found_again_and_again(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        receipt = await swarm.nodes[0].put("k", VALUE)
        await swept(swarm)
        for liar in swarm.closest_to("k", 3):
            swarm.world.block_lies[liar.peer_id] = lambda _, data: b"?" + (data or b"")[1:]
        reader = await reader_of(swarm, "k")
        assert receipt.blob is not None
        with pytest.raises(BlobError, match=r"tried \d providers: .* other bytes"):
            await reader.blobs.fetch(receipt.blob.cid)
        assert swarm.network_of(reader).counters().offences == 3


async def test_who_lacks_what_it_announced_is_done_without(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        receipt = await swarm.nodes[0].put("k", VALUE)
        await swept(swarm)
        for lacking in swarm.closest_to("k", 3)[:2]:
            swarm.world.block_lies[lacking.peer_id] = lambda *_: None
        assert receipt.blob is not None
        assert await (await reader_of(swarm, "k")).blobs.fetch(receipt.blob.cid) == VALUE


async def test_a_holder_that_falls_silent_is_done_without(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        receipt = await swarm.nodes[0].put("k", VALUE)
        await swept(swarm)
        for silent in swarm.closest_to("k", 3)[:2]:
            swarm.world.silence(silent.peer_id)
        assert receipt.blob is not None
        assert await (await reader_of(swarm, "k")).blobs.fetch(receipt.blob.cid) == VALUE


async def test_a_holder_that_vanishes_in_the_middle_is_done_without(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        receipt = await swarm.nodes[0].put("k", VALUE)
        await swept(swarm)
        reader = await reader_of(swarm, "k")
        first, *_ = swarm.closest_to("k", 3)
        gone = trio.Event()

        def vanish(progress: BlobProgress) -> None:
            if progress.fetched_blocks >= 2:
                swarm.network_of(first).disconnect_all()
                swarm.network_of(first).unmount()
                gone.set()

        assert receipt.blob is not None
        assert await reader.blobs.fetch(receipt.blob.cid, progress=vanish) == VALUE
        assert gone.is_set()


async def test_where_nobody_has_it_the_error_names_the_blob_and_what_was_tried(autojump_clock: MockClock) -> None:
    cid = Cid.of_dag_pb(b"nobody's")
    async with open_swarm(seed=1, size=3) as swarm:
        with pytest.raises(BlobError, match=f"blob {cid}: nobody has block {cid}; .* in 3 searches"):
            await swarm.nodes[0].blobs.fetch(cid)
