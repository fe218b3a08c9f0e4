"""Serving blocks to many peers: who has a place, and whose turn it is to have a block in hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht import NodeConfig
from prime_dht.blobs.cid import Cid
from prime_dht.ids import PeerId
from prime_dht.net import block_server
from prime_dht.net.block_server import SERVED_IN_ALL, SERVED_OF_PEER, UNANSWERED_AT_LEAST, BlockServer
from prime_dht.net.block_streams import BlockCame, BlockStream, BlockStreams, LacksBlock, NotAnswered
from prime_dht.net.blocks_in_hand import IN_HAND, IN_HAND_OF_PEER, OFFERED_S
from prime_dht.net.offenders import Offenders
from prime_dht.net.streams import StreamLostError
from prime_dht.testing.streams import MemoryStream, stream_pair

SERVER, HONEST = PeerId(b"\x00\x01s"), PeerId(b"\x00\x01h")
STRANGERS = [PeerId(b"\x00\x02x" + bytes([number])) for number in range(IN_HAND)]
DATA = bytes(1 << 20)
CID, ABSENT = Cid.of_raw(DATA), Cid.of_raw(b"absent")
CAME = BlockCame(CID, bytearray(DATA))
PLACES = 16
HOGS = STRANGERS[: IN_HAND // IN_HAND_OF_PEER + 1]
"""The last of them gets fewer turns than it wants."""


class Shelf:
    """A store of one block, which is read while ``is_open`` is set; counts what it was asked for."""

    def __init__(self) -> None:
        self.is_open = trio.Event()
        self.is_open.set()
        self.reads = 0

    async def present(self, cids: Iterable[Cid]) -> set[Cid]:
        await trio.lowlevel.checkpoint()
        return set(cids) & {CID}

    async def read(self, cids: Sequence[Cid]) -> list[bytes | None]:
        self.reads += len(cids)
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

    async def open_all(self, peers: Iterable[PeerId]) -> list[MemoryStream]:
        """One after the other, so that ties are settled in this order."""
        return [await self.open(peer) for peer in peers]

    async def open_at_once(self, peers: Iterable[PeerId]) -> list[MemoryStream]:
        pairs = [stream_pair(peer, SERVER) for peer in peers]
        for _, there in pairs:
            self._nursery.start_soon(self.server.serve, there)
        await wait_all_tasks_blocked()
        return [here for here, _ in pairs]

    async def ask(self, peer: PeerId, *cids: Cid) -> BlockStream:
        """A stream on which these are asked for, and nothing is read yet."""
        stream = BlockStream(await self.open(peer))
        await stream.ask(cids)
        await wait_all_tasks_blocked()
        return stream


@pytest.fixture
async def served(nursery: trio.Nursery, patient_clock: MockClock) -> Served:
    """With time that stands still while anything happens, so that no block takes long on a slow machine.

    pytest-trio runs a test by the clock that is among its own arguments.
    """
    assert trio.lowlevel.current_clock() is patient_clock
    return Served(nursery)


@pytest.fixture
def few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_server, "SERVED_IN_ALL", PLACES)


async def jump(clock: MockClock, seconds: float) -> None:
    clock.jump(seconds)
    await wait_all_tasks_blocked()


def still_open(streams: Iterable[MemoryStream]) -> list[bool]:
    return [not stream.is_reset for stream in streams]


async def take_slowly(raw: MemoryStream, clock: MockClock, seconds: int) -> None:
    """Take 64 KiB every 15 s: enough not to be given up for taking nothing."""
    for _ in range(0, seconds, 15):
        await raw.read(64 << 10)
        await jump(clock, 15)


# Places


def test_there_are_places_for_all_connections_that_a_node_may_have_by_default() -> None:
    assert NodeConfig().max_connections < SERVED_IN_ALL


@pytest.mark.usefixtures("few_places")
async def test_when_all_places_are_taken_who_has_none_is_served_all_the_same(
    served: Served, mock_clock: MockClock
) -> None:
    crowd = await served.open_all([STRANGERS[0]] * 3 + [STRANGERS[1]] * SERVED_OF_PEER + [STRANGERS[2]] * 5)
    for raw in crowd:
        await BlockStream(raw).ask([CID])
    newcomers = await served.open_at_once([HONEST, STRANGERS[3]])
    assert [number for number, is_open in enumerate(still_open(crowd)) if not is_open] == [9, 10]
    assert still_open(newcomers) == [True, True]


@pytest.mark.usefixtures("few_places")
async def test_who_is_displaced_loses_the_stream_without_blame_and_may_come_back(
    served: Served, mock_clock: MockClock
) -> None:
    blamed = Offenders()

    async def open_stream(_peer: PeerId) -> MemoryStream:
        return await served.open(HONEST)

    async def fetch_beside(newcomers: Iterable[PeerId]) -> BlockCame:
        async with BlockStreams(open_stream, blamed).open(SERVER, timeout_s=1) as stream:
            await served.open_all(newcomers)
            await stream.ask([CID])
            outcome = await stream.receive()
            assert isinstance(outcome, BlockCame)
            return outcome

    other = await served.open(HONEST)
    crowd = await served.open_all(STRANGERS[: PLACES - 2])
    with pytest.raises(StreamLostError):
        await fetch_beside(STRANGERS[-1:])
    assert still_open([other, *crowd]) == [True] * (PLACES - 1)
    await crowd[0].reset()
    await wait_all_tasks_blocked()
    assert await fetch_beside(()) == CAME
    assert not blamed.offences
    assert not served.offenders.offences


# Turns


async def test_a_hundred_peers_fetch_at_once(served: Served, mock_clock: MockClock, nursery: trio.Nursery) -> None:
    got: list[bool] = []

    async def fetch(stream: BlockStream) -> None:
        got.append([await stream.receive(), await stream.receive()] == [CAME, LacksBlock(ABSENT)])

    peers = [PeerId(b"\x00\x02y" + bytes([number])) for number in range(100)]
    streams = [await served.ask(peer, CID, ABSENT) for peer in peers]
    for stream in streams:
        nursery.start_soon(fetch, stream)
    await wait_all_tasks_blocked()
    assert got == [True] * len(peers)


async def test_no_more_blocks_are_loaded_than_may_be_in_hand_and_few_for_one_peer(
    served: Served, mock_clock: MockClock
) -> None:
    for _ in range(SERVED_OF_PEER):
        await served.ask(HONEST, CID, CID, CID)
    assert served.store.reads == IN_HAND_OF_PEER
    for peer in STRANGERS:
        await served.ask(peer, CID, CID, CID)
    assert served.store.reads == IN_HAND


async def test_each_peer_gets_its_blocks_in_turn_however_many_streams_others_have(
    served: Served, mock_clock: MockClock
) -> None:
    hogs = [[await served.ask(peer, *[CID] * 9) for _ in range(SERVED_OF_PEER)] for peer in HOGS]
    last = await served.ask(HONEST, CID, CID)
    assert served.store.reads == IN_HAND
    assert await hogs[0][0].receive() == CAME  # whose turn the last of them gets
    assert await hogs[0][0].receive() == CAME
    await wait_all_tasks_blocked()
    assert served.store.reads == IN_HAND + 2
    assert await last.receive() == CAME  # that one was for it, before all others that wait


async def test_a_block_that_others_wait_for_has_to_be_taken_in_time(served: Served, mock_clock: MockClock) -> None:
    slow = [await served.open(peer) for peer in STRANGERS[: IN_HAND // 2]]
    for raw in slow:
        await BlockStream(raw).ask([CID, CID])
    await wait_all_tasks_blocked()
    for _ in range(3):
        for raw in slow:
            await raw.read(64 << 10)
        await jump(mock_clock, 15)
    for raw in slow:
        await raw.read(64 << 10)
    waiting = await served.ask(HONEST, CID)
    await jump(mock_clock, OFFERED_S - 3 * 15 - 0.25)
    assert still_open(slow) == [True] * len(slow)
    assert served.store.reads == IN_HAND
    await jump(mock_clock, 0.25)
    assert still_open(slow) == [False] * len(slow)
    assert await waiting.receive() == CAME
    assert not served.offenders.offences


async def test_so_has_one_that_is_offered_when_others_wait_already(served: Served, mock_clock: MockClock) -> None:
    hogs = [await served.ask(peer, CID, CID) for peer in STRANGERS[: IN_HAND // 2]]
    slow = await served.open(STRANGERS[-1])
    await BlockStream(slow).ask([CID])
    await served.ask(HONEST, CID)
    assert await hogs[0].receive() == CAME
    await take_slowly(slow, mock_clock, int(OFFERED_S) - 15)
    assert not slow.is_reset
    await take_slowly(slow, mock_clock, 15)
    assert slow.is_reset


async def test_while_nobody_waits_a_block_may_be_taken_as_slowly_as_one_likes(
    served: Served, mock_clock: MockClock
) -> None:
    slow = await served.open(HONEST)
    await BlockStream(slow).ask([CID, CID])
    await take_slowly(slow, mock_clock, 3 * int(OFFERED_S))
    assert not slow.is_reset


async def test_what_was_cancelled_while_it_waited_takes_no_turn(served: Served, mock_clock: MockClock) -> None:
    hogs = [await served.ask(peer, CID, CID) for peer in STRANGERS[: IN_HAND // 2]]
    given_up, waiting = await served.ask(STRANGERS[-1], CID), await served.ask(HONEST, CID)
    await given_up.cancel([CID])
    await wait_all_tasks_blocked()
    assert await hogs[0].receive() == CAME
    assert await waiting.receive() == CAME
    assert served.store.reads == IN_HAND + 1
    await given_up.ask([ABSENT])
    assert await hogs[1].receive() == CAME
    assert await given_up.receive() == LacksBlock(ABSENT)


async def test_a_stream_that_ends_lets_go_of_what_it_has_in_hand(served: Served, mock_clock: MockClock) -> None:
    served.store.is_open = trio.Event()  # some of it is being loaded
    hogs = [await served.ask(peer, CID, CID) for peer in STRANGERS[: IN_HAND // 4]]
    served.store.is_open.set()
    hogs += [await served.ask(peer, CID, CID) for peer in STRANGERS[IN_HAND // 4 : IN_HAND // 2]]
    for given_up in [await served.ask(HONEST, CID) for _ in range(SERVED_OF_PEER)]:
        await given_up.reset()
    waiting = await served.ask(HONEST, CID)
    await hogs[-1].reset()
    assert await waiting.receive() == CAME
    for hog in hogs[:-1]:
        await hog.reset()
    await wait_all_tasks_blocked()
    served.store.reads = 0
    for peer in STRANGERS:
        await served.ask(peer, CID)
    assert served.store.reads == IN_HAND


async def test_when_very_much_is_unanswered_each_peer_may_still_ask_for_a_little(
    served: Served, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_server, "UNANSWERED_IN_ALL", 100)
    served.store.is_open = trio.Event()
    await served.ask(STRANGERS[0], *[CID] * 100)
    late = await served.ask(HONEST, *[ABSENT] * (UNANSWERED_AT_LEAST + 2))
    assert [await late.receive() for _ in range(2)] == [NotAnswered(ABSENT)] * 2
    served.store.is_open.set()
    assert await late.receive() == LacksBlock(ABSENT)
