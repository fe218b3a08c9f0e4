"""How well lookups do, in simulated swarms of 100 to 10,000 nodes: hops, RPCs and recall.

The ideal beside it is a simulation with perfect tables, k = 20 and alpha = 10: the mean depth at which the closest peer
is found, and RPCs. By itself (``python -m tests.bench.lookup_simulator``) it prints the table alone.
"""

from __future__ import annotations

import time

from prime_dht.testing.simulator import measure

from .tables import Row, Table, render

SEED = 1
IDEAL = {100: (1.28, 21), 1_000: (1.95, 28), 10_000: (2.45, 32)}
SETTINGS = [(10, 0.0), (3, 0.0), (3, 0.1)]


def simulate(*, quick: bool = False) -> Table:
    """The table of this suite; quick: only the smallest swarm, and few lookups."""
    lookups = 20 if quick else 200
    rows: list[Row] = []
    for n, (ideal_depth, ideal_rpcs) in list(IDEAL.items())[: 1 if quick else None]:
        for alpha, dead_fraction in SETTINGS:
            began_s = time.perf_counter()
            report = measure(n, alpha=alpha, dead_fraction=dead_fraction, lookups=lookups, seed=SEED)
            rows.append(
                {
                    "nodes": n,
                    "alpha": alpha,
                    "dead_percent": round(100 * dead_fraction),
                    "depth": report.mean_depth,
                    "ideal_depth": ideal_depth,
                    "rpcs": report.mean_rpcs,
                    "ideal_rpcs": ideal_rpcs,
                    "recall": report.mean_recall,
                    "virtual_s": report.mean_duration_s,
                    "run_s": time.perf_counter() - began_s,
                }
            )
    title = f"Lookups in simulated swarms, k = 20, means of {lookups}; one query takes 0.05 s in the median"
    return Table(name="lookup_simulator", title=title, rows=rows)


async def measure_lookups(*, quick: bool) -> list[Table]:
    """The same as a suite; nothing else runs meanwhile."""
    return [simulate(quick=quick)]


def main() -> None:
    """Print the table."""
    print(render(simulate()))


if __name__ == "__main__":
    main()
