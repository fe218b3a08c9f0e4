"""Weights on their way out: a safetensors file, open, of which everything was checked that is said of it later.

Arrays are written to a file without a name, which the system removes when it is closed or the process dies, in the
folder for models: not in memory, where they are already. From then on the arrays may change. A file of the caller's is
sent as it is, and must not be written to meanwhile.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Self, cast

import trio

from prime_dht.errors import StorageError, ValidationError
from prime_dht.ml.models.version import MAX_HEADER_BYTES
from prime_dht.ml.tensors import Spec, Weights, size_bytes_of, spec_of
from prime_dht.ml.weights import map_safetensors, write_safetensors

READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A safetensors file. Close it.

    Attributes:
        file: open, at its beginning.
        size_bytes, header_bytes: of it, and of its header, with the length that it begins with.
        parameter_count: the elements of all tensors.
    """

    file: IO[bytes]
    size_bytes: int
    header_bytes: int
    parameter_count: int

    @classmethod
    def of(cls, weights: Weights | str | os.PathLike[str], folder: Path) -> Self:
        """Weights, checked, in a file.

        Args:
            weights: names and arrays, such as a torch state dict; or the path of a safetensors file.
            folder: where to write arrays; made if it is not there.

        Raises:
            ValidationError: an array is of a dtype that a model's cannot have, or the file is a pickle, truncated, or
                otherwise no safetensors file.
            StorageError: the file cannot be read, or none can be written.
        """
        if isinstance(weights, str | os.PathLike):
            return cls._of_path(Path(weights))
        if not isinstance(weights, Mapping):
            raise ValidationError(
                "weights are names and arrays, such as model.state_dict(), or the path of a safetensors file, "
                f"not {type(weights).__name__}"
            )
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - whoever pushes closes it
            try:
                return cls._of_open(file, write_safetensors(cast(BinaryIO, file), weights))
            except BaseException:  # Ctrl-C among them: nobody else has the file
                file.close()
                raise
        except OSError as error:
            raise StorageError(f"the weights cannot be written in {folder}: {error.strerror}") from error

    @classmethod
    def _of_path(cls, path: Path) -> Self:
        spec = spec_of(map_safetensors(path))
        try:
            return cls._of_open(path.open("rb"), spec)
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error

    @classmethod
    def _of_open(cls, file: IO[bytes], spec: Spec) -> Self:
        size_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        header_bytes = size_bytes - size_bytes_of(spec)
        if header_bytes > MAX_HEADER_BYTES:
            raise ValidationError(
                f"names and shapes of the tensors take {header_bytes:,} bytes: {MAX_HEADER_BYTES:,} is most"
            )
        return cls(
            file=file,
            size_bytes=size_bytes,
            header_bytes=header_bytes,
            parameter_count=sum(one.size for one in spec.values()),
        )

    async def read(self) -> bytes:
        """All its bytes; it is small.

        Raises:
            StorageError: it cannot be read.
        """
        return b"".join([piece async for piece in self.pieces()])

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Its bytes, in order, from the beginning.

        Raises:
            StorageError: it cannot be read.
        """
        try:
            self.file.seek(0)
            while piece := await trio.to_thread.run_sync(self.file.read, READ_BYTES):
                yield piece
        except OSError as error:
            raise StorageError(f"the weights cannot be read: {error.strerror}") from error

    def close(self) -> None:
        """Let go of the file, and of its space if it has no name."""
        self.file.close()
