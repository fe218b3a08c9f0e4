"""When and with whom a node syncs. Numbers in comments are the scenarios of the reference."""

from __future__ import annotations

from collections.abc import Collection
from random import Random

import pytest

from prime_dht.ids import US_PER_S, PeerId
from prime_dht.node.rounds import MAX_ROUND_S
from prime_dht.partition.arcs import ArcSet
from prime_dht.sync.messages import Refusal
from prime_dht.sync.schedule import (
    MAX_PEERS_REMEMBERED,
    Accepted,
    Candidate,
    Pace,
    Result,
    Schedule,
    survives,
)

US = PeerId(b"us")
A, B, C = (PeerId(name) for name in (b"a", b"b", b"c"))
CIRCLE = ArcSet.full(sector_bits=9)
LOW, HIGH = (ArcSet.of_prefix(half, 1, sector_bits=9) for half in (0, 1))
PACE = Pace()
MINUTE_US = 60 * US_PER_S
LATER_US = PACE.interval_us + PACE.jitter_us


def schedule(pace: Pace = PACE) -> Schedule:
    return Schedule(US, pace=pace, now_us=0, rng=Random(1))


def begin(
    made: Schedule, candidates: list[Candidate], now_us: int, arc: ArcSet = CIRCLE, slow: Collection[PeerId] = ()
) -> PeerId | None:
    return made.initiate(candidates, arc=arc, nonce=5, now_us=now_us, rng=Random(now_us), slow=slow)


def sync(made: Schedule, peer: PeerId, now_us: int, result: Result = Result.DONE) -> None:
    """Have a round with a peer at a time, and end it at once."""
    assert begin(made, [Candidate(peer=peer, arc=CIRCLE)], now_us) == peer
    made.end(peer, is_ours=True, result=result, now_us=now_us)


def accept(
    made: Schedule, peer: PeerId, now_us: int, *, nonce: int = 1, stalled_us: dict[PeerId, int] | None = None
) -> Accepted | Refusal:
    """Whether a round may begin; of those under way, only these have stalled."""
    stalled = dict.fromkeys((active.peer for active in made.active), 0) | (stalled_us or {})
    return made.accept(peer, nonce=nonce, stalled_us=stalled, now_us=now_us)


def all_of(*peers: PeerId) -> list[Candidate]:
    return [Candidate(peer=peer, arc=CIRCLE) for peer in peers]


def test_the_first_round_and_those_after_it_are_jittered() -> None:
    firsts = {Schedule(US, pace=PACE, now_us=0, rng=Random(seed)).due_us for seed in range(20)}
    assert len(firsts) > 15
    assert all(0 <= due_us <= PACE.jitter_us for due_us in firsts)
    made = schedule()
    assert begin(made, all_of(A), made.due_us - 1) is None
    began_us = made.due_us
    assert begin(made, all_of(A), began_us) == A
    assert PACE.interval_us <= made.due_us - began_us <= PACE.interval_us + PACE.jitter_us


def test_one_round_is_initiated_at_a_time() -> None:
    made = schedule()
    assert begin(made, all_of(A), LATER_US) == A
    assert begin(made, all_of(A, B), 2 * LATER_US) is None
    made.end(A, is_ours=True, result=Result.DONE, now_us=2 * LATER_US)
    assert begin(made, all_of(A, B), 3 * LATER_US) == B


def test_a_second_round_is_initiated_beside_a_slow_one_and_no_third() -> None:
    made = schedule()
    assert begin(made, all_of(A), LATER_US) == A
    assert begin(made, all_of(A, B, C), 2 * LATER_US, slow=[B]) is None
    assert begin(made, all_of(A, B), 3 * LATER_US, slow=[A]) == B
    assert begin(made, all_of(A, B, C), 4 * LATER_US, slow=[A, B]) is None
    assert made.due_us > 4 * LATER_US, "its turn has passed"
    made.end(B, is_ours=True, result=Result.DONE, now_us=4 * LATER_US)
    assert begin(made, all_of(A, C), 5 * LATER_US, slow=[A]) == C


