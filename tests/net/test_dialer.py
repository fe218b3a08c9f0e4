"""What the dialer makes of the address book."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import pytest
import trio
from libp2p.abc import IHost
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from multiaddr import Multiaddr
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.errors import QueryError
from prime_dht.ids import PeerId
from prime_dht.net import dialer as dialer_module
from prime_dht.net import turns as turns_module
from prime_dht.net.address_book import AddressBook, canonical_address
from prime_dht.net.addresses import Reach, host_in
from prime_dht.net.dialer import DIAL_BACK_AT, Dialer
from prime_dht.net.hardening.outbound import RaceSettings
from prime_dht.net.hardening.parts import parts_of
from prime_dht.net.host import HostSettings, listen_addresses, open_host
from prime_dht.net.identity import new_identity, peer_id_of

PEER = peer_id_of(create_new_key_pair(b"\x01" * 32))
REFUSED = Multiaddr("/ip4/127.0.0.1/tcp/1").to_bytes()


def binary(text: str) -> bytes:
    return bytes(Multiaddr(text).to_bytes())


def text(raw: bytes) -> str:
    return str(Multiaddr(raw))


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


async def test_who_connects_from_elsewhere_is_dialable_once_it_was_dialled_where_it_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dialer_module, "reach_of", lambda _address: Reach.INTERNET)
    with trio.fail_after(30):
        async with host() as server, host() as newcomer:
            await Dialer(newcomer, AddressBook()).connect(id_of(server), addresses_of(server))
            dialer, peer = Dialer(server, AddressBook()), id_of(newcomer)
            for refused in ((), (REFUSED,)):
                dialer.book.add(peer, refused, source="identify", now_s=trio.current_time())
                with pytest.raises(QueryError):
                    await dialer.dial_back(peer)
                assert not dialer.is_dialable(peer)
            dialer.book.add(peer, addresses_of(newcomer), source="identify", now_s=trio.current_time())
            await dialer.dial_back(peer)
            assert dialer.is_dialable(peer)
            assert len(server.get_network().get_connections()) == 1, "the one that it made"
            await newcomer.disconnect(server.get_id())
            assert dialer.is_dialable(peer), "it said that it listens there, and did"
            dialer.book.add(peer, [REFUSED], source="identify", now_s=trio.current_time())
            assert not dialer.is_dialable(peer), "it has moved"


async def test_who_was_down_and_connects_is_dialled_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer_module, "reach_of", lambda _address: Reach.INTERNET)
    with trio.fail_after(30):
        async with host() as server, host() as newcomer:
            dialer, peer = Dialer(server, AddressBook()), id_of(newcomer)
            dialer.book.add(peer, addresses_of(newcomer), source="kad", now_s=trio.current_time())
            for _ in range(9):
                dialer.book.failed(peer, now_s=trio.current_time())
            with dialer.hearing():
                await Dialer(newcomer, AddressBook()).connect(id_of(server), addresses_of(server))
                await wait_all_tasks_blocked()
                await dialer.dial_back(peer)
            assert dialer.is_dialable(peer)


async def test_of_many_addresses_few_are_dialled_back_first_that_of_the_machine_that_it_connected_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dialled: list[bytes] = []

    async def refuse(_swarm: Swarm, address: Multiaddr, _peer: ID) -> NoReturn:
        dialled.append(address.to_bytes())
        raise SwarmException("refused")

    monkeypatch.setattr(dialer_module, "reach_of", lambda _address: Reach.INTERNET)
    monkeypatch.setattr(dialer_module, "knock", refuse)
    others = [Multiaddr(f"/ip4/127.0.0.{number}/tcp/1").to_bytes() for number in range(2, 12)]
    with trio.fail_after(30):
        async with host() as server, host() as newcomer:
            await Dialer(newcomer, AddressBook()).connect(id_of(server), addresses_of(server))
            dialer, peer = Dialer(server, AddressBook()), id_of(newcomer)
            dialer.book.add(peer, [*others, *addresses_of(newcomer)], source="identify", now_s=trio.current_time())
            with pytest.raises(QueryError, match="refused"):
                await dialer.dial_back(peer)
    assert [host_in(address) for address in dialled] == [f"127.0.0.{number + 1}" for number in range(DIAL_BACK_AT)]


async def test_who_connects_on_this_machine_is_not_dialled_back() -> None:
    with trio.fail_after(30):
        async with host() as server, host() as newcomer:
            await Dialer(newcomer, AddressBook()).connect(id_of(server), addresses_of(server))
            await Dialer(server, AddressBook()).dial_back(id_of(newcomer))
            assert len(server.get_network().get_connections()) == 1
