"""Answering requests, and what a peer can do to whoever answers."""

from __future__ import annotations

import logging
import math

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.errors import PrimeDHTError, RemoteProtocolError, StorageError, ValidationError
from prime_dht.ids import Key, PeerId
from prime_dht.net.network import Handler
from prime_dht.net.offenders import Offenders, OffenderSettings
from prime_dht.net.rpc_server import RpcServer, ServerLimits
from prime_dht.net.streams import FrameBudget, FrameStream, StreamLostError
from prime_dht.testing.rpc import CLIENT, SERVER, read
from prime_dht.testing.streams import WINDOW_BYTES, MemoryStream, stream_pair
from prime_dht.wire.calls import Refusal, decode_answer, encode_call
from prime_dht.wire.frames import MAX_FRAME_BYTES, encode_frame, encode_varint
from prime_dht.wire.kad import (
    AddProvider,
    FindNode,
    Ping,
    PutValue,
    Record,
    Reply,
    Request,
    decode_reply,
    encode_request,
)

CLASSICAL, PIPELINED = "classical", "pipelined"
LARGE_REQUEST = PutValue((Record(Key(b"/x/k"), bytes(3 << 20)),))
IN_FLIGHT = 64


async def answer_at_once(_peer: PeerId, _request: Request) -> Reply:
    await trio.lowlevel.checkpoint()
    return Reply()


