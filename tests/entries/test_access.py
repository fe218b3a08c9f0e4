"""Who may write where: open, own and group keys, and a node's own policy."""

from __future__ import annotations

import hashlib

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from prime_dht.entries.access import GroupKey, KeyRule, OpenKey, OwnKey, group_key, key_rule, own_key
from prime_dht.errors import ValidationError
from prime_dht.ids import Key, PeerId

ALICE = create_new_key_pair(b"\x01" * 32)
ALICE_ID = PeerId(ID.from_pubkey(ALICE.public_key).to_bytes())
ALICE_TEXT = b"12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"
BOB_ID = PeerId(ID.from_pubkey(create_new_key_pair(b"\x02" * 32).public_key).to_bytes())
ROOT = hashlib.sha256(ALICE.public_key.serialize()).digest()
ROOT_HEX = ROOT.hex().encode()


def test_the_root_of_a_group_is_the_hash_of_the_serialized_public_key() -> None:
    assert group_key(ALICE.public_key, b"x") == b"/prime/group/" + ROOT_HEX + b"/x"
    assert ROOT_HEX == b"39ce9346c0a0752b12c74a47b21ca12ef923198397e6263028637fcfac37a95e"


def test_an_own_key_holds_the_peer_ids_text() -> None:
    assert own_key(ALICE_ID, b"x") == b"/prime/own/" + ALICE_TEXT + b"/x"


@pytest.mark.parametrize(
    ("key", "rule"),
    [
        (b"/prime/model", OpenKey()),
        (b"/prime//", OpenKey()),
        (b"/prime/\xff", OpenKey()),
        (b"/prime/own", OpenKey()),
        (b"/prime/owner/x", OpenKey()),
        (b"/prime/groups/x", OpenKey()),
        (b"/prime/own/" + ALICE_TEXT + b"/x", OwnKey(ALICE_ID)),
        (b"/prime/own/" + ALICE_TEXT + b"/x/\xff", OwnKey(ALICE_ID)),
        (b"/prime/group/" + ROOT_HEX + b"/x/y", GroupKey(ROOT)),
    ],
)
def test_a_key_says_who_may_write_it(key: bytes, rule: KeyRule) -> None:
    assert key_rule(Key(key)) == rule


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"model",
        b"/prime",
        b"/prime/",
        b"/pk/x",
        b"/primes/x",
        b"/prime/own/",
        b"/prime/own//x",
        b"/prime/own/" + ALICE_TEXT,
        b"/prime/own/" + ALICE_TEXT + b"/",
        b"/prime/own/" + ALICE_TEXT + b" /x",
        b"/prime/own/" + ALICE_TEXT[:-1] + b"/x",
        b"/prime/own/" + ALICE_TEXT[:-1] + b"0/x",
        b"/prime/own/\xff/x",
        b"/prime/own/hello/x",
        b"/prime/group/",
        b"/prime/group//x",
        b"/prime/group/" + ROOT_HEX,
        b"/prime/group/" + ROOT_HEX + b"/",
        b"/prime/group/" + ROOT_HEX.upper() + b"/x",
        b"/prime/group/" + ROOT_HEX[:-2] + b"/x",
        b"/prime/group/" + ROOT_HEX[:-1] + b"g/x",
        b"/prime/group/" + ROOT_HEX[:-2] + b"\xc3\xa9/x",
    ],
)
def test_what_only_looks_like_a_key_is_refused(key: bytes) -> None:
    with pytest.raises(ValidationError):
        key_rule(Key(key))
