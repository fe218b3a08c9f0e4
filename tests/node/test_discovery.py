"""Real nodes that find each other: by multicast, by addresses of peers that are not there yet, or are not who they
should be; and those that are to have nothing to do with each other."""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport
from multiaddr import Multiaddr
from trio.testing import wait_all_tasks_blocked

from prime_dht import DhtConfig, NodeConfig, PrimeDHT, QueryError, open_node
from prime_dht.config import Mode
from prime_dht.ids import PeerId, peer_text
from prime_dht.net import mdns
from prime_dht.net.address_book import canonical_address
from prime_dht.net.identity import new_identity, peer_id_of
from prime_dht.node import open as node_open
from prime_dht.node.results import PeerStatus

LISTEN = ("/ip4/127.0.0.1/tcp/0",)
PATIENCE_S = 20.0


def config(*peers: str, network_id: str = "prime", mdns: bool = False, data_dir: Path | None = None) -> NodeConfig:
    return NodeConfig(listen=LISTEN, peers=peers, mdns=mdns, data_dir=data_dir, dht=DhtConfig(network_id=network_id))


async def meets(node: PrimeDHT, other: PrimeDHT) -> PeerStatus:
    """What a node knows of another once it knows it."""
    with trio.fail_after(PATIENCE_S), node.subscribe() as events:
        while True:
            for status in node.peers():
                if status.peer == other.peer_id:
                    return status
            await anext(events)


class Wire:
    """In place of multicast: a local network on which those of one network hear of each other at once."""

    def __init__(self) -> None:
        self._nodes: list[tuple[str, PeerId, tuple[bytes, ...], mdns.Found]] = []

    @asynccontextmanager
    async def open_mdns(
        self, *, peer: PeerId, addresses: Callable[[], tuple[bytes, ...]], network_id: str, found: mdns.Found
    ) -> AsyncIterator[None]:
        canonical = tuple(filter(None, (canonical_address(peer, raw) for raw in addresses())))
        for other_network, other, other_addresses, other_found in self._nodes:
            if other_network == network_id:
                found(other, other_addresses)
                other_found(peer, canonical)
        self._nodes.append((network_id, peer, canonical, found))
        yield


@pytest.fixture(params=["multicast", "no multicast"])
def _local_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the test's own, on the loopback interface; and the same where nothing can be multicast."""
    if request.param == "multicast":
        monkeypatch.setattr(mdns, "SERVICE_TYPE", f"_p2p-{secrets.token_hex(5)}._udp.local.")
        monkeypatch.setattr(mdns, "_machine_interfaces", lambda: ["127.0.0.1"])
    else:
        monkeypatch.setattr(node_open, "open_mdns", Wire().open_mdns)


@pytest.mark.usefixtures("_local_network")
async def test_nodes_with_no_bootstrap_peer_find_those_of_their_network_on_the_local_network() -> None:
    async with (
        open_node(config(mdns=True)) as first,
        open_node(config(mdns=True, network_id="another")) as stranger,
        open_node(config(mdns=True)) as second,
    ):
        for node, other in ((first, second), (second, first)):
            assert (await meets(node, other)).source in ("mdns", "identify")
        assert "mdns" in {status.source for node in (first, second) for status in node.peers()}
        receipt = await first.put("k", b"value")
        assert len(receipt.stored_by) == 2
        found = await second.get("k", latest=True)
        assert found is not None
        async with open_node(config(mdns=True, network_id="another")) as friend:
            await meets(friend, stranger)  # by then it has heard the first two as well
            assert len(friend.peers()) == 1
        assert {status.peer for status in first.peers()} == {second.peer_id}
        assert await first.find_peer(stranger.peer_id) is None


async def test_a_node_that_knows_nobody_says_that_it_is_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="prime_dht.node.maintenance")
    async with open_node(config()) as node:
        assert await node.bootstrap() == 0
        await wait_all_tasks_blocked()
        assert [record.getMessage() for record in caplog.records if "alone" in record.getMessage()] == [
            "alone: no other node is known; others can join through this one"
        ]
        assert (await node.health()).warnings == ("no other server is known",)


async def test_a_client_that_knows_nobody_does_not_invite_others_to_join_through_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="prime_dht.node.maintenance")
    async with open_node(replace(config(), dht=DhtConfig(mode=Mode.CLIENT))) as node:
        assert await node.bootstrap() == 0
        await wait_all_tasks_blocked()
        assert not [record for record in caplog.records if "alone" in record.getMessage()]


