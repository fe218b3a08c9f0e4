"""Yamux streams and connections over a connection in memory, between honest peers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.net.yamux import FastYamux, FastYamuxStream
from prime_dht.net.yamux.connection import OPEN_TIMEOUT_S, SPARE_WINDOW_BYTES
from prime_dht.net.yamux.frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    INITIAL_WINDOW_BYTES,
    NORMAL,
    RST,
    SYN,
    WINDOW_UPDATE,
    encode,
)
from prime_dht.net.yamux.stream import MAX_PAYLOAD_BYTES, MAX_WINDOW_BYTES
from prime_dht.testing.memory_conn import MemoryConn, memory_conns

PEER = ID(b"\x00\x01\x00")


@pytest.fixture
def pair(nursery: trio.Nursery) -> tuple[FastYamux, FastYamux]:
    """Two muxers that talk to each other: the dialer and the listener."""
    dialer, listener = (FastYamux(conn, PEER) for conn in memory_conns())
    nursery.start_soon(dialer.start)
    nursery.start_soon(listener.start)
    return dialer, listener


@pytest.fixture
def against(nursery: trio.Nursery) -> tuple[FastYamux, MemoryConn]:
    """A listening muxer with room for 4 streams each way, and the bare end of a peer that sends it what it likes."""
    dialer, listener = memory_conns()
    muxer = FastYamux(listener, PEER, max_inbound_streams=4, max_outbound_streams=4)
    nursery.start_soon(muxer.start)
    return muxer, dialer


async def stream_pair(pair: tuple[FastYamux, FastYamux]) -> tuple[FastYamuxStream, FastYamuxStream]:
    opened = await pair[0].open_stream()
    return opened, await pair[1].accept_stream()


async def read_all(stream: FastYamuxStream) -> bytes:
    data = bytearray()
    while True:
        try:
            data += await stream.read()
        except MuxedStreamEOF:
            return bytes(data)


async def send_all(stream: FastYamuxStream, data: bytes) -> None:
    await stream.write(data)
    await stream.close()


async def test_each_end_reads_what_the_other_wrote(pair: tuple[FastYamux, FastYamux]) -> None:
    ours, theirs = await stream_pair(pair)
    await ours.write(b"question")
    assert await theirs.read(5) == b"quest"
    assert await theirs.read() == b"ion"
    await theirs.write(b"answer")
    assert await ours.read(-1) == b"answer"


async def test_megabytes_pass_in_both_directions_at_once(pair: tuple[FastYamux, FastYamux]) -> None:
    ours, theirs = await stream_pair(pair)
    data = bytes(range(256)) * (8 << 12)
    results: dict[str, bytes] = {}

    async def read(name: str, stream: FastYamuxStream) -> None:
        results[name] = await read_all(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all, ours, data)
        nursery.start_soon(send_all, theirs, data[::-1])
        nursery.start_soon(read, "ours", ours)
        nursery.start_soon(read, "theirs", theirs)
    assert results == {"ours": data[::-1], "theirs": data}
    assert [muxer.stream_count for muxer in pair] == [0, 0]


async def test_after_a_half_close_the_other_half_goes_on(pair: tuple[FastYamux, FastYamux]) -> None:
    ours, theirs = await stream_pair(pair)
    await ours.write(b"request")
    await ours.close_write()
    assert await read_all(theirs) == b"request"
    with pytest.raises(MuxedStreamClosed):
        await ours.write(b"more")
    await theirs.write(b"reply")
    await theirs.close()
    assert await read_all(ours) == b"reply"
    assert ours.is_closed
    assert not ours.is_reset


async def test_a_reset_ends_both_halves_at_both_ends(pair: tuple[FastYamux, FastYamux]) -> None:
    ours, theirs = await stream_pair(pair)
    await ours.write(b"never read")
    await ours.reset()
    await wait_all_tasks_blocked()
    for stream in (ours, theirs):
        with pytest.raises(MuxedStreamReset):
            await stream.read()
        with pytest.raises(MuxedStreamReset):
            await stream.write(b"x")
    assert [muxer.stream_count for muxer in pair] == [0, 0]


async def test_a_reset_wakes_a_reader_and_a_writer(pair: tuple[FastYamux, FastYamux]) -> None:
    ours, theirs = await stream_pair(pair)
    told: list[str] = []

    async def expect_reset(name: str, call: Callable[[], Awaitable[object]]) -> None:
        try:
            await call()
        except MuxedStreamReset:
            told.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_reset, "reader", ours.read)
        nursery.start_soon(expect_reset, "writer", lambda: ours.write(bytes(INITIAL_WINDOW_BYTES + 1)))
        await wait_all_tasks_blocked()
        await theirs.reset()
    assert sorted(told) == ["reader", "writer"]


async def test_what_came_before_a_fin_survives_a_reset(against: tuple[FastYamux, MemoryConn]) -> None:
    muxer, peer = against
    peer.send_now(encode(DATA, SYN | FIN, 1, 5) + b"whole" + encode(WINDOW_UPDATE, RST, 1, 0))
    peer.send_now(encode(DATA, SYN, 3, 4) + b"part")
    complete, broken = await muxer.accept_stream(), await muxer.accept_stream()
    assert await read_all(complete) == b"whole"
    peer.send_now(encode(WINDOW_UPDATE, RST, 3, 0))
    await wait_all_tasks_blocked()
    with pytest.raises(MuxedStreamReset):
        await broken.read()


async def test_two_hundred_streams_echo_at_once(pair: tuple[FastYamux, FastYamux]) -> None:
    echoed: list[int] = []

    async def call(number: int) -> None:
        stream = await pair[0].open_stream()
        await send_all(stream, number.to_bytes(4, "big") * 100)
        assert await read_all(stream) == number.to_bytes(4, "big") * 100
        echoed.append(number)

    async def serve() -> None:
        async with trio.open_nursery() as handlers:
            for _ in range(200):
                handlers.start_soon(echo, await pair[1].accept_stream())

    async def echo(stream: FastYamuxStream) -> None:
        await send_all(stream, await read_all(stream))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        for number in range(200):
            nursery.start_soon(call, number)
    assert sorted(echoed) == list(range(200))
    assert [muxer.stream_count for muxer in pair] == [0, 0]


async def test_a_write_waits_for_a_slow_reader_and_buffers_no_more_than_the_window(
    pair: tuple[FastYamux, FastYamux], nursery: trio.Nursery
) -> None:
    ours, theirs = await stream_pair(pair)
    nursery.start_soon(ours.write, bytes(32 << 20))
    await wait_all_tasks_blocked()
    assert theirs.buffered_bytes == INITIAL_WINDOW_BYTES
    await theirs.read(INITIAL_WINDOW_BYTES // 2)
    await wait_all_tasks_blocked()
    assert theirs.buffered_bytes == 2 * INITIAL_WINDOW_BYTES, "reading half of it doubles the window"
    while theirs.borrowed_window_bytes < MAX_WINDOW_BYTES - INITIAL_WINDOW_BYTES:
        await theirs.read()
        await wait_all_tasks_blocked()
        assert theirs.buffered_bytes <= MAX_WINDOW_BYTES


async def test_the_windows_of_a_connection_grow_together_no_more_than_it_can_spare(
    pair: tuple[FastYamux, FastYamux], nursery: trio.Nursery
) -> None:
    async def grown() -> FastYamuxStream:
        ours, theirs = await stream_pair(pair)
        nursery.start_soon(ours.write, bytes(8 << 20))
        missing = 8 << 20
        while missing:
            missing -= len(await theirs.read())
        return theirs

    streams = [await grown() for _ in range(4)]
    most = MAX_WINDOW_BYTES - INITIAL_WINDOW_BYTES
    left = SPARE_WINDOW_BYTES - 2 * most
    assert [stream.borrowed_window_bytes for stream in streams] == [most, most, left, 0]
    await streams[0].reset()
    assert (await grown()).borrowed_window_bytes == most


async def test_credit_is_given_back_at_half_a_window_and_not_before(against: tuple[FastYamux, MemoryConn]) -> None:
    muxer, peer = against
    half = INITIAL_WINDOW_BYTES // 2
    peer.send_now(encode(DATA, SYN, 1, half) + bytes(half))
    stream = await muxer.accept_stream()
    await stream.read(half - 1)
    assert peer.received() == [(WINDOW_UPDATE, ACK, 1, 0)]
    await stream.read(1)
    assert peer.received() == [(WINDOW_UPDATE, 0, 1, half + INITIAL_WINDOW_BYTES)]


async def test_a_write_cancelled_half_way_sent_a_prefix_and_harms_no_other_stream(
    pair: tuple[FastYamux, FastYamux], nursery: trio.Nursery
) -> None:
    ours, theirs = await stream_pair(pair)
    data = bytes(range(256)) * 4096
    with trio.CancelScope() as scope:

        async def cancel() -> None:
            await wait_all_tasks_blocked()
            scope.cancel()

        nursery.start_soon(cancel)
        await ours.write(data)
    assert scope.cancelled_caught
    await ours.close()
    assert await read_all(theirs) == data[:INITIAL_WINDOW_BYTES]
    other, accepted = await stream_pair(pair)
    await other.write(b"still fine")
    assert await accepted.read() == b"still fine"


@pytest.mark.parametrize(("frames", "is_cancelled"), [(1, False), (2, True)])
async def test_a_cancelled_write_raises_only_if_something_is_left_to_send(
    against: tuple[FastYamux, MemoryConn], monkeypatch: pytest.MonkeyPatch, frames: int, is_cancelled: bool
) -> None:
    muxer, peer = against
    stream = await muxer.open_stream()
    send_now = peer.other.send_now
    with trio.CancelScope() as scope:

        def send_and_cancel(data: bytes) -> None:
            send_now(data)
            scope.cancel()

        monkeypatch.setattr(peer.other, "send_now", send_and_cancel)
        await stream.write(bytes(MAX_PAYLOAD_BYTES * frames))
    assert scope.cancelled_caught == is_cancelled
    assert len(peer.received()) == 2, "the opening, and one frame of data"


async def test_write_now_sends_one_frame_whole_or_nothing(against: tuple[FastYamux, MemoryConn]) -> None:
    muxer, peer = against
    stream = await muxer.open_stream()
    assert not stream.write_now(bytes(MAX_PAYLOAD_BYTES + 1))
    for _ in range(4):
        assert stream.write_now(bytes(MAX_PAYLOAD_BYTES))
    left = INITIAL_WINDOW_BYTES - 4 * MAX_PAYLOAD_BYTES
    assert not stream.write_now(bytes(left + 1))
    peer.other.is_stalled = True
    assert not stream.write_now(bytes(left))
    peer.other.resume()
    assert stream.write_now(bytes(left))
    assert [frame[3] for frame in peer.received()] == [0, *[MAX_PAYLOAD_BYTES] * 4, left]
    await stream.close()
    with pytest.raises(MuxedStreamClosed):
        stream.write_now(b"x")


async def test_a_write_waits_while_the_connection_takes_nothing(
    against: tuple[FastYamux, MemoryConn], nursery: trio.Nursery
) -> None:
    muxer, peer = against
    stream = await muxer.open_stream()
    peer.other.is_stalled = True
    peer.received()
    nursery.start_soon(stream.write, b"later")
    await wait_all_tasks_blocked()
    assert peer.received() == []
    peer.other.resume()
    await wait_all_tasks_blocked()
    assert peer.received() == [(DATA, 0, stream.stream_id, 5)]


async def test_opening_a_stream_waits_while_the_connection_takes_nothing(
    against: tuple[FastYamux, MemoryConn], nursery: trio.Nursery
) -> None:
    muxer, peer = against
    peer.other.is_stalled = True
    nursery.start_soon(muxer.open_stream)
    await wait_all_tasks_blocked()
    assert peer.received() == []
    peer.other.resume()
    await wait_all_tasks_blocked()
    assert peer.received() == [(WINDOW_UPDATE, SYN, 2, 0)]


async def test_opening_a_stream_without_a_free_place_fails_after_a_while(
    against: tuple[FastYamux, MemoryConn], autojump_clock: MockClock
) -> None:
    muxer, _ = against
    streams = [await muxer.open_stream() for _ in range(4)]
    started = trio.current_time()
    with pytest.raises(MuxedStreamError, match="no place"):
        await muxer.open_stream()
    assert trio.current_time() - started == OPEN_TIMEOUT_S
    await streams[0].close()
    assert (await muxer.open_stream()).stream_id == 10


async def test_a_cancelled_opening_leaves_no_stream(against: tuple[FastYamux, MemoryConn]) -> None:
    muxer, peer = against
    for _ in range(10):
        with trio.CancelScope() as scope:
            scope.cancel()
            await muxer.open_stream()
        assert scope.cancelled_caught
    assert muxer.stream_count == 0
    assert peer.received() == []
    assert len([await muxer.open_stream() for _ in range(4)]) == 4


async def lose(muxer: FastYamux, peer: MemoryConn) -> None:
    await peer.close()


async def go_away(muxer: FastYamux, peer: MemoryConn) -> None:
    peer.send_now(encode(GO_AWAY, 0, 0, NORMAL))


async def close_here(muxer: FastYamux, peer: MemoryConn) -> None:
    await muxer.close()


@pytest.mark.parametrize("end", [lose, go_away, close_here])
async def test_the_end_of_the_connection_wakes_everybody(
    against: tuple[FastYamux, MemoryConn], end: Callable[[FastYamux, MemoryConn], Awaitable[object]]
) -> None:
    muxer, peer = against
    streams = [await muxer.open_stream() for _ in range(4)]
    told: list[str] = []

    async def expect(error: type[Exception], call: Callable[[], Awaitable[object]]) -> None:
        try:
            await call()
        except error:
            told.append(error.__name__)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, MuxedStreamReset, streams[0].read)
        nursery.start_soon(expect, MuxedStreamReset, lambda: streams[1].write(bytes(1 << 20)))
        for _ in range(6):
            nursery.start_soon(expect, MuxedStreamError, muxer.open_stream)
        nursery.start_soon(expect, MuxedConnUnavailable, muxer.accept_stream)
        await wait_all_tasks_blocked()
        await end(muxer, peer)
    assert sorted(told) == ["MuxedConnUnavailable", *["MuxedStreamError"] * 6, *["MuxedStreamReset"] * 2]
    assert muxer.is_closed
    assert muxer.stream_count == 0
    with pytest.raises(MuxedStreamError):
        await muxer.open_stream()


async def test_a_reply_that_comes_together_with_go_away_is_read(against: tuple[FastYamux, MemoryConn]) -> None:
    muxer, peer = against
    stream = await muxer.open_stream()
    await wait_all_tasks_blocked()
    peer.send_now(encode(DATA, 0, stream.stream_id, 5) + b"reply" + encode(GO_AWAY, 0, 0, NORMAL))
    await wait_all_tasks_blocked()
    assert await stream.read() == b"reply"
    with pytest.raises(MuxedStreamReset):
        await stream.read()


async def test_close_says_go_away_and_works_when_cancelled(against: tuple[FastYamux, MemoryConn]) -> None:
    muxer, peer = against
    await wait_all_tasks_blocked()
    assert muxer.is_established
    with trio.CancelScope() as scope:
        scope.cancel()
        await muxer.close()
    assert peer.is_lost
    assert peer.received() == [(GO_AWAY, 0, 0, NORMAL)]
    assert not muxer.is_established
