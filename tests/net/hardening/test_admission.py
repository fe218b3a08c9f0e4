"""A1, A2: who gets a place among the inbound connections, and who makes way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.net.hardening.inbound import Admission, Place, Use, source_of
from prime_dht.net.hardening.limits import HostLimits


def half_open(admission: Admission, source: str | None) -> Place:
    """A connection that counts as half-open from when it is entered."""
    return admission.place(source)


def established(admission: Admission, source: str | None, use: Use = Use.NONE) -> Place:
    """The same, as established."""
    place = admission.place(source)
    place.establish()
    place.use = lambda: use
    return place


def refusal(admission: Admission, source: str | None) -> str | None:
    return admission.refusal(admission.place(source))


def test_a_source_has_a_limited_number_of_connections_whatever_their_state() -> None:
    admission = Admission(HostLimits(max_inbound_per_address=2))
    with half_open(admission, "192.0.2.1"), established(admission, "192.0.2.1"):
        assert refusal(admission, "192.0.2.1") == "too many connections from 192.0.2.1"
        assert refusal(admission, "192.0.2.2") is None
        assert refusal(admission, None) is None
    assert refusal(admission, "192.0.2.1") is None


def test_established_and_half_open_connections_have_limits_of_their_own() -> None:
    admission = Admission(HostLimits(max_connections=1, max_half_open=1))
    with half_open(admission, None):
        assert refusal(admission, None) == "too many connections are half-open"
    with established(admission, None):
        assert refusal(admission, None) == "too many connections are open"


def test_a_connection_that_is_established_counts_as_half_open_no_longer() -> None:
    admission = Admission(HostLimits(max_half_open=1))
    with half_open(admission, "192.0.2.1") as place:
        assert refusal(admission, "192.0.2.2") is not None
        assert admission.establish(place) == []
        assert refusal(admission, "192.0.2.2") is None
    assert not admission._counts


def test_there_is_room_at_the_cost_of_whoever_has_most_places_and_never_of_who_has_hardly_more() -> None:
    admission = Admission(HostLimits(max_connections=5))
    sources = ("2001:db8:0:1::/64", "2001:db8:0:2::/64", "2001:db8:0:3::/64", "192.0.2.1", "192.0.2.1")
    places = [established(admission, source) for source in sources]
    with ExitStack() as stack:
        for place in places[:4]:
            stack.enter_context(place)
        assert refusal(admission, "192.0.2.2") is None
        assert admission.establish(admission.place("2001:db8:0:4::/64")) is None
        with half_open(admission, "192.0.2.1") as newcomer:
            assert admission.establish(newcomer) == [places[2]]
        assert admission.establish(newcomer) == []
        stack.enter_context(places[4])
        assert admission.establish(admission.place("192.0.2.1")) is None
        assert admission.establish(admission.place("192.0.2.2")) == [places[1]]
    assert not admission._counts


def test_of_those_that_may_make_way_the_newest_that_nobody_uses_does_and_never_one_that_is_protected() -> None:
    admission = Admission(HostLimits(max_connections=5))
    uses = [Use.NONE, Use.NONE, Use.STREAMS, Use.PROTECTED]
    places = [established(admission, "192.0.2.1") for _ in uses]
    with ExitStack() as stack:
        for number, place in enumerate(places):
            place.use = partial(uses.__getitem__, number)
            stack.enter_context(place)
        newcomer = admission.place("192.0.2.2")
        assert admission.establish(newcomer) == [places[1]]
        stack.enter_context(places[1])
        uses[:2] = [Use.STREAMS] * 2
        assert admission.establish(newcomer) == [places[1]]
        stack.enter_context(places[1])
        uses[1:] = [Use.PROTECTED] * 3
        assert admission.establish(newcomer) is None


def test_who_has_all_places_of_its_address_displaces_nobody_and_nobody_on_this_machine_is_displaced() -> None:
    admission = Admission(HostLimits(max_connections=4, max_inbound_per_address=1))
    with ExitStack() as stack:
        for source in (None, None, "192.0.2.2"):
            stack.enter_context(established(admission, source))
        stack.enter_context(half_open(admission, "192.0.2.1"))
        assert refusal(admission, "192.0.2.1") is not None
        assert refusal(admission, "192.0.2.3") is not None
        assert admission.establish(admission.place("192.0.2.3")) is None


def test_of_the_half_open_who_had_its_time_makes_way_for_anybody_but_not_who_still_waits_for_its_turn() -> None:
    now_s = 0.0
    admission = Admission(HostLimits(max_half_open=3), clock=lambda: now_s)
    with ExitStack() as stack:
        waits, later, sooner = places = [half_open(admission, source) for source in ("192.0.2.1", None, "192.0.2.2")]
        for place in places:
            stack.enter_context(place)
        admission.began(sooner)
        now_s = 1.0
        admission.began(later)
        newcomer = admission.place("192.0.2.3")
        assert admission.half_open(newcomer) is None
        now_s = 10.0
        assert admission.half_open(newcomer) == [sooner]
        stack.enter_context(newcomer)
        assert admission.half_open(admission.place("192.0.2.4")) == [later]
        stack.enter_context(half_open(admission, "192.0.2.4"))
        assert admission.half_open(admission.place("192.0.2.5")) is None
        assert waits in admission._places


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([half_open, established]), st.sampled_from(["a", "b", None])), max_size=12))
def test_every_connection_that_ends_gives_its_place_back(
    connections: list[tuple[Callable[[Admission, str | None], Place], str | None]],
) -> None:
    admission = Admission(HostLimits(max_connections=2, max_half_open=1, max_inbound_per_address=1))
    for kind, source in connections:
        with kind(admission, source):
            assert refusal(admission, source) is not None or (kind, source) == (established, None)
    assert [refusal(admission, source) for source in ("a", "b", None)] == [None, None, None]
    assert not admission._counts.keys() - {"half-open", "established"}, "sources are not remembered"


@pytest.mark.parametrize(
    ("ip", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("127.9.9.9", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
    ],
)
def test_a_source_is_what_one_party_controls(ip: str, source: str | None) -> None:
    assert source_of(ip) == source
