"""Train with torch, save checkpoints to a swarm in the background, and go on from the last one wherever it runs next.

    python examples/torch_checkpoint.py PEER --steps 300
    python examples/torch_checkpoint.py PEER --steps 600

The second begins where the first has ended, or was killed. PEER is an address that a node prints, such as one of
examples/run_node.py. It needs torch, and the extra ml: pip install torch 'prime-dht[ml]'
"""

import argparse
import sys
from typing import Any

import prime_dht
from prime_dht import LearningDHT, PrimeDHTError

SAVE_EVERY = 50


def train(dht: LearningDHT, run: str, steps: int) -> None:
    import torch

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    with prime_dht.Checkpoints(dht, run, every=SAVE_EVERY) as checkpoints:
        done = 0
        if (last := checkpoints.restore()) is not None:
            restore(network, optimiser, last.model.torch())
            done = last.step
        print(f"begins after step {done}")
        for step in range(done + 1, steps + 1):
            points = torch.rand(256, 2)
            loss = ((network(points).squeeze(1) - points.prod(dim=1)) ** 2).mean()  # it learns to multiply
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if checkpoints.step(step, tensors_of(network, optimiser), {"loss": loss.item()}):
                print(f"step {step}: loss {loss.item():.5f}")


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
    parser.add_argument("--run", default="multiply", help="its name")
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
    except PrimeDHTError as error:
        sys.exit(str(error))
