"""A12: a connection over IPv6 knows who is at its other end.

Defect (py-libp2p 0.8.1): a TCP stream takes only an address of two parts for one, and an IPv6 address has four: it says
that it has none. So inbound IPv6 connections pass the connection gate unseen; and nobody knows how near a peer is, so
that of what it tells of others' addresses only those on the Internet are believed (:mod:`prime_dht.net.addresses`).

Why this works: a stream looks first at an address that it noted before. It is noted here: for inbound connections when
they come, for outbound ones where security is agreed on.

It can go when ``TrioTCPStream.get_remote_address`` knows IPv6.
"""

from __future__ import annotations

from libp2p.abc import IRawConnection, ISecureConn
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID


def remote_ip(stream: ReadWriteCloser) -> str | None:
    """The IP address at the other end of a connection, if its transport has one. From here on the stream knows it."""
    if isinstance(stream, TrioTCPStream) and stream.get_remote_address() is None:
        try:
            ip, port = stream.stream.socket.getpeername()[:2]
        except OSError:
            return None
        stream._cached_remote_address = (ip.partition("%")[0], port)  # a multiaddr has no place for a scope
    remote = stream.get_remote_address()
    return None if remote is None else remote[0]


def guard_addresses(swarm: Swarm) -> None:
    """Have each new connection of a swarm know its address."""
    stock = swarm.upgrader.upgrade_security

    async def upgrade_security(raw_conn: IRawConnection, is_initiator: bool, peer_id: ID | None = None) -> ISecureConn:
        if isinstance(raw_conn, RawConnection):
            remote_ip(raw_conn.stream)
        return await stock(raw_conn, is_initiator, peer_id)

    swarm.upgrader.upgrade_security = upgrade_security  # type: ignore[method-assign]
