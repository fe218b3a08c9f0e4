"""Our client against unmodified py-libp2p hosts on loopback: its own Kademlia server, and scripts that misbehave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.records.validator import Validator
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited
from multiaddr.protocols import P_P2P

from prime_dht.config import DhtConfig
from prime_dht.errors import LocalProtocolError, QueryError, RemoteProtocolError
from prime_dht.ids import Key, PeerId
from prime_dht.net.host import HostSettings, open_host
from prime_dht.net.identity import new_identity
from prime_dht.net.overlay import Overlay
from prime_dht.testing.stock_host import stock_host
from prime_dht.wire.frames import MAX_FRAME_BYTES, encode_varint
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
)

KAD = TProtocol("/ipfs/kad/1.0.0")
MULTIHASH = bytes.fromhex("1220e536c7f88d731f374dccb568aff6f56e838a19382e488039b1ca8ad2599e82fe")
KEY = Key(b"/x/k")

Script = Callable[[INetStream], Awaitable[None]]


@pytest.fixture(autouse=True)
def _no_dial_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libp2p.network.swarm._HAPPY_EYEBALLS_DELAY", 0)


async def no_handler(_peer: PeerId, _request: Request) -> Reply:
    raise LocalProtocolError("a client is not asked")


class Asking:
    """Our client, and the stock host that it asks."""

    def __init__(self, overlay: Overlay, server: IHost) -> None:
        self.overlay = overlay
        self.server = server

    async def ask(self, request: Request, *, timeout_s: float = 5.0) -> Reply:
        return await self.overlay.call(PeerId(self.server.get_id().to_bytes()), request, timeout_s=timeout_s)

    def kad_streams(self) -> int:
        """Our streams of the protocol that are open."""
        connections = self.overlay._host.get_network().get_connections(self.server.get_id())
        streams = [stream for connection in connections for stream in connection.get_streams()]
        return sum(stream.get_protocol() == KAD for stream in streams)


@asynccontextmanager
async def asking(prepare: Callable[[IHost], None], *, fast_transport: bool = True) -> AsyncIterator[Asking]:
    settings = HostSettings(key_pair=new_identity(), listen=("/ip4/127.0.0.1/tcp/0",), fast_transport=fast_transport)
    with trio.fail_after(20):
        async with stock_host() as server, open_host(settings) as host, trio.open_nursery() as nursery:
            prepare(server)
            overlay = Overlay(host, DhtConfig(protocol_prefix="/ipfs"), no_handler)
            await nursery.start(overlay.run)
            address = server.get_addrs()[0].decapsulate_code(P_P2P).to_bytes()
            overlay.learn_addresses(PeerId(server.get_id().to_bytes()), [address], source="manual")
            yield Asking(overlay, server)
            nursery.cancel_scope.cancel()


def script(*scripts: Script) -> Callable[[IHost], None]:
    """Serve each stream with the next script, and those after the last one with the last."""
    started = 0

    async def handle(stream: INetStream) -> None:
        nonlocal started
        started += 1
        try:
            await scripts[min(started, len(scripts)) - 1](stream)
        except StreamError:
            await stream.reset()

    return lambda host: host.set_stream_handler(KAD, handle)


async def read_request(stream: INetStream) -> Message:
    return Message.FromString(await read_varint_prefixed_bytes_limited(stream, MAX_FRAME_BYTES))


def answer_to(request: Message) -> bytes:
    return encode_varint_prefixed(Message(type=request.type, key=request.key).SerializeToString())


async def answer_all(stream: INetStream) -> None:
    while True:
        await stream.write(answer_to(await read_request(stream)))


# py-libp2p's own Kademlia


class AnyValue(Validator):
    def validate(self, key: str, value: bytes) -> None:
        if value == b"bad":
            raise ValueError("bad")

    def select(self, key: str, values: list[bytes]) -> int:
        return len(values) - 1


def serve_kad_dht(host: IHost) -> None:
    dht = KadDHT(host, DHTMode.SERVER)
    dht.register_validator("x", AnyValue())


@pytest.mark.parametrize("fast_transport", [True, False])
async def test_py_libp2ps_own_server_answers_every_request(fast_transport: bool) -> None:
    async with asking(serve_kad_dht, fast_transport=fast_transport) as asker:
        server_id = PeerId(asker.server.get_id().to_bytes())
        found = await asker.ask(FindNode(server_id))
        assert [peer.peer for peer in found.closer] == [server_id]
        assert not found.replicates
        echo = await asker.ask(PutValue((Record(KEY, b"v"),)))
        assert echo.record is not None
        assert echo.record.value == b"v"
        got = await asker.ask(GetValue(KEY))
        assert got.record is not None
        assert (got.record.key, got.record.value) == (KEY, b"v")
        overlay = asker.overlay
        await asker.ask(AddProvider(MULTIHASH, (PeerRecord(overlay.local, overlay.own_addresses()),)))
        named = await asker.ask(GetProviders(MULTIHASH))
        assert [(peer.peer, peer.addresses) for peer in named.providers] == [(overlay.local, overlay.own_addresses())]
        assert await asker.ask(Ping()) == Reply()


async def test_a_record_that_py_libp2p_refuses_is_a_query_error_and_the_next_request_is_answered() -> None:
    async with asking(serve_kad_dht) as asker:
        with pytest.raises(QueryError):
            await asker.ask(PutValue((Record(KEY, b"bad"),)))
        assert (await asker.ask(GetValue(KEY))).record is None


async def test_100_calls_at_once_share_4_streams_to_py_libp2p() -> None:
    async with asking(serve_kad_dht) as asker:
        server_id = PeerId(asker.server.get_id().to_bytes())

        async def find() -> None:
            assert (await asker.ask(FindNode(server_id))).closer[0].peer == server_id

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(find)
        assert asker.kad_streams() == 4


# Scripts


async def test_a_peer_that_closes_its_streams_between_requests_is_asked_on_fresh_ones() -> None:
    async def answer_one(stream: INetStream) -> None:
        await stream.write(answer_to(await read_request(stream)))
        await stream.close()

    async with asking(script(answer_one)) as asker:
        for _ in range(5):
            await asker.ask(FindNode(b"target"))


async def test_a_peer_that_resets_its_streams_between_requests_is_asked_on_fresh_ones() -> None:
    to_reset, answered = trio.open_memory_channel[INetStream](1)

    async def answer_one(stream: INetStream) -> None:
        await stream.write(answer_to(await read_request(stream)))
        await to_reset.send(stream)

    async with asking(script(answer_one)) as asker:
        for _ in range(5):
            await asker.ask(FindNode(b"target"))
            await (await answered.receive()).reset()


async def test_an_answer_that_comes_byte_by_byte_is_read() -> None:
    async def dribble(stream: INetStream) -> None:
        for byte in answer_to(await read_request(stream)):
            await stream.write(bytes((byte,)))
        await answer_all(stream)

    async with asking(script(dribble)) as asker:
        for _ in range(2):
            assert await asker.ask(FindNode(b"target")) == Reply()


async def test_a_peer_that_never_answers_is_a_query_error_and_leaves_no_stream() -> None:
    async def say_nothing(stream: INetStream) -> None:
        await trio.sleep_forever()

    async with asking(script(say_nothing, answer_all)) as asker:
        with pytest.raises(QueryError, match="did not answer"):
            await asker.ask(Ping(), timeout_s=0.2)
        assert asker.kad_streams() == 0
        assert await asker.ask(Ping()) == Reply()


@pytest.mark.parametrize(
    "garbage",
    [
        encode_varint_prefixed(b"\xff\xff\xff"),
        encode_varint(MAX_FRAME_BYTES + 1),
        b"\xff" * 10,
        encode_varint_prefixed(Message(type=Message.GET_VALUE, key=b"another").SerializeToString()),
    ],
)
async def test_garbage_is_the_peers_fault_and_its_stream_is_reset(garbage: bytes) -> None:
    async def answer_garbage(stream: INetStream) -> None:
        await read_request(stream)
        await stream.write(garbage)
        await trio.sleep_forever()

    async with asking(script(answer_garbage, answer_all)) as asker:
        with pytest.raises(RemoteProtocolError, match=ID(asker.server.get_id().to_bytes()).to_base58()):
            await asker.ask(FindNode(b"target"))
        assert asker.kad_streams() == 0
        await asker.ask(FindNode(b"target"))


async def test_a_peer_that_resets_every_stream_is_a_query_error() -> None:
    async def reset(stream: INetStream) -> None:
        await read_request(stream)
        await stream.reset()

    async with asking(script(reset)) as asker:
        with pytest.raises(QueryError):
            await asker.ask(Ping())
        assert asker.kad_streams() == 0


async def test_two_answers_to_one_request_are_not_taken_for_two_requests() -> None:
    async def answer_twice(stream: INetStream) -> None:
        await stream.write(answer_to(await read_request(stream)) * 2)
        await trio.sleep_forever()

    async with asking(script(answer_twice, answer_all)) as asker:
        await asker.ask(FindNode(b"first"))
        assert asker.kad_streams() == 0
        await asker.ask(FindNode(b"second"))


async def test_an_answer_before_any_request_is_not_taken_for_that_of_the_next() -> None:
    async def answer_unasked(stream: INetStream) -> None:
        await stream.write(encode_varint_prefixed(Message(type=Message.FIND_NODE, key=b"guess").SerializeToString()))
        await trio.sleep_forever()

    async with asking(script(answer_unasked)) as asker:
        with pytest.raises(RemoteProtocolError):
            await asker.ask(FindNode(b"target"))


async def test_a_lost_connection_fails_waiting_calls_at_once() -> None:
    async def hang_up(stream: INetStream) -> None:
        await read_request(stream)
        await stream.muxed_conn.close()

    async with asking(script(hang_up)) as asker:
        with pytest.raises(QueryError):
            await asker.ask(Ping(), timeout_s=1000.0)


async def test_a_peer_without_the_protocol_is_a_query_error_that_says_so() -> None:
    async with asking(lambda _host: None) as asker:
        with pytest.raises(QueryError, match=r"serves no /ipfs/kad/1.0.0"):
            await asker.ask(Ping())
