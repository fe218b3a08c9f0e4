"""What becomes of each path that is copied or moved: fsspec's rules for ``copy``, worked out once for all of them.

- A path is copied to the very target; but into it if that is a directory, or ends with a slash. A source that ends with
  a slash is what it holds, and goes to the target itself.
- What a pattern finds goes into the target, with the directories that not all of it has in common.
- A list of files goes into the target, each under its own name; or to as many targets, one by one.
"""

from __future__ import annotations

import errno
import posixpath
from collections.abc import Sequence, Set
from shutil import SameFileError

from fsspec.core import has_magic

from prime_dht.filesystem.errors import os_error
from prime_dht.filesystem.paths import directories_above, name_of, normal, parent_of

Path = str | list[str]


def targets_of(sources: Sequence[str], of: Path, to: Path, *, is_directory: bool) -> list[str]:
    """Where each of some normal paths goes.

    Args:
        of: what the paths were found by, without its protocol, but with a slash at its end if it had one.
        to: where that goes, likewise.
        is_directory: whether that is a directory.

    >>> targets_of(["a", "a/b"], "a", "c", is_directory=False), targets_of(["a", "a/b"], "a", "c", is_directory=True)
    (['c', 'c/b'], ['c/a', 'c/a/b'])
    >>> targets_of(["a/b/1", "a/c/2"], "a/*/?", "d", is_directory=True)
    ['d/b/1', 'd/c/2']

    Raises:
        OSError: there are not as many targets.
    """
    if isinstance(to, list):
        if len(to) != len(sources):
            raise OSError(errno.EINVAL, f"{len(sources):,} paths have {len(to):,} targets")
        return [normal(one) for one in to]
    if isinstance(of, list):
        return [normal(f"{to}/{name_of(source)}") for source in sources]
    if has_magic(of):
        begin = posixpath.commonpath([f"/{source}" for source in sources])[1:]
        is_into = len(sources) == 1
    else:
        begin = normal(of)
        is_into = (is_directory or to.endswith("/")) and not of.endswith("/")
    if is_into:
        begin = parent_of(begin)
    return [normal(f"{to}/{source.removeprefix(begin)}") for source in sources]


def check_move(sources: Sequence[str], targets: Sequence[str], removed: Set[str]) -> None:
    """Check that whatever is moved is still there when it has been copied to its target, and some paths were removed.

    Raises:
        SameFileError: a path is its own target.
        OSError: two have one target, or one is, or lies in, what is removed.
    """
    for source, target in zip(sources, targets, strict=True):
        if source == target:
            raise SameFileError(errno.EINVAL, "it cannot be moved onto itself", source)
    taken: set[str] = set()
    for target in targets:
        if target in taken:
            raise OSError(errno.EINVAL, "two would be moved to it", target)
        if not removed.isdisjoint((target, *directories_above(target))):
            raise os_error(errno.EINVAL, target)
        taken.add(target)
