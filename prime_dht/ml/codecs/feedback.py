"""Error feedback: what a codec left out of one gradient is added to the next.

With ``g`` the gradients, ``s`` what was sent, and ``e`` the error kept by the sender, starting at zero ::

    s[t] = C(g[t] + e[t])        e[t+1] = g[t] + e[t] - s[t]

so that all that was sent and the error of now add up to all gradients: nothing is lost, it comes later. With it, top-k
converges as fast as uncompressed training does (Stich et al. 2018, arXiv 1809.07599, algorithm 1; Karimireddy et al.
2019, arXiv 1901.09847, for any codec that contracts). It serves every codec that rounds.

A gradient that was encoded but could not be published need not be lost either: set ``errors`` back to what they were
and encode it again; or :meth:`~ErrorFeedback.take_back` what was encoded, and it counts as left out. Errors are
tensors: save them in a checkpoint beside the weights, and a new ``ErrorFeedback`` whose ``errors`` they are goes on. If
something was sent after that checkpoint, :meth:`~ErrorFeedback.resume` learns of it.
"""

from __future__ import annotations

import hashlib
from collections import deque
from contextlib import suppress

import numpy as np

from prime_dht.errors import ValidationError
from prime_dht.ml.codecs.codec import Codec, checked_codec
from prime_dht.ml.codecs.encoding import decode, encode
from prime_dht.ml.tensors import (
    Array,
    Spec,
    Tensors,
    Weights,
    as_tensors,
    check_finite,
    check_spec,
    size_bytes_of,
    spec_of,
)

_REMEMBERED = 256


class ErrorFeedback:
    """A sender's side of one stream of gradients of one spec. It keeps as much as a gradient takes in float32.

    It is for one thread, but for :meth:`take_back`.

    Attributes:
        codec: what gradients are encoded with.

    Raises:
        ValidationError: it is no codec, but its name, say.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = checked_codec(codec)
        self._spec: Spec | None = None
        self._errors: Tensors = {}
        self._taken_back: deque[bytes] = deque()
        self._counted: deque[bytes] = deque(maxlen=_REMEMBERED)
        """Hashes of what was encoded last, and is in the errors."""

    @property
    def errors(self) -> Tensors:
        """What was left out up to now, for each floating tensor; empty before the first gradient.

        In float64 for tensors that are, else in float32, lest what is small beside a narrow element is lost after all.
        Never changed in place.
        """
        while self._taken_back:
            assert self._spec is not None
            data = self._taken_back.popleft()
            with suppress(ValueError):
                self._counted.remove(_hash(data))
            unsent = decode(data, max_bytes=size_bytes_of(self._spec))
            self._errors = self._with_errors(unsent, self._spec)
        return self._errors

    @errors.setter
    def errors(self, errors: Tensors) -> None:
        self._errors = as_tensors(errors)
        self._counted.clear()

    def take_back(self, data: bytes) -> None:
        """What :meth:`encode` made could not be published: it counts as left out. Any thread may say so."""
        self._taken_back.append(data)

    def encode(self, gradient: Weights) -> bytes:
        """The next gradient as bytes to publish. Its error counts as kept from here on: publish just these bytes.

        Raises:
            ValidationError: as :func:`~prime_dht.ml.codecs.encoding.encode`, or its spec is not that of the first
                gradient, or the errors are of another. Then nothing has changed.
        """
        arrays, spec, wanted = self._wanted(gradient)
        with np.errstate(all="ignore"):  # what overflows is not finite, and the check finds it
            sendable = arrays | {name: total.astype(spec[name].dtype) for name, total in wanted.items()}
        check_finite(sendable)
        data = encode(sendable, self.codec)
        self._count(data, wanted, spec)
        return data

    def resume(self, gradient: Weights, data: bytes) -> None:
        """Go on after a crash: ``data`` was encoded of this gradient, and published, before the process ended.

        The errors were restored as they were before that. What this one has encoded itself counts already, and changes
        nothing.

        Raises:
            ValidationError: as :meth:`encode`, or the data are not encoded tensors of the gradient's spec. Then nothing
                has changed.
        """
        _, spec, wanted = self._wanted(gradient)
        if _hash(data) not in self._counted:
            self._count(data, wanted, spec)

    def _wanted(self, gradient: Weights) -> tuple[dict[str, Array], Spec, dict[str, Array]]:
        """A gradient, its spec, and what of it is to be sent: its floating tensors, with what was left out before."""
        arrays = as_tensors(gradient)
        spec = spec_of(arrays)
        check_spec(arrays, spec if self._spec is None else self._spec)
        for name, error in self.errors.items():
            if name not in arrays or error.shape != arrays[name].shape:
                raise ValidationError(
                    f"an error of shape {error.shape} is kept for {name!r}, but no such tensor is sent"
                )
        return arrays, spec, self._with_errors(arrays, spec)

    def _count(self, data: bytes, wanted: Tensors, spec: Spec) -> None:
        """Of what was wanted this was sent; keep the rest as errors."""
        sent = decode(data, max_bytes=size_bytes_of(spec))
        check_spec(sent, spec)
        self._spec = spec
        self._errors = {name: np.subtract(total, sent[name], dtype=total.dtype) for name, total in wanted.items()}
        self._counted.append(_hash(data))

    def _with_errors(self, arrays: Tensors, spec: Spec) -> dict[str, Array]:
        """The floating tensors, with what was left out of each."""
        return {name: self._with_error(name, array) for name, array in arrays.items() if spec[name].is_floating}

    def _with_error(self, name: str, array: Array) -> Array:
        wide = np.float64 if array.dtype == np.float64 else np.float32
        with np.errstate(all="ignore"):
            total: Array = np.add(array, self._errors.get(name, 0), dtype=wide)
        return total


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
