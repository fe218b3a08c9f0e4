"""What the RPC server tells of requests that it did not carry out."""

from __future__ import annotations

from itertools import cycle

import pytest
import trio
from trio.testing import MockClock

from prime_dht.errors import StorageError
from prime_dht.ids import PeerId
from prime_dht.net.rpc_server import TELL_AGAIN_S, RpcServer
from prime_dht.net.streams import FrameBudget, FrameStream
from prime_dht.testing.rpc import CLIENT, SERVER, read
from prime_dht.testing.streams import stream_pair
from prime_dht.wire.calls import Refusal, decode_answer, encode_call
from prime_dht.wire.kad import Ping, Reply, Request, encode_request


async def test_of_each_failure_that_lasts_one_is_warned_of_now_and_then(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk is one: whoever puts much would fill the log, which may be on the same disk."""

    failures = cycle(("the disk is full", "input/output error"))

    async def fail(_peer: PeerId, _request: Request) -> Reply:
        raise StorageError(next(failures))

    here, there = stream_pair(CLIENT, SERVER)
    frames = FrameStream(here, budget=FrameBudget(1 << 20))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(RpcServer(fail).serve_pipelined, there)
        for minute in range(3):
            for number in range(100):
                await frames.write_frame(encode_call(number, encode_request(Ping())))
                assert decode_answer(await read(frames)) == (number, Refusal("this node failed"))
            assert sum(record.levelname == "WARNING" for record in caplog.records) == 2 * (minute + 1)
            await trio.sleep(TELL_AGAIN_S)
        await here.close()
