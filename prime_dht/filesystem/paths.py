"""Where a path lies in the swarm: under which key what a directory holds is found, and under which subkey each of it.

A *path* is steps with slashes between them; slashes more than that mean nothing. A *step* is the name of a file or a
directory: any text of 1 to 256 bytes of UTF-8 but ``.`` and ``..``, taken as it is. Nothing in it is unquoted, and two
spellings of a character are two names.

What the directory ``a/b`` holds are the entries under the key ``dir:a/b``, each under its own name as subkey. Three
kinds of tree differ in who may write (:mod:`prime_dht.entries.access`), and the path says in which one it lies:

=========================  ==================================  ========================
path                       key of the directory                who writes
=========================  ==================================  ========================
``a/b/c``                  ``/prime/dir:a/b``                  anybody
``own/<peer id>/b/c``      ``/prime/own/<peer id>/dir:b``      that peer
``group/<root>/b/c``       ``/prime/group/<root>/dir:b``       the members of the group
=========================  ==================================  ========================

The first one's top, and whatever has one or two steps of which the first is ``own`` or ``group``, is a *root*: a
directory that is always there, and has no entry.

>>> place_of("a/b/c")
Place(key=b'/prime/dir:a/b', subkey=b'c')
>>> place_of("group/" + 64 * "0" + "/c").key[-8:]
b'000/dir:'
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

from prime_dht.entries.access import key_rule
from prime_dht.errors import ValidationError
from prime_dht.ids import Key, wire_key

MAX_NAME_BYTES = 256
"""A name is a subkey."""

MAX_KEY_BYTES = 1024

TREES = ("own", "group")
"""What holds the tops of trees that not everybody may write in."""


@dataclass(frozen=True, slots=True)
class Place:
    """The slot of a path, but for the publisher."""

    key: Key
    subkey: bytes


def normal(path: str) -> str:
    """The one spelling of a path: no slash at either end, and no two in a row.

    >>> normal("//a//b/")
    'a/b'
    """
    return "/".join(filter(None, path.split("/")))


def parent_of(path: str) -> str:
    """The directory that a normal path lies in.

    >>> parent_of("a/b/c"), parent_of("a")
    ('a/b', '')
    """
    return path.rpartition("/")[0]


def name_of(path: str) -> str:
    """The last step of a normal path."""
    return path.rpartition("/")[2]


def is_root(path: str) -> bool:
    """Whether a normal path is a directory that is always there.

    >>> [is_root(path) for path in ("", "own", "own/12D3Koo", "own/12D3Koo/a", "a")]
    [True, True, True, False, False]
    """
    steps = path.split("/")
    return not path or (steps[0] in TREES and len(steps) <= 2)


def directories_above(path: str) -> Iterator[str]:
    """The directories on the way to a normal path that have entries, from the one it lies in upwards.

    >>> list(directories_above("a/b/c"))
    ['a/b', 'a']
    """
    while not is_root(path := parent_of(path)):
        yield path


def is_name(name: str) -> bool:
    """Whether a text can be the name of a file. Others' entries may have any; what is none is not shown.

    >>> [is_name(name) for name in ("a b%20", "..", "a/b", "")]
    [True, False, False, False]
    """
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def directory_key(path: str) -> Key:
    """The key under which is found what the directory at a normal path holds.

    Raises:
        OSError: a step is no name, or it is too long, or does not name a peer or group where it has to.
    """
    for step in path.split("/") if path else ():
        _check_name(step, path)
    key = _key(path)
    if len(key) > MAX_KEY_BYTES:
        raise OSError(errno.ENAMETOOLONG, f"{os.strerror(errno.ENAMETOOLONG)}: with its key, {len(key):,} bytes", path)
    try:
        key_rule(key)
    except ValidationError as error:
        raise OSError(errno.EINVAL, str(error), path) from error
    return key


def place_of(path: str) -> Place:
    """The place of what is at a normal path, which is no root.

    Raises:
        OSError: as :func:`directory_key` does.
    """
    name = name_of(path)
    _check_name(name, path)
    return Place(directory_key(parent_of(path)), name.encode())


def is_too_deep(path: str) -> bool:
    """Whether the normal path of something listed is so long that, if it is a directory, it cannot hold anything.

    >>> is_too_deep("/".join(["x" * 200] * 5)), is_too_deep("/".join(["x" * 204] * 5))
    (False, True)
    """
    return len(_key(path)) > MAX_KEY_BYTES


def _key(path: str) -> Key:
    steps = path.split("/") if path else []
    tree = steps[:2] if steps[:1] and steps[0] in TREES else []
    return wire_key("/".join((*tree, "dir:" + "/".join(steps[len(tree) :]))))


def _check_name(name: str, path: str) -> None:
    if not is_name(name):
        raise OSError(errno.EINVAL, f"{name!r} cannot be the name of a file", path)
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise OSError(errno.EILSEQ, f"{name!r} cannot be the name of a file: {error.reason}", path) from error
    if size > MAX_NAME_BYTES:
        raise OSError(errno.ENAMETOOLONG, f"a name has {MAX_NAME_BYTES} bytes at most, not {size:,}", path)
