"""A py-libp2p host that stays up whatever a remote sends, and the guards for one made elsewhere.

:func:`open_host` makes the host: Noise only, prime_dht's fast Noise and Yamux unless switched off, explicit limits, no
peer dialled unless asked, no port mapping, no multicast discovery, no belief in what peers say our address is; every
guard of :mod:`prime_dht.net.hardening` applied. Connections that nobody uses are closed (:mod:`prime_dht.net.idle`); on
a host made elsewhere they are its owner's business. It runs within the block. At its end, also on cancellation,
listeners and connections are closed within ``CLOSE_TIMEOUT_S``: py-libp2p leaves the listeners open when a host with a
live connection stops (A11), because closing the connections first fails in the cancelled scope.

:func:`guard_host` applies to a host made elsewhere what can be applied afterwards and changes nothing its owner may
rely on, and says what could not be.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from weakref import WeakSet

import trio
from libp2p import new_host
from libp2p.abc import IHost
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.custom_types import TProtocol, TSecurityOptions
from libp2p.host.basic_host import BasicHost
from libp2p.network.swarm import Swarm
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as StockNoise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.utils.address_validation import expand_wildcard_address
from multiaddr import Multiaddr
from multiaddr.protocols import P_P2P

from prime_dht.background import background_nursery
from prime_dht.config import fault_in_announcing, fault_in_listening_on
from prime_dht.errors import ConfigError
from prime_dht.ids import PeerId, peer_text
from prime_dht.net.addresses import is_address_of
from prime_dht.net.allow_list import connect_only_with
from prime_dht.net.hardening.auto_connector import is_auto_connecting, silence_auto_connector
from prime_dht.net.hardening.dead_paths import guard_paths
from prime_dht.net.hardening.identify import answer_identify, guard_identify, identify_on_demand
from prime_dht.net.hardening.inbound import guard_inbound
from prime_dht.net.hardening.limits import HostLimits, apply_limits, connection_config
from prime_dht.net.hardening.listening import check_port_free, unheard
from prime_dht.net.hardening.log_noise import quieten
from prime_dht.net.hardening.negotiation import guard_negotiation
from prime_dht.net.hardening.outbound import guard_dials
from prime_dht.net.hardening.parts import parts_of
from prime_dht.net.hardening.peer_state import forget_gone_peers, roomy_peerstore
from prime_dht.net.hardening.registration import guard_registration
from prime_dht.net.hardening.remote_address import guard_addresses
from prime_dht.net.hardening.stream_guard import guard_streams
from prime_dht.net.hardening.stream_slots import guard_new_streams
from prime_dht.net.identity import peer_id_of
from prime_dht.net.idle import IdleConnections
from prime_dht.net.light_swarm import lighten
from prime_dht.net.noise import FastNoise, security_options
from prime_dht.net.yamux import FastMuxers, use_fast_yamux

CLOSE_TIMEOUT_S = 5.0
"""Time for connections and listeners to close at the end of a host's block."""

USER_AGENT = f"prime-dht/{importlib.metadata.version('prime-dht')}"

_LOOPBACK = {"/ip4/0.0.0.0/": "/ip4/127.0.0.1/", "/ip6/::/": "/ip6/::1/"}
_WILDCARD = re.compile("|".join(map(re.escape, _LOOPBACK)))

