"""Encoded tensors: bytes that say themselves how they are read.

::

    magic "PRTN" ‖ version 1 (1 byte) ‖ length of the header (4 bytes, little-endian) ‖ header ‖ zstd frame

The *header* is JSON: the codec's name and parameters, and for each tensor its name, dtype and shape. From these follows
the length of each tensor's body (:meth:`~prime_dht.ml.codecs.codec.Codec.body_bytes`); the frame holds the bodies, in
order, and says that it holds just so many bytes. So before anything is decompressed it is known what will come out:

- the tensors take at most ``max_bytes``, which the caller gives: the size of the model that is trained, say. A few
  bytes may decode to that much (a tensor of zeros does), never to more. With the frame's content, at most four times
  that, and two megabytes, are held while decoding.
- A frame that declares another size, or none, is refused; one that holds another size than it declares as well.

zstd takes a quarter off float32 gradients, less off weights, and most of what sparse steps and exact zeros take. To
transpose the bytes of the elements first, as some do, gains nothing: a frame's literals are entropy-coded either way.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass

import numpy as np

from prime_dht.errors import ValidationError
from prime_dht.ml.codecs.codec import CODECS, Codec, Plain, checked_codec
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
    size_bytes_of,
    spec_of,
)

with extra_needed():
    import zstandard

CONTENT_TYPE = "application/vnd.prime-dht.tensors"
MAX_HEADER_BYTES = 1 << 22
"""Enough for some 40,000 tensors."""

_MAGIC = b"PRTN\x01"
_START_BYTES = len(_MAGIC) + 4
_LEVEL = 1
"""Of zstd. Three is half as fast, and takes one or two in a hundred bytes more off gradients."""

_PLAIN = Plain()
_CODEC_OF = {codec.name: codec for codec in CODECS}


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the header of encoded tensors says, and where the frame begins."""

    codec: Codec
    spec: Spec
    frame_start: int


def codec_named(name: str, /, **parameters: object) -> Codec:
    """The codec of a name: ``none``, ``fp16``, ``bf16``, ``int8`` or ``topk``, with its parameters.

    >>> codec_named("int8", block=64)
    Int8(block=64)
    >>> codec_named("lz4")
    Traceback (most recent call last):
    prime_dht.errors.ValidationError: no codec is named 'lz4'; there are none, fp16, bf16, int8, topk

    Raises:
        ValidationError: there is none of this name, or it has not these parameters.
    """
    if name not in _CODEC_OF:
        raise ValidationError(f"no codec is named {name!r}; there are {', '.join(_CODEC_OF)}")
    try:
        return _CODEC_OF[name](**parameters)
    except TypeError as error:
        raise ValidationError(f"the codec {name} has no such parameters: {', '.join(sorted(parameters))}") from error


def encode(tensors: Weights, codec: Codec = _PLAIN) -> bytes:
    """Tensors, torch's among them, as bytes.

    Raises:
        ValidationError: the codec cannot take one of the tensors (not finite, out of its range), or there are too many,
            or it is no codec.
    """
    checked_codec(codec)
    arrays = as_tensors(tensors)
    spec = spec_of(arrays)
    header = json.dumps(
        {
            "codec": codec.name,
            "parameters": dataclasses.asdict(codec),
            "tensors": [[name, dtype_name(one.dtype), one.shape] for name, one in spec.items()],
        },
        separators=(",", ":"),
    ).encode()
    if len(header) > MAX_HEADER_BYTES:
        raise ValidationError(f"the names and shapes of {len(arrays)} tensors take more than {MAX_HEADER_BYTES} bytes")
    frame = zstandard.ZstdCompressor(level=_LEVEL).compressobj(size=_content_bytes(codec, spec))
    with np.errstate(all="ignore"):  # whatever the caller has numpy do; what overflows is looked for
        bodies = [frame.compress(_body(codec, name, array)) for name, array in arrays.items()]
    return b"".join((_MAGIC, len(header).to_bytes(4, "little"), header, *bodies, frame.flush()))


