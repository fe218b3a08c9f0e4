"""What a fetch plan tells its driver to do; see :mod:`prime_dht.blobs.plan` for when."""

from __future__ import annotations

from dataclasses import dataclass, field

from prime_dht.blobs.cid import BlockBytes, Cid
from prime_dht.ids import PeerId


@dataclass(frozen=True, slots=True)
class Look:
    """Look for these blocks in the store; report ``on_present`` or ``on_absent`` for each."""

    cids: tuple[Cid, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the provider for these blocks; report ``on_block``, ``on_not_have`` or ``on_busy`` for each."""

    provider: PeerId
    cids: tuple[Cid, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    """These blocks are no longer wanted from the provider. What it sends nevertheless may be reported or not."""

    provider: PeerId
    cids: tuple[Cid, ...]


@dataclass(frozen=True, slots=True)
class Store:
    """Store the block, which is verified; report ``on_stored``."""

    cid: Cid
    data: BlockBytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class DropProvider:
    """The provider is no longer asked, and what was asked of it no longer wanted; ``is_hostile`` if it sent lies."""

    provider: PeerId
    reason: str
    is_hostile: bool


@dataclass(frozen=True, slots=True)
class FindProviders:
    """Search for providers of the blob; report ``on_provider`` for each, then ``on_search_ended``."""


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Nothing more to do until something happens, or until this time; then call ``next`` again."""

    at_us: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Every block of the walk is in the store."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Nobody is left from whom the rest can be had; ``reason`` says what was tried. A later fetch goes on from here."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The blob breaks a rule of DAGs, whoever provides it."""

    reason: str


End = Finished | Failed | Refused
Action = Look | Ask | Cancel | Store | DropProvider | FindProviders | WaitUntil | End


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a fetch is.

    Attributes:
        size_bytes: of what is walked, the blob or a part of it; ``None`` until it is known.
        settled_bytes: of these, those whose blocks are in the store; at the end all.
        fetched_bytes, fetched_blocks: what providers brought, nodes included.
        fetched_parts: that were reported of blocks which take their time, whether or not these came to their end.
    """

    size_bytes: int | None
    settled_bytes: int
    fetched_bytes: int
    fetched_blocks: int
    fetched_parts: int
