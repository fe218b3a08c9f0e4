"""The files of ``prime-dht store export`` and ``import``: there whole or not at all, and never in the way of Ctrl-C.

What goes through standard streams (``-``) is not undone; a dump's last line tells its reader whether it is whole.
"""

from __future__ import annotations

import io
import os
import select
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

import trio

from prime_dht.cli.ending import STDIN, STDOUT, EndedBySignal
from prime_dht.cli.options import STREAM
from prime_dht.durability import sync_path
from prime_dht.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

LOOK_FOR_CANCEL_S = 0.1


class PatientFile(io.FileIO):
    """A file for worker threads of trio, whose reads and writes end when the task that awaits them is cancelled.

    A plain read of a terminal, or a write to a pipe that nobody empties, would hold up the task until it is done.
    """

    @classmethod
    async def opened(cls, source: Path | int, mode: str) -> Self:
        """Open a file, or take a stream that is open already, and stays so.

        A pipe with a name opens when there is somebody at its other end; when the task is cancelled, nobody waits for
        that but a thread, which does not outlive the process.

        Raises:
            OSError: it cannot be opened.
        """
        if isinstance(source, int):
            return cls(source, mode, closefd=False)
        return await trio.to_thread.run_sync(cls, source, mode, abandon_on_cancel=True)  # type: ignore[call-arg]  # old stubs

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        self._wait(reading=True)
        return super().readinto(buffer)

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of it."""
        left = memoryview(data)
        while left:
            self._wait(reading=False)
            # A pipe that is ready takes as much without making the writer wait.
            left = left[super().write(left[: select.PIPE_BUF]) :]
        return memoryview(data).nbytes

    def _wait(self, *, reading: bool) -> None:
        wanted = [self.fileno()]
        while not any(select.select(wanted if reading else [], [] if reading else wanted, [], LOOK_FOR_CANCEL_S)):
            trio.from_thread.check_cancelled()


@contextmanager
def dump_to_read(path: Path) -> Iterator[BinaryIO]:
    """The dump at ``path``, or on standard input.

    Raises:
        ConfigError: it cannot be read.
    """
    is_stdin = path == STREAM
    with (
        _blaming("standard input" if is_stdin else str(path)),
        io.BufferedReader(PatientFile(STDIN if is_stdin else path, closefd=not is_stdin)) as file,
    ):
        yield file


@contextmanager
def dump_to_write(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """Where to write a dump: to standard output, or to a file that takes its place at ``path`` when the block is done.

    A file is readable by its owner alone, as the store is. If the block fails, there is none, and what was at ``path``
    stays.

    Raises:
        ConfigError: there is a file already, which is only replaced by ``force``; or it cannot be written.
        EndedBySignal: nobody reads standard output any more.
    """
    if path == STREAM:
        with _blaming("standard output"), PatientFile(STDOUT, "wb", closefd=False) as file:
            yield file
        return
    with _blaming(str(path)):
        _check_free(path, force=force)
        descriptor, temporary = tempfile.mkstemp(prefix=".export-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(descriptor)
            # Again, because an export takes its time.
            _check_free(path, force=force)
            os.rename(temporary, path)
        except BaseException:  # also Ctrl-C: nothing half-written stays
            os.unlink(temporary)
            raise
        sync_path(path.parent)


def _check_free(path: Path, *, force: bool) -> None:
    if not os.path.lexists(path):
        return
    # To rename onto a device or a pipe would be to replace it.
    if not path.is_file():
        raise ConfigError(f"{path}: not a regular file")
    if not force:
        raise ConfigError(f"{path}: it exists already; --force replaces it")


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    """Say which file it was with which something went wrong."""
    try:
        yield
    except BrokenPipeError:
        raise EndedBySignal(signal.SIGPIPE) from None
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from error
