"""The py-libp2p objects that guards act on."""

from __future__ import annotations

from libp2p.abc import IHost
from libp2p.host.basic_host import BasicHost
from libp2p.network.swarm import Swarm

from prime_dht.errors import ConfigError


def parts_of(host: IHost) -> tuple[BasicHost, Swarm]:
    """A host and its swarm, as the classes whose methods guards wrap.

    Raises:
        ConfigError: the host is made of other classes.
    """
    if not isinstance(host, BasicHost):
        raise ConfigError(f"{type(host).__name__} is not a py-libp2p BasicHost")
    swarm = host.get_network()
    if not isinstance(swarm, Swarm):
        raise ConfigError(f"{type(swarm).__name__} is not a py-libp2p Swarm")
    return host, swarm
