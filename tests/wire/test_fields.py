"""Counting fields without parsing them agrees with the parser, and never takes long."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.pb.kad_pb2 import Message
from prime_dht.wire.fields import has_more_fields
from prime_dht.wire.frames import encode_varint

varints = st.integers(0, 2**63 - 1).map(encode_varint)
numbers = st.integers(200, 2**29 - 1)


def field(number: int, wire_type: int, content: bytes) -> bytes:
    return encode_varint(number << 3 | wire_type) + content


fields = st.one_of(
    st.builds(field, numbers, st.just(0), varints | st.just(b"\xff" * 9 + b"\x01") | st.just(b"\x80\x00")),
    st.builds(field, numbers, st.just(1), st.binary(min_size=8, max_size=8)),
    st.builds(field, numbers, st.just(2), st.binary(max_size=200).map(lambda raw: encode_varint(len(raw)) + raw)),
    st.builds(field, numbers, st.just(5), st.binary(min_size=4, max_size=4)),
)


@settings(derandomize=True, deadline=None)
@given(st.lists(fields, max_size=20), st.integers(0, 25))
def test_a_message_has_as_many_fields_as_were_written(written: list[bytes], limit: int) -> None:
    message = b"".join(written)
    Message.FromString(message)
    assert has_more_fields(message, limit) == (len(written) > limit)


@settings(derandomize=True, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_can_be_counted(message: bytes, limit: int) -> None:
    assert has_more_fields(message, limit) in (True, False)
    assert not has_more_fields(message, len(message))


def test_a_number_that_does_not_end_is_not_read_to_the_end() -> None:
    assert not has_more_fields(b"\xff" * (4 << 20), 8192)
    assert has_more_fields(b"\x42\x00" * (2 << 20), 8192)


def test_fields_of_any_size_are_passed_over_whole() -> None:
    sizes = (0, 1, 127, 128, 129, 255, 256, 16_383, 16_384, 1 << 21)
    message = b"".join(field(200, 2, encode_varint(size) + b"\x42" * size) for size in sizes)
    Message.FromString(message)
    assert has_more_fields(message, len(sizes) - 1)
    assert not has_more_fields(message, len(sizes))
