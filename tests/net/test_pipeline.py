"""Calls over one pipelined stream: order, places, cancellation, loss."""

from __future__ import annotations

import gc
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.errors import QueryError, RemoteProtocolError, ValidationError
from prime_dht.ids import PeerId
from prime_dht.net.pipeline import Pipeline
from prime_dht.net.rpc_client import RpcClient
from prime_dht.net.rpc_server import RpcServer
from prime_dht.net.streams import FrameStream
from prime_dht.testing.rpc import RPC, SERVER, read, running_client, scripted
from prime_dht.wire.calls import MAX_CALLS_IN_FLIGHT, Refusal, decode_call, encode_answer
from prime_dht.wire.kad import FindNode, Reply, Request, decode_request, encode_reply


def target_of(request: Request) -> bytes:
    assert isinstance(request, FindNode)
    return request.target


def answer_to(body: bytes) -> bytes:
    """The right answer to a call: its target comes back as the cursor, cut to what a cursor may have."""
    number, message = decode_call(body)
    request = decode_request(message)
    return encode_answer(number, encode_reply(request, Reply(next_cursor=target_of(request)[:8])))


async def answer_all(frames: FrameStream) -> None:
    while (body := await frames.read_frame(idle_timeout_s=math.inf)) is not None:
        await frames.write_frame(answer_to(body))


async def say_nothing(_frames: FrameStream) -> None:
    await trio.sleep_forever()


async def ask(client: RpcClient, name: bytes, *, timeout_s: float = 10.0) -> None:
    reply = await client.call(SERVER, FindNode(name), timeout_s=timeout_s)
    assert reply.next_cursor == name[:8]


async def ask_in_vain(client: RpcClient, name: bytes, *, timeout_s: float = 10.0) -> None:
    with pytest.raises(QueryError):
        await ask(client, name, timeout_s=timeout_s)


async def test_200_calls_at_once_share_one_stream_and_each_gets_its_own_answer() -> None:
    async def echo(_peer: PeerId, request: Request) -> Reply:
        for _ in range(int(target_of(request)) % 5):  # so that they overtake each other
            await trio.lowlevel.checkpoint()
        return Reply(next_cursor=target_of(request))

    async with running_client({RPC: RpcServer(echo).serve_pipelined}) as (client, opener):
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(ask, client, b"%d" % number)
        assert len(opener.opened) == 1


async def test_an_idle_stream_has_one_task_and_any_number_of_calls_in_a_row_one_timer(
    autojump_clock: MockClock,
) -> None:
    started = Counter[str]()

    class Tasks(trio.abc.Instrument):
        def task_spawned(self, task: trio.lowlevel.Task) -> None:
            started[task.name.rpartition(".")[2]] += 1

    async with running_client({RPC: scripted(answer_all)}) as (client, _):
        trio.lowlevel.add_instrument(Tasks())
        await ask(client, b"first")
        alone = trio.lowlevel.current_statistics().tasks_living - 1  # without the timer
        for number in range(20):
            await ask(client, b"%d" % number)
        assert (started["_run"], started["_time_out"]) == (1, 1)
        await trio.sleep(20)
        assert trio.lowlevel.current_statistics().tasks_living == alone
        await ask(client, b"after a while")
        assert started["_time_out"] == 2


@pytest.mark.parametrize("end", [FrameStream.close, FrameStream.reset], ids=["closed", "reset"])
@pytest.mark.usefixtures("uncollected")
async def test_a_client_lets_go_of_a_stream_that_was_lost(end: Callable[[FrameStream], Awaitable[None]]) -> None:
    async def answer_one(frames: FrameStream) -> None:
        await frames.write_frame(answer_to(await read(frames)))
        await answered.wait()
        await end(frames)

    answered = trio.Event()
    async with running_client({RPC: scripted(answer_one)}) as (client, _):
        await ask(client, b"the only one")
        answered.set()
        await wait_all_tasks_blocked()
        assert not [each for each in gc.get_objects() if isinstance(each, Pipeline)]


async def test_answers_may_come_in_any_order() -> None:
    async def answer_backwards(frames: FrameStream) -> None:
        bodies = [await read(frames) for _ in range(MAX_CALLS_IN_FLIGHT)]
        for body in reversed(bodies):
            await frames.write_frame(answer_to(body))

    async with running_client({RPC: scripted(answer_backwards)}) as (client, _), trio.open_nursery() as nursery:
        for number in range(MAX_CALLS_IN_FLIGHT):
            nursery.start_soon(ask, client, b"%d" % number)


