"""A contact: what this node knows of a peer it may ask.

A *subnet* stands for whoever owns a block of addresses: the /16 of an IPv4 address, the /32 of an IPv6 one, which is
about what a provider is given. Peers are free to make up, addresses in many subnets are not, so the routing table and
the lookup limit how many contacts they take from one (go-libp2p's peer diversity filter does the same; it also knows
autonomous systems, which would need a table that ages). Addresses that are not routed on the Internet (loopback,
private, link-local) belong to no subnet: whoever reaches them shares our network anyway. An address that does not begin
with an IP, such as a DNS name, costs nothing to make up, so all of those count as one subnet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from prime_dht.ids import KadKey, PeerId

IP4, IP6 = 0x04, 0x29
"""Multicodec codes of the multiaddr components that hold a bare IP address; the address follows the code byte."""

IPV4_BYTES, IPV6_BYTES = 4, 16

MAX_ADDRESSES_TOLD = 8
"""How many addresses of a candidate are taken from one peer that names it."""

MAX_ADDRESSES = 32
"""How many addresses of a candidate are kept when several peers name different ones."""

UNPLACED = b"unplaced"
"""The one subnet of all addresses that do not begin with an IP address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """A peer, where it lies, how to reach it, and what it can do.

    Attributes:
        peer: the peer id, as multihash bytes.
        kad_key: its place; computed here from ``peer``, never taken from the wire.
        addresses: binary multiaddrs.
        subnets: those of :func:`subnets_of`, for a contact that answered, over the address it answered from: the
            addresses it only claims could name other people's subnets and crowd them out.
        syncs: whether it advertises ``/prime/sync/1.0.0``, so that it can be a replica of ``/prime/`` keys.
    """

    peer: PeerId
    kad_key: KadKey
    addresses: tuple[bytes, ...] = ()
    subnets: tuple[bytes, ...] = ()
    syncs: bool = False


def subnets_of(addresses: Iterable[bytes]) -> tuple[bytes, ...]:
    """The subnets in which binary multiaddrs lie, sorted, each once. Malformed ones count as :data:`UNPLACED`.

    >>> subnets_of([bytes([IP4, 8, 8, 4, 4]), bytes([IP4, 127, 0, 0, 1]), bytes([IP4, 8, 8, 8, 8])])
    (b'\\x08\\x08',)
    """
    subnets = {_subnet_of(address) for address in addresses}
    return tuple(sorted(subnet for subnet in subnets if subnet is not None))


def in_turns(known: tuple[bytes, ...], told: tuple[bytes, ...], *, tellers: int) -> tuple[bytes, ...]:
    """Addresses of a peer, with those that one more tells: the first of each teller, then the second of each, …

    Whoever has fewer places than there are addresses keeps some of each teller. So a few who lie hide nothing that
    others say, however much they tell.

    Args:
        tellers: how many told what is known.

    >>> in_turns((b"a1", b"a2", b"a3"), (b"b1", b"b2", b"a3"), tellers=1)
    (b'a1', b'b1', b'a2', b'b2', b'a3')
    """
    merged = list(known)
    for turn, address in enumerate(told):
        if address not in known:
            merged.insert((turn + 1) * tellers + turn, address)
    return tuple(merged[:MAX_ADDRESSES])


@lru_cache(maxsize=4096)
def _subnet_of(address: bytes) -> bytes | None:
    code = address[0] if address else None
    ip: IPv4Address | IPv6Address
    if code == IP4 and len(address) > IPV4_BYTES:
        ip = IPv4Address(address[1 : 1 + IPV4_BYTES])
    elif code == IP6 and len(address) > IPV6_BYTES:
        ip = IPv6Address(address[1 : 1 + IPV6_BYTES])
        ip = ip.ipv4_mapped or ip  # the same host, written the long way, is in the same subnet
    else:
        return UNPLACED
    if not ip.is_global:
        return None
    return ip.packed[:2] if ip.version == 4 else ip.packed[:4]
