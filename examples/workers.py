"""Worker processes for the examples that train together: each has a node, and trains on its own part of the data.

Without a swarm to join the workers are one: the first one's node is the first of it, and the others join through that.
A worker ends when the process that started it does, whatever way that ends.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import prime_dht
from prime_dht import NodeConfig, PrimeDHTError
from prime_dht.ids import PeerId

Report = TypeVar("Report")
Work = Callable[["Worker"], Iterator[Report]]

LOOPBACK = NodeConfig(listen=("/ip4/127.0.0.1/tcp/0",))
STOPPING_S = 0.5
"""After this a worker is killed. A node has closed by then; what remains is that Python takes itself apart."""


@dataclass(frozen=True)
class Worker:
    """What a worker's training is given.

    Attributes:
        number: 0 ..= count - 1.
        members: the peer ids of all workers.
    """

    number: int
    count: int
    dht: prime_dht.LearningDHT
    members: list[PeerId]


@dataclass(frozen=True)
class Call:
    """What a worker is told to begin with: through whom it joins, and whether its node serves others."""

    peer: str | None
    serve: bool


@dataclass(frozen=True)
class Joined:
    """What a worker answers. Its address is empty if it does not serve."""

    peer_id: PeerId
    address: str


class WorkerFailed(Exception):
    """A worker could not go on, and why."""


@contextmanager
def working(work: Work[Report], *, count: int, peer: str | None) -> Iterator[Iterator[list[Report]]]:
    """Have ``count`` workers go through what ``work`` makes of each; inside, what all of them report, round by round.

    Args:
        peer: a node of the swarm to join.
    """
    processes: list[BaseProcess] = []
    links: list[Connection] = []
    forking = _start_fork_server()
    try:
        for number in range(count):
            link, far_end = forking.Pipe()
            links.append(link)
            process = forking.Process(target=_work, args=(far_end, number, count, work))
            with _signals_later():
                process.start()
                processes.append(process)
            far_end.close()
        yield _reports(links, peer)
    finally:
        for link in links:
            link.close()  # which ends a worker, unless it waits for something else
        deadline_s = time.monotonic() + STOPPING_S
        for started in processes:
            started.join(max(0.0, deadline_s - time.monotonic()))
            started.kill()
            started.join()


@contextmanager
def _signals_later() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block ends: half a start leaves a worker that nobody can stop."""
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _reports(links: list[Connection], peer: str | None) -> Iterator[list[Report]]:
    """Bring the workers together, then hand on what they report until they have finished."""
    links[0].send(Call(peer, serve=peer is None))
    first = _next(links[0])
    for link in links[1:]:
        link.send(Call(peer or first.address, serve=peer is None))
    members = [first.peer_id, *(_next(link).peer_id for link in links[1:])]
    for link in links:
        link.send(members)
    while None not in (reports := [_next(link) for link in links]):
        yield reports


def _next(link: Connection) -> Any:  # what it returns depends on how far the worker is
    try:
        sent = link.recv()
    except (EOFError, ConnectionResetError):
        raise WorkerFailed("a worker ended too early") from None
    if isinstance(sent, WorkerFailed):
        raise sent
    return sent


def _work(link: Connection, number: int, count: int, work: Work[object]) -> None:
    """What a worker process does, until that at the other end of the link has ended, or has no more use for it."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            call: Call = link.recv()
            with prime_dht.connect(call.peer or (), serve=call.serve, config=LOOPBACK) as dht:
                link.send(Joined(dht.peer_id, "".join(dht.addresses()[:1])))
                for report in work(Worker(number, count, dht, link.recv())):
                    link.send(report)
                link.send(None)
                link.recv()  # never comes; but as long as others have not finished, they may want what is stored here
        except (PrimeDHTError, WorkerFailed) as error:
            link.send(WorkerFailed(f"worker {number}: {error}"))


def _end_with_parent() -> None:
    """End this process when the one that started it was killed, whatever it waits for."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _start_fork_server() -> ForkServerContext:
    """What workers are forked from: it has imported what takes long, and holds on to none of their links."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["prime_dht.node", "prime_dht.ml.gradients"])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers inherit this: Ctrl-C is for this process alone
    forkserver.ensure_running()
    signal.signal(signal.SIGINT, before)
    return context


# Arguments


class Arguments(argparse.ArgumentParser):
    """What all of these examples are told; a mistake is one line."""

    def __init__(self, doc: str) -> None:
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("--workers", type=_count, default=4, help="processes; 4 by default")
        self.add_argument("--rounds", type=_count, default=12, help="12 by default")
        self.add_argument("--peer", help="a node of a swarm to join; without it the workers are a swarm of their own")
        self.add_argument("--plot", type=_place, default="accuracy_by_round.png", help="where to draw; %(default)s")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def _place(text: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    if find_spec("matplotlib") is None:  # better now than when all is trained
        raise argparse.ArgumentTypeError("to draw takes matplotlib: pip install 'prime-dht[demo]'")
    return path


def run(main: Callable[[], int]) -> NoReturn:
    """Exit with what ``main`` returns, or as is usual for what ended it."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except (PrimeDHTError, WorkerFailed, OSError) as error:
        sys.exit(str(error))