async def test_no_more_than_64_calls_are_unanswered_and_an_answer_lets_the_next_one_go() -> None:
    arrived: list[bytes] = []
    may_answer = trio.Event()

    async def hold_back(frames: FrameStream) -> None:
        while True:
            arrived.append(await read(frames))
            if len(arrived) == MAX_CALLS_IN_FLIGHT:
                await may_answer.wait()
                for body in arrived:
                    await frames.write_frame(answer_to(body))
            elif len(arrived) > MAX_CALLS_IN_FLIGHT:
                await frames.write_frame(answer_to(arrived[-1]))

    async with running_client({RPC: scripted(hold_back)}) as (client, _), trio.open_nursery() as nursery:
        for number in range(MAX_CALLS_IN_FLIGHT + 10):
            nursery.start_soon(ask, client, b"%d" % number)
        await wait_all_tasks_blocked()
        assert len(arrived) == MAX_CALLS_IN_FLIGHT
        may_answer.set()


async def test_a_slow_answer_holds_up_none_behind_it() -> None:
    may_answer = trio.Event()

    async def echo(_peer: PeerId, request: Request) -> Reply:
        if target_of(request) == b"slow":
            await may_answer.wait()
        return Reply(next_cursor=target_of(request))

    async with running_client({RPC: RpcServer(echo).serve_pipelined}) as (client, _), trio.open_nursery() as nursery:
        nursery.start_soon(ask, client, b"slow")
        await wait_all_tasks_blocked()
        await ask(client, b"fast")
        may_answer.set()


async def test_a_refused_call_says_why_and_takes_no_other_down_with_it() -> None:
    may_answer = trio.Event()

    async def refuse_one(_peer: PeerId, request: Request) -> Reply:
        if target_of(request) == b"bad":
            raise ValidationError("a better record is held")
        await may_answer.wait()
        return Reply(next_cursor=target_of(request))

    server = RpcServer(refuse_one)
    async with running_client({RPC: server.serve_pipelined}) as (client, opener), trio.open_nursery() as nursery:
        nursery.start_soon(ask, client, b"good")
        await wait_all_tasks_blocked()
        with pytest.raises(QueryError, match="refused the request: a better record is held"):
            await ask(client, b"bad")
        may_answer.set()
        assert len(opener.open_streams) == 1
        assert not server.offenders.offences


# Cancellation


@pytest.mark.parametrize("window_bytes", [50, 1 << 18])
async def test_after_400_calls_cancelled_at_any_point_the_client_is_healthy(window_bytes: int) -> None:
    """While opening, waiting for a place, sending or waiting; the other calls in flight must all succeed."""
    rng = random.Random(1)

    async def dawdle(_peer: PeerId, request: Request) -> Reply:
        for _ in range(len(target_of(request)) % 7):
            await trio.lowlevel.checkpoint()
        return Reply(next_cursor=target_of(request)[:8])

    async def cancelled(client: RpcClient, checkpoints: int, name: bytes) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, client, name)
            for _ in range(checkpoints):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    server = RpcServer(dawdle)
    async with running_client({RPC: server.serve_pipelined}, window_bytes=window_bytes) as (client, opener):
        for _ in range(20):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    name = b"x" * rng.randint(1, 200)
                    nursery.start_soon(cancelled, client, rng.randint(0, 40), name)
                    nursery.start_soon(ask, client, name[::-1])
        await wait_all_tasks_blocked()
        pipeline = client._peers[SERVER].pipeline
        assert pipeline is not None
        assert not pipeline._calls
        assert pipeline._places.value == MAX_CALLS_IN_FLIGHT
        assert len(opener.opened) == 1
        assert not server.offenders.offences


async def test_the_place_of_a_cancelled_call_is_free_only_when_its_answer_has_come() -> None:
    bodies: list[bytes] = []
    may_answer = trio.Event()

    async def hold_back(frames: FrameStream) -> None:
        for _ in range(MAX_CALLS_IN_FLIGHT):
            bodies.append(await read(frames))
        await may_answer.wait()
        for body in bodies:
            await frames.write_frame(answer_to(body))
        await answer_all(frames)

    async with running_client({RPC: scripted(hold_back)}) as (client, _), trio.open_nursery() as nursery:
        async with trio.open_nursery() as cancelled:
            for number in range(MAX_CALLS_IN_FLIGHT):
                cancelled.start_soon(ask, client, b"%d" % number)
            await wait_all_tasks_blocked()
            cancelled.cancel_scope.cancel()
        nursery.start_soon(ask, client, b"next")
        await wait_all_tasks_blocked()
        assert len(bodies) == MAX_CALLS_IN_FLIGHT
        may_answer.set()


