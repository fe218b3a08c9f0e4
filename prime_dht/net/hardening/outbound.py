"""P4, P5, P13, A5: dials are as fast as the network, try every address, and end.

Defects (py-libp2p 0.8.1), all of ``Swarm.dial_peer``:

- P4: after each attempt it waits for that attempt's *failure* for 250 ms before it goes on, also when the attempt has
  succeeded: every dial takes at least that long. The time is a constant of the module, shared by all hosts.
- P5: it tries one address for each kind of transport, so with a dead and a live TCP address it is a matter of order;
  and a peer whose dial failed is refused for 60 s, also when better addresses have come in.
- P13: a host dials itself if told to.
- A5: the security handshake of an outbound connection has no deadline: a server that stops talking holds the caller.

Why this works: ``dial_peer`` is replaced, on this host only, by a race of all the peer's addresses (RFC 8305 in
spirit): attempts start one after the other, the next as soon as the one before has failed, or after a short stagger;
the first to succeed ends the others. There is no cache of failures here: whoever dials repeatedly, as
:mod:`prime_dht.net.dialer` does, backs off by itself and knows when addresses change.

It can go when ``dial_peer`` does the same.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

import trio
from libp2p.abc import IMuxedConn, INetConn
from libp2p.exceptions import ParseError
from libp2p.io.exceptions import IncompleteReadError
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.security.pnet.protector import new_protected_conn
from libp2p.transport.exceptions import SecurityUpgradeFailure
from multiaddr import Multiaddr

NO_NODE = "no libp2p node answers there, but something else does"
"""The reason for what does not come back as a line of multistream-select: HTTP, for example."""

_CLOSE_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceSettings:
    """How the addresses of one peer are tried."""

    stagger_s: float = 0.25
    """The next address is tried this long after the one before, if that has neither failed nor succeeded."""

    address_timeout_s: float = 5.0
    """Time for one address: TCP, security, muxer."""

    total_timeout_s: float = 15.0
    """Time for all of them."""


@dataclass(frozen=True, slots=True)
class FailedAddress:
    """An address that was tried, and what came of it."""

    address: Multiaddr
    reason: str

    def __str__(self) -> str:
        return f"{self.address}: {self.reason}"


class Connection(Protocol):
    """What a dial makes."""

    async def close(self) -> None: ...


C = TypeVar("C", bound=Connection)

Dial = Callable[[Multiaddr, ID], Awaitable[C]]
"""Dials a peer at an address, and raises a ``SwarmException`` if that fails: ``Swarm.dial_addr``, or :func:`knock`."""


@dataclass(frozen=True, slots=True)
class RaceResult(Generic[C]):
    """The connection and the address that won it, or ``None``; and the addresses that failed before the end."""

    winner: tuple[Multiaddr, C] | None
    failures: tuple[FailedAddress, ...]


async def knock(swarm: Swarm, address: Multiaddr, peer_id: ID) -> Connection:
    """Dial a peer to see that it listens there: agree on security, which proves who it is, and on nothing else.

    Returns:
        The connection, closed again: whoever is cancelled as this returns has nothing to close.

    Raises:
        SwarmException: it cannot be reached there.
    """
    transport = swarm.transport_manager.transport_for_dialing(address)
    if transport is None:
        raise SwarmException(f"no transport can dial {address}")
    try:
        connection = await transport.dial(address.encapsulate(Multiaddr(f"/p2p/{peer_id}")))
        try:
            if not isinstance(connection, IMuxedConn):  # which is of a transport that has security of its own
                protected = connection if swarm.psk is None else new_protected_conn(connection, swarm.psk)
                await swarm.upgrader.upgrade_security(protected, True, peer_id)
            return connection
        finally:
            await connection.close()
    except Exception as error:  # as dial_addr does: what transports and handshakes raise has no class in common
        raise SwarmException(f"{peer_id} does not answer at {address}") from error


async def race_addresses(
    dial: Dial[C], peer_id: ID, addresses: Sequence[Multiaddr], settings: RaceSettings
) -> RaceResult[C]:
    """Dial a peer at several addresses, best first, and keep the first connection.

    Every address without a winner before it gets a turn, and appears among the failures if there is no winner at all.
    """
    winner: tuple[Multiaddr, C] | None = None
    failures: dict[Multiaddr, FailedAddress] = {}

    async def attempt(address: Multiaddr, over: trio.Event) -> None:
        nonlocal winner
        try:
            with trio.fail_after(settings.address_timeout_s):
                connection = await dial(address, peer_id)
        except SwarmException as error:
            failures[address] = FailedAddress(address, _root_cause(error))
        except trio.TooSlowError:
            failures[address] = FailedAddress(address, f"no answer within {settings.address_timeout_s:g} s")
        else:
            if winner is None:
                winner = (address, connection)
                nursery.cancel_scope.cancel()
            else:
                # The race is over and this task cancelled with it; a close that is cut short leaves the connection in
                # the swarm's table for ever.
                with trio.move_on_after(_CLOSE_TIMEOUT_S) as closing:
                    closing.shield = True
                    await connection.close()
        over.set()

    with trio.move_on_after(settings.total_timeout_s):
        async with trio.open_nursery() as nursery:
            for address in addresses:
                over = trio.Event()
                nursery.start_soon(attempt, address, over)
                with trio.move_on_after(settings.stagger_s):
                    await over.wait()
    if winner is None:
        for address in addresses:
            failures.setdefault(address, FailedAddress(address, f"not done within {settings.total_timeout_s:g} s"))
    return RaceResult(winner, tuple(failures.values()))


def _root_cause(error: BaseException) -> str:
    causes = [error]
    while cause := error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__:
        causes.append(error := cause)
    match causes:
        # Until there is security nobody has shown that it is a node; afterwards a bad line is a node's.
        case [_, SecurityUpgradeFailure(), *_, MultiselectCommunicatorError(), ParseError()]:
            return NO_NODE
        case [_, SecurityUpgradeFailure(), *_, MultiselectCommunicatorError(), IncompleteReadError() as short]:
            if not short.is_clean_close:  # which is what a node does that is full
                return NO_NODE
    if isinstance(error, PeerIDMismatchesPubkey):
        return f"another peer answers there: {str(error).rpartition('=')[2]}"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)  # trio's own text says the address again
    return str(error) or type(error).__name__


class _DialPeer:
    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._locks: WeakValueDictionary[ID, trio.Lock] = WeakValueDictionary()

    async def __call__(self, peer_id: ID) -> list[INetConn]:
        if peer_id == self._swarm.self_id:
            raise SwarmException("a host does not dial itself")
        lock = self._locks.setdefault(peer_id, trio.Lock())
        async with lock:
            if open_connections := self._swarm._filter_valid_connections(self._swarm.get_connections(peer_id)):
                return open_connections
            result = await race_addresses(
                self._swarm.dial_addr, peer_id, await self._addresses(peer_id), RaceSettings()
            )
        if result.winner is None:
            tried = "; ".join(map(str, result.failures)) or "no address is known"
            raise SwarmException(f"cannot reach {peer_id}: {tried}")
        return [result.winner[1]]

    async def _addresses(self, peer_id: ID) -> list[Multiaddr]:
        try:
            known = self._swarm.peerstore.addrs(peer_id)
        except PeerStoreError:
            return []
        return [address for address in known if await self._swarm.connection_gate.is_allowed(address)]


def guard_dials(swarm: Swarm) -> None:
    """Replace a swarm's ``dial_peer``, through which ``Host.connect`` and ``Host.new_stream`` go."""
    swarm.dial_peer = _DialPeer(swarm)  # type: ignore[method-assign]
