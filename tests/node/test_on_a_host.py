"""PrimeDHT on libp2p hosts: its own and other people's, beside whatever else they do."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from libp2p import new_host
from libp2p.abc import (
    IContentRouting,
    IHost,
    IMuxedConn,
    INetConn,
    INetStream,
    INetwork,
    INotifee,
    IPeerRouting,
)
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.routed_host import RoutedHost
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht import (
    ConfigError,
    DhtConfig,
    LocalProtocolError,
    Mode,
    NodeConfig,
    PrimeDHT,
    QueryError,
    ValidationError,
)
from prime_dht.ids import PeerId
from prime_dht.net.host import HostSettings, open_host
from prime_dht.net.identity import new_identity
from prime_dht.storage.memory import MemoryBackend
from prime_dht.wire.kad import Reply, Request

LOOPBACK = Multiaddr("/ip4/127.0.0.1/tcp/0")
ECHO = TProtocol("/echo/1.0.0")
CONTENT = b"\x12\x20" + b"content".ljust(32, b".")
QUIET = DhtConfig(rpc_timeout_s=5.0)


class Met(INotifee):
    """The connections that a host has had. Of those that end at the other side first, py-libp2p leaves sockets open."""

    def __init__(self) -> None:
        self.connections: list[IMuxedConn] = []

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        self.connections.append(conn.muxed_conn)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None: ...

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None: ...

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None: ...

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None: ...

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None: ...


@asynccontextmanager
async def open_foreign_host(router: IPeerRouting | None = None) -> AsyncIterator[IHost]:
    """A host as anybody would make one with py-libp2p alone."""
    pair = new_identity()
    noise = Transport(pair, noise_privkey=create_new_key_pair().private_key)
    host = new_host(key_pair=pair, sec_opt={NOISE: noise}, listen_addrs=[LOOPBACK], disc_opt=router)
    met = Met()
    host.get_network().register_notifee(met)
    async with host.run([LOOPBACK]):
        yield host
        for peer in host.get_connected_peers():
            await host.disconnect(peer)
    for connection in met.connections:
        assert isinstance(connection, Yamux)
        await connection.secured_conn.close()


@asynccontextmanager
async def open_joined(via: Sequence[str] = ()) -> AsyncIterator[PrimeDHT]:
    """A node with a host of its own over loopback that has joined."""
    async with (
        open_host(HostSettings(key_pair=new_identity(), listen=(LOOPBACK,))) as host,
        PrimeDHT(host, QUIET, bootstrap_peers=via) as node,
    ):
        await node.bootstrap()
        yield node


@asynccontextmanager
async def open_swarm(size: int) -> AsyncIterator[list[PrimeDHT]]:
    """Nodes that have joined one after the other, through the first."""
    async with AsyncExitStack() as stack:
        nodes: list[PrimeDHT] = []
        for _ in range(size):
            nodes.append(await stack.enter_async_context(open_joined(nodes[0].addresses() if nodes else ())))
        yield nodes


@pytest.mark.parametrize("size", [1, 2, 3, 5, 20])
async def test_real_nodes_read_what_any_of_them_put(size: int, patient_clock: MockClock) -> None:
    async with open_swarm(size) as nodes:
        receipt = await nodes[-1].put("k", b"value" * 1000)
        assert len(receipt.stored_by) == min(3, size)
        assert receipt.acknowledged
        for node in nodes:
            found = await node.get("k")
            assert found is not None
            assert found.value == b"value" * 1000
            assert found.publisher == nodes[-1].peer_id
        assert await nodes[0].get("nobody's") is None
        many = await nodes[-1].put_many({f"key {number}": b"%d" % number for number in range(50)})
        assert all(one.acknowledged for one in many)
        found_many = await nodes[0].get_many([f"key {number}" for number in range(50)])
        assert [one and one.value for one in found_many.values()] == [b"%d" % number for number in range(50)]


async def test_real_nodes_go_on_when_others_vanish(patient_clock: MockClock) -> None:
    async with open_swarm(2) as (first, second):
        async with open_joined(first.addresses()), open_joined(first.addresses()) as fourth:
            assert len((await fourth.put("k", b"value")).stored_by) == 3
        found = await second.get("k", latest=True)
        assert found is not None
        assert found.value == b"value"
        assert (await second.put("l", b"value")).acknowledged


async def test_on_a_foreign_host_it_runs_beside_other_protocols(patient_clock: MockClock) -> None:
    async def echo(stream: INetStream) -> None:
        await stream.write(await stream.read(100))
        await stream.close()

    async with open_foreign_host() as one, open_foreign_host() as other:
        one.set_stream_handler(ECHO, echo)
        async with PrimeDHT(one) as dht, PrimeDHT(other, bootstrap_peers=dht.addresses()) as second:
            assert await second.bootstrap() == 1
            assert len((await second.put("k", b"value")).stored_by) == 2
            stream = await other.new_stream(one.get_id(), [ECHO])
            await stream.write(b"still here")
            assert await stream.read(100) == b"still here"
            await stream.reset()
            assert (await dht.get("k")) is not None
        stream = await other.new_stream(one.get_id(), [ECHO])
        await stream.write(b"and afterwards")
        assert await stream.read(100) == b"and afterwards"
        await stream.reset()


async def test_what_cannot_be_guarded_on_a_foreign_host_is_logged_and_on_ours_there_is_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, logger="prime_dht.node.dht")
    async with open_host(HostSettings(key_pair=new_identity())) as own, PrimeDHT(own):
        assert not caplog.records
    async with open_foreign_host() as foreign, PrimeDHT(foreign):
        assert any("py-libp2p's own Noise" in record.message for record in caplog.records)


async def test_it_stands_in_for_py_libp2ps_routing_interfaces(patient_clock: MockClock) -> None:
    async with open_swarm(3) as (one, other, third):
        assert isinstance(one, IPeerRouting)
        assert isinstance(one, IContentRouting)
        info = await one.find_peer(ID(third.peer_id))
        assert isinstance(info, PeerInfo)
        assert [f"{address}/p2p/{info.peer_id}" for address in info.addrs] == third.addresses()
        assert await other.provide(CONTENT) is not None
        assert [provider.peer for provider in await one.find_providers(CONTENT)] == [other.peer_id]
        (provider,) = one.find_provider_iter(CONTENT, 5)
        assert provider.peer_id == ID(other.peer_id)


async def test_a_routed_host_dials_a_peer_of_which_only_the_dht_knows_the_address(patient_clock: MockClock) -> None:
    class Router(IPeerRouting):
        """A routed host needs its router before it is there, and PrimeDHT its host."""

        dht: PrimeDHT | None = None

        async def find_peer(self, peer_id: ID) -> PeerInfo | None:
            assert self.dht is not None
            return await self.dht.find_peer(peer_id)

    router = Router()
    async with (
        open_swarm(3) as nodes,
        open_foreign_host(router) as host,
        PrimeDHT(host, bootstrap_peers=nodes[0].addresses()) as router.dht,
        open_host(HostSettings(key_pair=new_identity(), listen=(LOOPBACK,))) as late,
        PrimeDHT(late, bootstrap_peers=nodes[1].addresses()) as hidden,
    ):
        assert isinstance(host, RoutedHost)
        await hidden.bootstrap()
        await host.connect(PeerInfo(late.get_id(), []))
        assert late.get_id() in host.get_connected_peers()


async def test_it_runs_under_background_trio_service(patient_clock: MockClock) -> None:
    async with (
        open_swarm(1) as (first,),
        open_host(HostSettings(key_pair=new_identity(), listen=(LOOPBACK,))) as host,
    ):
        dht = PrimeDHT(host, QUIET, bootstrap_peers=first.addresses())
        async with background_trio_service(dht):
            await dht.bootstrap()
            assert (await dht.put("k", b"value")).acknowledged
            assert await dht.get("k") is not None
        with pytest.raises(LocalProtocolError):
            await dht.get("k")
        assert "/prime/kad/1.0.0" not in host.get_mux().get_protocols()


async def test_two_with_different_prefixes_share_a_host_and_nothing_else(patient_clock: MockClock) -> None:
    async with (
        open_host(HostSettings(key_pair=new_identity(), listen=(LOOPBACK,))) as host,
        PrimeDHT(host) as ours,
        PrimeDHT(host, DhtConfig(protocol_prefix="/other", network_id="other")) as theirs,
        open_host(HostSettings(key_pair=new_identity(), listen=(LOOPBACK,))) as second,
        PrimeDHT(second, DhtConfig(protocol_prefix="/third")) as stranger,
    ):
        assert {"/prime/kad/1.0.0", "/other/kad/1.0.0"} <= set(map(str, host.get_mux().get_protocols()))
        await ours.put("k", b"ours")
        await theirs.put("k", b"theirs")
        assert (found := await ours.get("k", latest=True)) is not None
        assert found.value == b"ours"
        assert (found := await theirs.get("k", latest=True)) is not None
        assert found.value == b"theirs"
        with pytest.raises(QueryError):
            await stranger.add_peer(ours.addresses()[0])


async def test_a_host_that_listens_nowhere_makes_a_client(patient_clock: MockClock) -> None:
    async with (
        open_swarm(2) as nodes,
        open_host(HostSettings(key_pair=new_identity())) as host,
        PrimeDHT(host, QUIET, bootstrap_peers=nodes[0].addresses()) as client,
    ):
        await client.bootstrap()
        assert (await client.health()).mode == "client"
        assert len((await client.put("k", b"value")).stored_by) == 2
        assert client.peer_id not in {status.peer for node in nodes for status in node.peers()}


async def test_entering_twice_raises_and_leaves_the_first_running() -> None:
    async with open_swarm(1) as (node,):
        with pytest.raises(LocalProtocolError, match="runs once"):
            await node.__aenter__()
        assert (await node.put("k", b"value")).acknowledged


async def test_what_is_not_running_cannot_be_used() -> None:
    async with open_host(HostSettings(key_pair=new_identity(), listen=(LOOPBACK,))) as host:
        dht = PrimeDHT(host)
        with pytest.raises(LocalProtocolError, match="not running"):
            await dht.put("k", b"value")
        with pytest.raises(LocalProtocolError, match="not running"):
            dht.provide(CONTENT)


class OwnError(Exception):
    """An application's."""


