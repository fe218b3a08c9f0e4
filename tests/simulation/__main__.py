"""``make simulate``: many seeds, one after the other in each of a few processes; what failed, and how to see it again.

A seed that fails is simulated once more, in another process, to show that it fails in the same way.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from pathlib import Path

from prime_dht.testing.simulation import LINES_SHOWN

from .attempts import Result, attempt

PROGRESS_EVERY_S = 10.0


def results(seeds: Iterator[int], executor: ProcessPoolExecutor, jobs: int) -> Iterator[Result]:
    """Of each seed, as they come in; no more than two for each job are under way, so that Ctrl-C ends soon."""
    under_way: set[Future[Result]] = {executor.submit(attempt, seed) for seed in islice(seeds, 2 * jobs)}
    while under_way:
        done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
        under_way |= {executor.submit(attempt, seed) for seed in islice(seeds, len(done))}
        yield from (future.result() for future in done)


def show(result: Result, *, again: Result, logs: Path | None) -> None:
    """Print a failure for a person to read."""
    print(f"\nseed {result.seed} failed:")
    for failure in result.failures:
        print(f"  {failure}")
    if logs is None:
        print(f"how it ended (LOGS=<folder> keeps all {len(result.log)} lines):")
    else:
        logs.mkdir(parents=True, exist_ok=True)
        path = logs / f"seed-{result.seed}.log"
        path.write_text("\n".join(result.log) + "\n")
        print(f"how it ended (the whole log is {path}):")
    for line in result.log[-LINES_SHOWN:]:
        print(f"  {line}")
    same = "failed in the same way, to the byte" if again == result else "FAILED IN ANOTHER WAY: this is a bug as well"
    print(f"again: make simulate FIRST={result.seed} SEEDS=1  (simulated once more here, it {same})", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 if no seed failed."""
    parser = argparse.ArgumentParser(prog="make simulate", description="Simulate swarms of whole nodes under faults.")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds")
    parser.add_argument("--jobs", type=int, default=2, help="how many processes")
    parser.add_argument("--logs", type=Path, help="a folder for the whole log of each seed that fails")
    options = parser.parse_args(arguments)
    failed: list[int] = []
    virtual_s, done = 0.0, 0
    began_s = said_at_s = time.monotonic()
    spawn = multiprocessing.get_context("spawn")  # each with its own hash seed
    with ProcessPoolExecutor(options.jobs, mp_context=spawn, initializer=logging.disable) as executor:
        for result in results(iter(range(options.first, options.first + options.seeds)), executor, options.jobs):
            done += 1
            virtual_s += result.virtual_s
            if result.failures:
                failed.append(result.seed)
                show(result, again=executor.submit(attempt, result.seed).result(), logs=options.logs)
            if time.monotonic() >= said_at_s + PROGRESS_EVERY_S:
                said_at_s = time.monotonic()
                print(f"{done} of {options.seeds} seeds, {len(failed)} failed", file=sys.stderr, flush=True)
    real_s = time.monotonic() - began_s
    print(
        f"{done} seeds from {options.first} on, {len(failed)} failed; {virtual_s / 3600:,.0f} virtual hours "
        f"in {real_s / 60:.1f} minutes: {virtual_s / 3600 / (real_s / 60):.0f} a minute, in {options.jobs} processes"
    )
    if failed:
        print(f"failed: {' '.join(map(str, sorted(failed)))}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
