"""Partners that keep a node waiting in rounds that it began, and move just enough for it to wait on. Virtual time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from prime_dht.background import background_nursery
from prime_dht.errors import LocalProtocolError, QueryError
from prime_dht.ids import PeerId
from prime_dht.net.network import Conversation
from prime_dht.node.held import HeldSectors
from prime_dht.node.rounds import LEAST_BYTES_PER_S, MAX_ROUND_S
from prime_dht.node.syncing import LOOK_EVERY_S
from prime_dht.partition.arcs import ArcSet
from prime_dht.sync.limits import TURN_BYTES
from prime_dht.sync.messages import Acceptance, AskChecksums, Turn
from prime_dht.sync.schedule import Candidate, Pace
from prime_dht.testing.hostile_rounds import Rogue
from prime_dht.testing.memory_network import MemoryNetwork
from prime_dht.testing.swarm import Swarm, open_swarm
from prime_dht.wire.kad import Reply, Request

CIRCLE = ArcSet.full(sector_bits=9)
NOTHING = ArcSet.empty(sector_bits=9)
CHECKSUMS = AskChecksums(CIRCLE)
CHECKSUMS_BYTES = 4 * len(CIRCLE)
TRICKLE_BYTES_PER_S = 1.2 * LEAST_BYTES_PER_S


async def serves_nothing_else(_peer: PeerId, _request: Request) -> Reply:
    raise LocalProtocolError("rogues speak of sync alone")


class Tricklers:
    """Partners of a node, and no others, that ask in each round for what is just enough; it begins rounds with them.

    Attributes:
        begun_at_s: when it began one with each, in that order.
        most: with so many at once at most.
    """

    def __init__(self, swarm: Swarm, *, crosses: bool) -> None:
        (self.node,) = swarm.nodes
        self.begun_at_s: list[float] = []
        self.most = 0
        self._swarm = swarm
        self._crosses = crosses
        self._peers: list[PeerId] = []
        self.node._syncing._partners = self._partners  # type: ignore[method-assign]

    async def add(self, nursery: trio.Nursery) -> None:
        network = self._swarm.world.network(self._swarm.machine().peer, serves_nothing_else)
        await nursery.start(network.run)
        network.mount(as_server=True)
        network.learn_addresses(self.node.peer_id, self._swarm.network_of(self.node).own_addresses(), source="manual")
        self.node._network.learn_addresses(network.local, network.own_addresses(), source="manual")
        rogue = Rogue(now_us=self._swarm.machine_of(self.node).clock.now_us())

        async def take_part(conversation: Conversation) -> None:
            self.begun_at_s.append(trio.current_time())
            self.most = max(self.most, len(self.node._syncing._begun))
            async with trio.open_nursery() as crossing:
                if self._crosses:
                    crossing.start_soon(self._cross, rogue, network)
                await self._trickle(rogue, conversation)

        network.serve_sync(take_part)
        self._peers.append(network.local)

    async def _trickle(self, rogue: Rogue, conversation: Conversation) -> None:
        first = Acceptance(arc=CIRCLE, held=CIRCLE)
        questions = (CHECKSUMS,) * (TURN_BYTES // CHECKSUMS_BYTES)
        try:
            assert await rogue.hear(conversation)
            await rogue.say(conversation, Turn(acceptance=first, questions=questions))
            while await rogue.hear(conversation):
                await trio.sleep(TURN_BYTES / TRICKLE_BYTES_PER_S)
                await rogue.say(conversation, Turn(questions=questions))
        except QueryError:
            pass  # the node has ended it

    async def _cross(self, rogue: Rogue, network: MemoryNetwork) -> None:
        """Begin a round that goes before the node's, and leave it."""
        await trio.sleep(1)
        async with network.converse(self.node.peer_id, timeout_s=5) as conversation:
            await rogue.say(conversation, replace(rogue.opening(), nonce=(1 << 32) - 1))
            assert isinstance(await rogue.hear(conversation), Turn)

    def _partners(self, prospects: Mapping[PeerId, int]) -> list[Candidate]:
        return [Candidate(peer=peer, arc=CIRCLE) for peer in self._peers if peer not in self.node._syncing._begun]


@pytest.mark.parametrize("crosses", [False, True], ids=["", "and begin rounds themselves meanwhile"])
async def test_beside_a_round_with_who_trickles_there_is_another_and_no_third(
    autojump_clock: MockClock, crosses: bool
) -> None:
    async with open_swarm(seed=1, size=1) as swarm, background_nursery() as nursery:
        others = Tricklers(swarm, crosses=crosses)
        for _ in range(8):
            await others.add(nursery)
        other = await swarm.join()  # while a node knows of nobody it begins no round
        await trio.sleep(4 * MAX_ROUND_S)
        first_s, second_s, third_s = others.begun_at_s[:3]
        assert second_s - first_s < MAX_ROUND_S / 3
        assert third_s - first_s >= MAX_ROUND_S
        assert others.most == Pace().max_begun
        node = others.node
        assert str((await other.sync(node.peer_id)).outcome) == "equal"
        stopping_at_s = trio.current_time()
        await swarm.stop(node)
        assert trio.current_time() - stopping_at_s < 1
        assert not any(active.is_ours for active in node._syncing._scheduled().active)


@pytest.mark.parametrize("missing", [NOTHING, CIRCLE], ids=["while it holds its arc", "while it holds nothing"])
async def test_when_a_slow_round_is_over_and_its_partner_is_the_only_one_the_next_follows_at_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, missing: ArcSet
) -> None:
    monkeypatch.setattr(HeldSectors, "missing", missing)
    async with open_swarm(seed=1, size=1) as swarm, background_nursery() as nursery:
        others = Tricklers(swarm, crosses=False)
        await others.add(nursery)
        await swarm.join()
        await trio.sleep(3.5 * MAX_ROUND_S)
        lasted_s = [later_s - began_s for began_s, later_s in pairwise(others.begun_at_s)]
        assert lasted_s == [pytest.approx(MAX_ROUND_S, abs=2 * LOOK_EVERY_S)] * 3
