"""P12: who is dialled without being asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.network.config import ConnectionConfig
from trio.testing import MockClock

OpenHost = Callable[..., AbstractAsyncContextManager[BasicHost]]

NO_LOW_WATERMARK = ConnectionConfig(min_connections=0, low_watermark=0)


async def dials_whom_it_heard_of(host: BasicHost, peer: BasicHost) -> bool:
    host.get_peerstore().add_addrs(peer.get_id(), peer.get_transport_addrs(), 7200)
    await trio.sleep(60)
    return host.is_peer_connected(peer.get_id())


async def test_a_stock_host_dials_whom_it_heard_of_even_without_a_low_watermark(
    stock: OpenHost, ours: OpenHost, patient_clock: MockClock
) -> None:
    async with stock(connection_config=NO_LOW_WATERMARK) as host, ours() as peer:
        assert await dials_whom_it_heard_of(host, peer)


async def test_ours_dials_nobody_by_itself(ours: OpenHost, patient_clock: MockClock) -> None:
    async with ours() as host, ours() as peer:
        assert not await dials_whom_it_heard_of(host, peer)
