"""What a caller names blobs with, and parts of them; a ValidationError says what is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path

from prime_dht.blobs.cid import Cid
from prime_dht.entries.entry import BlobRef
from prime_dht.errors import ValidationError
from prime_dht.ids import Key, wire_key
from prime_dht.node.arguments import bytes_of, whole_number_of
from prime_dht.node.results import Found

CidLike = Cid | BlobRef | bytes | str | Found
"""A CID as such, in its binary form of 36 bytes, or as text; what a receipt says of a blob; or a find whose value is
one, which also says who should have it. Without that, providers have to be searched for."""


def cid_of(cid: CidLike) -> Cid:
    """A CID.

    Raises:
        ValidationError: it is none that a blob could have, or the find is of none.
    """
    if isinstance(cid, Found):
        if cid.blob is None:
            raise ValidationError("the value is in the entry, and no blob")
        cid = cid.blob
    if isinstance(cid, BlobRef):
        cid = cid.cid
    if isinstance(cid, Cid):
        return cid
    if isinstance(cid, str):
        return Cid.from_text(cid)
    return Cid.from_bytes(bytes_of("a CID", cid, or_else=", text, a find or a BlobRef"))


def size_in(cid: CidLike) -> int | None:
    """How many bytes a blob has, as far as its entry says."""
    blob = cid.blob if isinstance(cid, Found) else cid
    return blob.size if isinstance(blob, BlobRef) else None


def blob_key(root: Cid) -> Key:
    """The key of the entry that a bare ``add`` writes: ``/prime/blob/<cid>``."""
    return wire_key(f"blob/{root}")


def name_of(path: Path) -> str:
    """What a file is called, as text: a file system has names that are none.

    >>> name_of(Path("somewhere") / os.fsdecode(b"caf\\xe9.bin")) == "caf\\N{REPLACEMENT CHARACTER}.bin"
    True
    """
    return os.fsencode(path.name).decode(errors="replace")


def part_of(start: int, stop: int | None) -> tuple[int, int | None]:
    """The bytes [start, stop) of a blob; that there are such is checked when it is read.

    Raises:
        ValidationError: one of them is no whole number.

    >>> part_of(1, None)
    (1, None)
    >>> part_of(1.5, None)
    Traceback (most recent call last):
    prime_dht.errors.ValidationError: start is a whole number, not float
    """
    return whole_number_of("start", start), None if stop is None else whole_number_of("stop", stop)