def test_without_an_arc_nothing_is_initiated() -> None:  # 40
    assert begin(schedule(), all_of(A), LATER_US, arc=ArcSet.empty(sector_bits=9)) is None


def test_a_partner_never_synced_with_comes_first_then_the_one_longest_ago() -> None:  # 46
    made = schedule()
    sync(made, B, LATER_US)
    sync(made, A, 2 * LATER_US)
    assert begin(made, all_of(A, B, C), 3 * LATER_US) == C
    made.end(C, is_ours=True, result=Result.DONE, now_us=3 * LATER_US)
    assert begin(made, all_of(A, B, C), 4 * LATER_US) == B


def test_of_equals_any_may_be_the_first_whatever_the_order_in_which_they_are_named() -> None:
    """Else all that start together would begin with the same one, which is busy then."""
    peers = [PeerId(b"%d" % number) for number in range(8)]
    firsts = {begin(schedule(), all_of(*peers), LATER_US + seed) for seed in range(100)}
    assert firsts == set(peers)


def test_an_overlapping_arc_comes_before_an_unknown_one_and_that_before_the_rest() -> None:  # 46
    made = schedule()
    sync(made, A, LATER_US)
    overlapping, unknown, apart = Candidate(peer=A, arc=LOW), Candidate(peer=B), Candidate(peer=C, arc=HIGH)
    for number, (candidates, chosen) in enumerate(
        [([apart, unknown, overlapping], A), ([apart, unknown], B), ([apart], C)], start=2
    ):
        assert begin(made, candidates, number * LATER_US, arc=LOW) == chosen
        made.end(chosen, is_ours=True, result=Result.DONE, now_us=number * LATER_US)


def test_who_may_settle_the_most_missing_sectors_comes_before_all_others() -> None:
    made = schedule()
    sync(made, A, LATER_US)
    few, many = Candidate(peer=B, arc=CIRCLE, gain=3), Candidate(peer=A, gain=40)
    assert begin(made, [few, many, Candidate(peer=C, arc=CIRCLE)], 2 * LATER_US) == A


def test_who_put_us_off_is_left_alone_for_a_moment_and_that_is_no_failure() -> None:
    made = schedule(Pace(interval_us=1, jitter_us=0))
    for now_us in (10, 10 + PACE.put_off_us):
        sync(made, A, now_us, Result.PUT_OFF)
        assert begin(made, all_of(A), now_us + PACE.put_off_us - 1) is None
    sync(made, A, 10 + 2 * PACE.put_off_us, Result.FAILED)
    assert _is_free(made, 10 + 2 * PACE.put_off_us + PACE.backoff_us)


def test_peers_that_failed_lately_are_skipped() -> None:  # 46, 51
    made = schedule(Pace(interval_us=1, jitter_us=0))
    sync(made, A, 10, Result.FAILED)
    assert begin(made, all_of(A), 20) is None
    assert begin(made, all_of(A, B), 30) == B
    made.end(B, is_ours=True, result=Result.DONE, now_us=30)
    assert begin(made, all_of(A), 10 + PACE.backoff_us) == A


