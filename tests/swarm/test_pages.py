"""Keys of which a replica has more than one reply holds: what is on the later pages counts as well."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from trio.testing import MockClock

from prime_dht.entries.entry import Entry, EntryHeader, Tombstone
from prime_dht.entries.signing import sign_entry
from prime_dht.ids import US_PER_S, TimestampUs, wire_key
from prime_dht.net.identity import peer_id_of
from prime_dht.node.core import Node
from prime_dht.storage.base import EntryQuery
from prime_dht.testing.swarm import EPOCH_US, Swarm, open_swarm
from prime_dht.wire.kad import GetValue, Request, decode_reply, encode_reply

KEY = wire_key("k")
REPLY_BYTES = 2000
"""Of entries in one reply; with a megabyte it would take hundreds of publishers."""

TOMBSTONES = 40


@pytest.fixture(autouse=True)
def small_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("server", "reader"):
        monkeypatch.setattr(f"prime_dht.node.{module}.MAX_REPLY_VALUE_BYTES", REPLY_BYTES)


def tombstones_before(node: Node) -> list[Entry]:
    """Those of other publishers, newer than what the node has put, on pages before."""
    rng = Random(1)
    pairs = (create_new_key_pair(rng.randbytes(32)) for _ in range(1000))
    before = [pair.private_key for pair in pairs if peer_id_of(pair) < node.peer_id][:TOMBSTONES]
    assert len(before) == TOMBSTONES
    header = EntryHeader(
        network_id=node.config.network_id,
        key=KEY,
        created_at_us=TimestampUs(EPOCH_US + 100 * US_PER_S),
        expires_at_us=TimestampUs(EPOCH_US + 3600 * US_PER_S),
        retain_until_us=TimestampUs(EPOCH_US + 3600 * US_PER_S),
        content=Tombstone(),
    )
    return [sign_entry(header, key) for key in before]


async def put_behind_tombstones(swarm: Swarm, *, lacking: int = 0) -> list[Entry]:
    """Have the first node put a value, and others their tombstones, which so many of the last nodes lack."""
    await trio.sleep(60)
    receipt = await swarm.nodes[0].put(KEY, b"value")
    assert receipt.acknowledged
    await trio.sleep(60)
    tombstones = tombstones_before(swarm.nodes[0])
    for node in swarm.nodes[: len(swarm.nodes) - lacking]:
        await node._reader._server.join(tombstones, relayer=None)
    return tombstones


async def test_get_many_finds_what_lies_behind_a_page_of_others_tombstones(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=2, size=3) as swarm:
        await put_behind_tombstones(swarm)
        client = await swarm.join_client()
        one = await client.get(KEY, latest=True)
        many = await client.get_many([KEY, "none"])
        assert one is not None
        assert one.value == b"value"
        assert many == {KEY: one, wire_key("none"): None}


async def test_a_replica_reads_its_own_pages_to_the_end_as_well(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=2, size=2) as swarm:
        await put_behind_tombstones(swarm)
        replica = swarm.nodes[0]
        for found in (await replica.get(KEY, quorum=1, latest=True), (await replica.get_many([KEY], quorum=1))[KEY]):
            assert found is not None
            assert (found.value, found.answered) == (b"value", 1)


async def test_a_batch_of_a_peer_that_names_no_cursors_is_understood(autojump_clock: MockClock) -> None:
    """As earlier versions answer: what they send counts as all there is."""

    def as_before(request: Request, answer: bytes) -> bytes:
        if not isinstance(request, GetValue):
            return answer
        reply = decode_reply(request, answer)
        batch = tuple(replace(item, next_cursor=b"") for item in reply.batch)
        return encode_reply(request, reply._replace(batch=batch))

    async with open_swarm(seed=2, size=3) as swarm:
        await swarm.nodes[0].put("other", b"value")
        await put_behind_tombstones(swarm)
        client = await swarm.join_client()
        for node in swarm.nodes[:3]:
            swarm.world.lie(node.peer_id, as_before)
        found = await client.get_many([KEY, "other"])
        other = found[wire_key("other")]
        assert other is not None
        assert other.value == b"value"
        assert found[KEY] is None


async def test_a_replica_that_is_far_behind_is_repaired_a_replys_worth_at_a_time(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=2, size=3) as swarm:
        tombstones = await put_behind_tombstones(swarm, lacking=1)
        behind = swarm.machine_of(swarm.nodes[-1]).disc
        client = await swarm.join_client()
        gained: list[int] = []
        has = 0
        for _ in range(len(tombstones)):
            await client.get(KEY, quorum=3, latest=True)
            await trio.sleep(1.0)
            page = await behind.get_entries(EntryQuery(key=KEY, include_expired=True), now_us=EPOCH_US)
            now_has = sum(entry.size_bytes for entry in page.entries if entry.is_tombstone)
            gained.append(now_has - has)
            has = now_has
            if len(page.entries) > len(tombstones):
                break
        assert has == sum(entry.size_bytes for entry in tombstones)
        assert len(gained) > 2
        assert all(0 < each <= REPLY_BYTES for each in gained)