_guarded: WeakSet[BasicHost] = WeakSet()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings(HostLimits):
    """What a host is: its identity, its addresses, and its limits.

    Raises:
        ConfigError: an address is malformed, or cannot be listened on or dialled, or a limit is below 1.
    """

    key_pair: KeyPair

    listen: tuple[str | Multiaddr, ...] = ()
    """Multiaddrs to listen on, each of an IP address and a TCP port, and at its end perhaps of this host's peer id;
    none makes a host that only dials. Port 0 lets the system choose."""

    announce: tuple[str | Multiaddr, ...] = ()
    """Multiaddrs to tell peers instead of those the host listens on, each of an IP address or a DNS name and a TCP
    port, and at its end perhaps of this host's peer id."""

    allow_peers: frozenset[PeerId] | None = None
    """The only peers to have connections with; ``None`` means all."""

    fast_transport: bool = True
    """Use prime_dht's own Noise transport phase, Yamux muxer and lighter swarm; ``False`` uses py-libp2p's. The wire is
    the same."""

    identify_all: bool = False
    """Ask every peer that connects who it is, as other libp2p hosts do. By default only those are asked that somebody
    here has the host connect to: a node of prime_dht learns from its own requests what it needs to know, and when
    hundreds of nodes start at once, two questions for each connection are much of the work."""

    low_water_connections: int = 32
    """Connections that stay open though nobody uses them; more are closed when they have been idle for long enough."""

    idle_connection_s: float = 60.0
    """Seconds without any stream after which a connection beyond those is closed."""

    user_agent: str = USER_AGENT
    """What identify says this node is."""

    def __post_init__(self) -> None:
        # A dataclass with slots is a new class, which the zero-argument super() does not know.
        super(HostSettings, self).__post_init__()
        if self.low_water_connections < 0:
            raise ConfigError(f"low_water_connections must be at least 0, not {self.low_water_connections}")
        if not self.idle_connection_s > 0:
            raise ConfigError(f"idle_connection_s must be positive, not {self.idle_connection_s}")
        own = peer_id_of(self.key_pair)
        for address in map(_multiaddr, self.listen):
            if fault := fault_in_listening_on(address):
                raise ConfigError(f"cannot listen on {address}: it {fault}")
            if not is_address_of(own, address.to_bytes()):
                raise ConfigError(f"cannot listen on {address}: this node is {peer_text(own)}")
        for address in map(_multiaddr, self.announce):
            if fault := fault_in_announcing(address):
                raise ConfigError(f"cannot announce {address}: it {fault}")
            if not is_address_of(own, address.to_bytes()):
                raise ConfigError(f"cannot announce {address}: this node is {peer_text(own)}")


@asynccontextmanager
async def open_host(settings: HostSettings) -> AsyncIterator[IHost]:
    """Run a host within the block. An exception of the block leaves it as itself, not in a group.

    Raises:
        ConfigError: an address cannot be listened on, for example because the port is in use.
    """
    listen = [_strip(_multiaddr(address)) for address in settings.listen]
    for address in listen:
        check_port_free(address)
    host, swarm = _build(settings, listen)
    idle = IdleConnections(swarm, low_water=settings.low_water_connections, grace_s=settings.idle_connection_s)
    raised: BaseException | None = None
    try:
        async with host.run(listen), background_nursery() as nursery:
            nursery.start_soon(idle.run)
            try:
                if missing := unheard(swarm, listen):
                    check_port_free(missing[0])  # which knows the reason, if that has come up since
                    raise ConfigError(f"cannot listen on {missing[0]}, and py-libp2p does not say why")
                yield host
            except BaseException as error:
                if not any(isinstance(leaf, trio.Cancelled) for leaf in _leaves(error)):
                    raised = error
                raise
            finally:
                await _close(host, swarm)
    except BaseExceptionGroup as group:
        # If this is what the nurseries of host.run have made of the block's exception, and nothing else, unwrap it.
        if raised is None or not set(_leaves(group)) <= set(_leaves(raised)):
            raise
    if raised is not None:
        raise raised


def listen_addresses(host: IHost) -> tuple[Multiaddr, ...]:
    """Where peers can dial a host, each address ending in ``/p2p/<peer id>``; wildcards as interface addresses."""
    own = Multiaddr(f"/p2p/{host.get_id()}")
    return tuple(address.encapsulate(own) for address in _expand(_strip(address) for address in host.get_addrs()))


def guard_host(host: IHost) -> list[str]:
    """Apply to a host made elsewhere the guards that can be applied there. Idempotent.

    Returns:
        what could not be guarded, a line each; nothing for a host of :func:`open_host`.

    Raises:
        ConfigError: the host is not made of py-libp2p's ``BasicHost`` and ``Swarm``.
    """
    host, swarm = parts_of(host)
    if host not in _guarded:
        limits = HostLimits(max_connections=swarm.connection_config.max_connections)
        _guard(host, swarm, limits, finish_streams=False)
    return list(_unguarded(swarm))


