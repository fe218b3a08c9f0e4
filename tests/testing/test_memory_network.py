from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from prime_dht.errors import LocalProtocolError, QueryError, RemoteProtocolError
from prime_dht.ids import PeerId
from prime_dht.net.network import Network
from prime_dht.testing.memory_network import MemoryNetwork, World
from prime_dht.wire.kad import FindNode, PeerRecord, Ping, Reply, Request, encode_reply, encode_request

ONE, OTHER = (PeerId(b"\x12\x20" + name * 32) for name in (b"1", b"2"))


async def name_the_asker(peer: PeerId, _request: Request) -> Reply:
    return Reply(closer=(PeerRecord(peer),))


async def join(
    nursery: trio.Nursery, world: World, peer: PeerId, *, listens: bool = True, serves: bool = True
) -> MemoryNetwork:
    network = world.network(peer, name_the_asker, listens=listens)
    await nursery.start(network.run)
    network.mount(as_server=serves)
    for other in (ONE, OTHER):
        network.learn_addresses(other, [world.address_of(other)], source="test")
    return network


def test_it_is_a_network() -> None:
    network: Network = MemoryNetwork(World(seed=1), ONE, name_the_asker, listens=True)
    assert network.local == ONE


async def test_a_call_takes_a_round_trip_and_the_bytes_it_would_take_on_the_wire(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        world = World(seed=1)
        one, _ = await join(nursery, world, ONE), await join(nursery, world, OTHER)
        reply = await one.call(OTHER, Ping(), timeout_s=5)
        assert [record.peer for record in reply.closer] == [ONE]
        began_s = trio.current_time()
        await one.call(OTHER, Ping(), timeout_s=5)
        assert trio.current_time() - began_s == pytest.approx(2 * world.one_way_s(ONE, OTHER))
        assert world.requests == {"Ping": 2}
        assert world.request_bytes == 2 * len(encode_request(Ping()))
        assert world.reply_bytes == 2 * len(encode_reply(Ping(), reply))
        nursery.cancel_scope.cancel()


def test_one_seed_is_one_world() -> None:
    assert World(seed=1).one_way_s(ONE, OTHER) == World(seed=1).one_way_s(OTHER, ONE)
    assert World(seed=1).one_way_s(ONE, OTHER) != World(seed=2).one_way_s(ONE, OTHER)
    assert World(seed=1, round_trip_s=0).one_way_s(ONE, OTHER) == 0


async def test_a_connection_serves_both_ways_and_the_caller_need_not_listen(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        world = World(seed=1)
        one, other = await join(nursery, world, ONE, listens=False), await join(nursery, world, OTHER)
        with pytest.raises(QueryError, match="refused"):
            await other.call(ONE, Ping(), timeout_s=5)
        await one.call(OTHER, Ping(), timeout_s=5)
        assert other.is_connected(ONE)
        await other.call(ONE, Ping(), timeout_s=5)
        nursery.cancel_scope.cancel()


async def test_whoever_offers_nothing_resets_the_stream(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        world = World(seed=1)
        one, _ = await join(nursery, world, ONE), await join(nursery, world, OTHER, serves=False)
        with pytest.raises(QueryError, match="reset"):
            await one.call(OTHER, Ping(), timeout_s=5)
        nursery.cancel_scope.cancel()


async def test_a_node_that_stopped_refuses_at_once_and_is_left_alone_until_forgiven(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        world = World(seed=1)
        one = await join(nursery, world, ONE)
        began_s = trio.current_time()
        with pytest.raises(QueryError, match="refused"):
            await one.call(OTHER, Ping(), timeout_s=5)
        assert trio.current_time() - began_s < 1.0
        await join(nursery, world, OTHER)
        with pytest.raises(QueryError, match="left alone"):
            await one.call(OTHER, Ping(), timeout_s=5)
        one.forgive(OTHER)
        await one.call(OTHER, Ping(), timeout_s=5)
        nursery.cancel_scope.cancel()


async def test_to_and_from_the_silent_and_across_a_partition_nothing_arrives(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        world = World(seed=1)
        one, other = await join(nursery, world, ONE), await join(nursery, world, OTHER)
        await one.call(OTHER, Ping(), timeout_s=5)

        async def nothing_arrives() -> None:
            for caller, callee in ((one, OTHER), (other, ONE)):
                began_s = trio.current_time()
                with pytest.raises(QueryError, match="within 5 s"):
                    await caller.call(callee, Ping(), timeout_s=5)
                assert trio.current_time() - began_s == pytest.approx(5)

        world.silence(ONE)
        await nothing_arrives()
        world.unsilence(ONE)
        await one.call(OTHER, Ping(), timeout_s=5)
        world.partition([ONE], [OTHER])
        await nothing_arrives()
        world.heal()
        await other.call(ONE, Ping(), timeout_s=5)
        nursery.cancel_scope.cancel()


async def test_a_request_goes_on_though_its_caller_has_lost_interest(autojump_clock: MockClock) -> None:
    world = World(seed=1)
    finished = trio.Event()

    async def slow(_peer: PeerId, _request: Request) -> Reply:
        await trio.sleep(60)
        finished.set()
        return Reply()

    async with trio.open_nursery() as nursery:
        one = await join(nursery, world, ONE)
        other = world.network(OTHER, slow)
        await nursery.start(other.run)
        other.mount(as_server=True)
        with pytest.raises(QueryError):
            await one.call(OTHER, Ping(), timeout_s=5)
        await finished.wait()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("error", "offences"), [(RemoteProtocolError("no"), 1), (LocalProtocolError("no"), 0)])
async def test_a_request_that_is_not_answered_fails_and_only_breaches_are_offences(
    error: Exception, offences: int, autojump_clock: MockClock
) -> None:
    async def refuse(_peer: PeerId, _request: Request) -> Reply:
        raise error

    async with trio.open_nursery() as nursery:
        world = World(seed=1)
        one = await join(nursery, world, ONE)
        other = world.network(OTHER, refuse)
        await nursery.start(other.run)
        other.mount(as_server=True)
        with pytest.raises(QueryError, match="reset"):
            await one.call(OTHER, FindNode(ONE), timeout_s=5)
        assert other.counters().offences == offences
        assert other.counters().requests_answered == {"FindNode": 1}
        assert one.counters().requests_sent == 1
        nursery.cancel_scope.cancel()


async def test_what_was_under_way_is_lost_with_the_node(autojump_clock: MockClock) -> None:
    async def hang(_peer: PeerId, _request: Request) -> Reply:
        await trio.sleep(1000)
        return Reply()

    async with trio.open_nursery() as nursery:
        world = World(seed=1)
        one = await join(nursery, world, ONE)
        other = world.network(OTHER, hang)
        async with trio.open_nursery() as life:
            await life.start(other.run)
            other.mount(as_server=True)

            async def stop() -> None:
                await trio.sleep(1)
                life.cancel_scope.cancel()

            nursery.start_soon(stop)
            began_s = trio.current_time()

            async def call() -> None:
                with pytest.raises(QueryError, match="reset"):
                    await one.call(OTHER, Ping(), timeout_s=50)

            nursery.start_soon(call)
        await trio.sleep(2)
        assert not one.is_connected(OTHER)
        assert trio.current_time() - began_s < 5
        nursery.cancel_scope.cancel()
