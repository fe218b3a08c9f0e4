"""When a peer that breaks the protocol is backed off, for how long, and when all is forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.ids import PeerId
from prime_dht.net.offenders import Offenders, OffenderSettings, Standing

PEER, OTHER = PeerId(b"peer"), PeerId(b"other")
DEFAULTS = OffenderSettings()


def offend(offenders: Offenders, times: int, *, now_s: float, peer: PeerId = PEER) -> Standing:
    for _ in range(times):
        offenders.charge(peer, now_s=now_s)
    return offenders.standing(peer, now_s=now_s)


def test_a_mistake_and_its_repetition_change_nothing() -> None:
    offenders = Offenders()
    assert offend(offenders, 2, now_s=0) is Standing.TOLERATED
    assert offenders.wait_s(PEER, now_s=0) == 0
    assert offenders.backed_off(now_s=0) == 0


def test_the_tenth_offence_in_a_row_backs_a_peer_off_and_nobody_else() -> None:
    offenders = Offenders()
    assert offend(offenders, 9, now_s=0) is Standing.TOLERATED
    assert offend(offenders, 1, now_s=0) is Standing.BACKED_OFF
    assert offenders.standing(OTHER, now_s=0) is Standing.TOLERATED
    assert offenders.backed_off(now_s=0) == 1
    assert offenders.backed_off(now_s=10) == 0


def test_whoever_offends_no_more_than_once_in_ten_seconds_is_never_backed_off() -> None:
    offenders = Offenders()
    for number in range(10_000):
        assert offenders.charge(PEER, now_s=10 * number) is Standing.TOLERATED
    assert offenders.total == 10_000
    standings = [offenders.charge(PEER, now_s=100_000 + 9 * number) for number in range(10)]
    assert standings == [Standing.TOLERATED] * 9 + [Standing.BACKED_OFF]


def test_each_back_off_is_twice_as_long_as_the_one_before_up_to_an_hour() -> None:
    offenders = Offenders()
    now_s, waits = 0.0, []
    for _ in range(12):
        offend(offenders, 10, now_s=now_s)
        waits.append(offenders.wait_s(PEER, now_s=now_s))
        now_s += waits[-1]
    assert waits == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600, 3600]


def test_from_the_third_back_off_on_the_connection_is_closed() -> None:
    offenders = Offenders()
    standings = [offend(offenders, 10, now_s=now_s) for now_s in (0, 100, 200, 300)]
    assert standings == [Standing.BACKED_OFF, Standing.BACKED_OFF, Standing.SHUNNED, Standing.SHUNNED]
    assert offenders.standing(PEER, now_s=1000) is Standing.TOLERATED


def test_what_was_under_way_when_a_peer_was_backed_off_is_counted_and_lengthens_nothing() -> None:
    offenders = Offenders()
    offend(offenders, 100, now_s=0)
    assert offenders.offences == {PEER: 100}
    assert offenders.wait_s(PEER, now_s=0) == 10
    assert offend(offenders, 9, now_s=10) is Standing.TOLERATED


def test_an_hour_without_an_offence_makes_a_peer_start_afresh() -> None:
    offenders = Offenders()
    for now_s in (0.0, 100.0, 200.0):
        offend(offenders, 10, now_s=now_s)
    assert offend(offenders, 10, now_s=240 + DEFAULTS.forgotten_after_s - 1) is Standing.SHUNNED
    again_s = 10_000.0
    assert offend(offenders, 10, now_s=again_s) is Standing.BACKED_OFF
    assert offenders.wait_s(PEER, now_s=again_s) == 10
    assert offenders.total == 50


def test_a_crowd_of_newcomers_is_not_remembered_for_long_and_hides_nobody() -> None:
    offenders = Offenders(OffenderSettings(max_peers=100))
    offend(offenders, 10, now_s=0)
    for number in range(10_000):
        offenders.charge(PeerId(b"%d" % number), now_s=1)
        assert len(offenders.offences) <= 100
    assert offenders.standing(PEER, now_s=1) is Standing.BACKED_OFF
    assert offenders.total == 10_010


def test_it_is_known_whether_a_peer_has_offended_since() -> None:
    offenders = Offenders()
    assert not offenders.offended_since(PEER, at_s=-1)
    offenders.charge(PEER, now_s=5)
    assert offenders.offended_since(PEER, at_s=4)
    assert not offenders.offended_since(PEER, at_s=5)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.floats(0, 500), st.sampled_from([PEER, OTHER])), max_size=60))
def test_nobody_is_backed_off_before_ten_offences_nor_for_ever(steps: list[tuple[float, PeerId]]) -> None:
    offenders = Offenders()
    now_s = 0.0
    for pause_s, peer in steps:
        now_s += pause_s
        standing = offenders.charge(peer, now_s=now_s)
        assert standing is Standing.TOLERATED or offenders.offences[peer] >= 10
        assert offenders.wait_s(peer, now_s=now_s) <= DEFAULTS.max_back_off_s
        assert (standing is Standing.TOLERATED) == (offenders.wait_s(peer, now_s=now_s) == 0)
    assert offenders.total == len(steps)


@pytest.mark.parametrize("back_offs", [1, 100, 5000])
def test_extreme_times_and_counts_do_not_overflow(back_offs: int) -> None:
    offenders = Offenders(OffenderSettings(tolerated=1))
    now_s = 1e12
    for _ in range(back_offs):
        offenders.charge(PEER, now_s=now_s)
        now_s += offenders.wait_s(PEER, now_s=now_s)
    assert offenders.offences == {PEER: back_offs}
