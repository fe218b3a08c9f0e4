"""Dialling peers where the :class:`~prime_dht.net.address_book.AddressBook` says that they may be reached. Invariants:

- At most one dial to a peer at a time: who asks meanwhile waits for its outcome.
- A dead address does not hold up a live one: addresses race (:mod:`prime_dht.net.hardening.outbound`).
- A peer that could not be reached is left alone for as long as the book says.
- Every wait has a deadline. This node never dials itself.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from weakref import WeakValueDictionary

import trio
from libp2p.abc import IHost, INetConn, INetwork
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from prime_dht.errors import NoTurnError, QueryError
from prime_dht.ids import PeerId, short
from prime_dht.net.address_book import FAIR_DIAL_S, AddressBook, canonical_address
from prime_dht.net.addresses import Reach, begins_with_name, host_in, reach_of
from prime_dht.net.hardening.outbound import C, Dial, FailedAddress, RaceSettings, knock, race_addresses
from prime_dht.net.hardening.parts import Notifee, parts_of
from prime_dht.net.names import is_named, resolve
from prime_dht.net.network import OnDialled
from prime_dht.net.turns import Caller, Turns

DIAL_BACK_S = 3.5
"""For dialling a peer that connected by itself: a first packet that is lost is sent again after 1 s and after 3 s."""

DIAL_BACK_AT = 4
"""Addresses at which that is tried: who says that it listens at another's must work as hard as this node knocks there.
"""


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
