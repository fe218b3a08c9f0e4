"""A13: a connection over a path that has died dies too, so that the next dial can take a path that lives.

Defect (py-libp2p 0.8.1): TCP sockets keep the system's patience. When packets stop arriving, because a network is
divided or an address has changed, TCP sends again ever less often, in the end every two minutes, and gives up after a
quarter of an hour. All that time the connection counts as open, so whatever is asked of the peer is written to it and
runs out of time, also when the path is whole again; a new connection would be there within a round trip.

Why this works: ``TCP_USER_TIMEOUT`` (RFC 5482) ends a connection of whose data nothing has been acknowledged for so
long. It is set on every TCP connection, in both directions, at the first place that sees both: where security is
agreed on. Linux has it; elsewhere nothing is changed.

It can go when the TCP transport sets a bound of its own.
"""

from __future__ import annotations

import socket

from libp2p.abc import IRawConnection, ISecureConn
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID

UNACKNOWLEDGED_S = 20
"""Twice what a request may take: by then it has failed, and a packet was sent some six times."""


def guard_paths(swarm: Swarm) -> None:
    """From here on bound how long each new TCP connection of a swarm waits to be heard."""
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        return
    stock = swarm.upgrader.upgrade_security

    async def upgrade_security(raw_conn: IRawConnection, is_initiator: bool, peer_id: ID | None = None) -> ISecureConn:
        if isinstance(raw_conn, RawConnection) and isinstance(raw_conn.stream, TrioTCPStream):
            bounded = raw_conn.stream.stream
            bounded.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * UNACKNOWLEDGED_S)
        return await stock(raw_conn, is_initiator, peer_id)

    swarm.upgrader.upgrade_security = upgrade_security  # type: ignore[method-assign]
