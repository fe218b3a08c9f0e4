"""Receivers: what comes on a stream is handed over by the connection's read loop, and no task is woken."""

from __future__ import annotations

import pytest
import trio
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamReset
from trio.testing import wait_all_tasks_blocked

from prime_dht.net.yamux import FastYamux, FastYamuxStream
from prime_dht.net.yamux.frames import INITIAL_WINDOW_BYTES
from prime_dht.testing.memory_conn import memory_conns

PEER = ID(b"\x00\x01\x00")


@pytest.fixture
def pair(nursery: trio.Nursery) -> tuple[FastYamux, FastYamux]:
    """Two muxers that talk to each other: the dialer and the listener."""
    dialer, listener = (FastYamux(conn, PEER) for conn in memory_conns())
    nursery.start_soon(dialer.start)
    nursery.start_soon(listener.start)
    return dialer, listener


async def stream_pair(pair: tuple[FastYamux, FastYamux]) -> tuple[FastYamuxStream, FastYamuxStream]:
    opened = await pair[0].open_stream()
    return opened, await pair[1].accept_stream()


class Receiver:
    """Wants more until it has so many bytes."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.data = b""
        self.called_by: set[trio.lowlevel.Task] = set()

    def __call__(self, data: bytes | memoryview) -> bool:
        self.called_by.add(trio.lowlevel.current_task())
        self.data += data
        return len(self.data) < self.wanted


async def test_a_receiver_gets_what_comes_until_it_wants_no_more_and_the_rest_stays_unread(
    pair: tuple[FastYamux, FastYamux],
) -> None:
    ours, theirs = await stream_pair(pair)
    await theirs.write(b"before ")  # the first by the task that receives, the others by the read loop
    await wait_all_tasks_blocked()
    receiver = Receiver(20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.receive, receiver)
        for piece in (b"one ", b"two ", b"three ", b"four ", b"five "):
            await wait_all_tasks_blocked()
            await theirs.write(piece)
    await wait_all_tasks_blocked()
    assert receiver.data == b"before one two three "
    assert ours.buffered_bytes == len(b"four five ")
    assert await ours.read() == b"four five "


async def test_a_receiver_is_called_by_the_read_loop_and_its_task_sleeps(pair: tuple[FastYamux, FastYamux]) -> None:
    ours, theirs = await stream_pair(pair)
    receiver = Receiver(3)
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            for _ in range(3):
                await wait_all_tasks_blocked()
                await theirs.write(b"x")

        nursery.start_soon(send)
        await ours.receive(receiver)
    assert len(receiver.called_by) == 1
    assert trio.lowlevel.current_task() not in receiver.called_by


async def test_what_a_receiver_takes_gives_the_peer_credit_and_is_not_counted_as_unread(
    pair: tuple[FastYamux, FastYamux],
) -> None:
    ours, theirs = await stream_pair(pair)
    receiver = Receiver(10 * INITIAL_WINDOW_BYTES)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.write, bytes(receiver.wanted))
        await ours.receive(receiver)
    assert receiver.data == bytes(receiver.wanted)
    assert pair[0]._buffered_bytes == 0


async def test_receiving_ends_as_reading_does(pair: tuple[FastYamux, FastYamux]) -> None:
    for end, error in (("close", MuxedStreamEOF), ("reset", MuxedStreamReset)):
        ours, theirs = await stream_pair(pair)
        receiver = Receiver(100)
        async with trio.open_nursery() as nursery:

            async def send(theirs: FastYamuxStream = theirs, end: str = end) -> None:
                await theirs.write(b"data")
                await wait_all_tasks_blocked()
                await getattr(theirs, end)()

            nursery.start_soon(send)
            with pytest.raises(error):
                await ours.receive(receiver)
        assert receiver.data == b"data"


async def test_what_a_receiver_raises_is_raised_where_it_was_given_and_other_streams_go_on(
    pair: tuple[FastYamux, FastYamux],
) -> None:
    ours, theirs = await stream_pair(pair)
    other, their_other = await stream_pair(pair)

    def fail(_data: bytes | memoryview) -> bool:
        raise KeyError("a bug")

    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await wait_all_tasks_blocked()
            await theirs.write(b"x")
            await their_other.write(b"other")

        nursery.start_soon(send)
        with pytest.raises(KeyError):
            await ours.receive(fail)
    assert await other.read() == b"other"


async def test_a_receiver_may_reset_the_stream(pair: tuple[FastYamux, FastYamux]) -> None:
    ours, theirs = await stream_pair(pair)

    def give_up(_data: bytes | memoryview) -> bool:
        ours.abort("enough")
        return True

    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await wait_all_tasks_blocked()
            await theirs.write(b"x")

        nursery.start_soon(send)
        with pytest.raises(MuxedStreamReset, match="enough"):
            await ours.receive(give_up)
    await wait_all_tasks_blocked()
    assert theirs.is_reset
    assert [muxer.stream_count for muxer in pair] == [0, 0]


async def test_what_comes_after_receiving_was_cancelled_is_there_to_be_read(pair: tuple[FastYamux, FastYamux]) -> None:
    ours, theirs = await stream_pair(pair)
    receiver = Receiver(100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.receive, receiver)
        await wait_all_tasks_blocked()
        await theirs.write(b"received")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await theirs.write(b"read")
    assert await ours.read() == b"read"
    assert receiver.data == b"received"
