"""A9: a peer that has gone is forgotten.

Defect (py-libp2p 0.8.1): the peerstore keeps what it learned of a peer after the peer has gone. Past 1,000 peers it
evicts those without addresses first, and the first of these is the host itself: from then on identify fails, for want
of the host's own public key. Peer ids are free, so 1,000 short connections do it.

Why this works: when a peer's last connection closes, its data are dropped, so the peerstore holds the peers that are
connected, which are bounded; and it is made larger than that bound. Addresses worth keeping are in the node's own
address book.

It can go when the peerstore never evicts the host itself, and bounds what it keeps per peer.
"""

from __future__ import annotations

from libp2p.abc import INetConn, INetwork
from libp2p.network.swarm import Swarm
from libp2p.peer.peerstore import PeerStore

from prime_dht.net.hardening.limits import HostLimits
from prime_dht.net.hardening.parts import Notifee

_NOT_YET_CONNECTED = 1000
"""Peers that callers of ``host.connect`` may have put in the peerstore and not reached."""


def roomy_peerstore(limits: HostLimits) -> PeerStore:
    """A peerstore that does not evict while only connected peers are in it."""
    return PeerStore(max_peers=limits.max_connections + _NOT_YET_CONNECTED)


class _Forget(Notifee):
    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        peer_id = conn.muxed_conn.peer_id
        if not network.get_connections(peer_id) and network.peerstore.has_peer(peer_id):
            network.peerstore.clear_peerdata(peer_id)


def forget_gone_peers(swarm: Swarm) -> None:
    """Drop a peer's data from the peerstore when its last connection closes."""
    swarm.register_notifee(_Forget())
