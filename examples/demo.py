"""Train a model, store it in a swarm of five processes, kill two of them, get it back: what ``make demo`` shows.

Every row of the table is printed as it happens. The exit status is 0 only if every step did what it says. Whatever ends
the demo, no process and no file is left: nodes stop when their standard input ends, even if the demo is killed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import digits
import numpy as np
import trio
from digits import Images, Weights
from safetensors.numpy import load, save

from prime_dht import DhtConfig, Mode, NodeConfig, PrimeDHT, PrimeDHTError, PutReceipt, open_node
from prime_dht.ids import peer_text

KEY = "model:digits"
NODES = 5
TRAINING_STEPS = 800
STEP_TIMEOUT_S = 60.0


class DemoFailed(Exception):
    """A step did not do what it says."""


# The swarm


@dataclass(frozen=True)
class Node:
    """``prime-dht run`` in a process of its own."""

    number: int
    process: trio.Process
    address: str

    def holds(self, receipt: PutReceipt) -> bool:
        return self.address.rpartition("/")[2] in map(peer_text, receipt.stored_by)


@dataclass(frozen=True)
class Launch:
    """A node's process, and where its log goes."""

    number: int
    process: trio.Process
    log: Path

    @classmethod
    async def of(cls, number: int, directory: Path, *peers: str) -> Launch:
        command = [sys.executable, "-m", "prime_dht.cli", "run", "--stop-with-stdin"]
        command += ["--listen", "/ip4/127.0.0.1/tcp/0", "--data-dir", str(directory / f"node{number}")]
        for peer in peers:
            command += ["--peer", peer]
        log = directory / f"node{number}.log"
        with log.open("wb") as stderr:
            pipe = subprocess.PIPE
            # Settings for the user's own nodes must not bring these into the user's own swarm.
            env = {name: value for name, value in os.environ.items() if not name.startswith("PRIME_DHT_")}
            process = await trio.lowlevel.open_process(command, stdin=pipe, stdout=pipe, stderr=stderr, env=env)
        return cls(number, process, log)

    async def ready(self) -> Node:
        """Wait until the node is ready, which it says by printing its address."""
        assert self.process.stdout is not None
        printed = b""
        async for chunk in self.process.stdout:
            printed += chunk
            if printed.endswith(b"\n"):
                return Node(self.number, self.process, printed.decode().strip())
        raise DemoFailed(f"node {self.number} did not start: {self.log.read_text().strip()}")


@asynccontextmanager
async def swarm() -> AsyncIterator[list[Node]]:
    """Five nodes on loopback that know each other; at the end they are killed and their data is removed."""
    launched: list[Launch] = []
    with tempfile.TemporaryDirectory(prefix="prime-dht-demo-") as name:
        directory = Path(name)
        try:
            launched.append(await Launch.of(1, directory))
            first = await launched[0].ready()
            nodes = [first]
            for number in range(2, NODES + 1):  # one after the other, so that each meets all before it at once
                launched.append(await Launch.of(number, directory, first.address))
                nodes.append(await launched[-1].ready())
            async with client(first) as dht:
                while len((await dht.find_closest(KEY)).closest) < NODES:  # noqa: ASYNC110 (other processes' events)
                    await trio.sleep(0.05)
            yield nodes
        finally:
            with trio.CancelScope(shield=True):
                for each in launched:
                    each.process.kill()
                    await each.process.wait()


@asynccontextmanager
async def client(node: Node) -> AsyncIterator[PrimeDHT]:
    """A node in this process that stores nothing, and knows of the swarm only what ``node`` tells it."""
    config = NodeConfig(listen=(), peers=(node.address,), dht=DhtConfig(mode=Mode.CLIENT))
    async with open_node(config) as dht:
        await dht.bootstrap()
        yield dht


# The table


