"""A10: a port belongs to one node, and a listen that fails is an error.

Defects (py-libp2p 0.8.1): listeners set ``SO_REUSEPORT``, for hole punching, so a second node of the same user on one
port starts without complaint and takes a random half of the first one's connections. ``Host.run`` ignores which of its
addresses could not be listened on.

Why this works: before the host listens, each address is bound once without that option, which fails while any socket
listens at its port, and says why; after it has, every address asked for must have a listener. Between the two another
node can slip in; this is for mistakes, not for attackers.

It can go when sharing the port is an option and ``run`` raises.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

from libp2p.network.swarm import Swarm
from multiaddr import Multiaddr

from prime_dht.errors import ConfigError


def check_port_free(address: Multiaddr) -> None:
    """Make sure that this host can listen where it is about to, and that nobody does.

    Args:
        address: of an IP address and a TCP port.

    Raises:
        ConfigError: the port is taken or needs privileges, the address is not this machine's, or the system has no
            socket for it.
    """
    (family, ip), (_, port) = ((protocol.name, value) for protocol, value in address.items())
    try:
        with socket.socket(socket.AF_INET if family == "ip4" else socket.AF_INET6, socket.SOCK_STREAM) as probe:
            # Connections of a node that has just stopped, in TIME_WAIT, are no hindrance; a listener is.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((ip, int(port)))
    except OSError as error:
        raise ConfigError(f"cannot listen on {address}: {error.strerror}") from error


def unheard(swarm: Swarm, addresses: Iterable[Multiaddr]) -> list[Multiaddr]:
    """Those of the addresses a swarm was told to listen on at which it has no listener."""
    return [address for address in addresses if str(address) not in swarm.listeners]
