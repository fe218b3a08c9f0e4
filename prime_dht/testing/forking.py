"""A forked child, such as a worker that loads data: it has every file open that its parent has."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def forked() -> Iterator[None]:
    """A child of this process, as long as the block runs."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        os.close(write_end)
        os.read(read_end, 1)  # until the parent has closed it
        os._exit(0)
    try:
        yield
    finally:
        os.close(write_end)
        os.close(read_end)
        os.waitpid(child, 0)
