"""Blocks from one node to another: outcomes, cancelling, bounds, deadlines, and what a hostile end can do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.blobs.cid import Cid
from prime_dht.errors import LocalProtocolError, QueryError, RemoteProtocolError, StorageError
from prime_dht.ids import PeerId
from prime_dht.net.block_channel import PartCame
from prime_dht.net.block_server import SERVED_OF_PEER, TIMEOUT_S, BlockServer, BlockSource
from prime_dht.net.block_streams import (
    PROGRESS_TIMEOUT_S,
    BlockCame,
    BlockStream,
    BlockStreams,
    HasBlock,
    LacksBlock,
    NotAnswered,
)
from prime_dht.net.offenders import Offenders
from prime_dht.net.streams import StreamLostError
from prime_dht.net.yamux import FastYamux
from prime_dht.storage.blocks import BlockStore, Claim
from prime_dht.testing.memory_conn import memory_conns
from prime_dht.testing.streams import MemoryStream, stream_pair
from prime_dht.wire.blocks import MAX_UNANSWERED, Answer, Ask, encode_block_header, encode_message

ASKER, SERVER = PeerId(b"\x00\x01a"), PeerId(b"\x00\x01b")
MIB = 1 << 20
BLOCKS = [bytes([byte]) * MIB for byte in range(6)]
CIDS = [Cid.of_raw(data) for data in BLOCKS]
ABSENT = Cid.of_raw(b"absent")


class Shelf:
    """A store whose reads wait for nothing.

    Attributes:
        read_cids: of blocks, in the order in which they were read.
    """

    def __init__(self, blocks: Iterable[bytes] = BLOCKS) -> None:
        self._blocks = {Cid.of_raw(data): data for data in blocks}
        self.read_cids: list[Cid] = []
        self.error: StorageError | None = None

    async def present(self, cids: Iterable[Cid]) -> set[Cid]:
        await trio.lowlevel.checkpoint()
        return set(cids) & self._blocks.keys()

    async def read(self, cids: Sequence[Cid]) -> list[bytes | None]:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.read_cids += cids
        return [self._blocks.get(cid) for cid in cids]


@pytest.fixture
def store() -> Shelf:
    return Shelf()


Connect = Callable[[BlockSource], AbstractAsyncContextManager[BlockStream]]


@pytest.fixture(params=["any muxer", "our muxer"])
def connect(request: pytest.FixtureRequest, nursery: trio.Nursery) -> Connect:
    """Opens a stream to a server of a store."""

    @asynccontextmanager
    async def over_any(store: BlockSource) -> AsyncIterator[BlockStream]:
        here, there = stream_pair(ASKER, SERVER)
        nursery.start_soon(BlockServer(store, Offenders()).serve, there)
        stream = BlockStream(here)
        yield stream
        await stream.close()

    @asynccontextmanager
    async def over_ours(store: BlockSource) -> AsyncIterator[BlockStream]:
        dialer, listener = (FastYamux(conn, ID(SERVER)) for conn in memory_conns())
        nursery.start_soon(dialer.start)
        nursery.start_soon(listener.start)
        here, there = await dialer.open_stream(), await listener.accept_stream()
        nursery.start_soon(BlockServer(store, Offenders()).serve, NetStream(there, None, None))
        stream = BlockStream(NetStream(here, None, None))
        yield stream
        await stream.close()

    return over_any if request.param == "any muxer" else over_ours


async def test_each_block_that_was_asked_for_comes(connect: Connect, store: Shelf) -> None:
    async with connect(store) as stream:
        await stream.ask(CIDS)
        came = [await stream.receive() for _ in CIDS]
    assert came == [BlockCame(cid, bytearray(data)) for cid, data in zip(CIDS, BLOCKS, strict=True)]
    assert stream.unanswered == 0


async def test_a_block_that_is_not_there_is_lacking(connect: Connect, store: Shelf) -> None:
    async with connect(store) as stream:
        await stream.ask([ABSENT, CIDS[0]])
        assert await stream.receive() == LacksBlock(ABSENT)
        assert await stream.receive() == BlockCame(CIDS[0], bytearray(BLOCKS[0]))


async def test_presence_is_told_before_blocks_are_sent(connect: Connect, store: Shelf) -> None:
    async with connect(store) as stream:
        await stream.ask(CIDS)
        await stream.ask([CIDS[0], ABSENT, CIDS[1]], presence_only=True)
        outcomes = [await stream.receive() for _ in range(9)]
    told = [outcome for outcome in outcomes if not isinstance(outcome, BlockCame)]
    assert told == [HasBlock(CIDS[0]), HasBlock(CIDS[1]), LacksBlock(ABSENT)]
    assert outcomes.index(told[0]) <= 3


async def test_an_empty_block_comes(connect: Connect) -> None:
    async with connect(Shelf([b""])) as stream:
        await stream.ask([Cid.of_raw(b"")])
        assert await stream.receive() == BlockCame(Cid.of_raw(b""), bytearray())


async def test_what_is_cancelled_is_not_heard_of_and_what_was_not_sent_never_is(connect: Connect, store: Shelf) -> None:
    async with connect(store) as stream:
        await stream.ask(CIDS)
        await stream.cancel([*CIDS[1:5], ABSENT])
        assert await stream.receive() == BlockCame(CIDS[0], bytearray(BLOCKS[0]))
        assert await stream.receive() == BlockCame(CIDS[5], bytearray(BLOCKS[5]))
        await stream.ask(CIDS[1:2])
        assert await stream.receive() == BlockCame(CIDS[1], bytearray(BLOCKS[1]))
    assert stream.unanswered == 0


async def test_blocks_come_out_of_a_block_store(connect: Connect) -> None:
    root = Cid.of_raw(b"root")
    async with BlockStore.in_memory(max_bytes=MIB) as store, connect(store) as stream:
        await store.claim(Claim(root=root), size_bytes=MIB)
        await store.add(root, [(CIDS[0], BLOCKS[0])])
        await stream.ask(CIDS[:2], presence_only=True)
        assert await stream.receive() == HasBlock(CIDS[0])
        assert await stream.receive() == LacksBlock(CIDS[1])
        await stream.ask(CIDS[:1])
        assert await stream.receive() == BlockCame(CIDS[0], bytearray(BLOCKS[0]))


async def test_asking_for_too_much_at_a_time_is_a_mistake_of_this_node(connect: Connect, store: Shelf) -> None:
    async with connect(store) as stream:
        with pytest.raises(LocalProtocolError):
            await stream.ask([ABSENT] * (MAX_UNANSWERED + 1))


# What the server bounds


class Served:
    """A server of a store, and streams that peers open to it."""

    def __init__(self, store: Shelf, nursery: trio.Nursery) -> None:
        self.offenders = Offenders()
        self.server = BlockServer(store, self.offenders)
        self._nursery = nursery

    def open(self, peer: PeerId = ASKER) -> tuple[BlockStream, MemoryStream]:
        here, there = stream_pair(peer, SERVER)
        self._nursery.start_soon(self.server.serve, there)
        return BlockStream(here), here


@pytest.fixture
def served(store: Shelf, nursery: trio.Nursery) -> Served:
    return Served(store, nursery)


async def test_no_more_is_loaded_than_what_is_sent_and_one_block(served: Served, store: Shelf) -> None:
    stream, _ = served.open()
    await stream.ask(CIDS)
    for received in range(5):
        await wait_all_tasks_blocked()
        assert store.read_cids == CIDS[: received + 2]
        await stream.receive()
    await stream.reset()


async def test_a_store_that_fails_costs_the_stream_and_nobody_is_charged(
    served: Served, store: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    store.error = StorageError("the disk is broken")
    stream, raw = served.open()
    await stream.ask(CIDS)
    await wait_all_tasks_blocked()
    assert raw.is_reset
    assert "the disk is broken" in caplog.text
    assert not served.offenders.offences


async def test_what_one_peer_asks_beyond_its_bound_is_not_answered_on_any_of_its_streams(served: Served) -> None:
    first, _ = served.open()
    second, _ = served.open()
    other, _ = served.open(PeerId(b"\x00\x01c"))
    await first.ask([CIDS[0]] * (MAX_UNANSWERED - 1))
    await wait_all_tasks_blocked()
    await second.ask([CIDS[1]] * 4)
    outcomes = [await second.receive() for _ in range(4)]
    assert outcomes == [NotAnswered(CIDS[1])] * 3 + [BlockCame(CIDS[1], bytearray(BLOCKS[1]))]
    await other.ask(CIDS[:1])
    assert isinstance(await other.receive(), BlockCame)
    await first.reset()
    await wait_all_tasks_blocked()
    await second.ask([ABSENT] * 4)
    assert [await second.receive() for _ in range(4)] == [LacksBlock(ABSENT)] * 4


async def test_a_peer_may_open_so_many_streams(served: Served) -> None:
    kept = [served.open()[0] for _ in range(SERVED_OF_PEER)]
    await wait_all_tasks_blocked()
    _, refused = served.open()
    await wait_all_tasks_blocked()
    assert refused.is_reset
    await kept[0].close()
    await wait_all_tasks_blocked()
    another, raw = served.open()
    await another.ask(CIDS[:1])
    assert isinstance(await another.receive(), BlockCame)
    assert not raw.is_reset


async def test_when_the_peer_ends_its_direction_what_it_asked_for_is_still_sent(served: Served) -> None:
    stream, raw = served.open()
    await stream.ask(CIDS[:2])
    await raw.close()
    assert [await stream.receive(), await stream.receive()] == [
        BlockCame(cid, bytearray(data)) for cid, data in zip(CIDS[:2], BLOCKS[:2], strict=True)
    ]
    with pytest.raises(StreamLostError, match="the peer ended the stream"):
        await stream.receive()


async def test_a_stream_on_which_nothing_is_asked_is_reset(served: Served, mock_clock: MockClock) -> None:
    stream, raw = served.open()
    mock_clock.jump(TIMEOUT_S - 1)
    await stream.ask([ABSENT])
    assert await stream.receive() == LacksBlock(ABSENT)
    await wait_all_tasks_blocked()
    mock_clock.jump(TIMEOUT_S - 1)
    await wait_all_tasks_blocked()
    open_until_then = not raw.is_reset
    mock_clock.jump(2)
    await wait_all_tasks_blocked()
    assert open_until_then
    assert raw.is_reset
    assert not served.offenders.offences


async def test_a_stream_whose_answers_are_not_read_is_reset(served: Served, mock_clock: MockClock) -> None:
    stream, raw = served.open()
    await stream.ask(CIDS)
    await wait_all_tasks_blocked()
    mock_clock.jump(TIMEOUT_S - 1)
    await wait_all_tasks_blocked()
    open_until_then = not raw.is_reset
    mock_clock.jump(2)
    await wait_all_tasks_blocked()
    assert open_until_then
    assert raw.is_reset


async def test_stopping_resets_what_is_served(served: Served) -> None:
    _, raw = served.open()
    await wait_all_tasks_blocked()
    served.server.stop()
    await wait_all_tasks_blocked()
    assert raw.is_reset


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\xff\xff\x7f",
        b"\x02\xff\xff",
        b"\x00",
        encode_message(Answer(have=(0,))),
        encode_block_header(0, 1),
        encode_message(Ask(())),
        b"\x06\x0a\x04\x0a\x02cd",
    ],
    ids=["too long", "no protobuf", "empty", "an answer", "a block", "for nothing", "no CID"],
)
async def test_who_asks_wrongly_is_charged_and_reset(served: Served, sent: bytes) -> None:
    _, raw = served.open()
    await raw.write(sent)
    await wait_all_tasks_blocked()
    assert raw.is_reset
    assert served.offenders.offences == {ASKER: 1}
    stream, _ = served.open()
    await stream.ask(CIDS[:1])
    assert isinstance(await stream.receive(), BlockCame)


# What the peer may do to who asks


class Hostile:
    """A stream whose other end is the test's."""

    def __init__(self) -> None:
        here, self.peer = stream_pair(ASKER, SERVER)
        self.stream = BlockStream(here)


