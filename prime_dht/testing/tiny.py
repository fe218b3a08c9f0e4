"""An 8-bit keyspace, in which distances, buckets and prefixes can be checked by eye.

>>> tiny_contact(0b1011_0000).peer
b'\\xb0'
"""

from __future__ import annotations

from prime_dht.ids import KadKey, PeerId
from prime_dht.kad.contact import Contact

TINY_BITS = 8


def tiny_contact(
    key: int, *, addresses: tuple[bytes, ...] = (), subnets: tuple[bytes, ...] = (), syncs: bool = True
) -> Contact:
    """A contact at a point in [0, 256); its peer id is that point as one byte, so equal points are equal peers."""
    return Contact(peer=PeerId(bytes([key])), kad_key=KadKey(key), addresses=addresses, subnets=subnets, syncs=syncs)
