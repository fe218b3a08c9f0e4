"""Announcements: what an entry says of the gradient that is its value, before anything of that is fetched. Pure.

Members publish their gradients of a round under one key, ``gradient:<round>``; those of a group under
``/prime/group/<root>/gradient:<round>``, where nobody else can (:mod:`prime_dht.entries.capability`). The value is
encoded tensors (:mod:`prime_dht.ml.codecs.encoding`). The *announcement* is the entry's signed metadata, six texts:

================ ==============================================================================================
``round``        the number of the round, as in the key
``codec``        its name
``parameters``   of the codec, as a JSON object
``weight``       that the member claims for its gradient, such as a number of examples: above 0, at most 2**53
``tensor_bytes`` what the tensors take once they are decoded
``metrics``      finite numbers and short texts, as a JSON object
================ ==============================================================================================

The subkey is the first 16 bytes of the SHA-256 of the announcement and the value. So a gradient that was seen is never
replaced by another one, and the outcome of a round can name it by its op id; what stands in a slot where it does not
belong is nobody's gradient. The same gradient, published once more, is a new op in the same slot: publish it again only
if that failed.

>>> announcement = Announcement(
...     round=7, codec=codec_named("int8"), weight=128.0, tensor_bytes=4000, metrics={"loss": 0.25}
... )
>>> for name, text in announcement.metadata().items():
...     print(name, text)
round 7
codec int8
parameters {"block":256}
weight 128.0
tensor_bytes 4000
metrics {"loss":0.25}
>>> read_announcement(announcement.metadata()) == announcement
True
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn, SupportsFloat, SupportsIndex

from prime_dht.entries.access import GroupKey, key_rule
from prime_dht.entries.capability import decode_capability
from prime_dht.errors import ValidationError
from prime_dht.ids import US_PER_S, Key, wire_key
from prime_dht.ml.aggregation.contribution import MAX_WEIGHT
from prime_dht.ml.codecs.codec import Codec
from prime_dht.ml.codecs.encoding import codec_named

SUBKEY_BYTES = 16
MAX_ROUND = (1 << 63) - 1
MAX_TENSOR_BYTES = (1 << 63) - 1
MAX_METRIC = float(1 << 1000)
"""A number that is read as JSON may be of any size; up to here all of Python's arithmetic can take it."""

MAX_METRICS_BYTES = 2 << 10
"""Of all metrics as JSON: beside the rest they fit into the 4 KiB that an entry's metadata may have by default."""

_ROUNDING_S = 0.001
"""Times in seconds are exact to less than that."""

_RUN = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_NUMBER_CHARACTERS = 32

Metric = float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """See the module.

    Raises:
        ValidationError: a number is out of range, or the metrics are not finite, or too many.
    """

    round: int
    codec: Codec
    weight: float
    tensor_bytes: int
    metrics: Mapping[str, Metric]

    def __post_init__(self) -> None:
        checked_round(self.round)
        if not (math.isfinite(self.weight) and 0 < self.weight <= MAX_WEIGHT):
            raise ValidationError(f"the weight of a gradient is above 0 and at most 2**53, not {self.weight!r}")
        if not 0 <= self.tensor_bytes <= MAX_TENSOR_BYTES:
            raise ValidationError(f"no tensors take {self.tensor_bytes} bytes")
        for name, metric in self.metrics.items():
            if type(name) is not str or type(metric) not in (int, float, str):
                raise ValidationError(f"the metric {name!r} is neither a number nor a text")
            if not isinstance(metric, str) and not abs(metric) <= MAX_METRIC:
                raise ValidationError(f"the metric {name!r} is not finite, or too great")
        if len(_json(self.metrics)) > MAX_METRICS_BYTES:
            raise ValidationError(f"the metrics take more than {MAX_METRICS_BYTES:,} bytes")

    def metadata(self) -> dict[str, str]:
        """The texts that an entry has of it."""
        return {
            "round": str(self.round),
            "codec": self.codec.name,
            "parameters": _json(dataclasses.asdict(self.codec)),
            "weight": repr(self.weight),
            "tensor_bytes": str(self.tensor_bytes),
            "metrics": _json(self.metrics),
        }


def read_announcement(metadata: Mapping[str, str]) -> Announcement:
    """What an entry's metadata says of its gradient; other names are passed over.

    Raises:
        ValidationError: it announces none, or not as it should, or the codec is not known here.
    """
    match metadata:
        case {
            "round": number,
            "codec": name,
            "parameters": parameters,
            "weight": weight,
            "tensor_bytes": tensor_bytes,
            "metrics": metrics,
        }:
            return Announcement(
                round=_read_int("round", number),
                codec=codec_named(name, **_read_object("parameters", parameters)),
                weight=_read_float("weight", weight),
                tensor_bytes=_read_int("tensor_bytes", tensor_bytes),
                metrics=_read_object("metrics", metrics),
            )
    raise ValidationError("its entry does not announce a gradient")


