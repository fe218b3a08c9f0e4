"""What bad members do to training under each rule of aggregation: ``python -m tests.bench.robustness``.

Twenty *members* train one network on scikit-learn's handwritten digits, of which each has some seventy. They differ in
how many they have, and of which digit: of a digit's examples members take shares drawn from a Dirichlet distribution.
A round: every member sends its gradient on some of its examples, a rule makes one of them, and the model takes a step
along it, and decays a little. What is tested in the end is the mean of the models of the second half of all rounds
(Polyak & Juditsky 1992). Both are there for the rules' sake. One that picks a single gradient, as Krum does, leaves the
model restless, and the mean is at rest. And as a model comes to fit its examples good gradients vanish, but what tells
one member's from another's does not; what a rule lets through is of that size, so without decay it wins in the end.

Six members, 30 %, are *bad*: in every round they send something else than their gradient. All rules are told that six
may be bad, in the clean run as well, where none is; but the average, which stands none, is told that none is. What is
not finite is screened out for all of them, for the average too; a row beside it shows the average of all as it came.

Every rule has the same seeds, examples, steps and rounds. The *clean average* is the federated average of the run in
which nobody is bad. Robust rules stay within :data:`MARGIN` points of it, whatever is sent.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from prime_dht.ids import PeerId
from prime_dht.ml.aggregation import (
    CenteredClipping,
    Contribution,
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

Floats = NDArray[np.floating]
Model = Mapping[str, Floats]
Attack = Callable[[Model, np.random.Generator], Model]
Aggregator = Callable[[Sequence[Contribution], Model], Model]
"""Of contributions, and the aggregate of the round before, which begins as zero."""

MEMBERS = 20
BAD = 6
MARGIN = 3.0
ROUNDS = 150
SEEDS = (0, 1, 2)
STEP = 1.0
DECAY = 0.01
EXAMPLES = 64
"""That a gradient is of, drawn anew each time."""

EVENNESS = 10.0
"""Of the shares in a digit's examples; the greater, the more alike members are."""

HIDDEN = 32
LOST_BEYOND = 1e6
"""A model with such a weight is not trained any further: its gradients soon overflow, and it does not come back."""

CLEAN = "none"
ATTACKS: Mapping[str, Attack] = {
    CLEAN: lambda gradient, _: gradient,
    "sign-flipped, × 10": lambda gradient, _: {name: -10 * one for name, one in gradient.items()},
    "scaled, × 100": lambda gradient, _: {name: 100 * one for name, one in gradient.items()},
    "random": lambda gradient, rng: {
        name: rng.standard_normal(one.shape, np.float32) for name, one in gradient.items()
    },
    "NaN": lambda gradient, _: {name: np.full_like(one, np.nan) for name, one in gradient.items()},
}


def unscreened(contributions: Sequence[Contribution], before: Model) -> Model:
    """The average of everything, whatever it holds."""
    whole = fsum(one.weight for one in contributions)
    return {
        name: np.sum([one.tensors[name].astype(np.float32) * (one.weight / whole) for one in contributions], axis=0)
        for name in before
    }


def by(rule: Callable[[Model], Rule], *, bad: int = BAD) -> Aggregator:
    """A rule, which may depend on the aggregate of the round before."""

    def aggregated(contributions: Sequence[Contribution], before: Model) -> Model:
        tensors = aggregate(contributions, spec_of(before), rule(before), bad=bad).tensors
        return {name: tensor.astype(np.float32, copy=False) for name, tensor in tensors.items()}

    return aggregated


AVERAGE = "federated average"
PLAIN: Mapping[str, Aggregator] = {
    "average, unscreened": unscreened,
    AVERAGE: by(lambda _: FederatedAverage(), bad=0),
}
ROBUST: Mapping[str, Aggregator] = {
    "coordinate median": by(lambda _: CoordinateMedian()),
    "trimmed mean": by(lambda _: TrimmedMean()),
    "Krum": by(lambda _: Krum()),
    "multi-Krum": by(lambda _: MultiKrum()),
    "geometric median": by(lambda _: GeometricMedian()),
    "centered clipping": by(lambda before: CenteredClipping(radius=0.3, steps=3, start=before)),
}


@dataclass(frozen=True, slots=True)
class Examples:
    """Images of shape (n, 64), their values 0 ..= 1, and which digit each shows, of shape (n,)."""

    images: Floats
    digits: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.digits)

    def some(self, chosen: NDArray[np.int64]) -> Examples:
        return Examples(self.images[chosen], self.digits[chosen])


def share_out(rng: np.random.Generator) -> tuple[list[Examples], Examples]:
    """Each member's examples, and those of the test, a fifth of all, which are always the same."""
    from sklearn.datasets import load_digits  # takes a second to import, and most who import this module train nothing
    from sklearn.model_selection import train_test_split

    bundled = load_digits()
    images, digits = (bundled.data / 16).astype(np.float32), bundled.target.astype(np.int64)
    images, test_images, digits, test_digits = train_test_split(
        images, digits, test_size=0.2, random_state=0, stratify=digits
    )
    chosen: list[list[NDArray[np.int64]]] = [[] for _ in range(MEMBERS)]
    for digit in range(10):
        places = rng.permutation(np.flatnonzero(digits == digit))
        stops = np.cumsum(rng.dirichlet(np.full(MEMBERS, EVENNESS))) * len(places)
        for of_member, part in zip(chosen, np.split(places, stops[:-1].astype(int)), strict=True):
            of_member.append(part)
    everything = Examples(images, digits)
    return [everything.some(np.concatenate(parts)) for parts in chosen], Examples(test_images, test_digits)


