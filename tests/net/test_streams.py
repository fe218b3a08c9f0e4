"""Frames over a stream: pieces, ends, deadlines, room, and cancellation."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.errors import RemoteProtocolError
from prime_dht.ids import PeerId
from prime_dht.net.streams import SMALL_FRAME_BYTES, FrameBudget, FrameStream, StreamLostError
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


async def test_frames_come_one_at_a_time_in_order_and_then_the_end() -> None:
    frames, peer = frames_and_peer()
    await peer.write(b"\x01a\x00\x02bc\x01")
    await peer.write(b"d")
    await peer.close()
    assert [await frames.read_frame(idle_timeout_s=NEVER) for _ in range(5)] == [b"a", b"", b"bc", b"d", None]


async def test_a_frame_that_comes_byte_by_byte_is_whole_at_its_last() -> None:
    frames, peer = frames_and_peer()
    async with trio.open_nursery() as nursery:

        async def dribble() -> None:
            for byte in encode_frame(b"x" * 300):
                await peer.write(bytes((byte,)))

        nursery.start_soon(dribble)
        assert await frames.read_frame(idle_timeout_s=NEVER) == b"x" * 300


async def test_a_frame_of_4_mib_passes() -> None:
    frames, peer = frames_and_peer()
    body = bytes(range(256)) * (MAX_FRAME_BYTES // 256)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(FrameStream(peer, budget=FrameBudget(0)).write_frame, body)
        assert await frames.read_frame(idle_timeout_s=NEVER) == body


async def test_an_end_within_a_frame_or_its_length_is_a_lost_stream() -> None:
    for beginning in (b"\x05abc", b"\xac"):
        frames, peer = frames_and_peer()
        await peer.write(beginning)
        await peer.close()
        with pytest.raises(StreamLostError, match="within"):
            await frames.read_frame(idle_timeout_s=NEVER)


async def test_a_reset_is_a_lost_stream_for_reader_and_writer() -> None:
    frames, peer = frames_and_peer()
    await peer.reset()
    with pytest.raises(StreamLostError):
        await frames.read_frame(idle_timeout_s=NEVER)
    with pytest.raises(StreamLostError):
        await frames.write_frame(b"x")
    assert frames.broken


async def test_a_frame_beyond_the_limit_is_refused_at_its_length() -> None:
    frames, peer = frames_and_peer()
    await peer.write(encode_varint(MAX_FRAME_BYTES + 1))
    with pytest.raises(RemoteProtocolError):
        await frames.read_frame(idle_timeout_s=NEVER)


async def test_our_direction_can_end_while_the_peers_goes_on() -> None:
    frames, peer = frames_and_peer()
    await frames.write_frame(b"request")
    await frames.end_writing()
    assert await peer.read() == b"\x07request"
    await peer.write(b"\x06answer")
    assert await frames.read_frame(idle_timeout_s=NEVER) == b"answer"


async def test_bytes_that_were_not_asked_for_are_noticed_whole_or_not() -> None:
    for behind in (b"", b"\x01b", b"\x05b"):
        frames, peer = frames_and_peer()
        await peer.write(b"\x01a" + behind)
        assert await frames.read_frame(idle_timeout_s=NEVER) == b"a"
        assert frames.is_quiet() is (not behind)


# Deadlines


async def test_a_stream_on_which_nothing_comes_is_given_up_after_the_idle_time(autojump_clock: MockClock) -> None:
    frames, _ = frames_and_peer()
    with pytest.raises(trio.TooSlowError):
        await frames.read_frame(idle_timeout_s=120.0)
    assert trio.current_time() == 120.0


async def test_a_frame_that_dribbles_in_is_given_up_10_s_after_its_first_byte(autojump_clock: MockClock) -> None:
    frames, peer = frames_and_peer()
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


async def test_a_frame_that_began_behind_another_has_no_more_than_10_s_either(autojump_clock: MockClock) -> None:
    frames, peer = frames_and_peer()
    await peer.write(b"\x01a" + b"\x05b")
    assert await frames.read_frame(idle_timeout_s=120.0) == b"a"
    with pytest.raises(trio.TooSlowError):
        await frames.read_frame(idle_timeout_s=120.0)
    assert trio.current_time() == 10.0


# Room


async def test_large_frames_wait_for_room_in_the_budget_they_share(autojump_clock: MockClock) -> None:
    budget = FrameBudget(LARGE)
    first, first_peer = frames_and_peer(budget)
    second, second_peer = frames_and_peer(budget)
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


async def test_a_large_frame_for_which_there_is_no_room_within_10_s_is_given_up(autojump_clock: MockClock) -> None:
    frames, peer = frames_and_peer(FrameBudget(LARGE - 1))
    await peer.write(encode_frame(bytes(LARGE)))
    with pytest.raises(trio.TooSlowError):
        await frames.read_frame(idle_timeout_s=NEVER)
    assert trio.current_time() == 10.0


async def test_small_frames_need_no_room() -> None:
    frames, peer = frames_and_peer(FrameBudget(0))
    await peer.write(encode_frame(bytes(SMALL_FRAME_BYTES)))
    assert await frames.read_frame(idle_timeout_s=NEVER) == bytes(SMALL_FRAME_BYTES)


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("sent", [LARGE - 100, LARGE + 100], ids=["under way", "read and held"])
async def test_the_room_of_a_stream_that_ends_is_free_again(end: str, sent: int, autojump_clock: MockClock) -> None:
    budget = FrameBudget(LARGE)
    frames, peer = frames_and_peer(budget)
    await peer.write(encode_frame(bytes(LARGE))[:sent])
    held = b""
    with trio.move_on_after(1.0):
        held = await frames.read_frame(idle_timeout_s=NEVER) or b""
    await getattr(frames, end)()
    frames.done_with(held)
    with trio.fail_after(0):
        await budget.take(LARGE)


async def test_a_reset_frees_a_frame_that_is_held_and_one_that_is_under_way_once_each(
    autojump_clock: MockClock,
) -> None:
    budget = FrameBudget(2 * LARGE)
    frames, peer = frames_and_peer(budget)
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


async def test_a_stream_reset_while_a_frame_waits_for_room_takes_none(autojump_clock: MockClock) -> None:
    budget = FrameBudget(LARGE)
    await budget.take(1)
    frames, peer = frames_and_peer(budget)
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
    assert frames.broken


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
    assert not frames.broken


async def wait_and_cancel(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_a_cancelled_read_loses_nothing() -> None:
    frames, peer = frames_and_peer()
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
