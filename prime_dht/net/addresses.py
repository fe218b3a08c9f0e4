"""Multiaddrs as bytes, which is what they are on the wire and in stores, and for people.

What a peer says of addresses is *credible* if they lie no nearer to this node than the peer itself: from the Internet
nobody knows what is on this node's local network, and from that nobody knows what is on its own machine. Otherwise any
stranger could make this node knock on doors inside, where others trust it (go-libp2p filters alike).

Of one peer only so many addresses are kept. Other implementations listen with several transports at each interface, so
those that this one's own transport can dial come first.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum
from functools import lru_cache

from multiaddr import Multiaddr

from prime_dht.ids import PeerId, peer_text
from prime_dht.wire.kad import PeerRecord, Reply

_IP4, _IP6, _NAMES = 0x04, 0x29, frozenset({0x35, 0x36, 0x37, 0x38})
"""Multicodec codes of what an address may begin with: an IP address, or a DNS name."""

_TCP, _P2P = b"\x06", b"\xa5\x03"
"""Those of the parts that may follow, as varints."""


class Reach(IntEnum):
    """From where an address leads to the same place."""

    MACHINE = 0
    LOCAL_NETWORK = 1
    INTERNET = 2


def begins_with_name(address: bytes) -> bool:
    """Whether a binary multiaddr is of a DNS name.

    >>> [begins_with_name(Multiaddr(f"/{host}/tcp/1").to_bytes()) for host in ("dns4/a.example", "ip4/10.0.0.1")]
    [True, False]
    """
    return bool(address) and address[0] in _NAMES


@lru_cache(maxsize=4096)
def reach_of(address: bytes) -> Reach:
    """The reach of a binary multiaddr; that of a name is not known before it is resolved, and counts as the widest.

    >>> [reach_of(Multiaddr(f"/{ip}/tcp/1").to_bytes()).name for ip in ("ip4/127.0.0.1", "ip4/10.0.0.1", "ip6/2600::1")]
    ['MACHINE', 'LOCAL_NETWORK', 'INTERNET']
    """
    code = address[0] if address else None
    if code == _IP4 and len(address) > 4:
        ip: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.IPv4Address(address[1:5])
    elif code == _IP6 and len(address) > 16:
        ip = ipaddress.IPv6Address(address[1:17])
        ip = ip.ipv4_mapped or ip
    else:  # another encoding of an IP address could hide one, so what is not known is not believed from afar
        return Reach.INTERNET if code in _NAMES else Reach.MACHINE
    if ip.is_loopback or ip.is_unspecified:
        return Reach.MACHINE
    return Reach.INTERNET if ip.is_global else Reach.LOCAL_NETWORK


@lru_cache(maxsize=4096)
def is_tcp(address: bytes) -> bool:
    """Whether a binary multiaddr is of an IP address or a name, a TCP port, and at most the peer that listens there.

    >>> peer = "/p2p/12D3KooWLRPJAA5o6Ue7HZ1ZUKzNx1bmXZzHnQXEMNvvTHDsdc1B"
    >>> ends = ("tcp/1", "tcp/1" + peer, "tcp/1" + peer + "/p2p-circuit", "tcp/1/ws", "udp/1/quic-v1")
    >>> [is_tcp(Multiaddr(f"/ip4/10.0.0.1/{end}").to_bytes()) for end in ends]
    [True, True, False, False, False]
    """
    if not address or address[0] not in (_IP4, _IP6, *_NAMES):
        return False
    port_at = {_IP4: 5, _IP6: 17}.get(address[0]) or 2 + int.from_bytes(address[1:2], "big")
    peer = address[port_at + 3 :]
    is_peer = peer[:2] == _P2P and len(peer) == 3 + int.from_bytes(peer[2:3], "big")
    return address[port_at : port_at + 1] == _TCP and (not peer or is_peer)


def credible(addresses: tuple[bytes, ...], *, told_from: bytes | None) -> tuple[bytes, ...]:
    """Of the addresses that a peer tells of, those it can know; those of TCP first.

    Args:
        told_from: the peer's own address, at the other end of its connection; ``None`` if that is gone.
    """
    nearest = Reach.INTERNET if told_from is None else reach_of(told_from)
    believed = (address for address in addresses if reach_of(address) >= nearest)
    return tuple(sorted(believed, key=is_tcp, reverse=True))


def credible_reply(reply: Reply, *, told_from: Callable[[], bytes | None]) -> Reply:
    """A reply with the addresses that are :func:`credible`; the peers stay.

    Args:
        told_from: as for :func:`credible`; called only where there is something to check.
    """
    records = (*reply.closer, *reply.providers)
    if all(_is_beyond_doubt(address) for record in records for address in record.addresses):
        return reply
    source = told_from()

    def checked(record: PeerRecord) -> PeerRecord:
        addresses = credible(record.addresses, told_from=source)
        return record if addresses == record.addresses else replace(record, addresses=addresses)

    return reply._replace(closer=tuple(map(checked, reply.closer)), providers=tuple(map(checked, reply.providers)))


@lru_cache(maxsize=4096)
def _is_beyond_doubt(address: bytes) -> bool:
    return reach_of(address) is Reach.INTERNET and is_tcp(address)


def address_text(address: bytes) -> str:
    """A binary multiaddr as text; bytes that are none are shown in hexadecimal.

    >>> address_text(bytes.fromhex("040a000001060fa1"))
    '/ip4/10.0.0.1/tcp/4001'
    """
    try:
        return str(Multiaddr(address))
    except ValueError:
        return f"0x{address.hex()}"


def host_in(address: bytes) -> str:
    """The first part of a binary multiaddr, an IP address or a name, without the port.

    >>> host_in(bytes.fromhex("040a000001060fa1"))
    '10.0.0.1'
    """
    return next(str(value) for _, value in Multiaddr(address).items())


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
        multiaddr = Multiaddr(address)
        parts = [(protocol.name, value) for protocol, value in multiaddr.items()]
        str(multiaddr)  # fails where the parts do not: of an ip6zone without a value, say
    except (ValueError, TypeError, OverflowError):  # py-multiaddr reads a length of any size
        return False
    name, value = parts[-1] if parts else ("", None)
    return bool(parts) and (name != "p2p" or value == peer_text(peer))
