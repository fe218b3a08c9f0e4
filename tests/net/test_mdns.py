"""mDNS: nodes that find each other by real multicast on loopback, and what becomes of everything else they hear."""

from __future__ import annotations

import gc
import logging
import secrets
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.discovery.mdns.listener import PeerListener
from multiaddr import Multiaddr
from trio.testing import MockClock, wait_all_tasks_blocked
from zeroconf import DNSOutgoing, DNSText, RecordUpdate, Zeroconf  # type: ignore[attr-defined]

from prime_dht.ids import PeerId, peer_text
from prime_dht.net import mdns
from prime_dht.net.identity import new_identity, peer_id_of
from prime_dht.net.mdns import MAX_TEXT_BYTES, POLL_S, SERVICE_TYPE, decode_announcement, encode_announcement, open_mdns

LOOPBACK = ["127.0.0.1"]
NO_INTERFACE_OF_THIS_MACHINE = ["203.0.113.1"]
PATIENCE_S = 20.0
PEER = peer_id_of(new_identity())
OTHER = peer_id_of(new_identity())


def binary(text: str) -> bytes:
    return bytes(Multiaddr(text).to_bytes())


def text_of(*attributes: str | bytes) -> bytes:
    encoded = (each.encode() if isinstance(each, str) else each for each in attributes)
    return b"".join(bytes([len(each)]) + each for each in encoded)


class Node:
    """What a node announces, and what it is told."""

    def __init__(self, network: str, *addresses: str, peer: PeerId | None = None) -> None:
        self.peer = peer or peer_id_of(new_identity())
        self.network = network
        self.announced = addresses
        self.told: list[tuple[PeerId, tuple[str, ...]]] = []
        self._told_more = trio.Event()

    def addresses(self) -> tuple[bytes, ...]:
        return tuple(map(binary, self.announced))

    def found(self, peer: PeerId, addresses: tuple[bytes, ...]) -> None:
        self.told.append((peer, tuple(str(Multiaddr(address)) for address in addresses)))
        self._told_more.set()
        self._told_more = trio.Event()

    async def finds(self, peer: PeerId, *addresses: str, times: int = 1) -> None:
        with trio.fail_after(PATIENCE_S):
            while self.told.count((peer, addresses)) < times:
                await self._told_more.wait()

    def peers_told(self) -> set[PeerId]:
        return {peer for peer, _ in self.told}


@asynccontextmanager
async def running(node: Node, interfaces: list[str] | None = LOOPBACK) -> AsyncIterator[Node]:
    async with open_mdns(
        peer=node.peer, addresses=node.addresses, network_id=node.network, found=node.found, interfaces=interfaces
    ):
        yield node


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> str:
    """A network on a service type of the test's own: other tests of this machine are on the same wire."""
    monkeypatch.setattr(mdns, "SERVICE_TYPE", f"_p2p-{secrets.token_hex(5)}._udp.local.")
    monkeypatch.setattr("zeroconf._core._UNREGISTER_TIME", 5)  # ms between goodbyes, of which there are three
    return "lab"


@pytest.fixture
def clock() -> MockClock:
    """Goes as fast as the threads and sockets need, and can jump."""
    return MockClock(rate=1)