@contextmanager
def step(what: str) -> Iterator[Callable[[str], None]]:
    """A row of the table: what is done, how long it took, and what came of it, which the block says."""
    print(f"  {what:<33}", end="", flush=True)
    outcome: list[str] = []
    started_s = time.perf_counter()
    try:
        with trio.fail_after(STEP_TIMEOUT_S):
            yield outcome.append
    except (DemoFailed, PrimeDHTError, OSError, trio.TooSlowError) as error:
        print("  FAILED", flush=True)
        raise DemoFailed(f"{what}: {str(error) or f'not done within {STEP_TIMEOUT_S:g} s'}") from error
    except BaseException:
        print(flush=True)
        raise
    print(f"{time.perf_counter() - started_s:>5.2f} s  {', '.join(outcome)}", flush=True)


def numbers(nodes: list[Node]) -> str:
    return ", ".join(str(node.number) for node in nodes)


async def read_back(node: Node, weights: Weights, test: Images) -> str:
    """Get the weights through a node: the model must answer each test image just as the original."""
    async with client(node) as dht:
        found = await dht.get(KEY)
    if found is None:
        raise DemoFailed("not found")
    rebuilt = load(found.value)
    if not np.array_equal(digits.answers(rebuilt, test), digits.answers(weights, test)):
        raise DemoFailed("the model that came back answers differently")
    return f"{digits.accuracy(rebuilt, test):.1%} right, each answer the same"


async def demo(*, stay: bool) -> None:
    """All steps. Raises DemoFailed if one of them fails."""
    images, test = digits.load()
    with step(f"train on {len(images.labels):,} images of digits") as say:
        chance = np.random.default_rng(0)
        weights = digits.train(digits.initial(), images, TRAINING_STEPS, digits.AdamW(), chance)
        say(f"{digits.accuracy(weights, test):.1%} right on {len(test.labels)} others")
    async with AsyncExitStack() as stack:
        with step(f"start {NODES} nodes") as say:
            nodes = await stack.enter_async_context(swarm())
            say("pids " + " ".join(str(node.process.pid) for node in nodes))
        with step("store its weights through node 1") as say:
            async with client(nodes[0]) as dht:
                file = save(weights)
                receipt = await dht.put(KEY, file)
            holders = [node for node in nodes if node.holds(receipt)]
            if receipt.warning is not None:
                raise DemoFailed(receipt.warning)
            say(f"{len(file):,} bytes, now at nodes {numbers(holders)}")
        with step("read them through node 2") as say:
            say(await read_back(nodes[1], weights, test))
        killed = holders[:2]
        with step(f"kill -9 nodes {numbers(killed)}") as say:
            for node in killed:
                node.process.kill()
                await node.process.wait()
            say("two of the three that have them")
        left = [node for node in nodes if node not in killed]
        # Best one that has played no part yet and has to ask for the weights itself.
        third = min(left, key=lambda node: (node in nodes[:2], node in holders))
        with step(f"read them through node {third.number}") as say:
            say(await read_back(third, weights, test))
        if stay:
            print(f"\n  nodes {numbers(left)} stay until Ctrl-C; try, in another terminal:")
            print(f"  prime-dht get {KEY} --out weights.safetensors --peer {third.address}", flush=True)
            await trio.sleep_forever()


async def until_signalled(*, stay: bool) -> int:
    """The demo's exit status: 0, 1 if a step failed, or 128 + the number of the signal that ended it."""
    status = 0

    async def heed(signals: AsyncIterator[int]) -> None:
        nonlocal status
        async for number in signals:
            status = 128 + number
            nursery.cancel_scope.cancel()

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(heed, signals)
            try:
                await demo(stay=stay)
            except DemoFailed as error:
                print(f"\n{error}", file=sys.stderr)
                status = 1
            nursery.cancel_scope.cancel()
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--stay", action="store_true", help="leave the nodes that survive running until Ctrl-C")
    return trio.run(partial(until_signalled, stay=parser.parse_args().stay))


if __name__ == "__main__":
    sys.exit(main())
