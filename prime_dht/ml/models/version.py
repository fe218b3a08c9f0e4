"""Versions of a model: their names, and what is said of each beside its weights.

A *model* is an id and its *versions*, which are numbered from 1 on. A version is two entries of one publisher, under
one subkey: its weights, a safetensors file, at ``model:{id}``; and its *description*, JSON, at ``meta:{id}``, which is
put when the weights are acknowledged. So what can be listed can be pulled, and all that is said of a model's versions
comes with one lookup. Descriptions are small: they are never blobs, and one that is is none.

::

    {"format": 1, "version": 3, "cid": "bafy…", "size_bytes": …, "header_bytes": …, "parameter_count": …,
     "architecture": "…", "model_created_at_us": …, "metadata": {…}}

The subkey says nothing but which weights and which description belong together. That of a version that was pushed is
its number, 8 bytes, big-endian, so that no version takes another's place; checkpoints take turns in a few slots
(:mod:`prime_dht.ml.models.checkpoints`).

**Numbers.** The next version has the number after the greatest that is listed, whoever pushed it. Two publishers that
push at the same time may use the same number; then the newer stands for it. Anybody can publish under a key that is
open to all, and so use up numbers: one that is more than 2**32 beyond all of one's own is not counted, so nobody can
keep a publisher from going on. Who does not believe everybody names the publisher.

What a peer says is believed only as far as it can be checked: the weights have the CID, and the publisher has signed
the rest. A description that breaks a rule is left out, as if it were not there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from prime_dht.blobs.cid import Cid
from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId, peer_text

MAX_ID_BYTES = 200
MAX_HEADER_BYTES = 32 << 20
"""Of a safetensors file: some 300,000 tensors."""

MAX_LEAP = 1 << 32
"""How far beyond one's own version numbers those of others count."""

_FORMAT = 1
_MAX_NUMBER = (1 << 63) - 1
_SUBKEY_BYTES = 8
_PART = "[A-Za-z0-9][A-Za-z0-9._:-]*"
_ID = re.compile(f"{_PART}(/{_PART})*")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One version of a model, without its weights.

    Attributes:
        version: its number, 1 and up.
        publisher: who pushed it.
        cid: of the weights, a safetensors file. Small ones are no blob; then it is that of their bytes as one block.
        size_bytes, header_bytes: of that file, and of its header, with the length that the file begins with.
        architecture: free text of the publisher.
        parameter_count: the elements of all tensors.
        created_at: when the first version of the model was pushed, as far as the publisher knew.
        updated_at: when this version was.
        expires_at: when it goes.
        metadata: the publisher's, as it was given: whatever JSON can hold.
        subkey: under which its entries are.
    """

    model_id: str
    version: int
    publisher: PeerId
    cid: Cid
    size_bytes: int
    header_bytes: int = field(repr=False)
    architecture: str
    parameter_count: int
    created_at: datetime
    updated_at: datetime
    expires_at: datetime
    metadata: Mapping[str, object] = field(hash=False)
    subkey: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"{self.model_id!r}, version {self.version} of {peer_text(self.publisher)}"


def checked_id(model_id: str) -> str:
    """A model's id.

    Raises:
        ValidationError: it is none; the message says what one is.
    """
    if not isinstance(model_id, str) or not _ID.fullmatch(model_id) or len(model_id) > MAX_ID_BYTES:
        raise ValidationError(
            f"{str(model_id)[: MAX_ID_BYTES + 1]!r} is no model id: it is 1 to {MAX_ID_BYTES} ASCII letters, digits "
            "and any of . _ : - in parts between slashes, each of which begins with a letter or digit"
        )
    return model_id


def weights_key(model_id: str) -> str:
    """Under which a model's weights are."""
    return f"model:{model_id}"


def description_key(model_id: str) -> str:
    """Under which its versions' descriptions are."""
    return f"meta:{model_id}"


def subkey_of(number: int) -> bytes:
    """The subkey of a version that was pushed, or of one of a few slots."""
    return number.to_bytes(_SUBKEY_BYTES, "big")


