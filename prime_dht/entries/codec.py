"""Entries as bytes: the header's protobuf payload, the op id, and the entry sets that travel in records.

A header is encoded once, by its publisher, and never again: everyone else keeps and passes on the envelope as received,
and the op id is the id of the signed statement (:mod:`prime_dht.entries.envelope`) over those bytes ::

    op id = SHA-256(domain ‖ u32(len public key) ‖ public key ‖ u32(len payload) ‖ payload)

Decoding checks the *form* of an entry, which is the same for everybody for ever; what a node admits here and now is
:mod:`prime_dht.entries.admission`'s question. To have the right form is:

- the envelope is canonical, its payload a protobuf ``EntryHeader`` that says what its content is;
- 0 ≤ created_at < expires_at ≤ retain_until < the year 10000;
- hashes and references have possible sizes, the key is not empty, text is UTF-8;
- compression and encryption are ones this version knows: another meaning needs another payload type. (To know a
  compression is not to admit it.) Unknown *fields* are tolerated, because op id and signature cover them;
- the value, where there is one, has the size and SHA-256 the header says, and tombstones and blobs have none.

The signature is not verified here (:mod:`prime_dht.entries.signing`): a store reads back what was verified once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import assert_never

from google.protobuf.message import DecodeError

from prime_dht.entries.entry import (
    NO_METADATA,
    BlobRef,
    Compression,
    Content,
    Entry,
    EntryHeader,
    Inline,
    Tombstone,
)
from prime_dht.entries.envelope import ENTRY, open_envelope
from prime_dht.errors import ValidationError
from prime_dht.ids import Key, OpId, TimestampUs
from prime_dht.pb import entry_pb2 as pb

YEAR_10000_US = 253_402_300_800_000_000
"""No time reaches this: the first microsecond that calendars of four-digit years cannot say."""

SHA256_BYTES = 32
MAX_CID_BYTES = 128
MAX_CHUNKER_BYTES = 64
MAX_SIZE_BYTES = (1 << 63) - 1
"""Of a value or blob: what a signed 64-bit column of a database can say."""

_SIGNED_ENTRY_TAG = 0x0A


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Stands in a decoded set for what is not an entry, so that answers keep the order of the questions."""

    reason: str


def inline(value: bytes) -> Inline:
    """The content of an entry whose value travels beside its header."""
    return Inline(hashlib.sha256(value).digest(), len(value))


def encode_header(header: EntryHeader) -> bytes:
    """The payload that the publisher signs. The same header always gives the same bytes.

    Raises:
        ValidationError: the header does not have the right form.
    """
    _check_form(header)
    message = pb.EntryHeader(
        network_id=_text("a network id", header.network_id),
        key=header.key,
        subkey=header.subkey,
        created_at_us=header.created_at_us,
        expires_at_us=header.expires_at_us,
        retain_until_us=header.retain_until_us,
        content_type=_text("a content type", header.content_type),
        metadata={
            _text("a name in metadata", name): _text(f"metadata[{name!r}]", value)
            for name, value in header.metadata.items()
        },
        capability=header.capability,
    )
    if header.compression is Compression.ZSTD:
        message.compression = pb.ZSTD
    match header.content:
        case Inline(sha256, size):
            message.inline.sha256, message.inline.size = sha256, size
        case BlobRef(cid, size, chunker):
            message.blob.cid, message.blob.size, message.blob.chunker = cid, size, chunker
        case Tombstone():
            message.tombstone.SetInParent()
        case _:
            assert_never(header.content)
    return message.SerializeToString(deterministic=True)


def decode_header(payload: bytes) -> EntryHeader:
    """Read the payload of an entry's envelope.

    Raises:
        ValidationError: it is malformed, or does not have the right form.
    """
    try:
        message = pb.EntryHeader.FromString(payload)
    except DecodeError as error:
        raise ValidationError("malformed entry header") from error
    try:
        compression = Compression(message.compression)
    except ValueError as error:
        raise ValidationError(f"unknown compression {message.compression}") from error
    header = EntryHeader(
        network_id=message.network_id,
        key=Key(message.key),
        subkey=message.subkey,
        created_at_us=TimestampUs(message.created_at_us),
        expires_at_us=TimestampUs(message.expires_at_us),
        retain_until_us=TimestampUs(message.retain_until_us),
        content=_content(message),
        content_type=message.content_type,
        compression=compression,
        encryption=message.encryption,
        metadata=MappingProxyType(dict(message.metadata)) if message.metadata else NO_METADATA,
        capability=message.capability,
    )
    _check_form(header)
    return header


def decode_entry(envelope: bytes, value: bytes | None) -> Entry:
    """Read an entry, without verifying its signature.

    An inline entry may come without its value: it may have been dropped.

    Raises:
        ValidationError: the envelope, the header or the value does not have the right form.
    """
    opened = open_envelope(envelope, ENTRY)
    header = decode_header(opened.payload)
    _check_value(header.content, value)
    op_id = OpId(opened.statement_id(ENTRY.domain(header.network_id)))
    return Entry(header=header, publisher=opened.signer, op_id=op_id, envelope=envelope, value=value)


