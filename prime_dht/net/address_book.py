"""Where peers may be reached, as far as this node has heard, in which order to try it, and when to leave them alone.

py-libp2p's peerstore forgets addresses after 120 s (P9) and takes whatever it is given; here an address is checked when
it comes in, and numbers are bounded: anyone can tell us anything about anyone. An address is *proven* when a dial to it
reached the peer, which no third party can fake. The book is pure: it has no clock, ``now_s`` is any clock in seconds
that does not go backwards.

A peer that could not be reached is left alone for a time that doubles with each failure, until it expires, a new
address for it comes in, or it connects by itself. A dial that its caller cuts short has failed too, if it had
:data:`FAIR_DIAL_S`; but then who gives it more time may dial at once, for its path may only be slow.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from multiaddr import Multiaddr

from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId, peer_from_text, peer_text
from prime_dht.net.addresses import Reach, begins_with_name
from prime_dht.wire.kad import MAX_ADDRESS_BYTES

ITSELF = "identify"
"""The source of what a peer says of itself."""

HEARSAY = {"kad": Reach.INTERNET, ITSELF: Reach.INTERNET, "mdns": Reach.LOCAL_NETWORK}
"""Sources that are what peers say, and the least reach of what a name that they tell of may lead to. Anybody on the
local network can announce any peer there, but need not know what is on this machine."""

FAIR_DIAL_S = 2.5
"""Who is in a hurry and gives a dial less than this learns nothing of the peer. It is less than a lookup gives it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BookSettings:
    """How much an address book holds, and how failures are remembered."""

    max_peers: int = 10_000
    """Peers; the one that was added to or dialled longest ago is forgotten first."""

    max_addresses_per_peer: int = 16
    """Addresses of one peer; unproven ones go before proven ones, older before newer."""

    backoff_s: float = 1.0
    """How long a peer is left alone after a first failure; it doubles with each further one."""

    max_backoff_s: float = 300.0
    """The longest that a peer is left alone."""


@dataclass(slots=True)
class _Address:
    rank: int
    heard_s: float
    nearest: Reach  # the least that any of those who said it may tell of
    is_own: bool = False  # the peer itself says that it listens there
    proven_s: float | None = None

    @property
    def is_hearsay(self) -> bool:
        return self.nearest is not Reach.MACHINE

    def preference(self) -> tuple[bool, float, bool, int, float]:
        """Least is best: proven, lately; the peer's own word; near; heard of lately."""
        return (self.proven_s is None, -(self.proven_s or 0.0), not self.is_own, self.rank, -self.heard_s)

    def worth(self) -> tuple[bool, bool, bool, float]:
        """Least goes first when there are too many."""
        heard_s = self.heard_s if self.proven_s is None else self.proven_s
        return (self.proven_s is not None, not self.is_hearsay, self.is_own, heard_s)


@dataclass(slots=True)
class _Peer:
    source: str
    addresses: dict[bytes, _Address] = field(default_factory=dict)
    last_offer: tuple[tuple[bytes, ...], Reach, bool] = ((), Reach.MACHINE, False)  # and is that its own word?
    failures: int = 0
    retry_at_s: float | None = None
    gave_s: float = math.inf  # how much time the dial had that failed last

    def says_that_it_listens_at(self, addresses: Collection[bytes]) -> None:
        for raw, address in list(self.addresses.items()):
            was_own, address.is_own = address.is_own, raw in addresses
            if was_own and not address.is_own and address.is_hearsay:
                del self.addresses[raw]


