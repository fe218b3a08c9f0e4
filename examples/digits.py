"""What the examples train: a network of one hidden layer, in numpy, that reads handwritten digits.

The 1,797 images come with scikit-learn, so nothing is downloaded. The model is a dict of arrays, as everywhere in
prime_dht: what is pushed, pulled, published and aggregated is such a dict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from prime_dht.ml.tensors import Tensors

Array = npt.NDArray[np.floating]
Weights = dict[str, Array]

HIDDEN = 32
BATCH = 32
ALLOWED_GAP = 0.02
"""In accuracy at the end, between training together and in one place."""


@dataclass(frozen=True)
class Images:
    """Images of 8 × 8 pixels, 0 ..= 1, in the shape (n, 64), and which digit each shows."""

    pixels: Array
    labels: npt.NDArray[np.int64]

    def part(self, number: int, count: int) -> Images:
        """One of ``count`` disjoint parts, in which each digit is about as frequent as in the whole."""
        return Images(self.pixels[number::count], self.labels[number::count])

    def batch(self, size: int, chance: np.random.Generator) -> Images:
        """Some of them, at random."""
        chosen = chance.choice(len(self.labels), size, replace=False)
        return Images(self.pixels[chosen], self.labels[chosen])


def load() -> tuple[Images, Images]:
    """Three quarters of all images to train on, and the rest to test with; the same every time."""
    from sklearn.datasets import load_digits  # takes a second to import, which the worker processes do without

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    pixels, labels = (digits.data / 16).astype(np.float32)[order], digits.target[order]
    kept = len(labels) // 4
    return Images(pixels[kept:], labels[kept:]), Images(pixels[:kept], labels[:kept])


def initial(hidden: int = HIDDEN) -> Weights:
    """Where every worker begins: the same random weights."""
    chance = np.random.default_rng(0)
    sizes = {"hidden": (64, hidden), "output": (hidden, 10)}
    weights = {name: chance.normal(0, np.sqrt(2 / rows), (rows, n)) for name, (rows, n) in sizes.items()}
    biases = {f"{name}.bias": np.zeros(n) for name, (_, n) in sizes.items()}
    return {name: array.astype(np.float32) for name, array in (weights | biases).items()}


def as_weights(tensors: Tensors) -> Weights:
    """Weights of what came from a swarm."""
    return {name: tensor.astype(np.float32, copy=False) for name, tensor in tensors.items()}


def gradient(weights: Weights, images: Images) -> Weights:
    """The gradient of the mean cross-entropy of the model's answers to some images."""
    hidden, chances = _forward(weights, images.pixels)
    n = len(images.labels)
    at_output = chances  # the derivative of cross-entropy after softmax: p - 1 at the right answer, p elsewhere
    at_output[np.arange(n), images.labels] -= 1
    at_output /= n
    at_hidden = at_output @ weights["output"].T * (hidden > 0)
    return {
        "hidden": images.pixels.T @ at_hidden,
        "hidden.bias": at_hidden.sum(axis=0),
        "output": hidden.T @ at_output,
        "output.bias": at_output.sum(axis=0),
    }


def answers(weights: Weights, images: Images) -> Array:
    """How likely the model takes each digit to be the one that an image shows, in the shape (n, 10)."""
    return _forward(weights, images.pixels)[1]


def accuracy(weights: Weights, images: Images) -> float:
    """The share of images that the model reads rightly."""
    return float(np.mean(answers(weights, images).argmax(axis=1) == images.labels))


def _forward(weights: Weights, pixels: Array) -> tuple[Array, Array]:
    hidden = np.maximum(pixels @ weights["hidden"] + weights["hidden.bias"], 0)
    scores = hidden @ weights["output"] + weights["output.bias"]
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, powers / powers.sum(axis=1, keepdims=True)


@dataclass
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101)."""

    rate: float = 0.003
    decay: float = 0.01
    steps: int = 0
    means: Weights = field(default_factory=dict)
    squares: Weights = field(default_factory=dict)

    def step(self, weights: Weights, slope: Weights) -> Weights:
        """Weights one step further down."""
        self.steps += 1
        after: Weights = {}
        for name, one in slope.items():
            mean = self.means[name] = 0.9 * self.means.get(name, np.zeros_like(one)) + 0.1 * one
            square = self.squares[name] = 0.999 * self.squares.get(name, np.zeros_like(one)) + 0.001 * one**2
            step = mean / (1 - 0.9**self.steps) / (np.sqrt(square / (1 - 0.999**self.steps)) + 1e-8)
            after[name] = weights[name] - self.rate * (step + self.decay * weights[name])
        return after


def train(
    weights: Weights, images: Images, steps: int, optimiser: AdamW, chance: np.random.Generator, *, batch: int = BATCH
) -> Weights:
    """Weights after some steps, each on a random batch."""
    for _ in range(steps):
        weights = optimiser.step(weights, gradient(weights, images.batch(batch, chance)))
    return weights


def in_one_place(images: Images, test: Images, steps: int, *, workers: int) -> Iterator[float]:
    """The accuracy after each round of as many steps, of which each sees as many images as all workers' together."""
    weights, optimiser, chance = initial(), AdamW(), np.random.default_rng(0)
    while True:
        weights = train(weights, images, steps, optimiser, chance, batch=workers * BATCH)
        yield accuracy(weights, test)


def draw(accuracies: Mapping[str, Sequence[float]], path: Path, *, title: str) -> None:
    """Draw accuracies by round."""
    from matplotlib.figure import Figure  # half a second to import, for the end alone

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="round", ylabel="accuracy")
    for label, by_round in accuracies.items():
        axes.plot(range(1, len(by_round) + 1), by_round, label=label)
    axes.legend()
    figure.savefig(path)


def conclude(together: list[float], central: list[float], path: Path, *, title: str) -> int:
    """Say and draw how training together compares with training in one place; 0 if it is as good, to 2 points."""
    draw({"together": together, "in one place": central}, path, title=title)
    gap = central[-1] - together[-1]
    print(f"together {together[-1]:.1%}, in one place {central[-1]:.1%}; {path} shows the way there")
    if gap > ALLOWED_GAP:
        print(f"that is {100 * gap:.1f} points apart; it should be {100 * ALLOWED_GAP:.0f} at most")
    return int(gap > ALLOWED_GAP)