def test_backoff_doubles_up_to_its_limit_and_ends_with_success() -> None:
    made = schedule(Pace(interval_us=1, jitter_us=0))
    now_us, waits_us = 1, []
    for _ in range(9):
        sync(made, A, now_us, Result.FAILED)
        wait_us = next(us for us in range(MINUTE_US, 70 * MINUTE_US, MINUTE_US) if _is_free(made, now_us + us))
        waits_us.append(wait_us // MINUTE_US)
        now_us += wait_us
    assert waits_us == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    sync(made, A, now_us)
    sync(made, A, now_us + MINUTE_US, Result.FAILED)
    assert _is_free(made, now_us + 2 * MINUTE_US)


def _is_free(made: Schedule, now_us: int) -> bool:
    """Whether a round with A could begin; it is begun and undone."""
    due_us = made.due_us
    if begin(made, all_of(A), now_us) is None:
        return False
    made.active.clear()
    made.due_us = due_us
    return True


def test_who_failed_for_a_reason_that_is_no_more_is_begun_with_at_once_and_who_misbehaved_is_not() -> None:
    made = schedule()
    for number in range(6):
        sync(made, A, LATER_US + number * PACE.max_backoff_us, Result.FAILED)
    now_us = LATER_US + 6 * PACE.max_backoff_us
    sync(made, B, now_us, Result.MISCONDUCT)
    sync(made, A, now_us + LATER_US, Result.FAILED)
    assert begin(made, all_of(A, B), now_us + 2 * LATER_US) is None
    made.forgive()
    assert begin(made, all_of(B), now_us + 3 * LATER_US) is None
    sync(made, A, now_us + 4 * LATER_US, Result.FAILED)
    assert begin(made, all_of(A), now_us + 5 * LATER_US) == A  # as if it had failed for the first time


def test_a_peer_of_another_network_is_left_alone_for_longest_and_may_come_back_when_it_is_configured() -> None:
    made = schedule(Pace(interval_us=1, jitter_us=0))
    sync(made, A, 10, Result.FOREIGN)
    assert begin(made, all_of(A), 9 + PACE.max_backoff_us) is None
    assert _is_free(made, 10 + PACE.max_backoff_us)
    assert accept(made, A, 20) == Accepted()


def test_misconduct_is_backed_off_much_longer_on_both_sides() -> None:
    made = schedule()
    sync(made, A, LATER_US, Result.MISCONDUCT)
    until_us = LATER_US + PACE.misconduct_backoff_us
    assert accept(made, A, until_us - 1) is Refusal.TOO_OFTEN
    assert begin(made, all_of(A), until_us - 1) is None
    assert accept(made, A, until_us) == Accepted()


def test_a_peer_that_was_away_may_begin_a_round_at_once() -> None:
    made = schedule()
    sync(made, A, LATER_US, Result.FAILED)
    assert accept(made, A, LATER_US) == Accepted()


@pytest.mark.parametrize("most", [1, 3])
def test_so_many_rounds_are_accepted_at_a_time(most: int) -> None:  # 38
    made = schedule(Pace(max_accepted=most))
    answers = [accept(made, PeerId(b"%d" % i), 0) for i in range(20)]
    assert answers == [Accepted()] * most + [Refusal.BUSY] * (20 - most)
    made.end(PeerId(b"0"), is_ours=False, result=Result.DONE, now_us=0)
    assert accept(made, A, 0) == Accepted()


def test_where_there_is_no_place_the_round_that_stalled_longest_gives_way_if_it_stalled_for_long() -> None:
    made = schedule(Pace(max_accepted=2))
    assert [accept(made, peer, 0) for peer in (A, B)] == [Accepted(), Accepted()]
    almost_us = PACE.stalled_us - 1
    assert accept(made, C, 1, stalled_us={A: almost_us, B: almost_us}) is Refusal.BUSY
    assert accept(made, C, 2, stalled_us={A: PACE.stalled_us, B: PACE.stalled_us + 1}) == Accepted(instead_of=B)
    assert [active.peer for active in made.active] == [A, C]
    assert accept(made, PeerId(b"d"), 3, stalled_us={A: -US_PER_S}) is Refusal.BUSY


def test_no_round_gives_way_while_there_is_a_place_or_to_one_that_is_refused() -> None:
    made = schedule(Pace(max_accepted=2, burst=1))
    sync(made, C, LATER_US, Result.MISCONDUCT)
    stalled_us = {A: PACE.round_us, B: PACE.round_us}
    assert [accept(made, peer, LATER_US, stalled_us=stalled_us) for peer in (A, B)] == [Accepted(), Accepted()]
    assert accept(made, A, LATER_US, stalled_us=stalled_us) is Refusal.TOO_OFTEN
    assert accept(made, C, LATER_US, stalled_us=stalled_us) is Refusal.TOO_OFTEN


def test_who_gave_way_may_begin_another_round_but_none_gives_way_to_it_for_a_while() -> None:
    made = schedule(Pace(max_accepted=1))
    accept(made, A, LATER_US)
    until_us = LATER_US + PACE.gave_way_us
    assert accept(made, B, LATER_US, stalled_us={A: PACE.stalled_us}) == Accepted(instead_of=A)
    assert accept(made, A, until_us - 1, stalled_us={B: PACE.stalled_us}) is Refusal.BUSY
    assert accept(made, A, until_us, stalled_us={B: PACE.stalled_us}) == Accepted(instead_of=B)
    made.end(A, is_ours=False, result=Result.DONE, now_us=until_us)
    assert accept(made, B, until_us) == Accepted()


def test_whoever_gives_way_again_and_again_loses_no_more_each_time_whatever_failed_before() -> None:
    made, now_us = schedule(Pace(interval_us=1, jitter_us=0, max_accepted=1)), LATER_US
    for _ in range(4):
        sync(made, A, now_us, Result.FAILED)
        now_us += PACE.max_backoff_us
    for number in range(7):
        assert accept(made, A, now_us) == Accepted()
        fresh = PeerId(b"fresh %d" % number)
        assert accept(made, fresh, now_us, stalled_us={A: PACE.stalled_us}) == Accepted(instead_of=A)
        assert not made.is_pestered_by(A, now_us=now_us)
        made.end(fresh, is_ours=False, result=Result.FAILED, now_us=now_us)
        assert not _is_free(made, now_us + PACE.backoff_us - 1)
        assert _is_free(made, now_us + PACE.backoff_us)
        now_us += PACE.backoff_us


@pytest.mark.parametrize(("ids", "least"), [(14, 100), (200, 96)])
def test_ids_that_fall_silent_in_each_round_keep_next_to_nobody_out(ids: int, least: int) -> None:
    made, silent, honest = schedule(), [PeerId(b"silent %d" % number) for number in range(ids)], 0
    began_s: dict[PeerId, int] = {}

    def takes_part(peer: PeerId, second: int) -> bool:
        now_us = second * US_PER_S
        stalled_us = {other: now_us - at_s * US_PER_S for other, at_s in began_s.items()}
        answer = accept(made, peer, now_us, stalled_us=stalled_us)
        if isinstance(answer, Accepted) and answer.instead_of is not None:
            del began_s[answer.instead_of]
        return isinstance(answer, Accepted)

    for second in range(1200):
        for peer in silent:
            if began_s.get(peer, second) + 30 <= second:
                made.end(peer, is_ours=False, result=Result.FAILED, now_us=second * US_PER_S)
                del began_s[peer]
            if peer not in began_s and takes_part(peer, second):
                began_s[peer] = second
        if second % 12 == 11:
            peer = PeerId(b"honest %d" % (second // 12 % 10))
            if takes_part(peer, second):
                honest += 1
                made.end(peer, is_ours=False, result=Result.DONE, now_us=second * US_PER_S)
    assert least <= honest <= 100


def test_the_seventeenth_round_of_a_peer_in_ten_minutes_is_refused_in_a_sliding_window() -> None:  # 39
    made = schedule()

    def opens(peer: PeerId, now_us: int) -> Accepted | Refusal:
        answer = accept(made, peer, now_us)
        made.end(peer, is_ours=False, result=Result.DONE, now_us=now_us)
        return answer

    for minute in range(8):
        assert [opens(A, minute * MINUTE_US) for _ in range(2)] == [Accepted(), Accepted()]
    assert opens(A, 8 * MINUTE_US) is Refusal.TOO_OFTEN
    assert opens(B, 8 * MINUTE_US) == Accepted()
    assert [opens(A, 10 * MINUTE_US) for _ in range(3)] == [Accepted(), Accepted(), Refusal.TOO_OFTEN]


@pytest.mark.parametrize(("our_nonce", "their_nonce"), [(1, 2), (2, 1), (7, 7)])
def test_of_two_rounds_that_cross_exactly_one_goes_on(our_nonce: int, their_nonce: int) -> None:  # 41
    one, other = Schedule(A, pace=PACE, now_us=0, rng=Random(1)), Schedule(B, pace=PACE, now_us=0, rng=Random(2))
    assert one.initiate(all_of(B), arc=CIRCLE, nonce=our_nonce, now_us=LATER_US, rng=Random(1)) == B
    assert other.initiate(all_of(A), arc=CIRCLE, nonce=their_nonce, now_us=LATER_US, rng=Random(1)) == A
    answers = [
        accept(one, B, LATER_US, nonce=their_nonce),
        accept(other, A, LATER_US, nonce=our_nonce),
    ]
    assert sorted(answers, key=str) == [Accepted(), Refusal.CROSSED]
    assert len(one.active) == len(other.active) == 1
    assert survives((our_nonce, A), (their_nonce, B)) is not survives((their_nonce, B), (our_nonce, A))


def test_who_is_refused_a_few_times_pesters_nobody_but_who_never_stops_does() -> None:
    made = schedule()

    def opens(now_us: int) -> bool:
        """Whether it is too much."""
        accepted = accept(made, A, now_us)
        made.end(A, is_ours=False, result=Result.DONE, now_us=now_us)
        return accepted is Refusal.TOO_OFTEN and made.is_pestered_by(A, now_us=now_us)

    assert [opens(number) for number in range(3 * PACE.burst)] == [False] * 2 * PACE.burst + [True] * PACE.burst
    assert not opens(PACE.burst_us + 3 * PACE.burst)


def test_one_peer_has_one_accepted_round_at_a_time() -> None:
    made = schedule()
    assert accept(made, A, 0) == Accepted()
    assert accept(made, A, 0, nonce=2) is Refusal.BUSY


def test_the_end_of_a_round_ends_no_other() -> None:  # 43
    made = schedule()
    accept(made, A, 0)
    made.end(B, is_ours=False, result=Result.DONE, now_us=0)
    made.end(A, is_ours=True, result=Result.DONE, now_us=0)
    assert [active.peer for active in made.active] == [A]
    made.end(A, is_ours=False, result=Result.DONE, now_us=0)
    assert made.active == []


def test_rounds_expire_one_by_one() -> None:  # 45
    made = schedule()
    for second, peer in enumerate((A, B, C)):
        accept(made, peer, second * US_PER_S)
    for now_us, left in ((PACE.round_us - 1, [A, B, C]), (PACE.round_us, [B, C]), (PACE.round_us + 2 * US_PER_S, [])):
        made.expire(now_us)
        assert [active.peer for active in made.active] == left


def test_an_unanswered_round_does_not_stop_the_next_for_ever() -> None:  # 51
    made = schedule()
    assert begin(made, all_of(A, B), LATER_US) is not None
    assert begin(made, all_of(A, B), LATER_US + PACE.round_us) is not None


def test_with_one_peer_it_begins_half_as_many_rounds_as_that_would_accept() -> None:
    made = schedule()
    for number in range(PACE.burst // 2):
        made.due_us = 0
        sync(made, A, LATER_US + number)
    made.due_us = 0
    assert begin(made, all_of(A), LATER_US + MINUTE_US) is None
    made.due_us = 0
    assert begin(made, all_of(A, B), LATER_US + MINUTE_US) == B
    made.end(B, is_ours=True, result=Result.DONE, now_us=LATER_US + MINUTE_US)
    sync(made, A, LATER_US + PACE.burst_us + MINUTE_US)


def test_a_round_expires_long_after_its_time_is_up() -> None:
    assert PACE.round_us >= 2 * MAX_ROUND_S * US_PER_S


def test_strangers_cannot_fill_the_memory() -> None:
    made = schedule()
    for number in range(3 * MAX_PEERS_REMEMBERED):
        peer = PeerId(b"%d" % number)
        accept(made, peer, number)
        made.end(peer, is_ours=False, result=Result.DONE, now_us=number)
    assert len(made._memories) == MAX_PEERS_REMEMBERED
