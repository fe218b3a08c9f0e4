"""The signed envelope: RFC 0002 as py-libp2p has it, its canonical form, and what tampering does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.secp256k1 import create_new_key_pair as create_secp256k1_key_pair
from libp2p.peer.envelope import Envelope as Libp2pEnvelope
from libp2p.peer.envelope import make_unsigned, unmarshal_envelope
from libp2p.peer.id import ID

from prime_dht.entries.envelope import (
    CAPABILITY,
    ENTRY,
    MAX_ENVELOPE_BYTES,
    VerifiedEnvelopes,
    has_valid_signature,
    open_envelope,
    seal,
    signature_of,
    signed_bytes,
)
from prime_dht.errors import ValidationError
from prime_dht.pb import entry_pb2 as pb

ALICE = create_new_key_pair(b"\x01" * 32)
BOB = create_new_key_pair(b"\x02" * 32)
PAYLOAD = b"a payload"
SEALED = seal(ALICE.private_key, ENTRY, "testnet", PAYLOAD)


@given(st.text(max_size=200), st.binary(max_size=200), st.binary(max_size=300))
@settings(derandomize=True, deadline=None)
def test_what_is_signed_is_what_py_libp2p_signs(domain: str, payload_type: bytes, payload: bytes) -> None:
    assert signed_bytes(domain.encode(), payload_type, payload) == make_unsigned(domain, payload_type, payload)


def test_py_libp2p_reads_and_verifies_our_envelope() -> None:
    envelope = unmarshal_envelope(SEALED)
    envelope.validate("prime-entry:testnet")
    assert envelope.raw_payload == PAYLOAD
    assert envelope.public_key == ALICE.public_key


def test_an_envelope_that_py_libp2p_writes_is_the_same_bytes() -> None:
    signature = ALICE.private_key.sign(make_unsigned("prime-entry:testnet", ENTRY.payload_type, PAYLOAD))
    envelope = Libp2pEnvelope(ALICE.public_key, ENTRY.payload_type, PAYLOAD, signature)
    assert envelope.marshal_envelope() == SEALED


def is_signed(data: bytes) -> bool:
    open_envelope(data, ENTRY)
    return has_valid_signature(data, ENTRY, "testnet")


def test_the_signer_is_the_peer_id_of_the_public_key() -> None:
    assert open_envelope(SEALED, ENTRY).signer == ID.from_pubkey(ALICE.public_key).to_bytes()


def test_a_signature_counts_only_for_its_network_and_purpose() -> None:
    open_envelope(SEALED, ENTRY)
    assert has_valid_signature(SEALED, ENTRY, "testnet")
    assert not has_valid_signature(SEALED, ENTRY, "testnet2")
    assert not has_valid_signature(SEALED, CAPABILITY, "testnet")
    with pytest.raises(ValidationError, match="not an envelope of type"):
        open_envelope(SEALED, CAPABILITY)


def test_flipping_any_bit_of_an_envelope_makes_it_invalid() -> None:
    for position in range(len(SEALED)):
        for bit in range(8):
            tampered = bytearray(SEALED)
            tampered[position] ^= 1 << bit
            try:
                assert not is_signed(bytes(tampered)), (position, bit)
            except ValidationError:
                continue


def test_anothers_key_beside_the_signature_makes_it_invalid() -> None:
    message = pb.Envelope.FromString(SEALED)
    message.public_key.Data = BOB.public_key.to_bytes()
    assert not is_signed(message.SerializeToString())


@pytest.mark.parametrize("point", [b"\x01" + bytes(31), bytes(32), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_a_key_of_small_order_signs_nothing(point: bytes) -> None:
    message = pb.Envelope.FromString(SEALED)
    message.public_key.Data = point
    for signature in (bytes(64), point + bytes(32)):
        message.signature = signature
        assert not is_signed(message.SerializeToString())


def test_a_signature_cannot_be_varied_by_adding_the_group_order() -> None:
    order = 2**252 + 27742317777372353535851937790883648493
    scalar = int.from_bytes(SEALED[-32:], "little") + order
    varied = SEALED[:-32] + scalar.to_bytes(32, "little")
    assert not is_signed(varied)


def rearranged(**changes: object) -> bytes:
    message = pb.Envelope.FromString(SEALED)
    for name, value in changes.items():
        setattr(message, name, value)
    return message.SerializeToString()


FIELDS = [SEALED[:38], SEALED[38:54], SEALED[54:-66], SEALED[-66:]]
OVERLONG_LENGTH = SEALED[:54] + b"\x1a\x89\x00" + PAYLOAD + SEALED[-66:]
NOT_CANONICAL = {
    "unknown field behind": SEALED + b"\x78\x01",
    "unknown field before": b"\x78\x01" + SEALED,
    "unknown field in the key": b"\x0a\x26" + SEALED[2:38] + b"\x18\x01" + SEALED[38:],
    "swapped fields": FIELDS[1] + FIELDS[0] + FIELDS[2] + FIELDS[3],
    "a field twice": FIELDS[0] + SEALED,
    "an overlong length": OVERLONG_LENGTH,
}

SIGNATURE_IN_KEY = SEALED[:24] + b"\x2a\x40" + SEALED[26:54] + b"\x1a\x00" + bytes(34)
"""As long as if the signature, of 64 bytes, began within the public key."""


def test_the_fields_these_tests_shuffle_are_the_envelopes() -> None:
    assert b"".join(FIELDS) == SEALED
    assert pb.Envelope.FromString(OVERLONG_LENGTH) == pb.Envelope.FromString(SEALED)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 16383, 16384, 16385, 60_000])
def test_a_payload_of_any_size_comes_back(size: int) -> None:
    payload = bytes(size)
    assert open_envelope(seal(ALICE.private_key, ENTRY, "testnet", payload), ENTRY).payload == payload


@pytest.mark.parametrize(("size", "length"), [(128, b"\x7f"), (128, b"\x80"), (16384, b"\xff\x7f")])
def test_an_envelope_whose_length_is_not_its_payloads_is_refused_though_it_is_signed(size: int, length: bytes) -> None:
    """At these sizes one less is written in a byte less: the envelope would end where it should."""
    payload = bytes(size)
    signature = ALICE.private_key.sign(
        signed_bytes(b"prime-entry:testnet", ENTRY.payload_type, b"")[:-1] + length + payload
    )
    with pytest.raises(ValidationError, match="malformed"):
        open_envelope(SEALED[:54] + b"\x1a" + length + payload + b"\x2a\x40" + signature, ENTRY)


@pytest.mark.parametrize("data", NOT_CANONICAL.values(), ids=NOT_CANONICAL.keys())
def test_an_envelope_in_any_other_encoding_is_refused(data: bytes) -> None:
    assert pb.Envelope.FromString(data).signature == signature_of(SEALED)
    with pytest.raises(ValidationError, match="canonically"):
        open_envelope(data, ENTRY)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an envelope of type"),
        (SEALED[:-1], "malformed"),
        (rearranged(payload_type=b"/prime/entry/2"), "not an envelope of type"),
        (rearranged(payload_type=b""), "not an envelope of type"),
        (rearranged(signature=bytes(63)), "its signature 64"),
        (rearranged(signature=bytes(65)), "its signature 64"),
        (SEALED.replace(b"\x0a\x24\x08\x01", b"\x0a\x24\x08\x02"), "only Ed25519"),
        (SEALED.replace(b"\x0a\x24\x08\x01\x12\x20", b"\x0a\x25\x08\x01\x12\x21\x00"), "public key has 32 bytes"),
        (rearranged(payload=bytes(MAX_ENVELOPE_BYTES)), "at most 65536 bytes"),
        (SIGNATURE_IN_KEY, "malformed"),
    ],
    ids=[
        "empty",
        "cut",
        "type",
        "no type",
        "short",
        "long",
        "secp256k1",
        "33-byte key",
        "too large",
        "overlapping fields",
    ],
)
def test_bytes_that_are_no_envelope_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        open_envelope(data, ENTRY)


def test_only_ed25519_keys_sign() -> None:
    with pytest.raises(ValidationError, match="only Ed25519"):
        seal(create_secp256k1_key_pair().private_key, ENTRY, "testnet", PAYLOAD)


def test_an_envelope_is_never_larger_than_the_format_allows() -> None:
    overhead = len(SEALED) - len(PAYLOAD) + 2  # two more bytes of length
    largest = bytes(MAX_ENVELOPE_BYTES - overhead)
    assert len(seal(ALICE.private_key, ENTRY, "testnet", largest)) == MAX_ENVELOPE_BYTES
    with pytest.raises(ValidationError, match="at most 65536 bytes"):
        seal(ALICE.private_key, ENTRY, "testnet", largest + b"\0")


@pytest.mark.parametrize("network_id", ["", "n" * 65, "é" * 33, "a\0b", "\ud800"])
def test_a_network_id_that_could_blur_the_domain_is_refused(network_id: str) -> None:
    with pytest.raises(ValidationError, match="network id"):
        ENTRY.domain(network_id)


def test_a_network_id_may_be_any_other_text() -> None:
    assert ENTRY.domain("é" * 32) == b"prime-entry:" + "é".encode() * 32


def test_a_known_statement_under_another_signature_is_not_known() -> None:
    verified = VerifiedEnvelopes()
    verified.remember(b"a", b"signature")
    assert verified.knows(b"a", b"signature")
    assert not verified.knows(b"a", b"other")
    assert not verified.knows(b"b", b"signature")


def test_what_was_longest_not_asked_for_is_forgotten_first() -> None:
    verified = VerifiedEnvelopes(capacity=2)
    verified.remember(b"a", b"1")
    verified.remember(b"b", b"2")
    assert verified.knows(b"a", b"1")
    verified.remember(b"c", b"3")
    assert len(verified) == 2
    assert verified.knows(b"a", b"1")
    assert not verified.knows(b"b", b"2")
    assert verified.knows(b"c", b"3")
