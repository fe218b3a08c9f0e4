"""A member of a simulated swarm: a machine, what runs on it, and what its owner has under way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from prime_dht.entries.entry import Slot
from prime_dht.ids import Key, PeerId, wire_key
from prime_dht.node.core import Node
from prime_dht.testing.simulation.disc import Disc
from prime_dht.testing.swarm import Machine


@dataclass(slots=True, eq=False, kw_only=True)
class Member:
    """See the module.

    Attributes:
        disc: the machine's, until it is lost.
        node: what runs on the machine now.
        has_left: it will not come back.
        doubts: how often what was on its disc ceased to count: the disc was lost, or the clock it is told was wrong.
        is_clock_wrong: whether that is so now.
        lives: how often its store was lost, or what it wrote forgotten. A writer that forgot that cannot date its
            entries after it, so a member writes to other slots in each life.
    """

    number: int
    machine: Machine
    disc: Disc
    is_server: bool
    is_liar: bool
    node: Node | None = None
    has_left: bool = False
    lives: int = 0
    doubts: int = 0
    is_clock_wrong: bool = False
    _under_way: dict[int, trio.CancelScope] = field(default_factory=dict)
    _operations: int = 0
    _writes: Counter[Slot] = field(default_factory=Counter)

    @property
    def peer(self) -> PeerId:
        return self.machine.peer

    @property
    def is_trusted_server(self) -> bool:
        """Whether it is there, and what it stores counts."""
        return self.is_server and not self.is_liar and not self.has_left and not self.is_clock_wrong

    def slot(self, key: Key) -> Slot:
        """Where it writes in this life."""
        return Slot(key, self.peer, b"%d" % self.lives)

    @contextmanager
    def operation(self) -> Iterator[None]:
        """The block is an operation of the node that runs now, and is cut short when that dies."""
        self._operations += 1
        number = self._operations
        with trio.CancelScope() as self._under_way[number]:
            try:
                yield
            finally:
                del self._under_way[number]

    def writes(self, slot: Slot) -> int:
        """It begins to write a slot; the number of this write."""
        self._writes[slot] += 1
        return self._writes[slot]

    def is_last_write(self, slot: Slot, number: int) -> bool:
        """Whether it has not begun another since."""
        return self._writes[slot] == number

    def cut_short(self) -> None:
        """End all operations under way."""
        for scope in self._under_way.values():
            scope.cancel()

    def __str__(self) -> str:
        return f"m{self.number}"


def key_of(number: int) -> Key:
    """A key of the workload."""
    return wire_key(f"key {number}")