class AddressBook:
    """Peers' addresses as binary multiaddrs, without the ``/p2p/`` part. See the module."""

    def __init__(self, settings: BookSettings | None = None) -> None:
        self._settings = settings or BookSettings()
        self._peers: OrderedDict[PeerId, _Peer] = OrderedDict()  # the one used longest ago first

    def __len__(self) -> int:
        return len(self._peers)

    def add(self, peer: PeerId, addresses: Iterable[bytes], *, source: str, now_s: float) -> None:
        """Note that ``source`` says ``peer`` may be reached at these addresses; bad ones are dropped.

        A new address ends the time for which the peer is left alone. Where the peer itself said that it listens, and
        says so no more, it does not any longer: it was restarted on another port, or has moved. Of the iterable, no
        more is looked at than the book would keep; and nothing is, if it is what was said last.
        """
        offered = tuple(itertools.islice(addresses, self._settings.max_addresses_per_peer))
        nearest, is_own = HEARSAY.get(source, Reach.MACHINE), source == ITSELF
        offer = offered, nearest, is_own
        known = self._peers.get(peer)
        if known is not None and known.last_offer == offer:
            return  # checking addresses costs more than a request
        good = [address for raw in offered if (address := canonical_address(peer, raw)) is not None]
        if not good:
            return
        known = self._used(peer, source)
        known.last_offer = offer
        for address in good:
            if address in known.addresses:
                known.addresses[address].heard_s = now_s
                known.addresses[address].nearest = min(known.addresses[address].nearest, nearest)
            else:
                known.addresses[address] = _Address(_rank(address), now_s, nearest)
                known.failures, known.retry_at_s = 0, None
        if is_own:
            known.says_that_it_listens_at(good)
        while len(known.addresses) > self._settings.max_addresses_per_peer:
            del known.addresses[min(known.addresses, key=lambda raw: known.addresses[raw].worth())]

    def addresses(self, peer: PeerId) -> tuple[bytes, ...]:
        """Where a peer may be reached, what to try first first."""
        known = self._peers.get(peer)
        if known is None:
            return ()
        return tuple(sorted(known.addresses, key=lambda raw: known.addresses[raw].preference()))

    def nearest_of(self, peer: PeerId, address: bytes) -> Reach:
        """The least reach of what a name may lead to: strangers' names lead to the Internet, or nowhere."""
        known = self._peers.get(peer)
        told = None if known is None else known.addresses.get(address)
        return Reach.INTERNET if told is None else told.nearest

    def lasting(self, peer: PeerId) -> tuple[bytes, ...]:
        """Those of :meth:`addresses` that may be kept as what the peer's source said of it: all but names that others
        told of, which may lead less near than its names may."""
        known = self._peers.get(peer)
        if known is None:
            return ()
        nearest = HEARSAY.get(known.source, Reach.MACHINE)
        return tuple(
            raw for raw in self.addresses(peer) if not begins_with_name(raw) or known.addresses[raw].nearest <= nearest
        )

    def source_of(self, peer: PeerId) -> str:
        """Who told us of a peer first; empty if nobody has."""
        known = self._peers.get(peer)
        return known.source if known is not None else ""

    def succeeded(self, peer: PeerId, address: bytes, *, now_s: float) -> None:
        """A dial to ``address`` reached the peer."""
        known = self._peers.get(peer)
        if known is not None and address in known.addresses:
            self._peers.move_to_end(peer)
            known.addresses[address].proven_s = now_s
            known.failures, known.retry_at_s = 0, None

    def failed(self, peer: PeerId, *, gave_s: float = math.inf, now_s: float) -> None:
        """The peer could not be reached at any address, or not in the time that its caller gave the dial."""
        known = self._peers.get(peer)
        if known is not None:
            wait_s = min(self._settings.backoff_s * 2.0 ** min(known.failures, 64), self._settings.max_backoff_s)
            known.failures += 1
            known.retry_at_s = now_s + wait_s
            known.gave_s = gave_s

    def forgive(self, peer: PeerId) -> None:
        """The peer may be dialled at once, for somebody wants it who knows better than what failed before."""
        known = self._peers.get(peer)
        if known is not None:
            known.failures, known.retry_at_s = 0, None

    def is_proven(self, peer: PeerId) -> bool:
        """Whether a dial has reached the peer where it is still said to be."""
        known = self._peers.get(peer)
        return known is not None and any(address.proven_s is not None for address in known.addresses.values())

    def wait_s(self, peer: PeerId, *, gives_s: float, now_s: float) -> float:
        """How much longer a peer is to be left alone by who gives a dial so much time; 0 if it may be dialled."""
        known = self._peers.get(peer)
        if known is None or known.retry_at_s is None or gives_s > known.gave_s:
            return 0.0
        return max(0.0, known.retry_at_s - now_s)

    def _used(self, peer: PeerId, source: str) -> _Peer:
        known = self._peers.setdefault(peer, _Peer(source))
        self._peers.move_to_end(peer)
        if len(self._peers) > self._settings.max_peers:
            self._peers.popitem(last=False)
        return known


def canonical_address(peer: PeerId, raw: bytes) -> bytes | None:
    """A binary multiaddr of ``peer`` as the book keeps it, or ``None`` if it cannot be one.

    It must be well-formed, of IP or DNS and a port, with a unicast address; if it names a peer, then this one. Relayed
    addresses are dropped: the host has no relay transport.

    >>> peer = peer_from_text("12D3KooWLRPJAA5o6Ue7HZ1ZUKzNx1bmXZzHnQXEMNvvTHDsdc1B")
    >>> own = Multiaddr(f"/ip4/192.0.2.1/tcp/4001/p2p/{peer_text(peer)}").to_bytes()
    >>> Multiaddr(canonical_address(peer, own))
    <Multiaddr /ip4/192.0.2.1/tcp/4001>
    >>> canonical_address(peer, Multiaddr("/ip4/0.0.0.0/tcp/4001").to_bytes()) is None
    True
    """
    if not 0 < len(raw) <= MAX_ADDRESS_BYTES:
        return None
    try:
        # By way of the text: a hostile encoding need not be the shortest.
        text = str(Multiaddr(raw)).removesuffix(f"/p2p/{peer_text(peer)}")
        address = Multiaddr(text)
        parts = [(protocol.name, value) for protocol, value in address.items()]
    except (ValueError, TypeError):
        return None
    names = [name for name, _ in parts]
    if "p2p" in names or "p2p-circuit" in names or len(parts) < 2:
        return None
    (host_kind, host), (port_kind, port) = parts[:2]
    if port_kind not in ("tcp", "udp") or port == "0":
        return None
    if host_kind in ("ip4", "ip6"):
        ip = ipaddress.ip_address(host)
        return None if ip.is_unspecified or ip.is_multicast else address.to_bytes()
    return address.to_bytes() if host_kind in ("dns", "dns4", "dns6") else None


def split_peer_address(text: str) -> tuple[PeerId, bytes]:
    """A full multiaddr, ``…/p2p/<peer id>``, as the peer and its binary address.

    Raises:
        ValidationError: it is no such multiaddr.
    """
    head, found, tail = text.rpartition("/p2p/")
    if not found:
        raise ValidationError(f"{text!r} does not end in /p2p/<peer id>")
    peer = peer_from_text(tail)
    try:
        address = canonical_address(peer, Multiaddr(head).to_bytes())
    except ValueError as error:
        raise ValidationError(f"{text!r} is not a multiaddr: {error}") from error
    if address is None:
        raise ValidationError(f"{text!r} is not an address that can be dialled")
    return peer, address


def _rank(raw: bytes) -> int:
    """What to try first: a private network, 0; the Internet, 1; loopback, 2, which elsewhere means another node."""
    kind, host = next((protocol.name, value) for protocol, value in Multiaddr(raw).items())
    if kind not in ("ip4", "ip6"):
        return 1
    ip = ipaddress.ip_address(host)
    return 2 if ip.is_loopback else 0 if ip.is_private or ip.is_link_local else 1
