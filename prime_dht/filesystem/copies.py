"""Copying and moving within the swarm: :class:`Copying`, as much of :class:`~.filesystem.PrimeFileSystem`."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path

from prime_dht.filesystem.details import is_directory
from prime_dht.filesystem.errors import os_error
from prime_dht.filesystem.paths import is_root
from prime_dht.filesystem.targets import check_move, targets_of

if TYPE_CHECKING:
    from prime_dht.filesystem.tree import Tree


class Copying(AbstractFileSystem):  # type: ignore[misc]
    """See the module."""

    _tree: Tree

    def copy(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,
        maxdepth: int | None = None,
        on_error: str | None = None,
        **kwargs: Any,
    ) -> None:
        """As fsspec's, by the rules of :mod:`.targets`; without ``recursive``, or with ``maxdepth``, only files."""
        sources = self._sources(path1, path2, recursive, maxdepth)
        if not isinstance(path1, list) and (not recursive or maxdepth is not None):
            sources = [source for source in sources if not self.isdir(source)]
        for source, target in zip(sources, self._targets(sources, path1, path2), strict=True):
            try:
                self.cp_file(source, target, **kwargs)
            except FileNotFoundError:
                if on_error != "ignore" and (on_error is not None or not recursive):
                    raise

    def mv(self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any) -> None:
        """Copy, and then remove what was copied; not at all if any of it is another's, or would be lost.

        So what is moved onto or into itself, or onto other things that are moved, stays where it is; and a directory
        is moved by itself, not in a list. With ``maxdepth``, directories stay.
        """
        if self._strip_protocol(path1) == self._strip_protocol(path2):
            return
        sources = self._sources(path1, path2, recursive, maxdepth)
        own = self._tree.find_own(one for one in sources if not is_root(one))
        directories = [one for one in sources if is_root(one) or is_directory(own[one])]
        if directories and not recursive:
            raise os_error(errno.EISDIR, directories[0])
        if directories and isinstance(path1, list):
            raise OSError(errno.EINVAL, "a directory is moved by itself, not in a list", directories[0])
        if maxdepth is not None:
            sources = [one for one in sources if one not in directories]
        targets = self._targets(sources, path1, path2)
        check_move(sources, targets, own.keys())
        for source, target in zip(sources, targets, strict=True):
            self.cp_file(source, target, **kwargs)
        self._tree.remove(one for one in sources if not is_root(one))

    # Within

    def _sources(self, path1: Any, path2: Any, recursive: bool, maxdepth: int | None) -> list[str]:
        """What is to be copied or moved, by name; of two lists all that the first one names, as it is."""
        if isinstance(path1, list) and isinstance(path2, list):
            return [self._strip_protocol(one) for one in path1]
        return list(self.expand_path(path1, recursive=recursive, maxdepth=maxdepth))

    def _targets(self, sources: list[str], path1: Any, path2: Any) -> list[str]:
        """Where it goes."""
        if not sources:
            return []
        of, to = (
            [self._strip_protocol(one) for one in path]
            if isinstance(path, list)
            else str(stringify_path(path)).removeprefix("prime://")
            for path in (path1, path2)
        )
        return targets_of(sources, of, to, is_directory=isinstance(to, str) and self.isdir(to))
