"""Whose turn it is to be fetched, whatever strangers refer to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.blobs.cid import Cid
from prime_dht.ids import Key, OpId, PeerId, TimestampUs
from prime_dht.node.blobs.claims import KeptBlob
from prime_dht.node.blobs.progress import BlobProgress, Stage
from prime_dht.node.blobs.turns import (
    LOOK_AGAIN_S,
    QUIET_S,
    RETRY_AT_MOST_S,
    RETRY_FIRST_S,
    TURN_S,
    TURNS_AT_ONCE,
    Begin,
    GiveWay,
    Turn,
    Turns,
    WaitUntil,
)

ANNE, BOB, EVE = PeerId(b"anne"), PeerId(b"bob"), PeerId(b"eve")
FUTURE_US = 600_000_000
BEGUN = BlobProgress(stage=Stage.FETCHING, cid=None, size_bytes=None, done_bytes=0)


def blob_of(
    publisher: PeerId, number: int = 0, *, root: bytes = b"", created_us: int = 0, since_s: float = 0
) -> KeptBlob:
    name = publisher + b" %d" % number
    return KeptBlob(
        op_id=OpId(name),
        root=Cid.of_raw(root or name),
        size=1,
        key=Key(b"k"),
        publisher=publisher,
        created_at_us=TimestampUs(created_us),
        is_by_put=True,
        since_s=since_s,
    )


class Desk:
    """Turns, and what is under way; as time goes by, whatever begins is begun in earnest, and heard of no more."""

    def __init__(self, *blobs: KeptBlob, is_ours: Callable[[KeptBlob], bool] = lambda _: True) -> None:
        self.turns = Turns(Random(1), is_ours)
        self.turns.add(blobs)
        self.under_way: list[Turn] = []

    def at(self, now_s: float) -> WaitUntil:
        """Do all that is to be done at a time."""
        while True:
            match self.turns.next(now_s):
                case Begin(turn):
                    self.under_way.append(turn)
                    self.turns.told(turn, BEGUN, now_s)
                case GiveWay(turn):
                    self.under_way.remove(turn)
                case WaitUntil() as wait:
                    assert wait.at_s > now_s
                    return wait

    def until(self, end_s: float) -> None:
        """Do all that is to be done up to a time."""
        now_s = 0.0
        while (wait := self.at(now_s)).at_s < end_s:
            now_s = wait.at_s

    def hear(self, turn: Turn, now_s: float, *, blocks: int = 0, parts: int = 0, found_bytes: int = 0) -> None:
        """So much more has come to a fetch, or was here already."""
        before = turn.progress or BEGUN
        now = replace(
            before,
            fetched_blocks=before.fetched_blocks + blocks,
            fetched_parts=before.fetched_parts + parts,
            done_bytes=before.done_bytes + found_bytes,
        )
        self.turns.told(turn, now, now_s)

    def finish(self, turn: Turn) -> None:
        """A blob has come."""
        self.under_way.remove(turn)
        self.turns.done(turn.blob.root)
        self.turns.ended(turn)

    def fail(self, turn: Turn, now_s: float) -> float | None:
        self.under_way.remove(turn)
        wait_s = self.turns.failed(turn, now_s)
        self.turns.ended(turn)
        return wait_s

    @property
    def blobs(self) -> list[KeptBlob]:
        return [turn.blob for turn in self.under_way]


def test_a_few_are_fetched_at_a_time_and_of_one_publisher_the_newest_first() -> None:
    blobs = [blob_of(ANNE, number, created_us=number) for number in range(4)]
    desk = Desk(*blobs)
    assert desk.at(0) == WaitUntil(QUIET_S)
    assert desk.blobs == [blobs[3], blobs[2]]
    assert len(desk.blobs) == TURNS_AT_ONCE
    desk.finish(desk.under_way[0])
    desk.at(1)
    assert desk.blobs == [blobs[2], blobs[1]]
    desk.finish(desk.under_way[0])
    desk.finish(desk.under_way[0])
    desk.at(2)
    desk.finish(desk.under_way[0])
    assert desk.at(3) == WaitUntil(math.inf)


def test_publishers_take_turns_whenever_they_say_that_they_wrote() -> None:
    desk = Desk(*(blob_of(EVE, number, created_us=FUTURE_US) for number in range(10)))
    desk.at(0)
    desk.turns.add([blob_of(ANNE, number) for number in range(2)])
    for now_s in range(1, 3):
        desk.finish(next(turn for turn in desk.under_way if turn.blob.publisher == EVE))
        desk.at(now_s)
        assert {blob.publisher for blob in desk.blobs} == {ANNE, EVE}
    desk.turns.add([blob_of(BOB)])
    desk.finish(next(turn for turn in desk.under_way if turn.blob.publisher == ANNE))
    desk.at(3)
    assert {blob.publisher for blob in desk.blobs} == {BOB, EVE}


def test_who_has_fetches_under_way_comes_after_who_has_none() -> None:
    desk = Desk(*(blob_of(EVE, number) for number in range(10)))
    desk.at(0)
    desk.turns.add([blob_of(ANNE, number) for number in range(2)])
    desk.finish(desk.under_way[0])
    desk.at(1)
    desk.finish(desk.under_way[1])
    desk.at(2)
    assert [blob.publisher for blob in desk.blobs] == [EVE, ANNE]


def test_of_one_publisher_what_was_tried_least_comes_before_what_is_newer() -> None:
    desk = Desk(blob_of(ANNE, 1, created_us=2), blob_of(ANNE, 2, created_us=2), blob_of(ANNE, 3, created_us=1))
    desk.at(0)
    desk.fail(desk.under_way[0], 0)
    desk.at(0)
    desk.fail(desk.under_way[0], 0)
    desk.turns.add([blob_of(ANNE, 4)])
    desk.at(8)
    assert desk.blobs == [blob_of(ANNE, 3, created_us=1), blob_of(ANNE, 4)]


def test_of_publishers_that_had_no_turn_the_one_comes_first_whose_reference_came_last() -> None:
    strangers = [blob_of(PeerId(b"eve%d" % number), created_us=FUTURE_US, since_s=1) for number in range(9)]
    desk = Desk(*strangers)
    desk.at(1)
    desk.turns.add([blob_of(ANNE, since_s=2)])
    desk.finish(desk.under_way[0])
    desk.at(3)
    assert desk.blobs[-1].publisher == ANNE


def test_a_quiet_fetch_gives_way_to_one_that_waits_and_to_nobody_else() -> None:
    desk = Desk(blob_of(EVE, 1), blob_of(EVE, 2))
    assert desk.at(0) == WaitUntil(math.inf)
    desk.hear(desk.under_way[0], 40, blocks=1)
    desk.hear(desk.under_way[1], 41, blocks=1)
    desk.turns.add([blob_of(ANNE)])
    first, second = desk.blobs
    assert desk.at(42) == WaitUntil(40 + QUIET_S)
    desk.at(40 + QUIET_S)
    assert desk.blobs == [second, blob_of(ANNE)]
    assert first not in desk.blobs


@pytest.mark.parametrize(("blocks", "parts", "found_bytes"), [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)])
def test_a_fetch_is_quiet_when_no_block_comes_nor_a_part_of_one_nor_any_is_here(
    blocks: int, parts: int, found_bytes: int
) -> None:
    desk = Desk(blob_of(EVE, 1), blob_of(EVE, 2))
    desk.at(0)
    desk.turns.add([blob_of(ANNE)])
    for turn in desk.under_way:
        desk.hear(turn, 4, blocks=blocks, parts=parts, found_bytes=found_bytes)
    assert desk.at(4) == WaitUntil(QUIET_S if blocks + parts + found_bytes == 0 else 4 + QUIET_S)


def test_of_those_that_wait_the_one_tried_least_decides_how_long_a_fetch_may_be_quiet() -> None:
    desk = Desk(blob_of(EVE))
    desk.at(0)
    desk.fail(desk.under_way[0], 0)
    desk.turns.add([blob_of(ANNE), blob_of(BOB)])
    assert desk.at(9) == WaitUntil(9 + 2 * QUIET_S)
    desk.turns.add([blob_of(BOB, 1)])
    assert desk.at(9) == WaitUntil(9 + QUIET_S)


def test_a_fetch_to_which_blocks_come_gives_way_after_its_time_to_a_publisher_that_has_no_other() -> None:
    desk = Desk(blob_of(EVE, 1), blob_of(EVE, 2))
    desk.at(0)
    desk.turns.add([blob_of(EVE, 3)])
    for now_s in range(200):
        for turn in desk.under_way:
            desk.hear(turn, now_s, blocks=1)
        desk.at(now_s)
    assert desk.blobs == [blob_of(EVE, 1), blob_of(EVE, 2)]
    desk.turns.add([blob_of(ANNE)])
    desk.at(200)
    assert {blob.publisher for blob in desk.blobs} == {ANNE, EVE}
    desk.turns.add([blob_of(BOB)])
    for now_s in range(200, 200 + int(TURN_S)):
        for turn in desk.under_way:
            desk.hear(turn, now_s, blocks=1)
        desk.at(now_s)
    assert {blob.publisher for blob in desk.blobs} == {ANNE, BOB}


def test_what_gave_way_after_its_time_goes_on_when_there_is_room() -> None:
    desk = Desk(blob_of(EVE, 1), blob_of(EVE, 2))
    desk.at(0)
    for turn in desk.under_way:
        desk.hear(turn, TURN_S, blocks=1)
    desk.turns.add([blob_of(ANNE)])
    desk.at(TURN_S)
    assert desk.blobs == [blob_of(EVE, 2), blob_of(ANNE)]
    desk.finish(desk.under_way[1])
    desk.at(TURN_S + 1)
    assert desk.blobs == [blob_of(EVE, 2), blob_of(EVE, 1)]


def test_who_gave_way_comes_after_whoever_had_a_turn_meanwhile() -> None:
    desk = Desk(blob_of(EVE, 1), blob_of(EVE, 2))
    desk.at(0)
    desk.turns.add([blob_of(ANNE, 1)])
    desk.finish(desk.under_way[1])
    desk.at(1)
    desk.finish(desk.under_way[1])
    desk.turns.add([blob_of(BOB)])
    desk.at(2)
    desk.turns.add([blob_of(ANNE, 2)])
    for turn in desk.under_way:
        desk.hear(turn, TURN_S, blocks=1)
    desk.at(TURN_S)
    assert desk.blobs == [blob_of(BOB), blob_of(ANNE, 2)]


def test_references_to_one_blob_are_fetched_one_after_the_other_and_a_wrong_one_holds_the_right_one_up_for_little() -> (
    None
):
    wrong, right = blob_of(EVE, root=b"same"), blob_of(ANNE, root=b"same")
    desk = Desk(wrong)
    desk.at(0)
    desk.turns.add([right])
    desk.hear(desk.under_way[0], TURN_S, blocks=1)
    assert desk.at(TURN_S) == WaitUntil(TURN_S + QUIET_S)
    assert desk.blobs == [wrong]
    desk.at(TURN_S + QUIET_S)
    assert desk.blobs == [right]
    desk.finish(desk.under_way[0])
    assert desk.at(1000) == WaitUntil(math.inf)


def test_no_fetch_gives_way_to_a_reference_to_what_another_is_fetching() -> None:
    desk = Desk(blob_of(ANNE, root=b"same"), blob_of(EVE))
    desk.at(0)
    desk.turns.add([blob_of(BOB, root=b"same")])
    coming = next(turn for turn in desk.under_way if turn.blob.publisher == ANNE)
    desk.hear(coming, TURN_S, blocks=1)
    assert desk.at(TURN_S) == WaitUntil(TURN_S + QUIET_S)
    assert desk.blobs == [blob_of(ANNE, root=b"same"), blob_of(EVE)]
    desk.at(TURN_S + QUIET_S)
    assert {blob.publisher for blob in desk.blobs} == {BOB, EVE}


@pytest.mark.parametrize("strangers", [1, 100])
def test_a_fetch_whose_first_part_is_slow_gets_its_time_however_many_references_to_nothing_wait(strangers: int) -> None:
    """It is broken off at first, and then has twice as long."""
    desk = Desk(*(blob_of(PeerId(b"eve%d" % (number % strangers)), number) for number in range(1000)), blob_of(ANNE))
    now_s, anne_s, began = 0.0, 0.0, 0
    mine: Turn | None = None
    while mine is None or now_s < anne_s + 1.4 * QUIET_S:
        wait = desk.at(now_s)
        if mine not in desk.under_way:
            mine = next((turn for turn in desk.under_way if turn.blob.publisher == ANNE), None)
            began, anne_s = (began + 1, now_s) if mine else (began, anne_s)
        now_s = wait.at_s if mine is None else min(wait.at_s, anne_s + 1.4 * QUIET_S)
    assert began <= 3
    assert now_s < 2 * strangers * QUIET_S + 60


def test_only_the_fetch_that_began_first_has_more_time_for_having_been_tried_and_not_against_its_own_blob() -> None:
    desk = Desk(blob_of(ANNE), blob_of(EVE))
    for now_s in (0, 100, 200):
        desk.at(now_s)
        desk.fail(desk.under_way[0], now_s)
        desk.fail(desk.under_way[0], now_s)
    desk.at(1000)
    first, second = desk.blobs
    desk.turns.add([blob_of(BOB)])
    desk.at(1000 + QUIET_S)
    assert desk.blobs == [first, blob_of(BOB)]
    assert second not in desk.blobs
    desk.turns.add([replace(blob_of(BOB, 1), root=first.root)])
    desk.at(1000 + QUIET_S)
    assert first not in desk.blobs


def test_a_fetch_that_was_quiet_to_the_end_of_its_turn_failed() -> None:
    desk = Desk(blob_of(ANNE))
    for tries in range(5):
        desk.at(1000 * tries)
        desk.fail(desk.under_way[0], 1000 * tries)
    desk.at(5000)
    desk.turns.add([blob_of(EVE), blob_of(BOB)])
    desk.at(5000)
    for now_s in range(5000, 5000 + int(TURN_S) + 1):
        desk.hear(desk.under_way[1], now_s, blocks=1)
        desk.at(now_s)
    assert {blob.publisher for blob in desk.blobs} == {BOB, EVE}
    desk.finish(desk.under_way[0])
    assert 5000 + TURN_S + RETRY_FIRST_S * 2**5 <= desk.at(5000 + TURN_S).at_s < math.inf


def test_no_fetch_gives_way_before_it_has_begun_or_once_it_has_all_blocks() -> None:
    turns = Turns(Random(1), lambda _: True)
    turns.add([blob_of(EVE, number) for number in range(3)])
    first, second = turns.next(0), turns.next(0)
    assert isinstance(first, Begin)
    assert isinstance(second, Begin)
    assert turns.next(1000) == WaitUntil(math.inf)
    turns.told(first.turn, BEGUN, 1000)
    turns.brought(first.turn)
    assert turns.next(2000) == WaitUntil(math.inf)


def test_what_failed_is_tried_again_ever_later_and_soon_once_a_block_came() -> None:
    desk = Desk(blob_of(ANNE))
    now_s = 0.0
    waits_s: list[float] = []
    for _ in range(12):
        desk.at(now_s)
        wait_s = desk.fail(desk.under_way[0], now_s)
        assert wait_s is not None
        assert desk.at(now_s) == WaitUntil(now_s + wait_s)
        waits_s.append(wait_s)
        now_s += wait_s
    expected_s = [min(RETRY_FIRST_S * 2**tries, RETRY_AT_MOST_S) for tries in range(12)]
    assert all(low <= wait_s <= 1.5 * low for low, wait_s in zip(expected_s, waits_s, strict=True))
    desk.at(now_s)
    desk.hear(desk.under_way[0], now_s, blocks=1)
    assert desk.fail(desk.under_way[0], now_s) == pytest.approx(RETRY_FIRST_S * 1.25, rel=0.2)


def test_a_reference_can_be_tried_any_number_of_times() -> None:
    desk = Desk(blob_of(ANNE))
    for tries in range(1100):
        now_s = 2 * RETRY_AT_MOST_S * tries
        desk.at(now_s)
        wait_s = desk.fail(desk.under_way[0], now_s)
    assert wait_s == pytest.approx(1.25 * RETRY_AT_MOST_S, rel=0.2)
    desk.at(now_s := 1100 * 2 * RETRY_AT_MOST_S)
    desk.turns.add([blob_of(EVE), blob_of(BOB)])
    assert desk.at(now_s) == WaitUntil(now_s + QUIET_S)


def test_each_reference_is_looked_at_once_a_minute_however_many_blobs_come_meanwhile() -> None:
    asked: list[KeptBlob] = []

    def is_ours(blob: KeptBlob) -> bool:
        asked.append(blob)
        return True

    desk = Desk(*(blob_of(ANNE, number) for number in range(100)), is_ours=is_ours)
    for now_s in range(50):
        desk.at(now_s)
        desk.finish(desk.under_way[0])
    assert len(asked) == 100
    desk.at(LOOK_AGAIN_S)
    assert len(asked) == 100 + 49


def test_what_others_are_to_hold_is_asked_about_again_later() -> None:
    ours: set[PeerId] = set()
    desk = Desk(blob_of(ANNE), is_ours=lambda blob: blob.publisher in ours)
    assert desk.at(0) == WaitUntil(LOOK_AGAIN_S)
    ours.add(ANNE)
    desk.at(LOOK_AGAIN_S)
    assert desk.blobs == [blob_of(ANNE)]


def test_what_no_entry_refers_to_any_more_is_not_fetched() -> None:
    desk = Desk(*(blob_of(ANNE, number) for number in range(4)))
    desk.at(0)
    desk.turns.retain({OpId(b"anne 3")})
    assert desk.fail(desk.under_way[0], 1) is None
    assert desk.at(1) == WaitUntil(math.inf)
    assert desk.blobs[-1] == blob_of(ANNE, 3)


def test_who_had_a_turn_is_known_for_as_long_as_references_of_theirs_are_there() -> None:
    eves = [blob_of(EVE, number, since_s=number) for number in range(4)]
    desk = Desk(*eves, blob_of(ANNE, since_s=-1))
    desk.at(0)
    desk.turns.retain({blob.op_id for blob in [*eves, blob_of(ANNE)]})
    assert [blob.publisher for blob in desk.blobs] == [EVE, ANNE]
    desk.turns.add([blob_of(BOB, since_s=-2)])
    desk.finish(desk.under_way[0])
    desk.at(1)
    assert [blob.publisher for blob in desk.blobs] == [ANNE, BOB]


def test_of_a_turn_that_gave_way_nothing_counts_any_more() -> None:
    desk = Desk(blob_of(EVE, 1), blob_of(EVE, 2), blob_of(ANNE))
    desk.at(0)
    gone = next(turn for turn in desk.under_way if turn.blob.publisher == EVE)
    desk.at(QUIET_S)
    assert gone not in desk.under_way
    assert desk.turns.failed(gone, QUIET_S) is None
    desk.turns.ended(gone)
    assert len(desk.under_way) == TURNS_AT_ONCE


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 20_000))
def test_however_many_references_to_nothing_strangers_make_a_new_one_waits_no_longer_than_for_quiet(
    strangers: int, references: int, came_s: int
) -> None:
    """For as long as no other new one comes."""
    desk = Desk(
        *(
            blob_of(PeerId(b"eve%d" % (number % strangers)), number, created_us=FUTURE_US)
            for number in range(references)
        )
    )
    desk.until(came_s)
    desk.turns.add([blob_of(ANNE, since_s=came_s)])
    desk.at(came_s)
    if blob_of(ANNE, since_s=came_s) not in desk.blobs:
        desk.at(came_s + QUIET_S)
    assert blob_of(ANNE, since_s=came_s) in desk.blobs


def test_a_blob_that_is_said_to_be_lacking_again_waits_no_less_long_for_its_next_turn() -> None:
    blob = blob_of(ANNE)
    desk = Desk(blob)
    desk.at(0)
    wait_s = desk.fail(desk.under_way[0], 0)
    assert wait_s is not None
    desk.turns.add([blob])
    assert desk.at(0) == WaitUntil(wait_s)


def test_what_somebody_else_fetches_is_left_to_them_until_they_have_done() -> None:
    theirs, other = blob_of(ANNE), blob_of(BOB)
    desk = Desk(theirs, other)
    desk.at(0)
    (turn,) = [turn for turn in desk.under_way if turn.blob is theirs]
    for _ in range(2):
        assert desk.turns.leave(theirs.root) == [turn]
    desk.turns.ended(turn)
    desk.at(1)
    assert desk.turns.is_elsewhere(theirs.root)
    desk.turns.take_back(theirs.root)
    desk.at(2)
    assert len(desk.under_way) == 2, "another does so still"
    desk.turns.take_back(theirs.root)
    desk.at(3)
    assert [turn.blob for turn in desk.under_way[2:]] == [theirs]