def next_number(versions: Iterable[ModelVersion], *, own: PeerId, taken: int = 0) -> int:
    """The number of the next version.

    Args:
        versions: those that are listed, whoever pushed them.
        own: who pushes.
        taken: the greatest number that is known to be used up besides.
    """
    numbers = [(one.version, one.publisher == own) for one in versions]
    own_greatest = max([number for number, is_own in numbers if is_own], default=0)
    greatest = max([number for number, _ in numbers if number <= own_greatest + MAX_LEAP], default=0)
    return max(greatest, taken) + 1


def copied_metadata(metadata: Mapping[str, object] | None) -> dict[str, object]:
    """Metadata as it is read later, whatever becomes of the original meanwhile.

    Raises:
        ValidationError: it is not what JSON can hold.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise ValidationError(f"metadata is names and whatever JSON can hold, not {type(metadata).__name__}")
    copied: dict[str, object] = json.loads(_json(dict(metadata)))
    return copied


def description_of(
    *,
    number: int,
    cid: Cid,
    size_bytes: int,
    header_bytes: int,
    parameter_count: int,
    architecture: str,
    model_created_at: datetime | None,
    metadata: Mapping[str, object],
    max_bytes: int,
) -> bytes:
    """The description of a version: the value of its entry at ``meta:{id}``.

    Args:
        model_created_at: when the model's first version was pushed; ``None`` if this is it.
        max_bytes: of the value.

    Raises:
        ValidationError: the metadata is not what JSON can hold, the architecture no text, or the value too large.
    """
    if not isinstance(architecture, str):
        raise ValidationError(f"architecture is text, not {type(architecture).__name__}")
    document = {
        "format": _FORMAT,
        "version": number,
        "cid": str(cid),
        "size_bytes": size_bytes,
        "header_bytes": header_bytes,
        "parameter_count": parameter_count,
        "architecture": architecture,
        "model_created_at_us": None if model_created_at is None else (model_created_at - _EPOCH) // _US,
        "metadata": dict(metadata),
    }
    value = _json(document)
    if len(value) > max_bytes:
        raise ValidationError(
            f"what is said of a version takes {len(value):,} bytes as JSON; the limit is {max_bytes:,}: "
            "put what is larger under a key of its own, or among the tensors"
        )
    return value


def version_in(
    model_id: str, description: bytes, *, publisher: PeerId, subkey: bytes, updated_at_us: int, expires_at_us: int
) -> ModelVersion:
    """The version that a peer describes.

    Raises:
        ValidationError: the description breaks a rule.
    """
    try:
        document = json.loads(description.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValidationError(f"not the description of a version: {error}") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValidationError(f"not the description of a version in format {_FORMAT}")
    _json(document)  # lone surrogates cannot be shown, and a number that is too large is read as infinite
    cid, metadata, architecture = (document.get(name) for name in ("cid", "metadata", "architecture"))
    if not (isinstance(cid, str) and isinstance(metadata, dict) and isinstance(architecture, str)):
        raise ValidationError("not the description of a version: cid, metadata or architecture")
    is_first = document.get("model_created_at_us") is None
    return ModelVersion(
        model_id=model_id,
        version=_number(document, "version", 1, _MAX_NUMBER),
        publisher=publisher,
        cid=Cid.from_text(cid),
        size_bytes=_number(document, "size_bytes", 1, _MAX_NUMBER),
        header_bytes=_number(document, "header_bytes", 1, MAX_HEADER_BYTES),
        architecture=architecture,
        parameter_count=_number(document, "parameter_count", 0, _MAX_NUMBER),
        created_at=_time(updated_at_us if is_first else _number(document, "model_created_at_us", 0, _MAX_NUMBER)),
        updated_at=_time(updated_at_us),
        expires_at=_time(expires_at_us),
        metadata=metadata,
        subkey=subkey,
    )


def _json(document: object) -> bytes:
    try:
        return json.dumps(document, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationError(f"metadata is whatever JSON can hold: {error}") from error


def _number(document: Mapping[str, object], name: str, least: int, most: int) -> int:
    number = document.get(name)
    if type(number) is not int or not least <= number <= most:
        raise ValidationError(f"not the description of a version: {name}")
    return number


def _no_number(text: str) -> object:
    raise ValidationError(f"{text} is no JSON")


def _time(us: int) -> datetime:
    try:
        return _EPOCH + us * _US
    except OverflowError as error:
        raise ValidationError(f"no calendar has the microsecond {us}") from error
