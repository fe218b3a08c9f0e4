"""P12: nobody is dialled because a counter is low.

Defect (py-libp2p 0.8.1): every 30 s, and on every disconnect, the auto-connector dials peers it finds in the peerstore
until half the high watermark is reached. ``low_watermark=0, min_connections=0`` does not stop it: it aims half-way
between the watermarks. Addresses come into the peerstore by identify, so any peer can have a node dial whatever it
likes. It also remembers the time of every peer's last disconnect for ever.

Why this works: the swarm reaches the auto-connector through two methods, which do nothing here.

It can go when a configuration of the swarm has no auto-connector.
"""

from __future__ import annotations

from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID


async def _connect_nobody() -> None:
    return


def _remember_nobody(_peer_id: ID) -> None:
    return


def silence_auto_connector(swarm: Swarm) -> None:
    """Keep a swarm from dialling by itself."""
    swarm.auto_connector.maybe_connect = _connect_nobody  # type: ignore[method-assign]
    swarm.auto_connector.record_disconnect = _remember_nobody  # type: ignore[method-assign,assignment]


def is_auto_connecting(swarm: Swarm) -> bool:
    """Whether a swarm dials peers by itself."""
    return swarm.auto_connector.maybe_connect is not _connect_nobody
