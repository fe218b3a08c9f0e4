"""The libp2p signed envelope (RFC 0002), in the one encoding that entries and capabilities allow.

An *envelope* is a payload, a payload type that says how to read it, and an Ed25519 signature with its public key. What
is signed is not the envelope but ::

    varint(len domain) ‖ domain ‖ varint(len payload type) ‖ payload type ‖ varint(len payload) ‖ payload

The *domain* keeps a signature made for one purpose from serving another. Ours is ``<purpose>:<network id>``, so nothing
signed for one network, or as a capability, can be replayed into another network, or as an entry.

A *statement* is what a key said, whatever the signature's bytes are. Its id is ::

    SHA-256(domain ‖ u32(len public key) ‖ public key ‖ u32(len payload) ‖ payload)

``u32`` is four bytes, big-endian. *Public key* always means the serialized libp2p ``PublicKey`` message: for Ed25519
the 36 bytes ``08 01 12 20`` and the raw key. The payload is taken as received. A network id holds no NUL, so the first
NUL, which opens the length of the public key, ends the domain, and no two statements hash the same bytes.

Deliberate differences from RFC 0002:

- Only Ed25519 signs. The publisher's peer id is then the identity multihash of the public key, ``00 24 ‖ public key``.
- Only the canonical protobuf encoding is an envelope: the four fields, in order, once each, and nothing else. The
  payload is covered by the signature, the bytes around it are not; without this rule anyone who relays an envelope
  could grow it or make many of one statement.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId
from prime_dht.pb import entry_pb2 as pb

if TYPE_CHECKING:
    from libp2p.crypto.keys import PrivateKey

MAX_ENVELOPE_BYTES = 1 << 16
"""A bound of the format, checked before anything is parsed; :class:`~prime_dht.entries.limits.Limits` set a lower."""

MAX_NETWORK_ID_BYTES = 64
PUBLIC_KEY_BYTES = 36
SIGNATURE_BYTES = 64

_ED25519_PUBLIC_KEY = b"\x08\x01\x12\x20"
_RAW_KEY_BYTES = 32
_PUBLIC_KEY_START = b"\x0a\x24" + _ED25519_PUBLIC_KEY
_PUBLIC_KEY_END = len(_PUBLIC_KEY_START) + _RAW_KEY_BYTES
_SIGNATURE_START = b"\x2a\x40"
_SIGNATURE_FIELD_BYTES = len(_SIGNATURE_START) + SIGNATURE_BYTES
_IDENTITY_MULTIHASH = b"\x00\x24"

_NEVER_A_LENGTH_AND_A_PAYLOAD = frozenset({0x81, 0x4002})
"""One byte more than the most that a length of one or two bytes makes with its payload, one less than the next does."""


@dataclass(frozen=True, slots=True)
class Purpose:
    """What an envelope is for: the first part of its domain, and its payload type.

    ``middle`` is what stands in each of its envelopes between the public key and the length of the payload.
    """

    name: str
    payload_type: bytes
    middle: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "middle", b"\x12" + _varint(len(self.payload_type)) + self.payload_type + b"\x1a")

    def domain(self, network_id: str) -> bytes:
        """The domain of this purpose in one network.

        Raises:
            ValidationError: the network id is not 1 to 64 bytes of UTF-8 without NUL.
        """
        return _domain(self.name, network_id)


@dataclass(frozen=True, slots=True)
class Envelope:
    """An envelope that has the right form; whether its signature is valid is another question."""

    public_key: bytes
    payload: bytes
    signature: bytes

    @property
    def signer(self) -> PeerId:
        return PeerId(_IDENTITY_MULTIHASH + self.public_key)

    def statement_id(self, domain: bytes) -> bytes:
        """The 32 bytes that identify what was said, whoever relays it and whatever the signature's bytes are."""
        return hashlib.sha256(
            b"".join((domain, _u32(self.public_key), self.public_key, _u32(self.payload), self.payload))
        ).digest()


class VerifiedEnvelopes:
    """The statements whose signatures were last verified, so that none is verified twice; bounded.

    It remembers statement id → signature, and knows an envelope only if *both* are those of an envelope that was
    verified. The id binds network, public key and payload. The signature must match too: under a known id but another
    signature the statement is genuine, but the envelope may not be, and would be refused by whoever gets it from here.
    """

    def __init__(self, capacity: int = 16_384) -> None:
        self._capacity = capacity
        self._signatures: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._signatures)

    def knows(self, statement_id: bytes, signature: bytes) -> bool:
        if self._signatures.get(statement_id) != signature:
            return False
        self._signatures.move_to_end(statement_id)
        return True

    def remember(self, statement_id: bytes, signature: bytes) -> None:
        """Take in an envelope that was verified; the one longest not asked for makes room."""
        self._signatures[statement_id] = signature
        self._signatures.move_to_end(statement_id)
        if len(self._signatures) > self._capacity:
            self._signatures.popitem(last=False)


def seal(private_key: PrivateKey, purpose: Purpose, network_id: str, payload: bytes) -> bytes:
    """Sign a payload.

    Raises:
        ValidationError: the key is not Ed25519, the network id is invalid, or the envelope would be too large.
    """
    from libp2p.crypto.keys import KeyType  # here, for all of py-libp2p comes with it; whoever has a key has it already

    public_key = private_key.get_public_key()
    if public_key.get_type() is not KeyType.Ed25519:
        raise ValidationError("only Ed25519 keys can sign entries and capabilities")
    signature = private_key.sign(signed_bytes(purpose.domain(network_id), purpose.payload_type, payload))
    data = _encode(public_key.to_bytes(), purpose, payload, signature)
    if len(data) > MAX_ENVELOPE_BYTES:
        raise ValidationError(f"an envelope is at most {MAX_ENVELOPE_BYTES} bytes; this one would be {len(data)}")
    return data