def _build(settings: HostSettings, listen: list[Multiaddr]) -> tuple[BasicHost, Swarm]:
    host, swarm = parts_of(
        new_host(
            key_pair=settings.key_pair,
            listen_addrs=listen,
            sec_opt=security_options(settings.key_pair) if settings.fast_transport else _stock_noise(settings.key_pair),
            muxer_opt={TProtocol(YAMUX): Yamux},
            peerstore_opt=roomy_peerstore(settings),
            connection_config=connection_config(settings),
            announce_addrs=[_multiaddr(address) for address in settings.announce] or None,
            addrs_factory=None if settings.announce else _expand,
            disable_identify_address_discovery=True,
        )
    )
    if settings.fast_transport:
        use_fast_yamux(host)
        lighten(swarm)
    if not settings.identify_all:
        identify_on_demand(host)
    if settings.allow_peers is not None:
        connect_only_with(swarm, settings.allow_peers)
    apply_limits(swarm, settings)
    silence_auto_connector(swarm)
    forget_gone_peers(swarm)
    guard_dials(swarm)
    answer_identify(host, settings.user_agent)
    quieten()
    _guard(host, swarm, settings, finish_streams=True)
    return host, swarm


def _guard(host: BasicHost, swarm: Swarm, limits: HostLimits, *, finish_streams: bool) -> None:
    guard_streams(swarm, limits, finish_streams=finish_streams)
    guard_new_streams(swarm, limits.max_outbound_streams_per_peer)
    guard_inbound(swarm, limits)
    guard_registration(swarm)
    guard_paths(swarm)
    guard_addresses(swarm)
    guard_negotiation(host, swarm)
    guard_identify(host)
    _guarded.add(host)


def _unguarded(swarm: Swarm) -> Iterable[str]:
    security = swarm.upgrader.security_multistream.transports
    if others := [protocol for protocol in security if protocol != NOISE]:
        yield f"the host also accepts {', '.join(others)}: make it with Noise alone"
    if not isinstance(security.get(NOISE), FastNoise):
        yield "the host uses py-libp2p's own Noise: a write cancelled half-way breaks its connection"
    if not isinstance(swarm.upgrader.muxer_multistream, FastMuxers):
        yield "the host uses py-libp2p's own muxer: slower, and peers can make it hold much more"
    if is_auto_connecting(swarm):
        yield "the host dials peers by itself: any peer can make it dial any address"


def _stock_noise(key_pair: KeyPair) -> TSecurityOptions:
    return {NOISE: StockNoise(key_pair, noise_privkey=create_new_key_pair().private_key)}


def _multiaddr(address: str | Multiaddr) -> Multiaddr:
    try:
        return Multiaddr(address)
    except ValueError as error:
        raise ConfigError(f"{address} is not a multiaddr: {error}") from error


def _strip(address: Multiaddr) -> Multiaddr:
    return address.decapsulate_code(P_P2P)


def _expand(addresses: Iterable[Multiaddr]) -> list[Multiaddr]:
    """Each wildcard as the addresses of this machine's interfaces, in place; or loopback, if that leaves nothing."""
    expanded = [each for address in addresses for each in expand_wildcard_address(address)]
    # Of a kind of address that the machine has none of, the wildcard is kept, which nobody can dial.
    known = [address for address in expanded if not _WILDCARD.match(str(address))]
    return known or [Multiaddr(_WILDCARD.sub(lambda found: _LOOPBACK[found[0]], str(each))) for each in expanded]


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for each in error.exceptions for leaf in _leaves(each)]


async def _close(host: BasicHost, swarm: Swarm) -> None:
    with trio.move_on_after(CLOSE_TIMEOUT_S) as scope:
        scope.shield = True
        async with trio.open_nursery() as nursery:
            for connection in swarm.get_connections():
                nursery.start_soon(connection.close)
            for listener in list(swarm.listeners.values()):
                nursery.start_soon(listener.close)
        await host.close()
