"""The py-libp2p objects that guards act on, and through which they hear of what happens."""

from __future__ import annotations

from libp2p.abc import IHost, INetConn, INetStream, INetwork, INotifee
from libp2p.host.basic_host import BasicHost
from libp2p.network.swarm import Swarm
from multiaddr import Multiaddr

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


class Notifee(INotifee):
    """Hears nothing; a subclass hears what it is for."""

    async def connected(self, network: INetwork, conn: INetConn) -> None: ...
    async def disconnected(self, network: INetwork, conn: INetConn) -> None: ...
    async def opened_stream(self, network: INetwork, stream: INetStream) -> None: ...
    async def closed_stream(self, network: INetwork, stream: INetStream) -> None: ...
    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None: ...
    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None: ...
