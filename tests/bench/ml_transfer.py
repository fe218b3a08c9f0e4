"""Models between processes, beside a plain copy of the file; and a round of gradients.

``python -m tests.bench.ml_transfer <role> …`` is a process that does what a line of its standard input tells it, and
answers with a line of JSON: ``node`` is a durable node, the only one of its swarm, ``pusher`` and ``puller`` are its
clients, ``members`` are many clients in one process, ``collector`` is one more. Each has a data directory, and tells
the CPU time that it took and the most memory it ever had resident. Every model and every round is new, so nothing is
left out because somebody has it.

The copy reads the file, writes another, and brings that to the disk, one after the other. A push and a pull read and
write as much, and hash, encrypt, send and decrypt every byte besides; but they do some of it at the same time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import IO

import numpy as np

import prime_dht
from prime_dht import NodeConfig
from prime_dht.ml.codecs import codec_named, encode
from prime_dht.ml.tensors import Tensors
from prime_dht.ml.weights import write_safetensors

from .processes import forget_peak, peak_bytes, running
from .swarm import LOOPBACK
from .tables import Row, Table

MODEL_BYTES = 250_000_000
TENSORS = 25
MEMBERS = 16
GRADIENT_BYTES = 10_000_000
CODECS = ("none", "int8")
TIMEOUT_S = 300.0
CHUNK_BYTES = 1 << 20

Told = Mapping[str, float]
"""What a process answers: ``took_s``, ``cpu_s`` and ``peak_mb``."""


class Worker:
    """A process of this module."""

    def __init__(self, to_it: IO[str], from_it: IO[str]) -> None:
        self._to, self._from = to_it, from_it
        self.greeting = self._from.readline().strip()

    def tell(self, *words: object) -> Told:
        """Have it do something, and wait for the answer."""
        print(*words, file=self._to, flush=True)
        answer: Told = json.loads(self._from.readline())
        return answer


def measure_models(quick: bool) -> Table:
    """The table of pushes and pulls."""
    size_bytes, rounds = (MODEL_BYTES // 50, 1) if quick else (MODEL_BYTES, 3)
    told: dict[str, list[Told]] = {"copy of the file": [], "push_model": [], "pull_model": []}
    node_cpu_s: dict[str, list[float]] = {what: [] for what in told}
    with TemporaryDirectory(prefix="prime-dht-bench-") as directory, ExitStack() as stack:

        def worker(role: str, *arguments: object) -> Worker:
            return stack.enter_context(_worker(role, f"{directory}/{role}", *arguments))

        node = worker("node")
        pusher, puller = worker("pusher", node.greeting), worker("puller", node.greeting)
        for number in range(rounds):
            pusher.tell("make", number, size_bytes)
            for what, asked in (("copy of the file", pusher), ("push_model", pusher), ("pull_model", puller)):
                before = node.tell("look")
                told[what].append(asked.tell(what.partition("_")[0].partition(" ")[0], number))
                node_cpu_s[what].append(node.tell("look")["cpu_s"] - before["cpu_s"])
        node_peak_mb = node.tell("look")["peak_mb"]
    size_mb = size_bytes / 1e6
    copy_s = median(one["took_s"] for one in told["copy of the file"])
    rows: list[Row] = [
        {
            "what": what,
            "MB_per_s": size_mb / (took_s := median(one["took_s"] for one in each)),
            "of_copy": copy_s / took_s,
            "cpu_s": median(one["cpu_s"] for one in each),
            "node_cpu_s": median(node_cpu_s[what]),
            "peak_MB": max(one["peak_mb"] for one in each),
        }
        for what, each in told.items()
    ]
    title = f"A model of {size_mb:g} MB in {TENSORS} tensors, {rounds} rounds; peak of the node {node_peak_mb:.0f} MB"
    return Table(name="ml_models", title=title, rows=rows)


def measure_round(quick: bool) -> Table:
    """The table of rounds."""
    members, size_bytes, rounds = (4, GRADIENT_BYTES // 10, 1) if quick else (MEMBERS, GRADIENT_BYTES, 3)
    rows: list[Row] = []
    with TemporaryDirectory(prefix="prime-dht-bench-") as directory, ExitStack() as stack:

        def worker(role: str, *arguments: object) -> Worker:
            return stack.enter_context(_worker(role, f"{directory}/{role}", *arguments))

        node = worker("node")
        publishing = worker("members", node.greeting, members, size_bytes)
        collecting = worker("collector", node.greeting)
        for codec in CODECS:
            published: list[Told] = []
            collected: list[Told] = []
            for number in range(rounds):
                order = (len(rows) * rounds + number, codec)
                published.append(publishing.tell("publish", *order))
                collected.append(collecting.tell("collect", order[0], members))
            raw_mb = members * size_bytes / 1e6
            rows += [
                {
                    "what": f"{what}, {codec}",
                    "took_s": (took_s := median(one["took_s"] for one in each)),
                    "MB_per_s": raw_mb / took_s,
                    "sent_MB": published[0]["sent_mb"],
                    "cpu_s": median(one["cpu_s"] for one in each),
                    "peak_MB": max(one["peak_mb"] for one in each),
                }
                for what, each in (("publish", published), ("collect", collected))
            ]
    title = f"A round of {members} members' {size_bytes / 1e6:g} MB, all published at once, then collected by another"
    return Table(name="ml_round", title=title, rows=rows)


@contextmanager
def _worker(*arguments: object) -> Iterator[Worker]:
    with running("ml_transfer", *arguments) as streams:
        yield Worker(*streams)


def _model(number: int, size_bytes: int) -> Tensors:
    rng = np.random.default_rng(number)
    return {f"layer.{index}": rng.standard_normal(size_bytes // TENSORS // 4, np.float32) for index in range(TENSORS)}


def _serve(work: Mapping[str, Callable[..., Mapping[str, float] | None]], greeting: str = "ready") -> None:
    """Do what lines of standard input say, each the name of some work and its arguments, and tell what it took."""
    print(greeting, flush=True)
    for line in sys.stdin:
        name, *arguments = line.split()
        began_s, cpu_began_s = time.perf_counter(), time.process_time()
        found = work[name](*arguments) or {}
        took = {"took_s": time.perf_counter() - began_s, "cpu_s": time.process_time() - cpu_began_s}
        print(json.dumps({**took, "peak_mb": peak_bytes() / 1e6, **found}), flush=True)


def _be_node(directory: Path) -> None:
    config = NodeConfig(listen=(LOOPBACK,))
    with prime_dht.connect(data_dir=directory, serve=True, config=config) as dht:
        _serve({"look": lambda: {"cpu_s": time.process_time()}}, dht.addresses()[0])


def _be_pusher(directory: Path, address: str) -> None:
    file, copied = directory / "model.safetensors", directory / "copy"

    def make(number: str, size_bytes: str) -> None:
        with file.open("wb") as out:
            write_safetensors(out, _model(int(number), int(size_bytes)))
            os.fsync(out.fileno())  # or whoever writes next waits for it
        forget_peak()  # which making it was

    def copy(_: str) -> None:
        with file.open("rb") as source, copied.open("wb") as target:
            while chunk := source.read(CHUNK_BYTES):
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())
        copied.unlink()

    with prime_dht.connect(address, data_dir=directory) as dht:

        def push(number: str) -> None:
            dht.push_model(f"bench-{number}", file, timeout=TIMEOUT_S)

        _serve({"make": make, "copy": copy, "push": push})


def _be_puller(directory: Path, address: str) -> None:
    with prime_dht.connect(address, data_dir=directory) as dht:

        def pull(number: str) -> None:
            dht.pull_model(f"bench-{number}", timeout=TIMEOUT_S)

        _serve({"pull": pull})


def _be_members(directory: Path, address: str, members: int, size_bytes: int) -> None:
    with ExitStack() as stack:
        clients = [
            stack.enter_context(prime_dht.connect(address, data_dir=directory / str(place))) for place in range(members)
        ]

        def publish(number: str, codec: str) -> Mapping[str, float]:
            rng = np.random.default_rng(int(number))
            gradients = [{"w": rng.standard_normal(size_bytes // 4, np.float32)} for _ in clients]
            began_s, cpu_began_s = time.perf_counter(), time.process_time()
            futures = [
                client.publish(int(number), gradient, codec=codec, timeout=TIMEOUT_S, wait=False)
                for client, gradient in zip(clients, gradients, strict=True)
            ]
            for future in futures:
                future.result()
            took = {"took_s": time.perf_counter() - began_s, "cpu_s": time.process_time() - cpu_began_s}
            sent = len(gradients) * len(encode(gradients[0], codec_named(codec)))
            return {**took, "sent_mb": sent / 1e6}

        _serve({"publish": publish})


def _be_collector(directory: Path, address: str) -> None:
    with prime_dht.connect(address, data_dir=directory) as dht:

        def collect(number: str, members: str) -> None:
            collected = dht.collect(int(number), minimum=int(members), timeout=TIMEOUT_S)
            assert len(collected.gradients) == int(members), collected

        _serve({"collect": collect})


if __name__ == "__main__":
    role, folder, *rest = sys.argv[1:]
    Path(folder).mkdir()
    match role, rest:
        case "node", []:
            _be_node(Path(folder))
        case "pusher", [address]:
            _be_pusher(Path(folder), address)
        case "puller", [address]:
            _be_puller(Path(folder), address)
        case "members", [address, members, size_bytes]:
            _be_members(Path(folder), address, int(members), int(size_bytes))
        case "collector", [address]:
            _be_collector(Path(folder), address)
