"""The identifiers that every layer shares.

A *key* is what an application names: ``/<namespace>/<rest>``, as bytes, exactly as on the wire. A *peer id* is the
multihash of a libp2p public key, as bytes; its text form is base58. Both become points of one keyspace by SHA-256:
their *kad key*, a 256-bit unsigned integer, big-endian, whose metric is XOR (Maymounkov & Mazières 2002, section 2.1;
libp2p kad-dht specification, "Distance"). An *op id* names one entry.

>>> key = wire_key("model:resnet")
>>> key
b'/prime/model:resnet'
>>> namespace_of(key)
'prime'
"""

from __future__ import annotations

import hashlib
from typing import NewType

import base58

from prime_dht.errors import ValidationError

Key = NewType("Key", bytes)
"""The wire form of an application key: ``/<namespace>/<rest>``, 1 to 1,024 bytes by default."""

PeerId = NewType("PeerId", bytes)
"""The multihash bytes of a libp2p peer id (38 bytes for Ed25519)."""

OpId = NewType("OpId", bytes)
"""The 32-byte identity of an entry; see :mod:`prime_dht.entries.codec`."""

KadKey = NewType("KadKey", int)
"""A point of the keyspace: an unsigned integer below 2**256."""

TimestampUs = NewType("TimestampUs", int)
"""Microseconds since the Unix epoch, UTC."""

KAD_KEY_BITS = 256
PRIME_NAMESPACE = "prime"
EMPTY_KEY = Key(b"/prime/")
"""No key: there is nothing behind its namespace."""

US_PER_S = 1_000_000


def kad_key(data: bytes) -> KadKey:
    """The point of the keyspace at which ``data`` (a wire key or a peer id's multihash bytes) lies."""
    return KadKey(int.from_bytes(hashlib.sha256(data).digest(), "big"))


def wire_key(key: bytes | str) -> Key:
    """Put an application's key into the ``/prime/`` namespace; a key that is in it already stays as it is.

    Raises:
        ValidationError: the key is empty.
    """
    raw = key.encode() if isinstance(key, str) else bytes(key)
    if not raw:
        raise ValidationError("a key cannot be empty")
    return Key(raw if raw.startswith(b"/prime/") else b"/prime/" + raw)


def namespace_of(key: bytes) -> str:
    """The namespace of a wire key.

    Raises:
        ValidationError: the key does not have the form ``/<namespace>/<rest>``.
    """
    parts = key.split(b"/", 2)
    if len(parts) != 3 or parts[0] or not parts[1] or not parts[2]:
        raise ValidationError("a record key has the form /<namespace>/<rest>")
    try:
        return parts[1].decode("ascii")
    except UnicodeDecodeError as error:
        raise ValidationError("a key's namespace is ASCII") from error


def peer_text(peer: PeerId) -> str:
    """The base58 text of a peer id, as in ``/p2p/<text>``."""
    return base58.b58encode(peer).decode("ascii")


def is_peer_id(raw: bytes) -> bool:
    """Whether bytes have the form of a peer id: the identity or SHA-256 multihash of a public key."""
    identity = 2 < len(raw) <= 44 and raw[0] == 0x00 and raw[1] == len(raw) - 2
    return identity or (len(raw) == 34 and raw[:2] == b"\x12\x20")


def peer_from_text(text: str) -> PeerId:
    """Read a peer id's base58 text.

    Raises:
        ValidationError: it is no base58, or not the multihash of a public key.
    """
    try:
        raw = base58.b58decode(text)
    except ValueError as error:
        raise ValidationError(f"{text!r} is not a peer id: {error}") from error
    if not is_peer_id(raw):
        raise ValidationError(f"{text!r} is not a peer id: not the multihash of a public key")
    return PeerId(raw)


def short(identifier: bytes) -> str:
    """A few characters of a peer id or an op id, for logs."""
    return peer_text(PeerId(identifier))[-6:]
