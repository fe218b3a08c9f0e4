"""Connections with some peers only.

py-libp2p's own connection gate knows addresses, not peers. So this one stands behind it, at the first place where a
peer's id is proved: the end of the security handshake, in both directions, before there are any streams.
"""

from __future__ import annotations

from libp2p.abc import IRawConnection, ISecureConn
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.transport.exceptions import SecurityUpgradeFailure

from prime_dht.ids import PeerId, short


def connect_only_with(swarm: Swarm, peers: frozenset[PeerId]) -> None:
    """From here on close every connection with anybody else as soon as it is known whose it is."""
    stock = swarm.upgrader.upgrade_security

    async def upgrade_security(raw_conn: IRawConnection, is_initiator: bool, peer_id: ID | None = None) -> ISecureConn:
        secured = await stock(raw_conn, is_initiator, peer_id)
        peer = PeerId(secured.get_remote_peer().to_bytes())
        if peer not in peers:
            await secured.close()
            raise SecurityUpgradeFailure(f"peer {short(peer)} is not one of allow_peers")
        return secured

    swarm.upgrader.upgrade_security = upgrade_security  # type: ignore[method-assign]
