"""Dialling peers: where they may be reached, in which order to try it, and when to leave them alone.

The :class:`AddressBook` is what this node has heard of peers' addresses. py-libp2p's peerstore forgets them after 120 s
(P9) and takes whatever it is given; here an address is checked when it comes in, and numbers are bounded: anyone can
tell us anything about anyone. An address is *proven* when a dial to it reached the peer, which no third party can fake.
The book is pure: it has no clock, ``now_s`` is any clock in seconds that does not go backwards.

The :class:`Dialer` makes connections out of it. Invariants:

- At most one dial to a peer at a time: who asks meanwhile waits for its outcome.
- A dead address does not hold up a live one: addresses race (:mod:`prime_dht.net.hardening.outbound`).
- A peer that could not be reached is left alone for a time that doubles with each failure, until it expires, a new
  address for it comes in, or it connects by itself. A dial that its caller cuts short has failed too, if it had
  :data:`FAIR_DIAL_S`; but then who gives it more time may dial at once, for its path may only be slow.
- Every wait has a deadline. This node never dials itself.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from weakref import WeakValueDictionary

import trio
from libp2p.abc import IHost, INetConn, INetwork
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from prime_dht.errors import NoTurnError, QueryError, ValidationError
from prime_dht.ids import PeerId, peer_from_text, peer_text, short
from prime_dht.net.addresses import Reach, begins_with_name, host_in, reach_of
from prime_dht.net.hardening.outbound import C, Dial, FailedAddress, RaceSettings, knock, race_addresses
from prime_dht.net.hardening.parts import Notifee, parts_of
from prime_dht.net.names import is_named, resolve
from prime_dht.net.network import OnDialled
from prime_dht.net.turns import Caller, Turns
from prime_dht.wire.kad import MAX_ADDRESS_BYTES

ITSELF = "identify"
"""The source of what a peer says of itself."""

HEARSAY = {"kad": Reach.INTERNET, ITSELF: Reach.INTERNET, "mdns": Reach.LOCAL_NETWORK}
"""Sources that are what peers say, and the least reach of what a name that they tell of may lead to. Anybody on the
local network can announce any peer there, but need not know what is on this machine."""

FAIR_DIAL_S = 2.5
"""Who is in a hurry and gives a dial less than this learns nothing of the peer. It is less than a lookup gives it."""

DIAL_BACK_S = 3.5
"""For dialling a peer that connected by itself: a first packet that is lost is sent again after 1 s and after 3 s."""

DIAL_BACK_AT = 4
"""Addresses at which that is tried: who says that it listens at another's must work as hard as this node knocks there.
"""


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


class Dialer:
    """Connects a host to peers.

    Args:
        host: a py-libp2p host; one of :func:`prime_dht.net.host.open_host` or any other.
        book: where it takes addresses from, and notes what became of them.
        race: how the addresses of one peer are tried.

    Attributes:
        on_dialled: is told of the connections that peers make to this node.
        on_dialling: is told of the addresses of those that this node makes.

    Raises:
        ConfigError: the host is not made of py-libp2p's ``BasicHost`` and ``Swarm``.
    """

    def __init__(self, host: IHost, book: AddressBook, *, race: RaceSettings | None = None) -> None:
        _, self._swarm = parts_of(host)
        self._own = PeerId(host.get_id().to_bytes())
        self._race = race or RaceSettings()
        self._turns: WeakValueDictionary[PeerId, Turns] = WeakValueDictionary()
        self.book = book
        self.on_dialled: OnDialled | None = None
        self.on_dialling: Callable[[bytes], None] | None = None

    def is_connected(self, peer: PeerId) -> bool:
        connections = self._swarm.connections.get(ID(peer), ())  # get_connections copies; this is asked for every reply
        return any(not connection.is_closed for connection in connections)

    def is_dialable(self, peer: PeerId) -> bool:
        """Whether the peer is known to listen where others can dial it: it was dialled, or is on this machine."""
        connections = self._swarm.connections.get(ID(peer), ())
        if any(each.muxed_conn.is_initiator and not each.is_closed for each in connections):
            return True
        remote = self.remote_address_of(peer)
        return self.book.is_proven(peer) or (remote is not None and reach_of(remote) is Reach.MACHINE)

    def connected_peers(self) -> tuple[PeerId, ...]:
        """The peers with an open connection, either way."""
        peers = (PeerId(peer_id.to_bytes()) for peer_id in self._swarm.get_connections_map())
        return tuple(peer for peer in peers if self.is_connected(peer))

    def remote_address_of(self, peer: PeerId) -> bytes | None:
        """The address at the other end of an open connection to a peer, as a binary multiaddr."""
        for connection in self._swarm.get_connections(ID(peer)):
            for address in connection.get_transport_addresses():
                return bytes(address.to_bytes())
        return None

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """While the block runs, it is known who connects by itself: who waits for a turn to dial it waits no longer."""
        notifee = _Connected(self._turns, self.book, self.on_dialled)
        self._swarm.register_notifee(notifee)
        try:
            yield
        finally:
            self._swarm.remove_notifee(notifee)

    async def connect(
        self,
        peer: PeerId,
        addresses: Iterable[bytes] = (),
        *,
        source: str = "manual",
        timeout_s: float = math.inf,
        on_turn: Callable[[], None] | None = None,
    ) -> float:
        """Make sure there is a connection to a peer; ``addresses``, binary multiaddrs, go into the book first.

        Args:
            timeout_s: for the dial, if that is less than the dialer's own time. The wait for a turn to dial does not
                count (see :mod:`prime_dht.net.turns`).
            on_turn: called when that wait is over.

        Returns:
            The seconds that the dial took.

        Raises:
            NoTurnError: that wait took too long.
            QueryError: it is this node, is left alone after a failure, has no known address, or could not be reached;
                the message says what was tried and how each address failed.
        """
        if peer == self._own:
            raise QueryError("a node does not dial itself")
        self.book.add(peer, addresses, source=source, now_s=trio.current_time())
        caller = Caller(timeout_s, on_turn)
        if not self.is_connected(peer):
            dial = partial(self._dial, peer, timeout_s, self._swarm.dial_addr, self.book.addresses)
            await self._reach(peer, caller, timeout_s, dial, partial(self.is_connected, peer))
        caller.begin()
        return caller.elapsed_s

    async def dial_back(self, peer: PeerId) -> None:
        """Make sure that a peer is dialable, which it need not be because it could connect by itself.

        Raises:
            NoTurnError, QueryError: as for :meth:`connect`.
        """
        if not self.is_dialable(peer):
            is_reached = partial(self.is_dialable, peer)
            dial = partial(self._dial, peer, DIAL_BACK_S, partial(knock, self._swarm), self._dialled_back_at)
            await self._reach(peer, Caller(DIAL_BACK_S, None), DIAL_BACK_S, dial, is_reached)

    def _dialled_back_at(self, peer: PeerId) -> Sequence[bytes]:
        """Some of a peer's addresses, first those of the machine that it connected from."""
        remote = self.remote_address_of(peer)
        host = None if remote is None else host_in(remote)
        return sorted(self.book.addresses(peer), key=lambda address: host_in(address) != host)[:DIAL_BACK_AT]

    async def _reach(
        self,
        peer: PeerId,
        caller: Caller,
        timeout_s: float,
        dial: Callable[[], Awaitable[object]],
        is_reached: Callable[[], bool],
    ) -> None:
        turns = self._turns.setdefault(peer, Turns())
        with turns.waiting(caller, at_most_s=self._race.total_timeout_s):
            await turns.dial(dial, is_reached)
        if caller.scope.cancelled_caught and not is_reached():
            if caller.began_s is None:
                raise NoTurnError(f"peer {short(peer)}: no turn to dial it within {self._race.total_timeout_s:g} s")
            if timeout_s >= FAIR_DIAL_S and not turns.is_taken:
                self.book.failed(peer, gave_s=timeout_s, now_s=trio.current_time())
            raise QueryError(f"peer {short(peer)} did not answer within {timeout_s:g} s")

    async def _dial(
        self, peer: PeerId, timeout_s: float, dial: Dial[C], addresses: Callable[[PeerId], Sequence[bytes]]
    ) -> C:
        wait_s = self.book.wait_s(peer, gives_s=timeout_s, now_s=trio.current_time())
        if wait_s > 0:
            raise QueryError(f"peer {short(peer)} could not be reached; it is left alone for {wait_s:.0f} s")
        deadline_s = trio.current_time() + self._race.total_timeout_s
        tried: set[bytes] = set()
        failures: list[FailedAddress] = []
        # Addresses may come in while others fail.
        while fresh := [address for address in addresses(peer) if address not in tried]:
            # What has a name comes after the rest, which need not wait for the name to be resolved.
            turn = [address for address in fresh if not is_named(Multiaddr(address))] or fresh
            tried.update(turn)
            by_multiaddr = await self._resolved(peer, turn, failures)
            race = replace(self._race, total_timeout_s=max(0.0, deadline_s - trio.current_time()))
            result = await race_addresses(dial, ID(peer), list(by_multiaddr), race)
            if result.winner is not None:
                self.book.succeeded(peer, by_multiaddr[result.winner[0]], now_s=trio.current_time())
                if self.on_dialling is not None:
                    self.on_dialling(result.winner[0].to_bytes())
                # py-libp2p's own dials may have failed before, which would block its next one.
                self._swarm.unblock_peer(ID(peer))
                return result.winner[1]
            failures.extend(result.failures)
            if trio.current_time() >= deadline_s:
                break
        self.book.failed(peer, now_s=trio.current_time())
        raise QueryError(f"peer {short(peer)}: " + ("; ".join(map(str, failures)) or "no address is known"))

    async def _resolved(
        self, peer: PeerId, addresses: Iterable[bytes], failures: list[FailedAddress]
    ) -> dict[Multiaddr, bytes]:
        """What to dial, and for which address of the book; names that cannot be resolved go to the failures."""
        to_dial: dict[Multiaddr, bytes] = {}

        async def resolve_one(named: Multiaddr, raw: bytes, nearest: Reach) -> None:
            try:
                with trio.fail_after(self._race.address_timeout_s):
                    resolved = await resolve(named, nearest=nearest)
            except QueryError as error:
                failures.append(FailedAddress(named, str(error)))
            except trio.TooSlowError:
                failures.append(FailedAddress(named, f"no name server answers in {self._race.address_timeout_s:g} s"))
            else:
                to_dial.update(
                    (address, raw) for address in resolved if canonical_address(peer, address.to_bytes()) is not None
                )

        async with trio.open_nursery() as nursery:
            for raw in addresses:
                address, nearest = Multiaddr(raw), self.book.nearest_of(peer, raw)
                if is_named(address):
                    nursery.start_soon(resolve_one, address, raw, nearest)
                elif begins_with_name(raw) and nearest is not Reach.MACHINE:
                    # The transport would resolve it, and nobody would look where it leads.
                    failures.append(FailedAddress(address, "of a name that a peer tells, only a TCP port is believed"))
                else:
                    to_dial[address] = raw
        return to_dial


class _Connected(Notifee):
    """Hears of connections for those who wait for a turn to dial, and for who wants to know who dials this node."""

    def __init__(self, turns: Mapping[PeerId, Turns], book: AddressBook, on_dialled: OnDialled | None) -> None:
        self._turns = turns
        self._book = book
        self._on_dialled = on_dialled

    async def connected(self, _network: INetwork, conn: INetConn) -> None:
        peer = PeerId(conn.muxed_conn.peer_id.to_bytes())
        turns = self._turns.get(peer)
        if turns is not None:
            turns.connected()
        if conn.muxed_conn.is_initiator:
            return
        self._book.forgive(peer)  # if it did not answer before, it may have been down
        if self._on_dialled is not None:
            self._on_dialled(peer)
