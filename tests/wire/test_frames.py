"""Length-prefixed frames: the varint's rules, the limits, and that the pieces a stream comes in do not matter."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.errors import RemoteProtocolError
from prime_dht.wire.frames import MAX_FRAME_BYTES, FrameDecoder, decode_varint, encode_frame, encode_varint


@pytest.mark.parametrize(
    ("value", "encoded"),
    [  # the examples of the unsigned-varint specification
        (0, "00"),
        (1, "01"),
        (127, "7f"),
        (128, "8001"),
        (255, "ff01"),
        (300, "ac02"),
        (16384, "808001"),
        (2**63 - 1, "ffffffffffffffff7f"),
    ],
)
def test_varints_are_those_of_the_specification(value: int, encoded: str) -> None:
    raw = bytes.fromhex(encoded)
    assert encode_varint(value) == raw
    assert decode_varint(raw) == (value, len(raw))


@pytest.mark.parametrize("encoded", ["8000", "8100", "ff00", "80808000"])
def test_a_varint_that_could_be_shorter_is_refused(encoded: str) -> None:
    with pytest.raises(RemoteProtocolError, match="minimal"):
        decode_varint(bytes.fromhex(encoded))


def test_a_varint_of_ten_bytes_is_refused_as_soon_as_the_ninth_says_there_is_more() -> None:
    assert decode_varint(b"\xff" * 8) is None
    with pytest.raises(RemoteProtocolError, match="9 bytes"):
        decode_varint(b"\xff" * 9)


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 2**63 - 1), st.binary(max_size=5), st.binary(max_size=5))
def test_a_varint_is_read_back_wherever_it_stands(value: int, before: bytes, behind: bytes) -> None:
    raw = encode_varint(value)
    assert decode_varint(before + raw + behind, len(before)) == (value, len(before) + len(raw))
    assert decode_varint(raw[:-1]) is None


@settings(derandomize=True, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(1, 200), min_size=1, max_size=20))
def test_the_frames_are_the_same_whatever_pieces_they_come_in(bodies: list[bytes], sizes: list[int]) -> None:
    wire = b"".join(map(encode_frame, bodies))
    decoder = FrameDecoder()
    frames: list[bytes] = []
    turn = start = 0
    while start < len(wire):
        size = sizes[turn % len(sizes)]
        frames += decoder.feed(wire[start : start + size])
        start, turn = start + size, turn + 1
    assert frames == bodies
    assert decoder.is_between_frames


def test_a_frame_of_length_zero_is_a_frame() -> None:
    assert FrameDecoder().feed(b"\x00\x00\x01a\x00") == [b"", b"", b"a", b""]


def test_a_frame_of_4_mib_is_taken_and_one_of_a_byte_more_is_refused_before_any_of_it_comes() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(encode_varint(MAX_FRAME_BYTES)) == []
    assert decoder.announced_bytes() == MAX_FRAME_BYTES
    assert [len(frame) for frame in decoder.feed(bytes(MAX_FRAME_BYTES))] == [4 << 20]
    with pytest.raises(RemoteProtocolError, match="limit"):
        FrameDecoder().feed(encode_varint(MAX_FRAME_BYTES + 1))


def test_nothing_is_announced_between_frames_nor_within_a_length() -> None:
    decoder = FrameDecoder()
    assert decoder.announced_bytes() == 0
    decoder.feed(b"\x01a\xac")
    assert not decoder.is_between_frames
    assert decoder.announced_bytes() == 0
    decoder.feed(b"\x02")
    assert decoder.announced_bytes() == 300


@settings(derandomize=True, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_frames_or_a_remote_protocol_error(data: bytes) -> None:
    decoder = FrameDecoder(max_frame_bytes=64)
    try:
        frames = decoder.feed(data)
    except RemoteProtocolError:
        return
    assert sum(map(len, frames)) <= len(data)
    assert decoder.announced_bytes() <= 64
