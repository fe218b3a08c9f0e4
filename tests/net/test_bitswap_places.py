"""The places for peers: strangers who want nothing keep nobody out, and displace nobody who wants something."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.blobs.cid import Cid
from prime_dht.ids import PeerId
from prime_dht.net.bitswap import IDLE_S, MAX_PEERS, ON_ITS_WAY_S, PROTOCOL, STREAMS_OF_PEER, UNTAKEN_S, BitswapServer
from prime_dht.net.offenders import Offenders
from prime_dht.net.yamux import FastYamux
from prime_dht.pb.bitswap_pb2 import Message
from prime_dht.testing.memory_conn import memory_conns
from prime_dht.testing.streams import MemoryStream, stream_pair
from prime_dht.wire.frames import encode_frame

SERVER, HONEST = PeerId(b"\x00\x01s"), PeerId(b"\x00\x01h")
STRANGERS = [PeerId(b"\x00\x02x" + bytes([number])) for number in range(MAX_PEERS)]
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
    """A server, and streams that peers open to it, and it to them.

    Attributes:
        heard: the end of each peer of the last stream on which it was answered.
        deaf: peers that accept no stream.
        lets_go: a stream that a peer does not accept is not given up before this is set.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self.store = Shelf()
        self.offenders = Offenders()
        self.server = BitswapServer(self.store, self._open_to, self.offenders)
        self.heard: dict[PeerId, MemoryStream] = {}
        self.deaf: set[PeerId] = set()
        self.lets_go = trio.Event()
        self.lets_go.set()
        self._nursery = nursery

    async def _open_to(self, peer: PeerId) -> INetStream:
        await trio.lowlevel.checkpoint()
        if peer in self.deaf:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await self.lets_go.wait()
        here, there = stream_pair(SERVER, peer, protocol=PROTOCOL)
        self.heard[peer] = there
        return here

    async def open(self, peer: PeerId) -> MemoryStream:
        (stream,) = await self.open_at_once([peer])
        return stream

    async def open_all(self, peers: Iterable[PeerId]) -> list[MemoryStream]:
        """One after the other, so that ties are settled in this order."""
        return [await self.open(peer) for peer in peers]

    async def open_at_once(self, peers: Iterable[PeerId]) -> list[MemoryStream]:
        pairs = [stream_pair(peer, SERVER, protocol=PROTOCOL) for peer in peers]
        for _, there in pairs:
            self._nursery.start_soon(self.server.serve, there)
        await wait_all_tasks_blocked()
        return [here for here, _ in pairs]

    async def took_block(self, peer: PeerId) -> bool:
        """Take what a peer is sent until it has been sent all."""
        expected = encode_frame(Message(payload=[Message.Block(prefix=bytes(CID)[:4], data=DATA)]).SerializeToString())
        taken = b""
        while len(taken) < len(expected):
            taken += await self.heard[peer].read()
        await wait_all_tasks_blocked()
        return taken == expected


@pytest.fixture
async def served(nursery: trio.Nursery) -> AsyncIterator[Served]:
    served = Served(nursery)
    try:
        yield served
    finally:
        served.lets_go.set()


async def jump(clock: MockClock, seconds: float) -> None:
    clock.jump(seconds)
    await wait_all_tasks_blocked()


def still_open(streams: Iterable[MemoryStream]) -> list[bool]:
    return [not stream.is_reset for stream in streams]


async def want(stream: INetStream, *cids: Cid) -> None:
    entries = [Message.Wantlist.Entry(block=bytes(cid)) for cid in cids]
    await stream.write(encode_frame(Message(wantlist=Message.Wantlist(entries=entries)).SerializeToString()))
    await wait_all_tasks_blocked()


async def test_strangers_who_want_nothing_keep_everybody_out_no_longer_than_they_may_be_idle(
    served: Served, mock_clock: MockClock
) -> None:
    crowd = await served.open_all(STRANGERS)
    await jump(mock_clock, IDLE_S - 0.25)
    for stream in crowd:
        await want(stream)  # nothing
    too_early = await served.open(HONEST)
    await jump(mock_clock, 0.25)
    in_time = await served.open(HONEST)
    assert too_early.is_reset
    assert still_open(crowd) == [False] + [True] * (MAX_PEERS - 1)
    await want(in_time, CID)
    assert await served.took_block(HONEST)
    assert not served.offenders.offences


