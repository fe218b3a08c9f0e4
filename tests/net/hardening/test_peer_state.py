"""A9: what is kept of peers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio
from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import PeerStoreError
from multiaddr import Multiaddr

from prime_dht.net.hardening.parts import parts_of

OpenHost = Callable[..., AbstractAsyncContextManager[BasicHost]]


def hear_of_peers(host: BasicHost, count: int) -> None:
    """What the identifies of ``count`` peers leave in the peerstore."""
    for number in range(count):
        host.get_peerstore().add_addr(ID(number.to_bytes(32, "big")), Multiaddr("/ip4/192.0.2.1/tcp/4001"), 7200)


async def test_a_stock_host_loses_its_own_key_after_a_thousand_peers(stock: OpenHost) -> None:
    async with stock(listen=()) as host:
        hear_of_peers(host, 1001)
        with pytest.raises(PeerStoreError):
            host.get_public_key()


async def test_ours_keeps_its_own_key_with_as_many_peers_as_it_may_have(ours: OpenHost) -> None:
    async with ours(listen=(), max_connections=1500) as host:
        hear_of_peers(host, 1500)
        assert ID.from_pubkey(host.get_public_key()) == host.get_id()


async def is_remembered_when_gone(server: BasicHost, client: BasicHost) -> bool:
    await client.connect(PeerInfo(server.get_id(), server.get_transport_addrs()))
    while client.get_id() not in server._identified_peers:
        await trio.lowlevel.checkpoint()
    assert server.get_peerstore().has_peer(client.get_id())
    await client.disconnect(server.get_id())
    # The last that the host does about a connection that has closed.
    while client.get_id() in server._identified_peers:
        await trio.lowlevel.checkpoint()
    return server.get_peerstore().has_peer(client.get_id())


async def test_a_stock_host_remembers_who_has_gone(stock: OpenHost, ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with stock() as server, ours() as client:
            assert await is_remembered_when_gone(server, client)


async def test_ours_forgets_who_has_gone(ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with ours() as server, ours() as client:
            assert not await is_remembered_when_gone(server, client)


async def test_ours_remembers_a_peer_as_long_as_one_of_its_connections_is_open(ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with ours() as server, ours() as client:
            await client.connect(PeerInfo(server.get_id(), server.get_transport_addrs()))
            await server.connect(PeerInfo(client.get_id(), client.get_transport_addrs()))
            second = await parts_of(client)[1].dial_addr(server.get_transport_addrs()[0], server.get_id())
            while client.get_id() not in server._identified_peers or len(server.get_network().get_connections()) < 2:
                await trio.lowlevel.checkpoint()
            await second.close()
            while len(server.get_network().get_connections()) > 1:
                await trio.lowlevel.checkpoint()
            assert server.get_peerstore().has_peer(client.get_id())
