"""Durations and sizes as people write and read them.

A *duration* is seconds, or a number and one of ``s``, ``m``, ``h``, ``d``. A *size* is bytes, or a number and one of
``B``, ``KiB``, ``MiB``, ``GiB``, ``TiB``; decimal units are not taken, because people mean either by ``KB``.

>>> parse_duration_s("90"), parse_duration_s("1.5h"), duration_text(1.5 * 3600), duration_text(86_400.0)
(90.0, 5400.0, '90m', '1d')
>>> parse_size_bytes("512"), parse_size_bytes("64 KiB"), size_text(64 << 10), size_text(1000)
(512, 65536, '64KiB', '1000')
"""

from __future__ import annotations

import math
import re
from dataclasses import fields
from decimal import Decimal
from numbers import Integral, Real
from typing import TYPE_CHECKING

from prime_dht.errors import ConfigError, ValidationError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_SECONDS_OF = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_BYTES_OF = {"TiB": 1 << 40, "GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", re.ASCII)


def number_of(what: str, given: object) -> float:
    """A number, whole or not, numpy's and decimal ones too, as Python's own; text is for :func:`parse_duration_s`.

    With one of numpy's narrow floats a time would become one, off by minutes, and of no type that trio can wait for.

    Raises:
        ValidationError: it is none.

    >>> number_of("ttl", 90)
    90
    >>> number_of("ttl", "90")
    Traceback (most recent call last):
    prime_dht.errors.ValidationError: ttl is a number, not str
    """
    if not isinstance(given, Real | Decimal):
        raise ValidationError(f"{what} is a number, not {type(given).__name__}")
    try:
        return int(given) if isinstance(given, Integral) else float(given)
    except (OverflowError, ValueError) as error:  # of a fraction too large for a float, and of Decimal("sNaN")
        raise ValidationError(f"{what} is a number that a float can hold: {error}") from error


def settle_numbers(settings: DataclassInstance) -> None:
    """Make a number of Python's own of each field that is declared as an ``int`` or a ``float``, though it be frozen.

    Where the declaration says ``None`` as well, that stays. What is not finite is for the caller to judge.

    Raises:
        ConfigError: one is no number, or an ``int`` is not whole; 1e6 is.
    """
    for field in fields(settings):
        kind, _, other = str(field.type).partition(" | ")  # declarations are texts where annotations are postponed
        given = getattr(settings, field.name)
        if kind not in ("int", "float") or (given is None and other == "None"):
            continue
        try:
            number = number_of(field.name, given)
        except ValidationError as error:
            raise ConfigError(str(error)) from error
        if kind == "int" and isinstance(number, float) and math.isfinite(number):
            if not number.is_integer():
                raise ConfigError(f"{field.name} is a whole number, not {number}")
            number = int(number)
        object.__setattr__(settings, field.name, number)


def parse_duration_s(text: str) -> float:
    """Read a duration; it is positive and finite.

    Raises:
        ValidationError: it is none.
    """
    parsed = _QUANTITY.fullmatch(text)
    unit_s = _SECONDS_OF.get(parsed[2] or "s", 0) if parsed else 0
    seconds = float(parsed[1]) * unit_s if parsed else 0.0
    if not 0.0 < seconds < math.inf:
        raise ValidationError(f"{text!r} is not a duration such as 90, 90s, 30m, 12h or 7d")
    return seconds


def parse_size_bytes(text: str) -> int:
    """Read a size: a whole number of bytes.

    Raises:
        ValidationError: it is none.
    """
    parsed = _QUANTITY.fullmatch(text)
    unit_bytes = _BYTES_OF.get(parsed[2] or "B", 0) if parsed else 0
    size_bytes = float(parsed[1]) * unit_bytes if parsed else math.nan
    # Beyond 2**53 a float no longer tells neighbours apart.
    if not (unit_bytes and size_bytes <= 1 << 53 and size_bytes.is_integer()):
        raise ValidationError(f"{text!r} is not a size such as 65536, 64KiB or 16MiB")
    return int(size_bytes)


def duration_text(seconds: float) -> str:
    """A duration in the largest unit that gives a whole number; below a second, or where there is none, in seconds.

    >>> duration_text(30.0), duration_text(172_800.0), duration_text(0.25), duration_text(8.64e8)
    ('30s', '2d', '0.25s', '10000d')
    """
    for unit, unit_s in _SECONDS_OF.items():
        if seconds >= unit_s and seconds % unit_s == 0:
            return f"{seconds / unit_s:.0f}{unit}"
    return f"{seconds!r}s"


def size_text(size_bytes: int) -> str:
    """A size in the largest unit that gives a whole number; below a KiB, or where there is none, in bytes."""
    for unit, unit_bytes in _BYTES_OF.items():
        if size_bytes >= unit_bytes > 1 and size_bytes % unit_bytes == 0:
            return f"{size_bytes // unit_bytes}{unit}"
    return str(size_bytes)
