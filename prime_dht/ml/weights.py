"""Weights as safetensors: bytes and files that hold tensors and nothing that can run.

The format (https://github.com/huggingface/safetensors) is a length, a JSON header that names dtypes, shapes and
offsets, and the tensors' bytes. The safetensors library reads it, and refuses whatever does not cover the file exactly,
so no part of a truncated file is taken for the whole.

The same tensors always become the same bytes, so they have the same CID. They are written here, in the library's order
(by dtype, then by name) and with its bytes, because it wants all arrays in memory at once, and writes free
metadata, of which there is none here, in an order that changes from one call to the next. Of what is not an array in
memory as it will be in the file (on a GPU, across memory, of another byte order) one at a time is made into one.
"""

from __future__ import annotations

import io
import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from prime_dht.blobs.build import BlobBuilder
from prime_dht.blobs.chunking import TensorChunker
from prime_dht.blobs.cid import Cid
from prime_dht.errors import StorageError, ValidationError
from prime_dht.ml.extra import extra_needed
from prime_dht.ml.tensors import (
    Array,
    Spec,
    TensorSpec,
    Weights,
    as_tensors,
    checked_name,
    dtype_name,
    read_spec,
    spec_of,
    tensor_in,
)

with extra_needed():
    import safetensors

_LENGTH_BYTES = 8
_ALIGNMENT_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the library's own limit
_PIECE_BYTES = 1 << 20
_METADATA = "__metadata__"
_PICKLES = (b"\x80", b"PK\x03\x04")  # bare, and in the zip archive that torch.save writes
_ORDER = ("BOOL", "U8", "I8", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64", "U64")
"""Of dtypes, in the library's files from last to first."""


def write_safetensors(file: BinaryIO, weights: Weights) -> dict[str, TensorSpec]:
    """Write the safetensors file of weights; the same bytes whatever order they are given in.

    Tensors that share memory are each written whole; so are those that are not contiguous, as they read.

    Returns:
        the spec of what was written.

    Raises:
        ValidationError: a name is empty or longer than 1,024 bytes, or what it names is no array of a known dtype, or
            has more dimensions or elements than a tensor can have.
        OSError: the file cannot be written.
    """
    spec = spec_of(weights)
    if _METADATA in spec:
        raise ValidationError(f"no tensor is named {_METADATA!r}: in a safetensors file that is something else")
    ordered = sorted(spec, key=lambda name: (-_ORDER.index(dtype_name(spec[name].dtype)), name.encode()))
    file.write(_header({name: spec[name] for name in ordered}))
    for name in ordered:
        (array,) = as_tensors({name: weights[name]}).values()
        file.write(array.reshape(-1).view(np.uint8).data)
    return spec


def to_safetensors(weights: Weights) -> bytes:
    """As :func:`write_safetensors`, in memory."""
    file = io.BytesIO()
    write_safetensors(file, weights)
    return file.getvalue()


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
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    # The tensors cover the rest of the file without a gap, which the library has checked.
    offset = _LENGTH_BYTES + int.from_bytes(start, "little")
    tensors: dict[str, Array] = {}
    for name, one in spec.items():
        tensors[name] = _tensor(name, memoryview(mapped)[offset : offset + one.nbytes], one)
        offset += one.nbytes
    return tensors


def blob_cid_of(file: BinaryIO) -> Cid:
    """The CID that a safetensors file, from where it is read, has as a blob; it takes a second a GB."""
    builder = BlobBuilder(TensorChunker())
    while piece := file.read(_PIECE_BYTES):
        builder.feed(piece)
    builder.finish()
    assert builder.root is not None
    return builder.root


def spec_in_header(start: bytes) -> dict[str, TensorSpec]:
    """The spec in the first bytes of a safetensors file, its header, in the order in which the tensors' bytes follow.

    Raises:
        ValidationError: it is no such header, or one of a tensor that is none here.
    """
    if len(start) < _LENGTH_BYTES or int.from_bytes(start[:_LENGTH_BYTES], "little") != len(start) - _LENGTH_BYTES:
        raise ValidationError("not the header of a safetensors file: it has another length than it says")
    try:
        header = json.loads(start[_LENGTH_BYTES:].decode())
    except (ValueError, RecursionError) as error:
        raise ValidationError(f"not the header of a safetensors file: {error}") from error
    return dict(_laid_out(header))


def _laid_out(header: object) -> Iterator[tuple[str, TensorSpec]]:
    if not isinstance(header, dict):
        raise ValidationError("not the header of a safetensors file: no object")
    places: list[tuple[list[int], str, TensorSpec]] = []
    for name, about in header.items():
        if name == _METADATA:
            continue
        about = about if isinstance(about, dict) else {}
        spec = read_spec(checked_name(name), about.get("dtype"), about.get("shape"))
        offsets = about.get("data_offsets")
        if not (isinstance(offsets, list) and [type(one) for one in offsets] == [int, int]):
            raise ValidationError(f"the tensor {name!r} lies nowhere")
        places.append((offsets, name, spec))
    end = 0
    for (start, stop), name, spec in sorted(places, key=lambda place: place[0]):
        if start != end or stop != end + spec.nbytes:
            raise ValidationError(f"the tensor {name!r} does not lie where the one before it ends")
        end = stop
        yield name, spec


def _header(spec: Spec) -> bytes:
    """The header of a file of tensors in this order, its length before it; padded, so that their bytes are aligned."""
    about: dict[str, object] = {}
    end = 0
    for name, one in spec.items():
        start, end = end, end + one.nbytes
        about[name] = {"dtype": dtype_name(one.dtype), "shape": one.shape, "data_offsets": [start, end]}
    text = json.dumps(about, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _refuse_pickle(start: bytes) -> None:
    # The length of a header may begin with the same byte; but no header is as long as a pickle's next bytes would say.
    if start.startswith(_PICKLES) and int.from_bytes(start[:_LENGTH_BYTES], "little") > _MAX_HEADER_BYTES:
        raise ValidationError(
            "this is a pickle (torch.save writes them), which can run code when it is loaded; it is refused: "
            "save the tensors with safetensors"
        )


def _tensor(name: str, buffer: memoryview | bytearray, spec: TensorSpec) -> Array:
    try:
        return tensor_in(buffer, spec)
    except ValidationError as error:
        raise ValidationError(f"the tensor {name!r} {error}") from error
