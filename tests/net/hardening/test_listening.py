"""A10: listening."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
from libp2p.host.basic_host import BasicHost
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp.tcp import TCPListener
from multiaddr import Multiaddr

from prime_dht.errors import ConfigError
from prime_dht.net.hardening.listening import check_port_free

OpenHost = Callable[..., AbstractAsyncContextManager[BasicHost]]


async def test_two_stock_hosts_share_a_port_without_noticing(stock: OpenHost) -> None:
    async with stock() as first:
        (address,) = first.get_transport_addrs()
        async with stock(listen=(str(address),)) as second:
            assert second.get_transport_addrs() == [address]


@pytest.mark.parametrize("ip", ["/ip4/127.0.0.1", "/ip6/::1"])
async def test_ours_does_not_share_a_port(stock: OpenHost, ours: OpenHost, ip: str) -> None:
    async with stock(listen=(f"{ip}/tcp/0",)) as first:
        (address,) = first.get_transport_addrs()
        with pytest.raises(ConfigError, match=f"cannot listen on {address}: Address already in use"):
            async with ours(listen=(str(address),)):
                pass


def test_a_port_whose_last_connections_linger_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        address = Multiaddr(f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}")
        accepted, _ = server.accept()
        accepted.close()  # who closes first has the connection in TIME_WAIT
        assert client.recv(1) == b""
    check_port_free(address)


async def test_a_stock_host_starts_without_the_address_it_cannot_have(stock: OpenHost) -> None:
    async with stock(listen=("/ip4/203.0.113.9/tcp/0",)) as host:
        assert host.get_transport_addrs() == []


@pytest.mark.parametrize("address", ["/ip4/203.0.113.9/tcp/0", "/ip4/203.0.113.9/tcp/4001", "/ip6/2001:db8::9/tcp/0"])
async def test_ours_does_not_start_without_an_address_it_was_told_to_have(ours: OpenHost, address: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {address}: Cannot assign requested address"):
        async with ours(listen=("/ip4/127.0.0.1/tcp/0", address)):
            pass


async def test_a_listen_that_fails_without_a_reason_is_an_error_too(
    ours: OpenHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TCPListener, "listen", fail_to_listen)
    with pytest.raises(ConfigError, match=r"cannot listen on /ip4/127\.0\.0\.1/tcp/0, and py-libp2p does not say why"):
        async with ours():
            pass


async def fail_to_listen(*_: object) -> None:
    raise OpenConnectionError


def test_no_more_open_files_are_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", no_socket)
    with pytest.raises(ConfigError, match=r"cannot listen on /ip4/127\.0\.0\.1/tcp/0: Too many open files"):
        check_port_free(Multiaddr("/ip4/127.0.0.1/tcp/0"))


async def test_a_stock_host_told_of_a_name_listens_on_every_interface(stock: OpenHost) -> None:
    async with stock(listen=("/dns4/localhost/tcp/0",)) as host:
        assert "/0.0.0.0/" in str(host.get_transport_addrs()[0])


def test_a_port_is_free_when_nobody_listens_on_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = Multiaddr(f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}")
        with pytest.raises(ConfigError):
            check_port_free(address)
    check_port_free(address)
