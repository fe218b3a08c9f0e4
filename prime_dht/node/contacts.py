"""Contacts, made once for many replies: those of a swarm name the same peers time and again.

Anyone can name peers that do not exist, at addresses that are as long as they may be. So what is kept is bounded, in
number and in bytes; of more, what was made first is made anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

from prime_dht.ids import PeerId, kad_key
from prime_dht.kad.contact import Contact, subnets_of
from prime_dht.net.address_book import canonical_address
from prime_dht.wire.kad import PeerRecord

MAX_CONTACTS = 20_000

MAX_ADDRESS_BYTES = 8 << 20
"""Of all contacts kept together; 20,000 with six short addresses each have room."""

OVERHEAD_BYTES = 48
"""What an address takes in memory beyond its own bytes."""


class Contacts:
    """The contacts made so far."""

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[PeerId, tuple[bytes, ...]], Contact] = OrderedDict()
        self.address_bytes = 0

    def __len__(self) -> int:
        return len(self._made)

    def get(self, peer: PeerId, addresses: tuple[bytes, ...], *, syncs: bool) -> Contact:
        """A peer as a contact.

        Args:
            syncs: whether it can be a replica of ``/prime/`` keys.
        """
        key = (peer, addresses)
        contact = self._made.get(key)
        if contact is None:
            self.address_bytes += _bytes_of(addresses)
        elif contact.syncs == syncs:
            return contact
        subnets = subnets_of(addresses)
        contact = Contact(peer=peer, kad_key=kad_key(peer), addresses=addresses, subnets=subnets, syncs=syncs)
        self._made[key] = contact
        while len(self._made) > MAX_CONTACTS or self.address_bytes > MAX_ADDRESS_BYTES:
            (_, forgotten), _ = self._made.popitem(last=False)
            self.address_bytes -= _bytes_of(forgotten)
        return contact


def tells_more(record: PeerRecord, known: Collection[bytes]) -> bool:
    """Whether a peer is named at an address that can be dialled and is not among those known, as the book keeps them.

    >>> from multiaddr import Multiaddr
    >>> here, there = (Multiaddr(f"/ip4/192.0.2.1/tcp/{port}").to_bytes() for port in (1, 2))
    >>> record = PeerRecord(PeerId(b"peer"), (here, b"no multiaddr"))
    >>> tells_more(record, [here]), tells_more(record, [there])
    (False, True)
    """
    unknown = (canonical_address(record.peer, raw) for raw in record.addresses if raw not in known)
    return any(address is not None and address not in known for address in unknown)


def _bytes_of(addresses: tuple[bytes, ...]) -> int:
    return sum(map(len, addresses)) + OVERHEAD_BYTES * len(addresses)
