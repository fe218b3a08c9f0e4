"""Codecs: how one tensor becomes bytes, and how far what comes back may be from what went in.

Let ``u`` be the unit roundoff of the tensor's own dtype: 2**-53, 2**-24, 2**-11 and 2**-8 for float64, float32, float16
and bfloat16. For every element ``x`` and its decoded value ``y``:

======== ================================ ===========================================================================
codec    bytes for an element             bound
======== ================================ ===========================================================================
none     those of the dtype               y = x, to the bit
fp16     2                                |y - x| ≤ 2**-11 |x| + 2**-25; |x| ≤ 65,504, or it is refused
bf16     2                                |y - x| ≤ 2**-8 |x| + 2**-134; |x| ≤ 3.38e38, or it is refused
int8     1, and 4 for a block             |y - x| ≤ max(peak / 254, 2**-127) + (u + 2**-22) peak, where ``peak`` is the
                                          greatest |x| of its block
topk     4 and those of the dtype,        y = x for the k = ⌈fraction * n⌉ greatest |x|, y = 0 for the rest, so
         for each element sent            ‖y - x‖² ≤ (1 - k / n) ‖x‖²
======== ================================ ===========================================================================

Only floating tensors are rounded, and by fp16 and bf16 only those wider than 2 bytes; all others pass as they are, to
the bit. Codecs that round refuse tensors that are not finite: a NaN would spoil its whole block in silence.

Sources: blockwise int8, Dettmers et al. 2022, section 2.1 (arXiv 2110.02861), here with evenly spaced levels; top-k,
Stich et al. 2018 (arXiv 1809.07599), whose memory is :class:`~prime_dht.ml.codecs.feedback.ErrorFeedback`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from prime_dht.errors import ValidationError
from prime_dht.ml.tensors import BFLOAT16, Array, Dtype, TensorSpec, tensor_in

MAX_ELEMENTS = 1 << 32
"""Of a tensor whose elements are picked by index; indices have 4 bytes."""

_SMALLEST_SCALE = np.float32(2.0**-126)
_LEVELS = np.float32(127)

_FP16_VALUES = np.arange(1 << 16, dtype="<u2").view("<f2").astype(np.float32)
"""What the 16 bits of every float16 mean."""

# Bits of float32.
_MAGNITUDE = np.uint32(0x7FFF_FFFF)
_HALF = np.float32(0.5).view(np.uint32)
_LEAST_NORMAL_FP16 = np.float32(2.0**-14).view(np.uint32)
_BEYOND_FP16 = np.float32(2.0**16).view(np.uint32)
_REBIAS_AND_ROUND = np.uint32((15 - 127) * (1 << 23) + (1 << 12) - 1 + (1 << 32))
_FEW = 1 << 14

_MANY = 1 << 16
"""Elements that are worked on at a time, lest what is made of all of them takes several times a tensor's memory."""


@dataclass(frozen=True, slots=True)
class Codec(ABC):
    """How one tensor becomes bytes. The dataclass fields of a codec are its parameters, and travel with its name."""

    name: ClassVar[str]

    @abstractmethod
    def rounds(self, spec: TensorSpec) -> bool:
        """Whether it changes tensors of this spec; others travel as they are, and are never given to it."""

    @abstractmethod
    def body_bytes(self, spec: TensorSpec) -> int:
        """The exact length of the body of a tensor of this spec."""

    @abstractmethod
    def encode(self, tensor: Array) -> bytes:
        """The body of a tensor.

        Raises:
            ValidationError: it cannot be encoded within the codec's bound; the text goes after the tensor's name.
        """

    @abstractmethod
    def decode(self, body: memoryview, spec: TensorSpec) -> Array:
        """The tensor of a body of the right length, whose contents are hostile until checked. It is to be read only.

        Raises:
            ValidationError: no tensor is encoded so.
        """


@dataclass(frozen=True, slots=True)
class Plain(Codec):
    """The tensor as it is."""

    name: ClassVar[str] = "none"

    def rounds(self, spec: TensorSpec) -> bool:  # noqa: ARG002
        return False

    def body_bytes(self, spec: TensorSpec) -> int:
        return spec.nbytes

    def encode(self, tensor: Array) -> bytes:
        return tensor.tobytes()

    def decode(self, body: memoryview, spec: TensorSpec) -> Array:
        return tensor_in(body, spec)


