"""Blocks in hand: those that were loaded to be sent and are not sent yet, which is the memory that serving them takes.

So many there may be at a time, and so few of them one peer's. Whoever has more to send waits for a turn: first among
the streams of its peer, then among all. Turns come in the order of waiting, so each peer gets its blocks one after
another, as fast as those before it are taken, however many peers want some and however many streams they have.

A block that others wait for has to be taken within :data:`OFFERED_S`. To keep others waiting for so long, strangers
have to hold all turns, under one id for each :data:`IN_HAND_OF_PEER` of them, and to take half a mebibyte a second.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from prime_dht.net.streams import StreamLostError

IN_HAND = 32
"""Blocks of 1 MiB, or 2 MiB at most. They share this end's uplink, and fetches give up who takes a minute for one: with
twice as many an uplink of 0.7 MB/s brought hardly any block to its end."""

IN_HAND_OF_PEER = 3
"""A stream has two: one is being sent while another is loaded. So one that is slow holds up no other of its peer."""

OFFERED_S = 60.0
"""In which a block has to be taken while others wait. A fetch gives up a provider that takes as long for 1 MiB."""


class BlocksInHand:
    """Those of a server."""

    def __init__(self) -> None:
        self._turns = trio.CapacityLimiter(IN_HAND)
        self._offered_at_s: dict[trio.CancelScope, float] = {}

    async def acquire(self, turn: object) -> None:
        if self._turns.available_tokens == 0:
            for scope, offered_at_s in self._offered_at_s.items():
                scope.deadline = offered_at_s + OFFERED_S
        await self._turns.acquire_on_behalf_of(turn)

    def release(self, turn: object) -> None:
        self._turns.release_on_behalf_of(turn)

    @contextmanager
    def offering(self) -> Iterator[None]:
        """While a block is being sent.

        Raises:
            StreamLostError: it was not taken in time, and others waited.
        """
        now_s = trio.current_time()
        is_wanted = self._turns.statistics().tasks_waiting > 0
        scope = trio.CancelScope(deadline=now_s + OFFERED_S if is_wanted else math.inf)
        self._offered_at_s[scope] = now_s
        try:
            with scope:
                yield
        finally:
            del self._offered_at_s[scope]
        if scope.cancelled_caught:
            raise StreamLostError(f"the peer did not take a block in {OFFERED_S:g} s, and others waited")


class Hand:
    """What one stream has in hand, in the order in which it was loaded.

    Args:
        in_all: of the server.
        of_peer: the turns of the stream's peer, :data:`IN_HAND_OF_PEER` of them.
    """

    def __init__(self, in_all: BlocksInHand, of_peer: trio.CapacityLimiter) -> None:
        self._in_all = in_all
        self._of_peer = of_peer
        self._turns: deque[object] = deque()

    async def take(self) -> None:
        """Wait for a turn to load one more."""
        turn = object()
        await self._of_peer.acquire_on_behalf_of(turn)
        try:
            await self._in_all.acquire(turn)
        except trio.Cancelled:
            self._of_peer.release_on_behalf_of(turn)
            raise
        self._turns.append(turn)

    def put_back(self) -> None:
        """There is nothing to load any more with the turn that was taken last."""
        self._end(self._turns.pop())

    @contextmanager
    def giving(self) -> Iterator[None]:
        """While the one that was loaded first is being sent; it is no longer in hand afterwards.

        Raises:
            StreamLostError: it was not taken in time, and others waited.
        """
        try:
            with self._in_all.offering():
                yield
        finally:
            self._end(self._turns.popleft())

    def let_go_of_all(self) -> None:
        """The stream is over."""
        while self._turns:
            self._end(self._turns.pop())

    def _end(self, turn: object) -> None:
        self._in_all.release(turn)
        self._of_peer.release_on_behalf_of(turn)
