"""P6, A8: identify."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.identity.identify_push.identify_push import ID_PUSH as IDENTIFY_PUSH
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import create_signed_peer_record
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes
from multiaddr import Multiaddr
from trio.testing import MockClock

from prime_dht.net.hardening.identify import (
    AT_ONCE,
    ATTEMPTS,
    IDENTIFY_TIMEOUT_S,
    MAX_ADDRESSES,
    MAX_IDENTIFY_BYTES,
    MAX_PROTOCOLS,
    MAX_RECORD_BYTES,
)
from prime_dht.net.host import USER_AGENT

OpenHost = Callable[..., AbstractAsyncContextManager[BasicHost]]

CROWD = AT_ONCE + 4


async def connect(client: BasicHost, server: BasicHost) -> None:
    await client.connect(PeerInfo(server.get_id(), server.get_transport_addrs()))


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(600):
        while not condition():  # noqa: ASYNC110 (nobody sets an event for it, and the clock jumps)
            await trio.sleep(1)


class Crowd:
    """Peers that are asked to identify themselves and take their time."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = trio.Event()

    @asynccontextmanager
    async def of(self, server: BasicHost, ours: OpenHost) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for _ in range(CROWD):
                client = await stack.enter_async_context(ours(listen=()))
                client.set_stream_handler(IDENTIFY, self._answer)
                await connect(client, server)
            # Whatever can happen without an answer has happened when the clock has had to jump.
            await trio.sleep(1)
            yield

    async def _answer(self, stream: INetStream) -> None:
        self.asked += 1
        await self.may_answer.wait()
        await stream.write(encode_varint_prefixed(Identify(protocols=["/x"]).SerializeToString()))


async def test_a_stock_host_asks_all_at_once(stock: OpenHost, ours: OpenHost, patient_clock: MockClock) -> None:
    crowd = Crowd()
    async with stock() as server, crowd.of(server, ours):
        assert crowd.asked == CROWD
        crowd.may_answer.set()
        await until(lambda: len(server._identified_peers) == CROWD)


async def test_ours_asks_in_turn_and_everybody_gets_one(ours: OpenHost, patient_clock: MockClock) -> None:
    crowd = Crowd()
    async with ours() as server, crowd.of(server, ours):
        assert crowd.asked == AT_ONCE
        crowd.may_answer.set()
        await until(lambda: len(server._identified_peers) == CROWD)
        assert crowd.asked == CROWD


async def test_silent_strangers_do_not_hold_up_those_whom_ours_has_dialled(
    ours: OpenHost, patient_clock: MockClock
) -> None:
    crowd = Crowd()
    async with ours() as server, ours() as dialled, crowd.of(server, ours):
        await connect(server, dialled)
        await trio.sleep(1)
        assert dialled.get_id() in server._identified_peers


