"""A host's life: what it is made of, where it listens, how it ends; and what becomes of hosts made elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p import new_host
from libp2p.abc import IHost
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.host.ping import ID as PING
from libp2p.host.ping import perform_ping_roundtrip
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamReset
from libp2p.peer.peerinfo import PeerInfo, info_from_p2p_addr
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.utils import encode_delim
from multiaddr import Multiaddr

from prime_dht.errors import ConfigError
from prime_dht.ids import peer_text
from prime_dht.net import host as host_module
from prime_dht.net.hardening.parts import parts_of
from prime_dht.net.host import HostSettings, guard_host, listen_addresses, open_host
from prime_dht.net.identity import new_identity, peer_id_of

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


def settings(
    *listen: str, announce: tuple[str, ...] = (), fast_transport: bool = True, identify_all: bool = False
) -> HostSettings:
    return HostSettings(
        key_pair=new_identity(),
        listen=listen or (LOOPBACK,),
        announce=announce,
        fast_transport=fast_transport,
        identify_all=identify_all,
    )


def plain_host() -> BasicHost:
    return parts_of(new_host(key_pair=create_new_key_pair()))[0]


@asynccontextmanager
async def running(host: BasicHost) -> AsyncIterator[BasicHost]:
    async with host.run([Multiaddr(LOOPBACK)]):
        try:
            yield host
        finally:
            with trio.CancelScope() as scope:
                scope.shield = True
                await host.close()


async def connect(client: IHost, server: IHost) -> None:
    await client.connect(info_from_p2p_addr(listen_addresses(server)[0]))


async def ping(client: IHost, server: IHost) -> None:
    stream = await client.new_stream(server.get_id(), [PING])
    await perform_ping_roundtrip(stream)
    await stream.close()


async def accepts_connections(address: Multiaddr) -> bool:
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", int(address.value_for_protocol("tcp")))
    except OSError:
        return False
    await stream.aclose()
    return True


@pytest.mark.parametrize("fast_server", [True, False])
@pytest.mark.parametrize("fast_client", [True, False])
async def test_hosts_of_either_transport_understand_each_other(fast_client: bool, fast_server: bool) -> None:
    with trio.fail_after(30):
        async with (
            open_host(settings(fast_transport=fast_client)) as client,
            open_host(settings(fast_transport=fast_server)) as server,
        ):
            await connect(client, server)
            await ping(client, server)
            await ping(server, client)


async def test_a_stock_host_and_ours_understand_each_other() -> None:
    with trio.fail_after(30):
        async with running(plain_host()) as stock, open_host(settings()) as ours, open_host(settings()) as other:
            await connect(stock, ours)
            await ping(stock, ours)
            await ping(ours, stock)
            await connect(other, stock)
            await ping(other, stock)


async def test_a_host_has_the_identity_it_was_given() -> None:
    given = settings()
    async with open_host(given) as host:
        assert host.get_id().to_bytes() == peer_id_of(given.key_pair)


async def plaintext_client_connects(server: IHost) -> None:
    key_pair = create_new_key_pair()
    plaintext = {TProtocol(PLAINTEXT_PROTOCOL_ID): InsecureTransport(key_pair)}
    client, _ = parts_of(new_host(key_pair=key_pair, sec_opt=plaintext))
    async with running(client):
        await connect(client, server)
        await ping(client, server)


async def test_a_stock_host_speaks_plaintext() -> None:
    with trio.fail_after(30):
        async with running(plain_host()) as server:
            await plaintext_client_connects(server)


async def test_ours_speaks_noise_only() -> None:
    with trio.fail_after(30):
        async with open_host(settings()) as server:
            with pytest.raises(BaseExceptionGroup) as caught:
                await plaintext_client_connects(server)
            assert caught.value.subgroup(SwarmException) is not None


async def test_listen_addresses_are_complete_and_can_be_dialled() -> None:
    with trio.fail_after(30):
        async with open_host(settings(LOOPBACK, "/ip6/::1/tcp/0")) as server, open_host(settings()) as client:
            addresses = listen_addresses(server)
            assert sorted(address.value_for_protocol("p2p") for address in addresses) == [str(server.get_id())] * 2
            for address in addresses:
                await client.connect(info_from_p2p_addr(address))
                await client.disconnect(server.get_id())


@pytest.mark.parametrize("wildcard", ["/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0"])
async def test_a_wildcard_stands_for_the_machine_s_own_addresses(wildcard: str) -> None:
    with trio.fail_after(30):
        async with open_host(settings(wildcard)) as server, open_host(settings()) as client:
            addresses = listen_addresses(server)
            assert addresses
            assert not [address for address in addresses if "/0.0.0.0/" in str(address) or "/::/" in str(address)]
            await client.connect(info_from_p2p_addr(addresses[0]))


async def test_a_machine_without_a_network_has_its_loopback_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "expand_wildcard_address", lambda address: [address])
    async with open_host(settings("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0")) as host:
        assert sorted(str(address).split("/")[2] for address in listen_addresses(host)) == ["127.0.0.1", "::1"]


async def test_a_machine_without_ipv6_tells_nobody_to_dial_its_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"ip4": "192.0.2.1", "ip6": "::"}

    def expand(address: Multiaddr) -> list[Multiaddr]:
        _, kind, _, rest = str(address).split("/", 3)
        return [Multiaddr(f"/{kind}/{own[kind]}/{rest}")]

    monkeypatch.setattr(host_module, "expand_wildcard_address", expand)
    async with open_host(settings("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0")) as host:
        assert [str(address).split("/")[2] for address in listen_addresses(host)] == ["192.0.2.1"]


async def test_the_wildcard_of_a_host_made_elsewhere_is_expanded_too() -> None:
    host = plain_host()
    async with host.run([Multiaddr("/ip4/0.0.0.0/tcp/0")]):
        assert not [address for address in listen_addresses(host) if "/0.0.0.0/" in str(address)]
        await host.close()


async def test_what_is_announced_replaces_what_is_listened_on() -> None:
    announced = "/dns4/node.example/tcp/4001"
    async with open_host(settings(announce=(announced,))) as host:
        assert listen_addresses(host) == (Multiaddr(f"{announced}/p2p/{host.get_id()}"),)


async def test_a_host_without_addresses_only_dials() -> None:
    with trio.fail_after(30):
        async with open_host(HostSettings(key_pair=new_identity())) as client, open_host(settings()) as server:
            assert listen_addresses(client) == ()
            await connect(client, server)
            await ping(server, client)


@pytest.mark.parametrize("address", ["nonsense", "/ip4/1.2.3/tcp/1", "/ip4/127.0.0.1/tcp/65536", "/ip4"])
def test_a_malformed_address_is_a_config_error_that_names_it(address: str) -> None:
    with pytest.raises(ConfigError, match=f"^{address} is not a multiaddr") as caught:
        settings(address)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=f"^{address} is not a multiaddr"):
        settings(announce=(address,))


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("/dns4/localhost/tcp/4999", "does not begin with an IP address"),
        ("/ip4/127.0.0.1/tcp/4001/ws", "is not TCP alone"),
        ("/ip4/127.0.0.1", "has no port"),
    ],
)
def test_what_cannot_be_listened_on_is_a_config_error_that_says_why(address: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=f"^cannot listen on {address}: it {fault}: a node listens on an IP address"):
        settings(address)


def test_what_nobody_can_dial_is_not_announced_nor_is_another_peer() -> None:
    other = peer_text(peer_id_of(new_identity()))
    for address, fault in (
        ("/ip4/192.0.2.1/tcp/0", "it has no port"),
        (f"/ip4/192.0.2.1/tcp/1/p2p/{other}", "this node"),
    ):
        with pytest.raises(ConfigError, match=f"^cannot announce {address}: {fault}"):
            settings(announce=(address,))


async def test_an_address_to_listen_on_may_end_in_the_host_s_own_peer_id() -> None:
    key_pair = new_identity()
    own, other = peer_text(peer_id_of(key_pair)), peer_text(peer_id_of(new_identity()))
    with pytest.raises(ConfigError, match=f"^cannot listen on {LOOPBACK}/p2p/{other}: this node is {own}$"):
        HostSettings(key_pair=key_pair, listen=(f"{LOOPBACK}/p2p/{other}",))
    async with open_host(HostSettings(key_pair=key_pair, listen=(f"{LOOPBACK}/p2p/{own}",))) as host:
        (address,) = listen_addresses(host)
        assert str(address).startswith("/ip4/127.0.0.1/tcp/")
        assert str(address).count(f"/p2p/{own}") == 1
        assert await accepts_connections(address)


def test_settings_are_checked_as_limits_are() -> None:
    with pytest.raises(ConfigError, match="max_connections must be at least 1"):
        HostSettings(key_pair=new_identity(), max_connections=0)


class Mine(Exception):
    pass


async def fail_in_block(error: BaseException) -> None:
    async with open_host(settings()):
        raise error


@pytest.mark.parametrize("error", [Mine(), ExceptionGroup("mine", [Mine(), ValueError()]), KeyboardInterrupt()])
async def test_an_exception_of_the_block_leaves_it_as_itself(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        await fail_in_block(error)
    assert caught.value is error


async def test_a_stock_host_that_stops_with_a_live_connection_keeps_listening() -> None:
    with trio.fail_after(30):
        async with open_host(settings()) as client:
            stock = plain_host()
            async with stock.run([Multiaddr(LOOPBACK)]):
                (address,) = stock.get_transport_addrs()
                await connect(client, stock)
            assert await accepts_connections(address)
            for listener in parts_of(stock)[1].listeners.values():
                await listener.close()


async def test_ours_is_closed_at_the_end_of_its_block() -> None:
    with trio.fail_after(30):
        async with open_host(settings()) as client:
            async with open_host(settings()) as server:
                address = listen_addresses(server)[0]
                await connect(client, server)
            assert not await accepts_connections(address)
            while client.get_connected_peers():
                await trio.lowlevel.checkpoint()


async def connect_and_cancel(client: IHost, scope: trio.CancelScope) -> Multiaddr:
    with scope:
        async with open_host(settings()) as server:
            address = listen_addresses(server)[0]
            await connect(client, server)
            scope.cancel()
            await trio.lowlevel.checkpoint()
    return address


async def test_ours_is_closed_when_its_block_is_cancelled() -> None:
    with trio.fail_after(30):
        async with open_host(settings()) as client:
            scope = trio.CancelScope()
            assert not await accepts_connections(await connect_and_cancel(client, scope))
            assert scope.cancelled_caught


async def test_ours_is_closed_when_its_block_fails() -> None:
    opened: list[Multiaddr] = []

    async def fail() -> None:
        async with open_host(settings()) as server:
            opened.extend(listen_addresses(server))
            raise Mine

    with pytest.raises(Mine):
        await fail()
    assert not await accepts_connections(opened[0])


async def test_a_host_of_ours_needs_no_guards() -> None:
    async with open_host(settings()) as host:
        assert guard_host(host) == []


async def test_a_host_of_ours_on_stock_transport_says_what_that_means() -> None:
    async with open_host(settings(fast_transport=False)) as host:
        assert [warning.split(":")[0] for warning in guard_host(host)] == [
            "the host uses py-libp2p's own Noise",
            "the host uses py-libp2p's own muxer",
        ]


async def test_a_host_made_elsewhere_is_guarded_and_its_weaknesses_are_told() -> None:
    host = plain_host()
    warnings = guard_host(host)
    assert [warning.split(":")[0] for warning in warnings] == [
        "the host also accepts /tls/1.0.0, /secio/1.0.0, /plaintext/2.0.0",
        "the host uses py-libp2p's own Noise",
        "the host uses py-libp2p's own muxer",
        "the host dials peers by itself",
    ]
    assert not [warning for warning in warnings if "\n" in warning]
    handler = parts_of(host)[1].common_stream_handler
    assert guard_host(host) == warnings
    assert parts_of(host)[1].common_stream_handler is handler


async def test_a_running_host_made_elsewhere_survives_once_it_is_guarded() -> None:
    with trio.fail_after(30):
        async with running(plain_host()) as server, open_host(settings()) as client:
            guard_host(server)
            await connect(client, server)
            stream = await client.get_network().new_stream(server.get_id())
            await stream.write(encode_delim(b"/multistream/1.0.0") + encode_delim(b"\xff\xfe\xfa"))
            with pytest.raises(StreamReset):
                await _read_to_the_end(stream.read)
            await ping(client, server)


async def test_a_handler_of_a_host_made_elsewhere_may_pass_its_stream_on() -> None:
    """As circuit relay's do: the guard must not close what a handler has left open on purpose."""
    with trio.fail_after(30):
        host = plain_host()
        guard_host(host)
        passed_on, streams = trio.open_memory_channel[object](1)
        host.set_stream_handler(TProtocol("/pass-on"), passed_on.send)
        async with running(host), open_host(settings()) as client:
            await connect(client, host)
            stream = await client.new_stream(host.get_id(), [TProtocol("/pass-on")])
            kept = await streams.receive()
            await kept.write(b"later")  # type: ignore[attr-defined]
            assert await stream.read(5) == b"later"
        passed_on.close()


async def _read_to_the_end(read: object) -> None:
    while True:
        await read(1024)  # type: ignore[operator]


async def test_what_is_no_py_libp2p_host_is_refused() -> None:
    with pytest.raises(ConfigError, match="object is not a py-libp2p BasicHost"):
        guard_host(object())  # type: ignore[arg-type]


async def test_peers_are_not_dialled_at_addresses_they_made_up() -> None:
    """End to end: what identify puts into the peerstore leads to no dial."""
    with trio.fail_after(30):
        async with (
            open_host(settings(identify_all=True)) as server,
            open_host(settings(announce=("/ip4/127.0.0.1/tcp/1",))) as client,
        ):
            await client.connect(PeerInfo(server.get_id(), parts_of(server)[0].get_transport_addrs()))
            while client.get_id() not in parts_of(server)[0]._identified_peers:
                await trio.lowlevel.checkpoint()
            await parts_of(server)[1].auto_connector.maybe_connect()
            assert len(server.get_network().get_connections()) == 1
