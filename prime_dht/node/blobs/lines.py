"""Whose turn it is to ask a peer for blocks.

A peer serves a few streams of one node (:data:`prime_dht.net.block_server.SERVED_OF_PEER`), and resets what is opened
beyond. A node may have more fetches under way, for whoever reads blobs as streams decides how many. So each fetch has a
*line* to each peer that it asks, and of the lines to one peer only :data:`LINES_OF_PEER` have a *turn* at a time, and a
stream with it. The others are held up, and get their turns in the order in which they came.

A turn lasts for as long as nobody waits for it. Else it is over as soon as nothing is asked on the line, as when blocks
wait for a slow reader; and a line that has had it for :data:`TURN_S` asks for nothing more, so that soon nothing is. So
readers may wait for each other, and a fetch that takes hours keeps nobody waiting for as long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Protocol

import trio

from prime_dht.blobs.actions import Ask, Cancel
from prime_dht.blobs.cid import Cid
from prime_dht.ids import PeerId
from prime_dht.net.block_server import SERVED_OF_PEER

LINES_OF_PEER = SERVED_OF_PEER - 2
"""With a turn at a time. The rest is for asking a peer whether it holds what was put."""

TURN_S = 5.0
"""For so long a line may ask for more while others wait; to take turns costs a stream and what its windows bring."""


class OnTurns(Protocol):
    """Is told, at once, when a line is held up and when it has its turn."""

    def held_up(self, peer: PeerId, cids: Collection[Cid]) -> None:
        """The line has not its turn, or soon no more; these blocks the peer was not asked for."""
        ...

    def has_turn(self, peer: PeerId) -> None:
        """The line was held up and is so no longer."""
        ...


class Lines:
    """The lines to one peer."""

    def __init__(self) -> None:
        self._turns = trio.CapacityLimiter(LINES_OF_PEER)
        self._idle: dict[Line, None] = {}  # those that have a turn on which nothing is asked, the longest first

    @property
    def is_awaited(self) -> bool:
        """Whether a line waits for its turn."""
        return self._turns.statistics().tasks_waiting > 0

    @asynccontextmanager
    async def turn(self, line: Line) -> AsyncIterator[None]:
        """Wait for a line's turn; it has it until the block ends."""
        await trio.lowlevel.checkpoint()
        try:
            self._turns.acquire_on_behalf_of_nowait(line)
        except trio.WouldBlock:
            line.hold_up()
            for idle in list(self._idle)[:1]:
                idle.end_turn()
            await self._turns.acquire_on_behalf_of(line)
        try:
            line.begin_turn()
            yield
        finally:
            self.busy(line)
            self._turns.release_on_behalf_of(line)

    def idle(self, line: Line) -> None:
        """Nothing is asked on a line that has its turn."""
        self._idle[line] = None

    def busy(self, line: Line) -> None:
        """Something is asked on it, or it has no turn any more."""
        self._idle.pop(line, None)


class Line:
    """What one fetch has to say to one provider."""

    def __init__(self, peer: PeerId, lines: Lines, on_turns: OnTurns) -> None:
        self.peer = peer
        self.scope = trio.CancelScope()
        self.lines = lines
        self.has_turn = False
        self._on_turns = on_turns
        self._to_say: deque[Ask | Cancel] = deque()  # the plan bounds what is asked, and cancels only that
        self._asked: set[Cid] = set()  # what was said, and neither answered nor cancelled
        self._is_held_up = False
        self._ends_at_s = 0.0
        self._changed = trio.Event()

    def say(self, action: Ask | Cancel) -> None:
        self._to_say.append(action)
        self.lines.busy(self)
        self._changed.set()

    async def wait(self) -> None:
        """Wait until it needs a turn."""
        while not (self._to_say or self._is_held_up):
            await self._change()

    async def next(self) -> Ask | Cancel | None:
        """What to say next; ``None`` when the turn is over."""
        while self.has_turn:
            if self._to_say and isinstance(self._to_say[0], Ask) and self._is_time_up():
                self.hold_up()
            elif self._to_say:
                action = self._to_say.popleft()
                if isinstance(action, Ask):
                    self._asked.update(action.cids)
                else:
                    self._asked.difference_update(action.cids)
                return action
            else:
                await self._change()
        return None

    def answered(self, cid: Cid) -> None:
        """The peer has said what becomes of a block, and the plan has heard it."""
        self._asked.discard(cid)

    def rest(self) -> None:
        """The plan has no more to say for now. If nothing is asked, the turn is over, or will be once others wait."""
        if not self.has_turn or self._is_asked():
            return
        if self._is_held_up or self.lines.is_awaited:
            self.end_turn()
        else:
            self.lines.idle(self)

    def begin_turn(self) -> None:
        self.has_turn = True
        self._ends_at_s = trio.current_time() + TURN_S
        if self._is_held_up:
            self._is_held_up = False
            self._on_turns.has_turn(self.peer)

    def end_turn(self) -> None:
        """Nothing more is said; :meth:`next` tells. With the stream goes what is cancelled and was not said to be."""
        self.has_turn = False
        self._to_say.clear()
        self._asked.clear()
        self.lines.busy(self)
        self._changed.set()

    def hold_up(self) -> None:
        """Ask for nothing more before the next turn."""
        unsaid = [cid for action in self._to_say if isinstance(action, Ask) for cid in action.cids]
        self._to_say = deque(action for action in self._to_say if isinstance(action, Cancel))
        self._is_held_up = True
        self._on_turns.held_up(self.peer, unsaid)

    def _is_asked(self) -> bool:
        """Whether something is asked, or to be, that is not to be cancelled."""
        if any(isinstance(action, Ask) for action in self._to_say):
            return True
        return not self._asked.issubset(cid for action in self._to_say for cid in action.cids)

    def _is_time_up(self) -> bool:
        return self.lines.is_awaited and trio.current_time() >= self._ends_at_s

    async def _change(self) -> None:
        self._changed = trio.Event()
        await self._changed.wait()
