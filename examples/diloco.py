"""Train with little communication: many local steps, then one outer step on everybody's pseudo-gradient (DiLoCo).

    python examples/diloco.py --workers 4 --rounds 12 --codec int8
    python examples/diloco.py --codec topk

Douillard et al. 2023, arXiv 2311.08105, algorithm 1: in each round every worker takes H steps of AdamW on its own
images. How far that led, start minus end, is its pseudo-gradient. Those are published, collected and averaged, and on
the average all workers take the same step of SGD with Nesterov momentum from where they started. What a codec leaves
out of one pseudo-gradient is added to the next (error feedback), so a tenth of the numbers will do.

It needs the extras demo and ml: pip install 'prime-dht[demo,ml]'
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import digits
import numpy as np
from digits import AdamW, Images, Weights
from workers import Arguments, Worker, WorkerFailed, run, working

from prime_dht.ml.aggregation import FederatedAverage, aggregate
from prime_dht.ml.codecs import Codec, ErrorFeedback, Int8, Plain, TopK, encode
from prime_dht.ml.tensors import size_bytes_of, spec_of

LOCAL_STEPS = 40
"""H. In the paper 500, of a model that takes longer to learn."""

CODECS: dict[str, Codec] = {"none": Plain(), "int8": Int8(), "topk": TopK(fraction=0.1)}


@dataclass(frozen=True)
class Report:
    """What a worker says of a round: how good the common model is, and what its pseudo-gradient took."""

    accuracy: float
    published_bytes: int


@dataclass
class Nesterov:
    """The outer optimiser: SGD with Nesterov momentum, with the paper's rates."""

    rate: float = 0.7
    momentum: float = 0.9
    velocity: Weights = field(default_factory=dict)

    def step(self, weights: Weights, slope: Weights) -> Weights:
        """Weights one step further down."""
        self.velocity = {name: self.momentum * self.velocity.get(name, 0 * one) + one for name, one in slope.items()}
        return {
            name: weights[name] - self.rate * (one + self.momentum * self.velocity[name]) for name, one in slope.items()
        }


def train(worker: Worker, images: Images, test: Images, *, rounds: int, codec: Codec) -> Iterator[Report]:
    """One worker's part."""
    own = images.part(worker.number, worker.count)
    weights, inner, outer = digits.initial(), AdamW(), Nesterov()
    feedback, chance = ErrorFeedback(codec), np.random.default_rng(worker.number)
    for number in range(rounds):
        trained = digits.train(weights, own, LOCAL_STEPS, inner, chance)
        pseudo_gradient = {name: weights[name] - trained[name] for name in weights}
        worker.dht.publish(number, pseudo_gradient, codec=feedback)
        collected = worker.dht.collect(number, members=worker.members, spec=spec_of(weights))
        if len(collected.gradients) < worker.count:
            # Who goes on without somebody whom the others have is no longer where they are.
            # prime_dht.ml.rounds has members agree on whose they go on without.
            raise WorkerFailed(f"round {number}: {len(collected.gradients)} of {worker.count} pseudo-gradients came")
        average = aggregate(collected.contributions(), spec_of(weights), FederatedAverage(), bad=0)
        weights = outer.step(weights, digits.as_weights(average.tensors))
        yield Report(digits.accuracy(weights, test), len(encode(pseudo_gradient, codec)))


def main() -> int:
    arguments = Arguments(__doc__)
    arguments.add_argument("--codec", choices=CODECS, default="int8", help="of pseudo-gradients; %(default)s")
    given = arguments.parse_args()
    images, test = digits.load()
    whole_bytes = size_bytes_of(spec_of(digits.initial()))
    together, central = list[float](), list[float]()
    part = partial(train, images=images, test=test, rounds=given.rounds, codec=CODECS[given.codec])
    with working(part, count=given.workers, peer=given.peer) as rounds:
        alone = digits.in_one_place(images, test, LOCAL_STEPS, workers=given.workers)
        for reports, accuracy in zip(rounds, alone, strict=False):
            least = min(reports, key=lambda report: report.accuracy)
            together.append(least.accuracy)
            central.append(accuracy)
            print(
                f"round {len(together):>2}: {least.accuracy:.1%} right, {least.published_bytes:,} bytes from each "
                f"instead of {whole_bytes:,} at each of {LOCAL_STEPS} steps (all images in one place: {accuracy:.1%})",
                flush=True,
            )
    return digits.conclude(together, central, given.plot, title=f"DiLoCo, {LOCAL_STEPS} local steps, {given.codec}")


if __name__ == "__main__":
    run(main)
