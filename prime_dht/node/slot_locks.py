"""Locks for the slots that a node writes: two writes of one slot must not both follow the same predecessor.

Writes of different slots go on side by side, so that they share a commit of the store. But while one waits for another
of its slot, none that came later is let in: what is written of a slot is signed in the order in which it came, whatever
else is written with it. On that relies whoever keeps entries alive (:mod:`prime_dht.node.keeper`).
"""

from __future__ import annotations

from collections.abc import Collection

import trio

from prime_dht.entries.entry import Slot


class SlotLocks:
    """See the module."""

    def __init__(self) -> None:
        self._let_in = trio.Lock()
        self._taken: set[Slot] = set()
        self._given_back = trio.lowlevel.ParkingLot()  # for the one that is about to be let in

    async def take(self, slots: Collection[Slot]) -> None:
        """Wait until nobody writes any of these slots; the caller then does, until :meth:`give_back`."""
        try:
            self._let_in.acquire_nowait()  # waiting, even for what is free, costs a reschedule
        except trio.WouldBlock:
            await self._let_in.acquire()
        try:
            while not self._taken.isdisjoint(slots):
                await self._given_back.park()
            self._taken.update(slots)
        finally:
            self._let_in.release()

    def give_back(self, slots: Collection[Slot]) -> None:
        """These slots are written no longer."""
        self._taken.difference_update(slots)
        self._given_back.unpark_all()
