"""Files and directories as entries: :class:`Tree`, which knows nothing of fsspec.

A **file** is an entry whose value, inline or a blob, is its content. A **directory** is an entry of the media type
``inode/directory`` without content. Each is under the key of the directory that it lies in
(:mod:`prime_dht.filesystem.paths`), so one lookup lists a directory. Of what several publishers have under one name the
newest is seen.

- Who writes a file also writes the directories above it, unless there are own ones that last as long. So the files of
  each publisher make a tree of their own, which is whole for a reader who trusts this publisher alone.
- A peer writes its own slots only. What another has written can be covered by something newer under the same name, and
  is seen again when that is removed or ends.
- All ends. A file lives for its ttl, a directory for twice the ttl of what made it necessary, so that it need not be
  written again with every file.

What is read is asked of the replicas, not of the node's cache; only own directories are taken from that.
Errors of the swarm are raised as :class:`OSError`, with the :class:`~prime_dht.PrimeDHTError` as their cause.
"""

from __future__ import annotations

import errno
import math
import mimetypes
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from prime_dht.blocking import BlockingDHT
from prime_dht.entries.access import OpenKey, OwnKey, key_rule
from prime_dht.entries.capability import check_capability, decode_capability
from prime_dht.errors import PrimeDHTError, ValidationError
from prime_dht.filesystem.changes import put, turn
from prime_dht.filesystem.details import DIRECTORY, Details, Listing, is_directory, size_of
from prime_dht.filesystem.errors import os_error, os_error_of, os_errors
from prime_dht.filesystem.paths import (
    TREES,
    directories_above,
    directory_key,
    is_root,
    is_too_deep,
    name_of,
    place_of,
)
from prime_dht.filesystem.together import together
from prime_dht.ids import US_PER_S, PeerId, peer_text

if TYPE_CHECKING:
    from prime_dht.blocking.call import Work
    from prime_dht.config import DhtConfig
    from prime_dht.node import PrimeDHT
    from prime_dht.node.blobs.progress import BlobProgress
    from prime_dht.node.blobs.putting import Value
    from prime_dht.node.results import Found, PutReceipt

T = TypeVar("T")

OnProgress = Callable[["BlobProgress"], None]

DIRECTORY_TTLS = 2
"""A directory lives so many times as long as what it is written for."""


