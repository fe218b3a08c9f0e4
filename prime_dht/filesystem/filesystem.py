"""The file system as fsspec has it: :class:`PrimeFileSystem`. What it does to the swarm is in :class:`.tree.Tree`."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from shutil import SameFileError
from typing import TYPE_CHECKING, Any, BinaryIO

from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.spec import make_instance
from fsspec.utils import isfilelike, stringify_path

from prime_dht.blocking import BlockingDHT
from prime_dht.entries.capability import capability_in
from prime_dht.filesystem.connections import Connection, Way, connection, keep
from prime_dht.filesystem.copies import Copying
from prime_dht.filesystem.details import (
    Details,
    details_of,
    details_of_root,
    digest_of,
    is_directory,
    modified_at,
    size_of,
)
from prime_dht.filesystem.errors import os_error, os_errors
from prime_dht.filesystem.file import PrimeFile, PrimeTransaction
from prime_dht.filesystem.paths import is_root, normal, parent_of
from prime_dht.filesystem.tree import OnProgress, Tree

if TYPE_CHECKING:
    from prime_dht.node.blobs.progress import BlobProgress


def _unless_gone(error: OSError) -> None:
    """A directory may be removed while it is walked through; any other error would leave out what is there."""
    if not isinstance(error, FileNotFoundError):
        raise error


class PrimeFileSystem(Copying):
    """``prime://``: the swarm as a file system for whatever uses fsspec.

        fs = fsspec.filesystem("prime", peers="/ip4/192.0.2.1/tcp/4001/p2p/12D3Koo…", data_dir="~/.prime")
        fs.put("checkpoint/", "runs/7/", recursive=True)
        pandas.read_csv("prime://runs/7/metrics.csv", storage_options={"peers": …})

    The package says what a file is there, how long it lives, and who may change it. Whoever keeps to one ``data_dir``
    keeps one identity; without it, what one process has written no later one can replace or remove.

    File systems that are given the same way into a swarm share one connection, in all threads; it is made when it is
    first needed. They can be pickled, and used in forked children, which then have identities of their own.

    Args:
        peers, data_dir, network_id: as for :func:`prime_dht.connect`.
        ttl: seconds that what is written lives; the node's configuration's by default. ``open``, ``pipe_file``,
            ``put_file``, ``cp_file`` and ``touch`` take one for what they write.
        trusted: see only what these peers (base58) have written, and this one itself; everybody's by default.
        capability: for writing under ``group/``: what ``prime-dht group invite`` made for this identity.
        client: what :func:`prime_dht.connect` has returned, instead of a connection of its own.

    Raises:
        ConfigError: a setting is out of range.
        ValidationError: the capability is none.
    """

    protocol = "prime"
    transaction_type = PrimeTransaction

    def __init__(
        self,
        *,
        peers: str | Iterable[str] = (),
        data_dir: str | os.PathLike[str] | None = None,
        network_id: str | None = None,
        ttl: float | None = None,
        trusted: str | Collection[str] | None = None,
        capability: bytes | str = b"",
        client: BlockingDHT | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        directory = None if data_dir is None else Path(data_dir).expanduser()
        self._way = Way(
            peers=(peers,) if isinstance(peers, str) else tuple(peers), data_dir=directory, network_id=network_id
        )
        self._is_given_client = client is not None
        self._tree = Tree(
            client or connection(self._way),
            trusted=[trusted] if isinstance(trusted, str) else trusted,
            ttl_s=ttl,
            capability=capability_in(capability),
        )

    @property
    def fsid(self) -> str:
        """What a file system is the same by: the name of the swarm."""
        return f"prime_{self._tree.network_id}"

    def __reduce__(self) -> tuple[Callable[..., PrimeFileSystem], tuple[object, ...]]:
        if self._is_given_client:
            return make_instance, (type(self), (), self.storage_options)
        return _joined, (type(self), self.storage_options, self._way, self._tree.dht)

    # Paths

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return normal(stringify_path(path).removeprefix("prime://"))

    @classmethod
    def _parent(cls, path: str) -> str:
        return parent_of(cls._strip_protocol(path))

    # Looking

    def info(self, path: str, **kwargs: Any) -> Details:
        """What is at a path: see :class:`.details.Details`.

        Raises:
            FileNotFoundError: nothing.
            OSError: nobody can be asked.
        """
        path = self._strip_protocol(path)
        if is_root(path):
            return details_of_root(path)
        found = self._tree.find(path)
        with os_errors(path):
            return details_of(path, found)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Details] | list[str]:
        """What a directory holds, by name; or the file itself.

        Raises:
            FileNotFoundError: there is nothing at the path.
            OSError: nobody can be asked.
        """
        path = self._strip_protocol(path)
        details = self.info(path)
        listed = self._tree.listings([path])[path] if details["type"] == "directory" else [details]
        return listed if detail else [one["name"] for one in listed]

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether there is anything at a path.

        Raises:
            OSError: nobody can be asked; so it is not known.
        """
        return self._there(path) is not None

    def isdir(self, path: str) -> bool:
        """Whether there is a directory; raises as :meth:`exists` does."""
        there = self._there(path)
        return there is not None and there["type"] == "directory"

    def isfile(self, path: str) -> bool:
        """Whether there is a file; raises as :meth:`exists` does."""
        there = self._there(path)
        return there is not None and there["type"] == "file"

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: str | Callable[[OSError], object] = _unless_gone,
        **kwargs: Any,
    ) -> Iterator[tuple[str, Any, Any]]:
        """As fsspec's; but if nobody can be asked about a directory, that is an error, and nothing is left out."""
        yield from super().walk(path, maxdepth=maxdepth, topdown=topdown, on_error=on_error, **kwargs)

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: Any
    ) -> list[str] | dict[str, Details]:
        """The files at and under a path, by name; with ``withdirs`` the directories, too.

        Directories that are equally deep are looked up at the same time.

        Raises:
            OSError: nobody can be asked about one of them.
        """
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        path = self._strip_protocol(path)
        there = self._there(path)
        found = {} if there is None else {path: there}
        level, depth = [one for one in found if found[one]["type"] == "directory"], 0
        while level and depth != maxdepth:
            below = {one["name"]: one for listed in self._tree.listings(level).values() for one in listed}
            level, depth = [name for name, one in below.items() if one["type"] == "directory"], depth + 1
            found |= below
        names = sorted(name for name, one in found.items() if one["type"] == "file" or (withdirs and name))
        return {name: found[name] for name in names} if detail else names

    def du(
        self, path: str, total: bool = True, maxdepth: int | None = None, withdirs: bool = False, **kwargs: Any
    ) -> int | dict[str, int]:
        """The bytes of files, all together or of each; without a look-up for each."""
        found = self.find(path, maxdepth=maxdepth, withdirs=withdirs, detail=True, **kwargs)
        assert isinstance(found, dict)
        sizes = {name: details["size"] for name, details in found.items()}
        return sum(sizes.values()) if total else sizes

    def created(self, path: str) -> datetime:
        """When what is there was written; entries know no other time."""
        return self.modified(path)

    def modified(self, path: str) -> datetime:
        """When what is there was written, or renewed."""
        details = self.info(path)
        if "mtime" not in details:
            raise OSError(errno.EINVAL, "what is always there has no time", path)
        return modified_at(details)

    def checksum(self, path: str) -> int:
        """The digest in a file's CID: the same for the same bytes cut alike, whoever wrote them and when."""
        return int.from_bytes(digest_of(self.info(path)), "big")

    def ukey(self, path: str) -> str:
        """As :meth:`checksum`, in hexadecimal: what caches name a version by."""
        return digest_of(self.info(path)).hex()

    # Reading

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        *,
        ttl: float | None = None,
        **options: Any,
    ) -> PrimeFile:
        path = self._strip_protocol(path)
        if mode == "xb" and self.exists(path):
            raise os_error(errno.EEXIST, path)
        if mode in ("wb", "ab") and self.isdir(path):
            raise os_error(errno.EISDIR, path)
        return PrimeFile(self, path, mode, block_size, autocommit, cache_options=cache_options, ttl=ttl, **options)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """The bytes [start, end) of a file; negative numbers count from its end."""
        path = self._strip_protocol(path)
        found = self._tree.find_file(path)
        first, last, _ = slice(start, end).indices(size_of(found))
        return self._tree.read(path, found, first, max(first, last))

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | list[int | None] | None,
        ends: int | list[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[bytes | OSError]:
        """The bytes of many ranges, fetched at the same time; what cannot be had is an error, returned or raised."""
        if not isinstance(paths, list):
            raise TypeError("paths are a list")
        firsts = starts if isinstance(starts, list) else [starts] * len(paths)
        lasts = ends if isinstance(ends, list) else [ends] * len(paths)
        outcomes = self._tree.read_ranges(zip(map(self._strip_protocol, paths), firsts, lasts, strict=True))
        for outcome in outcomes:
            if isinstance(outcome, OSError) and on_error != "return":
                raise outcome
        return outcomes

    def get_file(
        self,
        rpath: str,
        lpath: Any = None,
        callback: Callback = DEFAULT_CALLBACK,
        outfile: BinaryIO | None = None,
        **kwargs: Any,
    ) -> None:
        """Copy a file to a local one, which is there only once it is whole; or a directory, without what it holds.

        Args:
            lpath: a path, or a file that is open for writing.
        """
        path = self._strip_protocol(rpath)
        to: Any = lpath if outfile is None else outfile
        if not isfilelike(to) and self.isdir(path):
            os.makedirs(to, exist_ok=True)
            return
        found = self._tree.find_file(path)
        size = size_of(found)
        callback.set_size(size)
        if isfilelike(to):
            for piece in self._tree.stream(path, found):
                to.write(piece)
                callback.relative_update(len(piece))
        else:
            local = Path(to)
            local.parent.mkdir(parents=True, exist_ok=True)
            self._tree.save(path, found, local, _told(callback))
            callback.absolute_update(size)

    # Writing

    def pipe_file(
        self, path: str, value: bytes, mode: str = "overwrite", *, ttl: float | None = None, **kwargs: Any
    ) -> None:
        """Make a file of bytes; ``mode="create"`` refuses if there is one."""
        path = self._strip_protocol(path)
        if self._intrans:
            super().pipe_file(path, value, mode=mode, ttl=ttl, **kwargs)
        else:
            self._tree.write(path, bytes(value), ttl_s=ttl, exclusive=mode == "create")

    def put_file(
        self,
        lpath: str | os.PathLike[str],
        rpath: str,
        callback: Callback = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        *,
        ttl: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Copy a local file; or a directory, without what it holds. ``mode="create"`` refuses if there is one."""
        path, local = self._strip_protocol(rpath), Path(lpath)
        if local.is_dir():
            self.makedirs(path, exist_ok=True)
        elif self._intrans:
            super().put_file(local, path, callback=callback, mode=mode, ttl=ttl, **kwargs)
        else:
            size = local.stat().st_size
            callback.set_size(size)
            self._tree.write(path, local, ttl_s=ttl, exclusive=mode == "create", progress=_told(callback))
            callback.absolute_update(size)

    def cp_file(self, path1: str, path2: str, *, ttl: float | None = None, **kwargs: Any) -> None:
        """Copy a file within the swarm: the copy has the same CID, and no bytes pass through here.

        Of a directory a new one is made, without what it holds.

        Raises:
            SameFileError: both paths are the same.
        """
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if source == target:
            raise SameFileError(errno.EINVAL, "it cannot be copied onto itself", source)
        found = None if is_root(source) else self._tree.find(source)
        if found is None or is_directory(found):
            self.makedirs(target, exist_ok=True)
        else:
            self._tree.write(target, found.blob or found.value, content_type=found.content_type, ttl_s=ttl)

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """Make a directory.

        Raises:
            FileExistsError: there is something.
            FileNotFoundError: there is no directory that it lies in, and ``create_parents`` is false.
        """
        path = self._strip_protocol(path)
        if self.exists(path):
            raise os_error(errno.EEXIST, path)
        if not create_parents and not self.isdir(parent_of(path)):
            raise os_error(errno.ENOENT, parent_of(path))
        self._tree.make_directory(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a directory, and those above it.

        Raises:
            FileExistsError: there is a file, or a directory and not ``exist_ok``.
        """
        path = self._strip_protocol(path)
        there = self._there(path)
        if there is not None and (there["type"] == "file" or not exist_ok):
            raise os_error(errno.EEXIST, path)
        self._tree.make_directory(path)

    def touch(self, path: str, truncate: bool = True, *, ttl: float | None = None, **kwargs: Any) -> None:
        """Make an empty file; without ``truncate``, :meth:`renew` what is there."""
        if truncate or not self.exists(path):
            self.pipe_file(path, b"", ttl=ttl)
        else:
            self._tree.renew([self._strip_protocol(path)], ttl_s=ttl)

    def renew(self, path: str, *, ttl: float | None = None) -> int:
        """Let what this peer has written at a path, and under it, live its ttl from now on.

        Returns:
            how many files and directories that are.

        Raises:
            FileNotFoundError: there is nothing at the path.
            PermissionError: only others have written there.
        """
        self.info(path)
        return self._tree.renew(self.find(path, withdirs=True), ttl_s=ttl)

    # Removing

    def rm_file(self, path: str) -> None:
        """Remove a file.

        Raises:
            PermissionError: another has written it.
        """
        path = self._strip_protocol(path)
        if is_root(path) or is_directory(self._tree.find_own([path])[path]):
            raise os_error(errno.EISDIR, path)
        self._tree.remove([path])

    _rm = rm_file

    def rmdir(self, path: str) -> None:
        """Remove a directory that holds nothing.

        Raises:
            PermissionError: only others have made it.
        """
        path = self._strip_protocol(path)
        if is_root(path):
            raise os_error(errno.EBUSY, path)
        if not is_directory(self._tree.find_own([path])[path]):
            raise os_error(errno.ENOTDIR, path)
        if self._tree.listings([path])[path]:
            raise os_error(errno.ENOTEMPTY, path)
        self._tree.remove([path])

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files; and with ``recursive`` directories and what they hold.

        What is deeper than ``maxdepth`` stays, with the directories that it lies in.

        Raises:
            PermissionError: another has written some of it; then nothing is removed.
            IsADirectoryError: there is a directory, and ``recursive`` is false.
        """
        paths = self.expand_path(path, recursive=recursive, maxdepth=maxdepth)
        own = self._tree.find_own(one for one in paths if not is_root(one))
        directories = [one for one, found in own.items() if is_directory(found)]
        if directories and not recursive:
            raise os_error(errno.EISDIR, directories[0])
        if maxdepth is None:
            self._tree.remove(own)
            return
        self._tree.remove(own.keys() - directories)
        for directory in reversed(directories):
            if not self._tree.listings([directory])[directory]:
                self._tree.remove([directory])

    # Within

    def _there(self, path: str) -> Details | None:
        try:
            return self.info(path)
        except FileNotFoundError:
            return None


def _joined(kind: type[PrimeFileSystem], options: dict[str, Any], way: Way, dht: Connection) -> PrimeFileSystem:
    """What a pickled file system is in this process."""
    keep(way, dht)
    return kind(**options)


def _told(callback: Callback) -> OnProgress | None:
    """Tell fsspec's callback how far the swarm is."""
    if callback is DEFAULT_CALLBACK:
        return None

    def tell(progress: BlobProgress) -> None:
        if progress.cid is not None:  # it is not just being cut into blocks here
            callback.absolute_update(progress.done_bytes)

    return tell
