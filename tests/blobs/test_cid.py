"""CIDs of blocks, compared with py-cid's."""

from __future__ import annotations

import cid as py_cid
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.blobs.cid import Cid, Codec
from prime_dht.errors import ValidationError

HELLO = Cid.of_raw(b"hello")


@given(data=st.binary(max_size=100), codec=st.sampled_from(Codec))
@settings(derandomize=True, deadline=None)
def test_both_forms_are_those_of_the_specification_and_are_read_back(data: bytes, codec: Codec) -> None:
    cid = Cid.of_raw(data) if codec is Codec.RAW else Cid.of_dag_pb(data)
    theirs = py_cid.make_cid(1, {Codec.RAW: "raw", Codec.DAG_PB: "dag-pb"}[codec], cid.multihash)
    assert bytes(cid) == theirs.buffer
    assert str(cid).encode() == theirs.encode("base32")
    assert Cid.from_bytes(bytes(cid)) == Cid.from_text(str(cid)) == cid
    assert cid.verify(data)
    assert not cid.verify(data + b"!")


@given(raw=st.binary(max_size=40) | st.binary(min_size=36, max_size=36).map(lambda raw: bytes(HELLO)[:4] + raw[4:]))
@settings(derandomize=True, deadline=None)
def test_any_bytes_are_a_cid_or_refused(raw: bytes) -> None:
    try:
        cid = Cid.from_bytes(raw)
    except ValidationError:
        return
    assert bytes(cid) == raw


@given(
    text=st.text(max_size=60) | st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=58, max_size=58).map("b".__add__)
)
@settings(derandomize=True, deadline=None)
def test_any_text_is_a_cid_or_refused(text: str) -> None:
    try:
        cid = Cid.from_text(text)
    except ValidationError:
        return
    assert str(cid) == text


@pytest.mark.parametrize("position", range(4))
def test_another_version_codec_hash_or_length_is_refused(position: int) -> None:
    raw = bytearray(bytes(HELLO))
    raw[position] ^= 1
    with pytest.raises(ValidationError):
        Cid.from_bytes(raw)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG", "version 0"),
        (str(HELLO).upper(), "lower-case"),
        (str(HELLO)[:-1], "58 characters"),
        (str(HELLO)[:-1] + "b", "it would be"),
        (str(HELLO)[:-2] + "ß" + "a", "not a CID"),
        (str(HELLO)[:-1] + "1", "not a CID"),
        ("", "not a CID"),
    ],
)
def test_other_texts_are_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Cid.from_text(text)
