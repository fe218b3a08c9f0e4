"""How well lookups do, in simulated swarms of 100 to 10,000 nodes: prints a table, then the same as JSON.

The ideal beside it is a simulation with perfect tables, k = 20 and alpha = 10: the mean depth at which the closest peer
is found, and RPCs.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict

from prime_dht.testing.simulator import measure

SEED = 1
LOOKUPS = 200
IDEAL = {100: (1.28, 21), 1_000: (1.95, 28), 10_000: (2.45, 32)}
SETTINGS = [(10, 0.0), (3, 0.0), (3, 0.1)]


def main() -> None:
    rows = []
    print("     n  alpha  dead   depth (ideal)   RPCs (ideal)   recall  virtual s   run s")
    for n, (ideal_depth, ideal_rpcs) in IDEAL.items():
        for alpha, dead_fraction in SETTINGS:
            began_s = time.perf_counter()
            report = measure(n, alpha=alpha, dead_fraction=dead_fraction, lookups=LOOKUPS, seed=SEED)
            run_s = time.perf_counter() - began_s
            rows.append({**asdict(report), "ideal_depth": ideal_depth, "ideal_rpcs": ideal_rpcs, "run_s": run_s})
            print(
                f"{n:6,}  {alpha:5}  {dead_fraction:4.0%}  {report.mean_depth:6.2f} ({ideal_depth:.2f})"
                f"  {report.mean_rpcs:7.1f} ({ideal_rpcs})     {report.mean_recall:7.4f}"
                f"  {report.mean_duration_s:9.2f}  {run_s:6.1f}"
            )
    print(json.dumps({"lookup_simulator": rows}))


if __name__ == "__main__":
    main()