async def test_a_node_whose_bootstrap_peer_is_not_up_yet_joins_when_it_appears(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_node(config(data_dir=tmp_path)) as later:
        (address,) = later.addresses()
    listen = address.partition("/p2p/")[0]
    async with open_node(config(address)) as node:
        with pytest.raises(QueryError, match=r"no bootstrap peer answers: .*refused"):
            await node.bootstrap()
        async with open_node(NodeConfig(listen=(listen,), data_dir=tmp_path)) as later:
            status = await meets(node, later)
            assert status.source == "bootstrap"
            await meets(later, node)
    (said,) = [record for record in caplog.records if record.getMessage().startswith("not joined")]
    assert said.levelno == logging.WARNING
    assert "trying again" in said.getMessage()


async def test_of_several_bootstrap_peers_one_that_lives_is_enough() -> None:
    async with open_node(config()) as gone:
        (dead,) = gone.addresses()
    nobody = f"/dns4/nobody.invalid/tcp/4001/p2p/{peer_text(peer_id_of(new_identity()))}"
    async with open_node(config()) as living, open_node(config(dead, nobody, *living.addresses())) as node:
        assert await node.bootstrap() == 1
        assert [status.peer for status in node.peers()] == [living.peer_id]


class Names(trio.abc.HostnameResolver):
    """A resolver that knows one name."""

    async def getaddrinfo(
        self, host: bytes | None, *_arguments: object, **_options: object
    ) -> list[tuple[int, int, int, str, tuple[Any, ...]]]:
        if host != b"node.test":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    async def getnameinfo(self, sockaddr: object, flags: int) -> tuple[str, str]:
        raise NotImplementedError


async def test_a_name_is_resolved_by_the_system_and_one_that_cannot_be_is_named_in_the_reason() -> None:
    trio.socket.set_custom_hostname_resolver(Names())
    async with open_node(config()) as node, open_node(config()) as other:
        port = other.addresses()[0].split("/")[4]
        peer = peer_text(other.peer_id)
        with pytest.raises(QueryError, match=r"the name absent\.test cannot be resolved: Name or service not known"):
            await node.add_peer(f"/dns4/absent.test/tcp/{port}/p2p/{peer}")
        assert await node.add_peer(f"/dns4/node.test/tcp/{port}/p2p/{peer}") == other.peer_id


async def test_another_peer_at_the_address_is_said_to_be_there() -> None:
    async with open_node(config()) as node, open_node(config()) as other:
        expected, address = peer_id_of(new_identity()), other.addresses()[0].partition("/p2p/")[0]
        with pytest.raises(QueryError, match=f"another peer answers there: {peer_text(other.peer_id)}"):
            await node.add_peer(f"{address}/p2p/{peer_text(expected)}")
        assert node.peers() == []


async def test_how_and_when_a_peer_was_found_outlives_a_restart(tmp_path: Path) -> None:
    async with open_node(config()) as other:
        async with open_node(config(data_dir=tmp_path)) as node:
            await node.add_peer(other.addresses()[0])
            before = await meets(node, other)
        async with open_node(config(data_dir=tmp_path)) as node:
            after = await meets(node, other)
    assert before.source == after.source == "manual"
    assert before.first_seen_us == after.first_seen_us
    assert before.last_seen_us is not None
    assert after.last_seen_us is not None
    assert before.last_seen_us < after.last_seen_us


async def test_networks_that_are_given_each_other_s_addresses_do_not_mix_and_say_why() -> None:
    async with open_node(config()) as one, open_node(config(*one.addresses(), network_id="lab")) as other:
        with pytest.raises(QueryError, match=r"serves no /prime/lab/kad/1\.0\.0: a client, or of another network"):
            await other.bootstrap()
        with pytest.raises(QueryError, match=r"serves no /prime/kad/1\.0\.0: a client, or of another network"):
            await one.add_peer(other.addresses()[0])
        assert one.peers() == other.peers() == []
        assert (await one.put("k", b"value")).stored_by == (one.peer_id,)
        with pytest.raises(QueryError, match="has not joined"):
            await other.get("k")


async def test_a_node_with_a_list_of_peers_has_to_do_with_no_other() -> None:
    async with AsyncExitStack() as stack:
        friend = await stack.enter_async_context(open_node(config()))
        stranger = await stack.enter_async_context(open_node(config(*friend.addresses())))
        await stranger.bootstrap()
        allow = DhtConfig(allow_peers=frozenset({peer_text(friend.peer_id)}))
        node = await stack.enter_async_context(
            open_node(NodeConfig(listen=LISTEN, peers=tuple(friend.addresses()), dht=allow))
        )
        assert await node.bootstrap() == 1, "the friend names the stranger, but that is not met"
        await node.find_closest("k")
        assert [status.peer for status in node.peers()] == [friend.peer_id]
        with pytest.raises(QueryError, match="is not one of allow_peers"):
            await node.add_peer(stranger.addresses()[0])
        with pytest.raises(QueryError):
            await stranger.add_peer(node.addresses()[0])
        assert (await node.health()).connected == 1
        assert node.peer_id not in {status.peer for status in stranger.peers()}
        assert len((await node.put("k", b"value")).stored_by) == 2


async def test_on_a_host_of_somebody_else_s_strangers_are_connected_and_told_that_they_are_not_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pair, address = new_identity(), Multiaddr(LISTEN[0])
    noise = Transport(pair, noise_privkey=create_new_key_pair().private_key)
    host = new_host(key_pair=pair, sec_opt={NOISE: noise}, listen_addrs=[address])
    allow = DhtConfig(allow_peers=frozenset())
    async with open_node(config()) as stranger, host.run([address]), PrimeDHT(host, allow) as node:
        with pytest.raises(QueryError, match="is not one of allow_peers"):
            await stranger.add_peer(node.addresses()[0])
        assert node.peers() == stranger.peers() == []
        assert not [record for record in caplog.records if "not carried out" in record.getMessage()]
        for peer in host.get_connected_peers():  # py-libp2p does not close their sockets by itself
            await host.disconnect(peer)
