"""Capabilities: granting, reading, and each way in which one does not cover an entry."""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.secp256k1 import create_new_key_pair as create_secp256k1_key_pair
from libp2p.peer.id import ID

from prime_dht.entries.capability import (
    Capability,
    capability_in,
    check_capability,
    decode_capability,
    grant,
    root_of,
)
from prime_dht.entries.envelope import CAPABILITY, VerifiedEnvelopes, open_envelope, seal, signature_of
from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId, TimestampUs

ROOT_KEY = create_new_key_pair(b"\x01" * 32)
OTHER_KEY = create_new_key_pair(b"\x02" * 32)
MEMBER = PeerId(ID.from_pubkey(create_new_key_pair(b"\x03" * 32).public_key).to_bytes())
STRANGER = PeerId(ID.from_pubkey(OTHER_KEY.public_key).to_bytes())
ROOT = root_of(ROOT_KEY.public_key)
GRANTED = grant(ROOT_KEY.private_key, member=MEMBER, expires_at_us=100, network_id="testnet")
FORGED = GRANTED[:-64] + bytes(64)


def check(
    data: bytes,
    *,
    root: bytes = ROOT,
    network_id: str = "testnet",
    member: PeerId = MEMBER,
    expires_at_us: int = 100,
    verified: VerifiedEnvelopes | None = None,
) -> None:
    check_capability(
        data, root=root, network_id=network_id, member=member, expires_at_us=expires_at_us, verified=verified
    )


def test_a_capability_encodes_to_its_golden_bytes() -> None:
    alice = PeerId(ID.from_pubkey(ROOT_KEY.public_key).to_bytes())
    assert grant(ROOT_KEY.private_key, member=alice, expires_at_us=5, network_id="testnet") == bytes.fromhex(
        "0a24080112208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c"
        "12132f7072696d652f6361706162696c6974792f31"
        "1a330a07746573746e6574"
        "12260024080112208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c"
        "1805"
        "2a408ba9c67eb40c3c4b9790e9a08afd26765d67289e37818a00b39fd7276c20993b"
        "e92bb87a141dd9c8de9507debb610ebf24d738acfdde70a028bffecc9f63700d"
    )


def test_a_capability_says_what_was_granted() -> None:
    assert decode_capability(GRANTED) == Capability(
        root=ROOT, network_id="testnet", member=MEMBER, expires_at_us=TimestampUs(100)
    )


def test_a_capability_covers_its_members_entries_that_expire_no_later_than_it() -> None:
    check(GRANTED, expires_at_us=99)
    check(GRANTED, expires_at_us=100)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: check(b""), "carry a capability"),
        (lambda: check(b"\xff"), "malformed"),
        (lambda: check(GRANTED, root=root_of(OTHER_KEY.public_key)), "another group"),
        (lambda: check(GRANTED, network_id="mainnet"), "another network"),
        (lambda: check(GRANTED, member=STRANGER), "another member"),
        (lambda: check(GRANTED, expires_at_us=101), "ends before the entry expires"),
        (lambda: check(FORGED), "not signed by the group's root key"),
    ],
    ids=["none", "malformed", "group", "network", "member", "expired", "forged"],
)
def test_a_capability_that_does_not_cover_the_entry_is_refused(attempt: Callable[[], object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        attempt()


def test_a_capability_is_verified_once_and_a_forged_copy_of_it_is_not_accepted() -> None:
    verified = VerifiedEnvelopes()
    check(GRANTED, verified=verified)
    check(GRANTED, verified=verified)
    assert len(verified) == 1
    with pytest.raises(ValidationError, match="not signed"):
        check(FORGED, verified=verified)


def test_what_is_remembered_as_verified_is_the_statement_under_its_signature_and_is_not_verified_again() -> None:
    statement_id = open_envelope(GRANTED, CAPABILITY).statement_id(CAPABILITY.domain("testnet"))
    verified = VerifiedEnvelopes()
    check(GRANTED, verified=verified)
    assert verified.knows(statement_id, signature_of(GRANTED))
    verified.remember(statement_id, signature_of(FORGED))
    check(FORGED, verified=verified)  # it would be refused, were it verified


@pytest.mark.parametrize(
    "given",
    [GRANTED, base64.b64encode(GRANTED).decode(), f" {base64.b64encode(GRANTED).decode()}\n"],
    ids=["itself", "its text", "the file's text"],
)
def test_a_capability_is_given_as_itself_or_as_the_text_of_it(given: bytes | str) -> None:
    assert capability_in(given) == GRANTED


@pytest.mark.parametrize("given", [b"", "", " \n"])
def test_no_capability_is_given_as_nothing(given: bytes | str) -> None:
    assert capability_in(given) == b""


@pytest.mark.parametrize(
    "given",
    [b"trainers.capability", GRANTED[:-1], "trainers.capability", "é", base64.b64encode(b"trainers").decode()],
    ids=["bytes", "cut", "a file's name", "not ASCII", "text of something else"],
)
def test_what_is_no_capability_cannot_be_given_as_one(given: bytes | str) -> None:
    with pytest.raises(ValidationError):
        capability_in(given)


@pytest.mark.parametrize("junk", ["!", "*", "\0", "="])
def test_text_with_anything_else_in_it_is_no_capability(junk: str) -> None:
    text = base64.b64encode(GRANTED).decode()
    with pytest.raises(ValidationError, match="not what `prime-dht group invite` writes"):
        capability_in(text[:20] + junk + text[20:])


def test_a_forged_capability_is_not_remembered() -> None:
    verified = VerifiedEnvelopes()
    with pytest.raises(ValidationError, match="not signed"):
        check(FORGED, verified=verified)
    assert len(verified) == 0


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: grant(ROOT_KEY.private_key, member=PeerId(b"bob"), expires_at_us=1, network_id="testnet"),
        lambda: grant(ROOT_KEY.private_key, member=MEMBER, expires_at_us=-1, network_id="testnet"),
        lambda: grant(ROOT_KEY.private_key, member=MEMBER, expires_at_us=1 << 64, network_id="testnet"),
        lambda: grant(ROOT_KEY.private_key, member=MEMBER, expires_at_us=1, network_id=""),
        lambda: grant(ROOT_KEY.private_key, member=MEMBER, expires_at_us=1, network_id="\ud800"),
        lambda: grant(create_secp256k1_key_pair().private_key, member=MEMBER, expires_at_us=1, network_id="testnet"),
    ],
    ids=["no peer id", "negative", "too late", "no network", "no Unicode", "not Ed25519"],
)
def test_a_capability_that_could_not_be_read_is_not_granted(attempt: Callable[[], object]) -> None:
    with pytest.raises(ValidationError):
        attempt()


@given(st.binary(max_size=200))
@settings(derandomize=True, deadline=None)
def test_arbitrary_bytes_raise_nothing_but_validation_error(data: bytes) -> None:
    for capability in (data, seal(ROOT_KEY.private_key, CAPABILITY, "testnet", data)):
        with suppress(ValidationError):
            decode_capability(capability)
