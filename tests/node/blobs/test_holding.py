"""Asking peers which blobs they hold: all that wait for one, on one stream. In virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from prime_dht.blobs.cid import Cid
from prime_dht.errors import QueryError
from prime_dht.ids import PeerId
from prime_dht.net.block_streams import BlockCame, HasBlock, LacksBlock
from prime_dht.net.network import Network
from prime_dht.node.blobs.holding import ASK_AT_MOST_S, IDLE_S, Holders

PEER = PeerId(b"peer")
ROOTS = [Cid.of_raw(b"%d" % number) for number in range(20)]
TRAVEL_S = 0.001


class Stream:
    """A stream to a peer that is asked only about presence."""

    unanswered = 0

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked: list[Cid] = []

    async def ask(self, cids: Sequence[Cid], *, presence_only: bool = False) -> None:
        assert presence_only
        await trio.sleep(TRAVEL_S)
        self._world.asked_s.append(trio.current_time())
        self._asked += cids

    async def receive(self) -> HasBlock | LacksBlock:
        await trio.sleep(TRAVEL_S)
        if self._world.breaks():
            raise QueryError("the stream broke")
        cid = self._asked.pop(0)
        return HasBlock(cid) if cid in self._world.held else LacksBlock(cid)

    async def cancel(self, cids: Iterable[Cid]) -> None:
        raise NotImplementedError

    async def verify(self, blocks: Iterable[BlockCame]) -> list[bool]:
        raise NotImplementedError


class World:
    """A network in which every peer holds the same blobs.

    Attributes:
        streams: how many were opened; open: how many are.
        asked_s: when a peer was asked.
        breaks: whether the next answer does not come.
    """

    def __init__(self) -> None:
        self.held: set[Cid] = set()
        self.streams = self.open = 0
        self.asked_s: list[float] = []
        self.breaks: Callable[[], bool] = lambda: False
        self.holders = Holders(cast("Network", self))

    @asynccontextmanager
    async def ask_blocks(self, peer: PeerId, *, timeout_s: float) -> AsyncIterator[Stream]:
        assert (peer, timeout_s > 0) == (PEER, True)
        await trio.sleep(TRAVEL_S)
        self.streams += 1
        self.open += 1
        try:
            yield Stream(self)
        finally:
            self.open -= 1


@pytest.fixture
def world() -> World:
    return World()


async def test_all_that_wait_for_a_peer_ask_on_one_stream_at_a_time_and_hear_of_theirs(
    world: World, autojump_clock: MockClock
) -> None:
    heard: list[Cid] = []

    async def wait(root: Cid) -> None:
        await world.holders.wait_for(PEER, root)
        assert root in world.held
        heard.append(root)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for root in ROOTS:
                nursery.start_soon(wait, root)
            for root in reversed(ROOTS):
                await trio.sleep(0.02)
                assert world.open <= 1
                world.held.add(root)
    assert set(heard) == set(ROOTS)
    assert world.streams < len(ROOTS) / 2
    assert world.open == 0
    assert not world.holders._waits


async def test_who_waits_for_long_gives_its_stream_back_and_is_told_in_time(
    world: World, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.holders.wait_for, PEER, ROOTS[0])
        await trio.sleep(60)
        assert world.open == 0
        began_s = trio.current_time()
        assert IDLE_S < world.asked_s[-1] - world.asked_s[-2] < ASK_AT_MOST_S + 1
        world.held.add(ROOTS[0])
    assert trio.current_time() - began_s < ASK_AT_MOST_S + 1


async def test_when_the_one_that_asks_gives_up_another_does(world: World, autojump_clock: MockClock) -> None:
    scope = trio.CancelScope()

    async def give_up() -> None:
        with scope:
            await world.holders.wait_for(PEER, ROOTS[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up)
        await trio.sleep(0.005)
        nursery.start_soon(world.holders.wait_for, PEER, ROOTS[1])
        await trio.sleep(0.05)
        scope.cancel()
        await trio.sleep(0.05)
        world.held.add(ROOTS[1])
        with trio.fail_after(2 * ASK_AT_MOST_S):
            while world.holders._waits:  # noqa: ASYNC110 - it tells only who waits
                await trio.sleep(0.01)
    assert world.open == 0


async def test_a_stream_that_breaks_is_opened_again_ever_less_often(world: World, autojump_clock: MockClock) -> None:
    world.breaks = lambda: True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.holders.wait_for, PEER, ROOTS[0])
        await trio.sleep(60)
        assert 30 <= world.streams <= 45
        world.breaks = lambda: False
        world.held.add(ROOTS[0])
        with trio.fail_after(2 * ASK_AT_MOST_S):
            while world.holders._waits:  # noqa: ASYNC110 - it tells only who waits
                await trio.sleep(0.01)