def encode_entry_set(entries: Iterable[Entry]) -> bytes:
    """Entries as the value of a record, in the order given."""
    return pb.EntrySet(
        entries=[pb.SignedEntry(envelope=entry.envelope, value=entry.value) for entry in entries]
    ).SerializeToString()


def decode_entry_set(data: bytes, *, max_entries: int) -> list[Entry | Undecodable]:
    """Read the value of a record: one item for each entry of the set, in order.

    One entry that cannot be read does not hide the others. No more than ``max_entries`` are ever looked at, since 4 MiB
    of the smallest items would become 2 million messages in 128 MiB; signatures are not verified.

    Raises:
        ValidationError: it is no entry set, or holds more than ``max_entries``.
    """
    items: list[Entry | Undecodable] = []
    for encoded in _signed_entries(data):
        if len(items) == max_entries:
            raise ValidationError(f"an entry set holds at most {max_entries} entries here")
        try:
            message = pb.SignedEntry.FromString(encoded)
            items.append(decode_entry(message.envelope, message.value if message.HasField("value") else None))
        except (DecodeError, ValidationError) as error:
            items.append(Undecodable(str(error)))
    return items


def _signed_entries(data: bytes) -> Iterator[bytes]:
    """The encoded items of an ``EntrySet``, one at a time: field 1, length-delimited, and nothing else."""
    start = 0
    while start < len(data):
        if data[start] != _SIGNED_ENTRY_TAG:
            raise ValidationError("not an entry set: an unknown field")
        size, shift, start = 0, 0, start + 1
        while start < len(data) and data[start] > 0x7F and shift < 28:
            size |= (data[start] & 0x7F) << shift
            start, shift = start + 1, shift + 7
        if start >= len(data) or data[start] > 0x7F:
            raise ValidationError("not an entry set: a malformed length")
        size |= data[start] << shift
        end = start + 1 + size
        if end > len(data):
            raise ValidationError("not an entry set: it ends in the middle of an entry")
        yield data[start + 1 : end]
        start = end


def _content(message: pb.EntryHeader) -> Content:
    match message.WhichOneof("content"):
        case "inline":
            return Inline(message.inline.sha256, message.inline.size)
        case "blob":
            return BlobRef(message.blob.cid, message.blob.size, message.blob.chunker)
        case "tombstone":
            return Tombstone()
        case None:
            raise ValidationError("an entry has a value, a blob or a tombstone; this one has none of them")
        case unknown:
            assert_never(unknown)


def _check_form(header: EntryHeader) -> None:
    """The rules that encoder and decoder share."""
    ENTRY.domain(header.network_id)
    if not header.key:
        raise ValidationError("a key cannot be empty")
    if not 0 <= header.created_at_us < header.expires_at_us <= header.retain_until_us < YEAR_10000_US:
        raise ValidationError("an entry's times obey 0 <= created_at < expires_at <= retain_until < the year 10000")
    if header.encryption != pb.NO_ENCRYPTION:
        raise ValidationError(f"unknown encryption {header.encryption}: the field is reserved")
    match header.content:
        case Inline(sha256, size):
            if len(sha256) != SHA256_BYTES or not 0 <= size <= MAX_SIZE_BYTES:
                raise ValidationError("a value has a SHA-256 of 32 bytes and a size below 2^63")
        case BlobRef(cid, size, chunker):
            if not 0 < len(cid) <= MAX_CID_BYTES or not 0 <= size <= MAX_SIZE_BYTES:
                raise ValidationError(f"a blob has a CID of 1 to {MAX_CID_BYTES} bytes and a size below 2^63")
            if len(_text("a chunker", chunker).encode()) > MAX_CHUNKER_BYTES:
                raise ValidationError(f"a chunker is named in at most {MAX_CHUNKER_BYTES} bytes")
        case Tombstone():
            pass
        case _:
            assert_never(header.content)


def _check_value(content: Content, value: bytes | None) -> None:
    if value is None:
        return
    if not isinstance(content, Inline):
        raise ValidationError("a tombstone or a blob reference has no value beside it")
    if len(value) != content.size:
        raise ValidationError(f"the value has {len(value)} bytes; its header says {content.size}")
    if hashlib.sha256(value).digest() != content.sha256:
        raise ValidationError("the value's SHA-256 is not what its header says")


def _text(what: str, text: object) -> str:
    """``text`` itself, if it is one that can be UTF-8: Python's strings may hold lone surrogates, which cannot."""
    if not isinstance(text, str):
        raise ValidationError(f"{what} is text, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValidationError(f"{what} is not valid Unicode") from error
    return text
