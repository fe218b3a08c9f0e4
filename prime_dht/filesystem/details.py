"""What an entry says of the file or directory that it is: what ``info`` and ``ls`` of fsspec return."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal, TypedDict

from prime_dht.blobs.cid import Cid
from prime_dht.errors import ValidationError
from prime_dht.filesystem.paths import is_name, is_root
from prime_dht.ids import US_PER_S, OpId, peer_text
from prime_dht.node.results import Found

DIRECTORY = "inode/directory"
"""The media type of an entry that is a directory."""


class Details(TypedDict, total=False):
    """The first three of all, the others of what has an entry.

    ``cid`` names a file's content, also where that is too small to be a blob: the same CID is the same bytes.
    Times are in seconds since the Unix epoch.
    """

    name: str
    size: int
    type: Literal["file", "directory"]
    mtime: float
    expires_at: float
    publisher: str
    cid: str
    content_type: str


def is_directory(found: Found) -> bool:
    """Whether an entry is a directory."""
    return found.content_type == DIRECTORY


def details_of_root(path: str) -> Details:
    """Of a directory that has no entry."""
    return Details(name=path, size=0, type="directory")


def details_of(path: str, found: Found) -> Details:
    """Of what is at a path.

    Raises:
        ValidationError: it refers to a blob by what is no CID.
    """
    details = Details(
        name=path,
        size=0,
        type="directory",
        mtime=found.created_at_us / US_PER_S,
        expires_at=found.expires_at_us / US_PER_S,
        publisher=peer_text(found.publisher),
    )
    if not is_directory(found):
        details["type"] = "file"
        details["size"] = size_of(found)
        details["cid"] = str(cid_of(found))
        details["content_type"] = found.content_type
    return details


def size_of(found: Found) -> int:
    """The bytes of a file."""
    return len(found.value) if found.blob is None else found.blob.size


def cid_of(found: Found) -> Cid:
    """The name of a file's content.

    Raises:
        ValidationError: it refers to a blob by what is no CID.
    """
    return Cid.of_raw(found.value) if found.blob is None else Cid.from_bytes(found.blob.cid)


class Listing:
    """What the directory at a path holds, as entries come: of each name the newest, without its content.

    Anybody may have put anything under its key. What has no name that a file can have, or a root's, or no CID, is left
    out.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._newest: dict[bytes, tuple[int, OpId, Details | None]] = {}

    def add(self, entries: Iterable[Found]) -> None:
        for found in entries:
            other = self._newest.get(found.subkey)
            if other is None or other[:2] < (found.created_at_us, found.op_id):
                self._newest[found.subkey] = (found.created_at_us, found.op_id, self._details_of(found))

    def details(self) -> list[Details]:
        """By name."""
        return sorted((one for *_, one in self._newest.values() if one is not None), key=lambda one: one["name"])

    def _details_of(self, found: Found) -> Details | None:
        try:
            name = found.subkey.decode()
            path = f"{self._path}/{name}" if self._path else name
            return details_of(path, found) if is_name(name) and not is_root(path) else None
        except (UnicodeDecodeError, ValidationError):
            return None


def modified_at(details: Details) -> datetime:
    """When it was written."""
    return datetime.fromtimestamp(details["mtime"], UTC)


def digest_of(details: Details) -> bytes:
    """32 bytes that are the same as long as it has not changed: for a file, as long as its content is the same."""
    if details["type"] == "file":
        return Cid.from_text(details["cid"]).digest
    return hashlib.sha256(repr(details).encode()).digest()
