"""Entries as bytes: golden vectors, round trips, and everything that is no entry."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair

from prime_dht.entries.codec import (
    YEAR_10000_US,
    Undecodable,
    decode_entry,
    decode_entry_set,
    decode_header,
    encode_entry_set,
    encode_header,
    inline,
)
from prime_dht.entries.entry import BlobRef, Compression, Content, Entry, EntryHeader, Inline, Tombstone
from prime_dht.entries.envelope import ENTRY, seal
from prime_dht.errors import ValidationError
from prime_dht.ids import US_PER_S, Key, TimestampUs
from prime_dht.pb import entry_pb2 as pb

ALICE = create_new_key_pair(b"\x01" * 32)
PUBLIC_KEY = bytes.fromhex("080112208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c")

FULL_HEADER = EntryHeader(
    network_id="testnet",
    key=Key(b"/prime/model:resnet"),
    subkey=b"layer1",
    created_at_us=TimestampUs(1_700_000_000_000_000),
    expires_at_us=TimestampUs(1_700_086_400_000_000),
    retain_until_us=TimestampUs(1_700_086_400_000_001),
    content=inline(b"weights"),
    content_type="application/octet-stream",
    compression=Compression.ZSTD,
    metadata={"round": "7", "arch": "résnet"},
    capability=b"cap",
)
FULL_PAYLOAD = bytes.fromhex(
    "0a07746573746e6574"  # network_id
    "12132f7072696d652f6d6f64656c3a7265736e6574"  # key
    "1a066c6179657231"  # subkey
    "208080f9c0c1c48203"  # created_at_us
    "2880c0d6af83c78203"  # expires_at_us
    "3081c0d6af83c78203"  # retain_until_us
    "3a24"  # inline
    "0a209a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c1007"
    "52186170706c69636174696f6e2f6f637465742d73747265616d"  # content_type
    "5801"  # compression
    "6a0f0a0461726368120772c3a9736e6574"  # metadata, in the order of names
    "6a0a0a05726f756e64120137"
    "7203636170"  # capability
)
FULL_ENVELOPE = bytes.fromhex(
    "0a24080112208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c"  # public_key
    "120e2f7072696d652f656e7472792f31"  # payload_type
    "1aa501" + FULL_PAYLOAD.hex() + "2a40be6bdad803339aa4f1ac814e98463a2d651f850efc59c7e5031cb0be6cd154e9"  # signature
    "5452160f556c0454cc7d77ebc77f0481aca95138b2a0b90fbeb5a0b4fc32e309"
)
FULL_OP_ID = bytes.fromhex("23e981da67fa18af5d339c4cd023ff663cb1d269064a515c87988d07cd91a090")

SMALL_HEADER = EntryHeader(
    network_id="testnet",
    key=Key(b"/prime/x"),
    created_at_us=TimestampUs(1),
    expires_at_us=TimestampUs(2),
    retain_until_us=TimestampUs(2),
    content=Tombstone(),
)


def sealed(payload: bytes) -> bytes:
    return seal(ALICE.private_key, ENTRY, "testnet", payload)


def envelope_of(header: EntryHeader) -> bytes:
    return sealed(encode_header(header))


times = st.lists(st.integers(0, YEAR_10000_US - 1), min_size=2, max_size=3, unique=True).map(sorted)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
contents: st.SearchStrategy[Content] = st.one_of(
    st.builds(Inline, st.binary(min_size=32, max_size=32), st.integers(0, 2**63 - 1)),
    st.builds(BlobRef, st.binary(min_size=1, max_size=128), st.integers(0, 2**63 - 1), text.map(lambda s: s[:16])),
    st.just(Tombstone()),
)


@st.composite
def headers(draw: st.DrawFn) -> EntryHeader:
    life = draw(times)
    return EntryHeader(
        network_id=draw(text.filter(lambda s: 0 < len(s.encode()) <= 64 and "\0" not in s)),
        key=Key(draw(st.binary(min_size=1, max_size=64))),
        subkey=draw(st.binary(max_size=32)),
        created_at_us=TimestampUs(life[0]),
        expires_at_us=TimestampUs(life[1]),
        retain_until_us=TimestampUs(life[-1]),
        content=draw(contents),
        content_type=draw(text),
        compression=draw(st.sampled_from(Compression)),
        metadata=draw(st.dictionaries(text, text, max_size=4)),
        capability=draw(st.binary(max_size=32)),
    )


def test_a_header_encodes_to_its_golden_bytes() -> None:
    assert encode_header(FULL_HEADER) == FULL_PAYLOAD
    assert decode_header(FULL_PAYLOAD) == FULL_HEADER


def test_an_envelope_encodes_to_its_golden_bytes_and_decodes_from_them() -> None:
    assert envelope_of(FULL_HEADER) == FULL_ENVELOPE
    entry = decode_entry(FULL_ENVELOPE, b"weights")
    assert entry == Entry(
        header=FULL_HEADER,
        publisher=entry.publisher,
        op_id=entry.op_id,
        envelope=FULL_ENVELOPE,
        value=b"weights",
    )
    assert entry.publisher == b"\x00\x24" + PUBLIC_KEY


def test_the_op_id_is_the_hash_its_definition_says() -> None:
    hashed = b"prime-entry:testnet" + bytes((0, 0, 0, 36)) + PUBLIC_KEY + bytes((0, 0, 0, 165)) + FULL_PAYLOAD
    assert hashlib.sha256(hashed).digest() == FULL_OP_ID
    assert decode_entry(FULL_ENVELOPE, None).op_id == FULL_OP_ID


def test_the_op_id_does_not_depend_on_the_signature() -> None:
    other = FULL_ENVELOPE[:-1] + bytes((FULL_ENVELOPE[-1] ^ 1,))
    assert decode_entry(other, None).op_id == FULL_OP_ID


@pytest.mark.parametrize(
    "changed",
    [
        replace(FULL_HEADER, network_id="mainnet"),
        replace(FULL_HEADER, key=Key(b"/prime/model:vgg")),
        replace(FULL_HEADER, subkey=b"layer2"),
        replace(FULL_HEADER, created_at_us=TimestampUs(FULL_HEADER.created_at_us + 1)),
        replace(FULL_HEADER, expires_at_us=TimestampUs(FULL_HEADER.expires_at_us - 1)),
        replace(FULL_HEADER, retain_until_us=TimestampUs(FULL_HEADER.retain_until_us + 1)),
        replace(FULL_HEADER, content=Tombstone()),
        replace(FULL_HEADER, content=Inline(bytes(32), 7)),
        replace(FULL_HEADER, content_type=""),
        replace(FULL_HEADER, compression=Compression.NONE),
        replace(FULL_HEADER, metadata={"round": "8", "arch": "résnet"}),
        replace(FULL_HEADER, capability=b""),
    ],
)
def test_every_field_enters_the_op_id(changed: EntryHeader) -> None:
    assert decode_entry(envelope_of(changed), None).op_id != FULL_OP_ID


@given(headers())
@settings(derandomize=True, deadline=None)
def test_a_header_survives_the_round_trip(header: EntryHeader) -> None:
    assert decode_header(encode_header(header)) == header


def test_metadata_encodes_alike_in_any_order() -> None:
    metadata = {str(number): "" for number in range(32)}
    forwards = replace(FULL_HEADER, metadata=metadata)
    backwards = replace(FULL_HEADER, metadata=dict(reversed(metadata.items())))
    assert encode_header(forwards) == encode_header(backwards)


def test_an_unknown_field_of_the_header_is_tolerated_and_signed_over() -> None:
    payload = FULL_PAYLOAD + b"\xf8\x07\x01"  # field 127
    entry = decode_entry(sealed(payload), b"weights")
    assert entry.header == FULL_HEADER
    assert entry.op_id != FULL_OP_ID


def test_an_entry_may_come_without_its_value() -> None:
    assert decode_entry(FULL_ENVELOPE, None).value is None


def test_an_empty_value_is_a_value() -> None:
    entry = decode_entry(envelope_of(replace(SMALL_HEADER, content=inline(b""))), b"")
    assert entry.value == b""
    assert decode_entry_set(encode_entry_set([entry]), max_entries=1) == [entry]


@pytest.mark.parametrize(
    ("value", "message"),
    [(b"weight", "7"), (b"weights!", "7"), (b"weightz", "SHA-256")],
    ids=["shorter", "longer", "different"],
)
def test_a_value_that_is_not_the_headers_is_refused(value: bytes, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        decode_entry(FULL_ENVELOPE, value)


@pytest.mark.parametrize("content", [Tombstone(), BlobRef(b"cid", 1, "")])
def test_a_value_beside_a_tombstone_or_a_blob_is_refused(content: Content) -> None:
    envelope = envelope_of(replace(SMALL_HEADER, content=content))
    assert decode_entry(envelope, None).header.content == content
    with pytest.raises(ValidationError, match="no value"):
        decode_entry(envelope, b"")


def malformed(**changes: object) -> EntryHeader:
    return replace(SMALL_HEADER, **changes)  # type: ignore[arg-type]  # wrong on purpose


MALFORMED = {
    "no network": malformed(network_id=""),
    "long network": malformed(network_id="n" * 65),
    "NUL in network": malformed(network_id="a\0b"),
    "empty key": malformed(key=b""),
    "expires when created": malformed(expires_at_us=1),
    "expires before created": malformed(created_at_us=3),
    "retained less than it lives": malformed(retain_until_us=1),
    "year 10000": malformed(retain_until_us=YEAR_10000_US),
    "encryption": malformed(encryption=1),
    "short hash": malformed(content=Inline(bytes(31), 1)),
    "long hash": malformed(content=Inline(bytes(33), 1)),
    "huge value": malformed(content=Inline(bytes(32), 1 << 63)),
    "no CID": malformed(content=BlobRef(b"", 1, "")),
    "long CID": malformed(content=BlobRef(bytes(129), 1, "")),
    "huge blob": malformed(content=BlobRef(b"cid", 1 << 63, "")),
    "long chunker": malformed(content=BlobRef(b"cid", 1, "c" * 65)),
}


def encode_unchecked(header: EntryHeader) -> bytes:
    """What an encoder without our checks would write."""
    message = pb.EntryHeader(
        network_id=header.network_id,
        key=header.key,
        created_at_us=header.created_at_us,
        expires_at_us=header.expires_at_us,
        retain_until_us=header.retain_until_us,
        encryption=pb.Encryption.ValueType(header.encryption),
    )
    match header.content:
        case Inline(sha256, size):
            message.inline.CopyFrom(pb.Inline(sha256=sha256, size=size))
        case BlobRef(cid, size, chunker):
            message.blob.CopyFrom(pb.BlobRef(cid=cid, size=size, chunker=chunker))
        case Tombstone():
            message.tombstone.SetInParent()
    return message.SerializeToString()


def test_the_unchecked_encoder_of_these_tests_makes_headers_that_decode() -> None:
    assert decode_header(encode_unchecked(SMALL_HEADER)) == SMALL_HEADER


@pytest.mark.parametrize("header", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_header_of_the_wrong_form_is_neither_written_nor_read(header: EntryHeader) -> None:
    with pytest.raises(ValidationError):
        encode_header(header)
    with pytest.raises(ValidationError):
        decode_header(encode_unchecked(header))


LAST_US = TimestampUs(int((datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)).timestamp()) * US_PER_S + 999_999)


@pytest.mark.parametrize(
    "header",
    [
        malformed(created_at_us=0, expires_at_us=1, retain_until_us=1),
        malformed(created_at_us=LAST_US - 1, expires_at_us=LAST_US, retain_until_us=LAST_US),
        malformed(content=inline(b"")),
        malformed(content=Inline(bytes(32), (1 << 63) - 1)),
        malformed(content=BlobRef(b"c", 0, "")),
        malformed(content=BlobRef(bytes(128), (1 << 63) - 1, "c" * 64)),
    ],
    ids=["1970", "9999", "no bytes", "many bytes", "an empty blob", "the largest blob"],
)
def test_a_header_at_the_ends_of_its_ranges_is_written_and_read(header: EntryHeader) -> None:
    assert decode_header(encode_header(header)) == header


def test_no_time_reaches_the_year_10000() -> None:
    with pytest.raises(ValidationError, match="10000"):
        encode_header(malformed(retain_until_us=LAST_US + 1))


@pytest.mark.parametrize(
    "header",
    [
        malformed(created_at_us=-1),
        malformed(network_id="\ud800"),
        malformed(content_type="\ud800"),
        malformed(metadata={"\ud800": ""}),
        malformed(metadata={"": "\ud800"}),
        malformed(content=BlobRef(b"cid", 1, "\ud800")),
        malformed(content=Inline(bytes(32), -1)),
    ],
)
def test_what_protobuf_cannot_say_is_not_written(header: EntryHeader) -> None:
    with pytest.raises(ValidationError):
        encode_header(header)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"metadata": {"epoch": 7}}, r"metadata\['epoch'\] is text, not int"),
        ({"metadata": {7: "epoch"}}, "a name in metadata is text, not int"),
        ({"metadata": {"epoch": "\ud800"}}, r"metadata\['epoch'\] is not valid Unicode"),
        ({"content_type": b"text/plain"}, "a content type is text, not bytes"),
    ],
)
def test_text_that_is_none_is_refused_by_its_name(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        encode_header(replace(SMALL_HEADER, **wrong))  # type: ignore[arg-type]


SMALL_PAYLOAD = encode_header(SMALL_HEADER)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        SMALL_PAYLOAD.removesuffix(b"\x4a\x00"),
        SMALL_PAYLOAD + b"\x3a",
        SMALL_PAYLOAD + b"\x52\x01\xff",
        SMALL_PAYLOAD + b"\x6a\x03\x0a\x01\xff",
        SMALL_PAYLOAD + b"\x58\x02",
        SMALL_PAYLOAD + b"\x60\x01",
    ],
    ids=["empty", "no content", "truncated", "no UTF-8", "no UTF-8 in metadata", "unknown compression", "encryption"],
)
def test_a_payload_that_is_no_header_is_refused(payload: bytes) -> None:
    with pytest.raises(ValidationError):
        decode_entry(sealed(payload), None)


@given(st.binary(max_size=300))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_arbitrary_bytes_raise_nothing_but_validation_error(data: bytes) -> None:
    for read in (decode_header, lambda it: decode_entry(it, None), lambda it: decode_entry(sealed(it), None)):
        with suppress(ValidationError):
            read(data)
    with suppress(ValidationError):
        decode_entry_set(data, max_entries=10)


@given(st.integers(0, len(FULL_PAYLOAD) - 1), st.binary(max_size=4), st.integers(0, 4))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_a_damaged_header_raises_nothing_but_validation_error(start: int, inserted: bytes, removed: int) -> None:
    damaged = FULL_PAYLOAD[:start] + inserted + FULL_PAYLOAD[start + removed :]
    try:
        header = decode_header(damaged)
    except ValidationError:
        return
    assert decode_header(encode_header(header)) == header


FULL_ENTRY = decode_entry(FULL_ENVELOPE, b"weights")
SMALL_ENTRY = decode_entry(envelope_of(SMALL_HEADER), None)


def item_of(size: int) -> bytes:
    """In an entry set, what has so many bytes and is no entry."""
    encoded = bytearray()
    rest = size
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    return b"\x0a" + bytes((*encoded, rest)) + bytes(size)


@pytest.mark.parametrize(
    "size", [0, 1, 126, 127, 128, 255, 256, 16_255, 16_256, 16_383, 16_384, (1 << 21) - 1, 1 << 21]
)
def test_items_of_every_size_are_found_where_they_begin(size: int) -> None:
    small = encode_entry_set([SMALL_ENTRY])
    data = small + item_of(size) + small
    first, between, last = decode_entry_set(data, max_entries=3)
    assert first == last == SMALL_ENTRY
    assert isinstance(between, Undecodable)


def test_an_entry_set_encodes_to_its_golden_bytes() -> None:
    encoded = encode_entry_set([SMALL_ENTRY, FULL_ENTRY])
    assert encoded == b"".join(
        (
            b"\x0a\x98\x01\x0a\x95\x01" + SMALL_ENTRY.envelope,
            b"\x0a\xac\x02\x0a\xa0\x02" + FULL_ENVELOPE + b"\x12\x07weights",
        )
    )


@pytest.mark.parametrize("entries", [[], [SMALL_ENTRY], [FULL_ENTRY, SMALL_ENTRY, FULL_ENTRY]])
def test_an_entry_set_survives_the_round_trip(entries: list[Entry]) -> None:
    assert decode_entry_set(encode_entry_set(entries), max_entries=3) == entries


def test_an_entry_that_cannot_be_read_keeps_its_place_in_the_set() -> None:
    bad = replace(FULL_ENTRY, value=b"wrong")
    items = decode_entry_set(encode_entry_set([SMALL_ENTRY, bad, FULL_ENTRY]), max_entries=3)
    assert items[0] == SMALL_ENTRY
    assert isinstance(items[1], Undecodable)
    assert "7" in items[1].reason
    assert items[2] == FULL_ENTRY


def test_a_set_of_more_entries_than_allowed_is_refused_before_the_rest_is_read() -> None:
    encoded = encode_entry_set([SMALL_ENTRY] * 3)
    assert len(decode_entry_set(encoded, max_entries=3)) == 3
    with pytest.raises(ValidationError, match="at most 2"):
        decode_entry_set(encoded + b"garbage that is never reached", max_entries=2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x12\x00", "unknown field"),
        (b"\x0a\x00\x0b", "unknown field"),
        (b"\x0a", "malformed length"),
        (b"\x0a\x80", "malformed length"),
        (b"\x0a\xff\xff\xff\xff\xff\x01", "malformed length"),
        (b"\x0a\x01", "ends in the middle"),
    ],
    ids=["field", "wire type", "no length", "half a length", "endless length", "cut off"],
)
def test_bytes_that_are_no_entry_set_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        decode_entry_set(data, max_entries=10)


def test_the_set_reads_what_protobuf_writes_at_every_length_of_length() -> None:
    for size in (0, 127, 128, 16_383, 16_384, 65_536, 2_097_152):
        data = pb.EntrySet(entries=[pb.SignedEntry(value=bytes(size)), pb.SignedEntry()]).SerializeToString()
        assert len(decode_entry_set(data, max_entries=2)) == 2