@pytest.mark.parametrize("error", [OwnError(), KeyboardInterrupt(), ValueError("of the block")])
async def test_an_exception_in_the_block_leaves_as_itself(error: BaseException) -> None:
    host_context = open_host(HostSettings(key_pair=new_identity(), listen=(LOOPBACK,)))
    async with host_context as host:
        with pytest.raises(type(error)) as raised:
            async with PrimeDHT(host):
                raise error
    assert raised.value is error


@pytest.mark.parametrize("wrong", [b"", "", b"x" * 5000, 5, "\ud800"])
async def test_a_bad_argument_raises_one_validation_error(wrong: bytes) -> None:
    async with open_swarm(1) as (node,):
        for use in (node.put(wrong, b"value"), node.get(wrong), node.delete(wrong), node.get_many([wrong])):
            with pytest.raises(ValidationError):
                await use


async def test_a_bad_configuration_raises_one_config_error() -> None:
    class NoHost:
        def get_id(self) -> ID:
            return ID(b"\x12\x20" + bytes(32))

        def get_private_key(self) -> None:
            return None

    with pytest.raises(ConfigError):
        PrimeDHT(NoHost())  # type: ignore[arg-type]
    async with open_host(HostSettings(key_pair=new_identity())) as host:
        with pytest.raises(ValidationError):
            PrimeDHT(host, bootstrap_peers=["/ip4/127.0.0.1/tcp/1"])
        wrong: object
        for wrong in (NodeConfig(), {}):
            with pytest.raises(ConfigError, match=r"is a DhtConfig, not (NodeConfig|dict); that of a NodeConfig"):
                PrimeDHT(host, wrong)  # type: ignore[arg-type]
        async with PrimeDHT(host, DhtConfig(mode=Mode.SERVER)) as dht:
            with pytest.raises(ConfigError):
                await dht.put("k", b"", replication=0)
            with pytest.raises(ConfigError):
                await dht.get("k", quorum=9)


