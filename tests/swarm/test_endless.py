"""A replica that makes up slots of a key: whoever reads all of them comes to an end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from trio.testing import MockClock

from prime_dht.config import DhtConfig
from prime_dht.entries.access import group_key
from prime_dht.entries.capability import grant
from prime_dht.entries.codec import decode_entry_set, encode_entry_set, inline
from prime_dht.entries.entry import Entry, EntryHeader
from prime_dht.entries.limits import Limits
from prime_dht.entries.signing import sign_entry
from prime_dht.errors import QueryError
from prime_dht.ids import US_PER_S, Key, PeerId, TimestampUs, wire_key
from prime_dht.net.identity import peer_id_of
from prime_dht.node.core import Node
from prime_dht.storage.paging import decode_cursor, encode_cursor
from prime_dht.testing.swarm import EPOCH_US, Swarm, open_swarm
from prime_dht.wire.kad import GetValue, Record, Reply, Request, decode_reply, encode_reply

SLOTS = 10
"""That a key may have at a replica; three of them hold 30 at most between them."""

CONFIG = DhtConfig(limits=Limits(max_slots_per_key=SLOTS))
END_US = TimestampUs(EPOCH_US + 86_400 * US_PER_S)
ROOT = create_new_key_pair(b"r" * 32)
OPEN = wire_key("round")
GROUP = wire_key(group_key(ROOT.public_key, b"round"))


def publishers(count: int) -> list[KeyPair]:
    """Whose ids come behind those of others, in their order."""
    pairs = sorted((create_new_key_pair(b"%032d" % number) for number in range(400)), key=peer_id_of)
    return pairs[-count:]


def capability_of(member: PeerId) -> bytes:
    return grant(ROOT.private_key, member=member, expires_at_us=END_US, network_id="prime")


def made_up(key: Key, pair: KeyPair, number: int, value: bytes) -> Entry:
    header = EntryHeader(
        network_id="prime",
        key=key,
        subkey=b"%09d" % number,
        created_at_us=TimestampUs(EPOCH_US),
        expires_at_us=END_US,
        retain_until_us=END_US,
        content=inline(value),
        capability=capability_of(peer_id_of(pair)) if key == GROUP else b"",
    )
    return sign_entry(header, pair.private_key, value)


def make_up(swarm: Swarm, liar: Node, key: Key, pairs: Sequence[KeyPair], *, slots: int, value_bytes: int) -> None:
    """Have a replica name slots of publishers of its own behind those that there are, two to a page."""

    def lie(request: Request, answer: bytes) -> bytes:
        if not isinstance(request, GetValue) or request.key != key or request.query is None:
            return answer
        behind = decode_cursor(request.query.cursor)
        true = decode_reply(request, answer).record
        page = [] if true is None else decode_entry_set(true.value, max_entries=99)
        entries = [one for one in page if isinstance(one, Entry)]
        full = len(entries) + 2
        for pair in pairs:
            for number in range(slots):
                if behind is None or (peer_id_of(pair), b"%09d" % number) > behind:
                    entries.append(made_up(key, pair, number, bytes(value_bytes)))
                    if len(entries) == full:
                        last = entries[-1]
                        record = Record(key, encode_entry_set(entries))
                        cursor = encode_cursor(last.publisher, last.header.subkey)
                        return encode_reply(request, Reply(record, next_cursor=cursor, replicates=True))
        return encode_reply(request, Reply(Record(key, encode_entry_set(entries)), replicates=True))

    swarm.world.lie(liar.peer_id, lie)


async def read_all(reader: Node, key: Key) -> int:
    slots, cursor = 0, None
    while True:
        page = await reader.get_all(key, cursor=cursor)
        slots, cursor = slots + len(page), page.next_cursor
        if cursor is None:
            return slots


async def swarm_with(swarm: Swarm, key: Key) -> tuple[Node, Node]:
    """Three publishers; a replica of the key, and a reader that is none."""
    for node in swarm.nodes[:3]:
        await node.put(key, b"gradient", ttl=600, capability=capability_of(node.peer_id) if key == GROUP else b"")
    return swarm.closest_to(key, 1)[0], swarm.closest_to(key, 6)[5]


async def test_slots_that_no_end_can_be_seen_of_are_an_error(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=6, config=CONFIG) as swarm:
        liar, reader = await swarm_with(swarm, OPEN)
        make_up(swarm, liar, OPEN, publishers(1), slots=200, value_bytes=40_000)
        with pytest.raises(QueryError, match="more than 30 slots"):
            await read_all(reader, OPEN)


async def test_pages_that_are_all_but_empty_are_left_out(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=6, config=CONFIG) as swarm:
        liar, reader = await swarm_with(swarm, OPEN)
        make_up(swarm, liar, OPEN, publishers(1), slots=200, value_bytes=1)
        assert await read_all(reader, OPEN) == 3


async def test_as_many_slots_as_replicas_can_hold_are_read_to_the_end(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=6, config=CONFIG) as swarm:
        liar, reader = await swarm_with(swarm, OPEN)
        make_up(swarm, liar, OPEN, publishers(1), slots=27, value_bytes=40_000)
        assert await read_all(reader, OPEN) == 30


async def test_in_a_groups_key_each_member_has_as_many(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=6, config=CONFIG) as swarm:
        liar, reader = await swarm_with(swarm, GROUP)
        make_up(swarm, liar, GROUP, publishers(3), slots=25, value_bytes=40_000)
        assert await read_all(reader, GROUP) == 78
        make_up(swarm, liar, GROUP, publishers(3), slots=40, value_bytes=40_000)
        with pytest.raises(QueryError, match="more than 30 slots"):
            await read_all(reader, GROUP)


async def test_a_reader_may_take_a_few_at_a_time(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=4, config=CONFIG) as swarm:
        writer, reader = swarm.closest_to("k", 4)[::3]
        for number in range(SLOTS):
            await writer.put("k", b"", subkey=b"%d" % number)
        cursors: list[bytes | None] = [None]
        while (cursor := (await reader.get_all("k", limit=1, cursor=cursors[-1])).next_cursor) is not None:
            cursors.append(cursor)
        assert len(cursors) == SLOTS
