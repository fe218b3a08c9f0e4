"""What is drawn from a seed."""

from __future__ import annotations

from itertools import islice

import pytest

from prime_dht.testing.simulation.plan import ANCHORS, Crash, Cut, Heal, Restart

from .plan import KEYS, Plan, draw_plan

SEEDS = range(50)
NODES = 20
FAULTS_S = 180.0


def plans() -> list[Plan]:
    return [draw_plan(seed, nodes=NODES, faults_s=FAULTS_S) for seed in SEEDS]


def test_one_seed_is_one_plan_and_another_is_another() -> None:
    plan = draw_plan(1, nodes=NODES, faults_s=FAULTS_S)
    assert draw_plan(1, nodes=NODES, faults_s=FAULTS_S) == plan
    assert draw_plan(2, nodes=NODES, faults_s=FAULTS_S).steps != plan.steps
    assert list(islice(plan.writes(0), 100)) == list(islice(plan.writes(0), 100))
    assert list(islice(plan.writes(0), 100)) != list(islice(plan.writes(1), 100))


def test_who_is_killed_was_there_and_comes_back() -> None:
    for plan in plans():
        down: set[int] = set()
        for _, fault in plan.steps:
            match fault:
                case Crash(node):
                    assert node not in down
                    down.add(node)
                case Restart(node):
                    down.remove(node)
                case _:
                    pass
        assert not down


def test_every_cut_is_into_halves_that_have_an_anchor_each_and_is_healed_before_the_next() -> None:
    for plan in plans():
        cuts = [fault for _, fault in plan.steps if isinstance(fault, Cut | Heal)]
        assert [type(fault) for fault in cuts] == [Cut, Heal] * 3
        for fault in cuts:
            if isinstance(fault, Cut):
                assert len(fault.members) == NODES // 2
                assert 0 < len(fault.members & set(range(ANCHORS))) < ANCHORS


@pytest.mark.parametrize("nodes", [ANCHORS + 1, 7, 100])
def test_faults_are_in_order_and_over_before_the_writers_stop(nodes: int) -> None:
    for seed in SEEDS:
        plan = draw_plan(seed, nodes=nodes, faults_s=60.0)
        times_s = [at_s for at_s, _ in plan.steps]
        assert times_s == sorted(times_s)
        assert times_s[-1] <= 60.0 < plan.ends_s


def test_writers_write_only_through_the_nodes_that_a_key_has() -> None:
    plan = draw_plan(1, nodes=NODES, faults_s=FAULTS_S)
    written = list(islice(plan.writes(0), 2000))
    assert {key for _, key, _ in written} == set(range(KEYS))
    assert all(node in plan.writers[key] for node, key, _ in written)
