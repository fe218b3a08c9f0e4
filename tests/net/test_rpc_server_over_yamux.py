"""The RPC server where calls are handed over by our muxer's read loop: the bounds hold there as on any other stream."""

from __future__ import annotations

import math

import pytest
import trio
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.errors import PrimeDHTError, RemoteProtocolError, StorageError, ValidationError
from prime_dht.ids import PeerId
from prime_dht.net.rpc_server import CALLS_AT_ONCE, RpcServer, ServerLimits
from prime_dht.net.streams import FrameBudget, FrameStream, StreamLostError
from prime_dht.net.yamux import FastYamux, FastYamuxStream
from prime_dht.testing.memory_conn import memory_conns
from prime_dht.testing.rpc import CLIENT, SERVER, read
from prime_dht.wire.calls import MAX_CALLS_IN_FLIGHT, Refusal, decode_answer, encode_call
from prime_dht.wire.kad import FindNode, Ping, Reply, Request, encode_request


class Connection:
    """A client's connection to a server, which serves its streams."""

    def __init__(self, server: RpcServer, nursery: trio.Nursery) -> None:
        dialer, listener = memory_conns()
        self.listener = listener
        self._server = server
        self._nursery = nursery
        self._client_end, self._server_end = FastYamux(dialer, ID(SERVER)), FastYamux(listener, ID(CLIENT))
        nursery.start_soon(self._client_end.start)
        nursery.start_soon(self._server_end.start)

    async def open(self) -> tuple[FrameStream, FastYamuxStream]:
        """The client's end of a pipelined stream, and the muxer's part of the server's."""
        here, there = await self._client_end.open_stream(), await self._server_end.accept_stream()
        self._nursery.start_soon(self._server.serve_pipelined, NetStream(there, None, None))
        return FrameStream(NetStream(here, None, None), budget=FrameBudget(64 << 20)), there


async def answer_at_once(_peer: PeerId, request: Request) -> Reply:
    if isinstance(request, FindNode):
        raise ValidationError("not this one")
    return Reply()


def call(number: int, request: Request) -> bytes:
    return encode_call(number, encode_request(request))


async def test_calls_are_answered_or_refused_each_by_itself(nursery: trio.Nursery) -> None:
    frames, _ = await Connection(RpcServer(answer_at_once), nursery).open()
    await frames.write_frame(call(0, FindNode(b"x")))
    await frames.write_frame(call(1, Ping()))
    answers = dict([decode_answer(await read(frames)) for _ in range(2)])
    assert answers[0] == Refusal("not this one")
    assert not isinstance(answers[1], Refusal)
    await frames.end_writing()
    assert await frames.read_frame(idle_timeout_s=math.inf) is None


