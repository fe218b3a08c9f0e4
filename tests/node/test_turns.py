"""What a node makes of it that its process had no turn to dial: nothing that is the peer's fault."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from prime_dht.errors import NoTurnError, UnsentError
from prime_dht.ids import PeerId
from prime_dht.node.core import Node
from prime_dht.node.lookups import QUERY_TIMEOUT_S
from prime_dht.testing.swarm import open_swarm
from prime_dht.wire.kad import Reply, Request


def known(node: Node) -> set[PeerId]:
    return {contact.peer for contact in node._neighbourhood.table}


def dial_for_each(node: Node, monkeypatch: pytest.MonkeyPatch, wait_s: float) -> None:
    """From here on each request needs a turn to dial, which comes after so many seconds."""
    call = node._network.call

    async def call_later(
        peer: PeerId, request: Request, *, timeout_s: float, on_turn: Callable[[], None] | None = None
    ) -> Reply:
        await trio.sleep(wait_s)
        assert on_turn is not None
        on_turn()
        return await call(peer, request, timeout_s=timeout_s)

    monkeypatch.setattr(node._network, "call", call_later)
    monkeypatch.setattr(node._network, "post", lambda *_, **__: False)


async def test_a_lookup_does_not_take_the_wait_for_a_turn_for_the_peers_silence(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        node = swarm.nodes[0]
        others = known(node)
        assert len(others) == 5
        dial_for_each(node, monkeypatch, 2 * QUERY_TIMEOUT_S)
        result = await node._explorer.find_closest(b"x")
        assert {contact.peer for contact in result.closest} == others
        assert [hop.failure for hop in result.path] == [""] * 5
        assert known(node) == others


@pytest.mark.parametrize("error", [NoTurnError, UnsentError])
async def test_a_peer_that_there_was_no_turn_to_dial_or_that_nothing_could_be_sent_keeps_its_place(
    error: type[UnsentError], autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(seed=1, size=6) as swarm:
        node = swarm.nodes[0]
        others = known(node)

        async def have_no_turn(*_: object, **__: object) -> Reply:
            raise error("no turn")

        monkeypatch.setattr(node._network, "call", have_no_turn)
        monkeypatch.setattr(node._network, "post", lambda *_, **__: False)
        result = await node._explorer.find_closest(b"x")
        assert {hop.failure for hop in result.path} == {"no turn"}
        assert known(node) == others
        assert not any(node._neighbourhood._has_failed_lately(peer) for peer in others)