async def test_cancelling_a_large_request_half_sent_harms_no_other_call() -> None:
    """The peer gets it whole: a cut frame would end the stream for all."""
    arrived: list[int] = []
    may_read = trio.Event()

    async def read_late(frames: FrameStream) -> None:
        await may_read.wait()
        while True:
            body = await read(frames)
            arrived.append(len(body))
            await frames.write_frame(answer_to(body))

    async with running_client({RPC: scripted(read_late)}, window_bytes=1000) as (client, opener):
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as cancelled:
                cancelled.start_soon(ask, client, b"large" * 1000)
                await wait_all_tasks_blocked()
                nursery.start_soon(ask, client, b"other")
                await wait_all_tasks_blocked()
                cancelled.cancel_scope.cancel()
            may_read.set()
        assert len(arrived) == 2
        assert len(opener.opened) == 1


# Loss


async def test_when_the_stream_is_lost_waiting_calls_try_once_more_on_a_fresh_one() -> None:
    async def break_off(frames: FrameStream) -> None:
        for _ in range(10):
            await read(frames)
        await frames.reset()

    scripts = [break_off, answer_all]

    async def next_script(frames: FrameStream) -> None:
        await scripts.pop(0)(frames)

    async with running_client({RPC: scripted(next_script)}) as (client, opener):
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(ask, client, b"%d" % number)
        assert len(opener.opened) == 2


async def test_when_every_stream_is_lost_calls_fail_at_once_those_waiting_for_a_place_too(
    autojump_clock: MockClock,
) -> None:
    async def break_off(frames: FrameStream) -> None:
        for _ in range(MAX_CALLS_IN_FLIGHT):
            await read(frames)
        await wait_all_tasks_blocked()
        await frames.reset()

    async with running_client({RPC: scripted(break_off)}) as (client, _):
        async with trio.open_nursery() as nursery:
            for number in range(3 * MAX_CALLS_IN_FLIGHT):
                nursery.start_soon(ask_in_vain, client, b"%d" % number)
        assert trio.current_time() == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        encode_answer(1, b""),  # to a call that was never asked
        b"",
        b"\x00",
        b"\x00\x02",
    ],
)
async def test_an_answer_that_can_be_none_fails_all_waiting_calls_as_the_peers_fault(answer: bytes) -> None:
    async def answer_wrongly(frames: FrameStream) -> None:
        await read(frames)
        await frames.write_frame(answer)
        await trio.sleep_forever()

    async with running_client({RPC: scripted(answer_wrongly)}) as (client, opener):
        with pytest.raises(RemoteProtocolError) as caught:
            await ask(client, b"a")
        assert caught.value.peer is not None
        await wait_all_tasks_blocked()
        assert not opener.open_streams


async def test_a_second_answer_to_one_call_is_the_peers_fault() -> None:
    async def answer_twice(frames: FrameStream) -> None:
        first, _ = await read(frames), await read(frames)
        for _ in range(2):
            await frames.write_frame(answer_to(first))
        await trio.sleep_forever()

    async def fails(client: RpcClient) -> None:
        with pytest.raises(RemoteProtocolError, match="not asked or is answered"):
            await ask(client, b"b")

    async with running_client({RPC: scripted(answer_twice)}) as (client, _), trio.open_nursery() as nursery:
        nursery.start_soon(ask, client, b"a")
        await wait_all_tasks_blocked()
        nursery.start_soon(fails, client)


async def test_a_reply_that_is_garbage_fails_its_own_call_only() -> None:
    async def garble_the_first(frames: FrameStream) -> None:
        first, second = await read(frames), await read(frames)
        await frames.write_frame(encode_answer(decode_call(first)[0], b"\xff\xff"))
        await frames.write_frame(answer_to(second))

    async with running_client({RPC: scripted(garble_the_first)}) as (client, _), trio.open_nursery() as nursery:

        async def garbled() -> None:
            with pytest.raises(RemoteProtocolError):
                await ask(client, b"a")

        nursery.start_soon(garbled)
        await wait_all_tasks_blocked()
        nursery.start_soon(ask, client, b"b")


