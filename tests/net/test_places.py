"""Places for streams: whoever has many gives way to whoever has none."""

from __future__ import annotations

import pytest
import trio

from prime_dht.ids import PeerId
from prime_dht.net.places import Places

A, B, C, D = (PeerId(bytes([0, 1, number])) for number in range(4))


@pytest.fixture
def places() -> Places:
    return Places(of_peer=4, in_all=8)


def take(places: Places, *peers: PeerId) -> list[trio.CancelScope]:
    scopes = [places.take(peer) for peer in peers]
    assert None not in scopes
    return [scope for scope in scopes if scope is not None]


def displaced(scopes: list[trio.CancelScope]) -> list[int]:
    return [number for number, scope in enumerate(scopes) if scope.cancel_called]


async def test_a_peer_has_so_many_places_and_not_one_more(places: Places) -> None:
    scopes = take(places, A, A, A, A)
    assert places.take(A) is None
    places.leave(scopes[1])
    assert places.take(A) is not None
    assert displaced(scopes) == []


async def test_who_has_none_takes_the_latest_of_whoever_has_most(places: Places) -> None:
    scopes = take(places, A, B, B, C, B, C, C, B)
    take(places, D)
    assert displaced(scopes) == [7]
    assert len(places) == 8


async def test_each_newcomer_displaces_another(places: Places) -> None:
    scopes = take(places, A, A, A, A, B, B, B, B)
    take(places, C, D)
    assert displaced(scopes) == [3, 7]


async def test_a_displaced_stream_that_ends_frees_no_place(places: Places) -> None:
    scopes = take(places, A, A, A, A, B, B, B, B)
    take(places, C)
    places.leave(scopes[3])
    assert len(places) == 8
    assert places.take(C) is None


async def test_who_has_a_place_gets_no_further_one_of_others(places: Places) -> None:
    scopes = take(places, A, B, B, B, B, C, C, C)
    assert places.take(A) is None
    assert displaced(scopes) == []


async def test_who_has_one_place_keeps_it() -> None:
    places = Places(of_peer=4, in_all=3)
    scopes = take(places, A, B, C)
    assert places.take(D) is None
    places.leave(scopes[0])
    take(places, D)
    assert displaced(scopes) == []


async def test_all_that_is_served_can_be_ended(places: Places) -> None:
    scopes = take(places, A, A, B)
    places.leave(scopes[1])
    places.cancel_all()
    assert displaced(scopes) == [0, 2]
