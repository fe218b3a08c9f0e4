"""A put or a get ends within ``operation_timeout_s``, whatever peers do, and says what came of it until then."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace
from random import Random

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from trio.testing import MockClock

from prime_dht.config import DhtConfig, Mode
from prime_dht.entries.codec import encode_entry_set
from prime_dht.entries.entry import Entry, EntryHeader, Tombstone
from prime_dht.entries.signing import sign_entry
from prime_dht.errors import QueryError
from prime_dht.ids import Key, PeerId, TimestampUs, kad_key, wire_key
from prime_dht.node.core import Node
from prime_dht.node.results import NOT_IN_TIME
from prime_dht.storage.paging import encode_cursor
from prime_dht.testing.swarm import EPOCH_US, Swarm, open_swarm
from prime_dht.wire.kad import AddProvider, GetValue, Record, Reply, Request

CONTENT = b"\x12\x20" + b"content".ljust(32, b".")
LIMIT_S = 12.0
SERVERS = DhtConfig(mode=Mode.SERVER, rpc_timeout_s=5.0, operation_timeout_s=LIMIT_S)
SMALL_TABLES = replace(SERVERS, k_bucket_size=4, alpha=3)
"""With these, a node of 16 has to look for the replicas of most keys."""


def far_key(node: Node) -> str:
    """A key for whose replicas a node has to look."""
    keys = (f"key {number}" for number in range(1000))
    return next(key for key in keys if not node._neighbourhood.knows_all_near(kad_key(wire_key(key))))


def silence_all_but(swarm: Swarm, *nodes: Node) -> None:
    for other in swarm.nodes:
        if other not in nodes:
            swarm.world.silence(other.peer_id)


def tombstones(key: Key, count: int) -> list[Entry]:
    """Of as many publishers, in the order of pages."""
    rng = Random(1)
    header = EntryHeader(
        network_id=SERVERS.network_id,
        key=key,
        created_at_us=TimestampUs(EPOCH_US),
        expires_at_us=TimestampUs(EPOCH_US + 10**10),
        retain_until_us=TimestampUs(EPOCH_US + 10**10),
        content=Tombstone(),
    )
    entries = [sign_entry(header, create_new_key_pair(rng.randbytes(32)).private_key) for _ in range(count)]
    return sorted(entries, key=lambda entry: entry.publisher)


def answer_a_page_at_a_time(swarm: Swarm, node: Node, pages: list[Entry], monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that lets its first GET_VALUE go unanswered, and then names one entry after the other, slowly."""
    network = swarm.network_of(node)
    handle = network._handler
    rest = iter(pages)
    waits_s = iter([SERVERS.rpc_timeout_s + 1.0])

    async def later() -> Reply:
        await trio.sleep(next(waits_s, SERVERS.rpc_timeout_s - 1.0))
        entry = next(rest)
        record = Record(entry.header.key, encode_entry_set((entry,)))
        return Reply(record, next_cursor=encode_cursor(entry.publisher, b""), replicates=True)

    def answer(peer: PeerId, request: Request) -> Reply | Awaitable[Reply]:
        return later() if isinstance(request, GetValue) else handle(peer, request)

    monkeypatch.setattr(network, "_handler", answer)


