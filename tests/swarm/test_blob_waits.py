"""What becomes of a blob whose put does not wait to its end: its entry is out, so its blocks stay. In virtual time."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from random import Random

import pytest
import trio
from trio.testing import MockClock

from prime_dht.blobs.cid import Cid
from prime_dht.entries.entry import Slot
from prime_dht.errors import QueryError, StorageError, ValidationError
from prime_dht.ids import PeerId
from prime_dht.net.network import Network
from prime_dht.node.blobs import left
from prime_dht.node.blobs.claims import FRESH_S
from prime_dht.node.blobs.holding import held_by
from prime_dht.node.blobs.keeping import SWEEP_EVERY_S
from prime_dht.node.blobs.left import LOOK_EVERY_S, WAIT_FIRST_S
from prime_dht.node.blobs.progress import BlobProgress, Stage
from prime_dht.node.blobs.putting import LOOK_AT_MOST_S
from prime_dht.node.core import Node
from prime_dht.node.results import PutReceipt
from prime_dht.node.writer import Statement
from prime_dht.storage.base import OwnSlot
from prime_dht.testing.swarm import Swarm, open_swarm
from prime_dht.wire.kad import EntryStatus, Reply, Request, StatusCode

VALUE = Random(9).randbytes(300_000)
SLOWLY_S = 200.0
"""Until the first block has gone up a slow link."""


class StoppedError(Exception):
    """A caller has seen enough."""


async def join_slow_client(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A client whose first block comes long after it was put."""
    client = await swarm.join_client()
    source = swarm.network_of(client)._block_source
    assert source is not None
    read, until_s = source.read, trio.current_time() + SLOWLY_S

    async def read_slowly(cids: Sequence[Cid]) -> list[bytes | None]:
        await trio.sleep_until(until_s)
        return await read(cids)

    monkeypatch.setattr(source, "read", read_slowly)
    return client


async def swept(swarm: Swarm) -> None:
    """Wait until every node has let go of what nobody needs."""
    await trio.sleep(FRESH_S + 2 * SWEEP_EVERY_S)


async def supersede(client: Node, newer: bytes | None) -> None:
    """Put something newer than a blob that was put under "k", or delete it."""
    if newer is None:
        await client.delete("k")
    else:
        await client.put("k", newer, wait_s=0)


async def keeps(client: Node, receipt: PutReceipt) -> bool:
    """Whether a node has the blocks of a blob that was put."""
    assert receipt.blob is not None
    return receipt.blob.cid in [bytes(blob.cid) for blob in await client.blobs.kept()]


async def is_read_in_the_end(swarm: Swarm) -> bool:
    await swept(swarm)
    await trio.sleep(3600)
    found = await swarm.nodes[0].get("k", latest=True)
    return found is not None and found.value == VALUE