def shout(*datagrams: bytes) -> None:
    """Multicast on loopback, whatever it is."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw:
        raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        for datagram in datagrams:
            raw.sendto(datagram, ("224.0.0.251", 5353))


def services(*texts: bytes) -> list[bytes]:
    """A service for each TXT record, in one packet if they fit."""
    packet = DNSOutgoing(0x8400)
    for text in texts:
        packet.add_answer_at_time(DNSText(f"{secrets.token_hex(16)}.{mdns.SERVICE_TYPE}", 16, 1, 4500, text), 0)
    return packet.packets()


@asynccontextmanager
async def other_zeroconf() -> AsyncIterator[Zeroconf]:
    zeroconf = Zeroconf(interfaces=LOOPBACK)
    try:
        yield zeroconf
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(zeroconf.close)


def left_behind() -> list[object]:
    """Threads and sockets of mDNS."""
    threads = [each for each in threading.enumerate() if mdns.__name__ in each.name]
    gc.collect()
    sockets = [each for each in gc.get_objects() if isinstance(each, socket.socket) and each.fileno() != -1]
    return [*threads, *(each for each in sockets if each.getsockname()[1:2] == (5353,))]


# The record


addresses = st.lists(
    st.integers(1, 65535).map(lambda port: binary(f"/ip4/192.0.2.1/tcp/{port}")), min_size=1, max_size=30, unique=True
)


@settings(derandomize=True, deadline=None)
@given(offered=addresses, network_id=st.text(min_size=1, max_size=16))
def test_a_record_carries_the_addresses_that_fit_into_it(offered: list[bytes], network_id: str) -> None:
    text = encode_announcement(PEER, offered, network_id)
    assert len(text) <= MAX_TEXT_BYTES
    decoded = decode_announcement(text, network_id)
    assert decoded is not None
    peer, carried = decoded
    assert peer == PEER
    assert carried == tuple(offered[: len(carried)])
    assert len(carried) >= min(len(offered), 12)


def test_a_record_is_what_the_libp2p_specification_says_with_a_mark_before_it() -> None:
    text = encode_announcement(PEER, [binary("/ip4/192.0.2.1/tcp/1"), binary("/ip6/2001:db8::1/tcp/2")], "lab")
    own = peer_text(PEER)
    assert SERVICE_TYPE == "_p2p._udp.local."
    assert text == text_of(
        "prime-net=lab", f"dnsaddr=/ip4/192.0.2.1/tcp/1/p2p/{own}", f"dnsaddr=/ip6/2001:db8::1/tcp/2/p2p/{own}"
    )


@settings(derandomize=True, deadline=None)
@given(st.binary(max_size=2 * MAX_TEXT_BYTES))
def test_arbitrary_bytes_name_no_peer_and_raise_nothing(text: bytes) -> None:
    assert decode_announcement(text, "lab") is None


PARTS = b"ip4 ip6 dns dns4 tcp udp quic-v1 p2p p2p-circuit unix zz 192.0.2.1 0.0.0.0 ::1 a.example 1 65536".split()


@settings(derandomize=True, deadline=None)
@given(
    st.lists(
        st.builds(
            lambda claim, end: b"dnsaddr=" + claim + end,
            st.one_of(
                st.binary(max_size=150),
                st.lists(st.sampled_from(PARTS), min_size=1, max_size=9).map(lambda parts: b"/" + b"/".join(parts)),
            ),
            st.sampled_from([b"", b"/p2p/" + peer_text(PEER).encode(), b"/p2p/" + peer_text(OTHER).encode()]),
        ).map(lambda attribute: attribute[:255]),
        max_size=5,
    )
)
def test_of_arbitrary_claims_only_addresses_of_one_peer_come_through(claims: list[bytes]) -> None:
    decoded = decode_announcement(text_of("prime-net=lab", *claims), "lab")
    if decoded is not None:
        peer, carried = decoded
        assert peer in (PEER, OTHER)
        assert carried
        assert all(Multiaddr(address).to_bytes() == address for address in carried)


def test_addresses_that_cannot_be_dialled_are_left_out() -> None:
    own, good = peer_text(PEER), "/ip4/192.0.2.1/tcp/1"
    text = text_of(
        "prime-net=lab",
        f"dnsaddr=/ip4/0.0.0.0/tcp/1/p2p/{own}",
        f"dnsaddr={good}/p2p/{own}",
        f"dnsaddr=/ip4/192.0.2.1/tcp/1/p2p/{peer_text(OTHER)}/p2p-circuit/p2p/{own}",
        f"dnsaddr={good}/p2p/{own}",
        "something=else",
        "flag",
    )
    assert decode_announcement(text, "lab") == (PEER, (binary(good),))


def bad_records(network_id: str) -> dict[str, bytes]:
    mark, address = f"prime-net={network_id}", "/ip4/192.0.2.1/tcp/1"
    own, other = f"dnsaddr={address}/p2p/{peer_text(PEER)}", f"dnsaddr={address}/p2p/{peer_text(OTHER)}"
    return {
        "empty": b"",
        "garbage": b"\xff" * 100,
        "no mark": text_of(own),
        "another mark": text_of("prime-net=another", own),
        "a longer mark": text_of(mark + "x", own),
        "two marks": text_of(mark, "prime-net=another", own),
        "no address": text_of(mark),
        "no peer id": text_of(mark, f"dnsaddr={address}"),
        "a wrong peer id": text_of(mark, f"dnsaddr={address}/p2p/QmNobody"),
        "a peer id that is no key's": text_of(mark, f"dnsaddr={address}/p2p/1111"),
        "two peers": text_of(mark, own, other),
        "no address that can be dialled": text_of(mark, f"dnsaddr=/ip4/224.0.0.1/tcp/1/p2p/{peer_text(PEER)}"),
        "no text": text_of(mark, own.encode() + b"\xff"),
        "cut off": text_of(mark, own) + b"\x40dnsaddr",
        "too many addresses": text_of(mark, *[own] * 90),
    }


@pytest.mark.parametrize("kind", bad_records(""))
def test_a_bad_record_names_no_peer(kind: str) -> None:
    assert decode_announcement(bad_records("lab")[kind], "lab") is None


# On the wire


async def test_two_nodes_find_each_other_and_not_themselves(network: str) -> None:
    first = Node(network, "/ip4/192.0.2.1/tcp/1", "/dns4/first.local/tcp/1")
    second = Node(network, f"/ip4/192.0.2.2/tcp/2/p2p/{peer_text(PEER)}", "/ip4/0.0.0.0/tcp/2", peer=PEER)
    async with running(first), running(second):
        await first.finds(PEER, "/ip4/192.0.2.2/tcp/2")
        await second.finds(first.peer, "/ip4/192.0.2.1/tcp/1", "/dns4/first.local/tcp/1")
    assert first.peers_told() == {second.peer}
    assert second.peers_told() == {first.peer}


async def test_three_nodes_find_each_other_once_each_and_one_that_nobody_can_reach_finds_them(network: str) -> None:
    nodes = [Node(network, f"/ip4/192.0.2.{n}/tcp/1") for n in range(3)]
    client = Node(network)
    async with running(nodes[0]), running(nodes[1]), running(client), running(nodes[2]):
        for node in (*nodes, client):
            for other in nodes:
                if node is not other:
                    await node.finds(other.peer, *other.announced)
    for node in (*nodes, client):
        assert len(node.told) == len(node.peers_told())
        assert client.peer not in node.peers_told()


async def test_a_node_that_announced_itself_long_ago_is_found_by_asking(network: str) -> None:
    silent = mdns._service(OTHER, (binary("/ip4/192.0.2.9/tcp/1"),), network)
    async with other_zeroconf() as zeroconf, running(Node(network)) as node:
        assert zeroconf.loop is not None
        zeroconf.loop.call_soon_threadsafe(zeroconf.registry.async_add, silent)
        await node.finds(OTHER, "/ip4/192.0.2.9/tcp/1")


async def test_nodes_of_another_network_are_not_found(network: str) -> None:
    async with running(Node(network, "/ip4/192.0.2.1/tcp/1")) as node:
        foreign, witness = (Node(f"{network}-2", f"/ip4/192.0.2.{n}/tcp/1") for n in (2, 3))
        async with running(witness), running(foreign):
            await witness.finds(foreign.peer, *foreign.announced)
            # What came first was looked at first.
            async with running(Node(network, "/ip4/192.0.2.4/tcp/1")) as friend:
                await node.finds(friend.peer, *friend.announced)
                await friend.finds(node.peer, *node.announced)
    assert node.peers_told() == {friend.peer}
    assert friend.peers_told() == {node.peer}


async def test_a_node_that_comes_back_is_reported_again_with_its_new_address(network: str) -> None:
    async with running(Node(network, "/ip4/192.0.2.1/tcp/1")) as node:
        for address in ("/ip4/192.0.2.2/tcp/1", "/ip4/192.0.2.3/tcp/1"):
            async with running(Node(network, address, peer=PEER)):
                await node.finds(PEER, address)
        async with running(Node(network, address, peer=PEER)):
            await node.finds(PEER, address, times=2)


async def test_a_node_whose_addresses_change_is_reported_again(network: str, clock: MockClock) -> None:
    async with running(Node(network, "/ip4/192.0.2.1/tcp/1")) as node, running(Node(network)) as roamer:
        await roamer.finds(node.peer, *node.announced)
        for address in ("/ip4/192.0.2.2/tcp/1", "/ip4/192.0.2.3/tcp/1"):
            roamer.announced = (address,)
            clock.jump(POLL_S)
            await node.finds(roamer.peer, address)


def test_addresses_in_another_order_and_other_reasons_are_no_news(
    network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = {"192.0.2.1": "down", "127.0.0.1": None}
    monkeypatch.setattr(mdns, "_refusal", refusals.get)
    node = Node(network, "/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.2/tcp/1")
    life = mdns._Mdns(node.peer, node.addresses, network, node.found, list(refusals))
    before = life._circumstances()
    node.announced = node.announced[::-1]
    refusals["192.0.2.1"] = "gone"
    assert life._circumstances() == before
    node.announced = node.announced[:1]
    assert life._circumstances() != before


async def test_hostile_services_are_ignored_and_honest_ones_found_among_them(network: str) -> None:
    async with running(Node(network, "/ip4/192.0.2.1/tcp/1")) as node, running(Node(network)) as witness:
        await witness.finds(node.peer, *node.announced)  # so both are there
        claim_on_node = encode_announcement(node.peer, [binary("/ip4/192.0.2.66/tcp/1")], network)
        for text in (*bad_records(network).values(), claim_on_node):
            shout(*services(text))
        shout(b"", b"\x00", b"\xff" * 1_000, bytes(12) * 100, b"\x00\x00\x84\x00" + b"\xff" * 60)
        shout(*services(encode_announcement(OTHER, [binary("/ip4/192.0.2.9/tcp/1")], network)))
        await node.finds(OTHER, "/ip4/192.0.2.9/tcp/1")
    assert node.told == [(OTHER, ("/ip4/192.0.2.9/tcp/1",))]


async def test_a_flood_is_cut_off_and_counted_and_who_was_cut_off_is_found_when_heard_again(
    network: str, clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mdns, "MAX_WAITING", 2)
    monkeypatch.setattr(mdns, "LOOK_EVERY_S", POLL_S)
    crowd = [PeerId(b"\x12\x20" + bytes([n]) * 32) for n in range(8)]
    address = "/ip4/192.0.2.9/tcp/1"
    async with running(Node(network)) as node, running(Node(network, address)) as other:
        await node.finds(other.peer, address)
        texts = [encode_announcement(peer, [binary(address)], network) for peer in crowd]
        shout(*services(*texts))
        clock.jump(POLL_S)
        await node.finds(crowd[0], address)
        await wait_all_tasks_blocked()
        assert node.peers_told() == {other.peer, crowd[0]}
        clock.jump(POLL_S)
        await node.finds(crowd[1], address)
        await wait_all_tasks_blocked()  # the same moment wakes whoever reports what was dropped
        assert any("too fast and were dropped" in message for message in caplog.messages)
        assert crowd[-1] not in node.peers_told()
        shout(*services(texts[-1]))
        for _ in crowd:
            clock.jump(POLL_S)
            await wait_all_tasks_blocked()
        await node.finds(crowd[-1], address)


async def test_what_is_heard_takes_a_bounded_place_and_is_reported_again_only_after_a_while() -> None:
    wakes = 0

    def wake() -> None:
        nonlocal wakes
        wakes += 1

    def hear(*texts: bytes, now_ms: float = 1.0, ttl_s: int = 4500) -> None:
        records = [DNSText(f"a.{SERVICE_TYPE}", 16, 1, ttl_s, text, created=1.0) for text in texts]
        records.append(DNSText("a._another._udp.local.", 16, 1, ttl_s, b"of another service", created=1.0))
        ear.async_update_records(zeroconf, now_ms, [RecordUpdate(record, None) for record in records])

    ear = mdns._Ear(trio.lowlevel.current_trio_token(), wake)
    zeroconf: Zeroconf = None  # type: ignore[assignment]  # it is not looked at
    many = [n.to_bytes(4, "big") for n in range(3 * mdns.MAX_REMEMBERED)]
    hear(b"first", b"first", bytes(MAX_TEXT_BYTES + 1))
    hear(b"goodbye", ttl_s=0)
    assert list(ear.waiting) == [b"first"]
    hear(*many)
    assert len(ear.waiting) == mdns.MAX_WAITING
    assert ear.dropped == len(many) + 1 - mdns.MAX_WAITING
    for text in many:
        ear.waiting.clear()
        hear(text)
    assert len(ear._remembered) == mdns.MAX_REMEMBERED
    ear.waiting.clear()
    hear(many[-1], now_ms=mdns.REPORT_AGAIN_S * 1000)
    assert not ear.waiting
    hear(many[-1], now_ms=mdns.REPORT_AGAIN_S * 1000 + 1)
    assert list(ear.waiting) == [many[-1]]
    await wait_all_tasks_blocked()
    assert wakes == 1


class StockPeerstore:
    """As much of a peerstore as py-libp2p's mDNS listener uses, which is from threads of its own."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self.added, self.cleared = trio.Event(), trio.Event()
        self.addresses: list[str] = []

    def add_addrs(self, peer_id: object, addresses: list[Multiaddr], ttl: int) -> None:
        self.addresses = [str(address) for address in addresses]
        self._token.run_sync_soon(self.added.set)

    def clear_addrs(self, peer_id: object) -> None:
        self._token.run_sync_soon(self.cleared.set)


