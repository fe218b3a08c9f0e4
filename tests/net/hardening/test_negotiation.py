"""A3: lines of multistream-select."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.io.abc import ReadWriteCloser
from libp2p.peer.peerinfo import PeerInfo
from libp2p.protocol_muxer.exceptions import MultiselectClientError, MultiselectError
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.utils import encode_delim, encode_uvarint

from prime_dht.net.hardening.negotiation import MAX_LINE_BYTES
from prime_dht.net.hardening.parts import parts_of

OpenHost = Callable[..., AbstractAsyncContextManager[BasicHost]]

HEADER = encode_delim(b"/multistream/1.0.0")
ENORMOUS_BYTES = 1 << 40


class Peer(ReadWriteCloser):
    """Says ``script``, then as many zeros as it is asked for (but not more than 64 KiB at once)."""

    def __init__(self, script: bytes) -> None:
        self._script = script
        self.most_asked_for = 0
        self.heard: list[bytes] = []

    async def read(self, n: int | None = None) -> bytes:
        assert n is not None
        self.most_asked_for = max(self.most_asked_for, n)
        said, self._script = self._script[:n], self._script[n:]
        return said or bytes(min(n, 64 << 10))

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.heard.append(data)

    async def close(self) -> None: ...

    def get_remote_address(self) -> None:
        return None


def servers_of(host: BasicHost) -> list[Multiselect]:
    upgrader = parts_of(host)[1].upgrader
    return [host.multiselect, upgrader.security_multistream.multiselect, upgrader.muxer_multistream.multiselect]


def clients_of(host: BasicHost) -> list[MultiselectClient]:
    upgrader = parts_of(host)[1].upgrader
    return [
        host.multiselect_client,
        upgrader.security_multistream.multiselect_client,
        upgrader.muxer_multistream.multiselect_client,
    ]


async def test_a_stock_host_asks_for_a_line_of_any_length(stock: OpenHost) -> None:
    async with stock(listen=()) as host:
        for server in servers_of(host):
            peer = Peer(HEADER + encode_uvarint(ENORMOUS_BYTES))
            with pytest.raises(MultiselectError):
                await server.negotiate(MultiselectCommunicator(peer))
            assert peer.most_asked_for == ENORMOUS_BYTES


@pytest.mark.parametrize("length", [MAX_LINE_BYTES + 1, ENORMOUS_BYTES, 2**64 - 1])
@pytest.mark.parametrize("before", [b"", HEADER])
async def test_ours_asks_for_no_more_than_a_line_as_server(ours: OpenHost, before: bytes, length: int) -> None:
    async with ours(listen=()) as host:
        for server in servers_of(host):
            peer = Peer(before + encode_uvarint(length))
            with pytest.raises(MultiselectError):
                await server.negotiate(MultiselectCommunicator(peer))
            assert peer.most_asked_for <= MAX_LINE_BYTES


async def test_ours_asks_for_no_more_than_a_line_as_client(ours: OpenHost) -> None:
    async with ours(listen=()) as host:
        for client in clients_of(host):
            peer = Peer(HEADER + encode_uvarint(ENORMOUS_BYTES))
            with pytest.raises(MultiselectClientError):
                await client.select_one_of(["/test"], MultiselectCommunicator(peer))  # type: ignore[list-item]
            assert peer.most_asked_for <= MAX_LINE_BYTES


async def test_a_line_that_is_no_text_is_an_unexpected_error_on_a_stock_host(stock: OpenHost) -> None:
    async with stock(listen=()) as host:
        for server in servers_of(host):
            with pytest.raises(UnicodeDecodeError):
                await server.negotiate(MultiselectCommunicator(Peer(encode_delim(b"\xff\xfe\xfa"))))


async def test_a_line_that_is_no_text_fails_the_negotiation_on_ours(ours: OpenHost) -> None:
    async with ours(listen=()) as host:
        for server in servers_of(host):
            with pytest.raises(MultiselectError):
                await server.negotiate(MultiselectCommunicator(Peer(encode_delim(b"\xff\xfe\xfa"))))
        for client in clients_of(host):
            with pytest.raises(MultiselectClientError):
                await client.select_one_of(["/test"], MultiselectCommunicator(Peer(encode_delim(b"\xff"))))  # type: ignore[list-item]


async def test_a_name_as_long_as_a_line_can_be_is_accepted(ours: OpenHost) -> None:
    name = "/" + "x" * (MAX_LINE_BYTES - 2)

    async def handler(_: object) -> None: ...

    async with ours(listen=()) as host:
        host.set_stream_handler(name, handler)  # type: ignore[arg-type]
        selected, _ = await host.multiselect.negotiate(
            MultiselectCommunicator(Peer(HEADER + encode_delim(name.encode())))
        )
        assert selected == name


RATHER, ALSO = "/test/rather", "/test/also"
BOTH = [RATHER, ALSO]


def line(text: str) -> bytes:
    return bytes(encode_delim(text.encode()))


@pytest.mark.parametrize(
    ("answers", "selected", "said"),
    [
        ([RATHER], RATHER, [HEADER + line(RATHER)]),
        (["na", ALSO], ALSO, [HEADER + line(RATHER), line(ALSO)]),
        (["/multistream/1.0.0", "/multistream/1.0.0", RATHER], RATHER, [HEADER + line(RATHER), HEADER, line(RATHER)]),
    ],
)
async def test_a_client_of_ours_sends_its_first_choice_with_the_header(
    ours: OpenHost, answers: list[str], selected: str, said: list[bytes]
) -> None:
    async with ours(listen=()) as host:
        for client in clients_of(host):
            peer = Peer(HEADER + b"".join(map(line, answers)))
            assert await client.select_one_of(BOTH, MultiselectCommunicator(peer)) == selected  # type: ignore[arg-type]
            assert peer.heard == said


async def test_a_client_of_ours_that_everything_is_refused_fails(ours: OpenHost) -> None:
    async with ours(listen=()) as host:
        for client in clients_of(host):
            peer = Peer(HEADER + line("na") + line("na"))
            with pytest.raises(MultiselectClientError, match="not supported"):
                await client.select_one_of(BOTH, MultiselectCommunicator(peer))  # type: ignore[arg-type]


@pytest.mark.parametrize("served", BOTH)
async def test_hosts_of_both_kinds_agree_on_what_the_server_speaks(
    ours: OpenHost, stock: OpenHost, served: str
) -> None:
    async def answer(stream: INetStream) -> None:
        await stream.write(b"here")
        await stream.close()

    for client_kind, server_kind in ((ours, stock), (stock, ours), (ours, ours)):
        async with client_kind() as client, server_kind() as server:
            server.set_stream_handler(TProtocol(served), answer)
            await client.connect(PeerInfo(server.get_id(), server.get_addrs()))
            stream = await client.new_stream(server.get_id(), [TProtocol(each) for each in BOTH])
            assert stream.get_protocol() == served
            assert await stream.read(4) == b"here"
            await stream.close()