async def test_a_put_that_is_cancelled_once_its_entry_is_out_ends_well_all_the_same(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        client = await join_slow_client(swarm, monkeypatch)
        with trio.move_on_after(20) as scope:
            await client.put("k", VALUE)
        assert scope.cancelled_caught
        assert await is_read_in_the_end(swarm)


async def test_what_a_progress_raises_comes_out_as_it_is_and_costs_the_blob_nothing(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(now: BlobProgress) -> None:
        if now.stage is Stage.SPREADING:
            raise StoppedError

    async with open_swarm(seed=1, size=4) as swarm:
        client = await join_slow_client(swarm, monkeypatch)
        with pytest.raises(StoppedError):
            await client.put("k", VALUE, progress=stop)
        assert await is_read_in_the_end(swarm)


async def test_a_put_that_is_cancelled_while_some_replica_may_have_the_entry_keeps_its_blocks_until_that_ends(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        client = await swarm.join_client()
        put = client._writer.put

        async def put_but_hear_nothing(
            statement: Statement, *, replication: int | None = None, leaves: Callable[[], None] | None = None
        ) -> None:
            await put(statement, replication=replication, leaves=leaves)
            await trio.sleep_forever()

        monkeypatch.setattr(client._writer, "put", put_but_hear_nothing)
        with trio.move_on_after(5):
            await client.put("k", VALUE, ttl=3600)
        blocks = swarm.machine_of(client).blocks
        await swept(swarm)
        assert (await blocks.stats()).blocks == 1
        await trio.sleep(3600)
        assert (await blocks.stats()).blocks == 0


async def test_the_blocks_of_a_put_that_is_cancelled_before_its_entry_goes_out_go(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        client = await swarm.join_client()

        async def search_for_ever(*_: object, **__: object) -> None:
            await trio.sleep_forever()

        monkeypatch.setattr(client._writer._explorer, "replicas_of", search_for_ever)
        puts: list[Callable[[], Awaitable[object]]] = [
            lambda: client.put("k", VALUE),
            lambda: client.blobs.add(VALUE),
        ]
        for put in puts:
            with trio.move_on_after(5) as scope:
                await put()
            assert scope.cancelled_caught
            await swept(swarm)
            assert await client.blobs.kept() == []
            assert (await swarm.machine_of(client).blocks.stats()).blocks == 0


async def test_the_blocks_of_a_put_that_is_cancelled_while_it_reads_go(autojump_clock: MockClock) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(300):
            yield bytes(5000)
        await trio.sleep_forever()

    async with open_swarm(seed=1, size=2) as swarm:
        blocks = swarm.machine_of(swarm.nodes[0]).blocks
        with trio.move_on_after(5):
            await swarm.nodes[0].put("k", pieces())
        assert (await blocks.stats()).blocks == 1
        await swept(swarm)
        assert (await blocks.stats()).blocks == 0


async def test_the_blocks_of_what_is_added_go_if_it_cannot_be_pinned_nor_put(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        client = await swarm.join_client()
        blocks = swarm.machine_of(client).blocks

        async def fail(*_: object, **__: object) -> None:
            raise StorageError("the disk is full")

        for method in ("claim", "settle"):
            with monkeypatch.context() as patched:
                patched.setattr(blocks, method, fail)
                with pytest.raises(StorageError, match="the disk is full"):
                    await client.blobs.add(VALUE, pin=True)
            await swept(swarm)
            assert client.blobs._blob_writer._claims._puts == {}
            assert await client.blobs.kept() == []
            assert (await blocks.stats()).blocks == 0


@pytest.mark.parametrize("is_blob", [False, True])
@pytest.mark.parametrize("is_kept", [False, True])
async def test_of_two_puts_of_a_slot_the_one_whose_content_came_last_stands(
    is_blob: bool, is_kept: bool, autojump_clock: MockClock
) -> None:
    value = VALUE if is_blob else b"from a reader"
    is_read = trio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        await is_read.wait()
        yield value

    async with open_swarm(seed=1, size=3) as swarm, trio.open_nursery() as nursery:
        writer = swarm.nodes[0]
        nursery.start_soon(lambda: writer.put("k", pieces(), ttl=600, keep=is_kept))
        await trio.sleep(1)
        await writer.put("k", b"meanwhile", ttl=60, keep=True)
        is_read.set()
        for minutes in (8, 1, 30):
            await trio.sleep(60 * minutes)
            found = await swarm.nodes[1].get("k", latest=True)
            assert (None if found is None else found.value) == (value if is_kept or minutes < 30 else None)


@pytest.mark.parametrize("newer", [b"small", VALUE[::-1], None], ids=["by_a_value", "by_another_blob", "by_a_delete"])
async def test_a_put_that_its_writer_supersedes_ends_without_its_replicas_and_keeps_nothing(
    newer: bytes | None, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipts: list[PutReceipt] = []

    async with open_swarm(seed=1, size=4) as swarm, trio.open_nursery() as nursery:
        client = await join_slow_client(swarm, monkeypatch)

        async def put() -> None:
            receipts.append(await client.put("k", VALUE))

        nursery.start_soon(put)
        await trio.sleep(1)
        await supersede(client, newer)
        await trio.sleep(LOOK_AT_MOST_S)
        (receipt,) = receipts
        assert receipt.superseded
        assert not receipt.acknowledged
        assert len(receipt.stored_by) == 3
        await swept(swarm)
        assert not await keeps(client, receipt)


async def test_a_put_that_follows_what_its_writer_forgot_ends_without_its_replicas(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        client = await join_slow_client(swarm, monkeypatch)
        await client.put("k", b"newer", replication=1)
        own_slots_of = client._writer._storage.own_slots_of

        async def forget(slots: Sequence[Slot]) -> list[OwnSlot | None]:
            return [None for _ in await own_slots_of(slots)]

        monkeypatch.setattr(client._writer._storage, "own_slots_of", forget)
        swarm.machine_of(client).clock.set_by_us = -60 * 1_000_000
        began_s = trio.current_time()
        receipt = await client.put("k", VALUE)
        assert receipt.stored_by
        assert receipt.superseded
        assert not receipt.acknowledged
        assert trio.current_time() < began_s + LOOK_AT_MOST_S


async def test_a_put_goes_on_waiting_where_a_replica_makes_up_that_it_is_superseded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        client = await join_slow_client(swarm, monkeypatch)
        liar = swarm.network_of(swarm.closest_to("k", 1)[0])
        handle = liar._handler

        async def lie(peer: PeerId, request: Request) -> Reply:
            answer = handle(peer, request)
            reply = answer if isinstance(answer, Reply) else await answer
            statuses = tuple(EntryStatus(status.op_id, StatusCode.SUPERSEDED) for status in reply.statuses)
            return reply._replace(statuses=statuses)

        monkeypatch.setattr(liar, "_handler", lie)
        receipt = await client.put("k", VALUE)
        assert receipt.superseded
        assert receipt.acknowledged


async def test_a_put_of_what_its_writer_puts_again_waits_until_replicas_hold_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipts: list[PutReceipt] = []

    async with open_swarm(seed=1, size=4) as swarm:
        client = await join_slow_client(swarm, monkeypatch)

        async def put() -> None:
            receipts.append(await client.put("k", VALUE))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(put)
            await trio.sleep(1)
            nursery.start_soon(put)
        assert [receipt.acknowledged for receipt in receipts] == [True, True]


@pytest.mark.parametrize(("wait_s", "cancelled_after_s"), [(0, 60), (3, 60), (60, 3)])
async def test_the_blocks_of_a_put_that_was_left_go_once_replicas_hold_what_was_put_again(
    wait_s: float, cancelled_after_s: float, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        client = await join_slow_client(swarm, monkeypatch)
        with trio.move_on_after(cancelled_after_s):
            await client.blobs.add(VALUE, wait_s=wait_s)
        assert (await client.blobs.add(VALUE, wait_s=1000)).acknowledged
        await swept(swarm)
        assert await client.blobs.kept() == []


@pytest.mark.parametrize("wait_s", [0, 3])
async def test_the_blocks_of_a_put_that_did_not_wait_go_once_replicas_hold_them(
    wait_s: float, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        client = await join_slow_client(swarm, monkeypatch)
        assert not (await client.put("k", VALUE, wait_s=wait_s)).acknowledged
        assert len(await client.blobs.kept()) == 1
        await trio.sleep(SLOWLY_S + 3 * WAIT_FIRST_S)
        await swept(swarm)
        assert await client.blobs.kept() == []
        assert await is_read_in_the_end(swarm)


@pytest.mark.parametrize("newer", [b"small", VALUE[::-1], None], ids=["by_a_value", "by_another_blob", "by_a_delete"])
async def test_the_blocks_of_a_put_that_did_not_wait_go_once_it_is_superseded(
    newer: bytes | None, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        client = await join_slow_client(swarm, monkeypatch)
        receipt = await client.put("k", VALUE, wait_s=0)
        await supersede(client, newer)
        await trio.sleep(WAIT_FIRST_S + LOOK_EVERY_S)
        await swept(swarm)
        assert not await keeps(client, receipt)


async def test_the_blocks_of_a_put_that_did_not_wait_stay_while_too_few_hold_them(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        client = await join_slow_client(swarm, monkeypatch)
        await client.put("k", VALUE, wait_s=0, ttl=7200)
        for node in swarm.closest_to("k", 2):
            await swarm.stop(node)
        asked: list[PeerId] = []

        async def note(network: Network, peer: PeerId, roots: Collection[Cid]) -> set[Cid]:
            asked.append(peer)
            return await held_by(network, peer, roots)

        monkeypatch.setattr(left, "held_by", note)
        await trio.sleep(3600)
        assert len(await client.blobs.kept()) == 1
        assert 5 * 3 <= len(asked) <= 6 * 3  # after 1, 2, 4, 8, .. minutes
        await trio.sleep(3600)
        await swept(swarm)
        assert await client.blobs.kept() == []


async def test_of_many_puts_that_did_not_wait_the_blocks_of_the_earliest_stay_until_their_entries_end(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(left, "MOST_FOLLOWED", 2)
    async with open_swarm(seed=1, size=4) as swarm:
        client = await swarm.join_client()
        receipts = [await client.put(f"k{i}", VALUE[i:], wait_s=0, ttl=7200) for i in range(3)]
        await trio.sleep(3 * WAIT_FIRST_S)
        await swept(swarm)
        assert [await keeps(client, receipt) for receipt in receipts] == [True, False, False]
        await trio.sleep(7200)
        assert await client.blobs.kept() == []


async def test_the_blocks_of_a_put_that_no_replica_took_go(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        client = await swarm.join_client()
        for node in list(swarm.nodes):
            swarm.world.silence(node.peer_id)
        with pytest.raises(QueryError, match="no replica took"):
            await client.put("k", VALUE)
        await swept(swarm)
        assert (await swarm.machine_of(client).blocks.stats()).blocks == 0


@pytest.mark.parametrize("wait_s", [-1.0, math.nan])
async def test_a_wait_that_is_no_length_of_time_is_refused_before_anything_is_done(
    wait_s: float, autojump_clock: MockClock
) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        writer = swarm.nodes[0]
        with pytest.raises(ValidationError, match="wait_s must be a number of seconds, not"):
            await writer.put("k", VALUE, wait_s=wait_s)
        with pytest.raises(ValidationError, match="wait_s must be a number of seconds, not"):
            await writer.blobs.add(VALUE, wait_s=wait_s)
        assert await writer.blobs.kept() == []
        assert await writer.get("k") is None


@pytest.mark.parametrize("seconds", [1e305, math.inf, math.nan])
async def test_an_entry_that_would_never_end_is_refused_before_anything_is_stored(
    seconds: float, autojump_clock: MockClock
) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        writer = swarm.nodes[0]
        with pytest.raises(ValidationError, match="the year 10000"):
            await writer.put("k", VALUE, expires_at=seconds)
        with pytest.raises(ValidationError, match="the year 10000"):
            await writer.blobs.add(VALUE, ttl=seconds)
        assert (await swarm.machine_of(writer).blocks.stats()).blocks == 0
