"""Pulling a version: its weights into a file, of which only what is not here yet is fetched.

Without a path of the caller's, the file is in the folder for models, under the model's id and the CID of the weights,
so a version that was pulled before is there. The last :data:`KEPT_FILES` of each model are kept, and what interrupted
pulls have left until the next one ends; a file that goes while its tensors are in use stays until they are not.
Processes of one machine that pull a model at the same time, as the ranks of a training job do, take turns, and the
second finds what the first has fetched. So do those that pull one version to one path.

A file gets its name, in place of what had it before, once it is known to be a safetensors file: lies of a publisher
cost nothing that was here. One in the folder that has changed since, because it was cut off or somebody wrote to it, is
fetched anew: beside each lies a *note* of its size, its inode and when it was written last; where these differ, its
bytes are hashed, and have to be those that its CID names. Files in the folder are made read-only, lest somebody writes
to one whose tensors are in use; to change a model, copy it.

**What is shared is not fetched.** Tensors that have the same name, dtype and shape in the model's newest file here
are copied to where they lie in the new one, before the fetch, which finds them there as if it had been interrupted: it
believes none of it, but compares hashes (:mod:`prime_dht.node.blobs.file`), block by block. So of a version that
differs in one tensor that tensor is fetched, or the blocks of 1 MiB of it that differ.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import trio

from prime_dht.blobs.cid import Cid, Codec
from prime_dht.blobs.unixfs import MAX_BLOCK_BYTES
from prime_dht.errors import BlobError, PrimeDHTError, StorageError, ValidationError
from prime_dht.ml.models.listing import find_version
from prime_dht.ml.models.model import Model
from prime_dht.ml.models.version import ModelVersion, weights_key
from prime_dht.ml.tensors import TensorSpec, size_bytes_of
from prime_dht.ml.weights import blob_cid_of, map_safetensors, spec_in_header
from prime_dht.node.blobs.file import partial_path, place_of

if TYPE_CHECKING:
    from prime_dht.node import PrimeDHT
    from prime_dht.node.arguments import PeerLike
    from prime_dht.node.blobs.progress import BlobProgress
    from prime_dht.node.results import Found

KEPT_FILES = 3
"""Of each model, in the folder for models."""

TURN_EVERY_S = 0.1
"""Who waits for another process to pull the model looks this often whether it is done."""


_WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


async def pull(
    dht: PrimeDHT,
    version: ModelVersion,
    *,
    to: Path | None = None,
    folder: Path,
    progress: Callable[[BlobProgress], None] | None = None,
) -> Model:
    """Pull a version that was listed. See :meth:`prime_dht.ml.client.LearningDHT.pull_model`."""
    kept_in = folder.joinpath(*version.model_id.split("/"))
    if to is not None:
        await trio.to_thread.run_sync(_check_place, to)
        async with _alone(_beside(to, version.cid, "lock")):
            return await _fetched(dht, version, to, kept_in, progress)
    async with _alone(kept_in / ".lock"):
        path = kept_in / f"{version.cid}.safetensors"
        model = await trio.to_thread.run_sync(_model_here, version, path)
        if model is None:
            model = await _fetched(dht, version, path, kept_in, progress)
        await trio.to_thread.run_sync(_note_use, path)
    return model


async def spec_of(
    dht: PrimeDHT, model_id: str, number: int | None, publisher: PeerLike | None = None
) -> dict[str, TensorSpec]:
    """Names, dtypes and shapes of a version's tensors, in the file's order; of the weights only the header is fetched.

    Raises:
        BlobError: the weights are gone.
        ValidationError: they are no safetensors file.
        UnknownModelError, QueryError: as :func:`~prime_dht.ml.models.listing.find_version` does.
    """
    version = await find_version(dht, model_id, number, publisher)
    header = await _header(dht, version, await _weights(dht, version))
    return await trio.to_thread.run_sync(spec_in_header, header)


async def _weights(dht: PrimeDHT, version: ModelVersion) -> Found:
    """The entry of a version's weights; if they are a blob, it is not fetched.

    Raises:
        BlobError: it is gone, or its publisher has put another in its place.
        ValidationError: they have another size than the publisher says.
    """
    found = await dht.get(
        weights_key(version.model_id), subkey=version.subkey, publisher=version.publisher, latest=True, fetch=False
    )
    if found is None:
        raise BlobError(f"the weights of {version} are gone")
    if bytes(version.cid) != (found.blob.cid if found.blob else bytes(Cid.of_raw(found.value))):
        raise _replaced(version)
    size_bytes = found.blob.size if found.blob else len(found.value)
    if size_bytes != version.size_bytes:
        raise ValidationError(
            f"the weights of {version} take {size_bytes:,} bytes, not {version.size_bytes:,} as its publisher says"
        )
    return found


async def _header(dht: PrimeDHT, version: ModelVersion, found: Found) -> bytes:
    """Of a version's weights, whose entry was found, what comes before the tensors' bytes."""
    if found.blob is None:
        return found.value[: version.header_bytes]
    return await dht.blobs.fetch(found, stop=version.header_bytes)


async def _fetched(
    dht: PrimeDHT,
    version: ModelVersion,
    path: Path,
    kept_in: Path,
    progress: Callable[[BlobProgress], None] | None,
) -> Model:
    """Bring a version's weights to a file, which gets its name when they are known to be some."""
    found = await _weights(dht, version)
    base = await trio.to_thread.run_sync(_base, path, kept_in)
    unchecked = _beside(path, version.cid, "unchecked")
    if found.blob is not None and base is not None:
        header = await _header(dht, version, found)
        await trio.to_thread.run_sync(_lay_out, partial_path(unchecked, version.cid), header, base, found.blob.size)
    written = await dht.get(
        weights_key(version.model_id),
        subkey=version.subkey,
        publisher=version.publisher,
        to=unchecked,
        progress=progress,
    )
    if written is None or written.op_id != found.op_id:
        await trio.to_thread.run_sync(_remove, unchecked)
        raise _replaced(version)
    return await trio.to_thread.run_sync(_accepted, version, unchecked, path)


