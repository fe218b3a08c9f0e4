"""What a block store says: of a root, of itself, of its room."""

from __future__ import annotations

from dataclasses import dataclass

from prime_dht.blobs.cid import Cid
from prime_dht.errors import StorageError
from prime_dht.storage.blocks_index import RootRow

ARE_UNKEPT = "blobs.unkept"
"""The node metadata, of an entry store, that is not empty while it may hold entries without the claims that they need
in the block store beside it. A node that starts then goes through all entries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RootStatus:
    """How much of a root is there.

    Attributes:
        id: of the root since it was claimed; if nobody claims it for a while, the next that do make another.
        size_bytes: of all its blocks, as declared by whoever claimed it first or settled it.
        present_blocks, present_bytes: of what it uses and is there; of a partial root other blocks may be there too,
            until they are adopted.
        is_complete: all that it uses is there.
    """

    root: Cid
    id: int
    size_bytes: int
    present_blocks: int
    present_bytes: int
    is_complete: bool


def status_of(row: RootRow) -> RootStatus:
    """A root, from its row in the index."""
    return RootStatus(
        root=Cid.from_bytes(row.cid),
        id=row.id,
        size_bytes=row.size_bytes,
        present_blocks=row.present_blocks,
        present_bytes=row.present_bytes,
        is_complete=row.is_complete,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What one call of :meth:`BlockStore.collect` removed, and whether there may be more."""

    blocks: int
    bytes: int
    is_all: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockStats:
    """What the store holds, garbage included, and what it may."""

    blocks: int
    bytes: int
    max_bytes: int


class NoRoomError(StorageError):
    """The store has no room for more blocks.

    Attributes:
        wanted_bytes: what was to be added.
        room_bytes: what could be.
    """

    def __init__(self, wanted_bytes: int, room_bytes: int, max_bytes: int) -> None:
        super().__init__(
            f"no room for {wanted_bytes} bytes of blocks: of {max_bytes} bytes, {max(0, room_bytes)} are free"
        )
        self.wanted_bytes = wanted_bytes
        self.room_bytes = room_bytes
        self._max_bytes = max_bytes

    def __reduce__(self) -> tuple[type[NoRoomError], tuple[int, int, int]]:
        """By its numbers: by default it would be by its text, which is none, and a pool of processes would hang."""
        return type(self), (self.wanted_bytes, self.room_bytes, self._max_bytes)
