"""An RPC client among peers in memory: real requests and replies, scripted streams."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import trio

from prime_dht.ids import PeerId
from prime_dht.net.rpc_client import RpcClient
from prime_dht.net.streams import FrameBudget, FrameStream, StreamLostError
from prime_dht.testing.streams import WINDOW_BYTES, MemoryStream, StreamOpener

KAD, RPC = "/prime/kad/1.0.0", "/prime/rpc/1.0.0"
CLIENT, SERVER = PeerId(b"\x00\x01c"), PeerId(b"\x00\x01s")

Script = Callable[[FrameStream], Awaitable[None]]
"""What a peer does with one stream."""


def scripted(script: Script) -> Callable[[MemoryStream], Awaitable[None]]:
    """A stream handler of whole frames. The peer closes the stream when the script ends or the client resets it."""

    async def handle(stream: MemoryStream) -> None:
        frames = FrameStream(stream, budget=FrameBudget(64 << 20), frame_timeout_s=math.inf)
        with suppress(StreamLostError):
            await script(frames)
        await frames.close()

    return handle


async def read(frames: FrameStream) -> bytes:
    """The next frame, which must come."""
    body = await frames.read_frame(idle_timeout_s=math.inf)
    assert body is not None
    return body


@asynccontextmanager
async def running_client(
    handlers: Mapping[str, Callable[[MemoryStream], Awaitable[None]]],
    *,
    rpc_protocol: str | None = RPC,
    window_bytes: int = WINDOW_BYTES,
) -> AsyncIterator[tuple[RpcClient, StreamOpener]]:
    """A client that runs within the block, and what opens its streams. Scripts end with the block."""
    async with trio.open_nursery() as nursery:
        opener = StreamOpener(CLIENT, nursery, handlers, window_bytes=window_bytes)
        client = RpcClient(opener, kad_protocol=KAD, rpc_protocol=rpc_protocol)
        await nursery.start(client.run)
        yield client, opener
        nursery.cancel_scope.cancel()
