"""Numbers on calls and answers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.errors import RemoteProtocolError
from prime_dht.wire.calls import (
    MAX_REASON_BYTES,
    Refusal,
    decode_answer,
    decode_call,
    encode_answer,
    encode_call,
)


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 2**63 - 1), st.binary(max_size=50))
def test_calls_and_answers_are_read_back(number: int, message: bytes) -> None:
    assert decode_call(encode_call(number, message)) == (number, message)
    assert decode_answer(encode_answer(number, message)) == (number, message)


def test_the_bytes_of_an_answer_and_of_a_refusal_are_these() -> None:
    assert encode_answer(300, b"m") == bytes.fromhex("ac02") + b"\x00" + b"m"
    assert encode_answer(7, Refusal("no")) == b"\x07" + b"\x01" + b"no"


def test_an_empty_message_is_not_a_refusal() -> None:
    assert decode_answer(encode_answer(0, b"")) == (0, b"")


def test_a_long_reason_is_cut_even_within_a_character() -> None:
    _, answer = decode_answer(encode_answer(1, Refusal("x" + "ö" * 500)))
    assert isinstance(answer, Refusal)
    assert answer.reason.startswith("xöö")
    assert len(answer.reason) <= MAX_REASON_BYTES
    _, hostile = decode_answer(b"\x01\x01" + b"\xff" * 10_000)
    assert isinstance(hostile, Refusal)
    assert len(hostile.reason) == MAX_REASON_BYTES


@pytest.mark.parametrize("body", [b"", b"\x80", b"\x80\x00", b"\xff" * 12])
def test_a_frame_without_a_number_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_call(body)
    with pytest.raises(RemoteProtocolError):
        decode_answer(body)


@pytest.mark.parametrize("body", [b"\x05", b"\x05\x02", b"\x05\xff"])
def test_an_answer_that_says_nothing_or_something_unknown_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_answer(body)
