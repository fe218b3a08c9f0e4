"""Frames over a stream: pieces, ends, taking, deadlines, room, and cancellation.

Reading is tested over both kinds of stream: our own muxer's, whose read loop hands frames over, and any other's.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import pytest
import trio
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.errors import RemoteProtocolError
from prime_dht.ids import PeerId
from prime_dht.net.streams import SMALL_FRAME_BYTES, FrameBudget, FrameStream, StreamLostError
from prime_dht.net.yamux import FastYamux, FastYamuxStream
from prime_dht.testing.memory_conn import memory_conns
from prime_dht.testing.streams import WINDOW_BYTES, MemoryStream, stream_pair
from prime_dht.wire.frames import MAX_FRAME_BYTES, encode_frame, encode_varint

HERE, THERE = PeerId(b"\x00\x01a"), PeerId(b"\x00\x01b")
LARGE = SMALL_FRAME_BYTES + 1
NEVER = math.inf


def frames_and_peer(
    budget: FrameBudget | None = None, *, window_bytes: int = WINDOW_BYTES
) -> tuple[FrameStream, MemoryStream]:
    here, there = stream_pair(HERE, THERE, window_bytes=window_bytes)
    return FrameStream(here, budget=budget or FrameBudget(16 << 20), frame_timeout_s=10.0), there


Peer = MemoryStream | FastYamuxStream
Connect = Callable[..., Awaitable[tuple[FrameStream, Peer]]]
"""Opens a stream: frames at one end, bytes at the other."""


@pytest.fixture(params=["any muxer", "our muxer"])
def connect(request: pytest.FixtureRequest, nursery: trio.Nursery) -> Connect:
    async def over_any(budget: FrameBudget | None = None) -> tuple[FrameStream, Peer]:
        return frames_and_peer(budget)

    async def over_ours(budget: FrameBudget | None = None) -> tuple[FrameStream, Peer]:
        dialer, listener = (FastYamux(conn, ID(b"\x00\x01\x00")) for conn in memory_conns())
        nursery.start_soon(dialer.start)
        nursery.start_soon(listener.start)
        here, there = await dialer.open_stream(), await listener.accept_stream()
        frames = FrameStream(NetStream(here, None, None), budget=budget or FrameBudget(16 << 20), frame_timeout_s=10.0)
        return frames, there

    return over_any if request.param == "any muxer" else over_ours


async def test_frames_come_one_at_a_time_in_order_and_then_the_end(connect: Connect) -> None:
    frames, peer = await connect()
    await peer.write(b"\x01a\x00\x02bc\x01")
    await peer.write(b"d")
    await peer.close()
    assert [await frames.read_frame(idle_timeout_s=NEVER) for _ in range(5)] == [b"a", b"", b"bc", b"d", None]


async def test_a_frame_that_comes_byte_by_byte_is_whole_at_its_last(connect: Connect) -> None:
    frames, peer = await connect()
    async with trio.open_nursery() as nursery:

        async def dribble() -> None:
            for byte in encode_frame(b"x" * 300):
                await peer.write(bytes((byte,)))

        nursery.start_soon(dribble)
        assert await frames.read_frame(idle_timeout_s=NEVER) == b"x" * 300


async def test_a_frame_of_4_mib_passes(connect: Connect) -> None:
    frames, peer = await connect()
    body = bytes(range(256)) * (MAX_FRAME_BYTES // 256)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.write, encode_frame(body))
        assert await frames.read_frame(idle_timeout_s=NEVER) == body


async def test_an_end_within_a_frame_or_its_length_is_a_lost_stream(connect: Connect) -> None:
    for beginning in (b"\x05abc", b"\xac"):
        frames, peer = await connect()
        await peer.write(beginning)
        await peer.close()
        with pytest.raises(StreamLostError, match="within"):
            await frames.read_frame(idle_timeout_s=NEVER)


async def test_a_reset_is_a_lost_stream_for_reader_and_writer(connect: Connect) -> None:
    frames, peer = await connect()
    await peer.reset()
    with pytest.raises(StreamLostError):
        await frames.read_frame(idle_timeout_s=NEVER)
    with pytest.raises(StreamLostError):
        await frames.write_frame(b"x")


async def test_a_frame_beyond_the_limit_is_refused_at_its_length(connect: Connect) -> None:
    frames, peer = await connect()
    await peer.write(encode_varint(MAX_FRAME_BYTES + 1))
    with pytest.raises(RemoteProtocolError):
        await frames.read_frame(idle_timeout_s=NEVER)


async def test_our_direction_can_end_while_the_peers_goes_on(connect: Connect) -> None:
    frames, peer = await connect()
    await frames.write_frame(b"request")
    await frames.end_writing()
    assert await peer.read() == b"\x07request"
    await peer.write(b"\x06answer")
    assert await frames.read_frame(idle_timeout_s=NEVER) == b"answer"


async def test_bytes_that_were_not_asked_for_are_noticed_whole_or_not(connect: Connect) -> None:
    for behind in (b"", b"\x01b", b"\x05b"):
        frames, peer = await connect()
        await peer.write(b"\x01a" + behind)
        assert await frames.read_frame(idle_timeout_s=NEVER) == b"a"
        assert frames.is_quiet() is (not behind)


# Taking


async def test_frames_are_offered_in_order_and_those_not_taken_are_returned_before_the_next_is_offered(
    connect: Connect,
) -> None:
    frames, peer = await connect()
    seen: list[bytes] = []

    def take_vowels(frame: bytes) -> bool:
        is_vowel = frame in b"aeiou"
        if is_vowel:
            seen.append(frame)
        return is_vowel

    async with trio.open_nursery() as nursery:

        async def send() -> None:
            for piece in (b"\x01a\x01b\x01c\x01e", b"\x01", b"f", b"\x01i\x01g"):
                await wait_all_tasks_blocked()
                await peer.write(piece)
            await peer.close()

        nursery.start_soon(send)
        while (frame := await frames.read_frame(idle_timeout_s=NEVER, take=take_vowels)) is not None:
            seen.append(frame)
    assert seen == [b"a", b"b", b"c", b"e", b"f", b"i", b"g"]


async def test_more_than_a_window_of_frames_can_be_taken(connect: Connect) -> None:
    frames, peer = await connect()
    taken: list[bytes] = []

    def take(frame: bytes) -> bool:
        taken.append(frame)
        return True

    async with trio.open_nursery() as nursery:

        async def send() -> None:
            for number in range(100):
                await peer.write(encode_frame(bytes((number,)) * 10_000))
            await peer.close()

        nursery.start_soon(send)
        assert await frames.read_frame(idle_timeout_s=NEVER, take=take) is None
    assert [frame[0] for frame in taken] == list(range(100))


async def test_what_the_taker_raises_is_raised_by_the_reader_and_the_connection_lives(connect: Connect) -> None:
    frames, peer = await connect()

    def fail(_frame: bytes) -> bool:
        raise KeyError("a bug")

    async with trio.open_nursery() as nursery:

        async def send_later() -> None:
            await wait_all_tasks_blocked()
            await peer.write(b"\x01a\x01b")

        nursery.start_soon(send_later)
        with pytest.raises(KeyError):
            await frames.read_frame(idle_timeout_s=NEVER, take=fail)
    await peer.write(b"\x01c")
    assert await frames.read_frame(idle_timeout_s=NEVER) == b"c"


# Deadlines


async def test_a_stream_on_which_nothing_comes_is_given_up_after_the_idle_time(
    connect: Connect, autojump_clock: MockClock
) -> None:
    frames, _ = await connect()
    with pytest.raises(trio.TooSlowError):
        await frames.read_frame(idle_timeout_s=120.0)
    assert trio.current_time() == 120.0


async def test_frames_that_are_taken_put_off_the_idle_time(connect: Connect, autojump_clock: MockClock) -> None:
    frames, peer = await connect()
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            for _ in range(5):
                await trio.sleep(100.0)
                await peer.write(b"\x01a")

        nursery.start_soon(send)
        with pytest.raises(trio.TooSlowError):
            await frames.read_frame(idle_timeout_s=120.0, take=lambda _: True)
    assert trio.current_time() == 620.0


async def test_a_frame_that_begins_behind_one_that_is_taken_has_no_more_than_10_s_either(
    connect: Connect, autojump_clock: MockClock
) -> None:
    frames, peer = await connect()
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await trio.sleep(50.0)
            await peer.write(b"\x02a")
            await trio.sleep(8.0)
            await peer.write(b"a" + b"\x05b")

        nursery.start_soon(send)
        with pytest.raises(trio.TooSlowError):
            await frames.read_frame(idle_timeout_s=120.0, take=lambda _: True)
    assert trio.current_time() == 68.0


async def test_a_frame_that_dribbles_in_is_given_up_10_s_after_its_first_byte(
    connect: Connect, autojump_clock: MockClock
) -> None:
    frames, peer = await connect()
    async with trio.open_nursery() as nursery:

        async def dribble() -> None:
            await trio.sleep(100.0)
            for byte in encode_frame(bytes(100)):
                await peer.write(bytes((byte,)))
                await trio.sleep(1.0)

        nursery.start_soon(dribble)
        with pytest.raises(trio.TooSlowError):
            await frames.read_frame(idle_timeout_s=120.0)
        assert trio.current_time() == 110.0
        nursery.cancel_scope.cancel()


async def test_a_frame_that_began_behind_another_has_no_more_than_10_s_either(
    connect: Connect, autojump_clock: MockClock
) -> None:
    frames, peer = await connect()
    await peer.write(b"\x01a" + b"\x05b")
    assert await frames.read_frame(idle_timeout_s=120.0) == b"a"
    with pytest.raises(trio.TooSlowError):
        await frames.read_frame(idle_timeout_s=120.0)
    assert trio.current_time() == 10.0


# Room


async def test_large_frames_wait_for_room_in_the_budget_they_share(connect: Connect, autojump_clock: MockClock) -> None:
    budget = FrameBudget(LARGE)
    first, first_peer = await connect(budget)
    second, second_peer = await connect(budget)
    for peer in (first_peer, second_peer):
        await peer.write(encode_frame(bytes(LARGE)))
    held = await first.read_frame(idle_timeout_s=NEVER)
    assert held is not None
    read: list[bytes | None] = []
    async with trio.open_nursery() as nursery:

        async def read_second() -> None:
            read.append(await second.read_frame(idle_timeout_s=NEVER))

        nursery.start_soon(read_second)
        await wait_all_tasks_blocked()
        assert not read
        assert second_peer.is_reset is False
        first.done_with(held)
    assert read == [bytes(LARGE)]


async def test_a_large_frame_for_which_there_is_no_room_within_10_s_is_given_up(
    connect: Connect, autojump_clock: MockClock
) -> None:
    frames, peer = await connect(FrameBudget(LARGE - 1))
    await peer.write(encode_frame(bytes(LARGE)))
    with pytest.raises(trio.TooSlowError):
        await frames.read_frame(idle_timeout_s=NEVER)
    assert trio.current_time() == 10.0


async def test_small_frames_need_no_room(connect: Connect) -> None:
    frames, peer = await connect(FrameBudget(0))
    await peer.write(encode_frame(bytes(SMALL_FRAME_BYTES)))
    assert await frames.read_frame(idle_timeout_s=NEVER) == bytes(SMALL_FRAME_BYTES)


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("sent", [LARGE - 100, LARGE + 100], ids=["under way", "read and held"])
async def test_the_room_of_a_stream_that_ends_is_free_again(
    connect: Connect, end: str, sent: int, autojump_clock: MockClock
) -> None:
    budget = FrameBudget(LARGE)
    frames, peer = await connect(budget)
    await peer.write(encode_frame(bytes(LARGE))[:sent])
    held = b""
    with trio.move_on_after(1.0):
        held = await frames.read_frame(idle_timeout_s=NEVER) or b""
    await getattr(frames, end)()
    frames.done_with(held)
    with trio.fail_after(0):
        await budget.take(LARGE)


async def test_a_reset_frees_a_frame_that_is_held_and_one_that_is_under_way_once_each(
    connect: Connect, autojump_clock: MockClock
) -> None:
    budget = FrameBudget(2 * LARGE)
    frames, peer = await connect(budget)
    await peer.write(encode_frame(bytes(LARGE)) + encode_frame(bytes(LARGE))[:-1])
    held = await frames.read_frame(idle_timeout_s=NEVER)
    assert held is not None
    with trio.move_on_after(1.0):
        await frames.read_frame(idle_timeout_s=NEVER)
    await frames.reset()
    frames.done_with(held)
    with trio.fail_after(0):
        await budget.take(2 * LARGE)
    with trio.move_on_after(1.0) as scope:
        await budget.take(1)
    assert scope.cancelled_caught


async def test_a_stream_reset_while_a_frame_waits_for_room_takes_none(
    connect: Connect, autojump_clock: MockClock
) -> None:
    budget = FrameBudget(LARGE)
    await budget.take(1)
    frames, peer = await connect(budget)
    await peer.write(encode_frame(bytes(LARGE)))
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            with pytest.raises(StreamLostError):
                await frames.read_frame(idle_timeout_s=NEVER)

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        await frames.reset()
        budget.give_back(1)
    with trio.fail_after(0):
        await budget.take(LARGE)


# Cancellation


async def test_a_write_cancelled_half_way_resets_the_stream() -> None:
    frames, peer = frames_and_peer(window_bytes=10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(frames.write_frame, bytes(100))
        await wait_all_tasks_blocked()
        assert peer.unread_bytes == 10
        nursery.cancel_scope.cancel()
    assert peer.is_reset


async def test_a_write_cancelled_while_it_waits_for_another_leaves_the_stream_whole() -> None:
    frames, peer = frames_and_peer(window_bytes=10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(frames.write_frame, b"a" * 15)
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            nursery.start_soon(wait_and_cancel, scope)
            await frames.write_frame(b"b")
        assert scope.cancelled_caught
        assert await peer.read() == b"\x0f" + b"a" * 9
    assert await peer.read() == b"a" * 6


async def wait_and_cancel(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_a_cancelled_read_loses_nothing(connect: Connect) -> None:
    frames, peer = await connect()
    await peer.write(b"\x05ab")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_and_cancel, scope)
            await frames.read_frame(idle_timeout_s=NEVER)
    await peer.write(b"cde")
    assert await frames.read_frame(idle_timeout_s=NEVER) == b"abcde"


async def test_concurrent_writes_do_not_mix() -> None:
    frames, peer = frames_and_peer(window_bytes=7)
    reader = FrameStream(peer, budget=FrameBudget(0))
    bodies = {bytes((number,)) * 20 for number in range(10)}
    async with trio.open_nursery() as nursery:
        for body in bodies:
            nursery.start_soon(frames.write_frame, body)
        assert {await reader.read_frame(idle_timeout_s=NEVER) for _ in bodies} == bodies


async def test_closing_does_not_wait_for_a_peer_that_hangs(autojump_clock: MockClock) -> None:
    class Hanging(MemoryStream):
        async def close(self) -> None:
            await trio.sleep_forever()

        async def reset(self) -> None:
            await trio.sleep_forever()

    here, _ = stream_pair(HERE, THERE)
    here.__class__ = Hanging
    frames = FrameStream(here, budget=FrameBudget(0))
    await frames.close()
    await frames.reset()
    assert trio.current_time() == 2.0