@dataclass(frozen=True, slots=True)
class _Narrowing(Codec):
    """Rounds every element to the nearest of a narrower dtype, ties to even."""

    narrow: ClassVar[Dtype]

    def rounds(self, spec: TensorSpec) -> bool:
        return spec.is_floating and spec.dtype.itemsize > self.narrow.itemsize

    def body_bytes(self, spec: TensorSpec) -> int:
        return spec.size * self.narrow.itemsize

    def encode(self, tensor: Array) -> bytes:
        _check_finite(tensor)
        with np.errstate(over="ignore", under="ignore"):
            # float64 by way of float32, as ml_dtypes does to bfloat16; the bound holds after two roundings as well.
            narrowed = self._narrowed(tensor.astype(np.float32))
        if not np.isfinite(narrowed).all():
            raise ValidationError(f"holds values beyond the range of {self.name}")
        return narrowed.tobytes()

    def decode(self, body: memoryview, spec: TensorSpec) -> Array:
        narrowed = np.frombuffer(body, self.narrow).reshape(spec.shape)
        _check_finite(narrowed)
        return self._widened(narrowed).astype(spec.dtype, copy=False)

    def _narrowed(self, values: npt.NDArray[np.float32]) -> Array:
        return values.astype(self.narrow)

    def _widened(self, narrowed: Array) -> Array:
        return narrowed.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Fp16(_Narrowing):
    """Every element as float16."""

    name: ClassVar[str] = "fp16"
    narrow: ClassVar[Dtype] = np.dtype("<f2")

    def _narrowed(self, values: npt.NDArray[np.float32]) -> Array:
        flat = values.ravel()
        halves = np.empty(flat.size, self.narrow)
        for start in range(0, flat.size, _FEW):  # which with all that is made of them fit into the cache
            halves[start : start + _FEW] = _as_fp16(flat[start : start + _FEW])
        return halves

    def _widened(self, narrowed: Array) -> Array:
        return np.asarray(_FP16_VALUES[narrowed.view("<u2")])  # which is no array of one index


@dataclass(frozen=True, slots=True)
class Bf16(_Narrowing):
    """Every element as bfloat16: the range of float32 in two bytes, and fewer digits than float16."""

    name: ClassVar[str] = "bf16"
    narrow: ClassVar[Dtype] = BFLOAT16