async def test_blocks_are_verified_by_whoever_receives_them() -> None:
    hostile = Hostile()
    await hostile.stream.ask(CIDS[:2])
    sent = encode_block_header(0, len(BLOCKS[0])) + BLOCKS[0] + encode_block_header(1, 5) + b"wrong"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hostile.peer.write, sent)
        outcomes = [await hostile.stream.receive() for _ in range(2)]
    came = [outcome for outcome in outcomes if isinstance(outcome, BlockCame)]
    assert [block.cid for block in came] == list(CIDS[:2])
    assert await hostile.stream.verify(came) == [True, False]


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        (encode_block_header(7, 1) + b"x", "number 7, which was not asked"),
        (encode_message(Answer(not_have=(0, 0))), "number 0, which was not asked or is answered"),
        (encode_message(Answer(have=(0,))), "but not the block"),
        (encode_block_header(1, 6) + b"absent", "its presence alone was asked"),
        (encode_block_header(0, (2 << 20) + 1), "the limit is 2097152"),
        (encode_message(Ask((ABSENT,))), "no place here"),
        (encode_message(Answer()), "0 blocks"),
        (b"\x03abc", "no protobuf"),
    ],
)
async def test_who_answers_wrongly_is_named_and_charged(sent: bytes, complaint: str) -> None:
    offenders = Offenders()
    here, there = stream_pair(ASKER, SERVER)

    async def open_stream(_peer: PeerId) -> MemoryStream:
        return here

    async def be_answered() -> None:
        async with BlockStreams(open_stream, offenders).open(SERVER, timeout_s=1) as stream:
            await stream.ask([CIDS[0]])
            await stream.ask([ABSENT], presence_only=True)
            await there.write(sent)
            await stream.receive()

    with pytest.raises(RemoteProtocolError, match=complaint) as breach:
        await be_answered()
    assert breach.value.peer is not None
    assert offenders.offences == {SERVER: 1}
    assert here.is_reset


