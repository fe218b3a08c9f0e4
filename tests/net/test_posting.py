"""Requests that are posted: no task waits for their answers, and each is told what came of it, once."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.config import DhtConfig
from prime_dht.errors import QueryError, RefusedError, RemoteProtocolError, UnsentError
from prime_dht.ids import Key, PeerId, peer_text
from prime_dht.net.host import HostSettings, open_host
from prime_dht.net.identity import new_identity
from prime_dht.net.network import OnOutcome
from prime_dht.net.overlay import Overlay
from prime_dht.net.rpc_client import RpcClient
from prime_dht.net.streams import FrameStream
from prime_dht.testing.rpc import KAD, RPC, SERVER, Script, read, running_client, scripted
from prime_dht.wire.calls import MAX_CALLS_IN_FLIGHT, Refusal, decode_call, encode_answer
from prime_dht.wire.frames import MAX_FRAME_BYTES
from prime_dht.wire.kad import (
    FindNode,
    Ping,
    PutValue,
    Record,
    Reply,
    Request,
    decode_request,
    encode_reply,
    encode_request,
)

TIMEOUT_S = 10.0

Outcome = Reply | QueryError | RemoteProtocolError


def answer_to(body: bytes) -> bytes:
    number, message = decode_call(body)
    return encode_answer(number, encode_reply(decode_request(message), Reply(replicates=True)))


async def answer_next(frames: FrameStream) -> None:
    await frames.write_frame(answer_to(await read(frames)))


async def answer_all(frames: FrameStream) -> None:
    while (body := await frames.read_frame(idle_timeout_s=math.inf)) is not None:
        await frames.write_frame(answer_to(body))


async def fall_silent(frames: FrameStream) -> None:
    await answer_next(frames)
    await trio.sleep_forever()


async def break_off(frames: FrameStream) -> None:
    """After three more requests."""
    await answer_next(frames)
    for _ in range(3):
        await read(frames)
    await frames.reset()


def one_after_the_other(*scripts: Script) -> Script:
    """Each stream follows the next of these."""
    left = iter(scripts)

    async def next_script(frames: FrameStream) -> None:
        await next(left)(frames)

    return next_script


def post(client: RpcClient, outcomes: list[Outcome], *, timeout_s: float = TIMEOUT_S) -> bool:
    return client.post(SERVER, Ping(), timeout_s=timeout_s, then=outcomes.append)


async def opened(client: RpcClient) -> list[Outcome]:
    """Have a stream opened, as a call does; returns where outcomes of posts go."""
    await client.call(SERVER, Ping(), timeout_s=TIMEOUT_S)
    return []


async def test_a_post_is_given_its_answer() -> None:
    async with running_client({RPC: scripted(answer_all)}) as (client, opener):
        outcomes = await opened(client)
        assert post(client, outcomes)
        assert client.calls == 2
        await wait_all_tasks_blocked()
        assert outcomes == [Reply(replicates=True)]
        assert len(opener.opened) == 1


@pytest.mark.parametrize("is_put", [False, True])
async def test_a_post_that_is_refused_is_told_why_and_by_whom_it_cannot_be_stored(is_put: bool) -> None:
    async def refuse(frames: FrameStream) -> None:
        await answer_next(frames)
        number, _ = decode_call(await read(frames))
        await frames.write_frame(encode_answer(number, Refusal("the disk is full")))
        await answer_all(frames)

    async with running_client({RPC: scripted(refuse)}) as (client, opener):
        outcomes = await opened(client)
        request = PutValue((Record(Key(b"/x/k"), b"value"),)) if is_put else Ping()
        assert client.post(SERVER, request, timeout_s=TIMEOUT_S, then=outcomes.append)
        await wait_all_tasks_blocked()
        (outcome,) = outcomes
        assert isinstance(outcome, QueryError)
        assert isinstance(outcome, RefusedError) == is_put, "who refuses a question is no use to whoever asks"
        assert "refused the request: the disk is full" in str(outcome)
        assert opener.open_streams == opener.opened


@pytest.mark.parametrize("protocol", [RPC, KAD])
async def test_there_is_no_post_without_a_pipelined_stream_that_is_open(protocol: str) -> None:
    async def answer_classically(frames: FrameStream) -> None:
        request = decode_request(await read(frames))
        await frames.write_frame(encode_reply(request, Reply()))

    script = answer_all if protocol == RPC else answer_classically
    async with running_client({protocol: scripted(script)}) as (client, opener):
        outcomes: list[Outcome] = []
        assert not post(client, outcomes)
        assert not opener.opened
        await client.call(SERVER, Ping(), timeout_s=TIMEOUT_S)
        assert post(client, outcomes) is (protocol == RPC)
        assert client.calls == (2 if protocol == RPC else 1)


async def test_what_is_no_answer_fails_every_post_of_its_stream_as_the_peers_fault() -> None:
    async def answer_wrongly(frames: FrameStream) -> None:
        await answer_next(frames)
        await read(frames)
        await frames.write_frame(encode_answer(300, b""))
        await trio.sleep_forever()

    async with running_client({RPC: scripted(answer_wrongly)}) as (client, _):
        outcomes = await opened(client)
        for _ in range(3):
            assert post(client, outcomes)
        await wait_all_tasks_blocked()
        assert [type(outcome) for outcome in outcomes] == [RemoteProtocolError] * 3
        assert all(isinstance(one, RemoteProtocolError) and one.peer == peer_text(SERVER) for one in outcomes)


async def test_a_reply_that_is_garbage_fails_its_own_post_only() -> None:
    async def garble(frames: FrameStream) -> None:
        await answer_next(frames)
        number, _ = decode_call(await read(frames))
        await frames.write_frame(encode_answer(number, b"\xff\xff"))
        await answer_all(frames)

    async with running_client({RPC: scripted(garble)}) as (client, _):
        outcomes = await opened(client)
        assert post(client, outcomes)
        assert post(client, outcomes)
        await wait_all_tasks_blocked()
        assert [type(outcome) for outcome in outcomes] == [RemoteProtocolError, Reply]


async def test_posts_whose_stream_is_lost_are_repeated_on_a_fresh_one() -> None:
    async with running_client({RPC: scripted(one_after_the_other(break_off, answer_all))}) as (client, opener):
        outcomes = await opened(client)
        for _ in range(3):
            assert post(client, outcomes)
        await wait_all_tasks_blocked()
        assert outcomes == [Reply(replicates=True)] * 3
        assert len(opener.opened) == 2


async def test_posts_are_repeated_no_more_than_once() -> None:
    asked = 0

    async def break_off_at_once(frames: FrameStream) -> None:
        nonlocal asked
        for _ in range(3):
            await read(frames)
            asked += 1
        await frames.reset()

    scripts = one_after_the_other(break_off, break_off_at_once, break_off_at_once)
    async with running_client({RPC: scripted(scripts)}) as (client, opener):
        outcomes = await opened(client)
        for _ in range(3):
            assert post(client, outcomes)
        await wait_all_tasks_blocked()
        assert len(outcomes) == 3
        assert all(isinstance(outcome, QueryError) for outcome in outcomes)
        assert asked == 3
        assert len(opener.opened) == 2


async def test_a_post_to_a_stream_on_which_nothing_is_answered_any_more_fails_and_it_is_abandoned(
    autojump_clock: MockClock,
) -> None:
    async with running_client({RPC: scripted(one_after_the_other(fall_silent, answer_all))}) as (client, opener):
        outcomes = await opened(client)
        await trio.sleep(1)
        assert post(client, outcomes, timeout_s=2.0)
        await trio.sleep(2.5)
        (outcome,) = outcomes
        assert isinstance(outcome, QueryError)
        assert "did not answer within 2 s" in str(outcome)
        assert not opener.open_streams
        assert not post(client, outcomes)
        await client.call(SERVER, Ping(), timeout_s=TIMEOUT_S)
        assert len(opener.opened) == 2


async def test_one_post_that_is_not_answered_in_time_takes_no_other_down(autojump_clock: MockClock) -> None:
    async def ignore_one(frames: FrameStream) -> None:
        await answer_next(frames)
        await read(frames)
        await answer_all(frames)

    async with running_client({RPC: scripted(ignore_one)}) as (client, opener):
        outcomes = await opened(client)
        assert post(client, outcomes, timeout_s=2.0)
        await trio.sleep(1)
        assert post(client, outcomes)
        await trio.sleep(2)
        assert [type(outcome) for outcome in outcomes] == [Reply, QueryError]
        assert opener.open_streams == opener.opened


async def test_there_is_no_post_when_all_places_are_taken_and_an_answer_makes_room() -> None:
    may_answer = trio.Event()

    async def hold_back(frames: FrameStream) -> None:
        await answer_next(frames)
        await may_answer.wait()
        await answer_all(frames)

    async with running_client({RPC: scripted(hold_back)}) as (client, _):
        outcomes = await opened(client)
        assert all(post(client, outcomes) for _ in range(MAX_CALLS_IN_FLIGHT))
        assert not post(client, outcomes)
        assert client.calls == 1 + MAX_CALLS_IN_FLIGHT
        may_answer.set()
        await wait_all_tasks_blocked()
        assert post(client, outcomes)
        await wait_all_tasks_blocked()
        assert outcomes == [Reply(replicates=True)] * (MAX_CALLS_IN_FLIGHT + 1)


async def test_what_fits_in_no_frame_is_not_posted() -> None:
    async with running_client({RPC: scripted(answer_all)}) as (client, _):
        outcomes = await opened(client)
        too_large = PutValue((Record(Key(b"/x/k"), bytes(MAX_FRAME_BYTES)),))
        assert not client.post(SERVER, too_large, timeout_s=TIMEOUT_S, then=outcomes.append)
        assert post(client, outcomes)
        await wait_all_tasks_blocked()
        assert outcomes == [Reply(replicates=True)]


async def test_when_a_client_ends_its_posts_are_told_once_and_nothing_is_posted_any_more() -> None:
    async with running_client({RPC: scripted(fall_silent)}) as (client, _):
        outcomes = await opened(client)
        for _ in range(3):
            assert post(client, outcomes)
        await wait_all_tasks_blocked()
    assert len(outcomes) == 3
    assert all(isinstance(outcome, UnsentError) for outcome in outcomes), "the peer cannot help it"
    assert not post(client, outcomes)


async def test_however_many_posts_one_wrong_answer_fails_the_peer_is_charged_once(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    posted: list[OnOutcome] = []
    outcomes: list[Outcome] = []

    def note(_peer: PeerId, _request: Request, *, timeout_s: float, then: OnOutcome) -> bool:
        posted.append(then)
        return True

    async def serve_nobody(_peer: PeerId, _request: Request) -> Reply:
        raise AssertionError

    async with open_host(HostSettings(key_pair=new_identity(), listen=())) as host:
        overlay = Overlay(host, DhtConfig(), serve_nobody)
        monkeypatch.setattr(overlay._client, "post", note)
        for _ in range(2):
            for _ in range(3):
                assert overlay.post(SERVER, FindNode(b"x"), timeout_s=TIMEOUT_S, then=outcomes.append)
            await trio.sleep(1)
            for then in posted:
                then(RemoteProtocolError("an answer to call 7, which was not asked"))
            posted.clear()
            await trio.sleep(1)
        assert len(outcomes) == 6
        assert overlay.counters().offences == 2
        while overlay.counters().backed_off == 0:
            assert overlay.post(SERVER, FindNode(b"x"), timeout_s=TIMEOUT_S, then=outcomes.append)
            await trio.sleep(1)
            posted.pop()(RemoteProtocolError("and another"))
        assert not overlay.post(SERVER, FindNode(b"x"), timeout_s=TIMEOUT_S, then=outcomes.append)


async def test_a_request_that_goes_out_several_times_in_a_row_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[Request] = []

    def encode(request: Request) -> bytes:
        encoded.append(request)
        return encode_request(request)

    monkeypatch.setattr("prime_dht.net.rpc_client.encode_request", encode)
    first, second = FindNode(b"first"), FindNode(b"second")
    async with running_client({RPC: scripted(answer_all)}) as (client, _):
        outcomes = await opened(client)
        encoded.clear()
        for request in (first, first, second, first):
            assert client.post(SERVER, request, timeout_s=TIMEOUT_S, then=outcomes.append)
        await wait_all_tasks_blocked()
        assert [outcome for outcome in outcomes if isinstance(outcome, Reply)] == outcomes
        assert (len(outcomes), encoded) == (4, [first, second, first])
