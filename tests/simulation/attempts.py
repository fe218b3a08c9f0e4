"""One attempt at one seed, in a process of a pool: a module of its own, because those import no main module."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from prime_dht.testing.simulation import simulate


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of a seed; ``failures`` is empty if all was well."""

    seed: int
    failures: tuple[str, ...]
    log: tuple[str, ...]
    virtual_s: float


def attempt(seed: int) -> Result:
    """Simulate a seed, and make a finding of whatever a node raises."""
    try:
        outcome = simulate(seed)
    except Exception:  # noqa: BLE001 - that nodes raise nothing is what is being tested
        return Result(seed=seed, failures=("a node crashed",), log=(traceback.format_exc(),), virtual_s=0.0)
    return Result(seed=seed, failures=outcome.complaints, log=outcome.log, virtual_s=outcome.virtual_s)
