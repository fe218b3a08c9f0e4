"""What a run does to its nodes, and when: drawn from the seed before anything starts.

Kills come at random, each followed by a restart seconds later; nobody is killed twice at once. In every minute there is
one cut into two halves, healed within that minute. The first :data:`~prime_dht.testing.simulation.plan.ANCHORS` nodes
are those through which all join, so each half has one: who knows nobody there is to ask stays alone till the network is
whole, and tries ever less often.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from prime_dht.testing.simulation.plan import ANCHORS, WRITERS_PER_KEY, Crash, Cut, Heal, Restart

KEYS = 120
KILL_EVERY_S = 4.0
"""On average."""

DOWN_S = (1.0, 8.0)
CUT_EVERY_S = 60.0
CUT_BEGINS_S = (8.0, 15.0)
"""Within each of these minutes."""

CUT_LASTS_S = (20.0, 30.0)
LAST_WRITES_S = 6.0
"""After the last fault."""

Fault = Crash | Restart | Cut | Heal


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that chance decides beforehand.

    Attributes:
        steps: (seconds since the faults began, fault), in order; all who crash restart, and the last cut is healed.
        writers: of each key, by its number, the nodes that put there.
        ends_s: when the writers stop.
    """

    seed: int
    nodes: int
    steps: tuple[tuple[float, Fault], ...]
    writers: tuple[tuple[int, ...], ...]
    ends_s: float

    def writes(self, writer: int) -> Iterator[tuple[int, int, float]]:
        """What a writer puts, without end: (the number of a node, that of a key, a pause between 0 and 1)."""
        rng = Random(f"{self.seed}/writer {writer}")
        while True:
            key = rng.randrange(len(self.writers))
            yield rng.choice(self.writers[key]), key, rng.random()


def draw_plan(seed: int, *, nodes: int, faults_s: float) -> Plan:
    """The plan of a seed.

    Args:
        nodes: more than :data:`~prime_dht.testing.simulation.plan.ANCHORS`.
        faults_s: by when the last fault is over.
    """
    rng = Random(f"{seed}/plan")
    steps: list[tuple[float, Fault]] = []
    down_until_s = [0.0] * nodes
    at_s = rng.expovariate(1 / KILL_EVERY_S)
    while at_s < faults_s:
        node, end_s = rng.randrange(nodes), min(at_s + rng.uniform(*DOWN_S), faults_s)
        if down_until_s[node] <= at_s:
            down_until_s[node] = end_s
            steps += [(at_s, Crash(node, is_store_lost=False, is_silent=False)), (end_s, Restart(node))]
        at_s += rng.expovariate(1 / KILL_EVERY_S)
    for minute in range(max(1, int(faults_s / CUT_EVERY_S))):
        begins_s = minute * CUT_EVERY_S + rng.uniform(*CUT_BEGINS_S)
        ends_s = min(begins_s + rng.uniform(*CUT_LASTS_S), faults_s)
        steps += [(begins_s, Cut(_half(nodes, rng))), (ends_s, Heal())]
    steps.sort(key=lambda step: step[0])
    writers = tuple(tuple(rng.sample(range(nodes), WRITERS_PER_KEY)) for _ in range(KEYS))
    return Plan(seed=seed, nodes=nodes, steps=tuple(steps), writers=writers, ends_s=faults_s + LAST_WRITES_S)


def _half(nodes: int, rng: Random) -> frozenset[int]:
    """Half of the nodes, with one anchor or two."""
    anchors = rng.sample(range(ANCHORS), rng.randint(1, ANCHORS - 1))
    others = rng.sample(range(ANCHORS, nodes), max(0, nodes // 2 - len(anchors)))
    return frozenset((*anchors, *others))
