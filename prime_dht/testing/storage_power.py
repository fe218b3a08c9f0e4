"""A disk whose power can be cut: what SQLite wrote, and what of it had been synced.

Killing a process proves nothing about syncing, because what it wrote lives on in the system's cache. So here SQLite is
given a VFS (https://sqlite.org/vfs.html) that does all that the ordinary one does and, each time a file is synced,
takes note of what that file holds. A loss of power at any moment leaves just that: files as they were at their last
sync, under the names that their directory had at its own. Files that were never synced are empty.

That is the worst that a disk which keeps its word can do. It needs no privileges and no tools: the VFS is made with
ctypes, of the SQLite that Python's sqlite3 is linked to. What the code syncs by itself goes through :func:`os.fsync`.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_void_p
from pathlib import Path

import pytest

OK = 0
VFS_NAME = b"power"

_Open = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))
_Sync = CFUNCTYPE(c_int, c_void_p, c_int)


class _Vfs(Structure):
    """``sqlite3_vfs``, of which only the opening of files is changed."""

    _fields_ = (
        ("iVersion", c_int),
        ("szOsFile", c_int),
        ("mxPathname", c_int),
        ("pNext", c_void_p),
        ("zName", c_char_p),
        ("pAppData", c_void_p),
        ("xOpen", c_void_p),
        ("others", c_void_p * 15),
    )


class _Methods(Structure):
    """``sqlite3_io_methods``, of which only the syncing is changed."""

    _fields_ = (
        ("iVersion", c_int),
        ("xClose", c_void_p),
        ("xRead", c_void_p),
        ("xWrite", c_void_p),
        ("xTruncate", c_void_p),
        ("xSync", c_void_p),
        ("others", c_void_p * 13),
    )


class _File(Structure):
    """``sqlite3_file``; what comes behind is the ordinary VFS's own."""

    _fields_ = (("pMethods", POINTER(_Methods)),)


class Disk:
    """See the module.

    Attributes:
        on_sync: called after each sync.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._synced: dict[int, bytes] = {}  # by inode
        self._names: dict[str, int] = {}
        self.on_sync: Callable[[], None] = lambda: None

    def after_a_loss_of_power(self) -> dict[str, bytes]:
        """The files that would be found, if it happened now."""
        return {name: self._synced.get(inode, b"") for name, inode in self._names.items()}

    def note_sync(self, path: Path) -> None:
        """Something was synced."""
        if path == self._directory:
            self._note_names()
        elif path.parent == self._directory:
            inode = path.stat().st_ino
            self._synced[inode] = path.read_bytes()
            if path.name.endswith(("-wal", "-journal")) and self._names.get(path.name) != inode:
                # With the first sync of a journal that it has made, the ordinary VFS syncs the directory too, and so
                # that another has been deleted: if that came back, SQLite would undo what was synced since.
                self._note_names()
        self.on_sync()

    def _note_names(self) -> None:
        self._names = {file.name: file.stat().st_ino for file in self._directory.iterdir() if file.is_file()}


@contextmanager
def installed(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have all databases opened meanwhile on this disk."""
    library = ctypes.CDLL(_sqlite3.__file__)
    library.sqlite3_vfs_find.restype = POINTER(_Vfs)
    ordinary = library.sqlite3_vfs_find(None)
    ordinary_open = _Open(ordinary.contents.xOpen)
    paths: dict[int, Path] = {}  # by the address of the open file
    syncs: dict[int, Callable[[int, int], int]] = {}
    methods: dict[int, _Methods] = {}  # ours, by the address of those they stand for

    def sync_and_note(file: int, flags: int) -> int:
        result = syncs[file](file, flags)
        if result == OK:
            disk.note_sync(paths[file])
        return result

    def open_ours(vfs: int, name: int | None, file: int, flags: int, out_flags: object) -> int:
        result: int = ordinary_open(vfs, name, file, flags, out_flags)
        if result == OK and name is not None:
            opened = _File.from_address(file)
            theirs = opened.pMethods.contents
            paths[file] = Path(os.fsdecode(ctypes.string_at(name)))
            syncs[file] = _Sync(theirs.xSync)
            ours = methods.setdefault(ctypes.addressof(theirs), _Methods.from_buffer_copy(theirs))
            ours.xSync = ctypes.cast(our_sync, c_void_p)
            opened.pMethods = ctypes.pointer(ours)
        return result

    our_sync, our_open = _Sync(sync_and_note), _Open(open_ours)
    vfs = _Vfs.from_buffer_copy(ordinary.contents)
    vfs.zName, vfs.pNext, vfs.xOpen = VFS_NAME, None, ctypes.cast(our_open, c_void_p)
    fsync = os.fsync

    def note_fsync(descriptor: int) -> None:
        fsync(descriptor)
        disk.note_sync(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

    library.sqlite3_vfs_register(ctypes.byref(vfs), 1)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", note_fsync)
            yield
    finally:
        library.sqlite3_vfs_unregister(ctypes.byref(vfs))
