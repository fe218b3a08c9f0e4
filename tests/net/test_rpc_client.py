"""Calls to peers of the classical protocol, and what both protocols have in common."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.errors import LocalProtocolError, QueryError, RemoteProtocolError, UnsentError
from prime_dht.ids import Key, PeerId
from prime_dht.net import rpc_client
from prime_dht.net.rpc_client import STREAMS_PER_PEER, RpcClient
from prime_dht.net.rpc_server import RpcServer
from prime_dht.net.streams import FrameStream
from prime_dht.testing.rpc import CLIENT, KAD, RPC, SERVER, read, running_client, scripted
from prime_dht.testing.streams import StreamOpener
from prime_dht.wire.frames import MAX_FRAME_BYTES, encode_frame
from prime_dht.wire.kad import (
    AddProvider,
    FindNode,
    GetProviders,
    GetValue,
    PeerRecord,
    Ping,
    PutValue,
    Record,
    Reply,
    Request,
    decode_request,
    encode_reply,
)

PROVIDE = AddProvider(b"\x00\x01h", (PeerRecord(CLIENT, (b"\x04\x7f\x00\x00\x01\x06\x0f\xa1",)),))


async def echo(_peer: PeerId, request: Request) -> Reply:
    """Names the target of a FIND_NODE as the cursor, so that an answer shows which request it is for."""
    await trio.lowlevel.checkpoint()
    return Reply(next_cursor=request.target if isinstance(request, FindNode) else b"")


async def answer_all(frames: FrameStream) -> None:
    while (body := await frames.read_frame(idle_timeout_s=float("inf"))) is not None:
        request = decode_request(body)
        await frames.write_frame(encode_reply(request, await echo(CLIENT, request)))


async def ask(client: RpcClient, name: bytes, *, timeout_s: float = 10.0) -> None:
    reply = await client.call(SERVER, FindNode(name), timeout_s=timeout_s)
    assert reply.next_cursor == name


def in_turn(*scripts: Callable[[FrameStream], Awaitable[None]]) -> Callable[[FrameStream], Awaitable[None]]:
    """Each stream follows the next script, and those after the last one the last."""
    started = 0

    async def script(frames: FrameStream) -> None:
        nonlocal started
        started += 1
        await scripts[min(started, len(scripts)) - 1](frames)

    return script


# Streams are kept


async def test_one_classical_stream_serves_one_call_after_the_other() -> None:
    async with running_client({KAD: scripted(answer_all)}) as (client, opener):
        for number in range(10):
            await ask(client, b"%d" % number)
        assert len(opener.opened) == 1
        assert client.calls == 10


async def test_200_calls_at_once_use_4_classical_streams_and_each_gets_its_own_answer() -> None:
    async with running_client({KAD: RpcServer(echo).serve_classical}) as (client, opener):
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(ask, client, b"%d" % number)
        assert len(opener.opened) == STREAMS_PER_PEER
        assert len(opener.open_streams) == STREAMS_PER_PEER


async def test_a_classical_stream_has_one_request_in_flight() -> None:
    async def check(frames: FrameStream) -> None:
        while True:
            request = decode_request(await read(frames))
            await wait_all_tasks_blocked()
            assert frames.is_quiet()
            await frames.write_frame(encode_reply(request, await echo(CLIENT, request)))

    async with running_client({KAD: scripted(check)}) as (client, _), trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(ask, client, b"%d" % number)


async def test_a_peer_that_does_not_list_the_pipelined_protocol_is_asked_on_the_classical_one() -> None:
    async with running_client({KAD: scripted(answer_all)}) as (client, opener):
        await ask(client, b"a")
        assert opener.opened[0].get_protocol() == KAD


async def test_the_pipelined_protocol_is_not_offered_when_it_is_switched_off() -> None:
    server = RpcServer(echo)
    handlers = {KAD: server.serve_classical, RPC: server.serve_pipelined}
    async with running_client(handlers, rpc_protocol=None) as (client, opener):
        await ask(client, b"a")
        assert opener.opened[0].get_protocol() == KAD


async def test_calls_that_find_no_stream_open_one_between_them() -> None:
    server = RpcServer(echo)
    async with running_client({RPC: server.serve_pipelined, KAD: server.serve_classical}) as (client, opener):
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(ask, client, b"%d" % number)
        assert [stream.get_protocol() for stream in opener.opened] == [RPC]


async def test_after_400_calls_cancelled_at_any_point_no_stream_is_left_over_and_all_places_are_free() -> None:
    rng = random.Random(1)

    async def cancelled(client: RpcClient, checkpoints: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, client, b"cancelled")
            for _ in range(checkpoints):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    async with running_client({KAD: RpcServer(echo).serve_classical}, rpc_protocol=None) as (client, opener):
        for _ in range(40):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(cancelled, client, rng.randint(0, 40))
                    nursery.start_soon(ask, client, b"ask")
        state = client._peers[SERVER]
        assert state.places.value == STREAMS_PER_PEER
        assert len(opener.open_streams) == len(state.idle) <= STREAMS_PER_PEER


# Streams that the peer closes


async def test_streams_that_were_closed_while_they_idled_are_replaced_though_all_four_were() -> None:
    served: list[FrameStream] = []

    async def remember(frames: FrameStream) -> None:
        served.append(frames)
        await answer_all(frames)

    async with running_client({KAD: scripted(remember)}) as (client, opener):
        async with trio.open_nursery() as nursery:
            for number in range(STREAMS_PER_PEER):
                nursery.start_soon(ask, client, b"%d" % number)
        for end, frames in zip((FrameStream.close, FrameStream.reset) * 2, served, strict=True):
            await end(frames)
        await ask(client, b"again")
        await wait_all_tasks_blocked()
        assert len(opener.opened) == STREAMS_PER_PEER + 1
        assert opener.open_streams == opener.opened[-1:]


async def test_a_fresh_stream_that_is_closed_without_an_answer_is_not_tried_again() -> None:
    async def hang_up(frames: FrameStream) -> None:
        await read(frames)

    async def only_kept_ones_are_retried(frames: FrameStream) -> None:
        request = decode_request(await read(frames))
        await frames.write_frame(encode_reply(request, await echo(CLIENT, request)))

    script = in_turn(only_kept_ones_are_retried, hang_up)
    async with running_client({KAD: scripted(script)}, rpc_protocol=None) as (client, opener):
        await ask(client, b"a")
        with pytest.raises(QueryError, match="without an answer"):
            await ask(client, b"b")
        assert not opener.open_streams


async def test_a_classical_peer_that_comes_back_with_the_pipelined_protocol_is_asked_on_that() -> None:
    server = RpcServer(echo)
    async with running_client({KAD: server.serve_classical}) as (client, opener):
        await ask(client, b"a")
        await opener.opened[0].reset()
        opener.handlers = {RPC: server.serve_pipelined}
        await ask(client, b"b")
        assert opener.opened[-1].get_protocol() == RPC


async def test_a_pipelined_peer_that_comes_back_without_the_protocol_is_asked_on_the_classical_one() -> None:
    server = RpcServer(echo)
    async with running_client({RPC: server.serve_pipelined}) as (client, opener):
        await ask(client, b"a")
        await opener.opened[0].reset()
        opener.handlers = {KAD: server.serve_classical}
        await ask(client, b"b")
        assert opener.opened[-1].get_protocol() == KAD


# Peers that answer wrongly, or not


async def test_a_peer_that_never_answers_is_given_up_at_the_deadline(autojump_clock: MockClock) -> None:
    async def say_nothing(_frames: FrameStream) -> None:
        await trio.sleep_forever()

    async with running_client({KAD: scripted(say_nothing)}) as (client, opener):
        with pytest.raises(QueryError, match="did not answer within 10 s"):
            await ask(client, b"a")
        assert trio.current_time() == 10.0
        assert not opener.open_streams


async def test_opening_a_stream_is_within_the_deadline(autojump_clock: MockClock) -> None:
    async def never_opens(_peer: PeerId, _protocols: object) -> StreamOpener:
        await trio.sleep_forever()
        raise AssertionError

    client = RpcClient(never_opens, kad_protocol=KAD, rpc_protocol=RPC)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        with pytest.raises(QueryError, match="did not answer within 3 s"):
            await client.call(SERVER, Ping(), timeout_s=3.0)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "answer",
    [
        b"\xff\xff",  # no message
        encode_reply(Ping(), Reply()),  # of another type
        encode_reply(FindNode(b"other"), Reply()),  # to another key
    ],
)
async def test_an_answer_that_is_none_is_the_peers_fault_and_its_stream_is_reset(answer: bytes) -> None:
    async def answer_so(frames: FrameStream) -> None:
        await read(frames)
        await frames.write_frame(answer)
        await trio.sleep_forever()

    async with running_client({KAD: scripted(answer_so)}) as (client, opener):
        with pytest.raises(RemoteProtocolError) as caught:
            await ask(client, b"a")
        assert caught.value.peer is not None
        assert not opener.open_streams


async def test_a_second_answer_that_comes_with_the_first_is_dropped_with_its_stream() -> None:
    async def answer_twice(frames: FrameStream) -> None:
        request = decode_request(await read(frames))
        await frames._stream.write(encode_frame(encode_reply(request, Reply(next_cursor=b"a"))) * 2)
        await trio.sleep_forever()

    async with running_client({KAD: scripted(in_turn(answer_twice, answer_all))}) as (client, opener):
        await ask(client, b"a")
        assert not opener.open_streams
        await ask(client, b"b")


async def test_a_second_answer_that_comes_later_is_not_taken_for_that_of_the_next_request() -> None:
    async def answer_twice(frames: FrameStream) -> None:
        request = decode_request(await read(frames))
        for _ in range(2):
            await frames.write_frame(encode_reply(request, Reply(next_cursor=b"a")))
            await wait_all_tasks_blocked()
        await trio.sleep_forever()

    async with running_client({KAD: scripted(in_turn(answer_twice, answer_all))}) as (client, _):
        await ask(client, b"a")
        await wait_all_tasks_blocked()
        with pytest.raises(RemoteProtocolError, match="another request"):
            await ask(client, b"b")
        await ask(client, b"c")


async def test_an_answer_that_comes_byte_by_byte_is_read() -> None:
    async def dribble(frames: FrameStream) -> None:
        request = decode_request(await read(frames))
        body = encode_reply(request, Reply(next_cursor=b"a"))
        for byte in bytes((len(body),)) + body:
            await frames._stream.write(bytes((byte,)))

    async with running_client({KAD: scripted(dribble)}) as (client, _):
        await ask(client, b"a")


async def test_a_peer_that_cannot_be_reached_is_a_query_error_and_is_tried_anew_by_the_next_call() -> None:
    async with running_client({}) as (client, opener):
        with pytest.raises(QueryError, match="speaks none"):
            await ask(client, b"a")
        opener.handlers = {KAD: scripted(answer_all)}
        await ask(client, b"b")


async def test_a_peer_that_stalls_fills_only_its_own_places(autojump_clock: MockClock) -> None:
    async def say_nothing(_frames: FrameStream) -> None:
        await trio.sleep_forever()

    other = PeerId(b"\x00\x01o")
    async with running_client({KAD: scripted(say_nothing)}) as (client, opener), trio.open_nursery() as nursery:

        async def ask_in_vain() -> None:
            with pytest.raises(QueryError):
                await client.call(SERVER, Ping(), timeout_s=100.0)

        for _ in range(STREAMS_PER_PEER + 1):
            nursery.start_soon(ask_in_vain)
        await wait_all_tasks_blocked()
        assert len(opener.opened) == STREAMS_PER_PEER
        opener.handlers = {KAD: scripted(answer_all)}
        await client.call(other, Ping(), timeout_s=1.0)
        assert trio.current_time() == 0.0


# ADD_PROVIDER


async def test_add_provider_succeeds_when_the_peer_ends_the_stream() -> None:
    taken: list[Request] = []

    async def take(frames: FrameStream) -> None:
        taken.append(decode_request(await read(frames)))
        assert await frames.read_frame(idle_timeout_s=float("inf")) is None

    async with running_client({KAD: scripted(take)}) as (client, opener):
        assert await client.call(SERVER, PROVIDE, timeout_s=1.0) == Reply()
        assert taken == [PROVIDE]
        assert not opener.open_streams


async def test_add_provider_fails_when_the_peer_resets_the_stream() -> None:
    async def refuse(frames: FrameStream) -> None:
        await read(frames)
        await frames.reset()

    async with running_client({KAD: scripted(refuse)}) as (client, _):
        with pytest.raises(QueryError):
            await client.call(SERVER, PROVIDE, timeout_s=1.0)


async def test_the_answer_that_py_libp2p_gives_to_add_provider_is_not_taken_for_the_next_one() -> None:
    async with running_client({KAD: scripted(answer_all)}) as (client, _):
        await client.call(SERVER, PROVIDE, timeout_s=1.0)
        await ask(client, b"a")


# Bounds and the end


async def test_a_request_larger_than_a_frame_is_not_sent() -> None:
    request = PutValue((Record(Key(b"/x/k"), bytes(MAX_FRAME_BYTES)),))
    async with running_client({KAD: scripted(answer_all)}) as (client, opener):
        with pytest.raises(UnsentError, match="fit"):  # the peer cannot help it
            await client.call(SERVER, request, timeout_s=1.0)
        assert not opener.opened


@pytest.mark.parametrize("protocol", [KAD, RPC])
async def test_the_streams_of_the_peer_unused_for_longest_are_closed(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc_client, "MAX_PEERS", 3)
    server = RpcServer(echo)
    handler = server.serve_classical if protocol == KAD else server.serve_pipelined
    async with running_client({protocol: handler}) as (client, opener):
        for name in (b"a", b"b", b"c", b"a", b"d"):
            await client.call(PeerId(b"\x00\x01" + name), Ping(), timeout_s=1.0)
        await wait_all_tasks_blocked()
        of_a, of_b, of_c, of_d = opener.opened
        assert opener.open_streams == [of_a, of_c, of_d]
        assert of_b.is_reset


async def test_the_stream_of_a_call_under_way_is_not_kept_when_its_peer_was_forgotten_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rpc_client, "MAX_PEERS", 1)
    may_answer = trio.Event()

    async def answer_late(peer: PeerId, request: Request) -> Reply:
        if isinstance(request, FindNode):
            await may_answer.wait()
        return await echo(peer, request)

    async with running_client({KAD: RpcServer(answer_late).serve_classical}) as (client, opener):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, client, b"a")
            await wait_all_tasks_blocked()
            await client.call(PeerId(b"\x00\x01d"), Ping(), timeout_s=1.0)
            may_answer.set()
        await wait_all_tasks_blocked()
        forgotten, kept = opener.opened
        assert forgotten.is_reset
        assert opener.open_streams == [kept]


@pytest.mark.parametrize("protocol", [KAD, RPC])
async def test_a_client_that_ends_lets_go_of_its_streams_and_of_those_who_wait(protocol: str) -> None:
    async def answer_once(frames: FrameStream) -> None:
        if protocol == KAD:
            await answer_all(frames)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        opener = StreamOpener(CLIENT, nursery, {protocol: scripted(answer_once)})
        client = RpcClient(opener, kad_protocol=KAD, rpc_protocol=RPC)
        running = trio.CancelScope()

        async def run() -> None:
            with running:
                await client.run()

        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        if protocol == KAD:
            await ask(client, b"a")
            running.cancel()
        else:
            nursery.start_soon(cancel_when_all_wait, running)
            with pytest.raises(QueryError):
                await ask(client, b"a")
        await wait_all_tasks_blocked()
        assert opener.opened
        assert not opener.open_streams
        with pytest.raises(UnsentError, match="closing"):  # who asks is not who has ended it
            await ask(client, b"a")
        nursery.cancel_scope.cancel()


async def test_nothing_is_asked_before_the_client_runs() -> None:
    async with trio.open_nursery() as nursery:
        client = RpcClient(StreamOpener(CLIENT, nursery, {}), kad_protocol=KAD, rpc_protocol=RPC)
        with pytest.raises(LocalProtocolError):
            await ask(client, b"a")


async def cancel_when_all_wait(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


@pytest.mark.parametrize("request_", [GetValue(Key(b"/x/k")), GetProviders(b"\x00\x01h"), Ping()])
async def test_every_request_passes(request_: Request) -> None:
    async with running_client({KAD: RpcServer(echo).serve_classical}) as (client, _):
        assert await client.call(SERVER, request_, timeout_s=1.0) == Reply()
