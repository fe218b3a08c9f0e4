"""What a program has to do itself, lest a loss of power undoes it: this blocks."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def sync_path(path: Path) -> None:
    """Bring to the disk what a file holds; or of a directory the names, so that files made or renamed there stay.

    Raises:
        OSError: it is not there, or the disk fails.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory for its owner alone, and those above it, where there are none; a loss of power takes no name.

    Raises:
        FileExistsError: it is there, and is no directory.
        OSError: it cannot be made, or the disk fails.
    """
    made = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for each in made:
        with contextlib.suppress(PermissionError):  # of who may write to the one above, but not read it
            sync_path(each.parent)
