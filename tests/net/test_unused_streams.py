"""Which of the streams that a client keeps are ended because nobody uses them, and that nobody misses them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import pytest
import trio
from libp2p.abc import INetStream
from trio.testing import MockClock

from prime_dht.ids import PeerId
from prime_dht.net import rpc_client
from prime_dht.net.rpc_client import KEPT_UNUSED, UNUSED_S, RpcClient
from prime_dht.net.rpc_server import RpcServer
from prime_dht.net.streams import FrameStream
from prime_dht.testing.rpc import KAD, RPC, read, running_client, scripted
from prime_dht.wire.kad import Ping, Reply, Request, decode_request, encode_reply

TIMEOUT_S = 10.0
LONGER_S = 2 * UNUSED_S + 1
"""By then a stream that is not used has been found unused."""


def answer(_peer: PeerId, _request: Request) -> Reply:
    return Reply()


def peer_called(number: int) -> PeerId:
    return PeerId(b"\x00\x01%03d" % number)


async def ask(client: RpcClient, *numbers: int) -> None:
    for number in numbers:
        await client.call(peer_called(number), Ping(), timeout_s=TIMEOUT_S)


async def ask_at(client: RpcClient, begins_s: float) -> None:
    await trio.sleep(begins_s)
    await client.call(peer_called(1), Ping(), timeout_s=2 * LONGER_S)


@pytest.fixture
def few_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_client, "KEPT_UNUSED", 2)


async def test_of_the_streams_that_nobody_uses_those_used_last_stay(autojump_clock: MockClock) -> None:
    async with running_client({RPC: RpcServer(answer).serve_pipelined}) as (client, opener):
        await ask(client, *range(KEPT_UNUSED + 5), 0)
        await trio.sleep(LONGER_S)
        first, *others = opener.opened
        assert opener.open_streams == [first, *others[-KEPT_UNUSED + 1 :]]
        assert all(stream.is_reset for stream in opener.opened if stream not in opener.open_streams)


@pytest.mark.usefixtures("few_kept")
async def test_a_stream_that_is_used_now_and_then_stays_however_many_there_are(autojump_clock: MockClock) -> None:
    async with running_client({RPC: RpcServer(answer).serve_pipelined}) as (client, opener):
        for _ in range(10):
            await ask(client, 1, 2, 3, 4)
            await trio.sleep(UNUSED_S * 0.9)
        assert len(opener.opened) == len(opener.open_streams) == 4


@pytest.mark.usefixtures("few_kept")
async def test_a_stream_on_which_a_call_waits_stays(autojump_clock: MockClock) -> None:
    async def fall_silent(frames: FrameStream) -> None:
        await read(frames)
        await trio.sleep_forever()

    async with running_client({RPC: scripted(fall_silent)}) as (client, opener), trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(partial(client.call, peer_called(number), Ping(), timeout_s=math.inf))
        await trio.sleep(LONGER_S)
        assert len(opener.opened) == len(opener.open_streams) == 4
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("few_kept")
async def test_a_peer_whose_stream_was_ended_is_asked_on_a_new_one(autojump_clock: MockClock) -> None:
    async with running_client({RPC: RpcServer(answer).serve_pipelined}) as (client, opener):
        await ask(client, 1, 2, 3)
        await trio.sleep(LONGER_S)
        await ask(client, 1)
        assert len(opener.opened) == 4
        assert len(opener.open_streams) == 3


@pytest.mark.usefixtures("few_kept")
async def test_nothing_is_kept_of_a_peer_without_a_stream(autojump_clock: MockClock) -> None:
    async with running_client({RPC: RpcServer(answer).serve_pipelined}) as (client, _):
        await ask(client, 1, 2, 3)
        await trio.sleep(LONGER_S + UNUSED_S)
        assert list(client._peers) == [peer_called(2), peer_called(3)]


async def test_a_peer_to_whom_a_stream_is_being_opened_is_not_forgotten(autojump_clock: MockClock) -> None:
    async with running_client({RPC: RpcServer(answer).serve_pipelined}) as (_, opener):

        async def open_slowly(peer: PeerId, protocols: Sequence[str]) -> INetStream:
            await trio.sleep(LONGER_S)
            return await opener(peer, protocols)

        client = RpcClient(open_slowly, kad_protocol=KAD, rpc_protocol=RPC)
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            async with trio.open_nursery() as callers:
                for begins_s in (0, UNUSED_S + 1):
                    callers.start_soon(ask_at, client, begins_s)
            nursery.cancel_scope.cancel()
        assert len(opener.opened) == 1


async def test_classical_streams_that_nobody_uses_are_ended_all_of_them(autojump_clock: MockClock) -> None:
    async with running_client({KAD: RpcServer(answer).serve_classical}) as (client, opener):
        await ask(client, 1, 2)
        await trio.sleep(LONGER_S)
        assert not opener.open_streams
        assert not client._peers
        await ask(client, 1)
        assert len(opener.opened) == 3


async def test_a_classical_stream_that_is_used_now_and_then_stays(autojump_clock: MockClock) -> None:
    async with running_client({KAD: RpcServer(answer).serve_classical}) as (client, opener):
        for _ in range(10):
            await ask(client, 1, 2)
            await trio.sleep(UNUSED_S * 0.9)
        assert len(opener.opened) == len(opener.open_streams) == 2


async def test_a_classical_stream_on_which_a_call_waits_stays_and_is_kept_after_it(autojump_clock: MockClock) -> None:
    async def answer_late(frames: FrameStream) -> None:
        while True:
            request = decode_request(await read(frames))
            await trio.sleep(LONGER_S)
            await frames.write_frame(encode_reply(request, Reply()))

    async with running_client({KAD: scripted(answer_late)}) as (client, opener):
        for _ in range(2):
            await client.call(peer_called(1), Ping(), timeout_s=2 * LONGER_S)
        assert len(opener.opened) == len(opener.open_streams) == 1
