"""Signing and verifying entries, and what the memory of verified ones may and may not accept."""

from __future__ import annotations

from dataclasses import replace

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.rsa import create_new_key_pair as create_rsa_key_pair
from libp2p.peer.id import ID

from prime_dht.entries.access import own_key
from prime_dht.entries.codec import decode_entry, encode_header, inline
from prime_dht.entries.entry import Compression, EntryHeader, Inline, Tombstone
from prime_dht.entries.envelope import VerifiedEnvelopes
from prime_dht.entries.limits import Limits
from prime_dht.entries.signing import sign_entry, verify_signature
from prime_dht.errors import ValidationError
from prime_dht.ids import Key, PeerId, TimestampUs
from prime_dht.pb import entry_pb2 as pb

ALICE = create_new_key_pair(b"\x01" * 32)
BOB = create_new_key_pair(b"\x02" * 32)
VALUE = b"weights"
HEADER = EntryHeader(
    network_id="testnet",
    key=Key(b"/prime/model"),
    subkey=b"layer1",
    created_at_us=TimestampUs(1_000),
    expires_at_us=TimestampUs(2_000),
    retain_until_us=TimestampUs(3_000),
    content=inline(VALUE),
    metadata={"round": "7"},
)
ENTRY = sign_entry(HEADER, ALICE.private_key, VALUE)


def with_payload(payload: bytes) -> bytes:
    """Alice's envelope, signature and all, around another payload."""
    message = pb.Envelope.FromString(ENTRY.envelope)
    message.payload = payload
    return message.SerializeToString()


def with_signature(signature: bytes) -> bytes:
    return ENTRY.envelope[:-64] + signature


def test_a_signed_entry_is_what_others_decode() -> None:
    assert decode_entry(ENTRY.envelope, VALUE) == ENTRY
    assert ENTRY.header == HEADER
    assert ENTRY.publisher == ID.from_pubkey(ALICE.public_key).to_bytes()
    assert verify_signature(ENTRY)


@pytest.mark.parametrize(
    "tampered",
    [
        replace(HEADER, network_id="mainnet"),
        replace(HEADER, key=Key(b"/prime/other")),
        replace(HEADER, subkey=b"layer2"),
        replace(HEADER, created_at_us=TimestampUs(1_001)),
        replace(HEADER, expires_at_us=TimestampUs(2_001)),
        replace(HEADER, retain_until_us=TimestampUs(3_001)),
        replace(HEADER, content=Tombstone()),
        replace(HEADER, content=inline(b"poison!")),
        replace(HEADER, content=Inline(inline(VALUE).sha256, 8)),
        replace(HEADER, content_type="text/plain"),
        replace(HEADER, compression=Compression.ZSTD),
        replace(HEADER, metadata={"round": "8"}),
        replace(HEADER, capability=b"x"),
    ],
)
def test_tampering_with_any_field_breaks_the_signature_even_if_the_original_is_known(tampered: EntryHeader) -> None:
    verified = VerifiedEnvelopes()
    assert verify_signature(ENTRY, verified)
    assert not verify_signature(decode_entry(with_payload(encode_header(tampered)), None), verified)


def test_a_verified_entry_is_known_and_not_verified_again() -> None:
    verified = VerifiedEnvelopes()
    assert verify_signature(ENTRY, verified)
    assert verified.knows(ENTRY.op_id, ENTRY.envelope[-64:])
    assert verify_signature(ENTRY, verified)
    assert len(verified) == 1
    verified.remember(ENTRY.op_id, bytes(64))
    assert verify_signature(decode_entry(with_signature(bytes(64)), VALUE), verified)  # else it would be refused


def test_a_known_op_under_a_forged_signature_is_not_accepted() -> None:
    verified = VerifiedEnvelopes()
    assert verify_signature(ENTRY, verified)
    forged = decode_entry(with_signature(bytes(64)), VALUE)
    assert forged.op_id == ENTRY.op_id
    assert not verify_signature(forged, verified)
    assert verify_signature(ENTRY, verified)


def test_a_known_payload_under_anothers_key_is_another_op_and_not_accepted() -> None:
    verified = VerifiedEnvelopes()
    assert verify_signature(ENTRY, verified)
    message = pb.Envelope.FromString(ENTRY.envelope)
    message.public_key.Data = BOB.public_key.to_bytes()
    stolen = decode_entry(message.SerializeToString(), VALUE)
    assert stolen.op_id != ENTRY.op_id
    assert not verify_signature(stolen, verified)


def test_a_forged_entry_is_not_remembered() -> None:
    verified = VerifiedEnvelopes()
    assert not verify_signature(decode_entry(with_signature(bytes(64)), VALUE), verified)
    assert len(verified) == 0


def test_only_ed25519_keys_sign_entries() -> None:
    with pytest.raises(ValidationError, match="only Ed25519"):
        sign_entry(HEADER, create_rsa_key_pair(bits=2048).private_key, VALUE)


def test_a_value_that_does_not_fit_its_header_is_not_signed() -> None:
    with pytest.raises(ValidationError, match="bytes"):
        sign_entry(HEADER, ALICE.private_key, VALUE + b"!")


def test_a_writer_hears_of_limits_before_anybody_else_does() -> None:
    large = bytes((64 << 10) + 1)
    with pytest.raises(ValidationError, match=r"inline value: 65,537 bytes; the limit is 65,536 bytes"):
        sign_entry(replace(HEADER, content=inline(large)), ALICE.private_key, large)
    assert (
        sign_entry(
            replace(HEADER, content=inline(large)), ALICE.private_key, large, limits=Limits(max_inline_bytes=len(large))
        ).value
        == large
    )


def test_a_writer_hears_that_a_key_is_not_its_own() -> None:
    alice = PeerId(ID.from_pubkey(ALICE.public_key).to_bytes())
    header = replace(HEADER, key=own_key(alice, b"status"))
    assert sign_entry(header, ALICE.private_key, VALUE).header.key == header.key
    with pytest.raises(ValidationError, match=r"only .* writes its own keys"):
        sign_entry(header, BOB.private_key, VALUE)