async def test_while_places_are_free_nobody_is_displaced(served: Served, mock_clock: MockClock) -> None:
    crowd = await served.open_all(STRANGERS[:-1])
    await jump(mock_clock, 10 * IDLE_S)
    newcomer = await served.open(HONEST)
    assert still_open([*crowd, newcomer]) == [True] * MAX_PEERS


async def test_the_peer_that_has_wanted_nothing_longest_is_displaced_with_all_its_streams(
    served: Served, mock_clock: MockClock
) -> None:
    crowd = await served.open_all(STRANGERS[:5])
    more = await served.open_all([STRANGERS[2]] * (STREAMS_OF_PEER - 1))
    await jump(mock_clock, 1)
    crowd += await served.open_all(STRANGERS[5:])
    for number in (0, 1, 3, 4):
        await want(crowd[number], ABSENT)
    await jump(mock_clock, IDLE_S)
    await served.open(HONEST)
    assert [number for number, is_open in enumerate(still_open(crowd)) if not is_open] == [2]
    assert still_open(more) == [False] * len(more)


async def test_another_stream_of_a_peer_that_has_a_place_displaces_nobody(
    served: Served, mock_clock: MockClock
) -> None:
    crowd = await served.open_all(STRANGERS)
    await jump(mock_clock, IDLE_S)
    crowd.append(await served.open(STRANGERS[1]))
    assert still_open(crowd) == [True] * (MAX_PEERS + 1)


async def test_each_of_several_newcomers_at_once_displaces_a_peer_of_its_own(
    served: Served, mock_clock: MockClock
) -> None:
    crowd = await served.open_all(STRANGERS)
    await jump(mock_clock, IDLE_S)
    newcomers = await served.open_at_once(PeerId(peer + b"y") for peer in STRANGERS[:4])
    assert still_open(newcomers) == [True] * 4
    assert still_open(crowd) == [False] * 4 + [True] * (MAX_PEERS - 4)


async def test_a_peer_that_waits_for_the_store_is_not_displaced_however_long_that_takes(
    served: Served, mock_clock: MockClock
) -> None:
    crowd = await served.open_all(STRANGERS)
    served.store.is_open = trio.Event()
    for stream in crowd:
        await want(stream, CID)
        await stream.close()
    await jump(mock_clock, 100 * UNTAKEN_S)
    assert (await served.open(HONEST)).is_reset
    served.store.is_open.set()
    await wait_all_tasks_blocked()
    assert [await served.took_block(peer) for peer in STRANGERS] == [True] * MAX_PEERS


async def test_who_was_answered_with_little_may_be_idle_as_long_as_anybody_from_then_on(
    served: Served, mock_clock: MockClock
) -> None:
    crowd = await served.open_all(STRANGERS)
    served.store.is_open = trio.Event()
    for stream in crowd:
        await want(stream, ABSENT)
    await jump(mock_clock, 2 * IDLE_S)
    served.store.is_open.set()
    await wait_all_tasks_blocked()
    await jump(mock_clock, IDLE_S - 0.25)
    too_early = await served.open(HONEST)
    await jump(mock_clock, 0.25)
    in_time = await served.open(HONEST)
    assert still_open([too_early, in_time]) == [False, True]
    assert still_open(crowd).count(False) == 1


async def test_a_peer_that_takes_nothing_of_its_answer_is_displaced_but_later(
    served: Served, mock_clock: MockClock
) -> None:
    crowd = await served.open_all(STRANGERS)
    await jump(mock_clock, IDLE_S - 0.25)
    for stream in crowd:
        await want(stream, CID)
    await jump(mock_clock, UNTAKEN_S - 0.25)
    too_early = await served.open(HONEST)
    await served.heard[STRANGERS[0]].read(64 << 10)
    await jump(mock_clock, 0.25)
    in_time = await served.open(HONEST)
    assert too_early.is_reset
    assert not in_time.is_reset
    assert still_open(crowd) == [True, False] + [True] * (MAX_PEERS - 2)
    assert served.heard[STRANGERS[1]].is_reset
    assert not served.offenders.offences


