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
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from prime_dht.errors import ValidationError
from prime_dht.ml.extra import extra_needed

with extra_needed():
    import ml_dtypes

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
_DTYPES_BY_NUMPY_NAME = {dtype.name: dtype for dtype in DTYPES.values()}


@runtime_checkable
class TorchTensor(Protocol):
    """What is used of a torch tensor, which need not be installed: its dtypes are named as numpy's."""

    @property
    def dtype(self) -> object: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def detach(self) -> TorchTensor: ...
    def cpu(self) -> TorchTensor: ...
    def view(self, dtype: object, /) -> TorchTensor: ...
    def numpy(self) -> Array: ...


Weights = Mapping[str, TorchTensor | npt.ArrayLike]
"""A set of tensors, or what can be made into one: whatever numpy takes for arrays, or a torch state dict."""


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


def as_tensors(weights: Weights) -> dict[str, Array]:
    """Tensors of whatever numpy takes for arrays, and of torch's, in C order and little-endian; copied only where they
    have to be.

    Raises:
        ValidationError: they are no names and arrays, a name is empty or longer than 1,024 bytes, or what it names is
            no array of one of :data:`DTYPES`.
    """
    return {checked_name(name): _as_tensor(name, one) for name, one in _checked(weights).items()}


def spec_of(weights: Weights) -> dict[str, TensorSpec]:
    """The dtypes and shapes of tensors, as :func:`as_tensors` makes them; nothing of torch's is copied for it.

    Raises:
        ValidationError: as :func:`as_tensors`, or one has more dimensions or elements than a tensor can have.
    """
    return {checked_name(name): _spec_of_one(name, one) for name, one in _checked(weights).items()}


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
    check_same_spec(spec_of(tensors), spec)


def check_same_spec(found: Spec, spec: Spec) -> None:
    """As :func:`check_spec`, where nothing is known of tensors yet but their spec.

    Raises:
        ValidationError: it is another one.
    """
    for name, expected in spec.items():
        if name not in found:
            raise ValidationError(f"the tensor {name!r} is missing")
        if found[name] != expected:
            raise ValidationError(f"the tensor {name!r} is {found[name]}, not {expected}")
    for name in found:
        if name not in spec:
            raise ValidationError(f"there should be no tensor {name!r}")


def check_is_spec(spec: Spec) -> None:
    """Check that a spec is one, and not, say, the tensors whose it should be.

    Raises:
        ValidationError: it is none.
    """
    if not isinstance(spec, Mapping) or not all(isinstance(one, TensorSpec) for one in spec.values()):
        raise ValidationError(
            "a spec is what prime_dht.ml.tensors.spec_of makes of tensors, not the tensors themselves"
        )


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


def _checked(weights: Weights) -> Weights:
    if not isinstance(weights, Mapping):
        raise ValidationError(
            f"tensors are names and arrays, such as a dict or a torch state dict, not {type(weights).__name__}"
        )
    return weights


def _as_tensor(name: str, one: object) -> Array:
    tensor = np.asarray(_array(name, one), order="C")
    little = tensor.dtype.newbyteorder("<")
    if little not in _NAMES:
        raise unknown_dtype(name, str(tensor.dtype))
    return tensor.astype(little, copy=False)


def _spec_of_one(name: str, one: object) -> TensorSpec:
    if type(one) is np.ndarray and one.dtype in _NAMES:  # nearly all are; to find out what else takes much longer
        return read_spec(name, dtype_name(one.dtype), list(one.shape))
    if isinstance(one, TorchTensor):
        dtype_text = str(one.dtype).removeprefix("torch.")
        dtype = _DTYPES_BY_NUMPY_NAME.get(dtype_text)
        shape = tuple(one.shape)
    else:
        array = _array(name, one)
        dtype_text = str(array.dtype)
        dtype = _DTYPES_BY_NUMPY_NAME.get(array.dtype.name)
        shape = array.shape
    if dtype is None:
        raise unknown_dtype(name, dtype_text)
    return read_spec(name, dtype_name(dtype), list(shape))  # what could not be read again is not written


def _array(name: str, one: object) -> Array:
    """The array that is meant, which may be a copy: of a torch tensor the one it shares its memory with, if it can."""
    if isinstance(one, np.ndarray):  # first, as this is quickly known
        if isinstance(one, np.ma.MaskedArray) and one.dtype in _NAMES and np.ma.is_masked(one):
            raise ValidationError(f"the tensor {name!r} is masked, and a tensor is not: fill it, with filled()")
        return one
    if isinstance(one, Mapping):
        raise ValidationError(f"{name!r} is a mapping: give all tensors side by side, each under a name of its own")
    try:
        if not isinstance(one, TorchTensor):
            array: Array = np.asarray(one)
            return array
        tensor = one.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":  # which torch does not give to numpy, but its bits
            return tensor.view(sys.modules["torch"].int16).numpy().view(BFLOAT16)
        return tensor.numpy()
    except (TypeError, ValueError, RuntimeError) as error:  # torch's, of sparse and other unusual tensors
        raise ValidationError(f"the tensor {name!r} is no array: {error}") from error
