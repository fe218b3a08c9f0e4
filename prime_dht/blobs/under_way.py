"""The blocks of a fetch that are under way: from when they are drawn from the walk until they are in the store.

::

    LOOKING --absent--> WANTED --asked--> ASKED --verified--> STORING --stored--> gone
       |                  ^                 |
       +--present--> gone +-----------------+  stalled, gone, dropped, busy, not had

What is wanted is asked for in this order: nodes, and then leaves as they were drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from heapq import heappop, heappush

from prime_dht.blobs.cid import Cid, Codec
from prime_dht.blobs.unixfs import MAX_BLOCK_BYTES
from prime_dht.ids import PeerId

NODE_BYTES = 64 << 10
"""What a node is taken to have before it has come: a full one has 51 kB."""


class State(Enum):
    """How far a block is."""

    LOOKING = auto()
    WANTED = auto()
    ASKED = auto()
    STORING = auto()


@dataclass(slots=True)
class BlockUnderWay:
    """One block, and how far it is.

    Attributes:
        size: of a leaf; ``None`` if it is not told before the block has come.
        budget_bytes: what it is taken to have.
        order: its place among those that are wanted.
        content_bytes: what it is of what is walked; more than the size if the block is there several times.
        places: how often it was drawn.
        asked_of: who was asked and has not answered, at most two.
        lacking: who said that it has not the block.
    """

    cid: Cid
    size: int | None
    budget_bytes: int
    order: tuple[bool, int]
    content_bytes: int = 0
    places: int = 0
    state: State = State.LOOKING
    asked_at_us: int = 0
    asked_of: list[PeerId] = field(default_factory=list)
    lacking: set[PeerId] = field(default_factory=set)


class UnderWay:
    """All of them. Every step takes a constant number of operations, or as many as a heap's.

    Attributes:
        bytes, places: of all, a leaf as often as it was drawn: each time it is to be put somewhere.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.places = 0
        self._blocks: dict[Cid, BlockUnderWay] = {}
        self._wanted: list[tuple[tuple[bool, int], Cid]] = []  # a heap; may name blocks that are wanted no more
        self._counts = dict.fromkeys(State, 0)
        self._drawn = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, cid: Cid) -> bool:
        return cid in self._blocks

    def count(self, *states: State) -> int:
        """How many blocks are so far."""
        return sum(self._counts[state] for state in states)

    def get(self, cid: Cid, *states: State) -> BlockUnderWay | None:
        """The block, if it is under way, and in one of these states if any are given."""
        block = self._blocks.get(cid)
        return block if block and (not states or block.state in states) else None

    def first(self) -> BlockUnderWay | None:
        """The block that was drawn before all others."""
        return next(iter(self._blocks.values()), None)

    def asked_of_one(self) -> list[BlockUnderWay]:
        """The blocks that are asked of one provider, the last drawn first."""
        return [block for block in reversed(self._blocks.values()) if len(block.asked_of) == 1]

    def first_wanted(self) -> BlockUnderWay | None:
        """The block to ask for next."""
        while self._wanted:
            order, cid = self._wanted[0]
            block = self.get(cid, State.WANTED)
            if block and block.order == order:
                return block
            heappop(self._wanted)
        return None

    def take_wanted(self) -> BlockUnderWay | None:
        """The block to ask for next; it must be asked for now, or be wanted again."""
        block = self.first_wanted()
        if block:
            heappop(self._wanted)
        return block

    def draw(self, cid: Cid, size: int | None) -> BlockUnderWay:
        """A block of the walk; it is looked for."""
        budget_bytes = size if size is not None else MAX_BLOCK_BYTES if cid.codec is Codec.RAW else NODE_BYTES
        self._drawn += 1
        block = BlockUnderWay(cid, size, budget_bytes, order=(size is not None, self._drawn))
        self._blocks[cid] = block
        self._counts[State.LOOKING] += 1
        self.bytes += budget_bytes
        self.places += 1
        return block

    def place(self, block: BlockUnderWay, size: int, content_bytes: int) -> None:
        """It is a leaf that the walk told, for the first time or again; so many of its bytes are of what is walked."""
        if block.places:
            self.bytes += size
            self.places += 1
        block.places += 1
        block.content_bytes += content_bytes

    def want(self, block: BlockUnderWay) -> None:
        """It has to be asked for."""
        self._move(block, State.WANTED)
        heappush(self._wanted, (block.order, block.cid))

    def ask(self, block: BlockUnderWay, peer: PeerId, now_us: int) -> None:
        """It is asked of a provider."""
        self._move(block, State.ASKED)
        block.asked_at_us = now_us
        block.asked_of.append(peer)

    def release(self, block: BlockUnderWay, peer: PeerId) -> None:
        """A provider will not bring it; if no other was asked, it is wanted."""
        if peer in block.asked_of:
            block.asked_of.remove(peer)
            if not block.asked_of:
                self.want(block)

    def store(self, block: BlockUnderWay) -> None:
        """It has come."""
        block.asked_of.clear()
        self._move(block, State.STORING)

    def settle(self, block: BlockUnderWay) -> None:
        """It is in the store, and no longer under way."""
        del self._blocks[block.cid]
        self._counts[block.state] -= 1
        again = max(block.places - 1, 0)
        self.bytes -= block.budget_bytes + again * (block.size or 0)
        self.places -= 1 + again

    def forget_lacks(self, peer: PeerId) -> None:
        """A provider may have now what it lacked."""
        for block in self._blocks.values():
            block.lacking.discard(peer)

    def _move(self, block: BlockUnderWay, state: State) -> None:
        self._counts[block.state] -= 1
        self._counts[state] += 1
        block.state = state