@dataclass(frozen=True, slots=True)
class Int8(Codec):
    """Each block of elements as one float32, its scale, and for each element the multiple of it, in [-127, 127].

    A large value costs only its own block precision. The body is all multiples, then all scales.
    """

    name: ClassVar[str] = "int8"
    block: int = 256

    def __post_init__(self) -> None:
        object.__setattr__(self, "block", _pythons_own(self.block))
        if type(self.block) is not int or not 1 <= self.block <= 1 << 20:
            raise ValidationError(f"the block of int8 is 1 to {1 << 20} elements, not {self.block!r}")

    def rounds(self, spec: TensorSpec) -> bool:
        return spec.is_floating

    def body_bytes(self, spec: TensorSpec) -> int:
        return spec.size + 4 * self._blocks(spec.size)

    def encode(self, tensor: Array) -> bytes:
        flat = tensor.ravel()
        multiples, scales = np.empty(flat.size, np.int8), np.empty(self._blocks(flat.size), "<f4")
        for part, blocks in self._parts(flat.size):
            multiples[part], scales[blocks] = self._encoded(flat[part])
        return multiples.tobytes() + scales.tobytes()

    def decode(self, body: memoryview, spec: TensorSpec) -> Array:
        scales = np.frombuffer(body, "<f4", offset=spec.size)
        if not (np.isfinite(scales).all() and (scales >= 0).all()):
            raise ValidationError("has a scale that is negative or not finite")
        multiples, values = np.frombuffer(body, np.int8, spec.size), np.empty(spec.size, spec.dtype)
        for part, blocks in self._parts(spec.size):
            spread = self._blocked(multiples[part].astype(np.float32))
            with np.errstate(over="ignore", under="ignore"):
                spread *= scales[blocks, np.newaxis]
                values[part] = spread.ravel()[: len(values[part])]
            _check_finite(values[part], f"has a scale beyond the range of {spec.dtype.name}")
        return values.reshape(spec.shape)

    def _encoded(self, values: Array) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        """The multiples of some values, and the scales of the blocks that they are."""
        _check_finite(values)
        with np.errstate(over="ignore", under="ignore"):
            blocks = self._blocked(values.astype(np.float32))
        _check_finite(blocks, "holds values beyond the range of float32")
        peaks = np.abs(blocks).max(axis=1)
        scales = peaks / _LEVELS
        with np.errstate(over="ignore"):
            too_great = scales * _LEVELS > peaks
        # Rounded down, so that 127 times the scale is never beyond the peak, and so never beyond the tensor's dtype.
        scales[too_great] = np.nextafter(scales[too_great], np.float32(0))
        scales = np.maximum(scales, _SMALLEST_SCALE)
        multiples = np.rint(blocks / scales[:, np.newaxis]).astype(np.int8)
        return multiples.ravel()[: values.size], scales

    def _parts(self, size: int) -> Iterator[tuple[slice, slice]]:
        """Where the parts of a tensor begin and end that are worked on at a time: its elements, and its blocks."""
        most = max(1, _MANY // self.block)
        for first in range(0, self._blocks(size), most):
            yield slice(first * self.block, min((first + most) * self.block, size)), slice(first, first + most)

    def _blocks(self, size: int) -> int:
        return -(-size // self.block)

    def _blocked(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The values, filled up with zeros, in the shape (blocks, block); a block that is not full is no wider."""
        # Else thousands of small tensors in blocks of a million, which is a peer's choice, would take many minutes.
        width = min(self.block, max(values.size, 1))
        padded = np.zeros(self._blocks(values.size) * width, np.float32)
        padded[: values.size] = values.ravel()
        return padded.reshape(-1, width)


@dataclass(frozen=True, slots=True)
class TopK(Codec):
    """Only the fraction of the elements that are greatest, exactly, and where they are.

    What is left out is lost unless the sender adds it to the next gradient, which is what
    :class:`~prime_dht.ml.codecs.feedback.ErrorFeedback` does. The body is the first index and the steps between
    indices, which rise, as 4 bytes each, then the elements.
    """

    name: ClassVar[str] = "topk"
    fraction: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "fraction", _pythons_own(self.fraction))
        if type(self.fraction) not in (float, int) or not 0 < self.fraction <= 1:
            raise ValidationError(f"the fraction of topk is above 0 and at most 1, not {self.fraction!r}")

    def rounds(self, spec: TensorSpec) -> bool:
        return spec.is_floating and spec.size <= MAX_ELEMENTS

    def body_bytes(self, spec: TensorSpec) -> int:
        return self._count(spec.size) * (4 + spec.dtype.itemsize)

    def encode(self, tensor: Array) -> bytes:
        _check_finite(tensor)
        flat = tensor.ravel()
        count = self._count(flat.size)
        indices = _greatest(np.abs(flat), count)
        return np.diff(indices, prepend=0).astype("<u4").tobytes() + flat[indices].tobytes()

    def decode(self, body: memoryview, spec: TensorSpec) -> Array:
        count = self._count(spec.size)
        steps, elements = np.frombuffer(body, "<u4", count), np.frombuffer(body, spec.dtype, offset=4 * count)
        values: Array = np.zeros(spec.size, spec.dtype)
        before = np.uint64(0)
        for start in range(0, count, _MANY):
            part = slice(start, start + _MANY)
            indices = np.cumsum(steps[part], dtype=np.uint64) + before
            before = indices[-1]
            if before >= spec.size or not steps[max(start, 1) : part.stop].all():
                raise ValidationError("has indices that do not rise, or that are out of range")
            _check_finite(elements[part])
            values[indices] = elements[part]
        return values.reshape(spec.shape)

    def _count(self, size: int) -> int:
        return math.ceil(self.fraction * size)


def _pythons_own(parameter: object) -> object:
    """Of a number of numpy's Python's own, for the parameter travels as JSON; all else as it is."""
    return parameter.item() if isinstance(parameter, np.number) else parameter


def checked_codec(codec: object) -> Codec:
    """What is to be a codec.

    Raises:
        ValidationError: it is none, but its name, say.
    """
    if not isinstance(codec, Codec):
        raise ValidationError(f"a codec is made, as TopK(fraction=0.01) or codec_named('topk') is; this is {codec!r}")
    return codec


def _as_fp16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """What numpy makes of them, to the bit, several times as fast.

    For numpy raises a flag of the processor for each that becomes subnormal, as many of a gradient's elements do. Here
    those are rounded by adding 0.5, whose last digit in float32 is worth as much as that of a subnormal float16; all
    others on their bits, by adding half of what is cut off, or a little less where an even digit stays.
    """
    bits = values.view(np.uint32)
    magnitude = np.minimum(bits & _MAGNITUDE, _BEYOND_FP16)
    subnormal = (magnitude.view(np.float32) + np.float32(0.5)).view(np.uint32) - _HALF
    normal = (magnitude + _REBIAS_AND_ROUND + ((magnitude >> 13) & 1)) >> 13
    signs = (bits >> 16) & 0x8000
    halves = (np.where(magnitude < _LEAST_NORMAL_FP16, subnormal, normal) | signs).astype(np.uint16)
    return np.frombuffer(halves, np.float16)


def _greatest(magnitudes: Array, count: int) -> npt.NDArray[np.intp]:
    """Where the ``count`` greatest are, in order; of equal ones the first.

    Their least is found first, for np.partition takes a hundredth of np.argpartition's time on some gradients.
    """
    if not count:
        return np.empty(0, np.intp)
    least = np.partition(magnitudes, -count)[-count]
    above, equal = np.flatnonzero(magnitudes > least), np.flatnonzero(magnitudes == least)
    return np.sort(np.concatenate((above, equal[: count - len(above)])))


CODECS: tuple[type[Codec], ...] = (Plain, Fp16, Bf16, Int8, TopK)


def _check_finite(values: Array, otherwise: str = "holds values that are not finite") -> None:
    if not np.isfinite(values).all():
        raise ValidationError(otherwise)
