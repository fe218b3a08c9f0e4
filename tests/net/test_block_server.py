"""The places for streams: strangers who do nothing with theirs keep nobody out, and displace nobody who uses theirs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
import trio
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.blobs.actions import Ask, Failed, FindProviders, Look, WaitUntil
from prime_dht.blobs.cid import Cid
from prime_dht.blobs.plan import FetchPlan
from prime_dht.blobs.walk import Walk
from prime_dht.ids import US_PER_S, PeerId
from prime_dht.net.block_server import IDLE_S, ON_ITS_WAY_S, SERVED_IN_ALL, SERVED_OF_PEER, UNTAKEN_S, BlockServer
from prime_dht.net.block_streams import BlockCame, BlockStream, BlockStreams, LacksBlock
from prime_dht.net.offenders import Offenders
from prime_dht.net.streams import StreamLostError
from prime_dht.net.yamux import FastYamux
from prime_dht.testing.memory_conn import memory_conns
from prime_dht.testing.streams import MemoryStream, stream_pair

SERVER, HONEST = PeerId(b"\x00\x01s"), PeerId(b"\x00\x01h")
STRANGERS = [PeerId(b"\x00\x02x" + bytes([number])) for number in range(SERVED_IN_ALL)]
DATA = bytes(1 << 20)
CID, ABSENT = Cid.of_raw(DATA), Cid.of_raw(b"absent")


class Shelf:
    """A store of one block, which is read while ``is_open`` is set."""

    def __init__(self) -> None:
        self.is_open = trio.Event()
        self.is_open.set()

    async def present(self, cids: Iterable[Cid]) -> set[Cid]:
        await trio.lowlevel.checkpoint()
        return set(cids) & {CID}

    async def read(self, cids: Sequence[Cid]) -> list[bytes | None]:
        await self.is_open.wait()
        return [DATA if cid == CID else None for cid in cids]


class Served:
    """A server, and streams that peers open to it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.store = Shelf()
        self.offenders = Offenders()
        self.server = BlockServer(self.store, self.offenders)
        self._nursery = nursery

    async def open(self, peer: PeerId) -> MemoryStream:
        here, there = stream_pair(peer, SERVER)
        self._nursery.start_soon(self.server.serve, there)
        await wait_all_tasks_blocked()
        return here

    async def open_at_once(self, peers: Iterable[PeerId]) -> list[MemoryStream]:
        pairs = [stream_pair(peer, SERVER) for peer in peers]
        for _, there in pairs:
            self._nursery.start_soon(self.server.serve, there)
        await wait_all_tasks_blocked()
        return [here for here, _ in pairs]

    async def open_all(self, peers: Iterable[PeerId]) -> list[MemoryStream]:
        """One after the other, so that ties are settled in this order."""
        return [await self.open(peer) for peer in peers]


@pytest.fixture
def served(nursery: trio.Nursery) -> Served:
    return Served(nursery)


async def jump(clock: MockClock, seconds: float) -> None:
    clock.jump(seconds)
    await wait_all_tasks_blocked()


def still_open(streams: Iterable[MemoryStream]) -> list[bool]:
    return [not stream.is_reset for stream in streams]


async def ask_for_what_is_not_there(raw: MemoryStream, stream: BlockStream | None = None) -> None:
    stream = stream or BlockStream(raw)
    await stream.ask([ABSENT])
    assert await stream.receive() == LacksBlock(ABSENT)
    await wait_all_tasks_blocked()


