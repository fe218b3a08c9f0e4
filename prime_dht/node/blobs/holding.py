"""Asking peers which blobs they hold: keep whole, so that a loss of power takes none of their blocks.

A put waits until its replicas hold what it put, and asks them time and again. Of all puts that wait for one peer, one
asks for all of them, on one stream: a peer serves only a few of one node.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass, field

import trio

from prime_dht.blobs.cid import Cid
from prime_dht.errors import QueryError, RemoteProtocolError
from prime_dht.ids import PeerId, short
from prime_dht.net.block_streams import HasBlock
from prime_dht.net.network import BlockAsking, Network

TIMEOUT_S = 10.0
"""For a stream, and then for all answers."""

ASK_FIRST_S = 0.01
ASK_AT_MOST_S = 2.0
"""Between two times that a peer is asked whether it holds a blob, ever longer."""

IDLE_S = 0.5
"""A stream on which nothing is asked for longer is given back: who waits for long takes no place from others."""

MOST_ROOTS = 1024
"""Asked for at a time."""

logger = logging.getLogger(__name__)


async def held_by(network: Network, peer: PeerId, roots: Collection[Cid]) -> set[Cid]:
    """Those of some blobs that a peer says it holds; none if it does not answer. At most 1,024 can be asked for."""
    try:
        async with network.ask_blocks(peer, timeout_s=TIMEOUT_S) as stream:
            return await _answers(stream, roots)
    except (QueryError, RemoteProtocolError, trio.TooSlowError) as error:
        _note_silence(peer, error)
        return set()


@dataclass(slots=True, eq=False)
class _Wait:
    """Somebody waits until a peer holds a blob.

    Attributes:
        next_s: when the peer is asked next.
        pause_s: until it is asked again.
        is_held: it has said so.
        woken: set when that changes, or when somebody else has to ask.
    """

    root: Cid
    next_s: float
    pause_s: float = ASK_FIRST_S
    is_held: bool = False
    woken: trio.Event = field(default_factory=trio.Event)

    def ask_later(self, now_s: float) -> None:
        self.next_s = now_s + self.pause_s
        self.pause_s = min(2 * self.pause_s, ASK_AT_MOST_S)


@dataclass(slots=True, eq=False)
class _Waits:
    """All that wait for one peer; one of them asks, if ``is_led``, and looks for others when one ``joined``."""

    waits: list[_Wait] = field(default_factory=list)
    is_led: bool = False
    joined: trio.Event = field(default_factory=trio.Event)

    def next_s(self) -> float:
        return min((wait.next_s for wait in self.waits if not wait.is_held), default=math.inf)

    def due(self, now_s: float) -> list[_Wait]:
        return [wait for wait in self.waits if not wait.is_held and wait.next_s <= now_s][:MOST_ROOTS]


class Holders:
    """See the module."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._waits: dict[PeerId, _Waits] = {}

    async def wait_for(self, peer: PeerId, root: Cid) -> None:
        """Ask a peer time and again, ever less often, until it says that it holds a blob."""
        waits = self._waits.setdefault(peer, _Waits())
        wait = _Wait(root, trio.current_time())
        waits.waits.append(wait)
        waits.joined.set()
        try:
            while not wait.is_held:
                if waits.is_led:
                    wait.woken = trio.Event()
                    await wait.woken.wait()
                    continue
                waits.is_led = True
                try:
                    await self._lead(peer, waits, wait)
                finally:
                    waits.is_led = False
        finally:
            waits.waits.remove(wait)
            if not waits.waits:
                del self._waits[peer]
            elif not waits.is_led:
                waits.waits[0].woken.set()

    async def _lead(self, peer: PeerId, waits: _Waits, own: _Wait) -> None:
        """Ask for all that wait for a peer, until it holds what one of them waits for."""
        while not own.is_held:
            await self._until_due(waits)
            try:
                async with self._network.ask_blocks(peer, timeout_s=TIMEOUT_S) as stream:
                    while not own.is_held and waits.next_s() <= trio.current_time() + IDLE_S:
                        await self._until_due(waits)
                        await self._ask(stream, waits)
            except (QueryError, RemoteProtocolError, trio.TooSlowError) as error:
                _note_silence(peer, error)
                for wait in waits.due(trio.current_time()):
                    wait.ask_later(trio.current_time())

    async def _until_due(self, waits: _Waits) -> None:
        """Wait until the peer is to be asked for something."""
        while (next_s := waits.next_s()) > trio.current_time():
            waits.joined = trio.Event()
            with trio.move_on_at(next_s):
                await waits.joined.wait()

    async def _ask(self, stream: BlockAsking, waits: _Waits) -> None:
        due = waits.due(trio.current_time())
        held = await _answers(stream, {wait.root for wait in due})
        for wait in due:
            wait.is_held = wait.root in held
            if wait.is_held:
                wait.woken.set()
            else:
                wait.ask_later(trio.current_time())


async def _answers(stream: BlockAsking, roots: Collection[Cid]) -> set[Cid]:
    """Those of some blobs that the peer says it holds."""
    await stream.ask(list(roots), presence_only=True)
    held: set[Cid] = set()
    with trio.fail_after(TIMEOUT_S):
        for _ in roots:
            outcome = await stream.receive()
            if isinstance(outcome, HasBlock):
                held.add(outcome.cid)
    return held


def _note_silence(peer: PeerId, error: Exception) -> None:
    logger.debug("peer %s does not say what it holds: %s", short(peer), error)
