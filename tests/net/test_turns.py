"""Whoever waits for a turn to dial waits for this process, and not for the peer."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from libp2p.abc import IHost
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.config import DhtConfig
from prime_dht.errors import QueryError
from prime_dht.ids import PeerId
from prime_dht.net import turns as turns_module
from prime_dht.net.address_book import AddressBook
from prime_dht.net.dialer import Dialer
from prime_dht.net.hardening.outbound import RaceSettings
from prime_dht.net.host import HostSettings, open_host
from prime_dht.net.identity import new_identity, peer_id_of
from prime_dht.net.network import Handler
from prime_dht.net.overlay import Overlay
from prime_dht.net.turns import Caller, Turns
from prime_dht.node.lookups import QUERY_TIMEOUT_S
from prime_dht.node.neighbourhood import PROBE_TIMEOUT_S
from prime_dht.wire.kad import Ping, Reply, Request

ADDRESS_TIMEOUT_S = RaceSettings().address_timeout_s


async def be_silent(_peer: PeerId, _request: Request) -> Reply:
    await trio.sleep_forever()
    raise AssertionError


async def answer(_peer: PeerId, _request: Request) -> Reply:
    return Reply()


@asynccontextmanager
async def host() -> AsyncIterator[IHost]:
    async with open_host(HostSettings(key_pair=new_identity(), listen=("/ip4/127.0.0.1/tcp/0",))) as opened:
        yield opened


@asynccontextmanager
async def server(handler: Handler = answer) -> AsyncIterator[Overlay]:
    async with host() as opened, trio.open_nursery() as nursery:
        overlay = Overlay(opened, DhtConfig(), handler)
        await nursery.start(overlay.run)
        overlay.mount(as_server=True)
        yield overlay
        nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "DIALS_AT_ONCE", 1)


async def take_the_turn(client: IHost, silent: bytes) -> None:
    """Dial one that never answers, until the time for its address is over."""
    with pytest.raises(QueryError, match="no answer within"):
        await Dialer(client, AddressBook()).connect(peer_id_of(new_identity()), [silent])


async def test_the_wait_for_a_turn_does_not_count_as_the_time_that_a_peer_takes(
    patient_clock: MockClock, silent: bytes
) -> None:
    async with server() as one, server() as other, host() as busy:
        one.learn_addresses(other.local, other.own_addresses(), source="manual")
        turns_s: list[float] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_the_turn, busy, silent)
            await wait_all_tasks_blocked()
            start_s = trio.current_time()
            await one.call(
                other.local,
                Ping(),
                timeout_s=ADDRESS_TIMEOUT_S / 2,
                on_turn=lambda: turns_s.append(trio.current_time() - start_s),
            )
        assert turns_s == [ADDRESS_TIMEOUT_S]
        await one.call(other.local, Ping(), timeout_s=1, on_turn=lambda: turns_s.append(0.0))
        assert turns_s == [ADDRESS_TIMEOUT_S, 0.0], "one that is connected needs no turn"


async def test_who_dials_many_silent_peers_leaves_turns_to_others(
    monkeypatch: pytest.MonkeyPatch, patient_clock: MockClock, silent: bytes
) -> None:
    monkeypatch.setattr(turns_module, "DIALS_AT_ONCE", 9)
    async with server() as one, server() as other, host() as busy:
        one.learn_addresses(other.local, other.own_addresses(), source="manual")
        for _ in range(2):  # turns of those who are cut short come back
            start_s = trio.current_time()
            async with trio.open_nursery() as lookup, trio.open_nursery() as another_lookup:
                for nursery in (lookup, another_lookup):
                    for _ in range(8):
                        nursery.start_soon(take_the_turn, busy, silent)
                await wait_all_tasks_blocked()
                await one.call(other.local, Ping(), timeout_s=1)
                assert trio.current_time() == start_s
                lookup.cancel_scope.cancel()
                another_lookup.cancel_scope.cancel()
            await one._host.disconnect(ID(other.local))


async def test_a_turn_that_comes_free_is_for_who_has_fewest(
    monkeypatch: pytest.MonkeyPatch, patient_clock: MockClock, silent: bytes
) -> None:
    monkeypatch.setattr(turns_module, "DIALS_AT_ONCE", 9)
    async with server() as one, server() as other, host() as busy, trio.open_nursery() as nursery:
        one.learn_addresses(other.local, other.own_addresses(), source="manual")

        async def look_up() -> None:
            async with trio.open_nursery() as lookup:
                for _ in range(8):
                    lookup.start_soon(take_the_turn, busy, silent)

        start_s = trio.current_time()
        for _ in range(3):  # six turns, two, and one
            nursery.start_soon(look_up)
            await wait_all_tasks_blocked()
        await one.call(other.local, Ping(), timeout_s=1)
        assert trio.current_time() == start_s + ADDRESS_TIMEOUT_S
        nursery.cancel_scope.cancel()


async def test_a_peer_is_dialled_when_the_first_of_all_who_want_it_may(
    monkeypatch: pytest.MonkeyPatch, patient_clock: MockClock, silent: bytes
) -> None:
    monkeypatch.setattr(turns_module, "DIALS_AT_ONCE", 3)
    async with server() as one, server() as other, host() as busy, trio.open_nursery() as lookup:
        one.learn_addresses(other.local, other.own_addresses(), source="manual")
        start_s = trio.current_time()
        for _ in range(2):
            lookup.start_soon(take_the_turn, busy, silent)
        await wait_all_tasks_blocked()
        lookup.start_soon(partial(one.call, other.local, Ping(), timeout_s=1))
        await wait_all_tasks_blocked()
        assert not one.is_connected(other.local)
        await one.call(other.local, Ping(), timeout_s=1)
        assert trio.current_time() == start_s
        lookup.cancel_scope.cancel()


async def test_who_comes_when_many_wait_is_dealt_with_as_fast_as_when_few_do(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(turns_module, "DIALS_AT_ONCE", 3)
    asked: list[Caller] = []

    class Counted(Caller):
        def __getattribute__(self, name: str) -> object:
            if name == "share":
                asked.append(self)
            return super().__getattribute__(name)

    async def dial_one_that_is_silent() -> None:
        turns = Turns()
        with turns.waiting(Counted(1, None), at_most_s=1):
            await turns.dial(trio.sleep_forever, lambda: False)

    async with trio.open_nursery() as lookup:
        for _ in range(100):
            lookup.start_soon(dial_one_that_is_silent)
        await wait_all_tasks_blocked()
        assert len(asked) == len(set(asked))


async def test_a_dial_that_takes_longer_than_a_caller_in_a_hurry_allows_is_not_held_against_the_peer(
    patient_clock: MockClock, silent: bytes
) -> None:
    async with host() as client:
        dialer, peer = Dialer(client, AddressBook()), peer_id_of(new_identity())
        start_s = trio.current_time()
        with pytest.raises(QueryError, match="did not answer within 1 s"):
            await dialer.connect(peer, [silent], timeout_s=1)
        assert trio.current_time() == start_s + 1
        assert dialer.book.wait_s(peer, gives_s=1, now_s=start_s + 1) == 0


@pytest.mark.parametrize("timeout_s", [QUERY_TIMEOUT_S, PROBE_TIMEOUT_S])
async def test_a_peer_that_swallows_packets_is_left_alone_once_for_all_who_gave_it_their_usual_time(
    patient_clock: MockClock, silent: bytes, timeout_s: float
) -> None:
    peer = peer_id_of(new_identity())

    async def connect(dialer: Dialer) -> None:
        with pytest.raises(QueryError, match="did not answer within"):
            await dialer.connect(peer, [silent], timeout_s=timeout_s)

    async with host() as client:
        dialer = Dialer(client, AddressBook(), race=RaceSettings(address_timeout_s=10))
        for wait_s in (1, 2):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(connect, dialer)
            assert dialer.book.wait_s(peer, gives_s=timeout_s, now_s=trio.current_time()) == wait_s
            await trio.sleep(wait_s)


async def test_a_peer_on_a_slow_path_that_lookups_give_up_is_reached_by_who_gives_it_more_time(
    patient_clock: MockClock, silent: bytes
) -> None:
    async with host() as client, server() as other:
        # The addresses race, and the second one's turn comes late.
        dialer = Dialer(client, AddressBook(), race=RaceSettings(stagger_s=QUERY_TIMEOUT_S + 0.5))
        dialer.book.add(other.local, [silent, *other.own_addresses()], source="test", now_s=0.0)
        dialer.book.succeeded(other.local, silent, now_s=0.0)
        for wait_s in (1, 2):
            with pytest.raises(QueryError, match="did not answer within 3 s"):
                await dialer.connect(other.local, timeout_s=QUERY_TIMEOUT_S)
            with pytest.raises(QueryError, match=f"left alone for {wait_s} s"):
                await dialer.connect(other.local, timeout_s=QUERY_TIMEOUT_S)
            await trio.sleep(wait_s)
        with pytest.raises(QueryError, match="did not answer within 3 s"):
            await dialer.connect(other.local, timeout_s=QUERY_TIMEOUT_S)
        await dialer.connect(other.local, timeout_s=PROBE_TIMEOUT_S)
        assert dialer.is_connected(other.local)


async def test_a_dial_that_one_caller_gives_up_is_not_held_against_the_peer_while_another_goes_on(
    patient_clock: MockClock, silent: bytes
) -> None:
    async with host() as client:
        dialer, peer = Dialer(client, AddressBook()), peer_id_of(new_identity())
        errors: list[str] = []

        async def connect(timeout_s: float) -> None:
            try:
                await dialer.connect(peer, [silent], timeout_s=timeout_s)
            except QueryError as error:
                errors.append(str(error).partition(": ")[2] or str(error).rpartition(" did ")[2])

        async with trio.open_nursery() as nursery:
            for timeout_s in (3, 10, 4):
                nursery.start_soon(connect, timeout_s)
                await wait_all_tasks_blocked()
        assert errors[:2] == ["not answer within 3 s", "not answer within 4 s"]
        assert "no answer within 5 s" in errors[2]
        assert dialer.book.wait_s(peer, gives_s=math.inf, now_s=trio.current_time()) == 1


async def test_what_the_dial_took_is_no_longer_there_for_the_answer(patient_clock: MockClock, silent: bytes) -> None:
    async with server() as one, server(be_silent) as other:
        # The addresses race, and the first is not given up before the second has had its time.
        one.learn_addresses(other.local, [silent, *other.own_addresses()], source="manual")
        start_s = trio.current_time()
        with pytest.raises(QueryError, match="did not answer within 1 s"):
            await one.call(other.local, Ping(), timeout_s=1)
        assert one.is_connected(other.local)
        assert trio.current_time() == start_s + 1


async def test_who_waits_for_another_s_dial_of_the_same_peer_has_its_turn_with_it(
    patient_clock: MockClock, silent: bytes
) -> None:
    turns_s: list[float] = []
    async with host() as client:
        dialer, peer = Dialer(client, AddressBook()), peer_id_of(new_identity())

        async def connect(timeout_s: float) -> None:
            with pytest.raises(QueryError):
                await dialer.connect(
                    peer, [silent], timeout_s=timeout_s, on_turn=lambda: turns_s.append(trio.current_time())
                )

        start_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect, 10)
            nursery.start_soon(connect, 10)
            await wait_all_tasks_blocked()
            await connect(1)
            assert trio.current_time() == start_s + 1
        assert turns_s == [start_s] * 3


async def test_who_waits_for_a_turn_waits_no_longer_when_the_peer_connects_by_itself(
    patient_clock: MockClock, silent: bytes
) -> None:
    async with server() as one, server() as other, host() as busy, trio.open_nursery() as nursery:
        one.learn_addresses(other.local, other.own_addresses(), source="manual")
        start_s = trio.current_time()
        nursery.start_soon(take_the_turn, busy, silent)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as calls:
            for _ in range(3):
                calls.start_soon(partial(one.call, other.local, Ping(), timeout_s=1))
            await wait_all_tasks_blocked()
            await other._host.connect(PeerInfo(ID(one.local), list(map(Multiaddr, one.own_addresses()))))
        assert trio.current_time() < start_s + ADDRESS_TIMEOUT_S