class Tree:
    """See the module. All paths are normal.

    Args:
        dht: a client of the swarm.
        trusted: see only what these peers have written, and this one; everybody's by default.
        ttl_s: of what is written; the node's by default.
        capability: for what is written under ``group/``.
    """

    def __init__(
        self, dht: BlockingDHT, *, trusted: Collection[str] | None, ttl_s: float | None, capability: bytes
    ) -> None:
        self.dht = dht
        self._trusted = trusted
        self._ttl_s = ttl_s
        self._capability = capability

    @property
    def network_id(self) -> str:
        """The name of the swarm."""
        return self._config.network_id

    # Reading

    def find(self, path: str) -> Found:
        """The entry that is seen at a path, which is no root.

        Raises:
            FileNotFoundError: there is none.
            OSError: nobody can be asked.
        """
        return self.find_each([path])[path]

    def find_each(self, paths: Iterable[str]) -> dict[str, Found]:
        """As :meth:`find`, at several paths at the same time."""
        seen = self._all({path: self._seen(path) for path in paths})
        return {path: _there(path, found) for path, found in seen.items()}

    def find_file(self, path: str) -> Found:
        """As :meth:`find`, of a file.

        Raises:
            IsADirectoryError: it is none.
        """
        if is_root(path):
            raise os_error(errno.EISDIR, path)
        return _file_there(path, self.find(path))

    def find_own(self, paths: Iterable[str]) -> dict[str, Found]:
        """As :meth:`find_each`, of what is this peer's; or directories of which it has one there, too.

        Raises:
            PermissionError: something is another's.
        """
        own, others = self._by_owner(self.find_each(paths))
        for path, found in others.items():
            raise self._not_own(path, found)
        return own

    def listings(self, paths: Collection[str]) -> dict[str, list[Details]]:
        """What each of some directories holds, by name; they are looked up at the same time.

        Raises:
            OSError: nobody can be asked.
        """
        holding = [path for path in paths if path not in TREES and (is_root(path) or not is_too_deep(path))]
        listed = self._all({path: self._listing(path) for path in holding})
        return {path: listed.get(path, []) for path in paths}  # what is in the others nobody knows, or nothing

    def read(self, path: str, found: Found, start: int, stop: int) -> bytes:
        """The bytes [start, stop) of a file's content, of which both ends are within it.

        Raises:
            OSError: nobody has them.
        """
        return self._all({path: _reading(found, start, stop)})[path]

    def read_ranges(self, ranges: Iterable[tuple[str, int | None, int | None]]) -> list[bytes | OSError]:
        """Slices of files, read at the same time; for each its bytes, or why they cannot be had."""
        ranges = list(ranges)
        paths = list(dict.fromkeys(path for path, _, _ in ranges))
        seen = dict(zip(paths, together(self.dht, map(self._seen, paths)), strict=True))

        def reading(path: str, start: int | None, end: int | None) -> Work[bytes]:
            async def work(dht: PrimeDHT) -> bytes:
                found = _file_there(path, seen[path])
                first, last, _ = slice(start, end).indices(size_of(found))
                return await _reading(found, first, max(first, last))(dht)

            return work

        outcomes = together(self.dht, [reading(*one) for one in ranges])
        return [
            os_error_of(outcome, path) if isinstance(outcome, PrimeDHTError) else outcome
            for (path, _, _), outcome in zip(ranges, outcomes, strict=True)
        ]

    def stream(self, path: str, found: Found) -> Iterator[bytes]:
        """All of a file's content, piece by piece.

        Raises:
            OSError: nobody has the rest.
        """
        if found.blob is None:
            yield found.value
        else:
            with os_errors(path), self.dht.blobs.stream(found) as pieces:
                yield from pieces

    def save(self, path: str, found: Found, to: Path, progress: OnProgress | None) -> None:
        """Write a file's content to a local one, which is there only once it is whole.

        Raises:
            OSError: nobody has it, or the file cannot be written.
        """
        with os_errors(path):
            self.dht.call(lambda dht: dht.blobs.resolve(found, to=to, progress=progress))

    # Writing

    def write(
        self,
        path: str,
        content: Value,
        *,
        content_type: str | None = None,
        ttl_s: float | None = None,
        exclusive: bool = False,
        progress: OnProgress | None = None,
    ) -> None:
        """Make a file, or replace it; it is seen when all of it is stored.

        Args:
            content: what it is to hold; of a blob that another file holds no byte is moved.
            content_type: a media type; by default what the name says.
            exclusive: refuse if there is one. Of several who write at the same time that may spare none.

        Raises:
            FileExistsError: there is something, and ``exclusive``.
            IsADirectoryError: there is a directory.
            NotADirectoryError: there is a file where a directory above it should be.
            PermissionError: this peer may not write there.
            OSError: not enough replicas took it.
        """
        if is_root(path):
            raise os_error(errno.EISDIR, path)
        self._check_writer(path)
        above = self._own_directories(directories_above(path))
        there = self._all({path: self._seen(path), **above})
        found = there.pop(path)
        if found is not None and exclusive:
            raise os_error(errno.EEXIST, path)
        if found is not None and is_directory(found):
            raise os_error(errno.EISDIR, path)
        self._make_directories(there, ttl_s)
        if content_type is None:
            content_type = mimetypes.guess_type(name_of(path))[0] or ""
        self._settle({path: self._putting(path, content, content_type, ttl_s, progress=progress)})

    def make_directory(self, path: str) -> None:
        """Make a directory, and those above it, unless there are own ones that last long enough.

        Raises:
            NotADirectoryError: there is a file where a directory should be.
            PermissionError: this peer may not write there.
            OSError: not enough replicas took it.
        """
        if not is_root(path):
            self._check_writer(path)
            self._make_directories(self._all(self._own_directories([path, *directories_above(path)])), None)

    def renew(self, paths: Iterable[str], *, ttl_s: float | None = None) -> int:
        """Let what this peer has written at some paths live its ttl from now on; and the directories above, if need be.

        What is written or removed there meanwhile stays so, and what is gone already is passed over.

        Returns:
            at how many of them that is.

        Raises:
            PermissionError: at none; there is only what others have written.
            OSError: not enough replicas took it.
        """
        seen = self._all({path: self._seen(path) for path in paths})
        own, others = self._by_owner({path: found for path, found in seen.items() if found is not None})
        if others and not own:
            raise self._not_own(*next(iter(others.items())))
        for path in own:
            self._check_writer(path)
        above = {one for path in own for one in directories_above(path)}
        self._make_directories(self._all(self._own_directories(above - own.keys())), ttl_s)
        return self._settle({path: self._renewing(path, ttl_s) for path in own})

    def remove(self, paths: Iterable[str]) -> None:
        """Remove this peer's entries at some paths.

        Raises:
            PermissionError: this peer may not write there.
            OSError: not enough replicas know of it.
        """
        paths = list(paths)
        for path in paths:
            self._check_writer(path)
        self._settle({path: self._deleting(path) for path in paths})

    # What the node is to do

    def _all(self, works: Mapping[str, Work[T]]) -> dict[str, T]:
        """Do something at several paths at the same time; returns what came of each.

        Raises:
            OSError: one of them failed.
        """
        results: dict[str, T] = {}
        for path, outcome in zip(works, together(self.dht, works.values()), strict=True):
            with os_errors(path):
                if isinstance(outcome, PrimeDHTError | OSError):
                    raise outcome
            results[path] = outcome
        return results

    def _seen(self, path: str, *, own: bool = False, latest: bool = True) -> Work[Found | None]:
        """Look up what is seen at a path, or what this peer has there."""
        place = place_of(path)

        def work(dht: PrimeDHT) -> Awaitable[Found | None]:
            publisher, trusted = (dht.peer_id, None) if own else (None, self._publishers(dht.peer_id))
            return dht.get(
                place.key, subkey=place.subkey, publisher=publisher, trusted=trusted, latest=latest, fetch=False
            )

        return work

    def _listing(self, path: str) -> Work[list[Details]]:
        key = directory_key(path)

        async def work(dht: PrimeDHT) -> list[Details]:
            listing = Listing(path)
            cursor: bytes | None = b""
            left = dht.config.limits.max_slots_per_key * dht.config.k_bucket_size  # more than replicas can have
            while cursor is not None:
                page = await dht.get_all(key, publishers=self._publishers(dht.peer_id), cursor=cursor)
                listing.add(page)
                cursor = page.next_cursor
                left -= len(page) + 1
                if left < 0:
                    raise OSError(errno.EIO, "replicas list more than a directory can hold", path)
            return listing.details()

        return work

    def _putting(
        self,
        path: str,
        content: Value,
        content_type: str,
        ttl_s: float | None,
        *,
        progress: OnProgress | None = None,
    ) -> Work[PutReceipt]:
        place, capability = place_of(path), self._capability_at(path)
        expires_at_s = self._ends_at_s(path, ttl_s, content_type)

        async def work(dht: PrimeDHT) -> PutReceipt:
            async with turn(dht, place):
                return await put(
                    dht,
                    path,
                    content,
                    content_type=content_type,
                    expires_at_s=expires_at_s,
                    capability=capability,
                    progress=progress,
                )

        return work

    def _renewing(self, path: str, ttl_s: float | None) -> Work[PutReceipt | None]:
        """Put again what this peer has at a path, if it still has anything."""
        place, capability, look = place_of(path), self._capability_at(path), self._seen(path, own=True)
        ends_at_s, directory_ends_at_s = self._ends_at_s(path, ttl_s), self._ends_at_s(path, ttl_s, DIRECTORY)

        async def work(dht: PrimeDHT) -> PutReceipt | None:
            async with turn(dht, place):
                found = await look(dht)
                if found is None:
                    return None
                return await put(
                    dht,
                    path,
                    found.blob or found.value,
                    content_type=found.content_type,
                    expires_at_s=directory_ends_at_s if is_directory(found) else ends_at_s,
                    capability=capability,
                )

        return work

    def _deleting(self, path: str) -> Work[PutReceipt]:
        place, capability = place_of(path), self._capability_at(path)

        async def work(dht: PrimeDHT) -> PutReceipt:
            async with turn(dht, place):
                return await dht.delete(place.key, subkey=place.subkey, capability=capability)

        return work

    # Within

    def _publishers(self, me: PeerId) -> list[PeerId | str] | None:
        return None if self._trusted is None else [*self._trusted, me]

    def _by_owner(self, seen: Mapping[str, Found]) -> tuple[dict[str, Found], dict[str, Found]]:
        """Of what is seen at some paths this peer's, with directories of which it has one there, too; and others'."""
        me = self.dht.peer_id
        others = {path: found for path, found in seen.items() if found.publisher != me}
        shared = self._all({path: self._seen(path, own=True) for path, one in others.items() if is_directory(one)})
        own = dict(seen) | {path: found for path, found in shared.items() if found is not None and is_directory(found)}
        return {path: found for path, found in own.items() if found.publisher == me}, {
            path: found for path, found in own.items() if found.publisher != me
        }

    def _not_own(self, path: str, found: Found) -> PermissionError:
        return PermissionError(
            errno.EACCES,
            f"only {peer_text(found.publisher)}, who has written it, can; this is {peer_text(self.dht.peer_id)} (a "
            "data_dir keeps an identity for the next time)",
            path,
        )

    def _own_directories(self, paths: Iterable[str]) -> dict[str, Work[Found | None]]:
        return {path: self._seen(path, own=True, latest=False) for path in paths}

    def _make_directories(self, own: Mapping[str, Found | None], ttl_s: float | None) -> None:
        """Make directories, given what this peer has there, unless that is one that lasts."""
        lacking = [path for path, found in own.items() if not self._lasts(path, found, ttl_s)]
        for path, found in self._all({path: self._seen(path) for path in lacking}).items():
            if found is not None and not is_directory(found):
                raise os_error(errno.ENOTDIR, path)
        self._settle({path: self._putting(path, b"", DIRECTORY, ttl_s) for path in lacking})

    def _lasts(self, path: str, own: Found | None, ttl_s: float | None) -> bool:
        """Whether it is a directory that lasts as long as what is written now."""
        until_us = int(self._ends_at_s(path, ttl_s) * US_PER_S)
        return own is not None and is_directory(own) and own.expires_at_us >= until_us

    def _settle(self, works: Mapping[str, Work[PutReceipt] | Work[PutReceipt | None]]) -> int:
        """Put, so that enough replicas have it; or have something newer, which others see instead of it.

        Returns:
            at how many paths something was put.
        """
        receipts = {path: receipt for path, receipt in self._all(works).items() if receipt is not None}
        for path, receipt in receipts.items():
            if not receipt.acknowledged and not receipt.superseded:
                reasons = "; ".join(sorted({reason for _, reason in receipt.refused}))
                raise OSError(errno.EIO, ": ".join(filter(None, (receipt.warning, reasons))), path)
        return len(receipts)

    def _check_writer(self, path: str) -> None:
        """Check that this peer may write at a path.

        Raises:
            PermissionError: it may not.
        """
        rule = key_rule(place_of(path).key)
        if isinstance(rule, OpenKey):
            return
        with os_errors(path):
            me = self.dht.peer_id
        if isinstance(rule, OwnKey):
            if rule.owner != me:
                raise PermissionError(errno.EACCES, "only the peer that it is named after can write there", path)
            return
        try:
            check_capability(
                self._capability,
                root=rule.root,
                network_id=self.network_id,
                member=me,
                expires_at_us=int(time.time() * US_PER_S),
            )
        except ValidationError as error:
            raise PermissionError(errno.EACCES, str(error), path) from error

    def _capability_at(self, path: str) -> bytes:
        return self._capability if path.startswith("group/") else b""

    def _ends_at_s(self, path: str, ttl_s: float | None, content_type: str = "") -> float:
        """When something ends that is written now: no later than the capability that it is written with."""
        life_s = next(one for one in (ttl_s, self._ttl_s, self._config.ttl) if one is not None)
        if not math.isfinite(life_s):
            raise OSError(errno.EINVAL, f"ttl is {life_s}, which is no time", path)
        if content_type == DIRECTORY:
            life_s = min(life_s * DIRECTORY_TTLS, self._config.limits.max_ttl_s)
        ends_at_s = time.time() + life_s
        capability = self._capability_at(path)
        return min(ends_at_s, decode_capability(capability).expires_at_us / US_PER_S) if capability else ends_at_s

    @cached_property
    def _config(self) -> DhtConfig:
        async def look(dht: PrimeDHT) -> DhtConfig:
            return dht.config

        with os_errors("prime://"):
            return self.dht.call(look)


def _there(path: str, seen: Found | PrimeDHTError | OSError | None) -> Found:
    """The entry that a look-up has found."""
    if isinstance(seen, PrimeDHTError | OSError):
        raise seen
    if seen is None:
        raise os_error(errno.ENOENT, path)
    return seen


def _file_there(path: str, seen: Found | PrimeDHTError | OSError | None) -> Found:
    """As :func:`_there`, if it is a file."""
    found = _there(path, seen)
    if is_directory(found):
        raise os_error(errno.EISDIR, path)
    return found


def _reading(found: Found, start: int, stop: int) -> Work[bytes]:
    """Read the bytes [start, stop) of a file's content, of which both ends are within it."""

    async def work(dht: PrimeDHT) -> bytes:
        if found.blob is None or start == stop:
            return found.value[start:stop]
        async with dht.blobs.stream(found, start=start, stop=stop) as pieces:
            return b"".join([piece async for piece in pieces])

    return work
