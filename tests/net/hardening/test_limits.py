"""P12, A6, A7: limits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.host.ping import ID as PING
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.rcmgr import ResourceManager
from libp2p.rcmgr.manager import ResourceLimits
from multiaddr import Multiaddr
from trio.testing import MockClock

from prime_dht.errors import ConfigError
from prime_dht.net.hardening.limits import HostLimits
from prime_dht.net.hardening.parts import parts_of

OpenHost = Callable[..., AbstractAsyncContextManager[BasicHost]]

HOLD = TProtocol("/test/hold/1.0.0")


async def cancelled_dials(client: BasicHost, address: Multiaddr, count: int) -> None:
    """Dials that get as far as the security handshake, and no further."""
    swarm = parts_of(client)[1]
    for _ in range(count):
        with trio.move_on_after(1):
            await swarm.dial_addr(address, ID.from_pubkey(create_new_key_pair().public_key))


async def test_a_stock_host_cannot_dial_after_so_many_cancelled_dials(
    stock: OpenHost, ours: OpenHost, silent_server: Multiaddr, patient_clock: MockClock
) -> None:
    three = ResourceManager(limits=ResourceLimits(max_connections=3))
    async with stock(resource_manager=three) as client, ours() as server:
        await cancelled_dials(client, silent_server, 3)
        assert not client.get_network().get_connections()
        with pytest.raises(Exception, match="unable to connect"):
            await client.connect(PeerInfo(server.get_id(), server.get_transport_addrs()))


async def test_ours_dials_after_any_number_of_cancelled_dials(
    ours: OpenHost, silent_server: Multiaddr, patient_clock: MockClock
) -> None:
    async with ours(max_connections=3) as client, ours() as server:
        await cancelled_dials(client, silent_server, 10)
        await client.connect(PeerInfo(server.get_id(), server.get_transport_addrs()))


async def can_call_while_called(host: BasicHost, peer: BasicHost, streams: int) -> bool:
    """Whether ``host`` can open a stream of its own while a peer has all the streams open that it gets."""
    host.set_stream_handler(HOLD, hold)
    await peer.connect(PeerInfo(host.get_id(), host.get_transport_addrs()))
    for _ in range(streams):
        await peer.new_stream(host.get_id(), [HOLD])
    await trio.sleep(1)
    with trio.move_on_after(60) as patience:
        await host.new_stream(peer.get_id(), [PING])
    return not patience.cancelled_caught


async def hold(_: INetStream) -> None:
    await trio.sleep_forever()


async def test_a_stock_host_whose_streams_are_all_taken_by_a_peer_cannot_call(
    stock: OpenHost, ours: OpenHost, patient_clock: MockClock
) -> None:
    five = ResourceManager(limits=ResourceLimits(max_streams=5))
    async with stock(resource_manager=five) as host, ours() as peer:
        assert not await can_call_while_called(host, peer, 5)


async def test_ours_can_call_whatever_peers_have_open(ours: OpenHost, patient_clock: MockClock) -> None:
    async with ours(max_inbound_streams=5) as host, ours() as peer:
        assert await can_call_while_called(host, peer, 5)


async def test_a_peer_has_as_many_connections_as_allowed(ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with ours(max_connections_per_peer=2) as server, ours(max_connections_per_peer=9) as client:
            swarm = parts_of(client)[1]
            for _ in range(5):
                with suppress(SwarmException):  # by when the client learns that it was refused is chance
                    await swarm.dial_addr(server.get_transport_addrs()[0], server.get_id())
            while len(swarm.get_connections(server.get_id())) > 2:
                await trio.lowlevel.checkpoint()
            assert len(server.get_network().get_connections(client.get_id())) == 2


@pytest.mark.parametrize("name", HostLimits.__dataclass_fields__)
def test_a_limit_is_at_least_one(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, not 0"):
        HostLimits(**{name: 0})
