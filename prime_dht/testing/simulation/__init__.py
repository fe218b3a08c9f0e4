"""Deterministic simulation: whole swarms of nodes, hours of their time, every fault at once, all from one seed.

A simulation draws a *plan* from its seed (:mod:`~prime_dht.testing.simulation.plan`): a dozen nodes or more start,
join, move, crash with and without their stores, restart, are restored from old copies of their stores and leave, while
the network is cut, in one direction or both, and healed, loses and delays messages, clocks are wrong and set, discs are
full, slow or failing, some servers lie, and owners put, keep, get and delete values and blobs everywhere, and provide
content. The plan is carried out (:mod:`~prime_dht.testing.simulation.execution`); a *ledger*
(:mod:`~prime_dht.testing.simulation.ledger`) holds what callers are told against what an observer who sees every disc
knows. Then the faults end, the swarm settles, and all that must be true is checked
(:mod:`~prime_dht.testing.simulation.checks`).

The nodes are real down to the requests they send; faked are the network below that, in memory, the discs and the
clocks. Time is virtual, and one seed is one history, to the byte (:mod:`~prime_dht.testing.simulation.history`). So a
seed that fails, fails again: ``make simulate FIRST=<seed> SEEDS=1``.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio
from trio.testing import MockClock

from prime_dht.background import background_nursery
from prime_dht.testing.simulation.checks import Checks, tasks_at_rest
from prime_dht.testing.simulation.execution import Execution
from prime_dht.testing.simulation.history import Log, one_history
from prime_dht.testing.simulation.ledger import Ledger
from prime_dht.testing.simulation.plan import FAULTS_S, SETTLE_S, draw_plan
from prime_dht.testing.swarm import Swarm

ROUND_TRIP_S = 0.02
"""The median between members that are not slow. Few pairs are so far from each other that a reader gives up waiting."""

LINES_SHOWN = 60
"""Of the log, when a simulation fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a simulation.

    Attributes:
        complaints: what was not true, a sentence each.
        log: what happened, a line each.
        messages: that nodes sent each other.
        virtual_s: how long it took in its own time.
    """

    seed: int
    complaints: tuple[str, ...]
    log: tuple[str, ...]
    messages: int
    virtual_s: float


def simulate(seed: int, *, faults_s: float = FAULTS_S, settle_s: float = SETTLE_S) -> Outcome:
    """Simulate what a seed says; with the same arguments the outcome is the same always.

    What a node raises that it should not leaves this as it is, with the end of the log in a note.

    Args:
        faults_s: for how long there are faults.
        settle_s: for how long the swarm is left to itself before it is checked.
    """
    plan = draw_plan(seed, faults_s=faults_s)
    log = Log()
    complaints: list[str] = []

    def complain(sentence: str) -> None:
        complaints.append(sentence)
        log.note(f"BROKEN: {sentence}")

    async def run() -> float:
        async with background_nursery() as nursery:
            swarm = Swarm(nursery, seed=plan.seed, round_trip_s=ROUND_TRIP_S, config=plan.config)
            execution = Execution(plan, swarm, Ledger(complain), log, complain)
            await execution.start()
            at_rest = tasks_at_rest(execution)
            await execution.carry_out(plan.steps)
            await trio.sleep(settle_s)
            log.note_messages()
            await Checks(execution, tasks_at_rest=at_rest).all()
            log.note_messages()
        return trio.current_time()

    try:
        with one_history(plan.seed):
            virtual_s = trio.run(run, clock=MockClock(autojump_threshold=0))
    except BaseException as error:
        error.add_note("\n".join((f"in the simulation of seed {plan.seed}:", *log.lines[-LINES_SHOWN:])))
        raise
    return Outcome(
        seed=plan.seed,
        complaints=tuple(complaints),
        log=tuple(log.lines),
        messages=log.messages,
        virtual_s=virtual_s,
    )