# Silence


async def test_a_stream_on_which_nothing_is_answered_any_more_is_abandoned(autojump_clock: MockClock) -> None:
    scripts = [say_nothing, answer_all]

    async def next_script(frames: FrameStream) -> None:
        await scripts.pop(0)(frames)

    async with running_client({RPC: scripted(next_script)}) as (client, opener):
        await ask_in_vain(client, b"a")
        await ask(client, b"b")
        assert trio.current_time() == 10.0
        assert opener.open_streams == opener.opened[1:]


async def test_a_stream_that_answers_others_is_kept_when_one_call_times_out(autojump_clock: MockClock) -> None:
    async def ignore_the_first(frames: FrameStream) -> None:
        await read(frames)
        await answer_all(frames)

    async with running_client({RPC: scripted(ignore_the_first)}) as (client, opener):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_in_vain, client, b"ignored")
            await trio.sleep(1.0)
            await ask(client, b"b")
        await ask(client, b"c")
        assert len(opener.opened) == 1


async def test_every_call_of_a_stream_ends_at_its_own_deadline(autojump_clock: MockClock) -> None:
    ended_s: dict[float, float] = {}

    async def ask_within(client: RpcClient, timeout_s: float) -> None:
        await ask_in_vain(client, b"%g" % timeout_s, timeout_s=timeout_s)
        ended_s[timeout_s] = trio.current_time()

    async def ignore_all_but_one(frames: FrameStream) -> None:
        while True:
            body = await read(frames)
            if target_of(decode_request(decode_call(body)[1])) == b"in time":
                await frames.write_frame(answer_to(body))

    async with running_client({RPC: scripted(ignore_all_but_one)}) as (client, opener):
        async with trio.open_nursery() as nursery:
            for timeout_s in (5.0, 9.0, 3.0, 7.0):
                nursery.start_soon(ask_within, client, timeout_s)
            for at_s in (2.5, 4.5, 6.5, 8.5):
                await trio.sleep_until(at_s)  # an answer to another, so that the stream is kept
                await ask(client, b"in time")
        assert ended_s == {3.0: 3.0, 5.0: 5.0, 7.0: 7.0, 9.0: 9.0}
        assert len(opener.opened) == 1


async def test_a_call_that_finds_no_place_in_time_fails(autojump_clock: MockClock) -> None:
    async with running_client({RPC: scripted(say_nothing)}) as (client, _), trio.open_nursery() as nursery:
        for number in range(MAX_CALLS_IN_FLIGHT):
            nursery.start_soon(ask_in_vain, client, b"%d" % number)
        await wait_all_tasks_blocked()
        with pytest.raises(QueryError, match="did not answer within 2 s"):
            await ask(client, b"one too many", timeout_s=2.0)
        assert trio.current_time() == 2.0
        nursery.cancel_scope.cancel()


async def test_a_peer_that_does_not_read_loses_the_stream(autojump_clock: MockClock) -> None:
    async with running_client({RPC: scripted(say_nothing)}, window_bytes=10) as (client, opener):
        await ask_in_vain(client, b"x" * 100, timeout_s=1000.0)
        assert trio.current_time() == 60.0  # 30 s for each of two streams
        await wait_all_tasks_blocked()
        assert not opener.open_streams


async def test_an_answer_that_begins_and_does_not_end_loses_the_stream(autojump_clock: MockClock) -> None:
    async def begin(frames: FrameStream) -> None:
        await read(frames)
        await frames._stream.write(b"\x05\x00")
        await trio.sleep_forever()

    async with running_client({RPC: scripted(begin)}) as (client, opener):
        await ask_in_vain(client, b"a", timeout_s=1000.0)
        assert trio.current_time() == 20.0  # 10 s for each of two streams
        await wait_all_tasks_blocked()
        assert not opener.open_streams


async def test_a_refusal_is_an_answer() -> None:
    async def refuse(frames: FrameStream) -> None:
        for _ in range(2 * MAX_CALLS_IN_FLIGHT):
            number, _ = decode_call(await read(frames))
            await frames.write_frame(encode_answer(number, Refusal("no")))

    async with running_client({RPC: scripted(refuse)}) as (client, _), trio.open_nursery() as nursery:
        for number in range(2 * MAX_CALLS_IN_FLIGHT):
            nursery.start_soon(ask_in_vain, client, b"%d" % number)
