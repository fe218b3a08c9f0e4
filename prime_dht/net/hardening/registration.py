"""A14: a connection that closes while it is registered is not kept as an open one.

Defect (py-libp2p 0.8.1): ``Swarm.add_conn`` starts a connection's task and enters the connection into the swarm's table
afterwards. If the other end has hung up by then, the task has already closed the connection and taken it out of the
table, in which it was not yet. So a dead connection is entered, and nothing takes it out again: it counts towards every
limit for as long as the host lives, and closing it does nothing.

Why this works: what ``add_conn`` does last is to tell the notifees. After that a connection that has closed is taken
out again and reported as an error, as any other that fails while it starts.

It can go when ``add_conn`` looks whether the connection is still open.
"""

from __future__ import annotations

from libp2p.abc import INetConn
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm


def guard_registration(swarm: Swarm) -> None:
    """Keep connections that closed while they started out of a swarm's table."""
    stock = swarm.notify_connected

    async def notify_connected(conn: INetConn) -> None:
        await stock(conn)  # first: they hear that it closed, too
        if isinstance(conn, SwarmConn) and conn.is_closed:
            swarm.remove_conn(conn)
            raise SwarmException("the connection closed while it started")

    swarm.notify_connected = notify_connected  # type: ignore[method-assign]