async def test_a_peer_that_accepts_no_stream_is_displaced_as_late(served: Served, mock_clock: MockClock) -> None:
    crowd = await served.open_all(STRANGERS)
    await jump(mock_clock, IDLE_S - 0.25)
    served.deaf.update(STRANGERS)
    for stream in crowd:
        await want(stream, CID)
    await jump(mock_clock, UNTAKEN_S - 0.25)
    too_early = await served.open(HONEST)
    await jump(mock_clock, 0.25)
    in_time = await served.open(HONEST)
    assert still_open([too_early, in_time]) == [False, True]
    assert still_open(crowd) == [False] + [True] * (MAX_PEERS - 1)


async def test_over_our_own_muxer_as_well_a_peer_that_takes_nothing_gives_way(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    dialer, listener = (FastYamux(conn, ID(HONEST)) for conn in memory_conns())
    nursery.start_soon(dialer.start)
    nursery.start_soon(listener.start)

    async def open_stream(_peer: PeerId) -> INetStream:
        return NetStream(await dialer.open_stream(), None, None)

    served = Served(nursery)
    served.server = BitswapServer(served.store, open_stream, served.offenders)
    slow = await served.open(HONEST)
    await want(slow, CID)
    heard = await listener.accept_stream()
    await jump(mock_clock, UNTAKEN_S - 1)
    await heard.read(128 << 10)  # that is when Yamux grants more, but not all
    crowd = await served.open_all(STRANGERS[1:])
    await jump(mock_clock, 1)
    assert (await served.open(STRANGERS[0])).is_reset
    await jump(mock_clock, UNTAKEN_S - 1)
    for stream in crowd:
        await want(stream, ABSENT)
    newcomer = await served.open(STRANGERS[0])
    assert slow.is_reset
    assert still_open([*crowd, newcomer]) == [True] * MAX_PEERS


async def test_a_peer_is_not_displaced_while_a_large_block_may_be_on_its_way(
    served: Served, mock_clock: MockClock
) -> None:
    sent = await served.open(HONEST)
    await want(sent, CID)
    assert await served.took_block(HONEST)
    crowd = await served.open_all(STRANGERS[1:])
    for pause_s, is_displaced in ((IDLE_S, False), (ON_ITS_WAY_S - IDLE_S - 1, False), (1, True)):
        await jump(mock_clock, pause_s)
        for stream in crowd:
            await want(stream, ABSENT)
        assert (await served.open(STRANGERS[0])).is_reset is not is_displaced
    assert still_open([sent, *crowd]) == [False] + [True] * (MAX_PEERS - 1)


async def test_newcomers_under_many_ids_never_push_out_who_wants_something_now_and_then(
    served: Served, mock_clock: MockClock
) -> None:
    used = await served.open(HONEST)
    crowd = await served.open_all(STRANGERS[1:])
    for number in range(10):
        await jump(mock_clock, IDLE_S - 0.25)
        await want(used, ABSENT)
        await jump(mock_clock, 0.25)
        newcomers = await served.open_all(PeerId(peer + bytes([number])) for peer in STRANGERS)
        assert still_open(crowd) == [False] * (MAX_PEERS - 1)
        assert still_open(newcomers) == [True] * (MAX_PEERS - 1) + [False]
        crowd = newcomers[:-1]
    assert not used.is_reset


async def test_who_comes_back_before_its_displaced_streams_are_gone_keeps_its_new_place(
    served: Served, mock_clock: MockClock
) -> None:
    back = STRANGERS[0]
    served.deaf.add(back)
    served.lets_go = trio.Event()
    displaced = await served.open(back)
    await want(displaced, CID)
    await jump(mock_clock, UNTAKEN_S)
    crowd = await served.open_all([*STRANGERS[1:], HONEST])
    await jump(mock_clock, IDLE_S)
    returned = await served.open(back)
    assert still_open(crowd) == [False] + [True] * (MAX_PEERS - 1)
    for stream in crowd[1:]:
        await want(stream, ABSENT)
    assert still_open([displaced]) == [True]  # its answer still clings to it
    served.lets_go.set()
    await wait_all_tasks_blocked()
    assert still_open([displaced]) == [False]
    assert (await served.open(STRANGERS[1])).is_reset  # all places are taken, one of them by who came back
    served.deaf.clear()
    await want(returned, CID)
    assert await served.took_block(back)
