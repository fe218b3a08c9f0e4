"""Locks for the slots that a node writes: two writes of one slot must not both follow the same predecessor.

Writes of different slots go on side by side, so that they share a commit of the store. But while one waits for another
of its slot, none that came later is let in: what is written of a slot is signed in the order in which it came, whatever
else is written with it. On that relies whoever keeps entries alive (:mod:`prime_dht.node.keeper`).
"""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakValueDictionary

import trio

from prime_dht.entries.entry import Slot


class SlotLocks:
    """See the module."""

    def __init__(self) -> None:
        self._let_in = trio.Lock()
        self._locks: WeakValueDictionary[Slot, trio.Lock] = WeakValueDictionary()

    async def take(self, slots: Iterable[Slot]) -> list[trio.Lock]:
        """The locks of some slots, which the caller releases."""
        taken: list[trio.Lock] = []
        await _acquire(self._let_in)
        try:
            for slot in set(slots):
                lock = self._locks.setdefault(slot, trio.Lock())
                await _acquire(lock)
                taken.append(lock)
        except BaseException:  # trio.Cancelled, or Ctrl-C
            for lock in taken:
                lock.release()
            raise
        finally:
            self._let_in.release()
        return taken


async def _acquire(lock: trio.Lock) -> None:
    try:
        lock.acquire_nowait()  # waiting, even for what is free, costs a reschedule
    except trio.WouldBlock:
        await lock.acquire()
