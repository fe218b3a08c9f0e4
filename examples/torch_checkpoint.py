"""Train with torch, save checkpoints to a swarm in the background, and go on from the last one wherever it runs next.

    python examples/torch_checkpoint.py PEER --steps 300
    python examples/torch_checkpoint.py PEER --steps 600

The second begins where the first has ended, or was killed. The network reads handwritten digits; how well, by rounds of
50 steps, is drawn in accuracy_by_round.png. PEER is an address that a node prints, such as one of examples/run_node.py.
It needs torch, and the extras demo and ml: pip install torch 'prime-dht[demo,ml]'
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import digits

import prime_dht
from prime_dht import LearningDHT, PrimeDHTError

ROUND_STEPS = 50
"""After so many, a checkpoint is saved."""

PLOT = Path("accuracy_by_round.png")


def train(dht: LearningDHT, run: str, steps: int) -> None:
    import torch

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    (pixels, labels), (test_pixels, test_labels) = (
        (torch.tensor(images.pixels), torch.tensor(images.labels)) for images in digits.load()
    )
    accuracies: list[float] = []
    with prime_dht.Checkpoints(dht, run, every=ROUND_STEPS) as checkpoints:
        done = 0
        if (last := checkpoints.restore()) is not None:
            restore(network, optimiser, last.model.torch())
            done = last.step
        print(f"begins after step {done}")
        for step in range(done + 1, steps + 1):
            some = torch.randint(len(labels), (64,))
            loss = torch.nn.functional.cross_entropy(network(pixels[some]), labels[some])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if checkpoints.step(step, tensors_of(network, optimiser), {"loss": loss.item()}):
                accuracies.append((network(test_pixels).argmax(dim=1) == test_labels).float().mean().item())
                print(f"step {step}: accuracy {accuracies[-1]:.1%}")
    digits.draw({"digits": accuracies}, PLOT, title=run)


def tensors_of(network: Any, optimiser: Any) -> dict[str, Any]:
    """All tensors of both, side by side."""
    state = optimiser.state_dict()["state"]
    moments = {f"optimiser.{number}.{name}": value for number, one in state.items() for name, value in one.items()}
    return {**network.state_dict(), **moments}


def restore(network: Any, optimiser: Any, tensors: dict[str, Any]) -> None:
    """Undo :func:`tensors_of`."""
    state = optimiser.state_dict()
    for key in [key for key in tensors if key.startswith("optimiser.")]:
        _, number, name = key.split(".")
        state["state"].setdefault(int(number), {})[name] = tensors.pop(key)
    optimiser.load_state_dict(state)
    network.load_state_dict(tensors)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer")
    parser.add_argument("--run", default="digits", help="its name")
    parser.add_argument("--steps", type=int, default=300, help="to have done at the end")
    given = parser.parse_args()
    try:
        import torch  # noqa: F401 - to see whether it is there, before anybody waits
    except ImportError:
        print("torch_checkpoint.py needs torch: pip install torch", file=sys.stderr)
        sys.exit(2)
    try:
        with prime_dht.connect(given.peer) as dht:
            train(dht, given.run, given.steps)
    except (PrimeDHTError, KeyboardInterrupt) as error:
        sys.exit(str(error) or 130)
