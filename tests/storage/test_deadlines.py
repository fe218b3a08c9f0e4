"""Deadlines give what is due, once, and hold no more than what there is."""

from __future__ import annotations

import random

from prime_dht.storage.deadlines import SWEEP_FROM, Deadlines


def test_a_thing_that_moves_for_ever_takes_no_more_room() -> None:
    due_at: dict[str, int] = {}
    deadlines = Deadlines(due_at.get, due_at.__len__)
    for at_us in range(10_000):
        due_at["moving"] = at_us
        deadlines.add(at_us, "moving")
        assert len(deadlines) <= SWEEP_FROM
    for _ in range(10_000):
        deadlines.add(9_999, "moving")
        assert len(deadlines) <= SWEEP_FROM
    assert [due_at.pop(thing) for thing in deadlines.due(before_us=10_000, limit=10)] == [9_999]


def test_what_is_due_comes_once_in_order_and_the_rest_stays() -> None:
    rng = random.Random(1)
    due_at: dict[int, int] = {}
    deadlines = Deadlines(due_at.get, due_at.__len__)
    for _ in range(5_000):
        thing, at_us = rng.randrange(500), rng.randrange(1_000)
        due_at[thing] = at_us
        deadlines.add(at_us, thing)
        if rng.random() < 0.2:
            due_at.pop(rng.randrange(500), None)
        assert len(deadlines) <= max(SWEEP_FROM, 2 * 500)
    expected = sorted(at_us for at_us in due_at.values() if at_us < 600)
    taken = [due_at.pop(thing) for thing in deadlines.due(before_us=600, limit=100)]
    taken += [due_at.pop(thing) for thing in deadlines.due(before_us=600, limit=1_000)]
    assert taken == expected
    assert all(at_us >= 600 for at_us in due_at.values())


def test_where_no_thing_moves_the_owner_is_not_asked_before_they_are_due() -> None:
    asked: list[int] = []
    due_at: dict[int, int] = {}

    def says(thing: int) -> int:
        asked.append(thing)
        return due_at[thing]

    deadlines = Deadlines(says, due_at.__len__)
    for thing in range(10 * SWEEP_FROM):
        due_at[thing] = thing
        deadlines.add(thing, thing)
    assert asked == []
    assert list(deadlines.due(before_us=3, limit=10)) == asked == [0, 1, 2]


def test_a_thing_that_its_owner_knows_only_after_it_was_added_is_not_swept_out() -> None:
    due_at: dict[str, int] = {}
    deadlines = Deadlines(due_at.get, due_at.__len__)
    for at_us in range(20 * SWEEP_FROM):
        due_at.clear()
        deadlines.add(at_us, f"{at_us}")
        due_at[f"{at_us}"] = at_us
        assert len(deadlines) <= SWEEP_FROM
        if at_us % SWEEP_FROM in (0, 1, SWEEP_FROM - 1):
            assert list(deadlines.due(before_us=at_us + 1, limit=1)) == [f"{at_us}"]
            deadlines.add(at_us, f"{at_us}")
