"""Blobs on their way, for one command: what is shown of them, how long it waits, where the bytes come from and go.

A command that transfers a blob may take as long as something moves: its ``--timeout`` is for how long nothing does.
"""

from __future__ import annotations

import io
import os
import signal
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import trio

from prime_dht.cli.client import Session
from prime_dht.cli.commands.store.files import PatientFile
from prime_dht.cli.ending import STDOUT, EndedBySignal, complain, emit_for_people
from prime_dht.cli.progress import progress_lines
from prime_dht.errors import ConfigError, QueryError, StorageError, ValidationError
from prime_dht.node.blobs.progress import BlobProgress, Stage
from prime_dht.node.blobs.putting import chained, read_ahead

if TYPE_CHECKING:
    from prime_dht.blobs.cid import Cid
    from prime_dht.node.dht import PrimeDHT
    from prime_dht.node.results import Found

PIECE_BYTES = 1 << 20

FOR_TERMINAL_BYTES = 64 << 10
"""Of a blob that is shown on a terminal."""

COLLECTING_S = 0.5
"""Of the second within which Ctrl-C ends a command."""

OnProgress = Callable[[BlobProgress], None]

Target = Path | int
"""A file, or the number of a stream that is open."""


@asynccontextmanager
async def transfer(session: Session, *, is_quiet: bool) -> AsyncIterator[OnProgress]:
    """What is to be told how far a blob is, as long as the session is open: it shows that, and gives more time."""
    async with progress_lines(is_silent=is_quiet or session.as_json) as show:
        last: BlobProgress | None = None

        def moved(progress: BlobProgress) -> None:
            nonlocal last
            if last is not None and _marks(progress) != _marks(last):
                session.patience.moved(session.timeout_s)
            label, done_bytes = progress.stage.value, progress.done_bytes
            if last is None or progress.stage is not last.stage:  # what was there before is none of this one's work
                there_bytes = done_bytes - progress.fetched_bytes if progress.stage is Stage.FETCHING else 0
                show(label, max(there_bytes, 0), progress.size_bytes)
            show(label, done_bytes, progress.size_bytes)
            last = progress

        yield moved


@contextmanager
def going_on_later(session: Session, what_is_kept: str | None, *, is_here: bool = False) -> Iterator[None]:
    """Say, if a signal ends the block in the middle of a transfer, that nothing of it is lost.

    Args:
        what_is_kept: and where; ``None`` if nothing is.
        is_here: on a disk of this machine; then it is also said if that is full, or fails, or nothing comes any more.
    """
    try:
        yield
    except (QueryError, StorageError) as error:
        if what_is_kept is None or not is_here or not session.patience.has_moved:
            raise
        kind = QueryError if isinstance(error, QueryError) else StorageError  # their kinds may need more than a text
        raise kind(f"{error}; {what_is_kept}: the same command goes on from there") from error
    except EndedBySignal as ended:
        if what_is_kept is not None and session.patience.has_moved and ended.signum != signal.SIGPIPE:
            complain(f"interrupted; {what_is_kept}: the same command goes on from there")
        raise


@asynccontextmanager
async def leaving_nothing(session: Session, dht: PrimeDHT) -> AsyncIterator[None]:
    """Remove from the data directory, at the end of the block, what it stored there and nobody claims any more.

    However it ends, that takes a moment at most. What is left then is for whoever opens the directory next.
    """
    try:
        yield
    finally:
        if session.config.data_dir is not None:
            with suppress(StorageError), trio.move_on_after(COLLECTING_S) as scope:
                scope.shield = True
                await dht.blobs.gc()


@contextmanager
def blocks_on_disk(session: Session) -> Iterator[Session]:
    """The session, with a place for as many blocks as it takes: memory is none, if there is no data directory.

    Raises:
        ConfigError: there is no such place.
    """
    if session.config.data_dir is not None:
        yield session
        return
    try:
        place = TemporaryDirectory(prefix="prime-dht-", ignore_cleanup_errors=True)
    except OSError as error:  # all of them are full, or read-only, as in a container
        raise ConfigError(f"blocks need a directory: {error.strerror}; give --data-dir, or set TMPDIR") from error
    with place as directory:
        yield replace(session, config=replace(session.config, blocks_dir=Path(directory)))


