"""How far a blob is on its way, for whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from prime_dht.blobs.cid import Cid


class Stage(Enum):
    """What is being done with a blob."""

    STORING = "storing"
    """A put cuts it into blocks and stores them here."""

    SPREADING = "spreading"
    """A put waits for replicas to fetch it."""

    FETCHING = "fetching"
    """It is brought here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobProgress:
    """How far it is.

    Attributes:
        cid: ``None`` as long as it is being cut into blocks.
        size_bytes: of its content, or of the part that is fetched; ``None`` as long as that is unknown.
        done_bytes: of these, what is stored: here, or where it is fetched to. While it spreads, what was sent to each
            replica, on average.
        fetched_bytes, fetched_blocks: what providers sent.
        fetched_parts: of blocks that take their time; while they do, this grows, and says no more than that.
        providers: that are asked now.
        elapsed_s: since this stage began.
        replicas_held, replicas_wanted: that hold it whole, while it spreads, and that have to.
    """

    stage: Stage
    cid: Cid | None
    size_bytes: int | None
    done_bytes: int
    fetched_bytes: int = 0
    fetched_blocks: int = 0
    fetched_parts: int = 0
    providers: int = 0
    elapsed_s: float = 0.0
    replicas_held: int = 0
    replicas_wanted: int = 0

    @property
    def bytes_per_s(self) -> float:
        """On average, since this stage began: fetched, or stored."""
        moved_bytes = self.fetched_bytes if self.stage is Stage.FETCHING else self.done_bytes
        return moved_bytes / self.elapsed_s if self.elapsed_s > 0 else 0.0


class ToldProgress:
    """Tells progress on, and whether there was any.

    Args:
        tell: is told it.
    """

    def __init__(self, tell: Callable[[BlobProgress], None]) -> None:
        self._tell = tell
        self.is_told = False

    def __call__(self, progress: BlobProgress) -> None:
        self.is_told = True
        self._tell(progress)