async def test_strangers_who_ask_nothing_keep_everybody_out_no_longer_than_they_may_be_idle(
    served: Served, mock_clock: MockClock
) -> None:
    crowd = await served.open_all(STRANGERS[: SERVED_IN_ALL // SERVED_OF_PEER] * SERVED_OF_PEER)
    await jump(mock_clock, IDLE_S - 0.25)
    too_early = await served.open(HONEST)
    await jump(mock_clock, 0.25)
    in_time = await served.open(HONEST)
    assert too_early.is_reset
    assert still_open(crowd) == [False] + [True] * (SERVED_IN_ALL - 1)
    stream = BlockStream(in_time)
    await stream.ask([CID])
    assert await stream.receive() == BlockCame(CID, bytearray(DATA))


async def test_while_places_are_free_nobody_is_displaced(served: Served, mock_clock: MockClock) -> None:
    crowd = await served.open_all(STRANGERS[:-1])
    await jump(mock_clock, 10 * IDLE_S - 1)
    newcomer = await served.open(HONEST)
    assert still_open([*crowd, newcomer]) == [True] * SERVED_IN_ALL


async def test_the_stream_that_has_been_idle_longest_is_displaced(served: Served, mock_clock: MockClock) -> None:
    crowd = await served.open_all(STRANGERS[:5])
    await jump(mock_clock, 1)
    crowd += await served.open_all(STRANGERS[5:])
    for number in (0, 1, 3, 4):
        await ask_for_what_is_not_there(crowd[number])
    await jump(mock_clock, IDLE_S)
    await served.open(HONEST)
    assert [number for number, is_open in enumerate(still_open(crowd)) if not is_open] == [2]


async def test_each_of_several_newcomers_at_once_displaces_a_stream_of_its_own(
    served: Served, mock_clock: MockClock
) -> None:
    crowd = await served.open_all(STRANGERS)
    await jump(mock_clock, IDLE_S)
    newcomers = await served.open_at_once([HONEST] * 4)
    assert still_open(newcomers) == [True] * 4
    assert still_open(crowd) == [False] * 4 + [True] * (SERVED_IN_ALL - 4)


async def test_whoever_has_several_places_loses_none_while_others_have_been_idle_longer(
    served: Served, mock_clock: MockClock
) -> None:
    single = await served.open_all(STRANGERS[: SERVED_IN_ALL - 2])
    await jump(mock_clock, 1)
    double = await served.open_all([HONEST] * 2)
    await jump(mock_clock, IDLE_S)
    await served.open(STRANGERS[-1])
    assert still_open(double) == [True, True]
    assert still_open(single) == [False] + [True] * (len(single) - 1)


async def test_a_stream_is_not_displaced_while_a_large_block_may_be_on_its_way(
    served: Served, mock_clock: MockClock
) -> None:
    crowd = await served.open_all(STRANGERS)
    sent, *others = [BlockStream(raw) for raw in crowd]
    await sent.ask([CID])
    assert await sent.receive() == BlockCame(CID, bytearray(DATA))
    for pause_s, is_displaced in ((IDLE_S, False), (ON_ITS_WAY_S - IDLE_S - 1, False), (1, True)):
        await jump(mock_clock, pause_s)
        for raw, stream in zip(crowd[1:], others, strict=True):
            await ask_for_what_is_not_there(raw, stream)
        assert (await served.open(HONEST)).is_reset is not is_displaced
    assert still_open(crowd) == [False] + [True] * (SERVED_IN_ALL - 1)


async def test_whoever_has_most_places_keeps_those_that_it_uses(served: Served, mock_clock: MockClock) -> None:
    single = await served.open_all(STRANGERS[: SERVED_IN_ALL - 2])
    double = await served.open_all([HONEST] * 2)
    await jump(mock_clock, IDLE_S)
    for used in double:
        await ask_for_what_is_not_there(used)
    await served.open(STRANGERS[-1])
    assert still_open(double) == [True, True]
    assert still_open(single) == [False] + [True] * (len(single) - 1)


async def test_a_stream_that_waits_for_the_store_is_not_displaced_however_long_that_takes(
    served: Served, mock_clock: MockClock
) -> None:
    crowd = await served.open_all(STRANGERS)
    streams = [BlockStream(raw) for raw in crowd]
    for stream in streams:
        await stream.ask([CID])
        assert await stream.receive() == BlockCame(CID, bytearray(DATA))
    served.store.is_open = trio.Event()
    for stream in streams:
        await stream.ask([CID])
    await jump(mock_clock, 100 * UNTAKEN_S)
    assert (await served.open(HONEST)).is_reset
    served.store.is_open.set()
    assert [await stream.receive() for stream in streams] == [BlockCame(CID, bytearray(DATA))] * SERVED_IN_ALL


async def test_a_stream_whose_reader_takes_nothing_is_displaced_but_later(
    served: Served, mock_clock: MockClock
) -> None:
    crowd = await served.open_all(STRANGERS)
    for raw in crowd:
        await BlockStream(raw).ask([CID])
    await jump(mock_clock, UNTAKEN_S - 0.25)
    too_early = await served.open(HONEST)
    await crowd[0].read(64 << 10)
    await jump(mock_clock, 0.25)
    in_time = await served.open(HONEST)
    assert too_early.is_reset
    assert not in_time.is_reset
    assert still_open(crowd) == [True, False] + [True] * (SERVED_IN_ALL - 2)


async def test_over_our_own_muxer_as_well_a_reader_who_takes_nothing_gives_way(
    served: Served, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    dialer, listener = (FastYamux(conn, ID(STRANGERS[0])) for conn in memory_conns())
    nursery.start_soon(dialer.start)
    nursery.start_soon(listener.start)
    unread = await dialer.open_stream()
    nursery.start_soon(served.server.serve, NetStream(await listener.accept_stream(), None, None))
    await BlockStream(NetStream(unread, None, None)).ask([CID])
    crowd = await served.open_all(STRANGERS[1:])
    await jump(mock_clock, UNTAKEN_S)
    for raw in crowd:
        await ask_for_what_is_not_there(raw)
    newcomer = await served.open(HONEST)
    assert unread.is_reset
    assert still_open([*crowd, newcomer]) == [True] * SERVED_IN_ALL


async def test_newcomers_under_many_ids_never_push_out_who_asks_now_and_then(
    served: Served, mock_clock: MockClock
) -> None:
    used = await served.open(HONEST)
    stream = BlockStream(used)
    crowd = await served.open_all(STRANGERS[1:])
    for _ in range(10):
        await jump(mock_clock, IDLE_S - 0.25)
        await ask_for_what_is_not_there(used, stream)
        await jump(mock_clock, 0.25)
        newcomers = await served.open_all(STRANGERS)
        assert still_open(crowd) == [False] * (SERVED_IN_ALL - 1)
        assert still_open(newcomers) == [True] * (SERVED_IN_ALL - 1) + [False]
        crowd = newcomers[:-1]
    assert not used.is_reset


async def test_who_is_displaced_loses_the_stream_without_blame_and_may_come_back(
    served: Served, mock_clock: MockClock
) -> None:
    blamed = Offenders()

    async def open_stream(_peer: PeerId) -> MemoryStream:
        return await served.open(HONEST)

    async def fetch_after(idle_s: float) -> BlockCame:
        async with BlockStreams(open_stream, blamed).open(SERVER, timeout_s=1) as stream:
            await jump(mock_clock, idle_s)
            crowd = await served.open_all(STRANGERS)
            assert still_open(crowd[:-1]) == [True] * (SERVED_IN_ALL - 1)
            await stream.ask([CID])
            outcome = await stream.receive()
            assert isinstance(outcome, BlockCame)
            return outcome

    with pytest.raises(StreamLostError):
        await fetch_after(IDLE_S)
    await jump(mock_clock, IDLE_S)
    assert await fetch_after(0) == BlockCame(CID, bytearray(DATA))
    assert not blamed.offences
    assert not served.offenders.offences


async def test_a_fetch_that_is_turned_away_comes_back_when_strangers_have_been_idle_for_too_long() -> None:
    plan, now_us, asked_at_us = FetchPlan(Walk(CID), now_us=0), 0, []
    plan.on_provider(SERVER)
    while not isinstance((actions := plan.next(now_us))[-1], Failed):
        for action in actions:
            match action:
                case Look(cids):
                    for cid in cids:
                        plan.on_absent(cid)
                case Ask(peer):
                    asked_at_us.append(now_us)
                    plan.on_gone(peer, "reset the stream")
                case FindProviders():
                    plan.on_provider(SERVER)
                    plan.on_search_ended(now_us)
                case WaitUntil(at_us):
                    now_us = at_us if len(actions) == 1 else now_us
    assert asked_at_us[0] + IDLE_S * US_PER_S <= asked_at_us[-1]