async def opened_source(source: Path | int, most_bytes: int) -> bytes | Path | AsyncIterator[bytes]:
    """What a node takes for the content of a file, or of a stream that is open.

    A stream is read until it ends, or has more than ``most_bytes``; so whoever waits for it dials nobody.

    Raises:
        ValidationError: it cannot be read.
    """
    if isinstance(source, Path) and _is_plain_file(source):
        return source
    pieces = _pieces_of(source)
    head, is_all = await read_ahead(pieces, most_bytes)
    return head if is_all else chained(head, pieces)


def check_size(found: Found, max_bytes: int | None) -> None:
    """Refuse a blob that is larger than ``--max-size``.

    Raises:
        ValidationError: it is.
    """
    if max_bytes is not None and found.blob is not None and found.blob.size > max_bytes:
        raise ValidationError(f"a blob of {found.blob.size:,} bytes; at most {max_bytes:,} were to be taken")


async def write_blob(
    dht: PrimeDHT, cid: Cid | Found, target: Target, progress: OnProgress, *, max_bytes: int | None = None
) -> None:
    """Fetch a blob and write it to a stream, a device or a pipe, in order, as it comes. A terminal gets a little text.

    Raises:
        BlobError: nobody has it, or the rest of it, or it is not what its entry says.
        ConfigError: it cannot be written, or is not for a terminal.
        EndedBySignal: nobody reads it any more.
        ValidationError: it has more than ``max_bytes``.
    """
    if target == STDOUT and os.isatty(STDOUT):
        async with dht.blobs.stream(cid, max_bytes=max_bytes) as pieces:
            text, is_all = await read_ahead(pieces, FOR_TERMINAL_BYTES)
        if not is_all:
            raise ConfigError(
                f"more than {FOR_TERMINAL_BYTES:,} bytes: send them elsewhere, or write them to --out FILE"
            )
        emit_for_people(text)
        return
    async with _opened(target) as file, dht.blobs.stream(cid, max_bytes=max_bytes, progress=progress) as pieces:
        async for piece in pieces:
            await trio.to_thread.run_sync(file.write, piece)


async def write_to(target: Target, value: bytes) -> None:
    """Write a value to a stream, a device or a pipe, as fast as it takes it.

    Raises:
        ConfigError: it cannot be written.
        EndedBySignal: nobody reads it any more.
    """
    async with _opened(target) as file:
        await trio.to_thread.run_sync(file.write, value)


def place_for(out: Path) -> Path | None:
    """Where the file is that ``out`` names, behind links; ``None`` for a device or a pipe, whose place no file takes.

    Raises:
        ConfigError: there can be no such file.
    """
    try:
        path = out.resolve()
        if path.is_dir():
            raise ConfigError(f"{out}: Is a directory")
        if not path.parent.is_dir():
            raise ConfigError(f"{out}: its directory does not exist")
        return path if path.is_file() or not os.path.lexists(path) else None
    except (OSError, RuntimeError) as error:  # a loop of links
        raise ConfigError(f"{out}: it cannot be reached: {error}") from error


@asynccontextmanager
async def _opened(target: Target) -> AsyncIterator[PatientFile]:
    """What can be written to as fast as it takes it."""
    is_open = isinstance(target, int)
    try:
        with await PatientFile.opened(target, "wb") as file:
            yield file
    except BrokenPipeError:
        raise EndedBySignal(signal.SIGPIPE) from None
    except OSError as error:
        name = "standard output" if is_open else str(target)
        raise ConfigError(f"{name}: {error.strerror}") from error


def _is_plain_file(path: Path) -> bool:
    """Whether it is, and can be read, and not a pipe or a device."""
    try:
        is_plain = stat.S_ISREG(path.stat().st_mode)
        if is_plain or path.is_dir():
            path.open("rb").close()
    except OSError as error:
        raise ValidationError(f"{path}: {error.strerror}") from error
    return is_plain


async def _pieces_of(source: Path | int) -> AsyncIterator[bytes]:
    is_open = isinstance(source, int)
    try:
        with io.BufferedReader(await PatientFile.opened(source, "rb"), PIECE_BYTES) as file:
            while piece := await trio.to_thread.run_sync(file.read1):
                yield piece
    except OSError as error:
        raise ValidationError(f"{'standard input' if is_open else source}: {error.strerror}") from error


def _marks(progress: BlobProgress) -> tuple[object, ...]:
    """What is different if something has moved."""
    return progress.stage, progress.done_bytes, progress.fetched_bytes, progress.replicas_held
