"""Names in multiaddrs, and the addresses that stand for them."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio
from multiaddr import Multiaddr

from prime_dht.errors import QueryError
from prime_dht.net.addresses import Reach
from prime_dht.net.names import MAX_RESOLVED, resolve


class Names(trio.abc.HostnameResolver):
    """A resolver that knows a few names."""

    async def getaddrinfo(
        self, host: bytes | None, port: object, family: int = 0, *_more: object, **_options: object
    ) -> list[tuple[int, int, int, str, tuple[Any, ...]]]:
        four = [(int(socket.AF_INET), 1, 6, "", ("192.0.2.1", 0)), (int(socket.AF_INET), 1, 6, "", ("192.0.2.1", 0))]
        six = [(int(socket.AF_INET6), 1, 6, "", ("2001:db8::1", 0, 0, 0))]
        match host, family:
            case b"node.test", socket.AF_INET:
                return [*four]
            case b"node.test", socket.AF_INET6:
                return [*six]
            case b"node.test", socket.AF_UNSPEC:
                return [*four, *six]
            case b"crowd.test", _:
                return [(int(socket.AF_INET), 1, 6, "", (f"192.0.2.{number}", 0)) for number in range(100)]
            case b"mixed.test", _:
                ips = ("127.0.0.1", "10.0.0.1", "11.0.0.1", "0.0.0.0", "169.254.1.1")
                mapped = [
                    (int(socket.AF_INET6), 1, 6, "", (ip, 0, 0, 0)) for ip in ("::1", "fd00::1", "::ffff:10.0.0.1")
                ]
                return [*((int(socket.AF_INET), 1, 6, "", (ip, 0)) for ip in ips), *mapped]
            case b"inside.test", _:
                return [(int(socket.AF_INET), 1, 6, "", ("10.0.0.1", 0))]
            case _:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def getnameinfo(self, sockaddr: object, flags: int) -> tuple[str, str]:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("named", "resolved"),
    [
        ("/dns4/node.test/tcp/1", ["/ip4/192.0.2.1/tcp/1"]),
        ("/dns6/node.test/tcp/2", ["/ip6/2001:db8::1/tcp/2"]),
        ("/dns/node.test/tcp/3", ["/ip4/192.0.2.1/tcp/3", "/ip6/2001:db8::1/tcp/3"]),
    ],
)
async def test_a_name_is_as_many_addresses_as_it_has(named: str, resolved: list[str]) -> None:
    trio.socket.set_custom_hostname_resolver(Names())
    assert [str(each) for each in await resolve(Multiaddr(named), nearest=Reach.MACHINE)] == resolved


async def test_of_a_name_with_a_hundred_addresses_a_few_are_taken() -> None:
    trio.socket.set_custom_hostname_resolver(Names())
    assert len(await resolve(Multiaddr("/dns4/crowd.test/tcp/1"), nearest=Reach.MACHINE)) == MAX_RESOLVED


async def test_a_name_that_has_no_address_is_named_in_the_error() -> None:
    trio.socket.set_custom_hostname_resolver(Names())
    with pytest.raises(QueryError, match=r"the name nobody\.test cannot be resolved: Name or service not known"):
        await resolve(Multiaddr("/dns4/nobody.test/tcp/1"), nearest=Reach.MACHINE)


@pytest.mark.parametrize(
    ("nearest", "resolved"),
    [
        (Reach.INTERNET, ["/ip4/11.0.0.1/tcp/1"]),
        (
            Reach.LOCAL_NETWORK,
            [
                "/ip4/10.0.0.1/tcp/1",
                "/ip4/11.0.0.1/tcp/1",
                "/ip4/169.254.1.1/tcp/1",
                "/ip6/fd00::1/tcp/1",
                "/ip6/::ffff:10.0.0.1/tcp/1",
            ],
        ),
    ],
)
async def test_where_a_name_leads_is_judged_by_its_addresses(nearest: Reach, resolved: list[str]) -> None:
    trio.socket.set_custom_hostname_resolver(Names())
    found = await resolve(Multiaddr("/dns/mixed.test/tcp/1"), nearest=nearest)
    assert found == tuple(map(Multiaddr, resolved))


async def test_a_name_that_leads_inside_alone_is_not_believed() -> None:
    trio.socket.set_custom_hostname_resolver(Names())
    with pytest.raises(QueryError, match=r"the name inside\.test leads inside"):
        await resolve(Multiaddr("/dns4/inside.test/tcp/6379"), nearest=Reach.INTERNET)
