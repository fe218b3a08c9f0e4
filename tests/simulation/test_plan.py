"""A plan is fixed by its seed, and what it breaks it mends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from prime_dht.testing.simulation.plan import (
    ANCHORS,
    FAULTS_S,
    MAX_SKEW_S,
    BackUp,
    Crash,
    Cut,
    CutOneWay,
    Delete,
    DiscTrouble,
    Heal,
    Join,
    Keep,
    Leave,
    Lie,
    Lose,
    MendBothWays,
    Move,
    Provide,
    Put,
    PutBlob,
    PutMany,
    Restart,
    Restore,
    SetClock,
    Slow,
    Step,
    WrongClock,
    draw_plan,
)

PLANS = [draw_plan(seed) for seed in range(100)]

F = TypeVar("F", bound=Step)


def last_of(steps: list[Step], kind: type[F], member: Callable[[F], int]) -> dict[int, F]:
    """The last step of a kind for each member."""
    return {member(step): step for step in steps if isinstance(step, kind)}


def test_a_seed_has_one_plan_and_another_seed_another() -> None:
    assert draw_plan(1) == draw_plan(1)
    assert draw_plan(1) != draw_plan(2)


def test_what_a_plan_breaks_it_mends() -> None:
    for plan in PLANS:
        assert [at_s for at_s, _ in plan.steps] == sorted(at_s for at_s, _ in plan.steps)
        assert plan.steps[-1][0] <= FAULTS_S
        steps = [step for _, step in plan.steps]
        cuts = [step for step in steps if isinstance(step, Cut | Heal)]
        assert all(isinstance(step, Heal) == bool(number % 2) for number, step in enumerate(cuts))
        assert len(cuts) % 2 == 0
        weather = [step.share for step in steps if isinstance(step, Lose)]
        assert not weather or weather[-1] == 0
        assert all(step.factor == 1 for step in last_of(steps, Slow, lambda step: step.member).values())
        assert all(step.falsehood is None for step in last_of(steps, Lie, lambda step: step.member).values())
        assert all(step.trouble is None for step in last_of(steps, DiscTrouble, lambda step: step.member).values())
        assert not any(step.is_wrong for step in last_of(steps, WrongClock, lambda step: step.member).values())
        deaf_or_mute: set[int] = set()
        for step in steps:
            if isinstance(step, CutOneWay):
                assert step.member not in deaf_or_mute
                deaf_or_mute.add(step.member)
            elif isinstance(step, MendBothWays):
                deaf_or_mute.remove(step.member)
        assert not deaf_or_mute
        down: set[int] = set()
        for step in steps:
            match step:
                case Crash(member, _, _):
                    assert member not in down
                    down.add(member)
                case Restart(member):
                    down.remove(member)
                case Leave(member):
                    assert member not in down
                    assert member >= ANCHORS
                    down.add(member)
                case _:
                    pass
        assert down == {step.member for step in steps if isinstance(step, Leave)}


def test_liars_neither_write_nor_keep_anybody_from_joining() -> None:
    for plan in PLANS:
        steps = [step for _, step in plan.steps]
        assert not plan.liars & set(range(ANCHORS))
        writes = Put | PutBlob | PutMany | Keep | Provide | Delete
        assert not plan.liars & {step.member for step in steps if isinstance(step, writes)}
        assert {step.member for step in steps if isinstance(step, Lie)} <= plan.liars


def test_clocks_stay_within_what_two_nodes_may_differ() -> None:
    for plan in PLANS:
        offsets_s = [*plan.skews_s, *(step.by_s for _, step in plan.steps if isinstance(step, SetClock))]
        offsets_s += [step.by_s for _, step in plan.steps if isinstance(step, WrongClock) and not step.is_wrong]
        assert max(map(abs, offsets_s)) <= MAX_SKEW_S
        assert plan.config.limits.clock_skew_s > 2 * MAX_SKEW_S


def test_those_through_whom_everybody_joins_stay_where_they_are() -> None:
    assert all(step.member >= ANCHORS for plan in PLANS for _, step in plan.steps if isinstance(step, Move))


def test_what_is_restored_was_copied_before() -> None:
    for plan in PLANS:
        copied: set[int] = set()
        for _, step in plan.steps:
            if isinstance(step, BackUp):
                copied.add(step.member)
            elif isinstance(step, Restore):
                assert step.member in copied


def test_newcomers_have_the_numbers_that_follow() -> None:
    for plan in PLANS:
        joined = [step.member for _, step in plan.steps if isinstance(step, Join)]
        first = plan.servers + plan.clients
        assert joined == list(range(first, first + len(joined)))
