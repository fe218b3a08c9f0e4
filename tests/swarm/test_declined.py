"""Values that are there, and that the node which looks for them does not take: it is not told that there is nothing."""

from __future__ import annotations

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from trio.testing import MockClock

from prime_dht.config import DhtConfig
from prime_dht.entries.codec import encode_entry_set, inline
from prime_dht.entries.entry import EntryHeader
from prime_dht.entries.limits import Limits
from prime_dht.entries.signing import sign_entry
from prime_dht.errors import QueryError
from prime_dht.ids import US_PER_S, Key, TimestampUs, wire_key
from prime_dht.node.core import Node
from prime_dht.testing.swarm import EPOCH_US, Swarm, open_swarm
from prime_dht.wire.kad import GetValue, Record, Reply, Request, decode_reply, encode_reply

FAR_US = EPOCH_US + 86_400 * US_PER_S


def hold_all(request: Request, answer: bytes) -> bytes:
    """As a server answers that holds the sector of every key."""
    if not isinstance(request, GetValue) or request.batch:
        return answer
    reply = decode_reply(request, answer)
    return encode_reply(request, reply._replace(held=reply.record is None))


@pytest.mark.parametrize("place", [0, 4])
@pytest.mark.parametrize("do_others_hold", [False, True])
async def test_a_reader_whose_clock_is_behind_is_told_so_and_not_that_nothing_is_there(
    place: int, do_others_hold: bool, autojump_clock: MockClock
) -> None:
    """Also where enough of the replicas' neighbours hold the sector, and have nothing yet."""
    async with open_swarm(seed=1, size=8) as swarm:
        for other in swarm.nodes if do_others_hold else ():
            swarm.world.lie(other.peer_id, hold_all)
        reader = swarm.closest_to("k", 8)[place]
        await swarm.closest_to("k", 8)[7].put("k", b"value")
        clock = swarm.machine_of(reader).clock
        clock.set_by_us = -660 * US_PER_S
        says = r"entries that this node does not take: 1 \(dated 11m ahead of this node's clock\)"
        for operation in (reader.get("k", latest=True), reader.get_all("k"), reader.get_many(["k"])):
            with pytest.raises(QueryError, match=says):
                await operation
        assert list(await reader.get_many(["k", "nobody's"])) == [wire_key("nobody's")]
        assert await reader.get("nobody's") is None
        assert await reader.get("k", subkey=b"another") is None
        clock.set_by_us = -540 * US_PER_S
        assert await reader.get("k", latest=True) is not None


async def test_a_lone_node_whose_clock_was_set_back_is_told_of_what_it_holds_itself(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        (node,) = swarm.nodes
        await node.put("k", b"value")
        swarm.machine_of(node).clock.set_by_us = -3600 * US_PER_S
        with pytest.raises(QueryError, match="dated 1h ahead"):
            await node.get("k", latest=True)
        assert await node.get("nobody's") is None


async def test_a_reader_with_lower_limits_is_told_so(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=6, config=DhtConfig(limits=Limits(max_inline_bytes=256 << 10))) as swarm:
        assert (await swarm.nodes[0].put("k", bytes(200 << 10))).acknowledged
        reader = await swarm.join(config=DhtConfig())
        with pytest.raises(QueryError, match="inline value: 204,800 bytes; the limit is 65,536 bytes"):
            await reader.get("k")


async def test_a_tombstone_that_a_reader_does_not_take_hides_nothing_from_it(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        await swarm.nodes[0].delete("k")
        reader = swarm.closest_to("k", 6)[5]
        swarm.machine_of(reader).clock.set_by_us = -3600 * US_PER_S
        assert await reader.get("k") is None


def make_up(swarm: Swarm, replicas: list[Node], *, key: Key) -> None:
    """Have replicas name a value that is dated a day ahead, which no honest one would have taken."""
    pair = create_new_key_pair(bytes(32))
    header = EntryHeader(
        network_id="prime",
        key=key,
        created_at_us=TimestampUs(FAR_US),
        expires_at_us=TimestampUs(FAR_US + US_PER_S),
        retain_until_us=TimestampUs(FAR_US + US_PER_S),
        content=inline(b"made up"),
    )
    record = Record(key, encode_entry_set([sign_entry(header, pair.private_key, b"made up")]))

    def lie(request: Request, answer: bytes) -> bytes:
        return encode_reply(request, Reply(record, replicates=True)) if isinstance(request, GetValue) else answer

    for replica in replicas:
        swarm.world.lie(replica.peer_id, lie)


@pytest.mark.parametrize("size", [4, 8])
async def test_one_replica_that_makes_entries_up_hides_no_absence_and_no_value(
    size: int, autojump_clock: MockClock
) -> None:
    async with open_swarm(seed=1, size=size) as swarm:
        reader = swarm.closest_to("k", size)[-1]
        for liar in swarm.closest_to("k", 3):
            make_up(swarm, [liar], key=wire_key("k"))
            assert await reader.get("k") is None
            swarm.world.lie(liar.peer_id, None)
        make_up(swarm, swarm.closest_to("k", 1), key=wire_key("k"))
        await reader.put("k", b"value")
        found = await reader.get("k", latest=True)
        assert found is not None
        assert found.value == b"value"


async def test_a_replica_that_makes_entries_up_is_as_good_as_a_silent_one(autojump_clock: MockClock) -> None:
    """Beside another that is silent an acknowledged put may lie with the two alone."""
    async with open_swarm(seed=1, size=4) as swarm:
        silent, liar, _, reader = swarm.closest_to("k", 4)
        swarm.world.silence(silent.peer_id)
        make_up(swarm, [liar], key=wire_key("k"))
        with pytest.raises(QueryError, match=r"1 of the 3 closest did not answer; .*; replicas hold entries"):
            await reader.get("k")
