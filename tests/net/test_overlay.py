"""The network of a node over libp2p: what is mounted on the host, and whose addresses are known."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from multiaddr import Multiaddr
from multiaddr.protocols import P_P2P
from trio.testing import wait_all_tasks_blocked

from prime_dht.config import DhtConfig
from prime_dht.errors import ConfigError, QueryError, RemoteProtocolError
from prime_dht.ids import PeerId
from prime_dht.net import dialer as dialer_module
from prime_dht.net import overlay as overlay_module
from prime_dht.net.addresses import Reach
from prime_dht.net.host import HostSettings, open_host
from prime_dht.net.identity import new_identity
from prime_dht.net.network import Network
from prime_dht.net.overlay import OWN_ADDRESSES_FRESH_S, Overlay
from prime_dht.net.rpc_client import STREAMS_PER_PEER
from prime_dht.wire.frames import encode_frame
from prime_dht.wire.kad import FindNode, Ping, Reply, Request

ADDRESS = Multiaddr("/ip4/192.0.2.1/tcp/4001").to_bytes()
OTHER_ADDRESS = Multiaddr("/ip4/192.0.2.2/tcp/4001").to_bytes()
NODE_PROTOCOLS = {"/prime/kad/1.0.0", "/prime/rpc/1.0.0"}
SOMEBODY = PeerId(b"\x00\x02xy")


async def name_the_asker(peer: PeerId, request: Request) -> Reply:
    if isinstance(request, FindNode):
        raise RemoteProtocolError("no such request here")
    return Reply(next_cursor=peer)


@asynccontextmanager
async def running_overlay(
    config: DhtConfig | None = None, *, listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
) -> AsyncIterator[tuple[Overlay, IHost]]:
    async with (
        open_host(HostSettings(key_pair=new_identity(), listen=listen)) as host,
        trio.open_nursery() as nursery,
    ):
        overlay = Overlay(host, config or DhtConfig(), name_the_asker)
        await nursery.start(overlay.run)
        yield overlay, host
        nursery.cancel_scope.cancel()


def protocols_of(host: IHost) -> set[str]:
    return {
        protocol for protocol in map(str, host.get_mux().get_protocols()) if "/kad/" in protocol or "/rpc/" in protocol
    }


def introduce(overlay: Overlay, other: Overlay) -> None:
    overlay.learn_addresses(other.local, other.own_addresses(), source="manual")


async def test_it_is_a_network() -> None:
    async with running_overlay() as (overlay, _):
        network: Network = overlay
        assert network.local == overlay.local


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DhtConfig(), {"/prime/kad/1.0.0", "/prime/rpc/1.0.0"}),
        (DhtConfig(pipelining=False), {"/prime/kad/1.0.0"}),
        (DhtConfig(protocol_prefix="/ipfs"), {"/ipfs/kad/1.0.0", "/ipfs/rpc/1.0.0"}),
    ],
)
async def test_a_server_offers_its_protocols_while_it_is_mounted(config: DhtConfig, expected: set[str]) -> None:
    async with running_overlay(config) as (overlay, host):
        overlay.mount(as_server=True)
        assert protocols_of(host) == expected
        overlay.unmount()
        assert protocols_of(host) == set()


async def test_of_two_nodes_of_one_network_on_a_host_the_second_is_refused_and_the_first_is_heard() -> None:
    async with running_overlay() as (overlay, host), running_overlay() as (asker, _):
        overlay.mount(as_server=True)
        second = Overlay(host, DhtConfig(), name_the_asker)
        with pytest.raises(ConfigError, match=r"the host serves /prime/kad/1\.0\.0, /prime/rpc/1\.0\.0 already"):
            second.mount(as_server=True)
        second.unmount()
        introduce(asker, overlay)
        assert (await asker.call(overlay.local, Ping(), timeout_s=5.0)).next_cursor == asker.local
        overlay.unmount()
        second.mount(as_server=True)
        assert protocols_of(host) == NODE_PROTOCOLS


async def test_a_handler_of_the_hosts_owner_stays() -> None:
    async def own(stream: INetStream) -> None:
        await stream.reset()

    async with running_overlay() as (overlay, host):
        overlay.mount(as_server=True)
        host.set_stream_handler(TProtocol("/prime/kad/1.0.0"), own)
        overlay.unmount()
        assert host.get_mux().handlers[TProtocol("/prime/kad/1.0.0")] is own
        with pytest.raises(ConfigError):
            overlay.mount(as_server=True)
        assert protocols_of(host) == {"/prime/kad/1.0.0"}


async def test_a_client_offers_nothing() -> None:
    async with running_overlay() as (overlay, host):
        overlay.mount(as_server=False)
        assert protocols_of(host) == set()


@pytest.mark.parametrize("pipelining", [True, False])
async def test_two_nodes_ask_each_other_over_one_connection(pipelining: bool) -> None:
    config = DhtConfig(pipelining=pipelining)
    async with running_overlay(config) as (one, _), running_overlay(config) as (other, other_host):
        for overlay in (one, other):
            overlay.mount(as_server=True)
        introduce(one, other)
        assert (await one.call(other.local, Ping(), timeout_s=5.0)).next_cursor == one.local
        assert (await other.call(one.local, Ping(), timeout_s=5.0)).next_cursor == other.local
        assert one.connected_peers() == (other.local,)
        assert other.is_connected(one.local)
        assert one.remote_address_of(other.local) == other.own_addresses()[0]
        assert one.counters().requests_sent == 1
        assert one.counters().requests_answered == {"Ping": 1}
        connections = other_host.get_network().get_connections()
        protocols = {str(stream.get_protocol()) for each in connections for stream in each.get_streams()}
        assert ("/prime/rpc/1.0.0" in protocols) is pipelining


async def test_200_calls_at_once_over_a_real_connection_are_all_answered_right() -> None:
    async def echo(_peer: PeerId, request: Request) -> Reply:
        assert isinstance(request, FindNode)
        return Reply(next_cursor=request.target)

    async with running_overlay() as (one, _), running_overlay() as (other, _):
        other.server._handler = echo
        other.mount(as_server=True)
        introduce(one, other)

        async def ask(number: int) -> None:
            target = b"%d" % number
            assert (await one.call(other.local, FindNode(target), timeout_s=10.0)).next_cursor == target

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(ask, number)


@pytest.mark.parametrize("pipelining", [True, False])
async def test_400_calls_cancelled_at_any_point_leave_the_connection_whole_and_no_stream_behind(
    pipelining: bool,
) -> None:
    rng = random.Random(1)
    config = DhtConfig(pipelining=pipelining)
    async with running_overlay(config) as (one, host), running_overlay(config) as (other, _):
        other.mount(as_server=True)
        introduce(one, other)

        async def ask() -> None:
            assert (await one.call(other.local, Ping(), timeout_s=10.0)).next_cursor == one.local

        async def cancelled(checkpoints: int) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                for _ in range(checkpoints):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()

        await ask()
        (connection,) = host.get_network().get_connections()
        for _ in range(20):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(cancelled, rng.randint(0, 60))
                nursery.start_soon(ask)
        assert host.get_network().get_connections() == [connection]
        state = one._client._peers[other.local]
        open_streams = [each for each in connection.get_streams() if str(each.get_protocol()) in NODE_PROTOCOLS]
        if state.pipeline is None:
            assert state.places.value == STREAMS_PER_PEER
            assert len(open_streams) == len(state.idle) <= STREAMS_PER_PEER
        else:
            assert len(open_streams) == 1
        assert other.counters().offences == 0


async def test_offences_are_counted() -> None:
    async with running_overlay() as (one, _), running_overlay() as (other, _):
        other.mount(as_server=True)
        introduce(one, other)
        with pytest.raises(QueryError):
            await one.call(other.local, FindNode(b"x"), timeout_s=5.0)
        assert other.counters().offences == 2  # it was tried once more, on a fresh stream


async def test_one_wrong_answer_is_one_offence_however_many_calls_it_fails() -> None:
    async def answer_wrongly(stream: INetStream) -> None:
        await stream.read(1)
        await wait_all_tasks_blocked()  # until all the calls are under way
        await stream.write(encode_frame(b""))

    async with running_overlay() as (one, _), running_overlay() as (other, host):
        other.mount(as_server=True)
        host.set_stream_handler(TProtocol("/prime/rpc/1.0.0"), answer_wrongly)
        introduce(one, other)

        async def ask() -> None:
            with pytest.raises(RemoteProtocolError):
                await one.call(other.local, Ping(), timeout_s=5.0)

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for _ in range(32):
                    nursery.start_soon(ask)
        assert one.counters().offences == 2
        assert one.counters().backed_off == 0


async def test_a_node_that_is_unmounted_answers_no_more_on_streams_that_are_open_either() -> None:
    async with running_overlay() as (one, _), running_overlay() as (other, _):
        other.mount(as_server=True)
        introduce(one, other)
        await one.call(other.local, Ping(), timeout_s=5.0)
        other.unmount()
        with pytest.raises(QueryError):
            await one.call(other.local, Ping(), timeout_s=5.0)
        assert other.counters().requests_answered == {"Ping": 1}
        assert one.is_connected(other.local)


async def test_a_lost_connection_fails_waiting_calls_at_once_and_the_next_call_dials_anew() -> None:
    asked = trio.Event()

    async def never_answer(_peer: PeerId, _request: Request) -> Reply:
        asked.set()
        await trio.sleep_forever()
        raise AssertionError

    async with running_overlay() as (one, _), running_overlay() as (other, other_host):
        other.server._handler = never_answer
        other.mount(as_server=True)
        introduce(one, other)

        async def lose_the_connection() -> None:
            await asked.wait()
            other.server._handler = name_the_asker
            for connection in list(other_host.get_network().get_connections()):
                await connection.close()

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lose_the_connection)
                reply = await one.call(other.local, Ping(), timeout_s=1000.0)  # by its second try
        assert reply.next_cursor == one.local


async def test_a_peer_that_cannot_be_reached_is_a_query_error() -> None:
    async with running_overlay() as (overlay, _):
        with pytest.raises(QueryError):
            await overlay.call(SOMEBODY, Ping(), timeout_s=5.0)
        with pytest.raises(QueryError, match="itself"):
            await overlay.call(overlay.local, Ping(), timeout_s=5.0)


# Addresses


async def test_own_addresses_are_binary_without_the_peer_id_and_are_asked_for_again_after_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_overlay() as (overlay, host):
        assert [Multiaddr(raw) for raw in overlay.own_addresses()] == [
            address.decapsulate_code(P_P2P) for address in host.get_addrs()
        ]
        before = overlay.own_addresses()
        monkeypatch.setattr(host, "get_addrs", list)
        assert overlay.own_addresses() == before
        now_s = trio.current_time()
        monkeypatch.setattr(trio, "current_time", lambda: now_s + OWN_ADDRESSES_FRESH_S)
        assert overlay.own_addresses() == ()


async def test_a_node_that_does_not_listen_has_no_addresses() -> None:
    async with running_overlay(listen=()) as (overlay, _):
        assert overlay.own_addresses() == ()


async def test_addresses_are_learned_with_who_said_so_but_never_the_nodes_own() -> None:
    async with running_overlay() as (overlay, _):
        overlay.learn_addresses(SOMEBODY, iter([ADDRESS]), source="bootstrap")
        overlay.learn_addresses(SOMEBODY, [ADDRESS, OTHER_ADDRESS], source="kad")
        assert set(overlay.addresses_of(SOMEBODY)) == {ADDRESS, OTHER_ADDRESS}
        assert overlay.source_of(SOMEBODY) == "bootstrap"
        overlay.learn_addresses(overlay.local, [ADDRESS], source="kad")
        assert overlay.source_of(overlay.local) == ""


async def test_a_name_that_a_peer_said_first_may_lead_inside_once_the_owner_vouches_for_it() -> None:
    name = Multiaddr("/dns4/node.lan/tcp/4001").to_bytes()
    async with running_overlay() as (overlay, _):
        for source, nearest in (("kad", Reach.INTERNET), ("manual", Reach.MACHINE), ("kad", Reach.MACHINE)):
            overlay.learn_addresses(SOMEBODY, [name], source=source)
            assert overlay._book.nearest_of(SOMEBODY, name) is nearest


async def test_addresses_that_the_book_has_forgotten_are_learned_anew() -> None:
    async with running_overlay() as (overlay, _):
        overlay.learn_addresses(SOMEBODY, [ADDRESS], source="kad")
        overlay._book._peers.clear()
        assert overlay.addresses_of(SOMEBODY) == ()
        overlay.learn_addresses(SOMEBODY, [ADDRESS], source="kad")
        assert overlay.addresses_of(SOMEBODY) == (ADDRESS,)


async def test_addresses_that_identify_learned_are_used_when_nobody_else_knows_any() -> None:
    async with running_overlay() as (overlay, host):
        public, inside = Multiaddr("/ip4/11.0.0.1/tcp/4001"), Multiaddr("/ip4/127.0.0.1/tcp/22")
        host.get_peerstore().add_addrs(ID(SOMEBODY), [public, inside], 120)
        assert overlay.addresses_of(SOMEBODY) == (public.to_bytes(),)
        assert overlay.source_of(SOMEBODY) == "identify"
        assert overlay.addresses_of(PeerId(b"\x00\x02no")) == ()


async def test_who_does_not_name_itself_is_dialled_back_where_identify_says_that_it_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dialer_module, "reach_of", lambda _address: Reach.INTERNET)
    async with running_overlay() as (overlay, host), running_overlay() as (newcomer, _):
        introduce(newcomer, overlay)
        await newcomer.connect(overlay.local)
        own = [Multiaddr(address) for address in newcomer.own_addresses()]
        host.get_peerstore().add_addrs(ID(newcomer.local), own, 120)
        await overlay.dial_back(newcomer.local)
        assert overlay.is_dialable(newcomer.local)


@pytest.mark.parametrize(
    ("own", "as_server", "is_told"),
    [(Reach.LOCAL_NETWORK, True, True), (Reach.INTERNET, True, False), (Reach.LOCAL_NETWORK, False, False)],
)
async def test_a_server_behind_a_nat_is_told_once_that_nobody_can_dial_it(
    own: Reach,
    as_server: bool,
    is_told: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running_overlay() as (overlay, _), running_overlay() as (first, _), running_overlay() as (second, _):
        reaches = dict.fromkeys(overlay.own_addresses(), own)
        monkeypatch.setattr(overlay_module, "reach_of", lambda address: reaches.get(address, Reach.INTERNET))
        overlay.mount(as_server=as_server)
        for peer in (first, second):
            overlay.learn_addresses(peer.local, peer.own_addresses(), source="manual")
            await overlay.connect(peer.local)
    said = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == is_told
