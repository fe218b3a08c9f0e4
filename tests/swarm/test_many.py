"""put_many and get_many: the placement and results of single operations, in few requests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import pytest
from trio.testing import MockClock

from prime_dht.config import DhtConfig, Mode
from prime_dht.entries.limits import Limits
from prime_dht.errors import QueryError
from prime_dht.ids import PeerId, short, wire_key
from prime_dht.kad.contact import Contact
from prime_dht.node.failures import Failures
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.testing.swarm import open_swarm

KEYS = [f"key {number}" for number in range(512)]


@pytest.mark.parametrize(("size", "most_puts", "most_gets"), [(1, 0, 0), (5, 30, 30), (20, 60, 60), (60, 300, 300)])
async def test_512_keys_take_few_requests_and_lie_where_single_puts_would_lay_them(
    size: int, most_puts: int, most_gets: int, autojump_clock: MockClock
) -> None:
    async with open_swarm(seed=size, size=size) as swarm:
        writer, reader = swarm.nodes[0], swarm.nodes[-1]
        sent = swarm.world.requests.total()
        receipts = await writer.put_many({key: key.encode() for key in KEYS})
        puts = swarm.world.requests.total() - sent
        for key, receipt in zip(KEYS, receipts, strict=True):
            assert receipt.key == wire_key(key)
            assert set(receipt.stored_by) == {server.peer_id for server in swarm.closest_to(key, 3)}
            assert receipt.acknowledged
        sent = swarm.world.requests.total()
        found = await reader.get_many(KEYS)
        gets = swarm.world.requests.total() - sent
        assert list(found) == [wire_key(key) for key in KEYS]
        for key in KEYS:
            one = found[wire_key(key)]
            assert one is not None
            assert (one.value, one.answered) == (key.encode(), min(2, size))
        assert puts <= most_puts
        assert gets <= most_gets


async def test_512_keys_that_nobody_put_are_absent_in_few_requests(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=60) as swarm:
        sent = swarm.world.requests.total()
        assert await swarm.nodes[0].get_many(KEYS) == {wire_key(key): None for key in KEYS}
        assert swarm.world.requests.total() - sent <= 700, "a lookup for each would be more than ten thousand"


async def test_keys_of_a_dead_replica_are_read_from_the_others(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        await swarm.nodes[0].put_many({key: key.encode() for key in KEYS})
        await swarm.stop(swarm.nodes[3])
        sent = swarm.world.requests.total()
        found = await swarm.nodes[1].get_many(KEYS)
        assert all(one is not None and one.value == key.encode() for key, one in zip(KEYS, found.values(), strict=True))
        assert swarm.world.requests.total() - sent <= 60


async def test_large_values_are_fetched_in_as_many_replies_as_they_need(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        reader = await swarm.join_client()
        values = {key: key.encode() * 6000 for key in KEYS[:100]}
        await swarm.nodes[0].put_many(values)
        found = await reader.get_many(values)
        assert {key: one.value for key, one in found.items() if one} == {wire_key(k): v for k, v in values.items()}


async def test_each_entry_has_its_own_receipt_and_one_that_is_refused_says_why(autojump_clock: MockClock) -> None:
    strict = DhtConfig(limits=Limits(max_inline_bytes=10))
    async with open_swarm(seed=1) as swarm:
        await swarm.start(config=strict)
        client = await swarm.join_client()
        good, bad = await client.put_many([("good", b"short"), ("bad", b"more than ten bytes")])
        assert good.acknowledged
        assert not bad.acknowledged
        assert bad.stored_by == ()
        assert "over limit" in bad.refused[0][1]


async def test_when_nobody_takes_anything_it_is_an_error(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        client = await swarm.join_client()
        for node in list(swarm.nodes[:2]):
            await swarm.stop(node)
        with pytest.raises(QueryError):
            await client.put_many(dict.fromkeys(KEYS, b""))
        with pytest.raises(QueryError):
            await client.get_many(KEYS)


async def test_when_nobody_takes_an_entry_the_error_counts_who_refused_and_who_failed(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=3, config=DhtConfig(limits=Limits(max_inline_bytes=100))) as swarm:
        client = await swarm.start(swarm.machine(listens=False), via=swarm.nodes, config=DhtConfig(mode=Mode.CLIENT))
        await client.bootstrap()
        refusing = {short(node.peer_id) for node in swarm.nodes[:2]}
        silent = swarm.nodes[2].peer_id
        swarm.world.silence(silent)
        with pytest.raises(QueryError) as caught:
            await client.put("k", bytes(101))
        refused, failed = r"2 refused \((\w+): over limit: .*\)", r"1 failed \((\w+): .*\)"
        said = re.fullmatch(f"no replica took the entry: {refused}, {failed}", str(caught.value))
        assert said is not None, caught.value
        assert said[1] in refusing
        assert said[2] == short(silent)


async def test_nothing_is_put_and_got_without_a_request(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        sent = swarm.world.requests.total()
        assert await swarm.nodes[0].put_many([]) == []
        assert await swarm.nodes[0].get_many([]) == {}
        assert swarm.world.requests.total() == sent


async def test_of_one_key_given_twice_the_later_stands(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        first, second = await swarm.nodes[0].put_many([("k", b"first"), ("k", b"second")])
        assert first.created_at_us < second.created_at_us
        found = await swarm.nodes[1].get("k")
        assert found is not None
        assert found.value == b"second"


async def test_those_that_failed_a_moment_ago_are_gone_through_no_more_often_for_many_keys_than_for_one(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be thousands: anybody can name peers that do not exist."""
    looks = 0
    recent = Failures.recent

    def counted(self: Failures, now_s: float) -> Iterator[PeerId]:
        nonlocal looks
        looks += 1
        return recent(self, now_s)

    monkeypatch.setattr(Failures, "recent", counted)
    async with open_swarm(seed=1, size=2) as swarm:
        node, other = swarm.nodes
        swarm.world.silence(other.peer_id)
        for _ in range(2):  # only then it has failed a moment ago
            looks = 0
            with pytest.raises(QueryError, match="of the 1 keys"):
                await node.get_many(["absent"])
        looks_for_one, looks = looks, 0
        with pytest.raises(QueryError, match="of the 100 keys"):
            await node.get_many([f"absent {number}" for number in range(100)])
        assert looks <= looks_for_one


async def test_of_thousands_that_never_answered_few_are_looked_at_when_nothing_is_found(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0
    contact = Neighbourhood.contact

    def counted(self: Neighbourhood, peer: PeerId, addresses: Iterable[bytes] | None = None) -> Contact:
        nonlocal made
        made += 1
        return contact(self, peer, addresses)

    monkeypatch.setattr(Neighbourhood, "contact", counted)
    async with open_swarm(seed=1, size=5) as swarm:
        node = swarm.nodes[0]
        for number in range(2000):
            node._neighbourhood.failed(PeerId(b"nobody %d" % number), "it does not exist")
        made = 0
        assert await node.get("absent", latest=True) is None
        assert await node.get_many(["absent"]) == {wire_key("absent"): None}
        assert made < 200
