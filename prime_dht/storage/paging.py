"""How a key's slots are cut into pages, the same for every backend here.

Slots of one key are read in the order of their *place*, (publisher, subkey), compared as bytes. A cursor names the
place of the last entry of a page; the next page starts behind it, so a slot that is written, filled or emptied in
between neither shifts nor repeats the others. Cursors travel to peers and come back, so they are checked like anything
else a peer sends.

>>> cursor = encode_cursor(PeerId(b"peer"), b"worker-1")
>>> cursor
b'\\x00\\x04peerworker-1'
>>> decode_cursor(cursor)
(b'peer', b'worker-1')
"""

from __future__ import annotations

from collections.abc import Iterable

from prime_dht.entries.entry import Entry
from prime_dht.errors import ValidationError
from prime_dht.ids import OpId, PeerId
from prime_dht.storage.base import EntryPage

Place = tuple[PeerId, bytes]
"""Where a slot lies among those of its key: (publisher, subkey)."""

_LENGTH_BYTES = 2
_TIME_BYTES = 8


def encode_cursor(publisher: PeerId, subkey: bytes) -> bytes:
    """The cursor that continues behind the slot of ``publisher`` and ``subkey``."""
    return len(publisher).to_bytes(_LENGTH_BYTES, "big") + publisher + subkey


def decode_cursor(cursor: bytes) -> Place | None:
    """The place behind which to continue; ``None`` for the empty cursor, which starts at the first slot.

    Raises:
        ValidationError: :func:`encode_cursor` does not make such a cursor.
    """
    if not cursor:
        return None
    split = _LENGTH_BYTES + int.from_bytes(cursor[:_LENGTH_BYTES], "big")
    if len(cursor) < max(split, _LENGTH_BYTES + 1):
        raise ValidationError("the cursor is none that a page ended with")
    return PeerId(cursor[_LENGTH_BYTES:split]), cursor[split:]


def take_page(entries: Iterable[Entry], max_bytes: int) -> EntryPage:
    """The longest page of at most ``max_bytes`` from the start of ``entries``, or the first entry if it alone is more.

    Takes no more from ``entries`` than it needs to know that the page is full.
    """
    taken: list[Entry] = []
    size_bytes = 0
    for entry in entries:
        size_bytes += entry.size_bytes
        if taken and size_bytes > max_bytes:
            last = taken[-1]
            return EntryPage(tuple(taken), encode_cursor(last.publisher, last.header.subkey))
        taken.append(entry)
    return EntryPage(tuple(taken))


def encode_version(created_at_us: int, op_id: OpId) -> bytes:
    """The cursor of a scan of ops that continues behind one version.

    >>> decode_version(encode_version(100, OpId(b"op id")))
    (100, b'op id')
    """
    return created_at_us.to_bytes(_TIME_BYTES, "big") + op_id


def decode_version(cursor: bytes) -> tuple[int, OpId] | None:
    """The version behind which to continue; ``None`` for the empty cursor. These cursors never leave this node."""
    return (int.from_bytes(cursor[:_TIME_BYTES], "big"), OpId(cursor[_TIME_BYTES:])) if cursor else None
