"""A15: machines that know of no name server."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import dns.name
import dns.resolver
import pytest
from libp2p.host.basic_host import BasicHost
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr
from multiaddr.exceptions import ResolutionError
from multiaddr.resolvers import DNSResolver

from prime_dht.testing.processes import Ended, run

OpenHost = Callable[..., AbstractAsyncContextManager[BasicHost]]

NO_FILE = dns.resolver.NoResolverConfiguration("cannot open /etc/resolv.conf")  # type: ignore[no-untyped-call]
NO_NAME = dns.name.EmptyLabel()  # type: ignore[no-untyped-call]

OFFLINE = f"""
import dns.resolver
def no_file(*_):
    raise dns.resolver.{NO_FILE!r}
dns.resolver.BaseResolver.read_resolv_conf = no_file
"""
"""Makes a program one on a machine without the file."""


def python(program: str) -> Ended:
    return run(sys.executable, "-c", program)


def cannot_read(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def read_resolv_conf(*_: object) -> None:
        raise fault

    monkeypatch.setattr(dns.resolver.BaseResolver, "read_resolv_conf", read_resolv_conf)


def test_without_name_servers_libp2p_cannot_be_imported() -> None:
    assert python(f"{OFFLINE}\nimport libp2p").err.endswith(f"NoResolverConfiguration: {NO_FILE}\n")


def test_without_name_servers_every_part_of_ours_can_be_imported() -> None:
    assert python(f"{OFFLINE}\nimport prime_dht.entries.envelope, prime_dht.net.host") == Ended(0, b"", "")


def test_libp2p_may_have_been_imported_while_there_were_name_servers() -> None:
    imported = "import sys; sys.modules['libp2p'] = sys"  # the real one would take a second more
    program = f"import prime_dht, multiaddr.resolvers\n{OFFLINE}\nmultiaddr.resolvers.DNSResolver()"
    assert python(f"{imported}\n{program}") == Ended(0, b"", "")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(NO_FILE, id="no file"),
        pytest.param(ValueError("nameserver x is not a dns.nameserver.Nameserver instance"), id="no address"),
        pytest.param(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), id="no text"),
        pytest.param(NO_NAME, id="no name"),
    ],
)
async def test_without_name_servers_hosts_dial_ip_addresses(
    ours: OpenHost, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    cannot_read(monkeypatch, fault)
    async with ours() as client, ours() as server:
        await client.connect(PeerInfo(server.get_id(), server.get_transport_addrs()))
        assert client.is_peer_connected(server.get_id())


async def test_without_name_servers_a_name_is_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    cannot_read(monkeypatch, NO_FILE)
    with pytest.raises(ResolutionError, match=r"Failed to resolve a\.test"):
        await DNSResolver().resolve(Multiaddr("/dns4/a.test/tcp/1"))


def test_name_servers_are_asked_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_resolv_conf(resolver: dns.resolver.BaseResolver, _file: object) -> None:
        resolver.nameservers = ["192.0.2.53"]

    monkeypatch.setattr(dns.resolver.BaseResolver, "read_resolv_conf", read_resolv_conf)
    assert DNSResolver()._resolver.nameservers == ["192.0.2.53"]
