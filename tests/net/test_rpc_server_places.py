"""What a peer takes of an RPC server is given back in the end: its streams, and the places of its calls."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.errors import RemoteProtocolError, ValidationError
from prime_dht.ids import Key, PeerId
from prime_dht.net.network import Handler
from prime_dht.net.offenders import Offenders, OffenderSettings
from prime_dht.net.rpc_server import RpcServer, ServerLimits
from prime_dht.net.streams import FrameBudget, FrameStream
from prime_dht.testing.rpc import CLIENT, SERVER, read
from prime_dht.testing.streams import MemoryStream, stream_pair
from prime_dht.wire.calls import Refusal, decode_answer, encode_call
from prime_dht.wire.kad import FindNode, Ping, Record, Reply, Request, decode_reply, encode_request

LIMITS = ServerLimits(streams_per_peer=3, calls_per_peer=3)
NEVER_BACKED_OFF = OffenderSettings(tolerated=1000)


def answer_now(_peer: PeerId, _request: Request) -> Reply:
    return Reply()


async def answer_later(_peer: PeerId, _request: Request) -> Reply:
    await trio.lowlevel.checkpoint()
    return Reply()


def refuse_now(_peer: PeerId, _request: Request) -> Reply:
    raise ValidationError("no room")


def fault_a_lookup(_peer: PeerId, request: Request) -> Reply:
    if isinstance(request, FindNode):
        raise RemoteProtocolError("no such target")
    return Reply()


def opened(server: RpcServer, nursery: trio.Nursery) -> tuple[FrameStream, MemoryStream]:
    """A pipelined stream, which the nursery serves."""
    here, there = stream_pair(CLIENT, SERVER)
    nursery.start_soon(server.serve_pipelined, there)
    return FrameStream(here, budget=FrameBudget(64 << 20)), here


async def answer_to(frames: FrameStream, number: int) -> bytes | Refusal:
    await frames.write_frame(encode_call(number, encode_request(Ping())))
    answered, answer = decode_answer(await read(frames))
    assert answered == number
    return answer


@pytest.mark.parametrize("handler", [answer_now, answer_later, refuse_now])
async def test_one_after_the_other_a_peer_makes_more_calls_than_it_has_places(
    handler: Handler, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        frames, stream = opened(RpcServer(handler, LIMITS), nursery)
        for number in range(10):
            with trio.fail_after(1.0):
                answer = await answer_to(frames, number)
            assert answer == Refusal("no room") if handler is refuse_now else isinstance(answer, bytes)
        await stream.close()


@pytest.mark.parametrize("body", [b"\xff", encode_call(7, b"\xff"), encode_call(7, encode_request(FindNode(b"x")))])
async def test_calls_that_broke_the_protocol_take_no_place_from_the_peers_other_streams(
    body: bytes, autojump_clock: MockClock
) -> None:
    server = RpcServer(fault_a_lookup, LIMITS, offenders=Offenders(NEVER_BACKED_OFF))
    async with trio.open_nursery() as nursery:
        frames, stream = opened(server, nursery)
        await answer_to(frames, 0)
        for _ in range(5):
            broken_frames, broken = opened(server, nursery)
            await broken_frames.write_frame(body)
            await wait_all_tasks_blocked()
            assert broken.is_reset
        with trio.fail_after(1.0):
            assert isinstance(await answer_to(frames, 1), bytes)
        await stream.close()
    assert server.offenders.offences == {CLIENT: 5}


async def test_a_stream_that_ends_makes_room_for_one_other_and_no_more() -> None:
    server = RpcServer(answer_now, LIMITS)
    async with trio.open_nursery() as nursery:
        streams: list[MemoryStream] = []
        for number in range(6):
            if number == 3:
                await streams.pop(0).close()
                await wait_all_tasks_blocked()
            streams.append(opened(server, nursery)[1])
            await wait_all_tasks_blocked()
        assert [stream.is_reset for stream in streams] == [False, False, False, True, True]
        assert server.offenders.offences == {CLIENT: 2}
        for stream in streams:
            await stream.close()
    assert not server._peers


async def test_while_a_peer_is_backed_off_its_streams_are_reset(autojump_clock: MockClock) -> None:
    server = RpcServer(fault_a_lookup, offenders=Offenders(OffenderSettings(tolerated=1, back_off_s=10.0)))
    async with trio.open_nursery() as nursery:
        frames, broken = opened(server, nursery)
        await frames.write_frame(encode_call(0, encode_request(FindNode(b"x"))))
        await wait_all_tasks_blocked()
        assert broken.is_reset
        _, turned_away = opened(server, nursery)
        await wait_all_tasks_blocked()
        assert turned_away.is_reset
        await trio.sleep(10.0)
        frames, served = opened(server, nursery)
        answer = await answer_to(frames, 0)
        assert isinstance(answer, bytes)
        assert decode_reply(Ping(), answer) == Reply()
        await served.close()


LARGE = 1_000_000


async def answer_large(_peer: PeerId, _request: Request) -> Reply:
    return Reply(record=Record(Key(b"/x/k"), bytes(LARGE)))


async def test_one_after_the_other_a_peer_reads_more_answers_than_may_be_left_unread(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        frames, stream = opened(RpcServer(answer_large, ServerLimits(unread_bytes=2 * LARGE)), nursery)
        for number in range(5):
            await answer_to(frames, number)
        assert not stream.is_reset
        nursery.cancel_scope.cancel()


async def test_who_takes_a_part_of_an_answer_does_not_stand_still(autojump_clock: MockClock) -> None:
    server = RpcServer(answer_large, ServerLimits(unread_bytes=6 * LARGE))
    async with trio.open_nursery() as nursery:
        reading, still, new = [opened(server, nursery) for _ in range(3)]
        for (frames, _), calls in ((reading, 3), (still, 2)):
            for number in range(calls):
                await frames.write_frame(encode_call(number, encode_request(Ping())))
        await trio.sleep(10.0)
        await reading[1].read(LARGE // 2)
        await wait_all_tasks_blocked()
        for number in range(2):
            await new[0].write_frame(encode_call(number, encode_request(Ping())))
        await wait_all_tasks_blocked()
        assert [stream.is_reset for _, stream in (reading, still, new)] == [False, True, False]
        nursery.cancel_scope.cancel()
