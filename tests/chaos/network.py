"""Where the nodes of a run live: namespaces around a switch or, where these are not permitted, loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from prime_dht.ids import PeerId, peer_text

from .process import Down, Process
from .switch import DELAY_S, LOSS

PORT = 4001
NAMESPACES = (("unshare", "--net"), ("unshare", "--user", "--map-root-user", "--net"))
"""What may put a process into a network namespace of its own: with the rights of root, and without."""


class Network(ABC):
    """What is around the nodes, which have numbers from 0 on.

    Attributes:
        says: what it is, for a person.
        prefix: the command under which a node is run.
        switch: the socket of its switch, if it has one.
    """

    says: str
    prefix: Sequence[str] = ()
    switch: str = ""

    @abstractmethod
    def address(self, number: int) -> str:
        """The IPv4 address of a node, which it keeps."""

    @abstractmethod
    async def cut(self, half: Collection[int]) -> None:
        """From here on these nodes and all others hear only those on their own side; with none, all hear all."""

    @abstractmethod
    async def joined(self, number: int) -> None:
        """A node has started, and is ready."""

    @abstractmethod
    async def figures(self) -> dict[str, int]:
        """What became of packets. The network is of no use afterwards."""

    def multiaddr(self, number: int) -> str:
        """Where a node listens."""
        return f"/ip4/{self.address(number)}/tcp/{PORT}"


class Namespaces(Network):
    """A namespace for each node, and a switch."""

    def __init__(self, prefix: Sequence[str], process: trio.Process, socket_path: Path) -> None:
        self.says = (
            f"each node has a network namespace; packets take {DELAY_S * 1000:g} ms each way, {LOSS:.0%} are lost"
        )
        self.prefix = prefix
        self.switch = str(socket_path)
        self._process = process
        assert process.stdout is not None
        self._lines = _lines(process.stdout)

    def address(self, number: int) -> str:
        return f"10.77.0.{number + 1}"

    async def cut(self, half: Collection[int]) -> None:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps([self.address(one) for one in half]).encode() + b"\n")
        await anext(self._lines)

    async def joined(self, number: int) -> None:
        """The switch knows it already: it has its device."""

    async def ready(self) -> None:
        """Wait until devices can be handed over."""
        await anext(self._lines)

    async def figures(self) -> dict[str, int]:
        assert self._process.stdin is not None
        await self._process.stdin.aclose()
        counts: dict[str, int] = json.loads(await anext(self._lines))
        return counts


class Loopback(Network):
    """Addresses on loopback, which are this run's alone.

    Args:
        why: there are no namespaces.
        nodes: their processes and peer ids, by number.
    """

    def __init__(self, why: str, nodes: Sequence[Process]) -> None:
        self.says = (
            f"NO NETWORK NAMESPACES ({why}): nodes are on loopback, without delay and loss; "
            "a cut closes connections and refuses new ones"
        )
        self._nodes = nodes
        self._half: frozenset[int] = frozenset()
        run = os.getpid()
        self._subnet = f"127.{1 + run % 250}.{1 + run // 250 % 250}"

    def address(self, number: int) -> str:
        return f"{self._subnet}.{number + 1}"

    async def cut(self, half: Collection[int]) -> None:
        self._half = frozenset(half)
        async with trio.open_nursery() as nursery:
            for node in self._nodes:
                nursery.start_soon(self.joined, node.number)

    async def joined(self, number: int) -> None:
        is_within = number in self._half
        others: Iterable[PeerId] = (one.peer for one in self._nodes if (one.number in self._half) != is_within)
        with suppress(Down):  # who is not there is told when it joins
            await self._nodes[number].tell("close-to", peers=list(map(peer_text, others)) if self._half else [])

    async def figures(self) -> dict[str, int]:
        return {}


@asynccontextmanager
async def open_network(folder: Path, seed: int, nodes: Sequence[Process], *, loopback: bool) -> AsyncIterator[Network]:
    """The best network that the system permits, until the block ends.

    Args:
        folder: for the switch's socket.
        nodes: all there will be; none has to run yet.
        loopback: not even to try namespaces.
    """
    prefix, why = (None, "as asked") if loopback else _permitted()
    if prefix is None:
        yield Loopback(why, nodes)
        return
    path = folder / "switch"
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tests.chaos.switch", str(path), str(seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        network = Namespaces(prefix, process, path)
        await network.ready()
        yield network
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def _permitted() -> tuple[Sequence[str] | None, str]:
    """How a process gets a namespace with a TUN device in it, or why it does not."""
    why = ""
    for prefix in NAMESPACES:
        try:
            tried = subprocess.run(
                [*prefix, sys.executable, "-m", "tests.chaos.tun"], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            return None, "there is no unshare"
        if tried.returncode == 0:
            return prefix, ""
        why = (tried.stderr.strip().splitlines() or ["unshare failed"])[-1]
    return None, why


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[str]:
    unread = b""
    async for piece in stream:
        *lines, unread = (unread + piece).split(b"\n")
        for line in lines:
            yield line.decode()
