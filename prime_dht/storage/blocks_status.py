"""What a block store says of a root."""

from __future__ import annotations

from dataclasses import dataclass

from prime_dht.blobs.cid import Cid
from prime_dht.storage.blocks_index import RootRow


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