def open_envelope(data: bytes, purpose: Purpose) -> Envelope:
    """Read an envelope, without verifying its signature.

    Raises:
        ValidationError: it is too large, no protobuf, not for this purpose, not Ed25519, or not canonically encoded.
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise ValidationError(f"an envelope is at most {MAX_ENVELOPE_BYTES} bytes, not {len(data)}")
    start = _PUBLIC_KEY_END + len(purpose.middle)
    end = len(data) - _SIGNATURE_FIELD_BYTES
    length = _length_of_the_rest(end - start)
    if (
        start < end
        and end - start not in _NEVER_A_LENGTH_AND_A_PAYLOAD
        and data.startswith(_PUBLIC_KEY_START)
        and data.startswith(purpose.middle, _PUBLIC_KEY_END)
        and data.startswith(length, start)
        and data.startswith(_SIGNATURE_START, end)
    ):
        public_key = data[_PUBLIC_KEY_END - PUBLIC_KEY_BYTES : _PUBLIC_KEY_END]
        return Envelope(public_key, data[start + len(length) : end], data[-SIGNATURE_BYTES:])
    raise ValidationError(_why_no_envelope(data, purpose))


def signature_of(data: bytes) -> bytes:
    """The signature of an encoded envelope, without reading the rest: the canonical encoding ends with it."""
    return data[-SIGNATURE_BYTES:]


def is_signed(
    data: bytes, purpose: Purpose, network_id: str, *, statement_id: bytes, verified: VerifiedEnvelopes | None
) -> bool:
    """As :func:`has_valid_signature`, but one that ``verified`` knows is not verified again; others it learns."""
    signature = signature_of(data)
    if verified is not None and verified.knows(statement_id, signature):
        return True
    if not has_valid_signature(data, purpose, network_id):
        return False
    if verified is not None:
        verified.remember(statement_id, signature)
    return True


def has_valid_signature(data: bytes, purpose: Purpose, network_id: str) -> bool:
    """Whether the key in an envelope signed its payload for this purpose in this network; about 40 µs.

    libsodium's verification is strict: it refuses keys and points of small order and non-canonical scalars.

    Args:
        data: an envelope that :func:`open_envelope` has read.

    Raises:
        ValidationError: the network id is invalid.
    """
    payload = data[_PUBLIC_KEY_END + len(purpose.middle) : -_SIGNATURE_FIELD_BYTES]  # its length first, as it is signed
    message = _signed_start(purpose.domain(network_id), purpose.payload_type) + payload
    try:
        crypto_sign_open(signature_of(data) + message, data[_PUBLIC_KEY_END - _RAW_KEY_BYTES : _PUBLIC_KEY_END])
    except BadSignatureError:
        return False
    return True


def signed_bytes(domain: bytes, payload_type: bytes, payload: bytes) -> bytes:
    """What RFC 0002 signs.

    >>> signed_bytes(b"prime-entry:test", b"t", b"payload")
    b'\\x10prime-entry:test\\x01t\\x07payload'
    """
    return b"".join((_signed_start(domain, payload_type), _varint(len(payload)), payload))


def _why_no_envelope(data: bytes, purpose: Purpose) -> str:
    """What is wrong with bytes that do not have the canonical form, as far as they can be read."""
    try:
        message = pb.Envelope.FromString(data)
    except DecodeError:
        return "not an envelope: malformed protobuf"
    if message.payload_type != purpose.payload_type:
        return f"not an envelope of type {purpose.payload_type.decode()}"
    if message.public_key.Type != pb.Envelope.PublicKey.Ed25519:
        return "only Ed25519 keys can sign entries and capabilities"
    if len(message.public_key.Data) != _RAW_KEY_BYTES or len(message.signature) != SIGNATURE_BYTES:
        return "an envelope's public key has 32 bytes and its signature 64"
    return "an envelope is encoded canonically: its four fields in order, and nothing else"


def _encode(raw_key: bytes, purpose: Purpose, payload: bytes, signature: bytes) -> bytes:
    """The canonical protobuf encoding: tags 1, 2, 3 and 5 of wire type 2."""
    length = _varint(len(payload))
    return b"".join((_PUBLIC_KEY_START, raw_key, purpose.middle, length, payload, _SIGNATURE_START, signature))


def _length_of_the_rest(size: int) -> bytes:
    """The varint with which ``size`` bytes begin, if it says how many of them follow it; 129 and 16,386 have none.

    >>> [_length_of_the_rest(size).hex() for size in (1, 128, 130, 131)]
    ['00', '7f', '8001', '8101']
    """
    return _varint(max(0, size - (1 if size <= 0x80 else 2 if size <= 0x4001 else 3)))


@lru_cache(maxsize=64)
def _domain(name: str, network_id: str) -> bytes:
    try:
        encoded = network_id.encode()
    except UnicodeEncodeError as error:
        raise ValidationError("a network id is valid Unicode") from error
    if not 0 < len(encoded) <= MAX_NETWORK_ID_BYTES or b"\0" in encoded:
        raise ValidationError(f"a network id is 1 to {MAX_NETWORK_ID_BYTES} bytes without NUL")
    return name.encode() + b":" + encoded


@lru_cache(maxsize=64)
def _signed_start(domain: bytes, payload_type: bytes) -> bytes:
    """What is signed before the payload and its length."""
    return b"".join((_varint(len(domain)), domain, _varint(len(payload_type)), payload_type))


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _u32(field: bytes) -> bytes:
    return len(field).to_bytes(4, "big")


ENTRY = Purpose("prime-entry", b"/prime/entry/1")
CAPABILITY = Purpose("prime-capability", b"/prime/capability/1")
