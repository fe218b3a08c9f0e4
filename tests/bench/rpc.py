"""One request and its answer on a stream that is kept: the limit for all that is made of requests.

Ours is a ``PING``, and a ``FIND_NODE`` that names 15 peers, by the RPC client to the RPC server with nothing else on
either side; 32 in flight share one pipelined stream. py-libp2p's is the same ``PING`` message between two hosts of its
own, written and read with its own classes; 32 in flight take a stream each, since its streams do not pipeline.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from random import Random

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import IncompleteReadError
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.peerinfo import PeerInfo
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes
from multiaddr import Multiaddr

from prime_dht import DhtConfig
from prime_dht.ids import PeerId
from prime_dht.net.host import HostSettings, open_host
from prime_dht.net.overlay import Overlay
from prime_dht.testing.stock_host import stock_host
from prime_dht.wire.kad import FindNode, PeerRecord, Ping, Reply, Request, encode_reply, encode_request

from .measuring import Case, Operation
from .swarm import LOOPBACK, key_pairs

STOCK_RPC = TProtocol("/bench/rpc/1")
STREAMS = 32

_PEERS = tuple(
    PeerRecord(PeerId(b"\x12\x20" + Random(number).randbytes(32)), (Multiaddr("/ip4/192.0.2.1/tcp/4001").to_bytes(),))
    for number in range(15)
)


class Pair:
    """Two of our hosts, and requests from one to the other."""

    def __init__(self, client: Overlay, server: PeerId) -> None:
        self._client = client
        self._server = server

    def cases(self, count: int) -> list[Case]:
        """``PING`` and ``FIND_NODE``, one at a time and 32 in flight."""
        return [
            Case(name=name, in_flight=in_flight, round=partial(self._requests, request, count), requests=self._sent)
            for in_flight in (1, 32)
            for name, request in (("PING", Ping()), ("FIND_NODE", FindNode(self._server)))
        ]

    def _requests(self, request: Request, count: int) -> list[Operation]:
        return [partial(self._call, request)] * count

    async def _call(self, request: Request) -> None:
        await self._client.call(self._server, request, timeout_s=10)

    async def _sent(self) -> int:
        return self._client.counters().requests_sent


@asynccontextmanager
async def open_pair() -> AsyncIterator[Pair]:
    """Two hosts of :func:`prime_dht.net.host.open_host`, connected at the first request."""
    keys = key_pairs()
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        client, server = [
            await stack.enter_async_context(open_host(HostSettings(key_pair=next(keys), listen=(LOOPBACK,))))
            for _ in range(2)
        ]
        overlays = [Overlay(host, DhtConfig(), _answer) for host in (client, server)]
        for overlay in overlays:
            await nursery.start(overlay.run)
            overlay.mount(as_server=True)
        asker, answerer = overlays
        asker.learn_addresses(answerer.local, answerer.own_addresses(), source="bench")
        yield Pair(asker, answerer.local)
        nursery.cancel_scope.cancel()


async def _answer(_peer: PeerId, request: Request) -> Reply:
    return Reply(closer=_PEERS) if isinstance(request, FindNode) else Reply()


class StockPair:
    """Two hosts of py-libp2p's own, and requests on streams that are kept."""

    def __init__(self, streams: list[INetStream]) -> None:
        self._streams = streams
        self._free = trio.Semaphore(len(streams))

    def cases(self, count: int) -> list[Case]:
        """One at a time and 32 in flight."""
        return [
            Case(name="stock py-libp2p RPC", in_flight=in_flight, round=lambda: [self._call] * count)
            for in_flight in (1, STREAMS)
        ]

    async def _call(self) -> None:
        async with self._free:
            stream = self._streams.pop()
            await stream.write(encode_varint_prefixed(encode_request(Ping())))
            await read_varint_prefixed_bytes(stream)
            self._streams.append(stream)


@asynccontextmanager
async def open_stock_pair() -> AsyncIterator[StockPair]:
    """Two of py-libp2p's hosts, connected, with their streams open."""
    async with stock_host() as client, stock_host() as server:
        server.set_stream_handler(STOCK_RPC, _serve_stock)
        await client.connect(PeerInfo(server.get_id(), server.get_addrs()))
        yield StockPair([await client.new_stream(server.get_id(), [STOCK_RPC]) for _ in range(STREAMS)])


async def _serve_stock(stream: INetStream) -> None:
    try:
        while True:
            await read_varint_prefixed_bytes(stream)
            await stream.write(encode_varint_prefixed(encode_reply(Ping(), Reply())))
    except (StreamError, IncompleteReadError):
        await stream.reset()
