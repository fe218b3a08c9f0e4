"""Share a model: one process trains it and pushes it, others pull it and use it.

    python examples/share_model.py push PEER
    python examples/share_model.py pull PEER

The model reads handwritten digits; the images come with scikit-learn. Each push is a new version, of which only the
tensors are sent that no version before had; pulling the next version fetches only what is not here yet. How training
went is drawn in accuracy_by_round.png.

PEER is an address that a node prints, such as one of examples/run_node.py. It needs the extras demo and ml.
"""

import argparse
import sys
from pathlib import Path

import digits
import numpy as np

import prime_dht
from prime_dht import BlobProgress, LearningDHT, PrimeDHTError

ROUNDS = 8
STEPS_IN_ROUND = 50
PLOT = Path("accuracy_by_round.png")


def push(dht: LearningDHT) -> None:
    images, test = digits.load()
    weights, optimiser, chance = digits.initial(hidden=256), digits.AdamW(), np.random.default_rng(0)
    accuracies: list[float] = []
    for number in range(1, ROUNDS + 1):
        weights = digits.train(weights, images, STEPS_IN_ROUND, optimiser, chance)
        accuracies.append(digits.accuracy(weights, test))
        print(f"round {number}: accuracy {accuracies[-1]:.1%}")
    digits.draw({"digits": accuracies}, PLOT, title="Trained in one place")
    metadata = {"accuracy": accuracies[-1], "steps": ROUNDS * STEPS_IN_ROUND}
    version = dht.push_model("digits", weights, metadata, architecture="64-256-10, ReLU", progress=show)
    print(
        f"pushed version {version.version}: {version.parameter_count:,} parameters, accuracy {metadata['accuracy']:.1%}"
    )


def pull(dht: LearningDHT) -> None:
    for version in dht.model_versions("digits"):  # without the weights
        print(f"version {version.version}: {version.architecture}, {version.metadata}")
    model = dht.pull_model("digits", progress=show)
    _, test = digits.load()
    accuracy = digits.accuracy(digits.as_weights(model.tensors), test)
    print(f"pulled version {model.version.version}: accuracy {accuracy:.1%}")


def show(progress: BlobProgress) -> None:
    line = f"{progress.stage.value} {progress.done_bytes:,} of {progress.size_bytes:,} bytes"
    print(f"\r{line:<60}", end="\r", file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["push", "pull"])
    parser.add_argument("peer")
    given = parser.parse_args()
    try:
        with prime_dht.connect(given.peer) as dht:
            (push if given.what == "push" else pull)(dht)
    except (PrimeDHTError, KeyboardInterrupt) as error:
        sys.exit(str(error) or 130)