def new_model(rng: np.random.Generator, *, hidden: int = HIDDEN) -> Model:
    """A network of one hidden layer."""
    return {
        "1.weight": rng.standard_normal((64, hidden), np.float32) * np.float32(np.sqrt(2 / 64)),
        "1.bias": np.zeros(hidden, np.float32),
        "2.weight": rng.standard_normal((hidden, 10), np.float32) * np.float32(np.sqrt(2 / hidden)),
        "2.bias": np.zeros(10, np.float32),
    }


def gradient(model: Model, examples: Examples) -> Model:
    """Of the mean cross-entropy."""
    hidden, outputs = _forward(model, examples.images)
    shares = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    shares[np.arange(len(examples)), examples.digits] -= 1
    shares /= np.float32(len(examples))
    behind = (shares @ model["2.weight"].T) * (hidden > 0)
    return {
        "1.weight": examples.images.T @ behind,
        "1.bias": behind.sum(axis=0),
        "2.weight": hidden.T @ shares,
        "2.bias": shares.sum(axis=0),
    }


def accuracy_percent(model: Model, test: Examples) -> float:
    _, outputs = _forward(model, test.images)
    return 100 * float(np.mean(outputs.argmax(axis=1) == test.digits))


def train(aggregator: Aggregator, attack: Attack, *, rounds: int, seed: int) -> float:
    """The accuracy, in percent, that is reached with the first members bad."""
    rng = np.random.default_rng(seed)
    members, test = share_out(rng)
    model = new_model(rng)
    before: Model = {name: np.zeros_like(one) for name, one in model.items()}
    mean, averaged = model, 0
    for number in range(rounds):
        contributions = []
        for place, examples in enumerate(members):
            honest = gradient(model, examples.some(rng.integers(0, len(examples), EXAMPLES)))
            sent = attack(honest, rng) if place < BAD else honest
            contributions.append(Contribution(member=PeerId(bytes([place])), tensors=sent, weight=len(examples)))
        before = aggregator(contributions, before)
        model = {name: one - (before[name] + one * DECAY) * STEP for name, one in model.items()}
        if not all(np.abs(one).max() < LOST_BEYOND for one in model.values()):
            break
        averaged = averaged + 1 if 2 * number >= rounds else 1
        mean = {name: one + (model[name] - one) / averaged for name, one in mean.items()}
    return accuracy_percent(mean, test)


Accuracies = Mapping[str, Mapping[str, float]]
"""In percent, by aggregator and attack."""


def measure(
    aggregators: Mapping[str, Aggregator],
    attacks: Mapping[str, Attack] = ATTACKS,
    *,
    rounds: int = ROUNDS,
    seeds: Sequence[int] = SEEDS,
) -> Accuracies:
    """The accuracies of aggregators under attacks, each the mean over seeds."""
    return {
        name: {
            what: fmean(train(aggregator, attack, rounds=rounds, seed=seed) for seed in seeds)
            for what, attack in attacks.items()
        }
        for name, aggregator in aggregators.items()
    }


def markdown(accuracies: Accuracies) -> str:
    """A table of accuracies; those that lie more than :data:`MARGIN` points under the clean average are bold.

    >>> print(markdown({AVERAGE: {CLEAN: 96.74, "NaN": 9.8}}))
    | attack | none | NaN |
    |---|---:|---:|
    | federated average | 96.7 | **9.8** |
    """
    least = accuracies[AVERAGE][CLEAN] - MARGIN
    attacks = list(accuracies[AVERAGE])
    lines = [f"| attack | {' | '.join(attacks)} |", f"|---|{'---:|' * len(attacks)}"]
    for name, row in accuracies.items():
        cells = (f"{row[what]:.1f}" if row[what] >= least else f"**{row[what]:.1f}**" for what in attacks)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def fallen(accuracies: Accuracies) -> list[str]:
    """The robust rules that lie more than :data:`MARGIN` points under the clean average somewhere."""
    least = accuracies[AVERAGE][CLEAN] - MARGIN
    return [name for name in ROBUST if min(accuracies[name].values()) < least]


def _forward(model: Model, images: Floats) -> tuple[Floats, Floats]:
    hidden = np.maximum(images @ model["1.weight"] + model["1.bias"], 0)
    return hidden, hidden @ model["2.weight"] + model["2.bias"]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.robustness", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and one seed")
    parser.add_argument("--json", type=Path, help="where accuracies go, too")
    options = parser.parse_args()
    aggregators = {**PLAIN, **ROBUST}
    accuracies = measure(aggregators, rounds=100, seeds=(1,)) if options.quick else measure(aggregators)
    print(markdown(accuracies))
    if options.json is not None:
        options.json.write_text(json.dumps(accuracies, indent=1, ensure_ascii=False) + "\n")
    if names := fallen(accuracies):
        sys.exit(f"more than {MARGIN:g} points under the clean average: {', '.join(names)}")


if __name__ == "__main__":
    main()
