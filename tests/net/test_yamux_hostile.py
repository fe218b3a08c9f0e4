"""What a peer that runs no honest muxer can do to a Yamux connection, and what it cannot."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise

import pytest
import trio
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.net.yamux import FastYamux, FastYamuxStream
from prime_dht.net.yamux.connection import FRAMES_PER_TURN, MAX_BUFFERED_BYTES, MAX_LINGERING_STREAMS, Unread
from prime_dht.net.yamux.frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    INITIAL_WINDOW_BYTES,
    PING,
    PROTOCOL_ERROR,
    RST,
    SYN,
    WINDOW_UPDATE,
    encode,
)
from prime_dht.net.yamux.pace import (
    IDLE_PER_S,
    IDLE_PER_STREAM,
    IDLE_PER_STREAM_OF_MANY,
    STREAMS_PER_S,
    Crowd,
    Pace,
)
from prime_dht.testing.memory_conn import MemoryConn, memory_conns

PEER = ID(b"\x00\x01\x00")


@pytest.fixture
def against(nursery: trio.Nursery) -> tuple[FastYamux, MemoryConn]:
    """A listening muxer with room for 4 streams each way, and the bare end of a peer that sends it what it likes."""
    dialer, listener = memory_conns()
    muxer = FastYamux(listener, PEER, max_inbound_streams=4, max_outbound_streams=4)
    nursery.start_soon(muxer.start)
    return muxer, dialer


@pytest.mark.parametrize(
    "offence",
    [
        b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
        bytes.fromhex("010000000000000100000000"),
        encode(GO_AWAY + 1, 0, 1, 0),
        encode(DATA, SYN, 1, 0) + encode(DATA, 0, 1, INITIAL_WINDOW_BYTES + 1) + bytes(INITIAL_WINDOW_BYTES + 1),
        encode(DATA, SYN, 1, 16 << 20) + bytes(16 << 20),
        encode(WINDOW_UPDATE, SYN, 0, 0),
        encode(DATA, 0, 0, 1) + b"x",
        encode(WINDOW_UPDATE, SYN, 2, 0),
        encode(WINDOW_UPDATE, SYN, 1, 0) * 2,
    ],
    ids=[
        "not yamux",
        "unknown version",
        "unknown kind",
        "more than the window",
        "a 16 MiB frame",
        "opening stream 0",
        "data for stream 0",
        "opening one of our ids",
        "opening a stream twice",
    ],
)
async def test_breaking_the_protocol_closes_the_connection(
    against: tuple[FastYamux, MemoryConn], offence: bytes
) -> None:
    muxer, peer = against
    peer.send_now(offence)
    await wait_all_tasks_blocked()
    assert muxer.is_closed
    assert peer.is_lost
    assert peer.received()[-1] == (GO_AWAY, 0, 0, PROTOCOL_ERROR)


async def test_a_listener_cannot_open_stream_zero_either(nursery: trio.Nursery) -> None:
    dialer, peer = memory_conns()
    muxer = FastYamux(dialer, PEER)
    nursery.start_soon(muxer.start)
    peer.send_now(encode(WINDOW_UPDATE, SYN, 0, 0))
    await wait_all_tasks_blocked()
    assert peer.received() == [(GO_AWAY, 0, 0, PROTOCOL_ERROR)]


async def test_streams_beyond_the_limit_are_reset_and_places_come_free(against: tuple[FastYamux, MemoryConn]) -> None:
    muxer, peer = against
    accepted: list[FastYamuxStream] = []
    for stream_id in range(1, 2001, 2):
        peer.send_now(encode(WINDOW_UPDATE, SYN, stream_id, 0))
        if len(accepted) < 4:
            accepted.append(await muxer.accept_stream())
    await wait_all_tasks_blocked()
    answers = peer.received()
    assert [flags for _, flags, _, _ in answers] == [ACK] * 4 + [RST] * 996
    assert muxer.stream_count == 4
    await accepted[0].reset()
    peer.send_now(encode(WINDOW_UPDATE, SYN, 2001, 0))
    await wait_all_tasks_blocked()
    assert (WINDOW_UPDATE, ACK, 2001, 0) in peer.received()


async def test_streams_opened_and_reset_at_once_fill_no_queue(
    against: tuple[FastYamux, MemoryConn], nursery: trio.Nursery
) -> None:
    muxer, peer = against
    for stream_id in range(1, 2001, 2):
        peer.send_now(encode(WINDOW_UPDATE, SYN, stream_id, 0) + encode(WINDOW_UPDATE, RST, stream_id, 0))
    await wait_all_tasks_blocked()
    assert [flags for _, flags, _, _ in peer.received()] == [ACK] * 4 + [RST] * 996
    assert muxer.stream_count == 0
    accepted: list[int] = []

    async def accept() -> None:
        accepted.append((await muxer.accept_stream()).stream_id)

    nursery.start_soon(accept)
    await wait_all_tasks_blocked()
    assert accepted == [], "streams that are gone are not accepted"
    peer.send_now(encode(WINDOW_UPDATE, SYN, 2001, 0))
    await wait_all_tasks_blocked()
    assert accepted == [2001], "nor in the way of what comes next"


async def test_pings_are_answered_with_their_number_and_answers_ignored(against: tuple[FastYamux, MemoryConn]) -> None:
    _, peer = against
    peer.send_now(encode(PING, SYN, 0, 7) + encode(PING, ACK, 0, 8) + encode(PING, SYN, 0, 9))
    await wait_all_tasks_blocked()
    assert len(peer.inbox) == 1, "all that one read calls for goes out as one"
    assert peer.received() == [(PING, ACK, 0, 7), (PING, ACK, 0, 9)]


async def test_frames_for_streams_that_are_gone_are_dropped(against: tuple[FastYamux, MemoryConn]) -> None:
    muxer, peer = against
    gone = encode(DATA, 0, 7, 3) + b"abc" + encode(WINDOW_UPDATE, FIN, 7, 5) + encode(WINDOW_UPDATE, RST, 8, 0)
    peer.send_now(gone + encode(PING, SYN, 0, 1))
    await wait_all_tasks_blocked()
    assert peer.received() == [(PING, ACK, 0, 1)]
    assert not muxer.is_closed


async def test_data_after_a_fin_is_dropped(against: tuple[FastYamux, MemoryConn]) -> None:
    muxer, peer = against
    peer.send_now(encode(DATA, SYN | FIN, 1, 3) + b"all" + encode(DATA, 0, 1, 4) + b"more")
    stream = await muxer.accept_stream()
    assert await stream.read() == b"all"
    with pytest.raises(MuxedStreamEOF):
        await stream.read()


async def test_unread_data_beyond_the_connections_limit_resets_its_stream_only(nursery: trio.Nursery) -> None:
    peer, listener = memory_conns()
    muxer = FastYamux(listener, PEER)
    nursery.start_soon(muxer.start)
    peer.send_now(encode(DATA, SYN | FIN, 2001, INITIAL_WINDOW_BYTES) + bytes(INITIAL_WINDOW_BYTES))
    ended = await muxer.accept_stream()
    await ended.close()
    assert len(await ended.read()) == INITIAL_WINDOW_BYTES, "which is not taken off the sum twice"
    full = MAX_BUFFERED_BYTES // INITIAL_WINDOW_BYTES
    for number in range(full + 1):
        peer.send_now(encode(DATA, SYN, 2 * number + 1, INITIAL_WINDOW_BYTES) + bytes(INITIAL_WINDOW_BYTES))
    await wait_all_tasks_blocked()
    assert peer.received()[-1] == (WINDOW_UPDATE, RST, 2 * full + 1, 0)
    assert muxer.stream_count == full
    assert len(await (await muxer.accept_stream()).read()) == INITIAL_WINDOW_BYTES
    await (await muxer.accept_stream()).reset()
    for stream_id in (2 * full + 3, 2 * full + 5):
        peer.send_now(encode(DATA, SYN, stream_id, INITIAL_WINDOW_BYTES) + bytes(INITIAL_WINDOW_BYTES))
    await wait_all_tasks_blocked()
    assert muxer.stream_count == full + 1, "there is room for what was read, and for what will never be"


async def test_unread_data_beyond_the_limit_of_all_connections_resets_the_fullest_stream_of_the_fullest(
    nursery: trio.Nursery,
) -> None:
    unread = Unread(total_bytes=10_000)
    peers, muxers = [], []
    for _ in range(3):
        peer, listener = memory_conns()
        peers.append(peer)
        muxers.append(FastYamux(listener, PEER, unread=unread))
        nursery.start_soon(muxers[-1].start)

    async def send(to: int, stream_id: int, size: int) -> None:
        peers[to].send_now(encode(DATA, SYN, stream_id, size) + bytes(size))
        await wait_all_tasks_blocked()

    for to, stream_id, size in ((0, 1, 1000), (1, 1, 2000), (1, 3, 4000), (2, 1, 3000)):
        await send(to, stream_id, size)
    assert unread.bytes == 10_000
    await send(0, 3, 500)
    assert peers[1].received()[-1] == (WINDOW_UPDATE, RST, 3, 0)
    assert unread.bytes == 6500
    assert [muxer.stream_count for muxer in muxers] == [2, 1, 1]
    await send(2, 3, 5000)
    assert peers[2].received()[-1] == (WINDOW_UPDATE, RST, 3, 0), "which is the one that it came on"
    assert unread.bytes == 6500
    assert len(await (await muxers[0].accept_stream()).read()) == 1000
    for muxer in muxers:
        await muxer.close()
    await wait_all_tasks_blocked()
    assert unread.bytes == 0


async def test_streams_that_only_we_closed_count_against_no_limit_but_do_not_pile_up(
    against: tuple[FastYamux, MemoryConn],
) -> None:
    muxer, peer = against
    for _ in range(MAX_LINGERING_STREAMS):
        await (await muxer.open_stream()).close()
    peer.received()
    assert muxer.stream_count == MAX_LINGERING_STREAMS
    await (await muxer.open_stream()).close()
    assert muxer.stream_count == MAX_LINGERING_STREAMS
    assert peer.received()[-1] == (WINDOW_UPDATE, RST, 2, 0), "the oldest goes"


async def test_others_have_turns_while_very_many_frames_are_handled(
    against: tuple[FastYamux, MemoryConn], nursery: trio.Nursery
) -> None:
    _, peer = against
    answered_at_turns = [0]

    async def look_at_each_turn() -> None:
        while answered_at_turns[-1] < 10 * FRAMES_PER_TURN:
            answered_at_turns.append(answered_at_turns[-1] + len(peer.received()))
            await trio.lowlevel.checkpoint()

    await wait_all_tasks_blocked()
    peer.send_now(encode(PING, SYN, 0, 7) * 10 * FRAMES_PER_TURN)
    nursery.start_soon(look_at_each_turn)
    await wait_all_tasks_blocked()
    assert answered_at_turns[-1] == 10 * FRAMES_PER_TURN
    assert max(after - before for before, after in pairwise(answered_at_turns)) <= 2 * FRAMES_PER_TURN


@pytest.mark.parametrize(
    "flood",
    [
        [encode(PING, SYN, 0, 7) * 3 * IDLE_PER_S],
        [(encode(WINDOW_UPDATE, SYN, 1, 0) + encode(WINDOW_UPDATE, RST, 1, 0)) * (3 * IDLE_PER_S // 2)],
        [encode(DATA, SYN, 1, 0) + encode(DATA, 0, 1, 0) * (3 * IDLE_PER_S - 1)],
        [(encode(DATA, 0, 9, 1) + b"x") * 3 * IDLE_PER_S],
        [encode(DATA, SYN, 1, 2 * IDLE_PER_S), *[b""] * IDLE_PER_S, *[b"x"] * 2 * IDLE_PER_S, *[b""] * 2 * IDLE_PER_S],
    ],
    ids=["pings", "streams opened and reset", "frames without data", "data for no stream", "empty Noise frames"],
)
async def test_after_a_flood_that_brings_nothing_a_peer_is_not_heard_for_as_long_as_it_came_too_early(
    against: tuple[FastYamux, MemoryConn], mock_clock: MockClock, flood: list[bytes]
) -> None:
    _, peer = against
    for chunk in flood:
        peer.send_now(chunk)
    await wait_all_tasks_blocked()
    peer.received()
    peer.send_now(encode(PING, SYN, 0, 8))
    mock_clock.jump(1.99)
    await wait_all_tasks_blocked()
    assert peer.received() == []
    mock_clock.jump(0.02)
    await wait_all_tasks_blocked()
    assert peer.received() == [(PING, ACK, 0, 8)]


@pytest.mark.parametrize("more_data", [0, 2 * IDLE_PER_STREAM])
async def test_a_peer_that_opens_very_many_streams_is_not_heard_for_a_while_however_much_data_they_bring(
    nursery: trio.Nursery, mock_clock: MockClock, more_data: int
) -> None:
    dialer, listener = memory_conns()
    muxer = FastYamux(listener, PEER)
    opened: list[FastYamuxStream] = []
    muxer.tell(opened.append, lambda: None)
    nursery.start_soon(muxer.start)
    per_s = IDLE_PER_S // IDLE_PER_STREAM
    for number in range(3 * per_s):
        stream_id = 2 * number + 1
        dialer.send_now(encode(DATA, SYN, stream_id, 1) + b"x" + more_data * (encode(DATA, 0, stream_id, 1) + b"x"))
        await wait_all_tasks_blocked()
        dialer.send_now(encode(WINDOW_UPDATE, RST, stream_id, 0))
        await wait_all_tasks_blocked()
    assert 0.8 * per_s < len(opened) <= per_s
    mock_clock.jump(10.0)
    await wait_all_tasks_blocked()
    dialer.received()
    dialer.send_now(encode(PING, SYN, 0, 8))
    await wait_all_tasks_blocked()
    assert dialer.received() == [(PING, ACK, 0, 8)]


async def test_streams_that_many_connections_open_together_count_for_more(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    crowd, opened = Crowd(), list[FastYamuxStream]()
    peers: list[MemoryConn] = []
    for _ in range(10):
        dialer, listener = memory_conns()
        muxer = FastYamux(listener, PEER, crowd=crowd)
        muxer.tell(opened.append, lambda: None)
        nursery.start_soon(muxer.start)
        peers.append(dialer)
    for number in range(100):
        for dialer in peers:
            dialer.send_now(encode(DATA, SYN, 2 * number + 1, 1) + b"x")
        await wait_all_tasks_blocked()
    assert STREAMS_PER_S <= len(opened) < STREAMS_PER_S + 10 * IDLE_PER_S // IDLE_PER_STREAM_OF_MANY


def test_while_many_connections_send_too_fast_each_is_heard_less_and_who_does_not_is_heard_at_once() -> None:
    crowd = Crowd()
    floods, honest = [Pace(crowd) for _ in range(10)], Pace(crowd)
    with ExitStack() as stack:
        for each in floods:
            assert each.pause_s(2 * IDLE_PER_S, 0.0) > 0
            stack.enter_context(each.pausing())
        assert honest.pause_s(IDLE_PER_S, 0.0) == 0
        later_s = [each.pause_s(IDLE_PER_S // 10, 1.0) for each in floods]
        alone = Pace()
        alone.pause_s(2 * IDLE_PER_S, 0.0)
        assert min(later_s) == 5 * alone.pause_s(IDLE_PER_S // 10, 1.0)
    assert crowd.paused == 0


async def test_a_peer_that_sends_data_however_little_at_a_time_is_heard_at_once(
    against: tuple[FastYamux, MemoryConn], mock_clock: MockClock
) -> None:
    _, peer = against
    peer.send_now(encode(DATA, SYN, 1, 0))
    for _ in range(10 * IDLE_PER_S):
        peer.send_now(encode(DATA, 0, 1, 1) + b"x")
    await wait_all_tasks_blocked()
    peer.received()
    peer.send_now(encode(PING, SYN, 0, 8))
    await wait_all_tasks_blocked()
    assert peer.received() == [(PING, ACK, 0, 8)]
