"""The address book, and what the dialer makes of it."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.abc import IHost
from libp2p.crypto.ed25519 import create_new_key_pair
from multiaddr import Multiaddr
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.errors import QueryError, ValidationError
from prime_dht.ids import PeerId, peer_text
from prime_dht.net import dialer as dialer_module
from prime_dht.net import turns as turns_module
from prime_dht.net.addresses import Reach
from prime_dht.net.dialer import (
    MAX_ADDRESS_BYTES,
    AddressBook,
    BookSettings,
    Dialer,
    canonical_address,
    split_peer_address,
)
from prime_dht.net.hardening.outbound import RaceSettings
from prime_dht.net.hardening.parts import parts_of
from prime_dht.net.host import HostSettings, listen_addresses, open_host
from prime_dht.net.identity import new_identity, peer_id_of

PEER = peer_id_of(create_new_key_pair(b"\x01" * 32))
OTHER = peer_id_of(create_new_key_pair(b"\x02" * 32))
REFUSED = Multiaddr("/ip4/127.0.0.1/tcp/1").to_bytes()


def binary(text: str) -> bytes:
    return bytes(Multiaddr(text).to_bytes())


def text(raw: bytes) -> str:
    return str(Multiaddr(raw))


def book_of(*addresses: str, now_s: float = 0.0) -> AddressBook:
    book = AddressBook()
    book.add(PEER, map(binary, addresses), source="test", now_s=now_s)
    return book


def texts(book: AddressBook, peer: PeerId = PEER) -> list[str]:
    return [text(raw) for raw in book.addresses(peer)]


# The book


@pytest.mark.parametrize(
    "good",
    [
        "/ip4/192.0.2.1/tcp/4001",
        "/ip6/2001:db8::1/tcp/4001",
        "/dns4/node.example/tcp/4001",
        "/ip4/192.0.2.1/udp/4001/quic-v1",
        "/ip4/192.0.2.1/tcp/443/wss",
    ],
)
def test_an_address_is_kept_without_the_peer_it_names(good: str) -> None:
    assert canonical_address(PEER, binary(good)) == binary(good)
    assert canonical_address(PEER, binary(f"{good}/p2p/{peer_text(PEER)}")) == binary(good)


@pytest.mark.parametrize(
    "bad",
    [
        f"/ip4/192.0.2.1/tcp/4001/p2p/{peer_text(OTHER)}",
        f"/ip4/192.0.2.1/tcp/4001/p2p/{peer_text(OTHER)}/p2p-circuit/p2p/{peer_text(PEER)}",
        f"/p2p/{peer_text(PEER)}",
        "/ip4/0.0.0.0/tcp/4001",
        "/ip6/::/tcp/4001",
        "/ip4/224.0.0.1/tcp/4001",
        "/ip4/192.0.2.1/tcp/0",
        "/ip4/192.0.2.1",
        "/tcp/4001/ip4/192.0.2.1",
        "/unix/tmp/socket",
        "/ip4/192.0.2.1/tcp/4001" + "/ws" * MAX_ADDRESS_BYTES,
    ],
)
def test_an_address_that_is_not_the_peer_s_or_cannot_be_dialled_is_dropped_and_the_peer_kept(bad: str) -> None:
    book = book_of("/ip4/192.0.2.7/tcp/4001")
    book.add(PEER, [binary(bad)], source="test", now_s=1.0)
    assert texts(book) == ["/ip4/192.0.2.7/tcp/4001"]


@settings(derandomize=True, deadline=None, max_examples=500)
@given(st.binary(max_size=80), st.sampled_from([b"", binary("/ip4/192.0.2.1/tcp/4001"), binary("/dns4/x.example")]))
def test_no_bytes_of_a_peer_break_the_book(noise: bytes, before: bytes) -> None:
    book = AddressBook()
    book.add(PEER, [before + noise, noise + before], source="test", now_s=0.0)
    for raw in book.addresses(PEER):
        assert canonical_address(PEER, raw) == raw


def test_addresses_that_worked_come_first_then_the_nearest_then_the_latest() -> None:
    book = book_of("/ip4/127.0.0.1/tcp/1", "/ip4/8.8.8.8/tcp/2", "/ip4/10.0.0.1/tcp/3", "/dns4/x.example/tcp/4")
    book.add(PEER, [binary("/ip4/8.8.4.4/tcp/5"), binary("/ip4/9.9.9.9/tcp/6")], source="test", now_s=1.0)
    assert [line.rsplit("/", 1)[1] for line in texts(book)] == ["3", "5", "6", "2", "4", "1"]
    book.succeeded(PEER, binary("/ip4/127.0.0.1/tcp/1"), now_s=2.0)
    book.succeeded(PEER, binary("/ip4/9.9.9.9/tcp/6"), now_s=3.0)
    assert texts(book)[:3] == ["/ip4/9.9.9.9/tcp/6", "/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/3"]


def test_two_thousand_addresses_leave_room_for_one_that_works() -> None:
    book = book_of("/ip4/192.0.2.1/tcp/4001")
    book.succeeded(PEER, binary("/ip4/192.0.2.1/tcp/4001"), now_s=0.0)
    for start in range(1, 2001, 16):
        invented = [binary(f"/ip4/10.1.0.1/tcp/{port}") for port in range(start, start + 16)]
        book.add(PEER, invented, source="liar", now_s=float(start))
    assert len(book.addresses(PEER)) == BookSettings().max_addresses_per_peer
    assert texts(book)[0] == "/ip4/192.0.2.1/tcp/4001"


def test_of_one_message_no_more_addresses_are_looked_at_than_are_kept() -> None:
    looked_at = 0

    def endless() -> Iterator[bytes]:
        nonlocal looked_at
        while True:
            looked_at += 1
            yield b"junk"

    AddressBook().add(PEER, endless(), source="liar", now_s=0.0)
    assert looked_at <= BookSettings().max_addresses_per_peer


def test_the_peer_that_was_used_longest_ago_is_forgotten_first() -> None:
    book = AddressBook(BookSettings(max_peers=2))
    first, second, third = (PeerId(bytes([number])) for number in range(3))
    for peer in (first, second):
        book.add(peer, [REFUSED], source="test", now_s=0.0)
    book.succeeded(first, REFUSED, now_s=1.0)
    book.add(third, [REFUSED], source="test", now_s=2.0)
    assert [bool(book.addresses(peer)) for peer in (first, second, third)] == [True, False, True]
    assert len(book) == 2


def test_a_peer_s_source_is_who_named_it_first() -> None:
    book = book_of("/ip4/192.0.2.1/tcp/4001")
    book.add(PEER, [REFUSED], source="later", now_s=1.0)
    assert (book.source_of(PEER), book.source_of(OTHER)) == ("test", "")


def test_a_peer_that_fails_is_left_alone_twice_as_long_each_time() -> None:
    book = AddressBook(BookSettings(backoff_s=1.0, max_backoff_s=5.0))
    book.add(PEER, [REFUSED], source="test", now_s=0.0)
    waits = []
    for _ in range(5):
        book.failed(PEER, now_s=10.0)
        waits.append(book.wait_s(PEER, gives_s=math.inf, now_s=10.0))
    assert waits == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert book.wait_s(PEER, gives_s=math.inf, now_s=14.0) == 1.0
    assert book.wait_s(PEER, gives_s=math.inf, now_s=15.0) == 0.0
    assert book.wait_s(OTHER, gives_s=math.inf, now_s=0.0) == 0.0


def test_a_new_address_or_a_success_ends_the_wait_and_an_old_address_does_not() -> None:
    book = book_of("/ip4/192.0.2.1/tcp/4001")
    book.failed(PEER, now_s=0.0)
    book.add(PEER, [binary("/ip4/192.0.2.1/tcp/4001")], source="test", now_s=0.0)
    assert book.wait_s(PEER, gives_s=math.inf, now_s=0.0) == 1.0
    book.add(PEER, [binary("/ip4/192.0.2.2/tcp/4001")], source="test", now_s=0.0)
    assert book.wait_s(PEER, gives_s=math.inf, now_s=0.0) == 0.0
    book.failed(PEER, now_s=0.0)
    book.succeeded(PEER, binary("/ip4/192.0.2.2/tcp/4001"), now_s=0.0)
    assert book.wait_s(PEER, gives_s=math.inf, now_s=0.0) == 0.0


def test_what_the_owner_vouches_for_is_believed_though_a_peer_said_it_before_or_says_it_again() -> None:
    book, name = AddressBook(), binary("/dns4/node.lan/tcp/4001")
    nearest = []
    for source in ("kad", "manual", "kad", "identify"):
        book.add(PEER, [name], source=source, now_s=0.0)
        nearest.append(book.nearest_of(PEER, name))
    assert nearest == [Reach.INTERNET, Reach.MACHINE, Reach.MACHINE, Reach.MACHINE]


def test_what_is_said_again_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[bytes] = []

    def canonical(peer: PeerId, raw: bytes) -> bytes | None:
        looked_at.append(raw)
        return canonical_address(peer, raw)

    monkeypatch.setattr(dialer_module, "canonical_address", canonical)
    book = AddressBook()
    for _ in range(3):
        book.add(PEER, [REFUSED], source="kad", now_s=0.0)
    assert looked_at == [REFUSED]


def test_a_full_address_is_a_peer_and_where_it_is() -> None:
    full = f"/ip4/192.0.2.1/tcp/4001/p2p/{peer_text(PEER)}"
    assert split_peer_address(full) == (PEER, binary("/ip4/192.0.2.1/tcp/4001"))


@pytest.mark.parametrize(
    "wrong",
    [
        "/ip4/192.0.2.1/tcp/4001",
        "/ip4/192.0.2.1/tcp/4001/p2p/",
        "/ip4/192.0.2.1/tcp/4001/p2p/nobody",
        f"nonsense/p2p/{peer_text(PEER)}",
        f"/ip4/0.0.0.0/tcp/4001/p2p/{peer_text(PEER)}",
        f"/p2p/{peer_text(PEER)}",
        "",
    ],
)
def test_what_is_no_full_address_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError):
        split_peer_address(wrong)


# The dialer


@asynccontextmanager
async def host(*listen: str) -> AsyncIterator[IHost]:
    async with open_host(HostSettings(key_pair=new_identity(), listen=listen or ("/ip4/127.0.0.1/tcp/0",))) as opened:
        yield opened


def id_of(opened: IHost) -> PeerId:
    return PeerId(opened.get_id().to_bytes())


def addresses_of(opened: IHost) -> list[bytes]:
    return [address.to_bytes() for address in listen_addresses(opened)]


async def test_a_peer_is_connected_and_its_address_proven() -> None:
    with trio.fail_after(30):
        async with host() as client, host() as server:
            dialer = Dialer(client, AddressBook())
            assert dialer.connected_peers() == ()
            await dialer.connect(id_of(server), addresses_of(server), source="bootstrap")
            assert dialer.connected_peers() == (id_of(server),)
            assert dialer.is_connected(id_of(server))
            (address,) = dialer.book.addresses(id_of(server))
            assert dialer.remote_address_of(id_of(server)) == address
            assert dialer.book.source_of(id_of(server)) == "bootstrap"
            assert dialer.remote_address_of(PEER) is None
            await dialer.connect(id_of(server))
            assert len(client.get_network().get_connections()) == 1


async def test_the_book_still_knows_where_a_peer_is_when_the_peerstore_has_forgotten() -> None:
    with trio.fail_after(30):
        async with host() as client, host() as server:
            dialer = Dialer(client, AddressBook())
            await dialer.connect(id_of(server), addresses_of(server))
            await client.disconnect(server.get_id())
            await dialer.connect(id_of(server))
            assert dialer.is_connected(id_of(server))


async def test_a_node_does_not_dial_itself() -> None:
    async with host() as client:
        with pytest.raises(QueryError, match="does not dial itself"):
            await Dialer(client, AddressBook()).connect(id_of(client), addresses_of(client))


async def test_dead_addresses_do_not_hold_up_a_live_one(patient_clock: MockClock, silent: bytes) -> None:
    async with host() as client, host() as server:
        book = AddressBook()
        dialer = Dialer(client, book)
        book.add(id_of(server), [REFUSED, silent], source="test", now_s=0.0)
        for address in (REFUSED, silent):
            book.succeeded(id_of(server), address, now_s=0.0)
        start = trio.current_time()
        await dialer.connect(id_of(server), addresses_of(server))
        assert trio.current_time() - start <= RaceSettings().stagger_s
        live = canonical_address(id_of(server), addresses_of(server)[0])
        assert book.addresses(id_of(server))[0] == live


class NoAnswer(trio.abc.HostnameResolver):
    """A name server that says nothing."""

    async def getaddrinfo(self, *_arguments: object, **_options: object) -> NoReturn:
        await trio.sleep_forever()

    async def getnameinfo(self, sockaddr: object, flags: int) -> NoReturn:
        raise NotImplementedError


async def test_a_name_that_nobody_resolves_does_not_hold_up_a_live_address(patient_clock: MockClock) -> None:
    trio.socket.set_custom_hostname_resolver(NoAnswer())
    async with host() as client, host() as server:
        book = AddressBook()
        named = binary("/dns4/node.test/tcp/1")
        book.add(id_of(server), [named], source="test", now_s=0.0)
        book.succeeded(id_of(server), named, now_s=0.0)
        start = trio.current_time()
        await Dialer(client, book).connect(id_of(server), addresses_of(server))
        assert trio.current_time() - start <= RaceSettings().stagger_s
        with pytest.raises(QueryError, match=r"/dns4/node\.test/tcp/1: no name server answers in 5 s"):
            await Dialer(client, AddressBook()).connect(PEER, [named])


class ToLoopback(trio.abc.HostnameResolver):
    """A name server by which every name leads to this machine."""

    async def getaddrinfo(self, *_arguments: object, **_options: object) -> list[tuple[int, int, int, str, Any]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    async def getnameinfo(self, sockaddr: object, flags: int) -> NoReturn:
        raise NotImplementedError


async def test_a_name_that_a_peer_tells_of_does_not_lead_to_this_machine_and_one_that_the_user_gives_may() -> None:
    trio.socket.set_custom_hostname_resolver(ToLoopback())
    with trio.fail_after(30):
        async with host() as client, host() as server:
            port = listen_addresses(server)[0].value_for_protocol("tcp")
            named = binary(f"/dns4/node.test/tcp/{port}")
            dialer = Dialer(client, AddressBook())
            for source in ("kad", "identify"):
                with pytest.raises(QueryError, match=r"the name node\.test leads inside"):
                    await dialer.connect(id_of(server), [named], source=source)
                dialer.book.forgive(id_of(server))
            with pytest.raises(QueryError, match="of a name that a peer tells, only a TCP port is believed"):
                await dialer.connect(PEER, [binary(f"/dns4/node.test/tcp/{port}/ws")], source="kad")
            await dialer.connect(id_of(server), [named], source="bootstrap")
            assert dialer.is_connected(id_of(server))
            dialer.book.add(id_of(server), [named], source="kad", now_s=0.0)  # what a peer adds takes nothing away
            assert dialer.book.nearest_of(id_of(server), named) is Reach.MACHINE


async def test_a_peer_with_only_a_bad_address_fails_before_the_deadline(
    patient_clock: MockClock, silent: bytes
) -> None:
    async with host() as client:
        dialer = Dialer(client, AddressBook())
        start = trio.current_time()
        with pytest.raises(QueryError) as caught:
            await dialer.connect(PEER, [REFUSED, silent])
        assert trio.current_time() - start <= RaceSettings().total_timeout_s
        assert f"{text(REFUSED)}: " in str(caught.value)
        assert "Connection refused" in str(caught.value)
        assert f"{text(silent)}: no answer within 5 s" in str(caught.value)


async def test_a_peer_that_could_not_be_reached_is_left_alone_until_an_address_comes_in(
    patient_clock: MockClock,
) -> None:
    async with host() as client, host() as server:
        dialer = Dialer(client, AddressBook())
        with pytest.raises(QueryError, match="Connection refused"):
            await dialer.connect(id_of(server), [REFUSED])
        with pytest.raises(QueryError, match="left alone for 1 s"):
            await dialer.connect(id_of(server), [REFUSED])
        await trio.sleep(1)
        with pytest.raises(QueryError, match="Connection refused"):
            await dialer.connect(id_of(server))
        await dialer.connect(id_of(server), addresses_of(server))


async def test_a_peer_without_an_address_cannot_be_reached() -> None:
    async with host() as client:
        with pytest.raises(QueryError, match="no address is known"):
            await Dialer(client, AddressBook()).connect(PEER)


async def test_who_asks_for_one_peer_at_once_shares_one_dial() -> None:
    with trio.fail_after(30):
        async with host() as client, host() as server:
            dialer = Dialer(client, AddressBook())
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(dialer.connect, id_of(server), addresses_of(server))
            assert len(client.get_network().get_connections()) == 1


async def test_who_asks_for_one_unreachable_peer_at_once_shares_the_failure(
    patient_clock: MockClock, silent: bytes
) -> None:
    failed = 0

    async def connect(dialer: Dialer) -> None:
        nonlocal failed
        with pytest.raises(QueryError):
            await dialer.connect(PEER, [silent])
        failed += 1

    async with host() as client:
        start = trio.current_time()
        dialer = Dialer(client, AddressBook())
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(connect, dialer)
        assert failed == 20
        assert trio.current_time() - start == RaceSettings().address_timeout_s


async def test_when_the_one_who_dials_is_cancelled_the_next_one_dials(patient_clock: MockClock, silent: bytes) -> None:
    async with host() as client, host() as server:
        dialer = Dialer(client, AddressBook(), race=RaceSettings(stagger_s=3600))
        impatient = trio.CancelScope()

        async def connect_impatiently() -> None:
            with impatient:
                await dialer.connect(id_of(server), [silent])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect_impatiently)
            await wait_all_tasks_blocked()
            nursery.start_soon(dialer.connect, id_of(server), addresses_of(server))
            await wait_all_tasks_blocked()
            impatient.cancel()
        assert impatient.cancelled_caught
        assert dialer.is_connected(id_of(server))


async def test_an_address_that_comes_in_during_a_dial_is_tried_too(patient_clock: MockClock, silent: bytes) -> None:
    async with host() as client, host() as server:
        dialer = Dialer(client, AddressBook())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialer.connect, id_of(server), [silent])
            await wait_all_tasks_blocked()
            dialer.book.add(id_of(server), addresses_of(server), source="test", now_s=trio.current_time())
        assert dialer.is_connected(id_of(server))


async def test_no_more_peers_are_dialled_at_once_than_allowed_in_the_process(
    patient_clock: MockClock, silent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns_module, "DIALS_AT_ONCE", 1)
    async with host() as client, host() as other, host() as server:
        order: list[str] = []

        async def fail() -> None:
            with pytest.raises(QueryError):
                await Dialer(client, AddressBook()).connect(PEER, [silent])
            order.append("silent")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await wait_all_tasks_blocked()
            await Dialer(other, AddressBook()).connect(id_of(server), addresses_of(server))
            order.append("live")
        assert order == ["silent", "live"]


async def test_who_gets_no_turn_in_time_is_told_so(
    patient_clock: MockClock, silent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns_module, "DIALS_AT_ONCE", 1)
    race = RaceSettings(address_timeout_s=2.0, total_timeout_s=3.0)
    outcomes: list[str] = []

    async def connect(dialer: Dialer) -> None:
        try:
            await dialer.connect(peer_id_of(new_identity()), [silent])
        except QueryError as error:
            outcomes.append(str(error).partition(": ")[2])

    async with host() as client:
        dialer = Dialer(client, AddressBook(), race=race)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(connect, dialer)
    failed = f"{text(silent)}: no answer within 2 s"
    assert sorted(outcomes) == [failed, failed, "no turn to dial it within 3 s"]


async def test_after_a_success_py_libp2p_s_own_dials_are_not_blocked() -> None:
    with trio.fail_after(30):
        async with host() as client, host() as server:
            swarm = parts_of(client)[1]
            swarm._negative_peer_cache.mark_failed(str(server.get_id()))
            await Dialer(client, AddressBook()).connect(id_of(server), addresses_of(server))
            assert not swarm._negative_peer_cache.is_blocked(str(server.get_id()))