async def test_a_stock_libp2p_node_sees_a_node_come_and_go(network: str) -> None:
    store = StockPeerstore()
    async with other_zeroconf() as zeroconf:
        listener = PeerListener(store, zeroconf, mdns.SERVICE_TYPE, "none")  # type: ignore[arg-type]
        with trio.fail_after(PATIENCE_S):
            async with running(Node(network, "/ip4/0.0.0.0/tcp/1", "/ip4/192.0.2.1/tcp/1")):
                await store.added.wait()
            await store.cleared.wait()
        listener.stop()
    assert store.addresses == ["/ip4/192.0.2.1/tcp/1"]


# Its life


async def test_closing_leaves_no_thread_and_no_socket_and_meanwhile_nobody_waits_for_the_thread(network: str) -> None:
    async with running(Node(network, "/ip4/192.0.2.1/tcp/1")) as node, running(Node(network)) as witness:
        await witness.finds(node.peer, *node.announced)
        assert len(left_behind()) >= 4
        assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    assert not left_behind()


@pytest.mark.parametrize("late", [False, True])
async def test_cancelling_leaves_no_thread_no_socket_and_no_unfinished_task(
    network: str, late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.CancelScope() as scope:
        async with running(Node(network, "/ip4/192.0.2.1/tcp/1")) as node, running(Node(network)) as witness:
            if late:
                await witness.finds(node.peer, *node.announced)
            scope.cancel()
            await trio.Event().wait()
    assert scope.cancelled_caught
    assert not left_behind()
    assert not caplog.messages  # asyncio logs tasks that were left


async def test_an_exception_of_the_block_leaves_it_as_itself(network: str) -> None:
    with pytest.raises(KeyError):
        async with running(Node(network)):
            raise KeyError("of the block")


@pytest.mark.parametrize(
    ("interfaces", "reason"), [(NO_INTERFACE_OF_THIS_MACHINE, "203.0.113.1: "), ([], "there is no IPv4 interface")]
)
async def test_without_multicast_the_node_goes_on_and_one_line_says_why(
    network: str, interfaces: list[str], reason: str, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(Node(network, "/ip4/192.0.2.1/tcp/1"), interfaces):
        for _ in range(3):
            await wait_all_tasks_blocked()
            mock_clock.jump(POLL_S)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert reason in record.getMessage()


async def test_if_zeroconf_cannot_start_the_node_goes_on_and_says_why(
    network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, said = trio.open_memory_channel[str](1)

    def refuse(*, interfaces: list[str]) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(mdns, "AsyncZeroconf", refuse)
    monkeypatch.setattr(mdns, "_say_off", send.send_nowait)
    with trio.fail_after(PATIENCE_S):
        async with running(Node(network, "/ip4/192.0.2.1/tcp/1")):
            assert await said.receive() == "[Errno 1] Operation not permitted"
    assert not left_behind()


def test_a_system_that_does_not_list_its_interfaces_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[object]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ifaddr.get_adapters", refuse)
    assert mdns._machine_interfaces() == []


async def test_an_interface_that_comes_up_is_used(
    network: str, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = True
    really = mdns._refusal
    monkeypatch.setattr(mdns, "_refusal", lambda interface: "down" if down else really(interface))
    async with running(Node(network, "/ip4/192.0.2.1/tcp/1")) as node:
        await wait_all_tasks_blocked()
        assert not left_behind()
        down = False
        clock.jump(POLL_S)
        async with running(Node(network, "/ip4/192.0.2.2/tcp/1")) as other:
            await node.finds(other.peer, *other.announced)


async def test_by_default_a_machine_s_own_interfaces_are_used(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "127.0.0.1" in mdns._machine_interfaces()
    monkeypatch.setattr(mdns, "_machine_interfaces", lambda: LOOPBACK)
    async with running(Node(network, "/ip4/192.0.2.1/tcp/1")) as node, running(Node(network), None) as other:
        await other.finds(node.peer, *node.announced)
