"""A13: how long a connection waits for a path that has died.

What comes of it, ``make chaos`` shows: it cuts a network while connections are in use.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager

from libp2p.host.basic_host import BasicHost
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.peer.peerinfo import PeerInfo

from prime_dht.net.hardening.dead_paths import UNACKNOWLEDGED_S
from prime_dht.net.hardening.parts import parts_of

OpenHost = Callable[..., AbstractAsyncContextManager[BasicHost]]


def note_sockets(swarm: Swarm) -> list[TrioTCPStream]:
    """The TCP streams that a swarm agrees on security over, from here on."""
    seen: list[TrioTCPStream] = []
    stock = swarm.upgrader.upgrade_security

    async def upgrade_security(raw_conn, is_initiator, peer_id=None):  # type: ignore[no-untyped-def]
        assert isinstance(raw_conn, RawConnection)
        assert isinstance(raw_conn.stream, TrioTCPStream)
        seen.append(raw_conn.stream)
        return await stock(raw_conn, is_initiator, peer_id)

    swarm.upgrader.upgrade_security = upgrade_security  # type: ignore[method-assign]
    return seen


def patience_s(streams: list[TrioTCPStream]) -> Iterator[float]:
    """How long each waits for an acknowledgement; 0 stands for as long as the system likes."""
    for stream in streams:
        yield stream.stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) / 1000


async def patience_between(open_host: OpenHost) -> list[float]:
    """That of both ends of a connection between two hosts of a kind."""
    async with open_host() as server, open_host() as client:
        ends = [note_sockets(parts_of(host)[1]) for host in (server, client)]
        await client.connect(PeerInfo(server.get_id(), server.get_addrs()))
        return [seconds for end in ends for seconds in patience_s(end)]


async def test_stock_hosts_wait_as_long_as_the_system_likes(stock: OpenHost) -> None:
    assert await patience_between(stock) == [0, 0]


async def test_ours_give_up_on_a_path_that_has_died(ours: OpenHost) -> None:
    assert await patience_between(ours) == [UNACKNOWLEDGED_S, UNACKNOWLEDGED_S]
