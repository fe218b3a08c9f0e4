"""A12: whether the ends of an IPv6 connection know each other's addresses, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from random import Random

import pytest
import trio
from libp2p.host.basic_host import BasicHost
from libp2p.network.config import ConnectionConfig
from libp2p.network.exceptions import SwarmException
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr
from trio.testing import MockClock

from prime_dht import PrimeDHT
from prime_dht.net.hardening.parts import parts_of

OpenHost = Callable[..., AbstractAsyncContextManager[BasicHost]]

IPV6 = ("/ip6/::1/tcp/0",)
DENY_LOOPBACK = ConnectionConfig(deny_list=["::1"])


async def connect(client: BasicHost, server: BasicHost) -> None:
    await client.connect(PeerInfo(server.get_id(), server.get_transport_addrs()))


async def come_and_go(client: BasicHost, server: BasicHost) -> None:
    await connect(client, server)
    await client.disconnect(server.get_id())


async def remote_addresses(client: BasicHost, server: BasicHost) -> list[list[str]]:
    """What both ends of a connection have noted of the other."""
    await connect(client, server)
    while not server.is_peer_connected(client.get_id()):
        await trio.lowlevel.checkpoint()
    ends = [parts_of(host)[1].get_connections() for host in (client, server)]
    return [[str(address) for connection in end for address in connection.get_transport_addresses()] for end in ends]


async def test_stock_hosts_do_not_know_who_is_at_the_other_end_of_an_ipv6_connection(stock: OpenHost) -> None:
    with trio.fail_after(30):
        async with stock(listen=()) as client, stock(listen=IPV6) as server:
            assert await remote_addresses(client, server) == [[], []]


@pytest.mark.parametrize("fast_transport", [True, False])
async def test_ours_know_who_is_at_the_other_end_of_an_ipv6_connection(ours: OpenHost, fast_transport: bool) -> None:
    with trio.fail_after(30):
        async with ours(listen=()) as client, ours(listen=IPV6, fast_transport=fast_transport) as server:
            (told,), (seen,) = await remote_addresses(client, server)
            assert Multiaddr(told) == server.get_transport_addrs()[0]
            assert seen.startswith("/ip6/::1/tcp/")


async def test_an_ipv6_connection_passes_the_gate_of_a_stock_host(stock: OpenHost, ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with ours() as client, stock(listen=IPV6, connection_config=DENY_LOOPBACK) as server:
            await come_and_go(client, server)


async def test_an_ipv6_connection_is_stopped_at_the_gate_of_ours(ours: OpenHost) -> None:
    with trio.fail_after(30):
        async with ours() as client, ours(listen=IPV6) as server:
            gate = parts_of(server)[1].connection_gate
            assert await gate.is_allowed(Multiaddr("/ip6/::1/tcp/1"))
            gate.add_to_deny_list("::1")
            with pytest.raises(SwarmException):
                await come_and_go(client, server)


async def test_nodes_that_have_only_ipv6_hear_of_each_other(ours: OpenHost, patient_clock: MockClock) -> None:
    async with (
        ours(listen=IPV6) as first,
        ours(listen=IPV6) as second,
        ours(listen=IPV6) as third,
        PrimeDHT(first, rng=Random(0)) as known,
        PrimeDHT(second, bootstrap_peers=known.addresses(), rng=Random(1)) as one,
        PrimeDHT(third, bootstrap_peers=known.addresses(), rng=Random(2)) as other,
    ):
        with trio.fail_after(30):
            await other.bootstrap()
            while not second.is_peer_connected(third.get_id()):
                await one.bootstrap()
                await trio.sleep(1)
