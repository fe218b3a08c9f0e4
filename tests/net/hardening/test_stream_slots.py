"""P7: opening streams."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio
from libp2p.abc import INetStream, INetwork
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.network.tag_store import TagStore, TagStoreNotifee
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.stream_muxer.yamux.yamux import Yamux
from trio.testing import MockClock

from prime_dht.net.hardening.parts import parts_of
from prime_dht.net.hardening.stream_slots import OPEN_STREAM_TIMEOUT_S

OpenHost = Callable[..., AbstractAsyncContextManager[BasicHost]]

STOCK_SLOTS = 256
HOLD = TProtocol("/test/hold/1.0.0")


async def hold(_: INetStream) -> None:
    await trio.sleep_forever()


async def connect(client: BasicHost, server: BasicHost) -> tuple[Swarm, ID]:
    """Connect, and wait for the identifies to be over, so that all streams to come are the test's."""
    server.set_stream_handler(HOLD, hold)
    await client.connect(PeerInfo(server.get_id(), server.get_transport_addrs()))
    swarm = parts_of(client)[1]
    connection = swarm.connections[server.get_id()][0]
    while server.get_id() not in client._identified_peers or client.get_id() not in server._identified_peers:
        await trio.lowlevel.checkpoint()
    while connection.get_streams() or getattr(connection.muxed_conn, "streams", ()):
        await trio.lowlevel.checkpoint()
    return swarm, server.get_id()


async def test_the_257th_stream_of_a_stock_host_waits_for_ever(
    stock: OpenHost, ours: OpenHost, patient_clock: MockClock
) -> None:
    async with stock() as client, ours(fast_transport=False, max_inbound_streams_per_peer=1000) as server:
        _, peer_id = await connect(client, server)
        for _ in range(STOCK_SLOTS):
            await client.new_stream(peer_id, [HOLD])
        with trio.move_on_after(60) as for_ever:
            await client.new_stream(peer_id, [HOLD])
        assert for_ever.cancelled_caught


@pytest.mark.parametrize("fast_transport", [False, True])
async def test_a_stream_too_many_of_ours_fails_at_a_deadline(
    ours: OpenHost, patient_clock: MockClock, fast_transport: bool
) -> None:
    async with ours(max_outbound_streams_per_peer=2, fast_transport=fast_transport) as client, ours() as server:
        _, peer_id = await connect(client, server)
        streams = [await client.new_stream(peer_id, [HOLD]) for _ in range(2)]
        start = trio.current_time()
        with pytest.raises(SwarmException, match=r"no stream to .* within 10 s"):
            await client.new_stream(peer_id, [HOLD])
        assert trio.current_time() - start == OPEN_STREAM_TIMEOUT_S
        await streams[0].reset()
        await client.new_stream(peer_id, [HOLD])


async def test_a_stream_that_could_not_be_opened_gives_its_slot_back(ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with ours(max_outbound_streams_per_peer=1) as client, ours() as server:
            swarm, peer_id = await connect(client, server)
            await client.disconnect(peer_id)
            client.get_peerstore().add_addrs(peer_id, [], 0)
            for _ in range(3):
                with pytest.raises(SwarmException, match="no address is known"):
                    await swarm.new_stream(peer_id)
            await connect(client, server)
            await swarm.new_stream(peer_id)


class Blocking(TagStoreNotifee):
    """Does not let a stream be registered until it is told to."""

    def __init__(self) -> None:
        super().__init__(TagStore())
        self.reached = trio.Event()
        self.may_go_on = trio.Event()

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        self.reached.set()
        await self.may_go_on.wait()


async def streams_left_after_a_cancelled_open(client: BasicHost, server: BasicHost) -> int:
    swarm, peer_id = await connect(client, server)
    muxer = swarm.connections[peer_id][0].muxed_conn
    assert isinstance(muxer, Yamux)
    blocking = Blocking()
    swarm.register_notifee(blocking)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(swarm.new_stream, peer_id)
        await blocking.reached.wait()
        nursery.cancel_scope.cancel()
    swarm.remove_notifee(blocking)
    return len(muxer.streams)


async def test_a_cancelled_open_leaves_a_stream_open_on_a_stock_host(stock: OpenHost, ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with stock() as client, ours(fast_transport=False) as server:
            assert await streams_left_after_a_cancelled_open(client, server) == 1


async def test_a_cancelled_open_leaves_nothing_on_ours(ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with ours(fast_transport=False) as client, ours(fast_transport=False) as server:
            assert await streams_left_after_a_cancelled_open(client, server) == 0


async def test_a_slot_comes_back_when_the_connection_closes_while_a_stream_is_opened(ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with ours(max_outbound_streams_per_peer=1) as client, ours() as server:
            swarm, peer_id = await connect(client, server)
            blocking = Blocking()
            swarm.register_notifee(blocking)

            async def open_in_vain() -> None:
                with pytest.raises(SwarmException, match="closed while a stream was opened"):
                    await swarm.new_stream(peer_id)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(open_in_vain)
                await blocking.reached.wait()
                await client.disconnect(peer_id)
                blocking.may_go_on.set()
            swarm.remove_notifee(blocking)
            await connect(client, server)
            await swarm.new_stream(peer_id)
