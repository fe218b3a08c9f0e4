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

import numpy as np
from digits import draw

import prime_dht
from prime_dht import BlobProgress, LearningDHT, PrimeDHTError

ROUNDS = 8
EPOCHS_IN_ROUND = 5
PLOT = Path("accuracy_by_round.png")


def push(dht: LearningDHT) -> None:
    from sklearn.neural_network import MLPClassifier  # seconds to import, which it takes only once it is connected

    pixels, _, labels, _ = digits()
    network = MLPClassifier(hidden_layer_sizes=(128,), random_state=0)
    accuracies: list[float] = []
    for number in range(1, ROUNDS + 1):
        for _ in range(EPOCHS_IN_ROUND):
            network.partial_fit(pixels, labels, classes=range(10))
        (hidden, output), (hidden_bias, output_bias) = network.coefs_, network.intercepts_
        weights = {"hidden": hidden, "hidden.bias": hidden_bias, "output": output, "output.bias": output_bias}
        accuracies.append(accuracy(weights))
        print(f"round {number}: accuracy {accuracies[-1]:.1%}")
    draw({"digits": accuracies}, PLOT, title="Trained in one place")
    metadata = {"accuracy": accuracies[-1], "epochs": ROUNDS * EPOCHS_IN_ROUND}
    version = dht.push_model("digits", weights, metadata, architecture="64-128-10, ReLU", progress=show)
    print(
        f"pushed version {version.version}: {version.parameter_count:,} parameters, accuracy {metadata['accuracy']:.1%}"
    )


def pull(dht: LearningDHT) -> None:
    for version in dht.model_versions("digits"):  # without the weights
        print(f"version {version.version}: {version.architecture}, {version.metadata}")
    model = dht.pull_model("digits", progress=show)
    print(f"pulled version {model.version.version}: accuracy {accuracy(model.tensors):.1%}")


def accuracy(weights: dict[str, np.ndarray]) -> float:
    """The share of the images kept for the test that it reads rightly."""
    _, pixels, _, labels = digits()
    hidden = np.maximum(pixels @ weights["hidden"] + weights["hidden.bias"], 0)
    answers = (hidden @ weights["output"] + weights["output.bias"]).argmax(axis=1)
    return float(np.mean(answers == labels))


def digits() -> list[np.ndarray]:
    """Images to train on and to test with, and which digit each of these and of those shows."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bundled = load_digits()
    return list(train_test_split(bundled.data / 16, bundled.target, random_state=0))


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
    except PrimeDHTError as error:
        sys.exit(str(error))