def as_metrics(given: Mapping[str, SupportsFloat | str]) -> dict[str, Metric]:
    """Metrics as they are announced; whatever can be a number becomes one, such as a numpy scalar.

    Raises:
        ValidationError: one can not, or they have no names.
    """
    if not isinstance(given, Mapping):
        raise ValidationError(f"metrics are names and numbers, as in a dict, not {type(given).__name__}")
    return {_as_text(name): _as_metric(name, metric) for name, metric in given.items()}


def subkey_of(announcement: Announcement, value: bytes) -> bytes:
    """The subkey of an announced gradient's entry. Any other spelling of the announcement has another."""
    digest = hashlib.sha256(_json(announcement.metadata()).encode())
    digest.update(value)
    return digest.digest()[:SUBKEY_BYTES]


def gradient_key(round_number: int, group: bytes | None = None, run: str = "") -> Key:
    """The key of a round's gradients; ``group`` is the root of a group.

    >>> gradient_key(7), gradient_key(7, bytes(32))[-15:], gradient_key(7, run="digits-3")
    (b'/prime/gradient:7', b'0000/gradient:7', b'/prime/gradient:digits-3:7')

    Raises:
        ValidationError: there is no such round.
    """
    round_number = checked_round(round_number)
    prefix = "" if group is None else f"/prime/group/{group.hex()}/"
    return wire_key(f"{prefix}gradient:{run and f'{run}:'}{round_number}")


def group_of(group: str | bytes | None, capability: bytes = b"") -> bytes | None:
    """The root of a group; by default of the one that the capability is of, if there is one.

    Args:
        group: the 32 bytes, or what its keys begin with, as ``prime-dht group create`` prints it.

    Raises:
        ValidationError: it is neither, or the capability is malformed.
    """
    if group is None:
        return decode_capability(capability).root if capability else None
    return checked_group(group)


def checked_group(group: str | bytes) -> bytes:
    """The root of a group that is named, as for :func:`group_of`.

    >>> checked_group("/prime/group/" + 64 * "0" + "/") == bytes(32)
    True

    Raises:
        ValidationError: none is.
    """
    if isinstance(group, bytes) and len(group) == hashlib.sha256().digest_size:
        return group
    if isinstance(group, str) and group.startswith("/prime/group/"):
        rule = key_rule(Key(f"{group.removesuffix('/')}/gradient".encode()))
        if isinstance(rule, GroupKey):
            return rule.root
    raise ValidationError("a group is what its keys begin with, /prime/group/<64 digits>/, or its root's 32 bytes")


def capability_ends_at_s(capability: bytes, now_s: float) -> float:
    """How long entries with a capability may live, in seconds since the Unix epoch; for ever if there is none.

    Raises:
        ValidationError: it has ended.
    """
    ends_at_s = decode_capability(capability).expires_at_us / US_PER_S - _ROUNDING_S if capability else math.inf
    if ends_at_s <= now_s:
        raise ValidationError("the capability has ended: ask whoever holds the group's root key for another")
    return ends_at_s


def checked_round(number: SupportsIndex) -> int:
    """The number of a round, numpy's too, as Python's own.

    Raises:
        ValidationError: it is no whole number from 0 up, or too great.
    """
    try:
        whole = -1 if isinstance(number, bool) else operator.index(number)
    except TypeError:
        whole = -1
    if not 0 <= whole <= MAX_ROUND:
        raise ValidationError(f"a round is a whole number from 0 up, not {number!r}")
    return whole


def check_run(run: str) -> str:
    """Check the name of a training run; empty is none.

    Raises:
        ValidationError: it is no text, or has more than 64 characters, or others than letters, digits, ``.``, ``_``
            and ``-``.
    """
    if run != "" and not (isinstance(run, str) and _RUN.fullmatch(run)):
        raise ValidationError(f"a run is named by up to 64 letters, digits, '.', '_' and '-', not {run!r}")
    return run


def _as_metric(name: str, metric: SupportsFloat | str) -> Metric:
    if isinstance(metric, str | int):
        return _as_text(metric) if isinstance(metric, str) else int(metric)
    try:
        return float(metric)
    except (TypeError, ValueError) as error:
        raise ValidationError(f"the metric {name!r} is neither a number nor a text: {error}") from error


def _as_text(text: str) -> str:
    """What a text says, of an enumeration's member its value; what is none stays what it is."""
    return str.__str__(text) if isinstance(text, str) else text


def _json(document: object) -> str:
    return json.dumps(document, separators=(",", ":"), sort_keys=True)


def _read_int(what: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_NUMBER_CHARACTERS):
        raise ValidationError(f"the {what} it announces is no whole number")
    return int(text)


def _read_float(what: str, text: str) -> float:
    try:
        return float(text if len(text) <= _MAX_NUMBER_CHARACTERS else "")
    except ValueError as error:
        raise ValidationError(f"the {what} it announces is no number") from error


def _read_object(what: str, text: str) -> dict[str, Metric]:
    """A JSON object; of what its values are is left to be checked."""
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValidationError(f"the {what} it announces are no JSON") from error
    if not isinstance(document, dict):
        raise ValidationError(f"the {what} it announces are no JSON object")
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