class Held:
    """A handler that answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.may_answer = trio.Event()

    async def __call__(self, _peer: PeerId, request: Request) -> Reply:
        self.asked.append(request)
        await self.may_answer.wait()
        return Reply()


class Peer:
    """A client of a server, whose streams the nursery serves."""

    def __init__(self, server: RpcServer, nursery: trio.Nursery, peer: PeerId = CLIENT) -> None:
        self._server = server
        self._nursery = nursery
        self._peer = peer

    def open(self, kind: str, *, window_bytes: int = WINDOW_BYTES) -> tuple[FrameStream, MemoryStream]:
        here, there = stream_pair(self._peer, SERVER, window_bytes=window_bytes)
        serve = self._server.serve_classical if kind == CLASSICAL else self._server.serve_pipelined
        self._nursery.start_soon(serve, there)
        return FrameStream(here, budget=FrameBudget(64 << 20)), here


def call(kind: str, number: int, request: Request) -> bytes:
    message = encode_request(request)
    return message if kind == CLASSICAL else encode_call(number, message)


def reply_in(kind: str, request: Request, body: bytes) -> Reply:
    if kind == CLASSICAL:
        return decode_reply(request, body)
    _, answer = decode_answer(body)
    assert isinstance(answer, bytes)
    return decode_reply(request, answer)


both = pytest.mark.parametrize("kind", [CLASSICAL, PIPELINED])


# Answering


@both
async def test_any_number_of_requests_on_one_stream_are_answered(kind: str) -> None:
    async def echo(_peer: PeerId, request: Request) -> Reply:
        assert isinstance(request, FindNode)
        return Reply(next_cursor=request.target)

    server = RpcServer(echo)
    async with trio.open_nursery() as nursery:
        frames, stream = Peer(server, nursery).open(kind)
        for number in range(100):
            request = FindNode(b"%d" % number)
            await frames.write_frame(call(kind, number, request))
            assert reply_in(kind, request, await read(frames)).next_cursor == request.target
        await frames.end_writing()
        assert await frames.read_frame(idle_timeout_s=math.inf) is None
        assert not stream.is_reset
    assert server.requests == {"FindNode": 100}


async def test_on_a_classical_stream_answers_keep_the_order_of_requests_that_came_all_at_once() -> None:
    async def later_is_faster(_peer: PeerId, request: Request) -> Reply:
        assert isinstance(request, FindNode)
        for _ in range(20 - int(request.target)):
            await trio.lowlevel.checkpoint()
        return Reply(next_cursor=request.target)

    async with trio.open_nursery() as nursery:
        frames, stream = Peer(RpcServer(later_is_faster), nursery).open(CLASSICAL)
        requests = [FindNode(b"%d" % number) for number in range(20)]
        await stream.write(b"".join(encode_frame(encode_request(request)) for request in requests))
        for request in requests:
            assert decode_reply(request, await read(frames)).next_cursor == request.target
        await stream.close()


async def test_add_provider_gets_no_reply_and_the_next_reply_is_that_of_the_next_request() -> None:
    server = RpcServer(answer_at_once)
    async with trio.open_nursery() as nursery:
        frames, stream = Peer(server, nursery).open(CLASSICAL)
        await frames.write_frame(encode_request(AddProvider(b"\x00\x01h", ())))
        await frames.write_frame(encode_request(Ping()))
        decode_reply(Ping(), await read(frames))
        await stream.close()
        assert await frames.read_frame(idle_timeout_s=math.inf) is None
    assert server.requests == {"AddProvider": 1, "Ping": 1}


@both
async def test_the_end_of_the_requests_does_not_abort_the_reply(kind: str) -> None:
    handler = Held()
    async with trio.open_nursery() as nursery:
        frames, _ = Peer(RpcServer(handler), nursery).open(kind)
        await frames.write_frame(call(kind, 0, Ping()))
        await frames.end_writing()
        await wait_all_tasks_blocked()
        handler.may_answer.set()
        reply_in(kind, Ping(), await read(frames))
        assert await frames.read_frame(idle_timeout_s=math.inf) is None


@both
async def test_a_stream_that_is_reset_or_ended_after_no_request_is_no_offence(kind: str) -> None:
    server = RpcServer(answer_at_once)
    async with trio.open_nursery() as nursery:
        peer = Peer(server, nursery)
        _, reset = peer.open(kind)
        _, ended = peer.open(kind)
        await reset.reset()
        await ended.close()
    assert not server.offenders.offences
    assert server.offenders.total == 0
    assert not server._peers


# Offences


@both
@pytest.mark.parametrize(
    "frame",
    [
        encode_varint(MAX_FRAME_BYTES + 1),
        b"\x80\x00",  # a length that is not minimal
        encode_frame(b"\xff\xff\xff"),
        encode_frame(call(PIPELINED, 0, Ping())[:1] + b"\x08\x04"),  # FIND_NODE without a key
        encode_frame(b"\x08\x04"),
    ],
)
async def test_a_malformed_frame_resets_its_stream_and_is_counted_and_other_streams_go_on(
    kind: str, frame: bytes
) -> None:
    server = RpcServer(answer_at_once)
    async with trio.open_nursery() as nursery:
        peer = Peer(server, nursery)
        other, other_stream = peer.open(kind)
        frames, stream = peer.open(kind)
        await stream.write(frame)
        with pytest.raises(StreamLostError):
            await frames.read_frame(idle_timeout_s=math.inf)
        assert server.offenders.offences == {CLIENT: 1}
        await other.write_frame(call(kind, 0, Ping()))
        reply_in(kind, Ping(), await read(other))
        await other_stream.close()
    assert server.offenders.total == 1


@both
async def test_what_the_handler_calls_a_breach_of_protocol_resets_the_stream_and_is_counted(kind: str) -> None:
    async def accuse(_peer: PeerId, _request: Request) -> Reply:
        raise RemoteProtocolError("an entry of another key")

    server = RpcServer(accuse)
    async with trio.open_nursery() as nursery:
        frames, stream = Peer(server, nursery).open(kind)
        await frames.write_frame(call(kind, 0, Ping()))
        with pytest.raises(StreamLostError):
            await frames.read_frame(idle_timeout_s=math.inf)
    assert stream.is_reset
    assert server.offenders.offences == {CLIENT: 1}


async def test_the_worst_offenders_are_remembered_and_the_total_goes_on_counting() -> None:
    server = RpcServer(answer_at_once, offenders=Offenders(OffenderSettings(max_peers=4)))

    async def offend(peer: PeerId, times: int) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(times):
                _, stream = Peer(server, nursery, peer).open(CLASSICAL)
                await stream.write(encode_frame(b"\xff"))

    worst = PeerId(b"\x00\x01w")
    await offend(worst, 3)
    for number in range(10):
        await offend(PeerId(b"\x00\x01%d" % number), 1)
    assert server.offenders.offences[worst] == 3
    assert len(server.offenders.offences) <= 4
    assert server.offenders.total == 13


# Requests that are not carried out


async def raise_validation_error(_peer: PeerId, _request: Request) -> Reply:
    raise ValidationError("no validator is registered")


async def raise_storage_error(_peer: PeerId, _request: Request) -> Reply:
    raise StorageError("/home/somebody/store.sqlite: disk I/O error")


async def never_answer(_peer: PeerId, _request: Request) -> Reply:
    await trio.sleep_forever()
    raise AssertionError


@pytest.mark.parametrize("handler", [raise_validation_error, raise_storage_error, never_answer])
async def test_a_classical_stream_is_reset_and_nobody_is_to_blame(handler: Handler, autojump_clock: MockClock) -> None:
    server = RpcServer(handler)
    async with trio.open_nursery() as nursery:
        frames, _ = Peer(server, nursery).open(CLASSICAL)
        await frames.write_frame(encode_request(Ping()))
        with pytest.raises(StreamLostError):
            await frames.read_frame(idle_timeout_s=math.inf)
    assert not server.offenders.offences
    assert trio.current_time() == (30.0 if handler is never_answer else 0.0)


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (raise_validation_error, "no validator is registered"),
        (raise_storage_error, "this node failed"),  # and not how
        (never_answer, "not done in time"),
    ],
)
async def test_a_pipelined_call_is_refused_with_a_reason(
    handler: Handler, reason: str, autojump_clock: MockClock
) -> None:
    server = RpcServer(handler)
    async with trio.open_nursery() as nursery:
        frames, stream = Peer(server, nursery).open(PIPELINED)
        await frames.write_frame(call(PIPELINED, 7, Ping()))
        assert decode_answer(await read(frames)) == (7, Refusal(reason))
        assert not stream.is_reset
        await stream.close()
    assert not server.offenders.offences


@both
async def test_a_failure_of_this_node_is_logged_as_a_warning_and_a_refusal_is_not(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def fail(_peer: PeerId, request: Request) -> Reply:
        raise StorageError("disk I/O error") if isinstance(request, Ping) else ValidationError("too large")

    async with trio.open_nursery() as nursery:
        peer = Peer(RpcServer(fail), nursery)
        for request in (FindNode(b"x"), Ping()):
            frames, stream = peer.open(kind)
            await frames.write_frame(call(kind, 0, request))
            await stream.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "disk I/O error" in caplog.text


@both
async def test_what_is_no_error_of_ours_is_left_to_the_stream_guard_and_the_stream_is_reset(kind: str) -> None:
    async def defect(_peer: PeerId, _request: Request) -> Reply:
        raise KeyError("a bug")

    server = RpcServer(defect)
    here, there = stream_pair(CLIENT, SERVER)
    await here.write(encode_frame(call(kind, 0, Ping())))
    with pytest.raises((KeyError, ExceptionGroup)) as caught:
        await (server.serve_classical if kind == CLASSICAL else server.serve_pipelined)(there)
    assert not isinstance(caught.value, PrimeDHTError)
    assert here.is_reset
    assert not server._peers


# Bounds


@both
async def test_a_peers_65th_stream_is_reset_and_counted_and_another_peer_is_served(kind: str) -> None:
    server = RpcServer(answer_at_once)
    async with trio.open_nursery() as nursery:
        streams = [Peer(server, nursery).open(kind)[1] for _ in range(65)]
        await wait_all_tasks_blocked()
        assert sum(stream.is_reset for stream in streams) == 1
        assert server.offenders.offences == {CLIENT: 1}
        frames, other = Peer(server, nursery, PeerId(b"\x00\x01o")).open(kind)
        await frames.write_frame(call(kind, 0, Ping()))
        reply_in(kind, Ping(), await read(frames))
        for stream in (*streams, other):
            await stream.close()
    assert not server._peers


async def test_a_peers_65th_call_waits_unread_until_one_is_answered() -> None:
    handler = Held()
    async with trio.open_nursery() as nursery:
        frames, stream = Peer(RpcServer(handler), nursery).open(PIPELINED)
        for number in range(IN_FLIGHT + 10):
            await frames.write_frame(call(PIPELINED, number, Ping()))
        await wait_all_tasks_blocked()
        assert len(handler.asked) == IN_FLIGHT
        handler.may_answer.set()
        numbers = {decode_answer(await read(frames))[0] for _ in range(IN_FLIGHT + 10)}
        assert numbers == set(range(IN_FLIGHT + 10))
        await stream.close()


async def test_the_calls_of_a_peer_are_bounded_over_all_its_streams_and_another_peers_are_not_held_up() -> None:
    handler = Held()
    async with trio.open_nursery() as nursery:
        server = RpcServer(handler)
        peer = Peer(server, nursery)
        for kind in [PIPELINED] * 4 + [CLASSICAL] * 20:
            frames, _ = peer.open(kind)
            for number in range(20):
                await frames.write_frame(call(kind, number, Ping()))
        await wait_all_tasks_blocked()
        assert len(handler.asked) == IN_FLIGHT
        other, _ = Peer(server, nursery, PeerId(b"\x00\x01o")).open(CLASSICAL)
        await other.write_frame(encode_request(Ping()))
        await wait_all_tasks_blocked()
        assert len(handler.asked) == IN_FLIGHT + 1
        nursery.cancel_scope.cancel()


async def test_a_peer_that_does_not_read_its_answers_gets_no_more_of_them_and_then_loses_the_stream(
    autojump_clock: MockClock,
) -> None:
    answered = 0

    async def large_answer(_peer: PeerId, _request: Request) -> Reply:
        nonlocal answered
        answered += 1
        return Reply(record=Record(Key(b"/x/k"), bytes(1 << 20)))

    server = RpcServer(large_answer)
    async with trio.open_nursery() as nursery:
        frames, stream = Peer(server, nursery).open(PIPELINED)
        for number in range(1000):
            await frames.write_frame(call(PIPELINED, number, Ping()))
        await wait_all_tasks_blocked()
        assert answered == IN_FLIGHT
    assert stream.is_reset
    assert trio.current_time() == 30.0
    assert not server.offenders.offences


async def test_when_peers_together_leave_too_much_unread_the_one_that_stands_still_with_most_loses_its_stream(
    autojump_clock: MockClock,
) -> None:
    async def large_answer(_peer: PeerId, _request: Request) -> Reply:
        return Reply(record=Record(Key(b"/x/k"), bytes(1 << 20)))

    server = RpcServer(large_answer, ServerLimits(unread_bytes=8 << 20))
    async with trio.open_nursery() as nursery:
        streams: list[tuple[FrameStream, MemoryStream]] = []
        for name, calls in ((b"\x00\x01a", 2), (b"\x00\x01b", 5)):  # together nearly all that there may be
            streams.append(Peer(server, nursery, PeerId(name)).open(PIPELINED))
            for number in range(calls):
                await streams[-1][0].write_frame(call(PIPELINED, number, Ping()))
            await trio.sleep(1.0)
        (patient, _), (_, greedy) = streams
        await patient.read_frame(idle_timeout_s=math.inf)
        reader, _ = Peer(server, nursery).open(PIPELINED)
        for number in range(2):
            await reader.write_frame(call(PIPELINED, number, Ping()))
        for _ in range(2):
            assert reply_in(PIPELINED, Ping(), await read(reader)).record is not None
        assert greedy.is_reset
        assert reply_in(PIPELINED, Ping(), await read(patient)).record is not None
        nursery.cancel_scope.cancel()
    assert not server.offenders.offences


async def test_the_large_requests_of_a_peer_have_16_mib_from_their_announcement_until_they_are_answered() -> None:
    handler = Held()
    server = RpcServer(handler)
    async with trio.open_nursery() as nursery:
        peer = Peer(server, nursery)
        for _ in range(10):
            frames, _ = peer.open(CLASSICAL)
            nursery.start_soon(frames.write_frame, encode_request(LARGE_REQUEST))
        await wait_all_tasks_blocked()
        assert len(handler.asked) == 5
        other, _ = Peer(server, nursery, PeerId(b"\x00\x01o")).open(CLASSICAL)
        nursery.start_soon(other.write_frame, encode_request(LARGE_REQUEST))
        await wait_all_tasks_blocked()
        assert len(handler.asked) == 6
        handler.may_answer.set()
        await wait_all_tasks_blocked()
        assert len(handler.asked) == 11
        nursery.cancel_scope.cancel()


async def test_large_calls_on_one_pipelined_stream_are_bounded_likewise() -> None:
    handler = Held()
    async with trio.open_nursery() as nursery:
        frames, _ = Peer(RpcServer(handler), nursery).open(PIPELINED)

        async def send() -> None:
            for number in range(10):
                await frames.write_frame(call(PIPELINED, number, LARGE_REQUEST))

        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        assert len(handler.asked) == 5
        handler.may_answer.set()
        numbers = {decode_answer(await read(frames))[0] for _ in range(10)}
        assert numbers == set(range(10))
        nursery.cancel_scope.cancel()


# Deadlines


@both
async def test_a_request_that_dribbles_in_is_given_up_after_10_s(kind: str, autojump_clock: MockClock) -> None:
    server = RpcServer(answer_at_once)
    async with trio.open_nursery() as nursery:
        _, stream = Peer(server, nursery).open(kind)

        async def dribble() -> None:
            for byte in encode_frame(call(kind, 0, FindNode(bytes(100)))):
                await stream.write(bytes((byte,)))
                await trio.sleep(0.75)

        with pytest.raises(Exception, match="reset"):
            await dribble()
        assert trio.current_time() == 10.5
    assert not server.offenders.offences


@both
async def test_a_stream_without_requests_is_reset_after_120_s(kind: str, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        frames, stream = Peer(RpcServer(answer_at_once), nursery).open(kind)
        await trio.sleep(100.0)
        await frames.write_frame(call(kind, 0, Ping()))
        await read(frames)
        with pytest.raises(StreamLostError):
            await frames.read_frame(idle_timeout_s=math.inf)
        assert stream.is_reset
        assert trio.current_time() == 220.0


@both
async def test_a_server_that_stops_resets_the_streams_it_serves(kind: str) -> None:
    handler = Held()
    server = RpcServer(handler)
    async with trio.open_nursery() as nursery:
        peer = Peer(server, nursery)
        _, idle = peer.open(kind)
        busy_frames, busy = peer.open(kind)
        await busy_frames.write_frame(call(kind, 0, Ping()))
        await wait_all_tasks_blocked()
        server.stop()
    assert idle.is_reset
    assert busy.is_reset
    assert len(handler.asked) == 1
    assert not server._peers
    assert not server._serving
