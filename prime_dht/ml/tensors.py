"""Tensors: named numpy arrays, and what they must be to be stored, sent or aggregated.

A set of *tensors* maps names to arrays: a model's weights, a gradient, an optimiser's state. A *tensor spec* is the
dtype and shape of one tensor; a *spec* is those of a set. Whoever takes tensors from a peer knows the spec they must
have (that of the model that is trained) and checks them against it, for what does not fit cannot be averaged.

The dtypes are those of safetensors that numpy can work with, bfloat16 by way of ml_dtypes. They are named as in
safetensors files. Tensors of *floating* dtypes carry measurements, which codecs may round and rules may average; all
others (counters, masks, token ids) are exact. Scalars are tensors of shape (), and a tensor may be empty.

>>> tensors = as_tensors({"weight": [[1.0, 2.0]], "steps": 7})
>>> for name, tensor_spec in spec_of(tensors).items():
...     print(name, tensor_spec)
weight float64 (1, 2)
steps int64 ()
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from prime_dht.errors import ValidationError

Array = npt.NDArray[np.generic]
Dtype = np.dtype[np.generic]
Tensors = Mapping[str, Array]

BFLOAT16: Dtype = np.dtype(ml_dtypes.bfloat16)

DTYPES: Mapping[str, Dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
"""The dtypes a tensor can have, by their names in safetensors; in memory as in files, little-endian."""

FLOATING = frozenset(DTYPES[name] for name in ("F16", "BF16", "F32", "F64"))

MAX_NAME_BYTES = 1024
MAX_DIMENSIONS = 32
MAX_ELEMENTS = 1 << 48
"""Of a tensor, where lengths of 0 count as 1; so that no size overflows, even of one that holds nothing."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The dtype and shape of a tensor."""

    dtype: Dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many elements it has; exact, however large."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def is_floating(self) -> bool:
        return self.dtype in FLOATING

    def __str__(self) -> str:
        return f"{self.dtype.name} {self.shape}"


Spec = Mapping[str, TensorSpec]


def as_tensors(arrays: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
    """Tensors of whatever numpy takes for arrays, in C order and little-endian; copied only where they are not yet.

    Raises:
        ValidationError: a name is empty or longer than 1,024 bytes, or an array's dtype is none of :data:`DTYPES`.
    """
    return {checked_name(name): _as_tensor(name, array) for name, array in arrays.items()}


def spec_of(tensors: Tensors) -> dict[str, TensorSpec]:
    """The dtypes and shapes of tensors."""
    return {name: TensorSpec(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def read_spec(name: str, code: object, shape: object) -> TensorSpec:
    """The spec that a peer's header tells of a tensor.

    Raises:
        ValidationError: its dtype is not known here, or it has more than 32 dimensions or 2**48 elements.
    """
    if not isinstance(code, str) or code not in DTYPES:
        raise unknown_dtype(name, str(code))
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise ValidationError(f"the tensor {name!r} has no shape of at most {MAX_DIMENSIONS} dimensions")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValidationError(f"the tensor {name!r} has a shape that no tensor has")
    if math.prod(length or 1 for length in shape) > MAX_ELEMENTS:
        raise ValidationError(f"the tensor {name!r} has more than {MAX_ELEMENTS} elements")
    return TensorSpec(DTYPES[code], tuple(shape))


def size_bytes_of(spec: Spec) -> int:
    """The memory that tensors of this spec take."""
    return sum(tensor_spec.nbytes for tensor_spec in spec.values())


def check_spec(tensors: Tensors, spec: Spec) -> None:
    """Check that tensors have the names, dtypes and shapes they must have.

    Raises:
        ValidationError: one is missing, unexpected, or of another dtype or shape; it names the first of them.
    """
    found = spec_of(tensors)
    for name, expected in spec.items():
        if name not in found:
            raise ValidationError(f"the tensor {name!r} is missing")
        if found[name] != expected:
            raise ValidationError(f"the tensor {name!r} is {found[name]}, not {expected}")
    for name in found:
        if name not in spec:
            raise ValidationError(f"there should be no tensor {name!r}")


def check_finite(tensors: Tensors) -> None:
    """Check that tensors hold no NaN and no infinity.

    Raises:
        ValidationError: one does; it says which, and how many.
    """
    for name, tensor in tensors.items():
        if tensor.dtype in FLOATING:
            bad = tensor.size - int(np.count_nonzero(np.isfinite(tensor)))
            if bad:
                raise ValidationError(f"the tensor {name!r} holds {bad} values that are not finite, of {tensor.size}")


def tensor_in(buffer: memoryview | bytearray, spec: TensorSpec) -> Array:
    """The tensor whose elements are all the bytes of a buffer, in C order.

    Raises:
        ValidationError: it is of dtype BOOL, and a byte is neither 0 nor 1, which numpy takes for granted; the text
            goes after the tensor's name.
    """
    if spec.dtype == np.bool_ and np.any(np.frombuffer(buffer, np.uint8) > 1):
        raise ValidationError("is of dtype BOOL and holds bytes other than 0 and 1")
    return np.frombuffer(buffer, spec.dtype).reshape(spec.shape)


def dtype_name(dtype: Dtype) -> str:
    """The name in safetensors of one of :data:`DTYPES`."""
    return _NAMES[dtype]


def unknown_dtype(name: str, found: str) -> ValidationError:
    """The error to raise where a tensor is of a dtype that is not known here."""
    return ValidationError(f"the tensor {name!r} is of dtype {found}; a tensor is one of {', '.join(DTYPES)}")


def checked_name(name: object) -> str:
    """A tensor's name.

    Raises:
        ValidationError: it is no text of 1 to 1,024 bytes of UTF-8.
    """
    try:
        length = len(name.encode()) if isinstance(name, str) else 0
    except UnicodeEncodeError as error:  # lone surrogates, which JSON can hold
        raise ValidationError("a tensor's name is valid Unicode") from error
    if not isinstance(name, str) or not 0 < length <= MAX_NAME_BYTES:
        raise ValidationError(f"a tensor's name is text of 1 to {MAX_NAME_BYTES} bytes")
    return name


def _as_tensor(name: str, array: npt.ArrayLike) -> Array:
    tensor = np.asarray(array, order="C")
    little = tensor.dtype.newbyteorder("<")
    if little not in _NAMES:
        raise unknown_dtype(name, str(tensor.dtype))
    return tensor.astype(little, copy=False)
