"""The identifiers: what is a key, a namespace, a peer id, and what only looks like one."""

from __future__ import annotations

import hashlib

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.secp256k1 import create_new_key_pair as create_secp256k1_key_pair
from libp2p.peer.id import ID

from prime_dht.errors import ValidationError
from prime_dht.ids import is_peer_id, kad_key, namespace_of, peer_from_text, peer_text, short, wire_key

ED25519 = ID.from_pubkey(create_new_key_pair(b"\x01" * 32).public_key)
SECP256K1 = ID.from_pubkey(create_secp256k1_key_pair().public_key)
RSA = ID.from_base58("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N")
"""That of the libp2p peer id specification: the SHA-256 of a public key."""


def test_a_kad_key_is_the_sha_256_as_a_number_highest_byte_first() -> None:
    assert kad_key(b"k").to_bytes(32, "big") == hashlib.sha256(b"k").digest()


@pytest.mark.parametrize(
    ("key", "wire"),
    [
        ("k", b"/prime/k"),
        (b"k", b"/prime/k"),
        ("é", b"/prime/\xc3\xa9"),
        ("/prime/k", b"/prime/k"),
        (b"/prime/", b"/prime/"),
        ("/primer", b"/prime//primer"),
        ("/pk/k", b"/prime//pk/k"),
    ],
)
def test_a_key_is_put_into_the_namespace_of_entries_once(key: bytes | str, wire: bytes) -> None:
    assert wire_key(key) == wire


@pytest.mark.parametrize("key", ["", b""])
def test_an_empty_key_is_none(key: bytes | str) -> None:
    with pytest.raises(ValidationError, match="empty"):
        wire_key(key)


@pytest.mark.parametrize(
    ("key", "namespace"), [(b"/pk/x", "pk"), (b"/prime/a/b", "prime"), (b"/a//", "a"), (b"/a/\xff", "a")]
)
def test_a_keys_namespace_stands_between_its_first_two_slashes(key: bytes, namespace: str) -> None:
    assert namespace_of(key) == namespace


@pytest.mark.parametrize("key", [b"", b"/", b"//", b"pk", b"/pk", b"/pk/", b"pk/x", b"x/pk/x", b"//x", b"/\xff/x"])
def test_a_key_without_a_namespace_or_anything_in_it_is_refused(key: bytes) -> None:
    with pytest.raises(ValidationError):
        namespace_of(key)


@pytest.mark.parametrize("peer", [ED25519, SECP256K1, RSA], ids=["Ed25519", "secp256k1", "RSA"])
def test_a_peer_id_of_libp2p_is_one_and_reads_the_same(peer: ID) -> None:
    assert is_peer_id(peer.to_bytes())
    assert peer_from_text(peer.to_base58()) == peer.to_bytes()
    assert peer_text(peer_from_text(peer.to_base58())) == peer.to_base58()


@pytest.mark.parametrize(
    "raw",
    [bytes((0, 1)) + b"k", bytes((0, 42)) + bytes(42), b"\x12\x20" + bytes(32)],
    ids=["the shortest identity", "the longest identity", "SHA-256"],
)
def test_what_has_the_form_of_a_peer_id_is_one(raw: bytes) -> None:
    assert is_peer_id(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00",
        b"\x00\x00",
        bytes((0, 43)) + bytes(43),
        bytes((0, 36)) + bytes(35),
        bytes((0, 36)) + bytes(37),
        bytes((1, 36)) + bytes(36),
        b"\x12\x20" + bytes(31),
        b"\x12\x20" + bytes(33),
        b"\x12\x21" + bytes(32),
        b"\x11\x20" + bytes(32),
    ],
)
def test_what_only_looks_like_a_peer_id_is_none(raw: bytes) -> None:
    assert not is_peer_id(raw)


@pytest.mark.parametrize("text", ["", "me", "0OIl", "é", "\ud800", ED25519.to_base58()[:-1]])
def test_text_that_names_no_peer_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="not a peer id"):
        peer_from_text(text)


def test_an_identifier_is_shortened_to_the_last_characters_of_its_text() -> None:
    assert short(ED25519.to_bytes()) == ED25519.to_base58()[-6:]