def answer_for_a_key_at_a_time(swarm: Swarm, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica whose replies are for the first key of a batch alone, and come just in time."""
    network = swarm.network_of(node)
    handle = network._handler

    async def later(peer: PeerId, request: GetValue) -> Reply:
        await trio.sleep(SERVERS.rpc_timeout_s - 1.0)
        said = handle(peer, request)
        reply = said if isinstance(said, Reply) else await said
        return reply._replace(batch=reply.batch[:1])

    def answer(peer: PeerId, request: Request) -> Reply | Awaitable[Reply]:
        return later(peer, request) if isinstance(request, GetValue) else handle(peer, request)

    monkeypatch.setattr(network, "_handler", answer)


def leave_announcements_unanswered(swarm: Swarm, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    network = swarm.network_of(node)
    handle = network._handler

    async def never() -> Reply:
        await trio.sleep_forever()
        raise AssertionError

    def answer(peer: PeerId, request: Request) -> Reply | Awaitable[Reply]:
        return never() if isinstance(request, AddProvider) else handle(peer, request)

    monkeypatch.setattr(network, "_handler", answer)


async def test_a_put_that_has_to_look_for_its_replicas_first_ends_in_time(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=16, config=replace(SMALL_TABLES, rpc_timeout_s=LIMIT_S)) as swarm:
        writer = swarm.nodes[5]
        await trio.sleep(200)
        key = far_key(writer)
        silence_all_but(swarm, writer)
        began_s = trio.current_time()
        receipt = await writer.put(key, b"value")
        assert trio.current_time() - began_s <= LIMIT_S
        assert receipt.stored_by == (writer.peer_id,), "of those that answer it is the closest"
        assert not receipt.acknowledged
        assert receipt.failed


async def test_a_put_whose_time_is_up_names_those_that_had_not_answered(autojump_clock: MockClock) -> None:
    """With a limit below what one peer has to answer."""
    impatient = replace(SERVERS, operation_timeout_s=2.0)
    async with open_swarm(seed=1, size=3, config=impatient) as swarm:
        client = await swarm.join_client()
        silence_all_but(swarm, client)
        with pytest.raises(QueryError, match=f"3 failed .*{NOT_IN_TIME}"):
            await client.put("k", b"value")


async def test_a_batch_of_puts_ends_in_time_and_each_receipt_says_who_had_not_answered(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=16, config=replace(SMALL_TABLES, rpc_timeout_s=LIMIT_S)) as swarm:
        writer = swarm.nodes[5]
        await trio.sleep(200)
        silence_all_but(swarm, writer)
        began_s = trio.current_time()
        receipts = await writer.put_many({f"key {number}": b"value" for number in range(40)})
        assert trio.current_time() - began_s <= LIMIT_S
        assert any(receipt.stored_by for receipt in receipts)
        assert all(len(receipt.stored_by) + len(receipt.failed) == 3 for receipt in receipts)
        assert all(reason == NOT_IN_TIME for receipt in receipts for _, reason in receipt.failed)


async def test_an_announcement_ends_in_time_whether_the_closest_are_silent_or_only_take_it_in_silence(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_s = 4.0
    async with open_swarm(seed=1, size=16, config=replace(SMALL_TABLES, operation_timeout_s=limit_s)) as swarm:
        await trio.sleep(200)
        node, *others = swarm.nodes
        for other in others:
            leave_announcements_unanswered(swarm, other, monkeypatch)
        began_s = trio.current_time()
        receipt = await node.provide(CONTENT)
        assert trio.current_time() - began_s <= limit_s
        assert receipt.stored_by == ()
        assert [reason for _, reason in receipt.failed] == [NOT_IN_TIME] * 3
        silence_all_but(swarm, node)
        began_s = trio.current_time()
        await node.provide(CONTENT)
        assert trio.current_time() - began_s <= limit_s / 2, "nobody is left to be told"


async def test_many_keys_have_as_many_times_as_long(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1, config=SERVERS) as swarm:
        explorer = swarm.nodes[0]._explorer
        assert [explorer.timeout_s(keys) for keys in (1, 256, 257, 1024)] == [
            LIMIT_S,
            LIMIT_S,
            2 * LIMIT_S,
            4 * LIMIT_S,
        ]


async def test_a_get_ends_in_time_though_replicas_answer_page_after_page(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=2, size=3, config=SERVERS) as swarm:
        await trio.sleep(60)
        client = await swarm.join_client()
        for node in swarm.nodes[1:3]:
            answer_a_page_at_a_time(swarm, node, tombstones(wire_key("k"), 5), monkeypatch)
        began_s = trio.current_time()
        with pytest.raises(QueryError, match="too few replicas to tell"):
            await client.get("k")
        assert trio.current_time() - began_s <= LIMIT_S


async def test_a_batch_of_gets_ends_in_time_with_all_that_other_replicas_said(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"key {number}" for number in range(64)]
    async with open_swarm(seed=2, size=5, config=SERVERS) as swarm:
        await trio.sleep(60)
        await swarm.nodes[0].put_many(dict.fromkeys(keys, b"value"))
        client = await swarm.join_client()
        answer_for_a_key_at_a_time(swarm, swarm.nodes[3], monkeypatch)
        began_s = trio.current_time()
        found = await client.get_many(keys)
        assert trio.current_time() - began_s == pytest.approx(LIMIT_S)
        assert [one and one.value for one in found.values()] == [b"value"] * len(keys)


@pytest.mark.parametrize("quorum", [None, 1])
async def test_when_the_time_is_up_those_that_had_not_answered_may_have_what_others_have_not(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, quorum: int | None
) -> None:
    """Two replicas have just joined, and the third takes longer than a get may."""
    async with open_swarm(seed=1, size=3, config=replace(SERVERS, operation_timeout_s=2.0)) as swarm:
        client = await swarm.join_client()
        receipt = await client.put("k", b"value")
        for node in swarm.nodes[:2]:
            await node._replica.remove_ops([receipt.op_id])
            monkeypatch.setattr(node._reader._server, "holds", lambda _key, **_: False)
        swarm.world.silence(swarm.nodes[2].peer_id)
        with pytest.raises(QueryError, match="too few"):
            await client.get("k", quorum=quorum)
        with pytest.raises(QueryError, match="too few"):
            await client.get_many(["k"], quorum=quorum)
