"""Several byte strings as one: each preceded by its length, 4 bytes, big-endian.

>>> joined([b"ab", b""])
b'\\x00\\x00\\x00\\x02ab\\x00\\x00\\x00\\x00'
>>> split(joined([b"ab", b""]))
(b'ab', b'')
"""

from __future__ import annotations

from collections.abc import Iterable

LENGTH_BYTES = 4


def joined(parts: Iterable[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(LENGTH_BYTES, "big") + part for part in parts)


def split(joined: bytes) -> tuple[bytes, ...]:
    """What :func:`joined` was given."""
    parts = []
    at = 0
    while at < len(joined):
        start = at + LENGTH_BYTES
        at = start + int.from_bytes(joined[at:start], "big")
        parts.append(joined[start:at])
    return tuple(parts)
