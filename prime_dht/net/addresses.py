"""Multiaddrs as bytes, which is what they are on the wire and in stores, and for people."""

from __future__ import annotations

from multiaddr import Multiaddr

from prime_dht.ids import PeerId, peer_text


def address_text(address: bytes) -> str:
    """A binary multiaddr as text; bytes that are none are shown in hexadecimal.

    >>> address_text(bytes.fromhex("040a000001060fa1"))
    '/ip4/10.0.0.1/tcp/4001'
    """
    try:
        return str(Multiaddr(address))
    except ValueError:
        return f"0x{address.hex()}"


def is_address_of(peer: PeerId, address: bytes) -> bool:
    """Whether bytes are a multiaddr that may be a peer's, of whatever transports: a peer that it ends in is that one.

    >>> from prime_dht.ids import peer_from_text
    >>> peer = peer_from_text("12D3KooWLRPJAA5o6Ue7HZ1ZUKzNx1bmXZzHnQXEMNvvTHDsdc1B")
    >>> own, tcp = Multiaddr(f"/p2p/{peer_text(peer)}"), Multiaddr("/ip4/10.0.0.1/tcp/4001")
    >>> is_address_of(peer, tcp.to_bytes()), is_address_of(peer, tcp.encapsulate(own).to_bytes())
    (True, True)
    >>> is_address_of(PeerId(b"another"), tcp.encapsulate(own).to_bytes()), is_address_of(peer, b"no multiaddr")
    (False, False)
    """
    try:
        parts = [(protocol.name, value) for protocol, value in Multiaddr(address).items()]
    except (ValueError, TypeError):
        return False
    name, value = parts[-1] if parts else ("", None)
    return bool(parts) and (name != "p2p" or value == peer_text(peer))
