"""Which of those that send a request are probed: whoever this node has to know, and not whoever there is room for."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations

import pytest
import trio
from trio.testing import MockClock

from prime_dht.config import DhtConfig, Mode
from prime_dht.ids import PeerId, kad_key
from prime_dht.kad.keyspace import common_prefix_length
from prime_dht.node import strangers
from prime_dht.node.core import Node
from prime_dht.node.neighbourhood import JOIN_K, PROBE_AGAIN_S, PROBE_TIMEOUT_S, PROBES_WAITING
from prime_dht.testing.swarm import Swarm, open_swarm
from prime_dht.wire.kad import Ping, Reply, Request


def is_far_and_in_no_need(node: Node, asker: Node) -> bool:
    """Whether ``asker`` is new to a node whose bucket has room for it, yet enough servers to route by."""
    known, key = node._neighbourhood, kad_key(asker.peer_id)
    size = known.table.bucket_sizes()[common_prefix_length(known.local, key)]
    is_far = key ^ known.local > max(one.kad_key ^ known.local for one in known.table.find_closest(known.local))
    return known.table.get(asker.peer_id) is None and JOIN_K <= size < known.table.k and is_far


async def probes(swarm: Swarm, node: Node, asker: Node) -> int:
    """Requests that a node sends because another sends it one."""
    before = swarm.network_of(node).sent.total()
    await asker.add_peer(swarm.address_of(node))
    await trio.sleep(1)
    return swarm.network_of(node).sent.total() - before


async def test_a_server_that_did_not_answer_is_probed_at_once_when_it_is_heard_from_but_once_a_minute(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        node, lost = swarm.nodes[1:3]
        known, network = node._neighbourhood, swarm.network_of(node)
        call, called = network.call, Counter[PeerId]()

        async def counted(peer: PeerId, request: Request, *, timeout_s: float) -> Reply:
            called[peer] += 1
            return await call(peer, request, timeout_s=timeout_s)

        monkeypatch.setattr(network, "call", counted)
        swarm.world.partition((), [lost.peer_id])
        known.probe(lost.peer_id)
        await trio.sleep(2 * PROBE_TIMEOUT_S)
        assert known.table.get(lost.peer_id) is None
        called.clear()
        for _ in range(40):
            known.heard_from(lost.peer_id)
            await trio.sleep(1)
        assert called[lost.peer_id] == 1
        await trio.sleep(PROBE_AGAIN_S)
        known.probe(lost.peer_id)
        await trio.sleep(2 * PROBE_TIMEOUT_S)
        swarm.world.heal()
        known.heard_from(lost.peer_id)
        await trio.sleep(1)
        assert known.table.get(lost.peer_id) is not None


async def test_who_dials_time_and_again_and_is_silent_keeps_nobody_else_from_being_probed(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        node, silent = swarm.nodes[1:3]
        swarm.world.silence(silent.peer_id)
        for _ in range(2 * PROBES_WAITING):
            node._neighbourhood.dialled_by(silent.peer_id)
        newcomer = await swarm.join()
        await trio.sleep(2 * PROBE_TIMEOUT_S)
        assert node._neighbourhood.table.get(newcomer.peer_id) is not None


async def test_a_far_peer_is_probed_only_where_servers_to_route_by_are_missing(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers, "LOOK_AT_MOST_S", math.inf)
    monkeypatch.setattr(strangers, "UNVOUCHED_TIMES", math.inf)
    async with open_swarm(seed=1, size=60) as swarm:
        await trio.sleep(2 * PROBE_AGAIN_S)
        node, asker = next(
            (node, asker) for node, asker in permutations(swarm.nodes, 2) if is_far_and_in_no_need(node, asker)
        )
        assert await probes(swarm, node, asker) == 0
        known = node._neighbourhood
        index = common_prefix_length(known.local, kad_key(asker.peer_id))
        for one in list(known.table):
            if common_prefix_length(known.local, one.kad_key) == index:
                known.failed(one.peer, "gone")
        assert await probes(swarm, node, asker) > 0


async def test_a_near_peer_is_probed_as_long_as_there_is_room(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers, "LOOK_AT_MOST_S", math.inf)
    monkeypatch.setattr(strangers, "UNVOUCHED_TIMES", math.inf)
    async with open_swarm(seed=1, size=60) as swarm:
        await trio.sleep(2 * PROBE_AGAIN_S)
        node = swarm.nodes[0]
        known = node._neighbourhood
        nearest = known.table.find_closest(known.local)[0]
        known.failed(nearest.peer, "gone")
        asker = next(one for one in swarm.nodes if one.peer_id == nearest.peer)
        assert await probes(swarm, node, asker) > 0
        assert known.table.get(asker.peer_id) is not None


async def test_servers_that_nobody_can_dial_are_nobodys_replicas_so_that_what_is_put_is_found(
    autojump_clock: MockClock,
) -> None:
    """As behind a NAT: they reach the others, but who comes later does not reach them."""
    async with open_swarm(seed=1, size=2) as swarm:
        server = swarm.nodes[0]
        hidden = [
            await swarm.start(swarm.machine(listens=False), via=[server], config=DhtConfig(mode=Mode.SERVER))
            for _ in range(6)
        ]
        await trio.sleep(1)
        for node in swarm.nodes[:2]:
            assert not {status.peer for status in node.peers()} & {node.peer_id for node in hidden}
        for number in range(10):
            assert (await server.put(f"key {number}", b"value")).acknowledged
        client = await swarm.start(swarm.machine(listens=False), via=[server], config=DhtConfig(mode=Mode.CLIENT))
        await client.bootstrap()
        for number in range(10):
            assert await client.get(f"key {number}") is not None


async def test_a_server_that_nobody_can_dial_and_that_others_name_is_not_let_in_because_it_answers(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        server = swarm.nodes[0]
        hidden = await swarm.start(swarm.machine(listens=False), via=[server], config=DhtConfig(mode=Mode.SERVER))
        await trio.sleep(1)
        known = server._neighbourhood
        await known.ask(known.contact(hidden.peer_id), Ping())
        assert known.table.get(hidden.peer_id) is None
