"""What the swarm says, as a file system says it: :class:`OSError`, with the error of the swarm as its cause."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from prime_dht.errors import PrimeDHTError, ValidationError


@contextmanager
def os_errors(path: str) -> Iterator[None]:
    """Raise what the swarm says as what a file system says."""
    try:
        yield
    except PrimeDHTError as error:
        raise os_error_of(error, path) from error


def os_error_of(error: PrimeDHTError, path: str) -> OSError:
    """What a file system says where the swarm says this."""
    number = errno.EINVAL if isinstance(error, ValidationError) else errno.EIO
    translated = OSError(number, str(error), path)
    translated.__cause__ = error
    return translated


def os_error(number: int, path: str) -> OSError:
    """The error of a number, which is of the class that goes with it."""
    return OSError(number, os.strerror(number), path)
