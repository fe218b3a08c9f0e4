"""A15: a machine that knows of no name server can run a node, for which IP addresses are enough.

Defect (py-multiaddr 0.2.0, py-libp2p 0.8.1): whoever makes a ``DNSResolver`` where ``/etc/resolv.conf`` is not there,
is empty or makes no sense gets an exception. py-libp2p makes one when it is imported and one for each swarm, long
before there is a name to resolve, so offline, or in a container without a network, it cannot even be imported.

Why this works: a resolver that cannot be configured has no name servers, and says so when it is asked for a name.
Nothing changes where there are any. Names that this node dials go to the system's resolver anyway
(:mod:`prime_dht.net.names`). Unlike other guards this one is for the whole process, and has to be in place before
py-libp2p is imported, whichever module of prime_dht does that first. So prime_dht itself sets it up, and the import of
py-libp2p runs it: what it changes takes half a second to import, which is too much for a program that only looks at its
arguments.

It can go when py-libp2p makes resolvers where it has a name to resolve.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class _BeforeLibp2p:
    """Finds no module, and is asked for each.

    Not a subclass of ``importlib.abc.MetaPathFinder``, which takes longer to import than all else here.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname == "libp2p":
            sys.meta_path.remove(self)
            _guard_resolvers()
        return None


def _guard_resolvers() -> None:
    from dns.asyncresolver import Resolver
    from dns.exception import DNSException
    from multiaddr.resolvers.dns import DNSResolver

    stock = DNSResolver.__init__

    def __init__(self: DNSResolver) -> None:  # noqa: N807
        try:
            stock(self)
        except (DNSException, ValueError):  # no file, or no name server in it; or what is neither a name nor an address
            self._resolver = Resolver(configure=False)

    DNSResolver.__init__ = __init__


def do_without_name_servers() -> None:
    """Guard the resolvers of this process: from the import of py-libp2p on, or at once if that has happened."""
    if "libp2p" in sys.modules:
        _guard_resolvers()
    else:
        sys.meta_path.insert(0, _BeforeLibp2p())