async def test_a_peer_that_sends_nothing_is_given_up(mock_clock: MockClock) -> None:
    hostile = Hostile()
    await hostile.stream.ask(CIDS[:1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_stall, hostile.stream)
        await wait_all_tasks_blocked()
        mock_clock.jump(PROGRESS_TIMEOUT_S - 1)
        await hostile.peer.write(encode_block_header(0, MIB) + bytes(1000))  # too little to count
        await wait_all_tasks_blocked()
        mock_clock.jump(2)


async def test_a_block_may_take_its_time_as_long_as_it_comes(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    hostile = Hostile()
    await hostile.stream.ask(CIDS[1:2])

    async def send_slowly() -> None:
        await hostile.peer.write(encode_block_header(0, MIB))
        for start in range(0, MIB, 64 << 10):
            await trio.sleep(PROGRESS_TIMEOUT_S - 1)
            await hostile.peer.write(BLOCKS[1][start : start + (64 << 10)])

    nursery.start_soon(send_slowly)
    parts = 0
    while (outcome := await hostile.stream.receive()) == PartCame():  # whoever waits hears that it comes
        parts += 1
    assert parts >= 15
    assert outcome == BlockCame(CIDS[1], bytearray(BLOCKS[1]))


async def test_a_peer_is_not_late_because_nobody_receives(autojump_clock: MockClock) -> None:
    hostile = Hostile()
    await hostile.stream.ask([ABSENT])
    await hostile.peer.write(encode_message(Answer(not_have=(0,))))
    await trio.sleep(2 * PROGRESS_TIMEOUT_S)
    assert await hostile.stream.receive() == LacksBlock(ABSENT)


async def test_nothing_asked_is_nothing_to_be_late_with(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    hostile = Hostile()

    await hostile.stream.ask([CIDS[0]])
    await hostile.peer.write(encode_message(Answer(not_have=(0,))))
    assert await hostile.stream.receive() == LacksBlock(CIDS[0])

    async def ask_later() -> None:
        await trio.sleep(10 * PROGRESS_TIMEOUT_S)
        await hostile.stream.ask([ABSENT])
        await trio.sleep(PROGRESS_TIMEOUT_S - 1)
        await hostile.peer.write(encode_message(Answer(not_have=(1,))))

    nursery.start_soon(ask_later)
    assert await hostile.stream.receive() == LacksBlock(ABSENT)


async def test_a_deadline_begins_with_what_is_asked_while_somebody_waits(mock_clock: MockClock) -> None:
    hostile = Hostile()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_stall, hostile.stream)
        await wait_all_tasks_blocked()
        mock_clock.jump(10 * PROGRESS_TIMEOUT_S)
        await hostile.stream.ask([ABSENT])
        await wait_all_tasks_blocked()
        mock_clock.jump(PROGRESS_TIMEOUT_S + 1)


async def expect_stall(stream: BlockStream) -> None:
    with pytest.raises(StreamLostError, match="sent nothing for 20 s"):
        await stream.receive()


async def ask_for_ever(stream: BlockStream) -> None:
    while True:
        await stream.ask([ABSENT] * 256)
        stream._unanswered.clear()  # as if it were answered


async def test_a_peer_that_reads_nothing_is_given_up(autojump_clock: MockClock) -> None:
    hostile = Hostile()
    with pytest.raises(StreamLostError, match="took nothing for 20 s"):
        await ask_for_ever(hostile.stream)
    assert hostile.peer.is_reset


async def test_asking_that_is_cancelled_half_way_resets_the_stream(autojump_clock: MockClock) -> None:
    hostile = Hostile()
    with trio.move_on_after(1):
        await ask_for_ever(hostile.stream)
    assert hostile.peer.is_reset


async def test_a_stream_that_ends_within_a_block_is_lost() -> None:
    hostile = Hostile()
    await hostile.stream.ask(CIDS[:1])
    await hostile.peer.write(encode_block_header(0, MIB) + bytes(1000))
    await hostile.peer.close()
    with pytest.raises(StreamLostError, match="ended within a message"):
        await hostile.stream.receive()


@pytest.mark.parametrize("error", [MemoryError(), OSError()])
async def test_that_there_is_no_memory_for_a_block_is_not_said_to_be_the_peers_failure(error: Exception) -> None:
    def lend(_size: int) -> bytearray:
        raise error

    here, there = stream_pair(ASKER, SERVER)
    stream = BlockStream(here, lend=lend)
    await stream.ask(CIDS[:1])
    await there.write(encode_block_header(0, MIB))
    with pytest.raises(StreamLostError, match="no memory"):
        await stream.receive()


async def test_a_peer_that_opens_no_stream_in_time_is_a_query_error(autojump_clock: MockClock) -> None:
    async def never(_peer: PeerId) -> MemoryStream:
        await trio.sleep_forever()
        raise AssertionError

    with pytest.raises(QueryError, match="opens no stream within 5 s"):
        async with BlockStreams(never, Offenders()).open(SERVER, timeout_s=5):
            pass


@pytest.mark.parametrize("asks", [True, False])
async def test_a_stream_is_closed_when_all_was_answered_and_reset_when_more_may_come(asks: bool) -> None:
    here, there = stream_pair(ASKER, SERVER)

    async def open_stream(_peer: PeerId) -> MemoryStream:
        return here

    async with BlockStreams(open_stream, Offenders()).open(SERVER, timeout_s=5) as stream:
        if asks:
            await stream.ask(CIDS)
    assert there.is_reset == asks
    assert here.is_closed != asks
