"""Validators of plain records: the registry, public keys, and those of py-libp2p."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import PublicKey
from libp2p.crypto.rsa import create_new_key_pair as create_rsa_key_pair
from libp2p.crypto.secp256k1 import create_new_key_pair as create_secp256k1_key_pair
from libp2p.peer.id import ID
from libp2p.records.ipns import IPNSValidator
from libp2p.records.pubkey import PublicKeyValidator as Libp2pPublicKeyValidator
from libp2p.records.utils import InvalidRecordType

from prime_dht.entries.validators import ForeignValidator, PublicKeyValidator, ValidatorRegistry
from prime_dht.errors import ConfigError, ValidationError
from prime_dht.pb import entry_pb2 as pb

ALICE = create_new_key_pair(b"\x01" * 32).public_key
PUBLIC_KEYS = [ALICE, create_secp256k1_key_pair().public_key, create_rsa_key_pair(bits=2048).public_key]
VALUE = ALICE.serialize()
KEY = b"/pk/" + ID.from_pubkey(ALICE).to_bytes()


class Longest:
    """Takes text; the longest is best."""

    def validate(self, key: bytes, value: bytes) -> None:
        if not value.isalpha():
            raise ValidationError("not text")

    def select(self, key: bytes, values: Sequence[bytes]) -> int:
        return max(range(len(values)), key=lambda index: len(values[index]))


@pytest.mark.parametrize("public_key", PUBLIC_KEYS, ids=["Ed25519", "secp256k1", "RSA"])
def test_a_public_key_is_valid_under_its_own_peer_id_only(public_key: PublicKey) -> None:
    registry = ValidatorRegistry()
    value = public_key.serialize()
    registry.validate(b"/pk/" + ID.from_pubkey(public_key).to_bytes(), value)
    other = create_new_key_pair(b"\x02" * 32).public_key
    with pytest.raises(ValidationError, match="not the one its record's key names"):
        registry.validate(b"/pk/" + ID.from_pubkey(other).to_bytes(), value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "no known type, or empty"),
        (b"\xff", "malformed"),
        (VALUE[:-1], "malformed"),
        (VALUE + b"\x00", "malformed"),
        (b"\x08\x09" + VALUE[2:], "no known type"),
        (VALUE[:2], "or empty"),
        (b"\x08\x00\x12\x80\x20" + bytes(4096), "at most 4096 bytes, not 4101"),
    ],
    ids=["empty", "no protobuf", "cut", "longer", "unknown type", "no data", "too large"],
)
def test_what_is_no_public_key_is_refused_even_under_its_own_hash(value: bytes, message: str) -> None:
    inlined = bytes((0, len(value))) + value if len(value) <= 42 else b"\x12\x20" + sha256(value).digest()
    with pytest.raises(ValidationError, match=message):
        PublicKeyValidator().validate(b"/pk/" + inlined, value)


@pytest.mark.parametrize("size", [42, 43, 4096])
def test_a_public_key_of_up_to_42_bytes_is_named_by_itself_and_a_longer_one_by_its_hash(size: int) -> None:
    data_bytes = size - (4 if size < 100 else 5)
    value = pb.Envelope.PublicKey(Type=pb.Envelope.PublicKey.ECDSA, Data=bytes(data_bytes)).SerializeToString()
    itself, hashed = bytes((0, min(size, 255))) + value, b"\x12\x20" + sha256(value).digest()
    name, other = (itself, hashed) if size <= 42 else (hashed, itself)
    assert len(value) == size
    PublicKeyValidator().validate(b"/pk/" + name, value)
    with pytest.raises(ValidationError, match="not the one its record's key names"):
        PublicKeyValidator().validate(b"/pk/" + other, value)


def test_any_public_key_of_a_peer_is_as_good_as_another() -> None:
    assert ValidatorRegistry().select(KEY, [VALUE, VALUE]) == 0


def test_a_namespace_nobody_registered_is_refused() -> None:
    registry = ValidatorRegistry()
    with pytest.raises(ValidationError, match="no validator is registered for the namespace /ipns/"):
        registry.validate(b"/ipns/x", b"")
    with pytest.raises(ValidationError, match="no validator"):
        registry.select(b"/ipns/x", [b""])


@pytest.mark.parametrize("key", [b"", b"pk", b"/pk", b"/pk/", b"//x", b"/\xff/x"])
def test_a_key_without_a_namespace_is_refused(key: bytes) -> None:
    with pytest.raises(ValidationError):
        ValidatorRegistry().validate(key, VALUE)
    with pytest.raises(ValidationError):
        ValidatorRegistry().check_namespace(key)


def test_whether_records_of_a_key_can_be_validated_is_known_without_one() -> None:
    ValidatorRegistry().check_namespace(b"/pk/anything")
    ValidatorRegistry({"text": Longest()}).check_namespace(b"/text/x")
    with pytest.raises(ValidationError, match="no validator"):
        ValidatorRegistry().check_namespace(b"/text/x")


def test_entries_have_no_validator() -> None:
    with pytest.raises(ConfigError, match="/prime/"):
        ValidatorRegistry({"prime": Longest()})


def test_validators_are_given_by_their_namespaces() -> None:
    with pytest.raises(ConfigError, match="a mapping, of namespaces to validators, not list"):
        ValidatorRegistry([Longest()])  # type: ignore[arg-type]


def test_an_applications_validator_judges_and_selects_in_its_namespace() -> None:
    registry = ValidatorRegistry({"text": Longest()})
    registry.validate(b"/text/x", b"abc")
    with pytest.raises(ValidationError, match="not text"):
        registry.validate(b"/text/x", b"123")
    assert registry.select(b"/text/x", [b"a", b"abc", b"ab"]) == 1
    registry.validate(KEY, VALUE)


def test_nothing_cannot_be_selected_from() -> None:
    with pytest.raises(ValidationError, match="no record"):
        ValidatorRegistry().select(KEY, [])


def test_a_validator_of_py_libp2p_can_be_registered() -> None:
    foreign = ForeignValidator(Libp2pPublicKeyValidator(), refusals=(InvalidRecordType,))
    registry = ValidatorRegistry({"pk": foreign})
    registry.validate(KEY, VALUE)
    assert registry.select(KEY, [VALUE]) == 0
    with pytest.raises(ValidationError, match="does not match storage key"):
        registry.validate(KEY[:-1] + b"\x00", VALUE)


@given(st.binary(min_size=1, max_size=60), st.binary(max_size=200))
@settings(derandomize=True, deadline=None)
def test_arbitrary_bytes_raise_nothing_but_validation_error(rest: bytes, value: bytes) -> None:
    registry = ValidatorRegistry({"ipns": ForeignValidator(IPNSValidator(), refusals=(InvalidRecordType,))})
    for key in (b"/ipns/" + rest, b"/pk/" + rest, rest):
        with pytest.raises(ValidationError):
            registry.validate(key, value)


def test_what_a_foreign_validator_raises_when_it_selects_is_translated() -> None:
    foreign = ForeignValidator(IPNSValidator(), refusals=(InvalidRecordType,))
    with pytest.raises(ValidationError):
        foreign.select(b"/ipns/x", [])