async def test_calls_that_are_answered_at_once_give_their_places_back(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    def answer_now(_peer: PeerId, request: Request) -> Reply:
        if isinstance(request, FindNode):
            raise ValidationError("not this one")
        return Reply()

    frames, _ = await Connection(RpcServer(answer_now, ServerLimits(calls_per_peer=3)), nursery).open()
    for number in range(20):
        await frames.write_frame(call(number, FindNode(b"x") if number % 2 else Ping()))
        with trio.fail_after(1.0):
            answered, answer = decode_answer(await read(frames))
        assert (answered, isinstance(answer, Refusal)) == (number, number % 2 == 1)


async def test_calls_beyond_the_bound_wait_in_the_streams_window_until_others_are_answered(
    nursery: trio.Nursery,
) -> None:
    asked = 0
    may_answer = trio.Event()

    async def hold(_peer: PeerId, _request: Request) -> Reply:
        nonlocal asked
        asked += 1
        await may_answer.wait()
        return Reply()

    frames, served = await Connection(RpcServer(hold), nursery).open()
    for number in range(MAX_CALLS_IN_FLIGHT + 10):
        await frames.write_frame(call(number, Ping()))
        await wait_all_tasks_blocked()
    assert asked == MAX_CALLS_IN_FLIGHT
    assert served.buffered_bytes == 9 * (1 + len(call(100, Ping())))  # all but the one that waits for a place
    may_answer.set()
    numbers = {decode_answer(await read(frames))[0] for _ in range(MAX_CALLS_IN_FLIGHT + 10)}
    assert numbers == set(range(MAX_CALLS_IN_FLIGHT + 10))


async def test_a_malformed_call_resets_its_stream_and_is_counted_and_another_stream_is_served(
    nursery: trio.Nursery,
) -> None:
    server = RpcServer(answer_at_once)
    connection = Connection(server, nursery)
    other, _ = await connection.open()
    for malformed in (b"\x80\x00", b"\x03\xff\xff\xff"):  # a length that is not minimal; no message
        frames, served = await connection.open()
        await wait_all_tasks_blocked()
        await frames._stream.write(malformed)
        with pytest.raises(StreamLostError):
            await frames.read_frame(idle_timeout_s=math.inf)
        assert served.is_closed
    assert server.offenders.offences == {CLIENT: 2}
    await other.write_frame(call(0, Ping()))
    decode_answer(await read(other))


async def test_a_server_that_stops_answers_nothing_that_comes_in_the_same_moment(nursery: trio.Nursery) -> None:
    asked: list[Request] = []

    async def note(_peer: PeerId, request: Request) -> Reply:
        asked.append(request)
        return Reply()

    server = RpcServer(note)
    connection = Connection(server, nursery)
    streams = [(await connection.open())[0] for _ in range(20)]
    await wait_all_tasks_blocked()
    server.stop()
    for frames in streams:
        assert frames.write_now(call(0, Ping()))
    await wait_all_tasks_blocked()
    assert asked == []


# Answers that need no waiting.


async def test_eight_calls_are_answered_in_a_row_and_then_others_get_a_turn(nursery: trio.Nursery) -> None:
    """All that come at once; a call that is not answered by the task that reads it has one of its own."""
    tasks: list[trio.lowlevel.Task] = []

    def note(_peer: PeerId, _request: Request) -> Reply:
        tasks.append(trio.lowlevel.current_task())
        return Reply()

    frames, _ = await Connection(RpcServer(note), nursery).open()
    await wait_all_tasks_blocked()
    for burst in range(2):
        tasks.clear()
        numbers = range(100 * burst, 100 * burst + 3 * CALLS_AT_ONCE)
        for number in numbers:
            assert frames.write_now(call(number, Ping()))
        assert {decode_answer(await read(frames))[0] for _ in numbers} == set(numbers)
        assert len(set(tasks[:CALLS_AT_ONCE])) == 1
        assert len(set(tasks)) == 1 + 2 * CALLS_AT_ONCE


async def test_an_answer_that_cannot_be_written_now_waits_and_is_not_made_twice(nursery: trio.Nursery) -> None:
    asked = 0

    def note(_peer: PeerId, _request: Request) -> Reply:
        nonlocal asked
        asked += 1
        return Reply(replicates=True)

    connection = Connection(RpcServer(note), nursery)
    frames, _ = await connection.open()
    await wait_all_tasks_blocked()
    connection.listener.is_stalled = True
    answers: list[int] = []

    async def hear() -> None:
        while True:
            answers.append(decode_answer(await read(frames))[0])

    nursery.start_soon(hear)
    for number in range(3):
        await frames.write_frame(call(number, Ping()))
    await wait_all_tasks_blocked()
    assert (asked, answers) == (3, [])
    connection.listener.resume()
    await wait_all_tasks_blocked()
    assert (asked, sorted(answers)) == (3, [0, 1, 2])
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("error", "refusal"),
    [(ValidationError("no room"), "no room"), (StorageError("the disk of this node is broken"), "this node failed")],
)
async def test_a_handler_that_raises_at_once_refuses_that_call_alone(
    error: PrimeDHTError, refusal: str, nursery: trio.Nursery
) -> None:
    def refuse_one(_peer: PeerId, request: Request) -> Reply:
        if isinstance(request, FindNode):
            raise error
        return Reply()

    server = RpcServer(refuse_one)
    frames, _ = await Connection(server, nursery).open()
    for _ in range(MAX_CALLS_IN_FLIGHT + 1):  # each gives its place back
        await frames.write_frame(call(0, FindNode(b"x")))
        assert decode_answer(await read(frames)) == (0, Refusal(refusal))
    await frames.write_frame(call(1, Ping()))
    assert not isinstance(decode_answer(await read(frames))[1], Refusal)
    assert not server.offenders.offences


async def test_a_handler_that_finds_an_offence_at_once_ends_that_stream_alone(nursery: trio.Nursery) -> None:
    def blame_one(_peer: PeerId, request: Request) -> Reply:
        if isinstance(request, FindNode):
            raise RemoteProtocolError("an entry with a bad signature")
        return Reply()

    server = RpcServer(blame_one)
    connection = Connection(server, nursery)
    (bad, served), (good, _) = await connection.open(), await connection.open()
    await bad.write_frame(call(0, FindNode(b"x")))
    with pytest.raises(StreamLostError):
        await bad.read_frame(idle_timeout_s=math.inf)
    assert served.is_closed
    assert server.offenders.offences == {CLIENT: 1}
    await good.write_frame(call(0, Ping()))
    decode_answer(await read(good))


async def test_a_server_that_stops_while_it_answers_at_once_answers_nothing_behind(nursery: trio.Nursery) -> None:
    asked: list[Request] = []

    def stop(_peer: PeerId, request: Request) -> Reply:
        asked.append(request)
        server.stop()
        return Reply()

    server = RpcServer(stop)
    frames, _ = await Connection(server, nursery).open()
    await wait_all_tasks_blocked()
    for number in range(3):
        assert frames.write_now(call(number, Ping()))
    await wait_all_tasks_blocked()
    assert len(asked) == 1


async def test_a_stream_is_reset_120_s_after_the_last_call(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    frames, served = await Connection(RpcServer(answer_at_once), nursery).open()
    for number in range(3):
        await trio.sleep(100.0)
        await frames.write_frame(call(number, Ping()))
        decode_answer(await read(frames))
    with pytest.raises(StreamLostError):
        await frames.read_frame(idle_timeout_s=math.inf)
    assert served.is_closed
    assert trio.current_time() == 420.0
