"""A14: connections that close while they are registered."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio
from libp2p.abc import IMuxedConn, IMuxedStream
from libp2p.connection_types import ConnectionType
from libp2p.host.basic_host import BasicHost
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from multiaddr import Multiaddr
from trio.testing import wait_all_tasks_blocked

from prime_dht.net.hardening.parts import parts_of
from prime_dht.net.identity import new_identity

OpenHost = Callable[..., AbstractAsyncContextManager[BasicHost]]


class HungUp(IMuxedConn):
    """A connection that starts, and whose other end has closed it when the first stream is waited for."""

    is_initiator = False
    is_established = True
    is_closed = False

    def __init__(self) -> None:
        self.peer_id = ID.from_pubkey(new_identity().public_key)
        self.event_started = trio.Event()

    async def start(self) -> None:
        self.event_started.set()

    async def close(self) -> None:
        self.is_closed = True

    async def open_stream(self) -> IMuxedStream:
        raise MuxedConnUnavailable

    async def accept_stream(self) -> IMuxedStream:
        raise MuxedConnUnavailable

    def get_transport_addresses(self) -> list[Multiaddr]:
        return []

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT


async def test_a_stock_host_keeps_a_dead_connection_for_ever(stock: OpenHost) -> None:
    async with stock() as host:
        swarm = parts_of(host)[1]
        dead = HungUp()
        connection = await swarm.add_conn(dead, direction="inbound")
        await connection.close()
        await wait_all_tasks_blocked()
        assert swarm.get_connections(dead.peer_id) == [connection]


@pytest.mark.parametrize("fast_transport", [True, False])
async def test_ours_reports_it_and_keeps_nothing(ours: OpenHost, fast_transport: bool) -> None:
    async with ours(fast_transport=fast_transport) as host:
        swarm = parts_of(host)[1]
        dead = HungUp()
        with pytest.raises(SwarmException, match="the connection closed while it started"):
            await swarm.add_conn(dead, direction="inbound")
        assert dead.peer_id not in swarm.connections
        assert not swarm.get_connections()