async def test_cancelled_in_the_middle_of_everything_it_closes_in_time_and_leaks_no_task(
    patient_clock: MockClock,
) -> None:
    async def work(node: PrimeDHT) -> None:
        while True:
            await node.put("k", b"value")
            await node.get("k", latest=True)
            node.provide(CONTENT)

    def tasks() -> int:
        root = trio.lowlevel.current_root_task()
        assert root is not None
        found, todo = 0, [root]
        while todo:
            found += 1
            todo += [child for nursery in todo.pop().child_nurseries for child in nursery.child_tasks]
        return found

    before = tasks()
    with trio.fail_after(15):
        async with trio.open_nursery() as nursery:

            async def life() -> None:
                async with open_swarm(3) as nodes, trio.open_nursery() as workers:
                    for node in nodes:
                        for _ in range(5):
                            workers.start_soon(work, node)
                    while (await nodes[0].stats()).requests_sent < 200:
                        await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()

            nursery.start_soon(life)
    assert tasks() == before


async def test_who_waits_for_a_node_that_another_task_ends_is_told_so_by_one_error() -> None:
    asked = trio.Event()

    async def never_answer(_peer: PeerId, _request: Request) -> Reply:
        asked.set()
        await trio.sleep_forever()
        raise AssertionError

    async with open_swarm(5) as others, AsyncExitStack() as life, trio.open_nursery() as nursery:
        node = await life.enter_async_context(open_joined(others[0].addresses()))
        for other in others:
            other._network.server._handler = never_answer  # type: ignore[attr-defined]

        async def use(operation: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(QueryError):
                await operation()

        nursery.start_soon(use, lambda: node.get("k", latest=True))
        nursery.start_soon(use, lambda: node.get_many(["k", "l"]))
        nursery.start_soon(use, lambda: node.find_providers(CONTENT))
        await asked.wait()
        await wait_all_tasks_blocked()
        await life.aclose()


async def test_a_node_that_is_cancelled_as_it_starts_leaves_its_host_to_the_next() -> None:
    async with open_host(HostSettings(key_pair=new_identity(), listen=(LOOPBACK,))) as host:
        before = set(host.get_mux().handlers)
        has_started = False
        for steps in itertools.count(1):
            async with trio.open_nursery() as nursery:

                async def start() -> None:
                    nonlocal has_started
                    async with PrimeDHT(host):
                        has_started = True

                nursery.start_soon(start)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            assert set(host.get_mux().handlers) == before
            if has_started:
                break


async def test_a_second_node_of_the_same_network_on_a_host_is_refused_by_one_error() -> None:
    async with (
        open_host(HostSettings(key_pair=new_identity(), listen=(LOOPBACK,))) as host,
        PrimeDHT(host) as first,
    ):
        with pytest.raises(ConfigError, match="the host serves"):
            async with PrimeDHT(host):
                raise AssertionError
        assert (await first.put("k", b"value")).acknowledged


async def test_the_storage_it_is_given_stays_open() -> None:
    async with open_host(HostSettings(key_pair=new_identity(), listen=(LOOPBACK,))) as host:
        store = MemoryBackend()
        async with PrimeDHT(host, storage=store) as dht:
            await dht.put("k", b"value")
        assert await store.keys() == [b"/prime/k"]