class SilentOnce:
    """Answers the second time it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, stream: INetStream) -> None:
        self.asked += 1
        if self.asked == 1:
            await trio.sleep_forever()
        await stream.write(encode_varint_prefixed(Identify(protocols=["/x"]).SerializeToString()))


async def test_a_stock_host_never_learns_of_a_peer_that_was_too_slow(
    stock: OpenHost, ours: OpenHost, patient_clock: MockClock
) -> None:
    async with stock() as server, ours(listen=()) as client:
        client.set_stream_handler(IDENTIFY, SilentOnce())
        await connect(client, server)
        await trio.sleep(10 * IDENTIFY_TIMEOUT_S)
        assert not server._identified_peers


async def test_ours_asks_again(ours: OpenHost, patient_clock: MockClock) -> None:
    async with ours() as server, ours(listen=()) as client:
        client.set_stream_handler(IDENTIFY, SilentOnce())
        await connect(client, server)
        await until(lambda: client.get_id() in server._identified_peers)
        assert server.get_peerstore().get_protocols(client.get_id()) == ["/x"]


def boast(addresses: int, protocols: int) -> Identify:
    return Identify(
        listen_addrs=[Multiaddr(f"/ip4/192.0.2.1/tcp/{port}").to_bytes() for port in range(1, addresses + 1)],
        protocols=[f"/protocol/{number}" for number in range(protocols)],
    )


async def learns_from_the_answer(server: BasicHost, client: BasicHost, message: Identify) -> bool:
    """Whether a host believes an identify, or goes on to ask again."""
    asked = 0

    async def answer(stream: INetStream) -> None:
        nonlocal asked
        asked += 1
        await stream.write(encode_varint_prefixed(message.SerializeToString()))

    client.set_stream_handler(IDENTIFY, answer)
    await connect(client, server)
    await until(lambda: client.get_id() in server._identified_peers or asked == ATTEMPTS)
    return client.get_id() in server._identified_peers


async def test_a_stock_host_believes_an_identify_of_a_hundred_kilobytes(
    stock: OpenHost, ours: OpenHost, patient_clock: MockClock
) -> None:
    async with stock() as server, ours(listen=()) as client:
        assert await learns_from_the_answer(server, client, boast(900, 9000))
        assert len(server.get_peerstore().get_protocols(client.get_id())) == 9000


async def test_ours_does_not_read_an_identify_that_is_too_large(ours: OpenHost, patient_clock: MockClock) -> None:
    async with ours() as server, ours(listen=()) as client:
        assert not await learns_from_the_answer(server, client, boast(900, 9000))
        assert not server.get_peerstore().has_peer(client.get_id())


async def push(client: BasicHost, server: BasicHost, message: Identify) -> None:
    await connect(client, server)
    while client.get_id() not in server._identified_peers:
        await trio.lowlevel.checkpoint()
    stream = await client.new_stream(server.get_id(), [IDENTIFY_PUSH])
    await stream.write(encode_varint_prefixed(message.SerializeToString()))
    with pytest.raises(StreamError):
        await stream.read(1)


async def test_a_stock_host_keeps_all_that_a_peer_says_of_itself(stock: OpenHost, ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with stock() as server, ours(listen=()) as client:
            await push(client, server, boast(900, 9000))
            assert len(server.get_peerstore().addrs(client.get_id())) == 900
            assert len(server.get_peerstore().get_protocols(client.get_id())) == 9000


@pytest.mark.parametrize(("addresses", "protocols"), [(900, 2000), (40, 200)])
async def test_ours_keeps_a_bounded_part_of_what_a_peer_says_of_itself(
    ours: OpenHost, addresses: int, protocols: int
) -> None:
    message = boast(addresses, protocols)
    assert message.ByteSize() < MAX_IDENTIFY_BYTES
    with trio.fail_after(30):
        async with ours() as server, ours(listen=()) as client:
            await push(client, server, message)
            assert len(server.get_peerstore().addrs(client.get_id())) == MAX_ADDRESSES
            assert len(server.get_peerstore().get_protocols(client.get_id())) == MAX_PROTOCOLS


async def test_ours_does_not_keep_a_signed_record_beyond_a_size(ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with ours() as server, ours(listen=()) as client:
            addresses = [Multiaddr(raw) for raw in boast(900, 0).listen_addrs]
            record = create_signed_peer_record(client.get_id(), addresses, client.get_private_key()).marshal_envelope()
            assert MAX_RECORD_BYTES < len(record) < MAX_IDENTIFY_BYTES
            await push(client, server, Identify(protocols=["/x"], signedPeerRecord=record))
            assert server.get_peerstore().get_protocols(client.get_id()) == ["/x"]
            assert server.get_peerstore().addrs(client.get_id()) == []


async def test_ours_resets_a_push_that_is_too_large_and_learns_nothing(ours: OpenHost) -> None:
    message = boast(900, 9000)
    assert message.ByteSize() > MAX_IDENTIFY_BYTES
    with trio.fail_after(30):
        async with ours() as server, ours(listen=()) as client:
            await push(client, server, message)
            assert "/protocol/0" not in server.get_peerstore().get_protocols(client.get_id())


async def identify(client: BasicHost, server: BasicHost) -> Identify:
    stream = await client.new_stream(server.get_id(), [IDENTIFY])
    message = Identify.FromString(await read_varint_prefixed_bytes(stream))
    await stream.close()
    return message


async def answer_s(client: BasicHost, server: BasicHost, clock: MockClock) -> float:
    """The time a server that listens nowhere, and so dials, waits before it says who it is."""
    await connect(server, client)
    clock.autojump_threshold = 0.002  # it polls
    start = trio.current_time()
    await identify(client, server)
    return trio.current_time() - start


async def test_a_stock_host_that_does_not_listen_answers_late(
    stock: OpenHost, ours: OpenHost, patient_clock: MockClock
) -> None:
    async with stock(listen=()) as server, ours() as client:
        assert await answer_s(client, server, patient_clock) >= 0.5


async def test_ours_answers_at_once(ours: OpenHost, patient_clock: MockClock) -> None:
    async with ours(listen=()) as server, ours() as client:
        assert await answer_s(client, server, patient_clock) == 0


@pytest.mark.parametrize(("settings", "agent"), [({}, USER_AGENT), ({"user_agent": "trainer/7"}, "trainer/7")])
async def test_ours_says_what_it_is_and_where_it_listens(ours: OpenHost, settings: dict[str, str], agent: str) -> None:
    with trio.fail_after(30):
        async with ours(**settings) as server, ours() as client:
            await connect(client, server)
            message = await identify(client, server)
            assert message.agent_version == agent
            assert [Multiaddr(raw) for raw in message.listen_addrs] == server.get_transport_addrs()
            assert message.HasField("signedPeerRecord")


async def test_ours_learns_nothing_of_a_peer_that_has_gone(ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with ours() as server, ours() as client:
            await connect(client, server)
            connection = server.get_network().get_connections(client.get_id())[0]
            await client.disconnect(server.get_id())
            while server.get_peerstore().has_peer(client.get_id()) or not connection.is_closed:
                await trio.lowlevel.checkpoint()
            guard = server._identify_peer.__self__  # type: ignore[attr-defined]
            assert not await guard._learn(connection, boast(1, 1))
            assert not server.get_peerstore().has_peer(client.get_id())
