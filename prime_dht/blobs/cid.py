"""The CID: the name of a block, made of its bytes.

A *CID* here is version 1 of the multiformats specification, and of that the part that UnixFS files with raw leaves
need: a *codec*, which says how to read the block, and the SHA-256 of the block's bytes, its *digest*. Its binary form
is always 36 bytes, ``01 <codec> 12 20 <digest>``: version, codec, and the multihash, which is the code of SHA-256, the
digest's length and the digest. Its text is the letter ``b`` and those bytes in lower-case base32 without padding, 59
characters.

>>> empty = Cid.of_raw(b"")
>>> str(empty)
'bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku'
>>> bytes(empty).hex(" ", 16)
'01551220 e3b0c44298fc1c149afbf4c8996fb924 27ae41e4649b934ca495991b7852b855'
>>> empty.verify(b""), empty.verify(b"other bytes")
(True, False)

Exactly one binary form and one text name each CID, so either may serve as a key. Version 0 (``Qm…``), other codecs,
hashes and bases are refused with a reason: nothing with such a name can be part of a blob.

py-cid, which py-libp2p brings along, reads more than that and is not used: it guesses what the bytes it gets are (also
text, also a path or URL), is untyped, and takes ten times as long. The tests compare with it.

Source: https://github.com/multiformats/cid and https://github.com/multiformats/multicodec.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from enum import IntEnum

from prime_dht.errors import ValidationError

CID_BYTES = 36
DIGEST_BYTES = 32

BlockBytes = bytes | bytearray | memoryview
"""The bytes of a block: as they are stored, or as they came."""

_VERSION = 0x01
_SHA2_256 = bytes((0x12, DIGEST_BYTES))
_TEXT_LENGTH = 59
_PADDING = "=" * 6  # of 36 bytes in base32


class Codec(IntEnum):
    """How to read a block. The number is that of the multicodec table."""

    RAW = 0x55
    """Content, as it is."""

    DAG_PB = 0x70
    """A node with links; see :mod:`prime_dht.blobs.unixfs`."""


_CODECS = {int(codec): codec for codec in Codec}


@dataclass(frozen=True, slots=True)
class Cid:
    """The name of a block: its codec, and the SHA-256 of its bytes."""

    codec: Codec
    digest: bytes

    @classmethod
    def of_raw(cls, data: BlockBytes) -> Cid:
        """The CID of a block of plain content."""
        return cls(Codec.RAW, hashlib.sha256(data).digest())

    @classmethod
    def of_dag_pb(cls, data: BlockBytes) -> Cid:
        """The CID of an encoded dag-pb node."""
        return cls(Codec.DAG_PB, hashlib.sha256(data).digest())

    @classmethod
    def from_bytes(cls, raw: BlockBytes) -> Cid:
        """Read the binary form.

        Raises:
            ValidationError: these bytes are not the CID of a block of a blob.
        """
        if len(raw) != CID_BYTES or raw[0] != _VERSION or raw[2:4] != _SHA2_256:
            raise ValidationError("not the CID of a blob's block: it is 36 bytes of version 1, with SHA-256")
        codec = _CODECS.get(raw[1])
        if codec is None:
            raise ValidationError(f"a blob's blocks are raw (0x55) or dag-pb (0x70), not of codec {raw[1]:#x}")
        return cls(codec, bytes(raw[4:]))

    @classmethod
    def from_text(cls, text: str) -> Cid:
        """Read the text form.

        Raises:
            ValidationError: this text is not the CID of a block of a blob.
        """
        if len(text) == 46 and text.startswith("Qm"):
            raise ValidationError(f"{text} is a CID of version 0; blobs have CIDs of version 1, which begin with b")
        if len(text) != _TEXT_LENGTH or text[0] != "b" or not text.islower():
            raise ValidationError(f"{text[:80]!r} is not a CID: the letter b and 58 characters of lower-case base32")
        try:
            cid = cls.from_bytes(base64.b32decode(text[1:].upper() + _PADDING))
        except (binascii.Error, UnicodeError, ValueError) as error:
            raise ValidationError(f"{text} is not a CID: {error}") from error
        if str(cid) != text:  # base32 ends in two bits that say nothing
            raise ValidationError(f"{text} is not a CID: it would be {cid}")
        return cid

    @property
    def multihash(self) -> bytes:
        """The digest with the code of its hash: what providers are recorded under."""
        return _SHA2_256 + self.digest

    def verify(self, data: BlockBytes) -> bool:
        """Whether these are the bytes of the block."""
        return hashlib.sha256(data).digest() == self.digest

    def __bytes__(self) -> bytes:
        return bytes((_VERSION, self.codec)) + _SHA2_256 + self.digest

    def __str__(self) -> str:
        return "b" + base64.b32encode(bytes(self)).decode("ascii").rstrip("=").lower()