def _replaced(version: ModelVersion) -> BlobError:
    return BlobError(f"the weights of {version} are not those that were listed: list its versions again")


def _check_place(path: Path) -> None:
    """Check that a file can be there, before any of it is fetched.

    Raises:
        StorageError: it cannot.
        ValidationError: no file can have this name.
    """
    with _errors_of_storage(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        place_of(path)
        os.stat(f"{path.parent}/.")  # which has to be a folder


def _beside(path: Path, cid: Cid, kind: str) -> Path:
    """Of a file for the weights that a CID names, one that is there only while they are pulled."""
    return path.with_name(f".{path.name}.{str(cid)[-8:]}.{kind}")


def _remove(path: Path) -> None:
    with _errors_of_storage(path):
        path.unlink(missing_ok=True)


def _model_here(version: ModelVersion, path: Path) -> Model | None:
    """The model in the file that it was pulled to before, if it is still there and still the same."""
    with _errors_of_storage(path):
        if not path.exists():
            return None
        if not _is_as_noted(path) and not _is_content_of(path, version.cid):
            return None
    try:
        return Model(tensors=map_safetensors(path), version=version, path=path)
    except ValidationError:  # the disk was full, or power failed
        return None


def _note_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.note")


def _state_of(path: Path) -> str:
    """What is other when a file was written to, or another is in its place."""
    found = path.stat()
    return f"{found.st_size} {found.st_ino} {found.st_mtime_ns}"


def _is_as_noted(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return _note_of(path).read_bytes() == _state_of(path).encode()
    return False


def _is_content_of(path: Path, cid: Cid) -> bool:
    """Whether a file's bytes are those of a CID: as one block, or cut by tensors."""
    with path.open("rb") as file:
        if cid.codec is Codec.RAW and path.stat().st_size <= MAX_BLOCK_BYTES and Cid.of_raw(file.read()) == cid:
            return True
        file.seek(0)
        return blob_cid_of(file) == cid


def _accepted(version: ModelVersion, unchecked: Path, path: Path) -> Model:
    """The model in a file that was fetched, at its place; what is none is not left anywhere.

    Raises:
        ValidationError: the publisher pushed something else.
    """
    try:
        tensors = map_safetensors(unchecked)
    except ValidationError as error:
        _remove(unchecked)
        raise ValidationError(f"{version}: {error}") from error
    with _errors_of_storage(path):
        unchecked.rename(path)
    return Model(tensors=tensors, version=version, path=path)


def _lay_out(unfinished: Path, header: bytes, base: Path, size_bytes: int) -> None:
    """Write a file's header, and the tensors that another may share with it, where an interrupted fetch leaves them.

    If there is one already, it stays. This only saves fetching: if it fails, nothing is lost.

    Args:
        size_bytes: of the file; what a header says of more is a lie, and is not written.
    """
    laid_out = unfinished.with_suffix(".laid-out")
    with contextlib.suppress(OSError, PrimeDHTError):
        here, spec = map_safetensors(base), spec_in_header(header)
        if len(header) + size_bytes_of(spec) != size_bytes:
            return
        with laid_out.open("wb") as file:
            file.write(header)
            for name, one in spec.items():
                tensor = here.get(name)
                if tensor is not None and (tensor.dtype, tensor.shape) == (one.dtype, one.shape):
                    file.write(tensor.reshape(-1).view(np.uint8).data)
                else:
                    file.seek(one.nbytes, os.SEEK_CUR)
        os.link(laid_out, unfinished)  # fails if there is one
    laid_out.unlink(missing_ok=True)


def _base(path: Path, kept_in: Path) -> Path | None:
    """The file here that is likely to share most: what will be replaced, or else the model's that was used last."""
    with contextlib.suppress(FileNotFoundError):  # another process may remove them meanwhile
        return path if path.is_file() else next(iter(_files(kept_in)), None)
    return None


def _note_use(path: Path) -> None:
    """Keep this file as the last used, only so many others, and nothing of pulls that were interrupted."""
    with _errors_of_storage(path):
        with contextlib.suppress(OSError):  # not every file system can
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~_WRITABLE)
        now_ns = time.time_ns()  # finer than the clock of the file system: nobody writes to it at the same instant
        os.utime(path, ns=(now_ns, now_ns))
        _note_of(path).write_text(_state_of(path))
        interrupted = (
            one for kind in ("partial", "nodes", "laid-out", "unchecked") for one in path.parent.glob(f".*.{kind}")
        )
        for old in chain(_files(path.parent)[KEPT_FILES:], interrupted):
            old.unlink()
            _note_of(old).unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    """Those of a model, the last used first."""
    found = (path for path in folder.glob("[!.]*.safetensors") if path.is_file())  # ids of others may end like this
    return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)


@asynccontextmanager
async def _alone(path: Path) -> AsyncIterator[None]:
    """Wait until nobody else, in whatever process, has a lock file; then nobody else does. At the end it is removed.

    Raises:
        StorageError: it, or its folder, cannot be made or locked.
    """
    while (lock := await trio.to_thread.run_sync(_locked, path)) is None:  # noqa: ASYNC110 - no other process tells us
        await trio.sleep(TURN_EVERY_S)
    try:
        yield
    finally:
        _unlock(path, lock)


def _locked(path: Path) -> IO[bytes] | None:
    """A lock file that is ours now; ``None`` if it is another's, or was until it was removed."""
    with _errors_of_storage(path.parent), contextlib.ExitStack() as stack:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = stack.enter_context(path.open("wb"))
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                stack.pop_all()
                return lock
    return None


def _unlock(path: Path, lock: IO[bytes]) -> None:
    with lock:
        with contextlib.suppress(OSError):
            path.unlink()
        fcntl.flock(lock, fcntl.LOCK_UN)  # closing is not enough: a child that was forked meanwhile has it open too


@contextmanager
def _errors_of_storage(path: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
