"""Weights as safetensors: bytes and files that hold tensors and nothing that can run.

The format (https://github.com/huggingface/safetensors) is a length, a JSON header that names dtypes, shapes and
offsets, and the tensors' bytes. The safetensors library reads it, and refuses whatever does not cover the file exactly,
so no part of a truncated file is taken for the whole.

The same tensors always become the same bytes, so they have the same CID. Therefore no free metadata is written here:
the library writes it in an order that changes from one call to the next.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import safetensors
from safetensors.numpy import save

from prime_dht.errors import StorageError, ValidationError
from prime_dht.ml.tensors import Array, Tensors, TensorSpec, as_tensors, checked_name, read_spec, tensor_in

_LENGTH_BYTES = 8
_PICKLES = (b"\x80", b"PK\x03\x04")  # bare, and in the zip archive that torch.save writes


def to_safetensors(tensors: Tensors) -> bytes:
    """The safetensors file of tensors; the same bytes whatever order they are given in.

    Raises:
        ValidationError: as :func:`~prime_dht.ml.tensors.as_tensors` does.
    """
    return save(as_tensors(tensors))


def from_safetensors(data: bytes) -> dict[str, Array]:
    """The tensors in the bytes of a safetensors file, in memory of their own.

    Raises:
        ValidationError: it is a pickle, truncated, or otherwise no safetensors file, or holds a dtype not known here.
    """
    _refuse_pickle(data[:_LENGTH_BYTES])
    try:
        found = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise ValidationError(f"not a safetensors file: {error}") from error
    return {
        checked_name(name): _tensor(name, view["data"], read_spec(name, view["dtype"], view["shape"]))
        for name, view in found
    }


def map_safetensors(path: Path) -> dict[str, Array]:
    """The tensors of a safetensors file, mapped into memory to be read: pages are loaded when they are touched.

    The file must not be written to while they are in use.

    Raises:
        ValidationError: as :func:`from_safetensors` does.
        StorageError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_LENGTH_BYTES)
            _refuse_pickle(start)
            with safetensors.safe_open(path, "np") as checked:
                views = ((name, checked.get_slice(name)) for name in checked.offset_keys())
                spec = {checked_name(name): read_spec(name, view.get_dtype(), view.get_shape()) for name, view in views}
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except safetensors.SafetensorError as error:
        raise ValidationError(f"{path} is not a safetensors file: {error}") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    # The tensors cover the rest of the file without a gap, which the library has checked.
    offset = _LENGTH_BYTES + int.from_bytes(start, "little")
    tensors: dict[str, Array] = {}
    for name, one in spec.items():
        tensors[name] = _tensor(name, memoryview(mapped)[offset : offset + one.nbytes], one)
        offset += one.nbytes
    return tensors


def _refuse_pickle(start: bytes) -> None:
    if start.startswith(_PICKLES):
        raise ValidationError(
            "this is a pickle (torch.save writes them), which can run code when it is loaded; it is refused: "
            "save the tensors with safetensors"
        )


def _tensor(name: str, buffer: memoryview | bytearray, spec: TensorSpec) -> Array:
    try:
        return tensor_in(buffer, spec)
    except ValidationError as error:
        raise ValidationError(f"the tensor {name!r} {error}") from error
