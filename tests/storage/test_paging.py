"""Cursors come back from peers, so whatever they hold is either one of ours or refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId
from prime_dht.storage.paging import decode_cursor, encode_cursor


@settings(derandomize=True)
@given(publisher=st.binary(max_size=80), subkey=st.binary(max_size=300))
def test_a_cursor_is_read_as_it_was_written(publisher: bytes, subkey: bytes) -> None:
    if publisher or subkey:
        assert decode_cursor(encode_cursor(PeerId(publisher), subkey)) == (publisher, subkey)


@settings(derandomize=True)
@given(cursor=st.binary(min_size=1, max_size=12))
def test_any_bytes_are_a_cursor_or_refused(cursor: bytes) -> None:
    try:
        place = decode_cursor(cursor)
    except ValidationError:
        return
    assert place is not None
    assert encode_cursor(*place) == cursor


def test_the_empty_cursor_is_the_start() -> None:
    assert decode_cursor(b"") is None


@pytest.mark.parametrize("cursor", [b"\x00", b"\x00\x02a", b"\xff\xff" + bytes(100)])
def test_a_cursor_that_is_cut_short_is_refused(cursor: bytes) -> None:
    with pytest.raises(ValidationError):
        decode_cursor(cursor)
