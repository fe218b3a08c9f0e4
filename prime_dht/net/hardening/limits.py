"""P12, A6, A7: what a host may be made to hold, in numbers that hold.

Defects (py-libp2p 0.8.1):

- P12: defaults are implicit and spread over three classes, ``ConnectionConfig``, ``ConnectionLimits`` and
  ``ResourceLimits``; whichever is lowest applies. Graceful degradation halves limits just when they are reached.
- A6: a dial that is cancelled, as the losers of every race of addresses are, never gives back the slot it took of
  ``ResourceLimits.max_connections``: after that many the host can neither dial nor accept.
- A7: one semaphore counts the streams of both directions: strangers who hold it keep this node from opening any.

Why this works: the connection limits are enforced where the swarm registers a connection, by ``ConnectionConfig`` (all)
and ``ConnectionLimits`` (inbound, per peer), which count live connections. The counter that leaks is set out of reach.
Inbound streams are bounded by :mod:`.stream_guard`, below what the swarm allows for both directions together, so the
streams that this node opens always fit.

It can go when cancelled dials give their slot back and inbound streams are counted apart.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.rcmgr import ResourceManager
from libp2p.rcmgr.connection_limits import ConnectionLimits
from libp2p.rcmgr.manager import ConnectionScope, ResourceLimits

from prime_dht.errors import ConfigError

HANDSHAKE_TIMEOUT_S = 10.0
"""Time for a new connection to agree on security and muxer, either way."""

STREAM_NEGOTIATION_TIMEOUT_S = 10.0
"""Time for a new stream to agree on a protocol, either way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLimits:
    """How many connections and streams a host may have.

    Raises:
        ConfigError: a limit is below 1.
    """

    max_connections: int = 300
    """Connections, in and out, at most."""

    max_connections_per_peer: int = 4
    """Connections with one peer, in and out; two peers that dial each other at once make two."""

    max_inbound_per_address: int = 64
    """Inbound connections from one IP address; loopback is exempt, where a whole swarm may live."""

    max_half_open: int = 256
    """Inbound connections that have not yet said who they are; they count apart from the others."""

    max_inbound_streams: int = 4096
    """Streams that peers have open to this host."""

    max_inbound_streams_per_peer: int = 128
    """Streams that one peer has open to this host."""

    max_outbound_streams_per_peer: int = 96
    """Streams this host has open to one peer: fewer than a peer with the same limits accepts."""

    def __post_init__(self) -> None:
        for name in HostLimits.__dataclass_fields__:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def max_inbound_connections(self) -> int:
        """Inbound connections at most: a quarter of all is kept for those this host makes itself.

        >>> HostLimits(max_connections=300).max_inbound_connections
        225
        """
        return self.max_connections - self.max_connections // 4


def connection_config(limits: HostLimits) -> ConnectionConfig:
    """The swarm's configuration: no peer is dialled or dropped unless asked."""
    return ConnectionConfig(
        max_connections=limits.max_connections,
        min_connections=0,
        low_watermark=0,
        high_watermark=limits.max_connections,
        max_connections_per_peer=limits.max_connections_per_peer,
        inbound_upgrade_timeout=HANDSHAKE_TIMEOUT_S,
        outbound_upgrade_timeout=HANDSHAKE_TIMEOUT_S,
        inbound_stream_protocol_negotiation_timeout=STREAM_NEGOTIATION_TIMEOUT_S,
        outbound_stream_protocol_negotiation_timeout=STREAM_NEGOTIATION_TIMEOUT_S,
    )


class _PlainScopes(ResourceManager):
    """Its scopes are closed by their own method: the one that the stock manager gives to each refers back to it, so
    that none would go before garbage is collected, and does nothing more while addresses are not counted."""

    def open_connection(
        self, peer_id: ID | None = None, endpoint_ip: str | None = None, direction: str = "inbound"
    ) -> ConnectionScope | None:
        scope = super().open_connection(peer_id, endpoint_ip, direction)
        if scope is not None:
            vars(scope).pop("close", None)
        return scope


def apply_limits(swarm: Swarm, limits: HostLimits) -> None:
    """Put the limits, and nothing that changes them by itself, in place of the swarm's resource manager."""
    manager = _PlainScopes(
        limits=ResourceLimits(
            max_connections=sys.maxsize,
            max_streams=limits.max_inbound_streams + limits.max_connections * limits.max_outbound_streams_per_peer,
        ),
        connection_limits=ConnectionLimits(
            max_established_inbound=limits.max_inbound_connections,
            max_established_per_peer=limits.max_connections_per_peer,
        ),
        enable_metrics=False,
        enable_circuit_breaker=False,
        enable_graceful_degradation=False,
        # Its buckets are per peer id, and peer ids are free: inbound connections are limited by address instead.
        enable_rate_limiting=False,
    )
    swarm.set_resource_manager(manager, enable_stream_semaphore=False)
    # Whoever dials decides about trying again.
    swarm.retry_config = RetryConfig(max_retries=0)