def read_header(data: bytes) -> Encoded:
    """The codec and the spec of encoded tensors, without decompressing anything.

    Raises:
        ValidationError: these are no encoded tensors, or their codec or a dtype is not known here.
    """
    if not data.startswith(_MAGIC) or len(data) < _START_BYTES:
        raise ValidationError("these are no encoded tensors of a version known here")
    stop = _START_BYTES + int.from_bytes(data[len(_MAGIC) : _START_BYTES], "little")
    if not stop <= min(len(data), _START_BYTES + MAX_HEADER_BYTES):
        raise ValidationError("the header of encoded tensors is truncated, or too long")
    try:
        match json.loads(data[_START_BYTES:stop]):
            case {"codec": str(name), "parameters": dict(parameters), "tensors": list(tensors)}:
                return Encoded(codec_named(name, **parameters), _read_spec(tensors), stop)
    except (ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            raise
        raise ValidationError("the header of encoded tensors is no JSON") from error
    raise ValidationError("the header of encoded tensors lacks the codec or the tensors")


def decode(data: bytes, *, max_bytes: int) -> dict[str, Array]:
    """The tensors of encoded bytes; their arrays are to be read only.

    Raises:
        ValidationError: as :func:`read_header`; the tensors would take more than ``max_bytes``; the frame is damaged or
            of another size; or a body is none of the codec's.
    """
    encoded = read_header(data)
    if (size := size_bytes_of(encoded.spec)) > max_bytes:
        raise ValidationError(f"the encoded tensors take {size} bytes; at most {max_bytes} are taken here")
    content = memoryview(
        _decompressed(memoryview(data)[encoded.frame_start :], _content_bytes(encoded.codec, encoded.spec))
    )
    codecs = [(name, one, _codec_for(encoded.codec, one)) for name, one in encoded.spec.items()]
    stops = itertools.accumulate(codec.body_bytes(one) for _, one, codec in codecs)
    tensors: dict[str, Array] = {}
    start = 0
    for (name, one, codec), stop in zip(codecs, stops, strict=True):
        try:
            with np.errstate(all="ignore"):
                tensors[name] = codec.decode(content[start:stop], one)
        except ValidationError as error:
            raise ValidationError(f"the tensor {name!r} {error}") from error
        start = stop
    return tensors


def _codec_for(codec: Codec, spec: TensorSpec) -> Codec:
    return codec if codec.rounds(spec) else _PLAIN


def _content_bytes(codec: Codec, spec: Spec) -> int:
    return sum(_codec_for(codec, one).body_bytes(one) for one in spec.values())


def _body(codec: Codec, name: str, tensor: Array) -> bytes:
    try:
        return _codec_for(codec, TensorSpec(tensor.dtype, tensor.shape)).encode(tensor)
    except ValidationError as error:
        raise ValidationError(f"the tensor {name!r} {error}") from error


def _read_spec(tensors: list[object]) -> Spec:
    spec: dict[str, TensorSpec] = {}
    for tensor in tensors:
        match tensor:
            case [name, code, shape]:
                if (checked := checked_name(name)) in spec:
                    raise ValidationError(f"the header of encoded tensors names {checked!r} twice")
                spec[checked] = read_spec(checked, code, shape)
            case _:
                raise ValidationError("the header of encoded tensors holds something that is no tensor")
    return spec


def _decompressed(frame: memoryview, size: int) -> bytes:
    """The content of a zstd frame of which it is known how long it must be.

    The library makes room for as much as the frame declares, whatever limit it is given, so that is looked at first.
    """
    try:
        declared = zstandard.get_frame_parameters(frame).content_size
        if declared != size:
            raise ValidationError(f"the tensors take {size} bytes, but their frame declares {declared}")
        return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValidationError(f"the frame of encoded tensors is damaged: {error}") from error
