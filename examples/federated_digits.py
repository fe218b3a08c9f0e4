"""Several processes learn to read handwritten digits together, each from images that only it has.

    python examples/federated_digits.py --workers 4 --rounds 12
    python examples/federated_digits.py --rule mean --liars 1

Federated averaging (McMahan et al. 2017, arXiv 1602.05629): in each round every worker trains the common model on its
own images for a while, publishes its weights, collects everybody's, and goes on from their average; or from a median,
say, which some liars cannot move. At the end that is compared with training on all images in one place.

It needs the extras demo and ml: pip install 'prime-dht[demo,ml]'
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import digits
import numpy as np
from digits import AdamW, Images, Weights
from workers import Arguments, Worker, run, working

from prime_dht.ml.aggregation import (
    CoordinateMedian,
    FederatedAverage,
    GeometricMedian,
    Krum,
    MultiKrum,
    Rule,
    TrimmedMean,
    aggregate,
)
from prime_dht.ml.tensors import spec_of

STEPS = 40
"""That a worker trains in a round."""

RULES: dict[str, Rule] = {
    "mean": FederatedAverage(),
    "median": CoordinateMedian(),
    "trimmed-mean": TrimmedMean(),
    "krum": Krum(),
    "multi-krum": MultiKrum(),
    "geometric-median": GeometricMedian(),
}


@dataclass(frozen=True)
class Report:
    """What a worker says of a round: how good the common model is, and of how many members' weights it is made."""

    accuracy: float
    used: int


def train(
    worker: Worker, images: Images, test: Images, *, rounds: int, rule: Rule, bad: int, liars: int
) -> Iterator[Report]:
    """One worker's part."""
    own = images.part(worker.number, worker.count)
    weights, optimiser, chance = digits.initial(), AdamW(), np.random.default_rng(worker.number)
    for number in range(rounds):
        trained = digits.train(weights, own, STEPS, optimiser, chance)
        if worker.number < liars:
            trained = backwards(weights, trained)
        worker.dht.publish(number, trained, weight=len(own.labels))
        collected = worker.dht.collect(number, members=worker.members, spec=spec_of(weights))
        combined = aggregate(collected.contributions(), spec_of(weights), rule, bad=bad)
        # These are weights, not steps: a worker that did not get somebody's is back with the others a round later.
        weights = digits.as_weights(combined.tensors)
        yield Report(digits.accuracy(weights, test), len(combined.used))


def backwards(before: Weights, after: Weights) -> Weights:
    """What a liar publishes: the way that it went, in the other direction, ten times as far."""
    return {name: before[name] - 10 * (after[name] - before[name]) for name in before}


def main() -> int:
    arguments = Arguments(__doc__)
    arguments.add_argument("--rule", choices=RULES, default="trimmed-mean", help="how weights become one; %(default)s")
    arguments.add_argument("--liars", type=int, default=0, help="workers that publish what does harm; %(default)s")
    given = arguments.parse_args()
    rule = RULES[given.rule]
    bad = given.liars if given.rule != "mean" else 0  # the mean stands none, which is what it can show
    if bad > rule.stands(given.workers):
        arguments.error(f"{given.rule} cannot stand {given.liars} liars among {given.workers} workers")
    images, test = digits.load()
    together, central = list[float](), list[float]()
    part = partial(train, images=images, test=test, rounds=given.rounds, rule=rule, bad=bad, liars=given.liars)
    with working(part, count=given.workers, peer=given.peer) as rounds:
        alone = digits.in_one_place(images, test, STEPS, workers=given.workers)
        for reports, accuracy in zip(rounds, alone, strict=False):
            least = min(reports, key=lambda report: report.accuracy)
            together.append(least.accuracy)
            central.append(accuracy)
            print(
                f"round {len(together):>2}: {least.accuracy:.1%} right, made of {least.used} of {given.workers} "
                f"(all images in one place: {accuracy:.1%})",
                flush=True,
            )
    return digits.conclude(together, central, given.plot, title=f"Federated averaging, {given.rule}")


if __name__ == "__main__":
    run(main)
