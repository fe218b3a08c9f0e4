"""A client made of nothing but py-libp2p's own streams and protobuf classes, against a running node on loopback."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.abc import IHost, INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.ping import PingService
from libp2p.kad_dht.pb.kademlia_pb2 import Message, Record
from libp2p.network.stream.exceptions import StreamEOF, StreamReset
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.stream_muxer.yamux.yamux import YamuxStream
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr
from multiaddr.protocols import P_P2P

from prime_dht.config import DhtConfig, Mode, NodeConfig
from prime_dht.errors import ValidationError
from prime_dht.node import PrimeDHT, open_node
from prime_dht.testing.stock_host import stock_host
from prime_dht.wire.frames import MAX_FRAME_BYTES, encode_varint

PRIME, IPFS = "/prime", "/ipfs"
MULTIHASH = bytes.fromhex("1220e536c7f88d731f374dccb568aff6f56e838a19382e488039b1ca8ad2599e82fe")
RFC_3339_NANOSECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")
PUBLIC_KEY = create_new_key_pair(bytes(32)).public_key
PK_KEY = b"/pk/" + ID.from_pubkey(PUBLIC_KEY).to_bytes()
SMALL, LARGE = b"small", b"larger"


class Longest:
    """Of several values the longest is best; there must be one."""

    def validate(self, key: bytes, value: bytes) -> None:
        if not value:
            raise ValidationError("there is no value")

    def select(self, key: bytes, values: Sequence[bytes]) -> int:
        return max(range(len(values)), key=lambda index: len(values[index]))


class KadStream:
    """One stream of the Kademlia protocol, as py-libp2p would drive it."""

    def __init__(self, stream: INetStream) -> None:
        assert isinstance(stream, NetStream)
        self.stream = stream

    async def send(self, *messages: Message) -> None:
        await self.stream.write(b"".join(encode_varint_prefixed(each.SerializeToString()) for each in messages))

    async def receive(self) -> Message:
        return Message.FromString(await read_varint_prefixed_bytes_limited(self.stream, MAX_FRAME_BYTES))

    async def ask(self, message: Message) -> Message:
        await self.send(message)
        return await self.receive()

    async def is_reset(self) -> bool:
        """Wait for the end of the stream; whether it was a reset, which py-libp2p may report as an end."""
        muxed = self.stream.muxed_stream
        assert isinstance(muxed, YamuxStream)
        with pytest.raises((StreamEOF, StreamReset)):
            await self.stream.read(1)
        return muxed.reset_received


class Client:
    """A stock host that is connected to one node."""

    def __init__(self, host: IHost, node: PrimeDHT, protocol: str) -> None:
        self.host = host
        self.node = node
        self._protocol = protocol

    @property
    def own_id(self) -> bytes:
        return self.host.get_id().to_bytes()

    @property
    def own_address(self) -> bytes:
        return bytes(self.host.get_addrs()[0].decapsulate_code(P_P2P).to_bytes())

    async def open(self) -> KadStream:
        return KadStream(await self.host.new_stream(ID(self.node.peer_id), [TProtocol(self._protocol)]))

    async def ask(self, message: Message) -> Message:
        kad = await self.open()
        reply = await kad.ask(message)
        await kad.stream.close()
        return reply

    async def offences(self) -> int:
        return (await self.node.stats()).offences


@asynccontextmanager
async def client_of_a_node(prefix: str = PRIME, *, fast_transport: bool = True) -> AsyncIterator[Client]:
    config = NodeConfig(
        listen=("/ip4/127.0.0.1/tcp/0",),
        fast_transport=fast_transport,
        dht=DhtConfig(protocol_prefix=prefix, mode=Mode.SERVER),
    )
    with trio.fail_after(20):
        async with open_node(config, validators={"x": Longest()}) as node, stock_host() as host:
            await host.connect(info_from_p2p_addr(Multiaddr(node.addresses()[0])))
            yield Client(host, node, f"{prefix}/kad/1.0.0")


@pytest.fixture(autouse=True)
def _no_dial_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libp2p.network.swarm._HAPPY_EYEBALLS_DELAY", 0)


def find_node(key: bytes) -> Message:
    return Message(type=Message.FIND_NODE, key=key)


def put_value(key: bytes, value: bytes) -> Message:
    return Message(type=Message.PUT_VALUE, key=key, record=Record(key=key, value=value))


def get_value(key: bytes) -> Message:
    return Message(type=Message.GET_VALUE, key=key)


def add_provider(*providers: Message.Peer) -> Message:
    return Message(type=Message.ADD_PROVIDER, key=MULTIHASH, providerPeers=providers)


def get_providers() -> Message:
    return Message(type=Message.GET_PROVIDERS, key=MULTIHASH)


@pytest.mark.parametrize("fast_transport", [True, False])
@pytest.mark.parametrize("prefix", [PRIME, IPFS])
async def test_all_six_requests_are_answered_in_order_on_one_stream(prefix: str, fast_transport: bool) -> None:
    async with client_of_a_node(prefix, fast_transport=fast_transport) as client:
        kad = await client.open()
        own = Message.Peer(id=client.own_id, addrs=[client.own_address])
        await kad.send(
            find_node(client.node.peer_id),
            put_value(PK_KEY, PUBLIC_KEY.serialize()),
            get_value(PK_KEY),
            add_provider(own),  # has no reply: the next one is that of GET_PROVIDERS
            get_providers(),
            Message(type=Message.PING),
        )
        found = await kad.receive()
        assert (found.type, found.key) == (Message.FIND_NODE, client.node.peer_id)
        assert [peer.id for peer in found.closerPeers] == [client.node.peer_id]
        echo = await kad.receive()
        assert (echo.type, echo.key) == (Message.PUT_VALUE, PK_KEY)
        assert (echo.record.key, echo.record.value) == (PK_KEY, PUBLIC_KEY.serialize())
        assert RFC_3339_NANOSECONDS.fullmatch(echo.record.timeReceived)
        got = await kad.receive()
        assert (got.type, got.record) == (Message.GET_VALUE, echo.record)
        providers = await kad.receive()
        assert (providers.type, providers.key) == (Message.GET_PROVIDERS, MULTIHASH)
        assert [(peer.id, list(peer.addrs)) for peer in providers.providerPeers] == [
            (client.own_id, [client.own_address])
        ]
        assert (await kad.receive()).type == Message.PING
        await kad.stream.close()
        assert await client.offences() == 0


async def test_the_node_names_itself_with_the_addresses_it_listens_on() -> None:
    async with client_of_a_node() as client:
        (itself,) = (await client.ask(find_node(client.node.peer_id))).closerPeers
        addresses = [f"{Multiaddr(raw)}/p2p/{ID(itself.id)}" for raw in itself.addrs]
        assert addresses == client.node.addresses()


async def test_a_hundred_requests_on_one_stream_are_answered_in_order() -> None:
    async with client_of_a_node() as client:
        kad = await client.open()
        await kad.send(*(find_node(b"%d" % number) for number in range(100)))
        assert [(await kad.receive()).key for _ in range(100)] == [b"%d" % number for number in range(100)]
        await kad.stream.close()


async def test_half_closing_behind_the_request_does_not_abort_the_reply() -> None:
    async with client_of_a_node() as client:
        kad = await client.open()
        await kad.send(find_node(b"x"))
        await kad.stream.close_write()
        assert (await kad.receive()).type == Message.FIND_NODE
        with pytest.raises(StreamEOF):
            await kad.stream.read(1)


async def test_a_request_that_comes_byte_by_byte_is_answered() -> None:
    async with client_of_a_node() as client:
        kad = await client.open()
        for byte in encode_varint_prefixed(find_node(b"x").SerializeToString()):
            await kad.stream.write(bytes((byte,)))
        assert (await kad.receive()).type == Message.FIND_NODE
        await kad.stream.close()


async def test_streams_that_are_reset_after_no_message_harm_nobody() -> None:
    async with client_of_a_node() as client:
        for _ in range(20):
            await (await client.open()).stream.reset()
        await client.ask(Message(type=Message.PING))
        assert await client.offences() == 0


BREACHES = {
    "an empty FIND_NODE key": encode_varint_prefixed(find_node(b"").SerializeToString()),
    "no protobuf": encode_varint_prefixed(b"\xff\xff\xff"),
    "a frame over 4 MiB": encode_varint(MAX_FRAME_BYTES + 1),
    "a length that is not minimal": b"\x80\x00",
    "a length of ten bytes": b"\xff" * 10,
    "a record of another key": encode_varint_prefixed(
        Message(key=b"/x/k", record=Record(key=b"/x/other", value=b"v")).SerializeToString()
    ),
    "no record": encode_varint_prefixed(Message(key=b"/x/k").SerializeToString()),
    "another's provider record": encode_varint_prefixed(
        add_provider(
            Message.Peer(id=MULTIHASH, addrs=[Multiaddr("/ip4/10.0.0.1/tcp/1").to_bytes()])
        ).SerializeToString()
    ),
    "an entry set that is none": encode_varint_prefixed(put_value(b"/prime/k", b"\xff\xff").SerializeToString()),
}


@pytest.mark.parametrize("breach", BREACHES.values(), ids=BREACHES)
async def test_a_breach_resets_its_stream_and_is_counted_and_connection_and_node_live_on(breach: bytes) -> None:
    async with client_of_a_node() as client:
        other = await client.open()
        kad = await client.open()
        await kad.stream.write(breach)
        assert await kad.is_reset()
        assert await client.offences() == 1
        assert (await other.ask(Message(type=Message.PING))).type == Message.PING
        await other.stream.close()
        assert client.host.get_network().connections
        assert client.node.addresses()


async def test_a_provider_record_without_an_address_is_refused() -> None:
    async with client_of_a_node() as client:
        kad = await client.open()
        await kad.send(add_provider(Message.Peer(id=client.own_id)))
        assert await kad.is_reset()
        assert not (await client.ask(get_providers())).providerPeers


@pytest.mark.parametrize(("key", "value"), [(b"/unknown/k", b"v"), (b"/x/k", b""), (PK_KEY, b"\x08\x01\x12\x01k")])
async def test_a_record_that_its_namespace_does_not_take_resets_the_stream(key: bytes, value: bytes) -> None:
    async with client_of_a_node() as client:
        kad = await client.open()
        await kad.send(put_value(key, value))
        assert await kad.is_reset()
        assert await client.offences() == 0  # namespaces and validators differ between honest nodes
        reply = await client.ask(get_value(key))
        assert not reply.HasField("record")


async def test_a_better_record_replaces_a_worse_one_and_not_the_other_way_round() -> None:
    async with client_of_a_node() as client:
        await client.ask(put_value(b"/x/k", SMALL))
        await client.ask(put_value(b"/x/k", LARGE))
        kad = await client.open()
        await kad.send(put_value(b"/x/k", SMALL))
        assert await kad.is_reset()
        assert (await client.ask(get_value(b"/x/k"))).record.value == LARGE


async def test_an_echo_carries_no_stuffed_peers() -> None:
    async with client_of_a_node() as client:
        message = put_value(b"/x/k", SMALL)
        stuffing = [Message.Peer(id=client.own_id, addrs=[client.own_address])] * 50
        message.closerPeers.extend(stuffing)
        message.providerPeers.extend(stuffing)
        echo = await client.ask(message)
        assert echo.record.value == SMALL
        assert not echo.closerPeers
        assert not echo.providerPeers


async def test_a_plain_client_is_told_nothing_by_extension_but_that_the_node_replicates() -> None:
    """Of our fields, from number 100 on, a reply to a plain request carries field 113 alone, which others skip."""
    async with client_of_a_node() as client:
        for message in (find_node(b"x"), get_value(b"/x/k"), get_providers(), Message(type=Message.PING)):
            reply = await client.ask(message)
            plain = Message.FromString(reply.SerializeToString())
            plain.DiscardUnknownFields()
            extensions = reply.ByteSize() - plain.ByteSize()
            assert extensions == len(b"\x88\x07\x01")


async def test_2000_addresses_are_trimmed_and_the_reply_stays_small() -> None:
    async with client_of_a_node() as client:
        kad = await client.open()
        addresses = [Multiaddr(f"/ip4/10.0.0.1/tcp/{port}").to_bytes() for port in range(1, 2001)]
        await kad.send(add_provider(Message.Peer(id=client.own_id, addrs=addresses)))
        reply = await kad.ask(get_providers())
        assert list(reply.providerPeers[0].addrs) == addresses[:16]
        await kad.stream.close()


async def test_a_record_of_prime_that_another_node_signed_passes_through_a_foreign_client() -> None:
    """What a node of ours stores can be fetched and put elsewhere by who knows nothing of entries."""
    async with client_of_a_node() as client:
        await client.node.put("model", b"weights")
        got = await client.ask(get_value(b"/prime/model"))
        assert RFC_3339_NANOSECONDS.fullmatch(got.record.timeReceived)
        echo = await client.ask(put_value(b"/prime/model", got.record.value))
        assert echo.record.value == got.record.value


async def test_the_host_still_answers_libp2ps_own_ping() -> None:
    async with client_of_a_node() as client:
        assert len(await PingService(client.host).ping(ID(client.node.peer_id), 1)) == 1
