"""Replicas that are behind, as they were away or stand in for others: what they say is no answer by itself."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from prime_dht.testing.swarm import open_swarm

HOUR_S = 3600.0


async def test_replicas_that_were_away_together_bring_back_nothing_that_was_overwritten(
    autojump_clock: MockClock,
) -> None:
    """Two of three are back with what they had: whoever asks those two alone would be told what was true before."""
    async with open_swarm(seed=1, size=8) as swarm:
        await trio.sleep(240)
        *away, _ = swarm.closest_to("k", 3)
        writer, reader = [node for node in swarm.nodes if node not in swarm.closest_to("k", 3)][:2]
        await writer.put("k", b"old", ttl=HOUR_S)
        await writer.put("k", b"old", subkey=b"deleted", ttl=HOUR_S)
        others = [node for node in swarm.nodes if node not in away]
        machines = [await swarm.stop(node) for node in away]
        assert (await writer.put("k", b"new", ttl=HOUR_S)).acknowledged
        assert (await writer.delete("k", subkey=b"deleted")).acknowledged
        await trio.sleep(30)
        for machine in machines:
            await swarm.start(machine, via=others[:1])
        for _ in range(40):
            await trio.sleep(0.05)
            many = await reader.get_many(["k"])
            assert [one and one.value for one in many.values()] == [b"new"]
            found = await reader.get("k", latest=True)
            assert found is not None
            assert found.value == b"new"
            assert found.answered >= 2
            assert await reader.get("k", subkey=b"deleted", latest=True) is None
            assert [one.value for one in await reader.get_all("k")] == [b"new"]


async def test_where_all_replicas_are_behind_a_few_are_asked_and_not_everybody(autojump_clock: MockClock) -> None:
    """As they are for long where a key is full."""
    async with open_swarm(seed=1, size=20) as swarm:
        await trio.sleep(240)
        reader = swarm.closest_to("k", 20)[-1]
        await reader.put("k", b"value", replication=20)
        for node in swarm.nodes:
            held = node._syncing._held
            held.unsure(list(held.arc))
        sent = swarm.network_of(reader).sent
        few = reader.config.replication_factor + reader.config.write_quorum
        before = sent["GetValue"]
        found = await reader.get("k", latest=True)
        assert found is not None
        assert found.answered >= 3, "those that are behind are joined as well"
        assert sent["GetValue"] - before <= 2 * few
        before = sent["GetValue"]
        (many,) = (await reader.get_many(["k"])).values()
        assert many is not None
        assert many.answered == sent["GetValue"] - before == few


@pytest.mark.parametrize(("behind", "asked"), [(slice(1, 2), range(3, 4)), (slice(1, 20), range(5, 13))])
async def test_in_place_of_a_replica_that_is_behind_the_next_nearest_is_asked(
    behind: slice, asked: range, autojump_clock: MockClock
) -> None:
    """Where one is, that is all. Where most are, it goes on until the ``r`` + quorum nearest have answered."""
    async with open_swarm(seed=1, size=20) as swarm:
        await trio.sleep(240)
        nearest = swarm.closest_to("k", 20)
        reader = nearest[-1]
        await reader.put("k", b"value", replication=20)
        for node in nearest[behind]:
            held = node._syncing._held
            held.unsure(list(held.arc))
        sent = swarm.network_of(reader).sent
        before = sent["GetValue"]
        assert await reader.get("k", latest=True) is not None
        assert sent["GetValue"] - before in asked


async def test_who_is_behind_itself_asks_others_even_if_one_answer_will_do(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=8) as swarm:
        await trio.sleep(240)
        nearest, *others = swarm.closest_to("k", 8)
        await others[-1].put("k", b"old", ttl=HOUR_S)
        machine = await swarm.stop(nearest)
        await others[-1].put("k", b"new", ttl=HOUR_S)
        node = await swarm.start(machine, via=others[:1])
        await node.bootstrap()
        found = await node.get("k", quorum=1, latest=True)
        assert found is not None
        assert found.value == b"new"


async def test_who_takes_the_place_of_replicas_that_just_died_does_not_hide_what_was_there_before(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=12) as swarm:
        await trio.sleep(240)
        *dead, left = swarm.closest_to("k", 3)
        swarm.world.slow(left.peer_id, 4)  # others answer before it does
        writer, *readers = swarm.closest_to("k", 12)[3:]
        assert (await writer.put("k", b"before", subkey=b"before")).acknowledged
        for node in dead:
            await swarm.stop(node)
        assert (await writer.put("k", b"after", subkey=b"after")).acknowledged
        for reader in readers:
            assert {found.value for found in await reader.get_all("k")} == {b"before", b"after"}
