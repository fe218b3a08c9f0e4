"""Host names in multiaddrs, asked of the system's resolver.

py-libp2p asks a name server itself, so it does not know the names of this machine and its network: those in
``/etc/hosts``, those of containers, ``localhost``; and a name that does not exist fails as "IP address not found".

Where a name leads is for its owner to say, so a name that a stranger tells of may lead inside: to this machine, or to
what on its network trusts it. What a name may lead to at the nearest is the asker's to say
(:mod:`prime_dht.net.addresses`), and is judged by the addresses found, which are the ones that are dialled.
"""

from __future__ import annotations

import socket
from itertools import islice

import trio
from multiaddr import Multiaddr

from prime_dht.errors import QueryError
from prime_dht.net.addresses import Reach, reach_of

MAX_RESOLVED = 8
"""Addresses of one name that are tried."""

_FAMILY_OF = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}


def is_named(address: Multiaddr) -> bool:
    """Whether a multiaddr is a host name and a TCP port. Other transports need the name itself, to check who answers.

    >>> is_named(Multiaddr("/dns4/a.example/tcp/1")), is_named(Multiaddr("/dns4/a.example/tcp/1/wss"))
    (True, False)
    """
    kind, *rest = (protocol.name for protocol in address.protocols())
    return kind in _FAMILY_OF and rest == ["tcp"]


async def resolve(address: Multiaddr, *, nearest: Reach) -> tuple[Multiaddr, ...]:
    """A named multiaddr with each of the name's IP addresses in the place of the name, at least one.

    Args:
        nearest: addresses of less reach are left out.

    Raises:
        QueryError: the name has no address, or none of such a reach.
    """
    _, kind, name, rest = str(address).split("/", 3)
    try:
        found = await trio.socket.getaddrinfo(name, None, family=_FAMILY_OF[kind], type=socket.SOCK_STREAM)
    except OSError as error:
        raise QueryError(f"the name {name} cannot be resolved: {error.strerror or error}") from error
    ips = dict.fromkeys((family, str(sockaddr[0])) for family, _type, _protocol, _canonical, sockaddr in found)
    resolved = (Multiaddr(f"/{'ip4' if family == socket.AF_INET else 'ip6'}/{ip}/{rest}") for family, ip in ips)
    credible = tuple(islice((each for each in resolved if reach_of(each.to_bytes()) >= nearest), MAX_RESOLVED))
    if not credible:
        raise QueryError(f"the name {name} leads inside, which is not believed of what a peer tells")
    return credible
