"""A node that takes the entries of some publishers: others' it takes neither put, nor by sync, nor as an answer."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from prime_dht.config import DhtConfig
from prime_dht.ids import peer_text
from prime_dht.testing.swarm import open_swarm

HOUR_S = 3600.0


async def test_entries_of_those_who_are_not_allowed_are_refused_and_told_so(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        friend, stranger = swarm.nodes
        choosy = await swarm.join(config=DhtConfig(allow_publishers=frozenset({peer_text(friend.peer_id)})))
        receipt = await stranger.put("k", b"strange")
        assert set(receipt.stored_by) == {friend.peer_id, stranger.peer_id}
        assert [peer for peer, reason in receipt.refused if "publisher refused" in reason] == [choosy.peer_id]
        assert choosy.peer_id in (await friend.put("k", b"friendly")).stored_by


async def test_entries_of_those_who_are_not_allowed_come_neither_by_sync_nor_as_answers(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        friend, stranger = swarm.nodes
        await friend.put("k", b"friendly")
        await trio.sleep(1)
        await stranger.put("k", b"strange")
        choosy = await swarm.join(config=DhtConfig(allow_publishers=frozenset({peer_text(friend.peer_id)})))
        await trio.sleep(HOUR_S)
        await choosy.sync(stranger.peer_id)
        assert (await choosy.stats()).entries_stored == 1
        for reader, values in ((choosy, [b"friendly"]), (stranger, [b"friendly", b"strange"])):
            assert sorted(found.value for found in await reader.get_all("k")) == values
