"""What a node does to its own entry at a path: one thing after the other.

Renewing puts again what is there; a write between its look-up and its put would be undone. No other node writes there.

A blob is first put into a slot beside, whose replicas are the same, and the file's entry when enough of them hold it.
So a writer that is killed, or whose blob nobody takes, leaves the file as it was; and who sees an entry can read it.
"""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakValueDictionary

import trio

from prime_dht.blobs.chunking import TensorChunker
from prime_dht.entries.entry import BlobRef
from prime_dht.errors import PrimeDHTError
from prime_dht.filesystem.paths import Place, name_of, place_of
from prime_dht.node.blobs.putting import Value, chained, opened, read_ahead

if TYPE_CHECKING:
    from prime_dht.node import PrimeDHT
    from prime_dht.node.blobs.fetch import OnProgress
    from prime_dht.node.results import PutReceipt

AHEAD_SLOTS = 8
"""In a directory, for blobs that have no name yet: so many can be put there at a time."""

CLEARING_S = 5.0
"""To empty such a slot, at most; if that fails, it ends with what was to be the file's life."""

_turns: WeakKeyDictionary[PrimeDHT, WeakValueDictionary[Place, trio.Lock]] = WeakKeyDictionary()


def turn(dht: PrimeDHT, place: Place) -> trio.Lock:
    """The lock to hold while changing what a node has at a place; in its thread."""
    return _turns.setdefault(dht, WeakValueDictionary()).setdefault(place, trio.Lock())


async def put(
    dht: PrimeDHT,
    path: str,
    content: Value,
    *,
    content_type: str,
    expires_at_s: float,
    capability: bytes,
    progress: OnProgress | None = None,
) -> PutReceipt:
    """Put an entry, while it is this one's turn; of a blob, when replicas hold it.

    Returns:
        the receipt; if too few replicas hold the blob, that of another entry, and nothing has changed at the path.
    """
    place, name = place_of(path), name_of(path)

    def statement(value: Value) -> Awaitable[PutReceipt]:
        return dht.put(
            place.key,
            value,
            subkey=place.subkey,
            expires_at=expires_at_s,
            metadata={"name": name},
            content_type=content_type,
            capability=capability,
        )

    if isinstance(content, BlobRef):
        return await statement(content)
    async with opened(content) as pieces:
        head, is_all = await read_ahead(pieces, dht.config.limits.max_inline_bytes)
        if is_all:
            return await statement(head)
        ahead = _ahead_of(place)
        async with turn(dht, ahead):
            try:
                receipt = await dht.put(
                    ahead.key,
                    content if isinstance(content, bytes | Path) else chained(head, pieces),
                    subkey=ahead.subkey,
                    expires_at=expires_at_s,
                    capability=capability,
                    chunker=TensorChunker.name if name.endswith(".safetensors") else None,
                    progress=progress,
                )
                if receipt.blob is None or not receipt.acknowledged:
                    return receipt
                return await statement(receipt.blob)
            finally:
                deadline_s = trio.current_time() + CLEARING_S
                with trio.CancelScope(deadline=deadline_s, shield=True), suppress(PrimeDHTError):
                    await dht.delete(ahead.key, subkey=ahead.subkey, capability=capability)


def _ahead_of(place: Place) -> Place:
    """Where a blob is put before it has its name: with the same replicas, in a slot that is no file's."""
    return Place(place.key, b"\0" + bytes([sha256(place.subkey).digest()[0] % AHEAD_SLOTS]))
