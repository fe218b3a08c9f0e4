"""A training loop that shares its state through a swarm, without a word of trio.

    python examples/blocking.py PEER alice
    python examples/blocking.py PEER bob

Each worker fits the slope of the same line to data of its own, and every round puts its gradient and takes everybody's
mean. The puts overlap with the work. All are believed here; prime_dht.ml.aggregation has means that stand liars.

PEER is an address that a node prints, such as one of examples/run_node.py.
"""

import argparse
import math
import random
import sys
from concurrent.futures import Future

import prime_dht
from prime_dht import PrimeDHTError, PutReceipt

ROUNDS = 20
TRUE_SLOPE = 3.0
LEARNING_RATE = 0.5


def numbers(value: bytes) -> list[float]:
    """The number that a value is; none if it is something else, for anybody may put anything."""
    try:
        return [number] if math.isfinite(number := float(value)) else []
    except ValueError:
        return []


def train(dht: prime_dht.BlockingDHT, name: str) -> float:
    """Fit the slope; its value after the last round."""
    chance = random.Random(name)  # noqa: S311 - data, not secrets
    data = [(x, TRUE_SLOPE * x + chance.gauss(0, 0.1)) for x in (chance.uniform(-1, 1) for _ in range(200))]
    slope, puts = 0.0, list[Future[PutReceipt]]()
    for number in range(ROUNDS):
        gradient = sum(2 * (slope * x - y) * x for x, y in data) / len(data)
        puts.append(dht.put(f"slope-gradient:{number}", repr(gradient).encode(), ttl=3600, wait=False))
        found = dht.get_all(f"slope-gradient:{number}")
        theirs = [value for one in found if one.publisher != dht.peer_id for value in numbers(one.value)]
        slope -= LEARNING_RATE * (gradient + sum(theirs)) / (1 + len(theirs))
    stored = sum(put.result().acknowledged for put in puts)
    print(f"{name}: slope {slope:.1f}, {stored} of {ROUNDS} gradients shared")
    return slope


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer")
    parser.add_argument("name", help="this worker's")
    given = parser.parse_args()
    try:
        with prime_dht.connect(given.peer) as dht:
            train(dht, given.name)
    except (PrimeDHTError, KeyboardInterrupt) as error:
        sys.exit(str(error) or 130)
